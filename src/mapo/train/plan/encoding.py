"""What encoding takes before a training: the encoders' real code, on tensors that have shapes and no numbers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch.fx.experimental import _config as meta_settings

from mapo.encode.encoding import dtype_of_text
from mapo.encode.fill import PROMPTS_PER_IMAGE
from mapo.encode.frame import Frame
from mapo.models import Opened
from mapo.train.config import Config
from mapo.train.plan.disk import Disk
from mapo.train.plan.kernels import attention_of
from mapo.train.plan.live import Live
from mapo.train.plan.machine import beside
from mapo.train.plan.outlines import open_outlined

META = torch.device("meta")


def rehearse_encoding(
    config: Config, model: Opened, frames: Sequence[Frame], device: str, disk: Disk
) -> dict[str, int]:  # fmt: skip
    """Bytes by kind at the peak of encoding on ``device`` what the cache lacks; empty where it lacks nothing.

    As :func:`mapo.encode.fill.encode` does it: the VAE is opened first, prompts go through the text encoders, which are
    then gone, and pictures go through the VAE in the largest of ``frames``.
    """
    at_once = config.data.images_per_batch
    pictures, prompts = min(disk.pictures, at_once), min(disk.prompts, PROMPTS_PER_IMAGE * at_once)
    frame = max(frames, key=lambda one: one.height * one.width)
    live, left = Live(META), 0
    found: list[dict[str, int]] = []
    with warnings.catch_warnings(action="ignore"), live, attention_of(device), _masks_choose_all():
        opened = open_outlined(model, live, stay=device == "cpu")
        with live.of("weights"):
            vae = opened.image_encoder(META) if pictures else None
        if prompts:
            before = live.held["weights"]
            with live.of("weights"):
                texts = opened.text_encoder(META, dtype_of_text(config.data.cache_precision))
            left = live.held["weights"] - before
            live.again()
            texts([""] * prompts)
            found.append(_told(live, device))
            del texts
        if vae:
            with live.of("batch"):
                pixels = torch.zeros(pictures, 3, frame.height, frame.width, device=META)
            live.again()
            vae(pixels)
            found.append(_told(live, device, left))
    return max(found, key=lambda kinds: sum(kinds.values()), default={})


def _told(live: Live, device: str, left: int = 0) -> dict[str, int]:
    """The bytes by kind. On a CPU the C library may still hold the bytes that networks which are gone have ``left``."""
    heap = {"heap": live.freed + left} if device == "cpu" else {}
    return {**live.at_peak, **beside(device, 0), **heap}


@contextlib.contextmanager
def _masks_choose_all() -> Iterator[None]:
    """Inside, what a mask without numbers chooses is all."""
    before = meta_settings.meta_nonzero_assume_all_nonzero
    meta_settings.meta_nonzero_assume_all_nonzero = True
    try:
        yield
    finally:
        meta_settings.meta_nonzero_assume_all_nonzero = before
