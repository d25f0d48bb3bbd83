"""Samplers by name: what the model was trained with stays, whatever takes the noise away."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mapo.errors import MapoError
from mapo.sample.folder import read_images
from mapo.sample.sample import Sampler, default_sampling, sample
from mapo.sample.samplers import SAMPLERS, scheduler_named
from tiny import SCHEDULE, ZERO_SNR

PROMPT = "a small red circle"
EXACT = ("ddim", "euler", "euler_karras", "heun", "lms", "dpmpp_2m", "dpmpp_2m_karras", "unipc")  # solve one equation
NO_ZERO_SNR = ("heun", "lms", "euler_karras", "dpmpp_2m_karras", "dpmpp_2m_sde_karras")


def of_a_gaussian(scheduler, noise: torch.Tensor, mean: float, spread: float) -> torch.Tensor:
    """What the sampler makes of noise with the exact denoiser of data that is normal around ``mean``."""
    alphas = scheduler.alphas_cumprod
    scheduler.set_timesteps(50)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        k, share = min(int(t), 998), float(t) - min(int(t), 998)  # between two timesteps, as with Karras' sigmas
        a = alphas[k] + share * (alphas[k + 1] - alphas[k])
        epsilon = (given - a.sqrt() * mean) * (1 - a).sqrt() / (a * spread**2 + 1 - a)
        clean = mean + (given - a.sqrt() * mean) * a.sqrt() * spread**2 / (a * spread**2 + 1 - a)
        v = scheduler.config.prediction_type == "v_prediction"
        x = scheduler.step(a.sqrt() * epsilon - (1 - a).sqrt() * clean if v else epsilon, t, x).prev_sample
    return x


@pytest.mark.parametrize("zero_snr", [False, True], ids=["noise", "v and zero SNR"])
def test_every_sampler_without_noise_of_its_own_solves_the_model_s_equation(zero_snr):
    """Its answer is known: mean + spread · noise. Clipping, or other betas, spacing or prediction, would miss it."""
    from diffusers import DDIMScheduler, PNDMScheduler

    own = PNDMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1)
    if zero_snr:
        own = DDIMScheduler(**SCHEDULE, **ZERO_SNR, prediction_type="v_prediction", clip_sample=False)
    noise = torch.linspace(-2, 2, 9).view(1, 1, 3, 3)
    want = 1.5 + 0.5 * noise
    for name in EXACT:
        if not (zero_snr and name in NO_ZERO_SNR):
            made = of_a_gaussian(scheduler_named(name, own, "m"), noise, 1.5, 0.5)
            assert float((made - want).abs().max()) < 0.13, (name, made, want)
    clipped = DDIMScheduler.from_config(own.config, clip_sample=True)
    assert float((of_a_gaussian(clipped, noise, 1.5, 0.5) - want).abs().max()) > 0.5


def test_what_the_model_was_trained_with_is_carried_over_and_clipping_is_not_brought_in(sdxl, sdxl_v):
    for model in (sdxl, sdxl_v):
        pipeline = Sampler(str(model)).pipeline
        own = pipeline.scheduler
        for name, kind in SAMPLERS.items():
            if kind.flow or (model == sdxl_v and name in NO_ZERO_SNR):
                continue
            made = scheduler_named(name, own, "m")
            assert type(made).__name__ == kind.scheduler
            assert made.config.prediction_type == own.config.prediction_type
            for key in ("beta_start", "beta_end", "beta_schedule", "timestep_spacing", "steps_offset"):
                assert made.config[key] == own.config[key], (name, key)
            assert made.config.get("rescale_betas_zero_snr", False) == (model == sdxl_v)
            if model == sdxl:  # whose own file says nothing of it; DDIM's class would clip
                assert not made.config.get("clip_sample", False)


def test_a_model_s_own_choice_of_sigmas_gives_way_to_the_name(sdxl):
    from diffusers import EulerDiscreteScheduler

    own = EulerDiscreteScheduler(use_karras_sigmas=True, beta_schedule="scaled_linear")
    assert not scheduler_named("dpmpp_2m", own, "m").config.use_karras_sigmas
    assert scheduler_named("dpmpp_2m_karras", own, "m").config.use_karras_sigmas
    heun = scheduler_named("heun", EulerDiscreteScheduler(), "m")  # both classes have other betas of their own
    assert (heun.config.beta_start, heun.config.beta_end) == (0.0001, 0.02)


def test_what_a_sampler_cannot_be_told_is_refused_in_a_sentence(sdxl, sdxl_v, tmp_path):
    from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    cases = [
        (str(sdxl), "eulr", r"--sampler 'eulr' is not known. Did you mean 'euler'"),
        (
            str(sdxl),
            "flow_euler",
            r"flow_euler is not for .*, which was trained with noise that is added by betas\. For",
        ),
        (str(sdxl_v), "dpmpp_2m_karras", r"zero terminal SNR, .* Take dpmpp_2m\."),
        (str(sdxl_v), "heun", r"heun cannot be told rescale_betas_zero_snr=True, with which .* was trained"),
    ]
    for model, name, says in cases:
        with pytest.raises(MapoError, match=says):
            sample(model, PROMPT, 0, tmp_path / "a", sampler=name)
        assert not (tmp_path / "a").exists()
    with pytest.raises(MapoError, match=r"euler_a is not for m, .* flow matching. For it there is: flow_euler\."):
        scheduler_named("euler_a", FlowMatchEulerDiscreteScheduler(), "m")
    with pytest.raises(MapoError, match="m comes with a EDMEulerScheduler"):
        scheduler_named("euler", EDMEulerScheduler(), "m")


def test_a_sampler_that_adds_noise_draws_the_same_whatever_the_batch_size(sdxl, tmp_path):
    for size in (1, 3):
        sample(str(sdxl), PROMPT, range(3), tmp_path / str(size), steps=3, sampler="euler_a", images_per_batch=size)
    one, three = (
        [np.asarray(Image.open(tmp_path / size / r.file)).astype(int) for r in read_images(tmp_path / size)]
        for size in ("1", "3")
    )
    assert max(abs(a - b).max() for a, b in zip(one, three, strict=True)) <= 1
    assert abs(one[0] - one[1]).max() > 1


def test_the_manifest_says_which_sampler_and_another_one_does_not_mix_in(sdxl, tmp_path):
    (row,) = sample(str(sdxl), PROMPT, 0, tmp_path / "a", steps=1, sampler="unipc")
    assert row.sampler == "unipc"
    assert json.loads((tmp_path / "a" / "images.json").read_text())["settings"]["sampler"] == "unipc"
    with pytest.raises(MapoError, match=r"made with other settings \(sampler\)"):
        sample(str(sdxl), PROMPT, 1, tmp_path / "a", steps=1)
    (row,) = sample(str(sdxl), PROMPT, 0, tmp_path / "b", steps=1)
    assert row.sampler == "EulerDiscreteScheduler"


def test_one_sampler_object_changes_its_sampler_and_goes_back(sdxl):
    made = Sampler(str(sdxl))
    own, other = (default_sampling(made.model, steps=2, sampler=name) for name in (None, "ddim"))
    pictures = [np.asarray(made.batch([(PROMPT, 0)], how)[0]).astype(int) for how in (own, other, own)]
    assert (pictures[0] == pictures[2]).all() and (pictures[0] != pictures[1]).any()


def test_every_family_draws_in_another_shape_and_with_a_negative_prompt_or_says_that_it_cannot(
    any_model, tmp_path, heard
):
    made = Sampler(str(any_model))

    def draw(folder: str, **how) -> np.ndarray:
        sampling = default_sampling(made.model, steps=1, width=32, height=16, **how)
        (row,) = made.fill(tmp_path / folder, [(PROMPT, 0)], sampling)
        with Image.open(tmp_path / folder / row.file) as picture:
            assert picture.size == (32, 16)
            return np.asarray(picture)

    plain = draw("a", guidance=4.0)
    name = made.model.pipeline_class
    if name == "FluxPipeline":
        with pytest.raises(
            MapoError, match=r"FluxPipeline\. Its guidance is built into the model and knows no negative"
        ):
            draw("b", negative_prompt="blue", guidance=4.0)
        assert not (tmp_path / "b").exists()
        return
    assert (draw("b", negative_prompt="blue star", guidance=4.0) != plain).any()
    assert "no effect" not in heard()
    low = 0.0 if name == "ZImagePipeline" else 1.0
    draw("c", negative_prompt="blue star", guidance=low)
    assert f"With guidance {low:g} the negative prompt has no effect; it needs one above {low:g} (--cfg)" in heard()
