"""The head of a safetensors file: names, shapes and kinds of its tensors, and its metadata. No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, count
from mapo.models.parts.tensors import kind_of_other

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
MOST_HEAD = 10**8  # bytes; the library allows no more
AGAIN = "Download it again."


@dataclass(frozen=True)
class Held:
    """A tensor in a file: its kind such as "F16", its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class Header:
    """What the head of a file says."""

    path: Path
    tensors: Mapping[str, Held]
    metadata: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; empty where there is no such tensor."""
        return self.tensors[name].shape if name in self.tensors else ()

    def any(self, *beginnings: str) -> bool:
        """Whether a name begins with one of these."""
        return any(name.startswith(beginnings) for name in self.tensors)

    def any_with(self, *words: str) -> bool:
        """Whether one of these words is in a name."""
        return any(word in name for name in self.tensors for word in words)


def read_header(path: Path, remedy: str = AGAIN) -> Header:
    """The head of a file; MapoError with the ``remedy`` where it is not a whole safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(32)
            length = int.from_bytes(begin[:8], "little")
            _refuse_others(path, begin, size, remedy)
            if begin[8:9] != b"{" or not 2 <= length <= MOST_HEAD:
                raise MapoError(f"{path} is not a safetensors file, or is damaged: it does not begin as one. {remedy}")
            if 8 + length > size:
                raise MapoError(f"{path} is cut off: it has only {size:,} bytes. {remedy}")
            file.seek(8)
            head = json.loads(file.read(length))
        metadata = {str(key): str(value) for key, value in (head.pop("__metadata__", None) or {}).items()}
        tensors = {name: _held(entry, 8 + length) for name, entry in head.items()}
    except OSError as error:
        raise MapoError(f"{path} cannot be read ({error.strerror or error}). {remedy}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise MapoError(f"{path} is damaged: its head cannot be read. {remedy}") from None
    whole = max((held.end for held in tensors.values()), default=8 + length)
    if whole > size:
        raise MapoError(f"{path} is cut off: it has {size:,} of {whole:,} bytes. {remedy}")
    if whole < size:
        raise MapoError(f"{path} is damaged: {count(size - whole, 'byte')} behind its tensors belong to none. {remedy}")
    return Header(path, tensors, metadata)


def _held(entry: Mapping[str, Any], start: int) -> Held:
    begin, end = map(int, entry["data_offsets"])
    shape = tuple(int(side) for side in entry["shape"])
    if not 0 <= begin <= end or min(shape, default=0) < 0:
        raise ValueError("a tensor ends before it begins")
    return Held(str(entry["dtype"]), shape, start + begin, start + end)


def _refuse_others(path: Path, begin: bytes, size: int, remedy: str) -> None:
    """MapoError where a file is of another kind, by its name or by how it begins."""
    kind = kind_of_other(begin)
    if not size:
        raise MapoError(f"{path} is empty. {remedy}")
    if kind == "pickle" or path.suffix.lower() in PICKLES:
        raise MapoError(
            f"{path} is a pickle. Such a file can run code when it is opened, so it is not read. If you trust it, "
            f"write it anew as safetensors: {as_safetensors(path)}"
        )
    if kind == "gguf" or path.suffix.lower() == ".gguf":
        raise MapoError(f"{path} is a GGUF file of quantized weights, which cannot be trained. {TAKE_WHOLE}")
    if kind == "pointer":
        raise MapoError(f"{path} is only the pointer that Git LFS leaves. Fetch the file itself: git lfs pull.")
    if kind == "page":
        raise MapoError(
            f"{path} is a web page, not a file of weights. Download the file itself, perhaps after logging in there."
        )
    if kind == "picture":
        raise MapoError(f"{path} is a picture, not a file of weights. Name a .safetensors file.")


TAKE_WHOLE = "Take the file in float16, bfloat16 or float32."


def as_safetensors(path: Path) -> str:
    """A command that writes a pickled checkpoint anew, beside it, under a name that no file has.

    It opens the file itself, as torch takes one that is called .safetensors for what its name says.
    """
    new, number = path.with_suffix(".safetensors"), 1
    while new.exists():
        number += 1
        new = path.with_name(f"{path.stem}-{number}.safetensors")
    return (
        "python -c \"import torch, safetensors.torch as s; d = torch.load(open('"
        f"{path}', 'rb'), weights_only=True, map_location='cpu'); d = d.get('state_dict', d); "
        "s.save_file({k: v.clone() for k, v in d.items() if torch.is_tensor(v)}, '"
        f"{new}')\""
    )
