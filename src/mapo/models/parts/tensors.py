"""Tensors on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mapo.errors import MapoError, as_os_error

PORTION = 2**24  # bytes that are read at a time
OTHERS = {  # how files of another kind begin
    b"PK\x03\x04": "pickle", b"\x80\x02": "pickle", b"\x80\x04": "pickle", b"\x80\x05": "pickle", b"GGUF": "gguf",
    b"version https://git-lfs": "pointer", b"<!DOCTYPE": "page", b"<html": "page", b"<!doctype": "page",
    b"\x89PNG": "picture", b"\xff\xd8\xff": "picture", b"GIF8": "picture", b"RIFF": "picture",
}  # fmt: skip


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; OSError with its number where the disk is full, as any other file gives."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise as_os_error(error, str(path)) from None


DTYPES = {  # as safetensors calls them
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor as a file has them, an array; in the same memory where that is possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def save_in_turn(like: Mapping[str, Tensor], values: Iterable[Tensor], path: Path) -> int:
    """Write a safetensors file of which only one tensor is in memory at a time; the CRC-32 of its bytes.

    ``like`` has names, dtypes and shapes, and ``values`` their numbers in the same order.
    """
    head, end = dict[str, Any](), 0
    for name, tensor in like.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        head[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    text = (len(text) + (-len(text) % 8)).to_bytes(8, "little") + text + b" " * (-len(text) % 8)
    checksum = zlib.crc32(text)
    with path.open("wb") as file:
        file.write(text)
        for tensor in values:
            numbers = bytes_of(tensor)
            checksum = zlib.crc32(numbers, checksum)
            file.write(numbers)
    return checksum


def checksum_of(path: Path) -> int:
    """The CRC-32 of a file's bytes, read in portions."""
    found = 0
    with path.open("rb") as file:
        while portion := file.read(PORTION):
            found = zlib.crc32(portion, found)
    return found


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite. The least and the greatest tell, forty times as fast as each one."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def check_finite(network: nn.Module, part: str, place: object) -> None:
    """MapoError where a weight of a part lacks or is not finite: pictures would be black, and no step possible."""
    for name, tensor in network.state_dict().items():
        if tensor.is_meta:
            raise MapoError(f"The weights of the {part} of {place} lack {name}. Take another copy of these weights.")
        if not is_finite(tensor):
            half = tensor.dtype is torch.float16
            raise MapoError(
                f"The {part} of {place} has numbers that are not finite{' in float16' * half}, such as in {name}. "
                f"Take {'float32, or ' * half}another copy of these weights."
            )


def kind_of_other(begin: bytes) -> str:
    """What a file is that begins so, such as "pickle"; empty where it may be a safetensors file.

    The length of a head may begin with the bytes of a pickle, but behind it come zeros and the head's brace.
    """
    if begin[4:9] == b"\0\0\0\0{":
        return ""
    return next((kind for start, kind in OTHERS.items() if begin.startswith(start)), "")
