"""What passes between the parts of a training step. p pairs, b = 2p images with the chosen first, c h w a latent.

Of a set without rejected pictures b = p. Shapes are annotations, which the tests check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Num, Shaped
from torch import Tensor

PerPair = Float[Tensor, "p"]
PerImage = Num[Tensor, "b"]
Images = Float[Tensor, "b c h w"]
Cond = dict[str, Shaped[Tensor, "..."]]  # what the denoiser is given besides x_t and t, by name
Sides = Literal["both", "chosen", "rejected"]  # of pairs, whose images go through a network at a time


@dataclass(frozen=True)
class Batch:
    """Pairs as the cache gives them.

    ``cond`` has a row for each image, or for each pair where both of its images are told the same. ``tokens`` are
    prompts that text encoders still have to read, in place of their states. ``certain`` says that every preference is
    1; ``ref_chosen`` and ``ref_rejected`` are the reference's errors, where they were computed before.
    """

    latents: Images
    cond: Cond
    preference: PerPair
    weight: PerPair
    noise: Float[Tensor, "p c h w"]  # one per pair, as the timesteps are
    timesteps: Num[Tensor, "p"]
    ids: tuple[str, ...] = field(default=())
    tokens: dict[str, Shaped[Tensor, "p ..."]] = field(default_factory=dict)
    certain: bool = False
    ref_chosen: PerPair | None = None
    ref_rejected: PerPair | None = None

    @property
    def has_rejected(self) -> bool:
        """Whether the pairs have rejected images."""
        return len(self.latents) > len(self.timesteps)

    @property
    def pair_of(self) -> PerImage:
        """The pair to which each image belongs: what is drawn once per pair is taken for both by this index."""
        return torch.arange(len(self.latents), device=self.timesteps.device) % len(self.timesteps)

    def rows(self, sides: Sides) -> slice:
        """Where the images of these sides lie among all."""
        p = len(self.timesteps)
        return {"both": slice(None), "chosen": slice(p), "rejected": slice(p, None)}[sides]

    def told(self, sides: Sides) -> Cond:
        """What the denoiser is told of the images of these sides: a row for each, and prompts that are ``tokens``."""
        p, pair_of = len(self.timesteps), self.pair_of[self.rows(sides)]
        told = {k: v[pair_of] if len(v) == p else v[self.rows(sides)] for k, v in self.cond.items()}
        return {**told, **self.tokens}

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``. What both images of a pair are told moves once."""

        def move(tensor: Tensor) -> Tensor:
            if device.type == "mps" and tensor.dtype == torch.float64:
                return tensor  # it has none: the few numbers of a pair stay where objectives compute
            return tensor.to(device, non_blocking=True)

        return self._each(move)

    def pinned(self) -> Batch:
        """The same batch in memory from which a GPU takes it without waiting."""
        return self._each(Tensor.pin_memory)

    def _each(self, work: Callable[[Tensor], Tensor]) -> Batch:
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in found.items():
            if isinstance(value, Tensor):
                found[name] = work(value)
            elif isinstance(value, dict):
                found[name] = {key: work(one) for key, one in value.items()}
        return replace(self, **found)


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
    and rejected exchanged. ``whole`` is false where only chosen images were measured; ``rejected`` is then NaN.
    """

    chosen: PerPair
    rejected: PerPair
    ref_chosen: PerPair | None = None
    ref_rejected: PerPair | None = None
    extras: Mapping[str, PerPair] = field(default_factory=dict)
    extras_swapped: Mapping[str, PerPair] = field(default_factory=dict)
    whole: bool = True

    def swapped(self) -> PairErrors:
        """Those of the pairs with chosen and rejected exchanged."""
        return PairErrors(
            self.rejected, self.chosen, self.ref_rejected, self.ref_chosen, self.extras_swapped, self.extras, self.whole
        )
