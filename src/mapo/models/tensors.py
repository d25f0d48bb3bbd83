"""Tensors on disk."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mapo.errors import as_os_error


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; OSError with its number where the disk is full, as any other file gives."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise as_os_error(error, str(path)) from None
