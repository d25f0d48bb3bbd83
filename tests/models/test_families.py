"""What every family has to keep, written once and run for each of them."""

import inspect
import json
import shutil

import diffusers
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.models import Frames, find_model, fingerprint, open_model, together
from mapo.models.families import FAMILIES
from mapo.models.families.flux import unpack
from mapo.models.files import ModelFiles
from mapo.models.noise.process import Ddpm
from tiny import MAKERS, UNETS, make_pairs

PROMPTS = ["a small red circle on a gray background", "", "zebra, ünïcode " * 30]


def opened(folder):
    return open_model(find_model(str(folder)))


def changed(folder, source, file, **values):
    """A copy of a model with other values in a JSON file; None takes one out."""
    shutil.copytree(source, folder)
    path = folder / file
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def mapo(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_there_is_a_small_model_for_every_family():
    assert MAKERS.keys() == FAMILIES.keys()


# ------------------------------------------------------------------ what the denoiser is given


def as_latent(model, tensor):
    """A pipeline's latents as "b c h w": FLUX has them packed."""
    return unpack(tensor, 8, 8) if tensor.ndim == 3 else tensor


def condition(model, prompts=PROMPTS[:1], side=16):
    """All that the denoiser is given for some prompts, as a cache would give it."""
    found = model.text_encoder("cpu")(prompts)
    texts = [{name: values[k] for name, values in found.items()} for k in range(len(prompts))]
    return model.condition(together(texts), Frames.square(torch.tensor([[side, side, 0, 0]] * len(prompts)), side))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_predict_gives_the_denoiser_what_the_pipeline_gives_it_and_gets_the_same_back(any_prediction, precision):
    model, seen, steps = opened(any_prediction), [], []
    pipeline = model.pipeline("cpu", precision)
    if isinstance(model.process, Ddpm):
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    network, step = getattr(pipeline, model.denoiser_part), pipeline.scheduler.step

    def watched(output, t, x_t, *rest, **named):
        steps.append((output, t, x_t))
        return step(output, t, x_t, *rest, **named)

    def given(module, args, kwargs):
        seen.append(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    network.register_forward_pre_hook(given, with_kwargs=True)
    pipeline.scheduler.step = watched
    off = 0.0 if "ZImage" in type(pipeline).__name__ else 1.0
    with torch.no_grad():
        pipeline(PROMPTS[:1], height=16, width=16, num_inference_steps=2, guidance_scale=off, output_type="latent",
                 generator=torch.Generator().manual_seed(0))  # fmt: skip
        wanted, asked = list(steps), list(seen)
        cond = condition(model)
        if precision is torch.bfloat16:  # in which the pipeline's own encoders are
            cond = given_text(asked[0], cond)
        ours = [model.predict(network, as_latent(model, x_t).to(precision), t.reshape(1), cond) for _, t, x_t in wanted]
    assert len(wanted) == 2 and len(seen) == 4
    for theirs, mine in zip(asked, seen[2:], strict=True):
        names = [name for name, value in theirs.items() if list(flat(value))]
        for name in names:
            for left, right in zip(flat(theirs[name]), flat(mine[name]), strict=True):
                assert torch.equal(left.reshape(right.shape), right.to(left.dtype)), name
    for (output, _, _), prediction in zip(wanted, ours, strict=True):
        assert torch.equal(as_latent(model, output), prediction.to(output.dtype))


def given_text(asked, cond):
    """Our conditioning with the text that the pipeline's encoders made."""
    states = asked.get("encoder_hidden_states")
    if states is None:
        return {"prompt_embeds": torch.stack(asked["cap_feats"])}
    pooled = asked.get("pooled_projections", (asked.get("added_cond_kwargs") or {}).get("text_embeds"))
    return {**cond, "prompt_embeds": states} | ({} if pooled is None else {"text_embeds": pooled})


def flat(value):
    """All tensors in a nest of dictionaries and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from flat(value[key])
    elif isinstance(value, tuple | list):
        for one in value:
            yield from flat(one)


def test_prompts_are_encoded_as_the_pipeline_encodes_them(any_model):
    model = opened(any_model)
    pipeline = model.pipeline("cpu", torch.float32)
    several = {name: list(PROMPTS) for name in ("prompt_2", "prompt_3") if name in accepts_of(pipeline.encode_prompt)}
    with torch.no_grad():
        found = pipeline.encode_prompt(list(PROMPTS), device="cpu", **several, **without_guidance(pipeline))
    ours, theirs = condition(model, PROMPTS), found[0]
    if isinstance(theirs, list):
        for mine, length, one in zip(ours["prompt_embeds"], ours["prompt_embeds_length"], theirs, strict=True):
            assert torch.equal(mine[:length], one) and not mine[length:].any()
        return
    assert torch.equal(ours["prompt_embeds"], theirs)
    if "text_embeds" in ours:
        assert torch.equal(
            ours["text_embeds"], next(t for t in found[1:] if t is not None and t.ndim == 2 and len(t) == 3)
        )


def accepts_of(call):
    return inspect.signature(call).parameters


def without_guidance(pipeline):
    wanted = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return {name: value for name, value in wanted.items() if name in accepts_of(pipeline.encode_prompt)}


def test_a_target_turned_back_gives_the_picture(any_prediction):
    process = opened(any_prediction).process
    x, noise = torch.randn(4, 4, 8, 8).double(), torch.randn(4, 4, 8, 8).double()
    t = process.time(torch.tensor([0, 10, 500, 900]))
    x_t, target = process.add_noise(x, noise, t), process.target(x, noise, t)
    if isinstance(process, Ddpm):
        a = process.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
        back = (x_t - (1 - a).sqrt() * target) / a.sqrt()
        if process.prediction_type == "v_prediction":
            back = a.sqrt() * x_t - (1 - a).sqrt() * target
    else:
        back = x_t - (t.double() / 1000).view(-1, 1, 1, 1) * target
    assert torch.allclose(back, x, atol=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", UNETS)
def test_the_process_of_a_unet_is_its_schedulers_own(family, prediction, small_model):
    model = opened(small_model(family, *(() if prediction == "epsilon" else (prediction,))))
    config = model.files.config("scheduler")
    scheduler = DDPMScheduler.from_config(config)
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    assert model.process.prediction_type == own.config.prediction_type == prediction
    assert torch.equal(model.process.alphas_cumprod, own.alphas_cumprod)
    x, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999])
    assert model.process.num_timesteps == scheduler.config.num_train_timesteps
    assert torch.allclose(model.process.add_noise(x, noise, t), scheduler.add_noise(x, noise, t), atol=1e-6)
    wanted = scheduler.get_velocity(x, noise, t) if prediction == "v_prediction" else noise
    assert torch.allclose(model.process.target(x, noise, t), wanted, atol=1e-6)


def test_times_are_drawn_from_the_generator_alone_and_reach_over_the_whole_schedule(any_model):
    process = opened(any_model).process
    one, two = (process.draw_time(2000, torch.Generator().manual_seed(3), (4, 8, 8)) for _ in range(2))
    assert torch.equal(one, two) and one.min() < 120 and one.max() > process.num_timesteps - 20
    assert one.min() >= 0 and one.max() <= process.num_timesteps


def test_latents_are_scaled_as_the_pipeline_scales_them(any_model):
    model = opened(any_model)
    config = model.pipeline("cpu", torch.float32).vae.config
    wanted = (1 - (config.get("shift_factor") or 0)) * config.scaling_factor
    assert torch.allclose(model.scale(torch.ones(1, 4, 1, 1)), torch.full((1, 4, 1, 1), wanted))


def test_latents_are_shifted_and_scaled_per_channel_where_the_vae_says_so(any_model, tmp_path):
    config = opened(any_model).files.config("vae")
    factor, offset = config.get("scaling_factor") or 0.18215, config.get("shift_factor") or 0
    values = {"latents_mean": [1, 0, 0, 0], "latents_std": [1, 2, 1, 1]}
    model = opened(changed(tmp_path / "m", any_model, "vae/config.json", **values))
    got = model.scale(torch.full((1, 4, 1, 1), 3.0)).flatten() / factor + offset
    assert got.tolist() == pytest.approx([2, 1.5, 3, 3])


def test_the_layout_is_read_from_the_model(any_model):
    layout = opened(any_model).layout
    assert (layout.channels, layout.stride, layout.multiple, layout.side) == (4, 2, 4, 16)
    assert layout.latent(32) == (4, 16, 16) and layout.checked(None) == 16
    with pytest.raises(MapoError, match=r"data.resolution is 18; it has to be a multiple of 4"):
        layout.checked(18)
    with pytest.raises(MapoError, match="it has to be at most 16,384"):
        layout.checked(4 * 10**30)


# ------------------------------------------------------------------ from pairs to a report


@pytest.fixture(scope="module")
def work(any_model, tmp_path_factory):
    """Pairs, their cache and a run of each adapter on the model."""
    folder = tmp_path_factory.mktemp("work")
    make_pairs(folder / "pairs")
    mapo("encode", "--model", any_model, "--pairs", folder / "pairs", "--out", folder / "cache")
    for adapter in opened(any_model).adapters:
        mapo(
            "train", "--model", any_model, "--pairs", folder / "pairs", "--out", folder / adapter, "--adapter", adapter,
            "--set", "train.steps=3", "--set", "train.pairs_per_step=4", "--set", "optim.lr=1e-2",
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_what_was_trained_is_what_is_sampled(any_model, work, adapter):
    if adapter not in opened(any_model).adapters:
        pytest.skip("this family is trained with a LoRA only")
    model, base = opened(work / adapter), opened(any_model)
    trained, plain = (m.denoiser("cpu", torch.float32) for m in (model, base))
    in_pipeline = getattr(model.pipeline("cpu", torch.float32), model.denoiser_part)
    cond, x, t = condition(model), torch.randn(1, 4, 8, 8), model.process.time(torch.tensor([500]))
    with torch.no_grad():
        ours, theirs, before = (model.predict(net, x, t, cond) for net in (trained, in_pipeline, plain))
    assert torch.equal(ours, theirs) and not torch.allclose(ours, before, atol=1e-4)


def test_a_lora_opens_in_the_plain_pipeline(any_model, work):
    model = opened(work / "lora")
    plain = opened(any_model).pipeline("cpu", torch.float32)
    plain.load_lora_weights(work / "lora" / "weights")
    cond, x, t = condition(model), torch.randn(1, 4, 8, 8), model.process.time(torch.tensor([500]))
    with torch.no_grad():
        ours = model.predict(model.denoiser("cpu", torch.float32), x, t, cond)
        theirs = model.predict(getattr(plain, model.denoiser_part), x, t, cond)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_full_run_opens_with_diffusers_alone(any_model, work):
    if "full" not in opened(any_model).adapters:
        pytest.skip("this family is trained with a LoRA only")
    part = opened(any_model).denoiser_part
    kind = type(opened(any_model).denoiser("cpu", torch.float32))
    network = kind.from_pretrained(work / "full" / "weights" / part)
    saved = load_file(next((work / "full" / "checkpoints").iterdir()) / "weights.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in network.named_parameters())


@pytest.mark.long
def test_every_other_verb_takes_it(any_model, work):
    mapo("check", work / "pairs", "--model", any_model, "--out", work / "check.html")
    mapo(
        "mismatch", "--model", any_model, "--pairs", work / "pairs", "--num-pairs", 4, "--encoder", "none", "--steps", 2,
        "--out", work / "mismatch.json",
    )  # fmt: skip
    found = json.loads((work / "mismatch.json").read_text())
    assert found["errors"]["own"]["value"] > 0
    (work / "prompts.txt").write_text("a small red circle\na large blue square\n")
    for name, model in (("before", any_model), ("after", work / "lora")):
        mapo("sample", "--model", model, "--prompts", work / "prompts.txt", "--steps", 2, "--out", work / name)
        mapo("score", work / name, "--scorer", "mini", "--out", work / f"{name}.parquet")
    scores = [word for name in ("before", "after") for word in ("--scores", work / f"{name}.parquet")]
    mapo("report", "--before", work / "before", "--after", work / "after", *scores, "--run", work / "lora",
         "--out", work / "report.html")  # fmt: skip
    assert (work / "report.html").stat().st_size > 10_000


def test_a_second_training_on_the_same_data_loads_the_denoiser_alone(any_model, work, monkeypatch):
    real, asked = ModelFiles.load, []

    def load(files, part, *given, **named):
        asked.append(part)
        return real(files, part, *given, **named)

    monkeypatch.setattr(ModelFiles, "load", load)
    words = ("train", "--model", any_model, "--pairs", work / "pairs", "--adapter", "lora", "--set", "train.steps=1",
             "--set", "train.pairs_per_step=2")  # fmt: skip
    mapo(*words, "--out", work / "second")
    assert asked == [opened(any_model).denoiser_part]
    asked.clear()
    mapo(*words, "--out", work / "third", "--cache", work / "fresh-cache")
    assert set(asked) == {"vae", *opened(any_model).text_encoders, opened(any_model).denoiser_part}


def test_training_further_on_a_run_stands_on_it(work):
    mapo(
        "train", "--model", work / "lora", "--pairs", work / "pairs", "--out", work / "more", "--adapter", "lora",
        "--set", "train.steps=1", "--set", "train.pairs_per_step=4",
    )  # fmt: skip
    if (work / "full").exists():
        mapo("train", "--model", work / "full", "--pairs", work / "pairs", "--out", work / "on-full", "--set",
             "train.steps=1", "--set", "train.pairs_per_step=4")  # fmt: skip
    first, both = (load_file(work / run / "weights" / "pytorch_lora_weights.safetensors") for run in ("lora", "more"))
    down = next(name for name in first if "down" in name or "lora_A" in name)
    assert both[down].shape[0] == 2 * first[down].shape[0]


# ------------------------------------------------------------------ other models


def test_another_class_of_pipeline_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WuerstchenPipeline"}')
    with pytest.raises(MapoError, match="is a WuerstchenPipeline; known are: StableDiffusionXLPipeline, Stable"):
        open_model(find_model(str(tmp_path)))


@pytest.mark.parametrize("channels", [3, 32])
def test_a_vae_of_another_kind_of_model_is_called_that_by_whoever_trains_and_by_whoever_samples(
    any_model, tmp_path, channels
):
    shutil.copytree(any_model, tmp_path / "m")
    path = tmp_path / "m" / "vae" / "config.json"
    other = {**json.loads(path.read_text()), "latent_channels": channels, "shift_factor": None}
    path.write_text(json.dumps(other))
    for to_train in (True, False):
        with pytest.raises(MapoError, match=f"config.json gives {channels}: it is one of another kind of model. Take"):
            open_model(find_model(str(tmp_path / "m")), to_train)


def test_the_fingerprint_sees_a_change_of_weights(any_model, tmp_path):
    shutil.copytree(any_model / "vae", tmp_path / "vae")
    before = fingerprint(tmp_path, ["vae"])
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    assert fingerprint(any_model, ["vae"]) == before != fingerprint(tmp_path, ["vae"])


def test_the_revision_sees_two_words_of_a_tokenizer_that_changed_places(any_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(any_model, model)
    before = find_model(str(model)).revisions()
    path = model / "tokenizer" / "tokenizer.json"
    (model / "tokenizer" / ".DS_Store").touch()
    assert find_model(str(model)).revisions() == before
    path.write_bytes(path.read_bytes()[::-1])
    after = find_model(str(model)).revisions()
    assert len(after) == 2 and after[0] != before[0] and after[1] == before[1]


def test_a_model_folder_that_is_half_downloaded_is_refused_part_by_part(any_model, tmp_path):
    model = opened(any_model)
    for part in (*model.encoder_parts, model.denoiser_part, "scheduler"):
        folder = tmp_path / part
        shutil.copytree(any_model, folder)
        shutil.rmtree(folder / part)
        with pytest.raises(MapoError, match=f"is not whole.*{part}"):
            half = opened(folder)
            half.files.fingerprint(half.encoder_parts)


@pytest.mark.parametrize("damage", ["cut off", "away", "one shard away"])
def test_weights_that_are_not_whole_are_refused_before_anything_is_encoded(any_model, tmp_path, damage):
    folder = tmp_path / "m"
    shutil.copytree(any_model, folder)
    part = opened(any_model).denoiser_part
    weights = folder / part / "diffusion_pytorch_model.safetensors"
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "away":
        weights.unlink()
    else:
        network = opened(any_model).denoiser("cpu", torch.float32)
        weights.unlink()
        network.save_pretrained(folder / part, max_shard_size="60KB")
        sorted((folder / part).glob("*-00002-of-*.safetensors"))[0].unlink()
    make_pairs(tmp_path / "pairs", 2)
    words = ["train", "--model", folder, "--pairs", tmp_path / "pairs", "--out", tmp_path / "r", "--adapter", "lora"]
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert isinstance(done.exception, MapoError), done.exception
    assert f"{folder} is not whole: {part}" in str(done.exception)
    assert not (tmp_path / "r").exists() and not (tmp_path / "cache").exists()


def test_a_run_that_points_out_of_its_folder_is_refused(any_model, tmp_path):
    run = {"base": str(any_model), "adapter": "full", "denoiser": "../elsewhere"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(MapoError, match="leaves its folder"):
        find_model(str(tmp_path))
