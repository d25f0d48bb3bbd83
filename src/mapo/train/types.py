"""What passes between the parts of a training step. p pairs, b = 2p images with the chosen first, c h w a latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Pairs as the cache gives them: ``latents`` "b c h w", every value of ``cond`` "b …", the rest "p"."""

    latents: Tensor
    cond: dict[str, Tensor]
    preference: Tensor
    weight: Tensor
    noise: Tensor  # "p c h w", one per pair
    timesteps: Tensor  # "p", one per pair
    ids: tuple[str, ...] = field(default=())

    @property
    def pair_of(self) -> Tensor:
        """The pair to which each image belongs, "b": what is drawn once per pair is taken for both by this index."""
        pairs = torch.arange(len(self.timesteps), device=self.timesteps.device)
        return torch.cat([pairs, pairs])

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            if device.type == "mps" and tensor.dtype == torch.float64:
                return tensor  # it has none: the few numbers of a pair stay where objectives compute
            return tensor.to(device, non_blocking=True)

        return Batch(
            move(self.latents),
            {k: move(v) for k, v in self.cond.items()},
            move(self.preference),
            move(self.weight),
            move(self.noise),
            move(self.timesteps),
            self.ids,
        )


def mean_squares(difference: Tensor) -> Tensor:
    """ℓ: the mean over all elements of one image, "b c h w" → "b"."""
    return difference.pow(2).flatten(1).mean(1)


@dataclass(frozen=True)
class Residuals:
    """Prediction minus target for the images of each pair, "p c h w" each; the reference's where there is one."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None

    def swapped(self) -> Residuals:
        """Those of the pairs with chosen and rejected exchanged."""
        return Residuals(self.rejected, self.chosen, self.ref_rejected, self.ref_chosen)


@dataclass(frozen=True)
class PairErrors:
    """Denoising errors of the images of each pair, "p" each; the reference's where an objective asks for one.

    ``extras`` are further numbers of each pair that an objective asks for, and ``extras_swapped`` the same with chosen
    and rejected exchanged, "p" each.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    extras_swapped: Mapping[str, Tensor] = field(default_factory=dict)

    def swapped(self) -> PairErrors:
        """Those of the pairs with chosen and rejected exchanged."""
        return PairErrors(
            self.rejected, self.chosen, self.ref_rejected, self.ref_chosen, self.extras_swapped, self.extras
        )
