"""What is shown to whom: pictures in an order and on sides that say nothing about where they come from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from mapo.errors import MapoError, count
from mapo.pairs.pairs import PairSet, decode_picture
from mapo.sample.folder import ImageRow, is_sensitive, read_picture, read_pictures

T = TypeVar("T")

BLOCK = 20
MOST = 9  # pictures of a grid: as many as it has keys for


@dataclass(frozen=True, slots=True)
class BlindTask:
    """Two pictures of a prompt to be judged, or all of a grid. ``pictures`` are hashes in sorted order: which is chosen
    is not in it."""

    pair: str
    prompt: str
    pictures: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict)  # goes into the vote, never to the page


@dataclass(frozen=True)
class Material:
    """All that the page can show: tasks by pair, and the pictures of these tasks by hash."""

    tasks: Mapping[str, BlindTask]
    open_picture: Callable[[str], Image.Image]
    sensitive: bool = False
    grid: bool = False  # all pictures of a task are shown at once, and the best and the worst are picked

    @property
    def noun(self) -> str:
        """What a task is called."""
        return "grid" if self.grid else "pair"

    def picture_names(self) -> frozenset[str]:
        """The hashes of the pictures that may be served, and no others."""
        return frozenset(name for task in self.tasks.values() for name in task.pictures)


def pair_key(prompt: str, one: str, other: str) -> str:
    """The name of two pictures of a prompt, whichever is chosen: 16 hexadecimal digits.

    A pair's own id is a hash with the chosen picture first, so a page that knew it could work out which that is.
    """
    return hashlib.sha256("\0".join(("pair", prompt, *sorted((one, other)))).encode()).hexdigest()[:16]


def grid_key(prompt: str, pictures: Iterable[str]) -> str:
    """The name of a grid, as :func:`pair_key` of a pair."""
    return hashlib.sha256("\0".join(("grid", prompt, *sorted(pictures))).encode()).hexdigest()[:16]


def sides(task: BlindTask, annotator: str) -> tuple[str, str]:
    """The pictures (left, right) for this annotator: a fair coin that always falls the same way."""
    one, other = task.pictures
    return (one, other) if _draw("side", annotator, task.pair) % 2 else (other, one)


def spread(task: BlindTask, annotator: str) -> list[str]:
    """The pictures of a grid in this annotator's own order, always the same."""
    return sorted(task.pictures, key=lambda name: (_draw("place", annotator, task.pair, name), name))


def order(tasks: Iterable[str], annotator: str) -> list[str]:
    """The pairs in this annotator's own order.

    All annotators get the same random twenty pairs before the next twenty, shuffled anew for each, so that people who
    stop early have still judged the same pairs, without which no agreement can be measured.
    """
    drawn = sorted(tasks)  # the names of tasks are hashes, so this is as good as a draw
    starts = range(0, len(drawn), BLOCK)
    blocks = (sorted(drawn[s : s + BLOCK], key=lambda pair: (_draw("order", annotator, pair), pair)) for s in starts)
    return list(itertools.chain.from_iterable(blocks))


def _draw(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big")


def of_pairs(pairs: PairSet) -> Material:
    """The pairs of a set. A pair that is in the set both ways round is one task."""
    pairs.refuse_without_pictures("mapo label")
    pairs.refuse_without_rejected("mapo label")
    columns = (pairs.table[c].to_pylist() for c in ("prompt", "chosen", "rejected"))
    tasks: dict[str, BlindTask] = {}
    for prompt, chosen, rejected in zip(*columns, strict=True):
        key = pair_key(prompt, chosen, rejected)
        tasks[key] = BlindTask(key, prompt, _sorted(chosen, rejected))
    return _of_set(pairs, tasks)


def of_grids(pairs: PairSet) -> Material:
    """All pictures of a prompt at once, or, where the set says so, of each of its groups; large ones are dealt."""
    pairs.refuse_without_pictures("mapo label")
    pairs.refuse_without_rejected("mapo label")
    columns = (pairs.table[c].to_pylist() for c in ("prompt", "group", "chosen", "rejected"))
    together: dict[tuple[str, str], set[str]] = {}
    for prompt, group, chosen, rejected in zip(*columns, strict=True):
        together.setdefault((prompt, group or ""), set()).update((chosen, rejected))
    tasks: dict[str, BlindTask] = {}
    for (prompt, _), pictures in together.items():
        for hand in hands(sorted(pictures)):
            key = grid_key(prompt, hand)
            tasks[key] = BlindTask(key, prompt, tuple(sorted(hand)))
    return replace(_of_set(pairs, tasks), grid=True)


def hands(pictures: Sequence[T]) -> list[Sequence[T]]:
    """The pictures dealt into hands of at most :data:`MOST`, which differ by one at most."""
    number = -(-len(pictures) // MOST)
    return [pictures[start::number] for start in range(number)]


def _of_set(pairs: PairSet, tasks: Mapping[str, BlindTask]) -> Material:
    absent = 0 if pairs.keeps_all() else sum(not all(map(pairs.keeps, task.pictures)) for task in tasks.values())
    if absent:
        raise MapoError(
            f"{pairs.folder} keeps the pictures of {count(absent, 'pair')} as latents only, so nobody can see them."
        )
    return Material(tasks, pairs.image, bool(pairs.info.get("sensitive")))


def of_folders(before: Path, after: Path) -> Material:
    """Two images folders, the same prompts and seeds in both, as for `mapo report`. Either is sensitive, both are."""
    first, second = read_pictures(before, after)
    tasks: dict[str, BlindTask] = {}
    places: dict[str, tuple[Path, ImageRow]] = {}
    for key, old in first.items():
        new = second[key]
        places[old.sha256], places[new.sha256] = (before, old), (after, new)
        pair = pair_key(f"{old.prompt_id}\0{old.seed}", old.sha256, new.sha256)
        record = {"before": old.sha256, "after": new.sha256, "prompt_id": old.prompt_id, "seed": old.seed}
        tasks[pair] = BlindTask(pair, old.prompt, _sorted(old.sha256, new.sha256), record)

    def open_picture(name: str) -> Image.Image:
        try:
            return decode_picture(read_picture(*places[name]))
        except ValueError as error:
            raise MapoError(f"{places[name][0] / places[name][1].file}: {error}. Sample it again.") from None

    return Material(tasks, open_picture, is_sensitive(before) or is_sensitive(after))


def _sorted(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)
