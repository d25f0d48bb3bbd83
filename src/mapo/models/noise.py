"""The forward process: α(t), σ(t), what the denoiser has to predict, and the error of one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mapo.errors import MapoError


@dataclass(frozen=True)
class Schedule:
    """A variance-preserving schedule: ``alphas_cumprod`` "T" and what is predicted, "epsilon" or "v_prediction"."""

    alphas_cumprod: Tensor
    prediction_type: str

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise MapoError(
                f"The scheduler's prediction_type is {self.prediction_type!r}; training knows epsilon and v_prediction."
            )

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod.to(device=like.device, dtype=like.dtype)[t].view(-1, *[1] * (like.ndim - 1))
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = √ᾱ x₀ + √(1 − ᾱ) ε, "b c h w"."""
        alpha, sigma = self._at(t, latents)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """ε, or v = √ᾱ ε − √(1 − ᾱ) x₀ (arXiv:2202.00512), "b c h w"."""
        if self.prediction_type == "epsilon":
            return noise
        alpha, sigma = self._at(t, latents)
        return alpha * noise - sigma * latents


def image_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """ℓ: the mean over all elements of one image of (target − prediction)², in float32 or better, "b c h w" → "b"."""
    difference = target - prediction.to(target.dtype)
    return difference.pow(2).flatten(1).mean(1)
