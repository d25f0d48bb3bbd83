"""Hashes by which a model's parts are told apart, cheap for gigabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapo.errors import MapoError


def fingerprint(base: Path, parts: Sequence[str]) -> str:
    """A hash of the configurations of ``parts`` and of samples of their weights: cheap for gigabytes, stable."""
    digest = hashlib.sha256()
    for part in parts:
        files = sorted(f for f in (base / part).glob("*") if f.suffix in (".json", ".safetensors", ".txt", ".bin"))
        if not files:
            raise MapoError(f"The model folder {base} is not whole: {part} is missing.")
        for file in files:
            add_samples(digest, file, f"{part}/{file.name}")
    return digest.hexdigest()[:16]


def add_samples(digest: Any, file: Path, name: str) -> None:
    """Feed the size of a file and samples of it to a hash, under this name."""
    size = file.stat().st_size
    digest.update(f"{name}:{size}\n".encode())
    with file.open("rb") as stream:
        for place in range(0, size, max(4096, size // 64)):
            stream.seek(place)
            digest.update(stream.read(4096))


def contents(base: Path, parts: Sequence[str]) -> str:
    """A hash of all files of ``parts``, such as tokenizers, to the byte: two words may have changed places."""
    digest = hashlib.sha256()
    for file in (file for part in parts for file in sorted((base / part).glob("[!.]*")) if file.is_file()):
        digest.update(f"{file.parent.name}/{file.name}:{file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
