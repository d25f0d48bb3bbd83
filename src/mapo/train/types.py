"""What passes between the parts of a training step. p pairs, b = 2p images with the chosen first, c h w a latent.

Shapes are annotations, which the tests check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Num, Shaped
from torch import Tensor

PerPair = Float[Tensor, "p"]
PerImage = Num[Tensor, "b"]
Images = Float[Tensor, "b c h w"]
Cond = dict[str, Shaped[Tensor, "b ..."]]  # what the denoiser is given besides x_t and t, by name


@dataclass(frozen=True)
class Batch:
    """Pairs as the cache gives them."""

    latents: Images
    cond: Cond
    preference: PerPair
    weight: PerPair
    noise: Float[Tensor, "p c h w"]  # one per pair, as the timesteps are
    timesteps: Num[Tensor, "p"]
    ids: tuple[str, ...] = field(default=())

    @property
    def pair_of(self) -> PerImage:
        """The pair to which each image belongs: what is drawn once per pair is taken for both by this index."""
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


def mean_squares(difference: Images) -> PerImage:
    """ℓ: the mean over all elements of one image."""
    return difference.pow(2).flatten(1).mean(1)


@dataclass(frozen=True)
class Residuals:
    """Prediction minus target for the images of each pair; the reference's where there is one."""

    chosen: Images
    rejected: Images
    ref_chosen: Images | None = None
    ref_rejected: Images | None = None

    def swapped(self) -> Residuals:
        """Those of the pairs with chosen and rejected exchanged."""
        return Residuals(self.rejected, self.chosen, self.ref_rejected, self.ref_chosen)


@dataclass(frozen=True)
class PairErrors:
    """Denoising errors of the images of each pair; the reference's where an objective asks for one.

    ``extras`` are further numbers of each pair that an objective asks for, and ``extras_swapped`` the same with chosen
    and rejected exchanged.
    """

    chosen: PerPair
    rejected: PerPair
    ref_chosen: PerPair | None = None
    ref_rejected: PerPair | None = None
    extras: Mapping[str, PerPair] = field(default_factory=dict)
    extras_swapped: Mapping[str, PerPair] = field(default_factory=dict)

    def swapped(self) -> PairErrors:
        """Those of the pairs with chosen and rejected exchanged."""
        return PairErrors(
            self.rejected, self.chosen, self.ref_rejected, self.ref_chosen, self.extras_swapped, self.extras
        )
