"""Rectified flow: the noise process of Stable Diffusion 3, FLUX and others (arXiv 2209.03003, 2403.03206)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapo.errors import MapoError
from mapo.models.noise.process import ELSEWHERE
from mapo.models.parts.kinds import FLOW_SCHEDULER, REMEDY, check_kinds

FLOW_LIKE = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
POINTS = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}  # where unsaid
KNOWN = "Models of this kind are trained by flow matching (FlowMatchEulerDiscreteScheduler)."


@dataclass(frozen=True)
class ByResolution:
    """A shift that grows with the number of a picture's tokens: μ is linear between two points.

    ``exponential`` shifts by e^μ, else by μ itself.
    """

    first_tokens: int
    first: float
    last_tokens: int
    last: float
    exponential: bool = True

    def shift(self, tokens: int) -> float:
        """The factor for a picture of so many tokens."""
        slope = (self.last - self.first) / (self.last_tokens - self.first_tokens)
        mu = self.first + slope * (tokens - self.first_tokens)
        return math.exp(mu) if self.exponential else mu


@dataclass(frozen=True)
class RectifiedFlow:
    """x_σ = (1 − σ) x₀ + σ noise for σ from 0 to 1; the denoiser predicts the velocity, noise − x₀.

    t = σ · T is a fraction in float32, as pipelines have it. ``shift`` moves the times that are drawn towards more
    noise: σ → s σ / (1 + (s − 1) σ). ``patch`` is the side of a token in elements of the latent.
    """

    num_timesteps: int
    shift: float | ByResolution
    patch: int = 2

    @classmethod
    def from_scheduler(cls, config: Mapping[str, Any], path: Path, patch: int = 2) -> RectifiedFlow:
        """The process of a scheduler's configuration; MapoError, naming its file ``path``, where it is another's."""
        check_flow_scheduler(path, config)
        steps = config.get("num_train_timesteps", 1000)
        if not config.get("use_dynamic_shifting"):
            return cls(steps, float(config.get("shift", 1.0)), patch)
        first_tokens, first, last_tokens, last = (config.get(name, usual) for name, usual in POINTS.items())
        exponential = config.get("time_shift_type", "exponential") == "exponential"
        return cls(steps, ByResolution(first_tokens, first, last_tokens, last, exponential), patch)

    def shift_for(self, shape: Sequence[int]) -> float:
        """s for a latent of the shape "c h w"."""
        if isinstance(self.shift, ByResolution):
            return self.shift.shift((shape[-2] // self.patch) * (shape[-1] // self.patch))
        return self.shift

    def shifted(self, sigma: Tensor, shape: Sequence[int]) -> Tensor:
        """σ moved by the shift for a latent of the shape "c h w" (arXiv 2403.03206, eq. 23)."""
        s = self.shift_for(shape)
        return s * sigma / (1 + (s - 1) * sigma)

    def on(self, device: torch.device) -> RectifiedFlow:
        """The same: it has no tables."""
        return self

    def draw_time(self, count: int, generator: torch.Generator, shape: Sequence[int]) -> Tensor:
        """σ logit-normal(0, 1) and then shifted (arXiv 2403.03206, section 3.1), times T, "count"."""
        plain = torch.sigmoid(torch.randn(count, generator=generator))
        return self.shifted(plain, shape) * self.num_timesteps

    def time(self, number: Tensor) -> Tensor:
        """The timestep that is the ``number``-th of T, from 0 for the least noise; "b"."""
        return number.float() + 1

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        wide = torch.promote_types(like.dtype, torch.float32)
        return (t.to(like.device, wide) / self.num_timesteps).view(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_σ, "b c h w"."""
        sigma = self._sigma(t, x0)
        return ((1 - sigma) * x0 + sigma * noise).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity, noise − x₀, "b c h w"."""
        return noise - x0


def check_flow_scheduler(path: Path, config: Mapping[str, Any]) -> None:
    """MapoError where a ``scheduler_config.json`` is not that of a rectified flow."""
    name = str(config.get("_class_name", ""))
    if name not in FLOW_LIKE:
        raise MapoError(f"{path} names {name or 'no class'}. {KNOWN} {ELSEWHERE}")
    if config.get("invert_sigmas"):
        raise MapoError(f"{path} has invert_sigmas, so time runs the other way. {KNOWN} {ELSEWHERE}")
    check_kinds(path, config, FLOW_SCHEDULER)
    if config.get("time_shift_type", "exponential") not in ("exponential", "linear"):
        raise MapoError(f"{path} has time_shift_type {config['time_shift_type']!r}. {REMEDY}")
    first, last = (config.get(name, POINTS[name]) for name in ("base_image_seq_len", "max_image_seq_len"))
    if config.get("use_dynamic_shifting") and first == last:
        raise MapoError(f"{path} has base_image_seq_len and max_image_seq_len {first}. {REMEDY}")
