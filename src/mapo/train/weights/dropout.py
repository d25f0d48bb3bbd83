"""Dropout before a LoRA, of which the masks are a function of the seed and of the pairs' positions in the run.

So they depend neither on how a step is cut into portions or shared among processes, nor on where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mapo.train.batches import generator_on, seed_of


class PairDropout(nn.Module):
    """Leaves out a share of what a layer is given, in training: rows "b …" of p pairs, each with a mask of its own.

    The rows are the images of p pairs, of one side or the chosen ones and then the rejected ones, and both images of a
    pair have one mask, as they have one noise; or where the layer reads ``prompts`` the chunks of each pair's prompt
    behind one another. The mask is the same again where activations are computed twice.
    """

    def __init__(self, share: float, layer: str, prompts: bool) -> None:
        super().__init__()
        self.share, self.layer, self.prompts = share, layer, prompts
        self.seed = 0
        self.positions: tuple[int, ...] = (0,)

    def forward(self, x: Tensor) -> Tensor:
        """Its numbers divided by 1 − share, and 0 where they are left out."""
        if not self.training:
            return x
        mask, generator = torch.empty_like(x, memory_format=torch.contiguous_format), generator_on(x.device)
        each = max(1, len(x) // len(self.positions))  # rows of a pair
        for row in range(len(x)):
            part, pair = (row % each, row // each) if self.prompts else (0, row % len(self.positions))
            position = self.positions[pair % len(self.positions)]
            generator.manual_seed(seed_of("dropout", self.seed, position, self.layer, part))
            mask[row].bernoulli_(1 - self.share, generator=generator)
        return x * mask.div_(1 - self.share)


def lay_dropout(network: nn.Module, adapter: str, share: float, part: str, prompts: bool) -> None:
    """Put it before the layers of an adapter; ``part`` is the network's name, by which its masks differ from others."""
    for name, module in network.named_modules() if share else ():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            module.lora_dropout[adapter] = PairDropout(share, f"{part}.{name}", prompts)


def drop_at(network: nn.Module, seed: int, positions: Sequence[int]) -> None:
    """Say which pairs the network is given from here on."""
    for module in network.modules():
        if isinstance(module, PairDropout):
            module.seed, module.positions = seed, tuple(positions)
