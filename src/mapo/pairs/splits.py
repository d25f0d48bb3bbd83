"""The name of a prompt, and the split to which it belongs."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def normalise(prompt: str) -> str:
    """The form in which two prompts count as the same: case, white space and the coding of accents do not matter."""
    return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def prompt_id(prompt: str) -> str:
    """A short stable name of a prompt: 16 hexadecimal digits."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()[:16]


def split_of(prompt: str) -> str:
    """``train``, ``validation`` or ``test`` (80, 10, 10 %), by a stable hash: a prompt never changes sides."""
    place = int.from_bytes(hashlib.sha256(b"split:" + normalise(prompt).encode()).digest()[:8], "big") / 2**64
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"


def joined(rows: NDArray[np.void]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which rows (of id, prompt, pictures, split, several) need a split in common: their ids, sorted, and the splits.

    Rows that share a prompt, or both pictures, are joined, and so are those that these are joined with. Where one of
    them has several captions, all have the split of the first that has; the others stay as they are.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known, prompts = np.unique(rows["prompt"], return_inverse=True)
    _, pictures = np.unique(rows["pictures"], return_inverse=True)
    pictures = pictures + len(known)
    size = int(pictures.max()) + 1
    _, part = connected_components(coo_array((np.ones(len(rows)), (prompts, pictures)), shape=(size, size)))
    part = part[prompts]
    several = np.flatnonzero(rows["several"])[::-1]
    first = np.full(size, -1)
    first[part[several]] = several
    found = first[part]
    ids, place = np.unique(rows["id"][found >= 0], return_index=True)
    return ids, rows["split"][found[found >= 0]][place]
