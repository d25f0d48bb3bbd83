"""Tensors on disk."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mapo.errors import as_os_error

OTHERS = {  # how files of another kind begin
    b"PK\x03\x04": "pickle", b"\x80\x02": "pickle", b"\x80\x04": "pickle", b"GGUF": "gguf",
    b"version https://git-lfs": "pointer", b"<!DOCTYPE": "page", b"<html": "page", b"<!doctype": "page",
}  # fmt: skip


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; OSError with its number where the disk is full, as any other file gives."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise as_os_error(error, str(path)) from None


def kind_of_other(begin: bytes) -> str:
    """What a file is that begins so, such as "pickle"; empty where it may be a safetensors file.

    The length of a head may begin with the bytes of a pickle, but behind it come zeros and the head's brace.
    """
    if begin[4:9] == b"\0\0\0\0{":
        return ""
    return next((kind for start, kind in OTHERS.items() if begin.startswith(start)), "")
