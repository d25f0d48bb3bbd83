"""Model folders of another kind, and folders that are not whole, are refused; what is whole in another way is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from mapo.encode.cache import cache_key
from mapo.encode.seen import open_view
from mapo.errors import MapoError, memory_told
from mapo.models import find_model, open_model
from mapo.models.families.latent import check_vae
from mapo.models.noise.process import DDPM_LIKE, check_scheduler
from mapo.models.parts.weights import not_loaded, not_whole, variant_of
from mapo.worlds import MODELS

MINI = MODELS["mini"]


def changed(folder: Path, file: str, **values) -> Path:
    """The built-in model with other values in a JSON file; None takes one out."""
    shutil.copytree(MINI, folder)
    path = folder / file
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def open_for_training(folder: Path) -> None:
    cache_key(open_model(find_model(str(folder))))


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "names EDMEulerScheduler"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "names EDMDPMSolverMultistepScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "names FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
        ({"prediction_type": "sample"}, "prediction_type 'sample'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        ({"timestep_type": "continuous"}, "timestep_type 'continuous'"),
        ({"sigma_min": 0.002, "sigma_max": 80.0}, "has sigma_min"),
        ({"beta_start": None}, "does not say beta_start"),
        ({"beta_schedule": None}, "does not say beta_schedule"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused_with_its_file(tmp_path, values, why):
    folder = changed(tmp_path / "m", SCHEDULER, **values)
    with pytest.raises(MapoError, match=f"scheduler_config.json.*{why}"):
        open_for_training(folder)
    with pytest.raises(MapoError, match=why):
        open_view(str(folder))


@pytest.mark.parametrize(
    "values",
    [
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True},
        {"_class_name": "EulerAncestralDiscreteScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    ],
)
def test_every_scheduler_of_the_ddpm_is_taken(tmp_path, values):
    open_for_training(changed(tmp_path / "m", SCHEDULER, **values))


def test_the_known_schedulers_have_betas():
    import inspect

    for name in set(DDPM_LIKE) - {"DPMSolverSDEScheduler"}:  # it needs another package
        assert "beta_start" in inspect.signature(getattr(diffusers, name).__init__).parameters, name


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("vae/config.json", {"scaling_factor": None}, 'has no scaling_factor.*"scaling_factor": 0.13025'),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "names AutoencoderTiny"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels and gives 4"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type None"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "distilled"),
        ("unet/config.json", {"sample_size": None}, "has no sample_size; it has to be one number"),
        (
            "text_encoder_2/config.json",
            {"vocab_size": 49408},
            "tokenizer_2/ has 676 tokens, text_encoder_2/config.json 49408",
        ),
    ],
)
def test_parts_of_another_kind_are_refused_with_their_file(tmp_path, file, values, why):
    folder = changed(tmp_path / "m", file, **values)
    with pytest.raises(MapoError, match=why):
        open_for_training(folder)
        open_view(str(folder))


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("", "tokenizer(_2)?/ is missing"),
        ("tokenizer.json", "has no vocabulary"),
        ("tokenizer_config.json", "how many tokens"),
    ],
)
def test_a_tokenizer_that_is_not_whole_is_refused_for_training_and_for_sampling(tmp_path, part, gone, why):
    from mapo.models.pipelines import open_pipeline

    shutil.copytree(MINI, tmp_path / "m")
    path = tmp_path / "m" / part / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for use in (
        open_for_training,
        lambda m: open_view(str(m)),
        lambda m: open_pipeline(find_model(str(m)), "cpu", torch.float32),
    ):
        with pytest.raises(MapoError, match=why):
            use(tmp_path / "m")


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("named", ["BertTokenizer", "T5Tokenizer", "T5TokenizerFast", "GemmaTokenizer"])
def test_a_tokenizer_that_names_another_class_is_refused_with_its_file(tmp_path, part, named):
    folder = changed(tmp_path / "m", f"{part}/tokenizer_config.json", tokenizer_class=named)
    with pytest.raises(MapoError, match=rf"{part}/tokenizer_config.json names {named}; .*a CLIPTokenizer"):
        open_for_training(folder)
    with pytest.raises(MapoError, match=f"names {named}"):
        open_view(str(folder))


@pytest.mark.parametrize("named", ["CLIPTokenizer", "CLIPTokenizerFast", "TokenizersBackend", None])
def test_a_tokenizer_of_the_kind_is_taken_whatever_its_library_calls_it(tmp_path, named):
    open_for_training(changed(tmp_path / "m", "tokenizer/tokenizer_config.json", tokenizer_class=named))


def test_a_tokenizer_that_knows_no_word_is_refused_though_it_has_as_many(tmp_path):
    """All prompts would be the same to the model."""
    folder = changed(tmp_path / "m", "tokenizer/tokenizer_config.json", tokenizer_class=None)
    path = folder / "tokenizer" / "tokenizer.json"
    words = {f"word{k}": k for k in range(674)} | {"<|startoftext|>": 674, "<|endoftext|>": 675}
    whole = json.loads(path.read_text())
    whole["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "<|endoftext|>"}
    path.write_text(json.dumps(whole | {"pre_tokenizer": {"type": "Whitespace"}, "normalizer": None}))
    with pytest.raises(MapoError, match=r"The tokenizer in .*tokenizer knows no word of 'a photo of a cat"):
        open_for_training(folder)


def test_no_more_tokens_are_read_than_the_encoder_has_places_for(tmp_path):
    folder = changed(tmp_path / "m", "tokenizer/tokenizer_config.json", model_max_length=None)
    assert open_view(str(folder)).most_tokens == 32


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    shutil.copytree(MINI, tmp_path / "m")
    path = tmp_path / "m" / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(sorted(tensors))))
    save_file(tensors, path, {"format": "pt"})
    model = find_model(str(tmp_path / "m"))
    with pytest.raises(MapoError, match=r"the weights of text_encoder lack .*\(1 tensor is missing\)"):
        open_model(model).text_encoder("cpu")


def test_a_folder_that_lacks_a_part_or_its_configuration_is_told_in_words(tmp_path):
    shutil.copytree(MINI, tmp_path / "m")
    (tmp_path / "m" / "unet" / "config.json").unlink()
    with pytest.raises(MapoError, match=r"m is not whole: there is no unet/config.json in it. Download the folder"):
        open_for_training(tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "unet")
    with pytest.raises(MapoError, match=r"m is not whole: there is no unet/ in it. Download the folder again"):
        open_for_training(tmp_path / "m")


OTHER_FOLDERS = {
    "a LoRA": ({"pytorch_lora_weights.safetensors": ""}, "is the folder of a LoRA, not a model.* this with --lora"),
    "peft": ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "is the folder of a LoRA, not a model"),
    "a VAE": ({"config.json": '{"_class_name": "AutoencoderKL"}'}, "is a VAE .AutoencoderKL., .* Give it with --vae"),
    "an embedding": ({"learned_embeds.safetensors": ""}, "is an embedding .textual inversion., not a model"),
    "a UNet": ({"config.json": '{"_class_name": "UNet2DConditionModel"}'}, "is only a denoiser .*model_index.json"),
    "a text encoder": ({"config.json": '{"architectures": ["CLIPTextModel"]}'}, "is a text encoder .CLIPTextModel"),
    "a ControlNet": ({"config.json": '{"_class_name": "ControlNetModel"}'}, "is a ControlNet .ControlNetModel"),
    "pairs": ({"set.json": "{}"}, "is a pairs set, not a model"),
    "pictures": ({"images.json": "{}", "manifest.jsonl": ""}, "is an images folder, not a model"),
    "one file": (
        {"model.safetensors": ""},
        "is not a diffusers pipeline .* Perhaps you mean the file .*x/model.safetensors",
    ),
    "anything": ({"config.json": "{", "b.txt": ""}, "is neither a diffusers pipeline"),
}


@pytest.mark.parametrize("kind", OTHER_FOLDERS)
def test_a_folder_that_is_something_else_than_a_model_is_called_by_its_name(tmp_path, kind):
    files, says = OTHER_FOLDERS[kind]
    (tmp_path / "x").mkdir()
    for name, content in files.items():
        (tmp_path / "x" / name).write_text(content)
    with pytest.raises(MapoError, match=f"--model: {tmp_path}/x {says}"):
        find_model(str(tmp_path / "x"))


def test_the_hubs_cache_is_told_by_the_name_of_its_model_and_a_version(tmp_path):
    kept = tmp_path / "models--owner--a--name"
    shutil.copytree(MINI, kept / "snapshots" / "abc")
    for folder in (kept, kept / "snapshots"):
        with pytest.raises(MapoError, match=r"hub's cache keeps .* itself, owner/a--name, or .*/snapshots/abc\."):
            find_model(str(folder))
    open_for_training(kept / "snapshots" / "abc")


def test_links_to_what_is_not_there_are_told_as_links(tmp_path):
    link = tmp_path / "m"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(MapoError, match="--model: .*/m is a link to .*/gone, which is not there. Mend it, or name"):
        find_model(str(link))
    shutil.copytree(MINI, tmp_path / "gone")
    open_for_training(link)
    weights = tmp_path / "gone" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("../blobs/0")
    with pytest.raises(
        MapoError, match=r"model.safetensors is a link to \.\./blobs/0, which is not .* Download the folder"
    ):
        find_model(str(link))


def test_a_machine_without_the_memory_is_not_told_that_the_folder_is_damaged(tmp_path):
    full = RuntimeError("unable to mmap 33741394094 bytes from file <m.safetensors>: Cannot allocate memory (12)")
    for told in (lambda: not_whole(tmp_path, "unet", full), lambda: not_loaded(tmp_path, full)):
        with pytest.raises(MapoError, match="The memory ran out while the model was loaded. Use"), memory_told(0):
            told()


def test_a_folder_within_a_run_is_told_by_the_name_of_the_run(tmp_path, monkeypatch):
    for folder in ("weights", "checkpoints/step-00000007"):
        (tmp_path / "run" / folder).mkdir(parents=True)
        (tmp_path / "run" / folder / "pytorch_lora_weights.safetensors").touch()
    (tmp_path / "run" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MapoError, match=r"run/weights lies in the run run. Name the run, or .* as run@STEP"):
        find_model("run/weights")
    with pytest.raises(MapoError, match="step-00000007 is a checkpoint of the run run. Name it run@7"):
        find_model("run/checkpoints/step-00000007")


# ------------------------------------------------------------------ files of weights


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, r"is cut off: it has [\d,]+ of [\d,]+ bytes"), (b"", "is empty"),
     (b"version https://git-lfs.github.com/spec/v1", "is only the pointer that Git LFS leaves"),
     (b"<!DOCTYPE html><html>", "is a web page")],
)  # fmt: skip
def test_weights_in_a_folder_that_were_not_downloaded_whole_are_told_as_what_they_are(tmp_path, content, says):
    from mapo.models.pipelines import open_pipeline

    shutil.copytree(MINI, tmp_path / "m")
    for part, use in (("unet", lambda m: open_model(m).files.check_weights("unet")),
                      ("vae", lambda m: open_model(m).image_encoder("cpu")),
                      ("vae", lambda m: open_pipeline(m, "cpu", torch.float32))):  # fmt: skip
        path = next((tmp_path / "m" / part).glob("*.safetensors"))
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] if content is None else content)
        with pytest.raises(MapoError, match=rf"cannot be loaded, as .*{part}/.*safetensors {says}") as told:
            use(find_model(str(tmp_path / "m")))
        assert content or "Download the folder again" in str(told.value)
        path.write_bytes(whole)


def test_weights_that_are_not_there_yet_are_missed_in_the_same_words_when_a_pipeline_is_opened(tmp_path):
    from mapo.models.pipelines import open_pipeline

    shutil.copytree(MINI, tmp_path / "m")
    path = next((tmp_path / "m" / "unet").glob("*.safetensors"))
    path.rename(path.with_name(f"{path.name}.incomplete"))
    with pytest.raises(MapoError, match=r"m is not whole: unet/ has no weights\. Download the folder again\.$"):
        open_pipeline(find_model(str(tmp_path / "m")), "cpu", torch.float32)


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_shard_that_an_index_names_and_that_is_not_there_is_named(tmp_path, variant):
    shutil.copytree(MINI, tmp_path / "m")
    unet = tmp_path / "m" / "unet"
    weights = next(unet.glob("*.safetensors"))
    weights.rename(unet / f"diffusion_pytorch_model{variant}-00001-of-00002.safetensors")
    index = {"weight_map": {"a": f"diffusion_pytorch_model{variant}-00002-of-00002.safetensors"}}
    (unet / f"diffusion_pytorch_model.safetensors.index{variant}.json").write_text(json.dumps(index))
    with pytest.raises(
        MapoError, match=r"unet has no .*00002-of-00002.safetensors, which .*index.*json names. Download"
    ):
        open_model(find_model(str(tmp_path / "m"))).files.check_weights("unet")


def halves(folder: Path, parts: tuple[str, ...]) -> Path:
    """The built-in model with only fp16 weights in some parts."""
    shutil.copytree(MINI, folder)
    for part in parts:
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(".fp16.safetensors"))
    return folder


@pytest.mark.parametrize(
    "parts",
    [("unet",), ("vae",), ("text_encoder", "text_encoder_2"), ("unet", "vae", "text_encoder", "text_encoder_2")],
)
def test_weights_that_are_there_only_as_a_variant_are_read_in_every_part(tmp_path, parts):
    both = [open_model(find_model(name)) for name in ("mini", str(halves(tmp_path / "m", parts)))]
    one, two = (model.denoiser("cpu").state_dict() for model in both)
    assert all(torch.equal(one[k], two[k]) for k in one)
    means = [model.image_encoder("cpu")(torch.ones(1, 3, 48, 48))[0] for model in both]
    assert torch.equal(*means)
    texts = [model.text_encoder("cpu")(["a red circle"]) for model in both]
    assert all(torch.equal(texts[0][k], texts[1][k]) for k in texts[0])
    assert both[1].pipeline("cpu").unet.dtype == torch.float32


def test_a_variant_is_only_taken_where_there_is_nothing_else(tmp_path):
    names = {"a": ["model.safetensors", "model.fp16.safetensors"], "b": ["model.fp16-00001-of-00002.safetensors"],
             "c": ["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], "d": ["model-00001-of-00002.safetensors"],
             "e": ["model.non_ema.safetensors", "model.fp16.safetensors"], "f": []}  # fmt: skip
    for folder, files in names.items():
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()
    assert [variant_of(tmp_path / f) for f in "abcdef"] == [None, "fp16", "fp16", None, "fp16", None]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickles_are_not_loaded_and_the_sentence_says_how_to_convert_them(tmp_path, part):
    from mapo.models.pipelines import open_pipeline

    shutil.copytree(MINI, tmp_path / "m")
    for path in (tmp_path / "m" / part).glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    model = find_model(str(tmp_path / "m"))
    with pytest.raises(MapoError, match=rf"{part} has its weights only as .*\.bin.*use_safetensors=False"):
        open_for_training(tmp_path / "m")
    with pytest.raises(MapoError, match="save_pretrained"):
        open_pipeline(model, "cpu", torch.float32)


# ------------------------------------------------------------------ published models

PUBLISHED = json.loads((Path(__file__).parent.parent / "data" / "kinds.json").read_text())


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "source"])
def test_published_schedulers_are_told_apart(name):
    config = PUBLISHED[name]["scheduler"]
    if "diffusion-3" in name or "FLUX" in name:
        with pytest.raises(MapoError, match="names FlowMatchEulerDiscreteScheduler"):
            check_scheduler(Path(name), config)
    else:
        check_scheduler(Path(name), config)


def test_the_published_sdxl_is_taken_and_a_vae_that_names_no_factor_is_not(tmp_path):
    sdxl = PUBLISHED["stable-diffusion-xl-base-1.0"]
    folder = changed(tmp_path / "m", SCHEDULER, **sdxl["scheduler"])
    for part in ("vae", "unet"):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | sdxl[part]))
    open_for_training(folder)
    with pytest.raises(MapoError, match="has no scaling_factor"):
        check_vae(folder, PUBLISHED["stable-diffusion-v1-5"]["vae"], 0.13025)
