"""What makes the same arithmetic faster where the device can do it: compiled blocks, another layout, TF32."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from mapo.errors import MapoError
from mapo.train.config import Config

BACKEND = "inductor"
BLOCKS = {"SD3Transformer2DModel": ("JointTransformerBlock",)}  # of classes in which diffusers does not name them


def check_speed(config: Config, device: torch.device) -> None:
    """MapoError where the device cannot do what is asked for."""
    train = config.train
    if train.tf32 and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise MapoError(
            "train.tf32=true: this device has no such arithmetic; NVIDIA's GPUs from the A100 on have it. Leave it out."
        )
    if train.compile and device.type == "mps":
        raise MapoError("train.compile=true: compiling for this GPU has not been tried. Leave it out.")
    if train.compile and device.type == "cuda" and find_spec("triton") is None:
        raise MapoError("train.compile=true needs the package triton on a GPU. Install it, or leave the setting out.")
    if train.compile and device.type == "cpu" and not _compiler():
        raise MapoError(
            "train.compile=true needs a C++ compiler on a CPU, and there is no g++ or clang++ here. Install one, or "
            "leave the setting out."
        )


def _compiler() -> str | None:
    return next(filter(None, (shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)), None)


def speed_up(denoiser: nn.Module, config: Config) -> None:
    """Give a denoiser the layout that is asked for, and have its repeated blocks compiled when they are first called.

    The names of its parameters stay. A block is compiled once, however often it is repeated, and not the whole network,
    which would take many times as long.
    """
    if not any(parameter.is_meta for parameter in denoiser.parameters()):  # else nothing is computed with it
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.tf32
    if config.train.channels_last:
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.train.compile:
        for block in blocks_of(denoiser):
            block.compile(backend=BACKEND)


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a denoiser."""
    theirs: Any = getattr(denoiser, "_repeated_blocks", None)
    named: Sequence[str] = BLOCKS.get(type(denoiser).__name__, theirs or ())
    return [module for module in denoiser.modules() if type(module).__name__ in named]
