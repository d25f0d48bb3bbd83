"""Noise processes: how noise comes to a latent, how a timestep is drawn, what the denoiser has to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mapo.errors import MapoError


class Process(Protocol):
    """The forward process that a model was trained with. x₀ and noise are "b c h w", t is "b"."""

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""

    def draw_time(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps as training draws them, "count"."""

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
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise MapoError(
                f"The scheduler's prediction_type is {self.prediction_type!r}; training knows epsilon and v_prediction."
            )

    @classmethod
    def from_scheduler(cls, config: dict[str, Any]) -> Ddpm:
        """The process of a scheduler's configuration: its betas, rescaled if it says so, and what is predicted."""
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(config)
        return cls(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    def draw_time(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform over all timesteps, "count"."""
        return torch.randint(self.num_timesteps, (count,), generator=generator)

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
