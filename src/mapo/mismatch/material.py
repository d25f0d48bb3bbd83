"""What is compared: some pairs of a set, the model's own samples of their prompts, and where the pictures are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mapo.encode.seen import choose
from mapo.errors import MapoError, count
from mapo.pairs.pairs import Pair, PairSet, decode_picture
from mapo.pairs.splits import SPLITS, prompt_id
from mapo.sample.folder import ImageRow, read_picture
from mapo.sample.sample import Sampler, Sampling

OWN, CHOSEN, REJECTED = "own", "chosen", "rejected"


@dataclass(frozen=True)
class Material:
    """``sides`` holds, for each pair, the hashes of its pictures: several own samples, one chosen, and one rejected,
    unless the set has none."""

    pairs: Sequence[Pair]
    sides: Mapping[str, Sequence[Sequence[str]]]
    pictures: Mapping[str, Callable[[], Image]]  # by hash; a set may keep rejected ones as latents only

    @property
    def clusters(self) -> list[str]:
        """What belongs together in an interval: each pair's prompt."""
        return [prompt_id(pair.prompt) for pair in self.pairs]

    def sides_in(self, names: Collection[str]) -> list[str]:
        """The sides of which every picture is among ``names``."""
        return [side for side, lists in self.sides.items() if all(n in names for row in lists for n in row)]

    def notes(self, encoded: Collection[str]) -> list[str]:
        """What a person must know about the numbers; ``encoded`` are the pictures whose latents were at hand."""
        own = {name for row in self.sides[OWN] for name in row}
        same = sum(row[0] in own for side, rows in self.sides.items() if side != OWN for row in rows)
        are = "is an own sample itself" if same == 1 else "are the own samples themselves"
        told = [f"{count(same, 'picture')} of the set {are}: choose other seeds."] if same else []
        if REJECTED in self.sides and REJECTED not in self.sides_in(self.pictures):
            used = "their latents were used" if REJECTED in self.sides_in(encoded) else "they were left out"
            told.append(f"Not all rejected pictures are in the set; {used}.")
        return told


def choose_pairs(pairs: PairSet, split: str, count: int, seed: int) -> tuple[list[Pair], int]:
    """At most ``count`` pairs of ``split`` ("all": of any) at random, and how many there are. Ties choose nothing.

    The choice depends on the pairs' names and the seed, not on their order.
    """
    if split not in (*SPLITS, "all"):
        raise MapoError(f"--split {split!r} is not known. Known: {', '.join(SPLITS)}, all.")
    rows, names = choose(pairs, split, "drop", "--split all", keep="").rows, pairs.table["id"].to_pylist()
    drawn = sorted(rows.tolist(), key=lambda row: hashlib.sha256(f"mismatch:{seed}:{names[row]}".encode()).digest())
    return [pairs[row] for row in drawn[:count]], len(rows)


def own_samples(
    model: str, pairs: Sequence[Pair], seeds: Sequence[int], folder: Path, how: Sampling, **told: Any
) -> list[ImageRow]:
    """A picture of every prompt and seed in ``folder``. Of prompts that differ in case the first stands for all.

    The model is ``told`` of what a :class:`mapo.sample.sample.Sampler` may be told.
    """
    prompts: dict[str, str] = {}
    for pair in pairs:
        prompts.setdefault(prompt_id(pair.prompt), pair.prompt)
    jobs = [(prompt, seed) for prompt in prompts.values() for seed in seeds]
    return Sampler(model, how.precision, **told).fill(folder, jobs, how, desc="own samples")


def gather(pairs: PairSet, members: Sequence[Pair], folder: Path, rows: Sequence[ImageRow]) -> Material:
    """The pairs ``members`` with the own samples ``rows`` of ``folder``; no picture is read yet."""
    own: dict[str, list[str]] = {}
    for row in rows:
        own.setdefault(row.prompt_id, []).append(row.sha256)
    sides = {OWN: [own[prompt_id(pair.prompt)] for pair in members], CHOSEN: [[pair.chosen] for pair in members]}
    if pairs.has_rejected:
        sides[REJECTED] = [[pair.rejected] for pair in members if pair.rejected]
    pictures = {
        name: partial(pairs.image, name)
        for side in pairs.sides
        for (name,) in sides[side]
        if side == CHOSEN or pairs.keeps(name)
    }
    return Material(members, sides, {**pictures, **{row.sha256: partial(_own, folder, row) for row in rows}})


def _own(folder: Path, row: ImageRow) -> Image:
    return decode_picture(read_picture(folder, row))
