"""What is compared: some pairs of a set, the model's own samples of their prompts, and where the pictures are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mapo.encode.buckets import framed, framing
from mapo.encode.frame import Frame, square
from mapo.encode.seen import choose
from mapo.errors import MapoError, count
from mapo.pairs.pairs import Pair, PairSet, decode_picture
from mapo.pairs.splits import SPLITS, prompt_id
from mapo.sample.folder import ImageRow, read_picture
from mapo.sample.sample import Sampler, Sampling

OWN, CHOSEN, REJECTED = "own", "chosen", "rejected"


@dataclass(frozen=True)
class Material:
    """``sides`` holds, for each pair, the names of its pictures: several own samples, one chosen, and one rejected,
    unless the set has none. A name is the hash of a picture; in a frame of ``frames``, one for each pair, which is not
    the square, that of the picture in it."""

    pairs: Sequence[Pair]
    sides: Mapping[str, Sequence[Sequence[str]]]
    pictures: Mapping[str, Callable[[], Image]]  # by name; a set may keep rejected ones as latents only
    frames: Sequence[Frame]

    def in_frames(self) -> dict[Frame, list[str]]:
        """The names of the pictures that are there, by their frames."""
        rows = ((row, frame) for of in self.sides.values() for row, frame in zip(of, self.frames, strict=True))
        of_name = {name: frame for row, frame in rows for name in row}
        found: dict[Frame, list[str]] = {}
        for name in self.pictures:
            found.setdefault(of_name[name], []).append(name)
        return found

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
        same = sum(name in own for pair in self.pairs for name in (pair.chosen, pair.rejected))
        are = "is an own sample itself" if same == 1 else "are the own samples themselves"
        told = [f"{count(same, 'picture')} of the set {are}: choose other seeds."] if same else []
        if REJECTED in self.sides and REJECTED not in self.sides_in(self.pictures):
            used = "their latents were used" if REJECTED in self.sides_in(encoded) else "they were left out"
            told.append(f"Not all rejected pictures are in the set; {used}.")
        if len(set(self.frames)) > 1:
            told.append(f"Seen in {len(set(self.frames))} frames, as data.buckets trains them.")
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


def frames_of_pairs(pairs: PairSet, members: Sequence[Pair], among: tuple[Frame, ...]) -> list[Frame]:
    """The frame ``among`` these, the square first, in which a training would see each of the ``members``."""
    if len(among) > 1 and not pairs.keeps_all():
        raise MapoError(
            f"{pairs.folder} keeps rejected pictures only as latents of a square, so it cannot be seen in buckets. "
            "Leave --buckets out."
        )
    seen_in = framing(pairs, among)
    place = {name: row for row, name in enumerate(pairs.table["id"].to_pylist())}
    return [seen_in.of(place[pair.id]) for pair in members]


def own_samples(
    model: str, pairs: Sequence[Pair], seeds: Sequence[int], folder: Path, how: Sampling,
    frames: Sequence[Frame] = (), **told: Any,
) -> list[ImageRow]:  # fmt: skip
    """A picture of every prompt and seed in ``folder``. Of prompts that differ in case the first stands for all.

    With ``frames``, one for each pair, it is drawn in that of its pair, and lies in a folder of that name. The model is
    ``told`` of what a :class:`mapo.sample.sample.Sampler` may be told.
    """
    sampler = Sampler(model, how.precision, **told)
    if not frames:
        return sampler.fill(folder, _jobs(pairs, seeds), how, desc="own samples")
    rows = []
    for frame in dict.fromkeys(frames):
        jobs = _jobs([pair for pair, own in zip(pairs, frames, strict=True) if own == frame], seeds)
        name, sized = f"{frame.width}x{frame.height}", replace(how, width=frame.width, height=frame.height)
        drawn = sampler.fill(folder / name, jobs, sized, desc=f"own samples {frame}")
        rows += [replace(row, file=f"{name}/{row.file}") for row in drawn]
    return rows


def _jobs(pairs: Sequence[Pair], seeds: Sequence[int]) -> list[tuple[str, int]]:
    prompts: dict[str, str] = {}
    for pair in pairs:
        prompts.setdefault(prompt_id(pair.prompt), pair.prompt)
    return [(prompt, seed) for prompt in prompts.values() for seed in seeds]


def gather(
    pairs: PairSet, members: Sequence[Pair], folder: Path, rows: Sequence[ImageRow], side: int,
    frames: Sequence[Frame] = (),
) -> Material:  # fmt: skip
    """The pairs ``members`` with the own samples ``rows`` of ``folder``; no picture is read yet.

    Each pair is seen in its frame of ``frames``; without them all are, in the square of ``side`` pixels.
    """
    seen_in = frames or [square(side)] * len(members)
    own: dict[tuple[str, Frame], list[str]] = {}
    for row in rows:
        frame = Frame(row.height, row.width) if frames else square(side)
        own.setdefault((row.prompt_id, frame), []).append(row.sha256)
    sides = {OWN: [own[prompt_id(pair.prompt), frame] for pair, frame in zip(members, seen_in, strict=True)]}
    pictures: dict[str, Callable[[], Image]] = {}
    for of in pairs.sides:
        sides[of] = []
        for pair, frame in zip(members, seen_in, strict=True):
            picture = str(getattr(pair, of))
            sides[of].append([name := framed(picture, frame, side)])
            if of == CHOSEN or pairs.keeps(picture):
                pictures[name] = partial(pairs.image, picture)
    pictures |= {row.sha256: partial(_own, folder, row) for row in rows}
    return Material(members, sides, pictures, seen_in)


def _own(folder: Path, row: ImageRow) -> Image:
    return decode_picture(read_picture(folder, row))
