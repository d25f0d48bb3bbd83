"""What passes between the parts of a training step. p pairs, b = 2p images with the chosen first, c h w a latent."""

from __future__ import annotations

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


@dataclass(frozen=True)
class PairErrors:
    """Denoising errors of the images of each pair, "p" each; the reference's where an objective asks for one."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
