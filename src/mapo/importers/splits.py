"""The splits that a source publishes, by the names of its files and folders, as datasets of the hub name them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NAMES = {word: split for split, words in WORDS.items() for word in words}
SHARD = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


def split_named(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` for a split of this name (``test_unique``, ``dev``); None: another."""
    words = [NAMES.get(word) for word in re.split(r"[\W_]+", name.strip().lower())]
    first, last = words[0], words[-1]
    return None if first and last and first != last else first or last


def split_of_file(place: str) -> str | None:
    """The split that a file's name tells (``train-00000-of-00002``), or else the nearest folder's."""
    path = PurePosixPath(place)
    stem = path.name.partition(".")[0] or path.name
    names = (SHARD.sub("", stem), *reversed(path.parts[:-1]))
    return next((split for name in names if (split := split_named(name))), None)
