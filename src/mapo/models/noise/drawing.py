"""The scheduler that pictures are drawn with: which class it is, where two files of a model folder name one each."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.models.noise.flow import FLOW_LIKE
from mapo.models.noise.process import DDPM_LIKE
from mapo.models.parts.config import again

LOG = logging.getLogger(__name__)

INDEX, FILE = "model_index.json", "scheduler/scheduler_config.json"


def class_named(base: Path, name: str) -> Any:
    """The class of diffusers of that ``name``, which ``model_index.json`` names; MapoError where there is none."""
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_config"):
        raise MapoError(f"{base / INDEX} names the scheduler {name!r}, which this diffusers does not know.")
    return kind


def check_names(base: Path, by_index: str, by_file: str) -> None:
    """MapoError where the class that ``model_index.json`` names takes away another noise than that of the file.

    Pictures are drawn with the first, and training adds the noise that the second tells.
    """
    if by_file and _noise(by_index) != _noise(by_file):
        raise MapoError(
            f"{base / INDEX} names the scheduler {by_index}, but {FILE} names {by_file}. These two are not known "
            f"to be for the same noise. {again(base)}"
        )


@cache
def tell_names(base: Path, by_index: str, by_file: str) -> None:
    """Say once which of two classes for the same noise draws."""
    if by_file and by_index != by_file:
        LOG.info(
            f"{base / INDEX} names the scheduler {by_index}, and {FILE} names {by_file}. Pictures are drawn with "
            f"{by_index}, as diffusers does."
        )


def _noise(name: str) -> str:
    if name in FLOW_LIKE or name.startswith("FlowMatch"):
        return "flow"
    return "betas" if name in DDPM_LIKE else name
