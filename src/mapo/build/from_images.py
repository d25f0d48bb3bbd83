"""Pairs of pictures that other programs made: of each prompt judges rank what is there, and choose.

The numbers of the judges lie in the work folder of a build (:mod:`mapo.build.work`), so the same command goes on where
it was stopped, and several processes can share the judging.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mapo import progress
from mapo.build.groups import Candidate, Group, Groups, left_out
from mapo.build.judge import Filter, choose, judges_of
from mapo.build.recipe import Recipe
from mapo.build.work import Work, forget, forgotten_if_nothing_is_made, is_made, open_work
from mapo.devices import use_own_device
from mapo.errors import MapoError, count
from mapo.files import sha256
from mapo.pairs.pairs import PairWriter
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import NUMBERED, ImageRow
from mapo.shards import FINISHING, WHOLE, Shard, in_shares, refuse_existing

LOG = logging.getLogger(__name__)

RANKINGS = ("best-worst", "all")
JUDGED_AT_ONCE = 32  # pictures
UNSAFE = ("nsfw", "unsafe")  # metrics of judges that look for what not everybody wants to see


@dataclass(frozen=True)
class Judging:
    """Who judges, and which pairs of a ranking are made."""

    judges: Sequence[Filter]
    rankings: str

    @property
    def unsafe(self) -> bool:
        """Whether a judge looks for what is unsafe, so that one side of the set is."""
        return any(judge.metric in UNSAFE for judge in self.judges)


@dataclass(frozen=True)
class FramedPicture:
    """A picture in its frame: the row by which judges' numbers are kept, and its bytes."""

    picture: Candidate
    row: ImageRow
    png: bytes


Values = list[list[float | None]]  # a list for each judge, with a number for each picture


def check_asked(judges: Sequence[Filter], rankings: str = "best-worst") -> Judging:
    """What is asked for; MapoError where it makes no sense. Judges that are one scorer share it."""
    if rankings not in RANKINGS:
        raise MapoError(f"--rankings is {rankings!r}; it must be {' or '.join(RANKINGS)}.")
    if all(judge.threshold is not None for judge in judges):
        raise MapoError(
            "--judge: all have a threshold, so nobody orders the pictures of a prompt. Name a judge without one, as "
            "SCORER:METRIC."
        )
    return Judging(judges_of(_ranking(2), judges), rankings)


def build_from_images(groups: Groups, out: Path, asked: Judging, *, shard: Shard = WHOLE) -> dict[str, int] | None:
    """Make the set ``out`` of the pictures of each group; its counts, or None where other shards are not done yet.

    ``best-worst``: the best picture of a prompt against its worst, by the mean of the judges' ranks, where every judge
    prefers the one to the other. ``all``: every two pictures on which all judges agree. The pairs of a prompt weigh one
    together. A picture to which a judge gives no number is left out.
    """
    refuse_existing(out)
    folder = open_work(out, {"from_images": groups.fingerprint, "sensitive": groups.sensitive})
    portions = list(_portions(groups.groups))
    use_own_device()

    def share() -> None:
        mine = range(shard[0], len(portions), shard[1])
        for _ in _judged(portions, Work(folder, shard, []), asked, mine):
            pass

    def gather() -> dict[str, int] | None:
        if is_made(out, folder, alone=shard[1] == 1):
            return None
        counts = _write(groups, out, asked, folder, portions)
        forget(folder)
        return counts

    with forgotten_if_nothing_is_made(folder):
        counts = in_shares(folder, shard, share, gather)
    for note in dict.fromkeys(note for judge in asked.judges for note in judge.scorer.notes()):
        LOG.info(note)
    return counts


def told(counts: dict[str, int]) -> str:
    """What :func:`build_from_images` counted, in words."""
    said = [
        f"{count(counts['pairs'], 'pair')} of {count(counts['pictures'], 'picture')} and "
        f"{count(counts['prompts'], 'prompt')}"
    ]
    more = {
        "judged_out": f"{counts['judged_out']:,} judged out",
        "unjudged": f"{count(counts['unjudged'], 'picture')} without a judge's number",
    }
    return ", ".join([*said, *(words for name, words in more.items() if counts[name]), *left_out(counts)])


