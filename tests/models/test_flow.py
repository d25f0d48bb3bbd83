"""Rectified flow, and what is special in the families that are trained by it."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from mapo.cli import cli
from mapo.encode.seen import excess_tokens, open_view
from mapo.errors import MapoError
from mapo.models import Frames, find_model, open_model, together
from mapo.models.families.flux import pack, places, unpack
from mapo.models.files import ModelFiles
from mapo.models.noise.flow import RectifiedFlow
from mapo.models.pipelines import no_effect_told
from mapo.sample.folder import read_images
from mapo.sample.sample import Sampler, default_sampling, sample
from mapo.train.config import make_config
from mapo.train.train import train
from tiny import make_flux, make_pairs, make_sd3, make_sdxl, make_z_image


def opened(folder):
    return open_model(find_model(str(folder)))


def flow(**config):
    return RectifiedFlow.from_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler", **config}, "scheduler.json")


# ------------------------------------------------------------------ times


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_a_fixed_shift_makes_the_schedulers_own_table(shift):
    table = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas
    even = torch.arange(1000, 0, -1) / 1000
    assert torch.allclose(flow(shift=shift).shifted(even, (16, 128, 128)), table, atol=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("side", [32, 64, 128, 192])
def test_a_shift_by_resolution_makes_the_sigmas_that_the_scheduler_makes_for_a_picture_of_that_size(kind, side):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, time_shift_type=kind)
    even = np.linspace(1.0, 1 / 50, 50)
    scheduler.set_timesteps(50, sigmas=even, mu=calculate_shift((side // 2) ** 2))
    process = flow(use_dynamic_shifting=True, shift=3.0, time_shift_type=kind)
    ours = process.shifted(torch.from_numpy(even), (16, side, side))
    assert torch.allclose(ours.float(), scheduler.sigmas[:-1], atol=1e-6)


def test_flux_dev_shifts_by_1_15_at_4096_tokens_and_by_a_half_at_256():
    process = flow(use_dynamic_shifting=True)
    assert process.shift_for((16, 128, 128)) == pytest.approx(math.exp(1.15))
    assert process.shift_for((16, 32, 32)) == pytest.approx(math.exp(0.5))


def test_times_are_logit_normal_and_then_shifted():
    drawn = flow(shift=3.0).draw_time(20_000, torch.Generator().manual_seed(0), (16, 8, 8)) / 1000
    plain = drawn / (3 - 2 * drawn)
    normal = torch.logit(plain.double())
    assert normal.mean().abs() < 0.03 and (normal.std() - 1).abs() < 0.03
    assert drawn.median().item() == pytest.approx(0.75, abs=0.01)  # s / (1 + s)


def test_the_positions_of_a_batch_draw_for_themselves():
    process = flow(shift=3.0)
    both = process.draw_time(2, torch.Generator().manual_seed(1), (4, 8, 8))
    assert both.dtype == torch.float32 and both[0] != both[1]


def test_noise_is_added_in_float32_where_latents_are_in_half():
    x, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    t = torch.tensor([777.7])
    got = flow().add_noise(x.bfloat16(), noise.bfloat16(), t)
    wanted = 0.2223 * x.bfloat16().float() + 0.7777 * noise.bfloat16().float()
    assert got.dtype == torch.bfloat16 and torch.equal(got, wanted.bfloat16())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"_class_name": "DDPMScheduler"}, "names DDPMScheduler. Models of this kind are trained by flow matching"),
        ({"invert_sigmas": True}, "has invert_sigmas"),
        ({"shift": "3"}, 'has shift "3"; it has to be a number above 0'),
        ({"shift": -1}, "has shift -1; it has to be a number above 0"),
        ({"use_dynamic_shifting": True, "time_shift_type": "cubic"}, "has time_shift_type 'cubic'"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "has base_image_seq_len and max_image_seq_len 256"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused(tmp_path, changes, words):
    folder = make_sd3(tmp_path / "m", t5=False)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    if "_class_name" in changes:
        name_in_index(folder, changes["_class_name"])
    with pytest.raises(MapoError, match="scheduler_config.json " + words):
        opened(folder)


def name_in_index(folder, scheduler):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scheduler": ["diffusers", scheduler]}))


def test_a_unet_with_a_flow_scheduler_is_refused(tmp_path):
    folder = make_sdxl(tmp_path / "m")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    name_in_index(folder, "FlowMatchEulerDiscreteScheduler")
    with pytest.raises(MapoError, match="names FlowMatchEulerDiscreteScheduler. Training knows noise"):
        opened(folder)


# ------------------------------------------------------------------ Stable Diffusion 3


def test_without_t5_the_transformer_is_given_as_many_tokens_of_zeros_as_the_pipeline_gives(tmp_path):
    model = opened(make_sd3(tmp_path / "m", t5=False))
    pipeline = model.pipeline("cpu", torch.float32)
    with torch.no_grad():
        theirs = pipeline.encode_prompt(["a", "red"], None, None, do_classifier_free_guidance=False)[0]
    text = model.text_encoder("cpu")(["a", "red"])
    assert set(text) == {"clip_embeds", "text_embeds"}  # no zeros in the cache
    ours = model.condition(text, Frames.square(torch.zeros(2, 4), 16))["prompt_embeds"]
    assert ours.shape == (2, 32 + 256, 48) and torch.equal(ours, theirs)


def test_a_model_folder_may_say_how_many_tokens_of_t5_it_reads(tmp_path):
    folder = make_sd3(tmp_path / "m")
    before = opened(folder).files.fingerprint(("text_encoder",))
    (folder / "sampling.json").write_text('{"max_sequence_length": 20}')
    model = opened(folder)
    assert model.text_encoder("cpu")(["a"])["t5_embeds"].shape == (1, 20, 48)
    assert model.files.fingerprint(("text_encoder",)) != before  # another cache
    (folder / "sampling.json").write_text('{"max_sequence_length": 600}')
    with pytest.raises(MapoError, match="sampling.json has max_sequence_length 600; it has to be a whole number from"):
        opened(folder).text_encoder("cpu")


def test_pictures_beyond_the_places_of_the_transformer_are_refused(tmp_path):
    layout = opened(make_sd3(tmp_path / "m", t5=False)).layout
    assert layout.checked(32) == 32
    with pytest.raises(MapoError, match="data.resolution is 36; this model has places for at most 32 pixels"):
        layout.checked(36)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"joint_attention_dim": 32}, "reads text of 32 numbers a token, the text encoders give 40"),
        ({"joint_attention_dim": 56}, "reads text of 56 numbers a token, text_encoder_3 gives 48"),
        ({"pooled_projection_dim": 40}, "reads a pooled text of 40 numbers, the text encoders give 48"),
        ({"in_channels": 8}, "takes 8 channels and gives 4: a model for editing or inpainting. Give the model"),
    ],
)
def test_a_transformer_for_other_text_or_other_latents_is_refused(tmp_path, settings, words):
    with pytest.raises(MapoError, match=words):
        opened(make_sd3(tmp_path / "m", **settings))


def test_a_vae_without_a_shift_is_refused_with_the_usual_one(tmp_path):
    folder = make_flux(tmp_path / "m")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "shift_factor"}))
    with pytest.raises(MapoError, match=r'has no shift_factor. .* "shift_factor": 0.1159'):
        opened(folder)


# ------------------------------------------------------------------ FLUX


def test_latents_are_packed_as_the_pipeline_packs_them():
    latents = torch.randn(2, 4, 8, 12)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 8, 12))
    assert torch.equal(unpack(pack(latents), 8, 12), latents)
    assert torch.equal(places(latents), FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32))


def test_half_precision_rounds_the_time_before_it_is_divided_as_the_pipeline_does(tmp_path):
    """At σ = 0.5534 it is another number if it is divided first."""
    model, told = opened(make_flux(tmp_path / "m", guidance=False, dynamic=False)), []
    pipeline = model.pipeline("cpu", torch.bfloat16)
    pipeline.transformer.register_forward_pre_hook(
        lambda _, args, named: told.append(named["timestep"]), with_kwargs=True
    )
    pipeline("a", height=16, width=16, num_inference_steps=1, sigmas=[0.5534], output_type="latent")
    cond = {"prompt_embeds": torch.zeros(1, 512, 32), "text_embeds": torch.zeros(1, 24)}
    model.predict(pipeline.transformer, torch.zeros(1, 4, 8, 8).bfloat16(), pipeline.scheduler.timesteps, cond)
    assert torch.equal(*told) and told[0] != (pipeline.scheduler.timesteps / 1000).bfloat16()


def test_flux_is_told_a_guidance_of_one_or_what_is_set(tmp_path):
    folder, frames = make_flux(tmp_path / "m"), Frames.square(torch.zeros(2, 4), 16)
    text = {"prompt_embeds": torch.zeros(2, 512, 32), "text_embeds": torch.zeros(2, 24)}
    for kind in (torch.float32, torch.bfloat16):  # the pipeline tells it in float32 beside any text
        told = opened(folder).condition({name: value.to(kind) for name, value in text.items()}, frames)["guidance"]
        assert told.dtype == torch.float32 and told.tolist() == [1.0, 1.0]
    assert "guidance" not in opened(make_flux(tmp_path / "schnell", guidance=False)).condition(text, frames)


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs", 6)


def losses(run_folder):
    return [json.loads(line)["loss"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def test_a_flux_without_guidance_is_told_none_when_it_draws_and_that_is_said(tmp_path, heard):
    folder = make_flux(tmp_path / "schnell", guidance=False)
    sample(str(folder), "a cat", 0, tmp_path / "plain", steps=1)
    assert read_images(tmp_path / "plain")[0].guidance == 0 and "--guidance" not in heard()
    sample(str(folder), "a cat", 0, tmp_path / "asked", steps=1, guidance=4.0)
    assert "The model has no guidance embedding, so --guidance 4 (--cfg) has no effect." in heard()
    assert opened(make_flux(tmp_path / "dev")).advised_sampling["guidance"] == 3.5


def drawn(sampler, prefix, **how):
    """What the VAE is given of a picture in one step. Its noise is that of the empty prompt, whatever the prefix says."""
    told = []
    hook = sampler.pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: told.append(args[0].double()))
    sampler.batch([("", 0)], default_sampling(sampler.model, steps=1, prefix=prefix, **how))
    hook.remove()
    return told[0]


def test_a_flux_whose_distillation_was_undone_is_guided_by_what_it_predicts_without_the_prompt(tmp_path):
    folder = make_flux(tmp_path / "flux-dev-de-distilled", guidance=False)
    undone = Sampler(str(folder))
    assert default_sampling(undone.model).guidance == 3.5
    plain, other, empty = (drawn(undone, words, guidance=1.0) for words in ("a cat", "a dog", ""))
    assert torch.allclose(drawn(undone, "a cat", guidance=4.0), empty + 4 * (plain - empty), atol=1e-5)
    against = drawn(undone, "a cat", guidance=4.0, negative_prompt="a dog")
    assert torch.allclose(against, other + 4 * (plain - other), atol=1e-5)
    assert (plain - other).abs().max() > 1e-3
    (told,) = no_effect_told(undone.model, undone.pipeline, 1.0, "a dog")
    assert "With guidance 1 the negative prompt has no effect; it needs one above 1" in told
    schnell = Sampler(str(folder.rename(tmp_path / "schnell")))
    assert torch.equal(plain, drawn(schnell, "a cat", guidance=4.0))
    with pytest.raises(MapoError, match="knows no negative prompt"):
        drawn(schnell, "a cat", negative_prompt="a dog")
    (told,) = no_effect_told(schnell.model, schnell.pipeline, 1.0, "")
    assert "no guidance embedding, so --guidance 1 (--cfg) has no effect" in told


def test_a_run_on_a_model_of_the_hub_has_that_one_s_name_from_its_cache(tmp_path):
    base = make_flux(tmp_path / "models--dmd2--flux-de-distill" / "snapshots" / "0a1b2c", guidance=False)
    files = ModelFiles("work/run", base)
    assert files.called_undone() and not files.called_distilled()


def test_the_guidance_of_training_is_a_setting_that_reaches_the_transformer(tmp_path, pairs, heard):
    folder = make_flux(tmp_path / "m")
    words = ("train", "--model", folder, "--pairs", pairs, "--cache", tmp_path / "cache", "--adapter", "lora",
             "--set", "train.steps=1", "--set", "train.pairs_per_step=2", "--out")  # fmt: skip
    for name, setting in (("one", ()), ("more", ("--set", "train.guidance=3.5"))):
        assert run(*words, tmp_path / name, *setting).exit_code == 0
    assert losses(tmp_path / "one") != losses(tmp_path / "more") and "has no effect" not in heard()


def test_flux_is_trained_with_a_lora_only(tmp_path, pairs):
    done = run("train", "--model", make_flux(tmp_path / "m"), "--pairs", pairs, "--out", tmp_path / "run")
    assert isinstance(done.exception, MapoError) and "is trained with a LoRA only" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_a_distilled_model_needs_leave_to_be_trained_and_what_that_does_is_said_then_too(tmp_path, pairs, heard):
    named = make_sdxl(tmp_path / "sdxl-turbo")
    without = make_flux(tmp_path / "flux", guidance=False, dynamic=False)
    for folder, words in (
        (named, "has the word 'turbo'"),
        (without, "It has no guidance embedding, as FLUX.1 schnell"),
    ):
        asked = ("train", "--model", folder, "--pairs", pairs, "--out", tmp_path / "run", "--adapter", "lora",
                 "--cache", tmp_path / f"cache-{folder.name}", "--set", "train.steps=1",
                 "--set", "train.pairs_per_step=2")  # fmt: skip
        done = run(*asked)
        assert isinstance(done.exception, MapoError) and words in str(done.exception)
        assert "--allow-distilled" in str(done.exception) and not (tmp_path / "run").exists()
    assert run(*asked, "--allow-distilled").exit_code == 0
    values = {"model": str(without), "pairs": str(pairs), "cache": str(tmp_path / "cache-flux"), "adapter": {"kind": "lora"},
              "train": {"steps": 1, "pairs_per_step": 2, "allow_distilled": True, "guidance": 2.0}}  # fmt: skip
    train(make_config(values), tmp_path / "again")
    said, lines = f"Warning: {without} is a distilled model. It has no guidance embedding, as FLUX.1 schnell", heard()
    told = [line for line in lines.splitlines() if line.startswith(said)]
    assert len(told) == 1 and told[0].endswith("pictures in few steps become blurred.")
    assert lines.count("The model has no guidance embedding, so train.guidance=2 has no effect.") == 1


@pytest.mark.parametrize(
    "name",
    ["my-turbot-fish", "hyperrealistic", "flashlight", "distillery", "schnelle-nummer", "flux-de-distill", "myHyperreal",
     "HYPERREAL", "FluxDeDistilled", "flux-undistilled-Turbo"],
)  # fmt: skip
def test_other_words_are_not_taken_for_those_of_distilled_models(tmp_path, name):
    assert opened(make_sdxl(tmp_path / name)).distilled == ""


@pytest.mark.parametrize(
    ("name", "word"),
    [("XL_lightningDPMSDE", "lightning"), ("sdxlTurbo", "Turbo"), ("XLTurbo_v2", "Turbo"), ("v40LightningBaked", "Lightning"),
     ("my-LCM", "LCM"), ("mergeLCM", "LCM"), ("SDXL-TURBO", "TURBO"), ("x_dmd2", "dmd2")],
)  # fmt: skip
def test_words_of_distilled_models_are_found_where_capitals_part_them(sdxl, tmp_path, name, word):
    (tmp_path / name).symlink_to(sdxl)
    assert f"has the word '{word}'" in opened(tmp_path / name).distilled


# ------------------------------------------------------------------ Z-Image


def test_prompts_of_several_lengths_are_kept_without_what_fills_up(tmp_path):
    model = opened(make_z_image(tmp_path / "m"))
    found = model.text_encoder("cpu")(["a", "a red circle"])["prompt_embeds"]
    assert [len(states) for states in found] == sorted({len(states) for states in found})
    both = together([{"prompt_embeds": states} for states in found])
    assert both["prompt_embeds_length"].tolist() == [len(states) for states in found]
    assert not both["prompt_embeds"][0, len(found[0]) :].any()


def test_a_pair_is_predicted_alike_alone_and_beside_longer_prompts(tmp_path):
    model = opened(make_z_image(tmp_path / "m"))
    network, prompts = model.denoiser("cpu", torch.float32), ["a", "a much longer prompt " * 5]
    found = model.text_encoder("cpu")(prompts)["prompt_embeds"]
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([300.0, 700.0])
    with torch.no_grad():
        both = model.predict(network, x, t, together([{"prompt_embeds": states} for states in found]))
        alone = [model.predict(network, x[k : k + 1], t[k : k + 1], {"prompt_embeds": found[k][None]}) for k in (0, 1)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)


def test_the_callers_prompts_are_not_changed(tmp_path):
    model, prompts = opened(make_z_image(tmp_path / "m")), ["a"]
    encode = model.text_encoder("cpu")
    assert torch.equal(encode(prompts)["prompt_embeds"][0], encode(prompts)["prompt_embeds"][0]) and prompts == ["a"]


def test_a_prompt_is_cut_where_every_encoder_cuts_it(tmp_path):
    view = open_view(str(make_sd3(tmp_path / "m")))
    assert view.most_tokens == 256
    words = ["red " * 40, "red " * 300]  # beyond CLIP's 32 tokens; beyond T5's 256
    first, second = excess_tokens(view, words).tolist()
    assert first == 0 and second > 0
    assert excess_tokens(open_view(str(make_sd3(tmp_path / "clip", t5=False))), words).min() > 0


def test_the_template_of_z_image_takes_its_share_of_the_tokens(tmp_path):
    view = open_view(str(make_z_image(tmp_path / "m")))
    taken = len(
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n".replace("<|im_start|>", "s").replace("<|im_end|>", "e")
    )
    assert view.most_tokens == 512 - taken
    assert excess_tokens(view, ["a" * (512 - taken), "a" * (513 - taken)]).tolist() == [0, 1]
