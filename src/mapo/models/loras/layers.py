"""One plain record for each layer of a LoRA, whoever wrote the file; laying them on a network, and several as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapo.errors import count


@dataclass(frozen=True)
class Layer:
    """W becomes W + scale · up · down, where scale is alpha / rank.

    ``down`` is "r i" and ``up`` is "o r"; of a convolution "r i k k" and "o r 1 1".
    """

    part: str  # the network, by its folder: "unet", "transformer", "text_encoder" …
    module: str  # the layer's path in it
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rows of ``down``."""
        return len(self.down)

    @property
    def scale(self) -> float:
        """By which the product of both matrices is multiplied."""
        return self.alpha / self.rank

    @property
    def key(self) -> tuple[str, str]:
        """Its place: part and module."""
        return self.part, self.module

    def weighted(self, weight: float) -> Layer:
        """The same layer at ``weight`` times its strength."""
        return self if weight == 1 else replace(self, alpha=self.alpha * weight)

    def delta(self) -> Tensor:
        """What is added to the weight, in its shape, in the precision of the matrices."""
        if self.down.ndim == 2:
            return (self.up @ self.down) * self.scale
        if self.down.shape[2:] == (1, 1):
            return (self.up[..., 0, 0] @ self.down[..., 0, 0])[..., None, None] * self.scale
        return F.conv2d(self.down.permute(1, 0, 2, 3), self.up).permute(1, 0, 2, 3) * self.scale


@torch.no_grad()
def fuse(network: nn.Module, layers: Iterable[Layer]) -> None:
    """Add the layers to the weights of a network, in place, each in the precision of the weight or in float32."""
    for layer in layers:
        weight: Any = network.get_submodule(layer.module).weight
        kind = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
        exact = replace(layer, down=layer.down.to(weight.device, kind), up=layer.up.to(weight.device, kind))
        weight.copy_(weight.to(kind) + exact.delta())


def as_one(layers: Iterable[Layer]) -> list[Layer]:
    """Several LoRAs as one, in the order in which their layers first come.

    A layer that only one of them has stays as it is. Of one that several have, the rank is the sum of theirs:
    Σ sBA = (s₁B₁ s₂B₂ …)(A₁ A₂ …)ᵀ, with an alpha that is the rank.
    """
    found: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.key, []).append(layer)
    return [same[0] if len(same) == 1 else _stacked(same) for same in found.values()]


def _stacked(layers: Sequence[Layer]) -> Layer:
    kind = torch.float32
    for layer in layers:
        kind = torch.promote_types(kind, layer.down.dtype)
    device = layers[-1].down.device
    down = torch.cat([layer.down.to(device, kind) for layer in layers], 0)
    ups = [layer.up.to(device, kind) for layer in layers]
    up = torch.cat([up if layer.scale == 1 else up * layer.scale for up, layer in zip(ups, layers, strict=True)], 1)
    return Layer(layers[0].part, layers[0].module, down, up, float(len(down)))


def told(layers: Sequence[Layer]) -> str:
    """How many layers, of which rank, in words."""
    ranks = sorted({layer.rank for layer in layers})
    several = f"ranks {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"rank {ranks[0]}"
    return f"{count(len(layers), 'layer')} of {several}"
