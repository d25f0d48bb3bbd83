"""Noise processes: how noise comes to a latent, how a timestep is drawn, what the denoiser has to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mapo.errors import MapoError, reason
from mapo.models.parts.kinds import REMEDY, SCHEDULER, check_kinds
from mapo.models.parts.weights import quietly

# All of these sample from one process: βs at whole timesteps, noise added by their product.
DDPM_LIKE = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction")
ELSEWHERE = "`mapo sample` may still make pictures with it."
KNOWN = "Training knows noise that is added by betas (DDPM, DDIM, Euler …) and a model that predicts epsilon or v."


@runtime_checkable
class Process(Protocol):
    """The forward process that a model was trained with. x₀ and noise are "b c h w", t is "b"."""

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""

    def on(self, device: torch.device) -> Process:
        """The same with its tables on a device."""

    def draw_time(self, count: int, generator: torch.Generator, shape: Sequence[int]) -> Tensor:
        """Timesteps as training draws them for latents of the shape "c h w", "count"."""

    def time(self, number: Tensor) -> Tensor:
        """The timestep that is the ``number``-th of T, from 0 for the least noise; "b"."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, "b c h w"."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser has to predict, "b c h w"."""


@dataclass(frozen=True)
class Ddpm:
    """A variance-preserving process: ``alphas_cumprod`` "T" and what is predicted, "epsilon" or "v_prediction"."""

    alphas_cumprod: Tensor
    prediction_type: str

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTIONS:
            raise MapoError(
                f"The scheduler's prediction_type is {self.prediction_type!r}; training knows epsilon and v_prediction."
            )

    @classmethod
    def from_scheduler(cls, config: dict[str, Any], path: Path) -> Ddpm:
        """The process of a scheduler's configuration: its betas, rescaled if it says so, and what is predicted.

        MapoError, naming its file ``path``, where it is of another kind.
        """
        from diffusers import DDPMScheduler

        check_scheduler(path, config)
        try:
            with quietly():
                scheduler = DDPMScheduler.from_config(config)
        except Exception as error:
            raise MapoError(f"{path} makes no schedule of noise ({reason(error)}). {REMEDY}") from None
        betas = scheduler.betas
        if len(betas) < 2 or not bool(((betas > 0) & (betas <= 1)).all()):  # which is false for what is not finite too
            raise MapoError(f"{path} gives betas that are not all between 0 and 1. {REMEDY}")
        return cls(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    def on(self, device: torch.device) -> Ddpm:
        """The same with its alphas on a device, so that no step has to move them there."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def draw_time(self, count: int, generator: torch.Generator, shape: Sequence[int]) -> Tensor:
        """Uniform over all timesteps, "count"."""
        return torch.randint(self.num_timesteps, (count,), generator=generator)

    def time(self, number: Tensor) -> Tensor:
        """The number itself."""
        return number

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod.to(device=like.device, dtype=like.dtype)[t].view(-1, *[1] * (like.ndim - 1))
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = √ᾱ x₀ + √(1 − ᾱ) ε, "b c h w"."""
        alpha, sigma = self._at(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """ε, or v = √ᾱ ε − √(1 − ᾱ) x₀ (arXiv:2202.00512), "b c h w"."""
        if self.prediction_type == "epsilon":
            return noise
        alpha, sigma = self._at(t, x0)
        return alpha * noise - sigma * x0


def check_scheduler(path: Path, config: dict[str, Any]) -> None:
    """MapoError where a ``scheduler_config.json`` is not that of a DDPM which predicts ε or v."""
    name = str(config.get("_class_name", ""))
    why = ""
    if name not in DDPM_LIKE:
        why = f"names {name or 'no class'}"
    elif config.get("use_flow_sigmas"):
        why = "has use_flow_sigmas, so the model is one of flow matching"
    elif config.get("timestep_type", "discrete") != "discrete":
        why = f"has timestep_type {config['timestep_type']!r}"
    elif edm := [key for key in ("sigma_data", "sigma_min", "sigma_max") if config.get(key) is not None]:
        why = f"has {edm[0]}, so the model is one of EDM"
    elif config.get("prediction_type", "epsilon") not in PREDICTIONS:
        why = f"has prediction_type {config['prediction_type']!r}"
    if why:
        raise MapoError(f"{path} {why}. {KNOWN} {ELSEWHERE}")
    needed = ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule"]
    if config.get("trained_betas") is None and (absent := [key for key in needed if config.get(key) is None]):
        raise MapoError(
            f"{path} does not say {absent[0]}, so the noise that the model was trained with is not known. {REMEDY}"
        )
    check_kinds(path, config, SCHEDULER)
    trained, steps = config.get("trained_betas"), config.get("num_train_timesteps")
    if trained and steps and len(trained) != steps:
        raise MapoError(f"{path} has {len(trained)} values in trained_betas, but num_train_timesteps {steps}. {REMEDY}")
