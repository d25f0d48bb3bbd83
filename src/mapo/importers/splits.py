"""The splits that a source publishes, by the names of its files and folders, as datasets of the hub name them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NAMES = {word: split for split, words in WORDS.items() for word in words}
OF = re.compile(r"[-_.]?\d+[-_]of[-_]\d+")
SHARD = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


def split_named(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` for a split of this name (``test_unique``, ``dev``); None: another."""
    words = [NAMES.get(word) for word in re.split(r"[\W_]+", name.strip().lower())]
    first, last = words[0], words[-1]
    return None if first and last and first != last else first or last


def splits_of(places: Sequence[str]) -> list[str | None]:
    """The split of each file of a source: what its name tells (``train-00000-of-00002``), or else the nearest folder's.

    Where files name no two splits, a word in a name may mean anything (``my-test``): there the word must be all of the
    name but for the number of a part, and of a lone file all but ``00000-of-00001``.
    """
    found = [split_of_file(place) for place in places]
    if len({*found} - {None}) > 1:
        return found
    number = OF if len(places) == 1 else SHARD
    return [
        split_of_file(place, bool(OF.search(_stem(place))) or number.sub("", _stem(place)).lower() in NAMES)
        for place in places
    ]


def split_of_file(place: str, by_name: bool = True) -> str | None:
    """The split that a file's name tells, or else the nearest folder's; with ``by_name`` false only the folder's."""
    names = ([SHARD.sub("", _stem(place))] if by_name else []) + [*reversed(PurePosixPath(place).parts[:-1])]
    return next((split for name in names if (split := split_named(name))), None)


def are_parts(stems: Sequence[str]) -> bool:
    """Whether names of files are of parts of one whole: ``x-00001-of-00002``, or numbers from 0 on (``part-0``)."""
    if len({SHARD.sub("", stem) for stem in stems}) > 1:
        return False
    numbers = sorted(int(found[0]) for stem in stems if (found := re.search(r"\d+$", stem)))
    return all(map(OF.search, stems)) or numbers == list(range(len(stems)))


def _stem(place: str) -> str:
    name = PurePosixPath(place).name
    return name.partition(".")[0] or name
