"""Stable Diffusion 1 and 2: clip_skip, the real tokenizer, the published configurations, and what is not of the kind."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from click.testing import CliRunner
from transformers import CLIPTextModel, CLIPTokenizer

from mapo.cli import cli
from mapo.encode.cache import cache_key
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from real import needs_real, published
from tiny import make_pairs, make_sd, make_sdxl

PROMPTS = ["a small red circle", "", "a photo of an astronaut riding a horse, ünïcode 雪, " * 12]


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    return make_sd(tmp_path_factory.mktemp("models") / "sd")


def opened(folder, clip_skip=None):
    return open_model(find_model(str(folder), clip_skip=clip_skip))


def mapo(*words, exit_code=0):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == exit_code, (done.output, done.exception)
    return done


# ------------------------------------------------------------------ clip_skip


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_clip_skip_is_the_final_norm_of_an_earlier_layer(sd, skip):
    encoder = CLIPTextModel.from_pretrained(sd / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(sd / "tokenizer")
    tokenizer.model_max_length = 32
    ids = tokenizer(PROMPTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder(ids, output_hidden_states=True).hidden_states
        inner = getattr(encoder, "text_model", encoder)
        wanted = inner.final_layer_norm(states[-(skip + 1)])
    ours = opened(sd, skip).text_encoder("cpu")(PROMPTS)["prompt_embeds"]
    assert torch.equal(ours, wanted)
    pipeline = opened(sd, skip).pipeline("cpu", torch.float32)
    theirs, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.equal(theirs, wanted)


def test_layers_are_left_out_under_either_layout_of_transformers(sd):
    from mapo.models.families.clip import leave_out_last_layers

    class Older(torch.nn.Module):
        """The layout of transformers 4: one level more."""

        def __init__(self, inner):
            super().__init__()
            self.text_model, self.config = inner, inner.config

    encoder = CLIPTextModel.from_pretrained(sd / "text_encoder").eval()
    inner, ids = getattr(encoder, "text_model", encoder), torch.arange(12).reshape(2, 6)
    assert len(inner.encoder.layers) == 3
    with torch.no_grad():
        wanted = inner.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-2])
        made = leave_out_last_layers(Older(inner), 1).text_model(ids)[0]
    assert torch.equal(made, wanted) and len(inner.encoder.layers) == 2


def test_a_run_keeps_its_clip_skip_in_every_later_verb(sd, tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 4)
    words = ["--set", "train.steps=1", "--set", "train.pairs_per_step=2", "--adapter", "lora"]
    mapo("train", "--model", sd, "--pairs", pairs, "--out", tmp_path / "run", "--set", "data.clip_skip=1", *words)
    run = find_model(str(tmp_path / "run"))
    assert run.clip_skip == 1 and find_model(str(tmp_path / "run"), clip_skip=0).clip_skip == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["clip_skip"] == 1
    (tmp_path / "p.txt").write_text("a red circle\n")
    for name, more in (("as-trained", []), ("said", ["--clip-skip", 1]), ("none", ["--clip-skip", 0])):
        mapo("sample", "--model", tmp_path / "run", "--prompts", tmp_path / "p.txt", "--steps", 2, *more,
             "--out", tmp_path / name)  # fmt: skip
    made = {name: next((tmp_path / name).glob("*.png")).read_bytes() for name in ("as-trained", "said", "none")}
    assert made["as-trained"] == made["said"] != made["none"]
    mapo("train", "--model", tmp_path / "run", "--pairs", pairs, "--out", tmp_path / "on-top", *words)
    assert find_model(str(tmp_path / "on-top")).clip_skip == 1


def test_a_cache_of_another_clip_skip_is_refused(sd, tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 2)
    mapo("encode", "--model", sd, "--pairs", pairs, "--out", tmp_path / "cache", "--clip-skip", 1)
    again = mapo("encode", "--model", sd, "--pairs", pairs, "--out", tmp_path / "cache", exit_code=1)
    assert "was encoded with clip_skip 1, this run asks for 0" in str(again.exception)
    key = json.loads((tmp_path / "cache" / "cache.json").read_text())["key"]
    assert key["clip_skip"] == 1 and "clip_skip" not in cache_key(opened(sd, 0)).as_json()
    write = {**json.loads((tmp_path / "cache" / "cache.json").read_text()), "key": {**key}}
    write["key"].pop("clip_skip")  # as it was written before
    (tmp_path / "cache" / "cache.json").write_text(json.dumps(write))
    mapo("encode", "--model", sd, "--pairs", pairs, "--out", tmp_path / "cache", "--clip-skip", 1)
    assert cache_key(opened(sd, 0)) == cache_key(opened(sd)) != cache_key(opened(sd, 1))


def test_clip_skip_that_no_model_has_is_refused(sd, sdxl):
    with pytest.raises(MapoError, match=r"clip_skip is 3, but the text encoder of .* has 3 layers"):
        opened(sd, 3)
    with pytest.raises(MapoError, match="always leaves out the last layer"):
        opened(sdxl, 1)


# ------------------------------------------------------------------ the safety checker


def test_pictures_are_made_without_the_folders_safety_checker(sd, tmp_path):
    pipeline = opened(sd).pipeline("cpu", torch.float32)
    assert pipeline.safety_checker is None and (sd / "safety_checker" / "config.json").exists()


# ------------------------------------------------------------------ what is not of the kind


def changed(folder, source, file, **values):
    shutil.copytree(source, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        (
            "unet/config.json",
            {"in_channels": 9},
            "takes 9 channels and gives 4: a model for editing or inpainting. Give the model that it was made from",
        ),
        (
            "vae/config.json",
            {"latent_channels": 16},
            "takes latents of 4 channels, and the VAE of .*vae/config.json gives 16: it is one of another kind of model",
        ),
        ("unet/config.json", {"num_class_embeds": 1000}, "has num_class_embeds 1000; Stable Diffusion has none"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "has class_embed_type 'timestep'"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "has addition_embed_type 'text_time'"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "distilled with its guidance built in"),
        (
            "unet/config.json",
            {"cross_attention_dim": 1024},
            "reads text of 1024 numbers a token, the text encoder gives 24",
        ),
        ("unet/config.json", {"sample_size": [8, 8]}, "sample_size .8, 8.; it has to be one number"),
        ("vae/config.json", {"_class_name": "AsymmetricAutoencoderKL"}, "names AsymmetricAutoencoderKL"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "has prediction_type 'sample'"),
        ("text_encoder/config.json", {"vocab_size": 9999}, "does not fit together"),
    ],
)
def test_a_folder_of_another_kind_is_refused_with_its_file(sd, tmp_path, file, values, says):
    folder = changed(tmp_path / "m", sd, file, **values)
    with pytest.raises(MapoError, match=says):
        model = opened(folder)
        model.tokenizers()
        cache_key(model)


def test_the_vae_may_leave_its_scaling_factor_out_as_the_published_one_does(sd, tmp_path):
    folder = changed(tmp_path / "m", sd, "vae/config.json")
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    config.pop("scaling_factor")
    path.write_text(json.dumps(config))
    assert opened(folder).scale(torch.ones(1, 4, 1, 1)).flatten()[0] == pytest.approx(0.18215)


# ------------------------------------------------------------------ the scheduler of two files

PNDM = "model_index.json names the scheduler PNDMScheduler, "


def with_file_of(sd, folder, name):
    path = changed(folder, sd, "vae/config.json") / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": name}))
    return folder


@pytest.mark.parametrize("prediction", [None, "epsilon"])
def test_pictures_are_drawn_with_the_scheduler_that_the_index_names_and_a_line_says_so(sd, tmp_path, heard, prediction):
    folder = with_file_of(sd, tmp_path / "m", "EulerDiscreteScheduler")
    for _ in range(2):
        pipeline = open_model(find_model(str(folder), prediction=prediction)).pipeline("cpu")
    assert type(pipeline.scheduler) is diffusers.PNDMScheduler
    line = f"{PNDM}and scheduler/scheduler_config.json names EulerDiscreteScheduler. Pictures are drawn with PNDM"
    assert heard().count(line) == 1


def test_two_schedulers_for_different_noise_are_refused(sd, tmp_path):
    folder = with_file_of(sd, tmp_path / "m", "FlowMatchEulerDiscreteScheduler")
    words = ["--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt"]
    (tmp_path / "prompts.txt").write_text("a cat\n")
    done = mapo("sample", "--model", folder, *words, exit_code=1)
    why = f"{PNDM}but scheduler/scheduler_config.json names FlowMatchEulerDiscreteScheduler. These two are not known to be for the same noise"
    assert why in str(done.exception) and not (tmp_path / "out").exists()


# ------------------------------------------------------------------ published files

PUBLISHED = {
    "stable-diffusion-v1-5": (859_520_964, 64, 512, "epsilon"),
    "stable-diffusion-2-1": (865_910_724, 64, 768, "v_prediction"),
    "stable-diffusion-xl-base-1.0": (2_567_463_684, 32, 1024, "epsilon"),
}


@needs_real("configs")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_are_opened_without_their_weights(tmp_path, name):
    parameters, multiple, side, prediction = PUBLISHED[name]
    model = opened(published(tmp_path / "m", name))
    assert (model.layout.channels, model.layout.stride, model.layout.multiple, model.layout.side) == (
        4,
        8,
        multiple,
        side,
    )
    assert model.process.prediction_type == prediction and model.process.num_timesteps == 1000
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(model.files.config("unet"))
    assert sum(p.numel() for p in unet.parameters()) == parameters
    shape = model.layout.latent(side)
    cond = {"prompt_embeds": torch.empty(1, 77, unet.config.cross_attention_dim, device="meta")}
    if name.startswith("stable-diffusion-xl"):
        cond |= {"text_embeds": torch.empty(1, 1280, device="meta"), "time_ids": torch.empty(1, 6, device="meta")}
    x, t = torch.empty(1, *shape, device="meta"), torch.zeros(1, device="meta", dtype=torch.int64)
    assert model.predict(unet, x, t, cond).shape == (1, *shape)
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=4, target_modules=list(model.lora_targets)))
    layers = sum("lora_A" in key for key, _ in unet.named_parameters())
    assert layers == {"stable-diffusion-xl-base-1.0": 560}.get(name, 128)


@needs_real("clip_tokenizer")
def test_with_the_real_tokenizers_sdxls_prompts_are_encoded_as_the_pipeline_encodes_them(tmp_path):
    found = published(tmp_path / "published", "stable-diffusion-xl-base-1.0")
    parts = ("tokenizer", "tokenizer_2")
    first = CLIPTokenizer.from_pretrained(found / "tokenizer")
    folder = make_sdxl(tmp_path / "m", tokenizer=first, text={"max_position_embeddings": 77})
    for part in parts:
        shutil.rmtree(folder / part)
        shutil.copytree(found / part, folder / part)
    model = opened(folder)
    pipeline = model.pipeline("cpu", torch.float32)
    states, _, pooled, _ = pipeline.encode_prompt(list(PROMPTS), device="cpu", do_classifier_free_guidance=False)
    ours = model.text_encoder("cpu")(PROMPTS)
    assert ours["prompt_embeds"].shape == (3, 77, 40)
    assert torch.equal(ours["prompt_embeds"], states) and torch.equal(ours["text_embeds"], pooled)
    last = [int(t("a", padding="max_length", max_length=77).input_ids[-1]) for t in model.tokenizers()]
    assert last == [49407, 0]  # the second one fills up with "!"


@needs_real("clip_tokenizer")
@pytest.mark.parametrize("name", ["stable-diffusion-v1-5", "stable-diffusion-2-1"])
def test_with_the_real_tokenizer_prompts_are_encoded_as_the_pipeline_encodes_them(tmp_path, name):
    settings = published(tmp_path / "published", name) / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(settings)
    text = {"max_position_embeddings": 77}
    folder = make_sd(tmp_path / "m", tokenizer=tokenizer, text=text)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(settings, folder / "tokenizer")
    model = opened(folder)
    assert model.tokenizers()[0].model_max_length == 77
    pipeline = model.pipeline("cpu", torch.float32)
    theirs, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    ours = model.text_encoder("cpu")(PROMPTS)["prompt_embeds"]
    assert ours.shape == (3, 77, 24) and torch.equal(ours, theirs)
    last = int(model.tokenizers()[0]("a", padding="max_length", max_length=77).input_ids[-1])
    assert last == {"stable-diffusion-v1-5": 49407, "stable-diffusion-2-1": 0}[name]  # 2.1 fills up with "!"
