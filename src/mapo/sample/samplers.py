"""Samplers by the names that people know, put into a pipeline in place of its own scheduler.

What the model was trained with (betas, v-prediction, zero terminal SNR, spacing of timesteps) is taken from the model's
own scheduler, so the sampler changes how noise is taken away and never what the model is told.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mapo.errors import MapoError, suggest
from mapo.models.files import ModelFiles
from mapo.models.noise.drawing import class_named
from mapo.models.noise.flow import FLOW_LIKE
from mapo.models.noise.process import DDPM_LIKE
from mapo.models.parts.weights import quietly

DPMPP = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
NOT_KARRAS = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False)
KARRAS = {**NOT_KARRAS, "use_karras_sigmas": True}
# What is the model's own and no matter of the sampler. Classes of diffusers have different defaults for some of it.
OF_THE_MODEL = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "timestep_spacing", "steps_offset",
)  # fmt: skip
MUST_KNOW = {"rescale_betas_zero_snr": False, "prediction_type": "epsilon", "trained_betas": None}
UNCLIPPED = {"clip_sample": False, "set_alpha_to_one": False, "thresholding": False}  # unless the model says so


@dataclass(frozen=True)
class Kind:
    """A scheduler class of diffusers, and what it is told besides the model's own settings."""

    scheduler: str
    told: Mapping[str, Any] = field(default_factory=dict)
    flow: bool = False


SAMPLERS: dict[str, Kind] = {
    "ddim": Kind("DDIMScheduler"),
    "ddpm": Kind("DDPMScheduler", {"variance_type": "fixed_small"}),
    "euler": Kind("EulerDiscreteScheduler", NOT_KARRAS),
    "euler_karras": Kind("EulerDiscreteScheduler", KARRAS),
    "euler_a": Kind("EulerAncestralDiscreteScheduler"),
    "heun": Kind("HeunDiscreteScheduler", NOT_KARRAS),
    "lms": Kind("LMSDiscreteScheduler", NOT_KARRAS),
    "dpmpp_2m": Kind("DPMSolverMultistepScheduler", {**DPMPP, **NOT_KARRAS}),
    "dpmpp_2m_karras": Kind("DPMSolverMultistepScheduler", {**DPMPP, **KARRAS}),
    "dpmpp_2m_sde": Kind("DPMSolverMultistepScheduler", {**DPMPP, **NOT_KARRAS, "algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": Kind(
        "DPMSolverMultistepScheduler", {**DPMPP, **KARRAS, "algorithm_type": "sde-dpmsolver++"}
    ),
    "unipc": Kind("UniPCMultistepScheduler", {"solver_type": "bh2", "solver_order": 2, **NOT_KARRAS}),
    "flow_euler": Kind("FlowMatchEulerDiscreteScheduler", {**NOT_KARRAS, "stochastic_sampling": False}, flow=True),
}


def scheduler_named(name: str, own: Any, model: str) -> Any:
    """The sampler ``name`` for a pipeline whose scheduler is ``own``; MapoError where the model is of another kind.

    ``model`` is how the user calls it.
    """
    import diffusers

    kind = known_sampler(name)
    config, of = dict(getattr(own, "config", {})), type(own).__name__
    flows = of in FLOW_LIKE or bool(config.get("use_flow_sigmas"))
    if not flows and of not in DDPM_LIKE:
        raise MapoError(
            f"--sampler: {model} comes with a {of}, and other samplers would not know its noise. Leave it out."
        )
    if flows != kind.flow:
        fitting = [other for other, it in SAMPLERS.items() if it.flow == flows]
        was = "flow matching" if flows else "noise that is added by betas"
        raise MapoError(
            f"--sampler {name} is not for {model}, which was trained with {was}. For it there "
            f"{'is' if len(fitting) == 1 else 'are'}: {', '.join(fitting)}."
        )
    made = getattr(diffusers, kind.scheduler)
    knows = inspect.signature(made.__init__).parameters
    for key, usual in MUST_KNOW.items():
        if config.get(key, usual) != usual and key not in knows:
            raise MapoError(
                f"--sampler {name} cannot be told {key}={config[key]!r}, with which {model} was trained. Take another, "
                "such as euler or ddim."
            )
    if config.get("rescale_betas_zero_snr") and kind.told.get("use_karras_sigmas"):
        raise MapoError(
            f"--sampler {name}: {model} was trained with zero terminal SNR, so its noise has no end for the spacing of "
            f"Karras to begin at. Take {name.removesuffix('_karras')}."
        )
    own_values = {key: config[key] for key in OF_THE_MODEL if key in config}
    own_values |= {key: config.get(key, usual) for key, usual in UNCLIPPED.items()}
    told = {key: value for key, value in {**own_values, **kind.told}.items() if key in knows}
    with quietly():
        return made.from_config(own.config, **told)


def check_sampler(name: str, model: ModelFiles) -> None:
    """MapoError where the sampler ``name`` is not for this model; no weights are read."""
    known_sampler(name)
    own = class_named(model.base, model.scheduler_class)
    with quietly():
        scheduler_named(name, own.from_config(model.config("scheduler")), model.name)


def known_sampler(name: str) -> Kind:
    """The sampler of this name; MapoError where there is none."""
    if name not in SAMPLERS:
        raise MapoError(f"--sampler {name!r} is not known. {suggest(name, SAMPLERS)}")
    return SAMPLERS[name]
