"""Activation checkpointing: of all blocks, or of every n-th one."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from mapo.train.weights.speed import blocks_of


def number_of_blocks(network: nn.Module) -> int:
    """How many blocks a denoiser of diffusers has that it can compute twice; the weights need not be there."""
    resnets = sum(type(module).__name__ == "ResnetBlock2D" for module in network.modules())
    first_of_middle = bool(getattr(getattr(network, "mid_block", None), "resnets", ()))  # is always held
    return len(blocks_of(network)) + resnets - first_of_middle


def checkpoint_blocks(network: nn.Module, every: int) -> None:
    """Let every ``every``-th block of a denoiser of diffusers compute its activations twice; 1: all of them.

    A block is what diffusers checkpoints: a ResNet or transformer block. They count in the order of the forward pass.
    """
    if every == 1:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
        return
    places: dict[int, int] = {}  # of blocks in the order in which they were first met

    def call(block: nn.Module, *args: Any) -> Any:
        place = places.setdefault(id(block), len(places))
        if (place + 1) % every:
            return block(*args)
        return checkpoint(block.__call__, *args, use_reentrant=False)

    network.enable_gradient_checkpointing(call)  # type: ignore[operator]


def checkpoint_layers(encoder: nn.Module, every: int) -> None:
    """The same for the layers of a text encoder of transformers."""
    encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    layers = [module for module in encoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    for place, layer in enumerate(layers, 1):
        layer.gradient_checkpointing = place % every == 0
