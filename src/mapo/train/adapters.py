"""What is trained: every weight of the denoiser, or a LoRA beside frozen weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from peft import LoraConfig
from torch import nn

from mapo.models import Opened
from mapo.train.config import AdapterConfig


def add_adapter(denoiser: nn.Module, model: Opened, config: AdapterConfig, seed: int) -> None:
    """Make the right parameters trainable, in place. The LoRA's first weights depend on ``seed`` alone.

    They are in float32 (or more), whatever the base is in.
    """
    if config.kind == "full":
        denoiser.requires_grad_(True)
        return
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(  # type: ignore[operator]
            LoraConfig(
                r=config.rank,
                lora_alpha=config.rank,
                init_lora_weights="gaussian",
                target_modules=list(model.lora_targets),
            )
        )
    for parameter in denoiser.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


@contextlib.contextmanager
def without_adapter(denoiser: nn.Module) -> Iterator[None]:
    """The denoiser as it was before its LoRA: DPO's reference at no cost of memory."""
    denoiser.disable_adapters()  # type: ignore[operator]
    try:
        yield
    finally:
        denoiser.enable_adapters()  # type: ignore[operator]


def trainable(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