def _portions(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Whole groups, as many as it takes for the pictures of one call of a judge."""
    portion: list[Group] = []
    for group in groups:
        portion.append(group)
        if sum(len(one.pictures) for one in portion) >= JUDGED_AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion


def _judged(
    portions: Sequence[Sequence[Group]], work: Work, asked: Judging, numbers: Sequence[int]
) -> Iterator[list[tuple[Group, list[FramedPicture], Values]]]:
    """The groups of each of these portions with their pictures and what the judges say of them."""
    total = sum(len(group.pictures) for number in numbers for group in portions[number])
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress.bar(total=total, desc="judge", unit="picture") as bar:
        for number in numbers:
            found: list[tuple[Group, list[FramedPicture], Values]] = []
            seen = [_seen(group, pool) for group in portions[number]]
            said = [_said(judge, work, f"{number:07d}", list(itertools.chain(*seen))) for judge in asked.judges]
            for group, pictures in zip(portions[number], seen, strict=True):
                values = [[known[one.row.sha256, one.row.prompt_id] for one in pictures] for known in said]
                found.append((group, pictures, values))
            yield found
            bar.update(sum(len(group.pictures) for group in portions[number]))


def _said(judge: Filter, work: Work, table: str, seen: Sequence[FramedPicture]) -> dict[tuple[str, str], float | None]:
    """The judge's number for each picture and prompt, found or asked for now."""
    found: dict[tuple[str, str], float | None] = {}
    for start in range(0, len(seen), JUDGED_AT_ONCE):
        some = seen[start : start + JUDGED_AT_ONCE]
        rows = [one.row for one in some]
        known = work.judged(
            f"{table}-{start:05d}", judge.scorer, rows, [row.prompt for row in rows], partial(_pngs, some)
        )
        found |= {(row.sha256, row.prompt_id): known[row.sha256, row.prompt_id, judge.metric] for row in rows}
    return found


def _pngs(seen: Sequence[FramedPicture]) -> list[bytes]:
    return [one.png for one in seen]


def _seen(group: Group, pool: ThreadPoolExecutor) -> list[FramedPicture]:
    """The pictures of a group in their frame; those that are the same there count once."""
    pngs = group.framed(pool, group.pictures)
    found: dict[str, FramedPicture] = {}
    for place, (one, png) in enumerate(zip(group.pictures, pngs, strict=True)):
        name = sha256(png)
        row = ImageRow(one.said.file, prompt_id(group.prompt), group.prompt, place, NUMBERED, name, one.said.source)
        found.setdefault(name, FramedPicture(one, row, png))
    return list(found.values())


def _ranking(candidates: int) -> Recipe:
    return Recipe(name="best-of-k", about="", candidates=candidates, seeds="other")


def selected(judges: Sequence[Filter], values: Values, rankings: str) -> tuple[list[tuple[int, int]], int]:
    """The places (chosen, rejected) of the pairs that are made of some pictures, and how many judges did not let pass.

    ``values`` has a list for each judge, with a number for each picture.
    """
    places = range(len(values[0]))
    among = itertools.combinations(places, 2) if rankings == "all" else [tuple(places)]
    found, out = [], 0
    for those in among:
        recipe = _ranking(len(those))
        place = dict(zip(recipe.prefixes, those, strict=True))
        sides = choose(recipe, judges, [{side: row[k] for side, k in place.items()} for row in values])
        if sides is None:
            out += 1
        else:
            found.append((place[sides[0]], place[sides[1]]))
    return found, out


def _write(
    groups: Groups, out: Path, asked: Judging, folder: Path, portions: Sequence[Sequence[Group]]
) -> dict[str, int]:
    """The set, in the order of the files."""
    provenance = groups.provenance("pictures that other programs made, ranked by judges")
    provenance |= {"judges": [str(judge) for judge in asked.judges], "rankings": asked.rankings}
    sums = Counter(dict.fromkeys(("judged_out", "unjudged"), 0))
    with PairWriter(out, provenance, sensitive=groups.sensitive) as writer:
        for judged in _judged(portions, Work(folder, WHOLE, []), asked, range(len(portions))):
            for group, seen, values in judged:
                _add(writer, group, seen, values, asked, sums)
        if not writer.count:
            raise MapoError(
                f"No pair was kept of {count(len(groups.groups), 'prompt')} in {groups.folder} "
                f"({sums['judged_out']:,} judged out, {count(sums['unjudged'], 'picture')} without a judge's number). "
                f"What the judges said is in {folder}, where the same command with another --judge goes on."
            )
        counts = {"pairs": writer.count, **groups.counts, **sums}
        writer.provenance["counts"] = counts
        (folder / FINISHING).touch()
    return counts


def _add(
    writer: PairWriter, group: Group, seen: Sequence[FramedPicture], values: Values, asked: Judging, sums: Counter[str]
) -> None:
    """The pairs of a group."""
    whole = [k for k in range(len(seen)) if all(row[k] is not None for row in values)]
    sums["unjudged"] += len(seen) - len(whole)
    if len(whole) < 2:
        return
    pairs, out = selected(asked.judges, [[row[k] for k in whole] for row in values], asked.rankings)
    sums["judged_out"] += out
    for places in pairs:
        chosen, rejected = (whole[place] for place in places)
        meta: dict[str, Any] = {"chosen": seen[chosen].picture.told, "rejected": seen[rejected].picture.told}
        meta["judges"] = [
            judge.verdict(row[chosen], row[rejected]) for judge, row in zip(asked.judges, values, strict=True)
        ]
        meta["candidates"] = len(seen)
        writer.add_pair(
            group.prompt, seen[chosen].png, seen[rejected].png, weight=1 / len(pairs),
            group=prompt_id(group.prompt), source=writer.provenance["folder"], meta=meta,
        )  # fmt: skip
