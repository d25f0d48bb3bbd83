"""What a report rests on: pictures of the same prompts and seeds before and after, and the scores of just these."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mapo.errors import MapoError, count, suggest
from mapo.sample.folder import Key, Rows
from mapo.score.scorers import FLAWS, SCORERS
from mapo.score.table import SCHEMA, read_scores
from mapo.statistics import Interval, PairedScores, is_binary, mean, mean_difference, paired, win_rate

PROMPT_FOLLOWING = "prompt_following"
FOLLOWING = (PROMPT_FOLLOWING, "clip_score", "siglip_score")  # metrics of how well a picture fits its prompt
GUARDS = "guards"  # a scorer whose metrics have no better or worse
PEOPLE, PREFERENCE = "people", "human_preference"  # what the votes of people are called beside scorers and metrics
SAMPLING = ("sampler", "steps", "guidance", "prefix", "negative_prompt", "width", "height")


@dataclass(frozen=True)
class Panel:
    """The people behind a comparison, without their names. ``shares``: votes and share for after of each, most first.

    ``votes`` are those that count, ``ties`` and ``both_bad`` of them count half; ``skipped`` ones do not count.
    """

    votes: int
    ties: int
    both_bad: int
    skipped: int
    shares: list[tuple[int, float]]
    also_made_pairs: int  # how many of them also labelled the training pairs


@dataclass(frozen=True)
class Comparison:
    """One scorer's metric before and after. ``win`` counts a lower score as better when ``lower_is_better``."""

    scorer: str
    metric: str
    version: str
    lower_is_better: bool
    made_pairs: bool  # the scorer also made or filtered the training pairs
    rate: bool  # every value is 0 or 1
    pairs: list[PairedScores]
    missing: int  # pairs that have no number
    unnumbered: tuple[int, int]  # pictures before and after that the scorer was asked about and gave no number
    win: Interval
    before: Interval
    after: Interval
    difference: Interval
    panel: Panel | None = None  # where people are the scorer: a pair's numbers are their shares for either picture

    def gain(self, pair: PairedScores) -> float:
        """How much better after is than before, in the scorer's unit."""
        return -pair.difference if self.lower_is_better else pair.difference


@dataclass(frozen=True)
class Guard:
    """A guard's mean before and after. ``spread``: the standard deviation, over prompts, of a prompt's mean before.

    NaN where there is one prompt only.
    """

    metric: str
    pairs: list[PairedScores]
    before: Interval
    after: Interval
    difference: Interval
    spread: float

    @property
    def shift(self) -> float:
        """How many spreads the mean has moved; infinite where nothing differed before."""
        if self.spread == 0:
            return math.copysign(math.inf, self.difference.value) if self.difference.value else 0.0
        return self.difference.value / self.spread

    @property
    def warns(self) -> bool:
        """Whether the mean has moved, and by more than the spread."""
        return self.difference.conclusive and abs(self.shift) > 1


def read_evidence(
    paths: Iterable[Path], before: Rows, after: Rows, may_be_empty: bool = False, scorers: Collection[str] | None = None
) -> tuple[pa.Table, pa.Table]:
    """The rows of all score files, dealt to the pictures they were given to; a row said twice counts once.

    A picture that training left as it was is on both sides. A table that otherwise speaks of one side alone says
    nothing of it on the other, where its prompt may have other pictures and so another diversity.

    Where ``scorers`` are named, rows of others take no part.
    """
    sides: tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]] = ({}, {})
    for path in paths:
        told = [row for row in read_scores(path).to_pylist() if scorers is None or row["scorer"] in scorers]
        homes = [_homes(row, before, after) for row in told]
        alone = {of[0] for of in homes if len(of) == 1}
        for row, of in zip(told, homes, strict=True):
            for i in alone if of and len(alone) == 1 else of:
                sides[i][tuple(v for k, v in row.items() if k not in ("model", "prompt"))] = row
        strange = [row for row, of in zip(told, homes, strict=True) if not of]
        if strange:
            first = strange[0]
            known = (first["prompt_id"], first["seed"]) in before
            why = "was scored as a picture that has changed since" if known else "is in neither folder"
            raise MapoError(
                f"{path} has {count(len(strange), 'score')} of other pictures than these: {first['prompt']!r} "
                f"seed {first['seed']} {why}. Run `mapo score` on both folders again."
            )
    if not (sides[0] or sides[1] or may_be_empty):
        raise MapoError("There are no scores of these pictures. Run `mapo score` on both folders first.")
    return pa.Table.from_pylist(list(sides[0].values()), SCHEMA), pa.Table.from_pylist(list(sides[1].values()), SCHEMA)


def _homes(row: Mapping[str, Any], before: Rows, after: Rows) -> list[int]:
    """The sides that have the picture of a score: 0 before, 1 after."""
    key = (row["prompt_id"], row["seed"])
    return [i for i, rows in enumerate((before, after)) if key in rows and rows[key].sha256 == row["image"]]


def compare(
    before: pa.Table, after: pa.Table, pictures: int, goal: str | None, judges_of_pairs: Collection[str]
) -> tuple[list[Comparison], list[str]]:
    """Every scorer's every metric: the goal's first, then prompt following, then by name; and a sentence on each that
    gave no pair a number. Guards are not among them.

    ``pictures`` counts the pairs of pictures, so that unscored ones are noticed. ``goal`` is a metric, with ``-`` in
    front when lower is better; of ``FLAWS`` lower is better where they are not the goal. Raises MapoError when no
    scorer gave it, and when a picture was scored before and not after or the other way round.
    """
    wanted = goal.removeprefix("-") if goal else None
    rows = [*before.select(["scorer", "metric"]).to_pylist(), *after.select(["scorer", "metric"]).to_pylist()]
    names = {(r["scorer"], r["metric"]) for r in rows}
    scored = {n for n in names if n[0] != GUARDS}
    if wanted and wanted not in {m for _, m in scored}:
        if (GUARDS, wanted) in names:
            raise MapoError(f"--goal: {wanted} is a guard, which has no better or worse. Name a scorer's metric.")
        if wanted in SCORERS:
            raise MapoError(
                f"--goal: {wanted} has scored none of these pictures. Let it score both folders, with `mapo score "
                f"IMAGES --scorer {wanted} --out FILE.parquet`, and give both files as --scores."
            )
        raise MapoError(f"--goal: no scorer gave {wanted!r}. {suggest(wanted, {m for _, m in scored})}")
    order = sorted(scored, key=lambda n: (n[1] != wanted, n[1] not in FOLLOWING, n[1], n[0] in judges_of_pairs, n[0]))
    found: list[Comparison] = []
    without_numbers: list[str] = []
    for name in order:
        pairs, unnumbered = gather(before, after, name)
        if pairs:
            lower, made = goal == f"-{name[1]}" or name[1] in FLAWS - {goal}, name[0] in judges_of_pairs
            found.append(_compare(name, pairs, _version(before, name[0]), pictures, unnumbered, lower, made))
        else:
            without_numbers.append(f"{name[0]} gave no pair of pictures a number for {name[1]}, so it is not shown.")
    if wanted and wanted not in {c.metric for c in found}:
        raise MapoError(f"--goal: no pair of pictures has a number for {wanted!r}: its scorer gave none.")
    return found, without_numbers


def gather(before: pa.Table, after: pa.Table, name: tuple[str, str]) -> tuple[list[PairedScores], tuple[int, int]]:
    """The pairs of a scorer's metric, and how many pictures before and after it was asked about and gave no number.

    No pairs where it gave none a number.
    """
    scorer, metric = name
    sides: list[dict[Key, Any]] = []
    for table in (before, after):
        mask = pc.and_(pc.equal(table["scorer"], scorer), pc.equal(table["metric"], metric))
        rows = table.filter(mask).select(["prompt_id", "seed", "value"]).to_pylist()
        sides.append({(r["prompt_id"], r["seed"]): r["value"] for r in rows})
    if lonely := sides[0].keys() ^ sides[1].keys():
        where = ", ".join(f"prompt {k[0]} seed {k[1]}" for k in sorted(lonely)[:5])
        raise MapoError(
            f"{scorer} {metric} was given to only one picture of {count(len(lonely), 'pair')} ({where}). "
            "Run `mapo score` on both folders again."
        )
    nulls = [{k for k, v in side.items() if v is None} for side in sides]
    there = sides[0].keys() - nulls[0] - nulls[1]
    return paired(before, after, scorer, metric) if there else [], (len(nulls[0]), len(nulls[1]))


def _version(table: pa.Table, scorer: str) -> str:
    row = next(r for r in table.select(["scorer", "version", "revision"]).to_pylist() if r["scorer"] == scorer)
    return " ".join(v for v in (row["version"], row["revision"]) if v)


def _compare(
    name: tuple[str, str],
    pairs: list[PairedScores],
    version: str,
    pictures: int,
    unnumbered: tuple[int, int],
    lower: bool,
    made_pairs: bool,
) -> Comparison:
    first, second = [p.before for p in pairs], [p.after for p in pairs]
    clusters = [p.prompt_id for p in pairs]
    return Comparison(
        scorer=name[0],
        metric=name[1],
        version=version,
        lower_is_better=lower,
        made_pairs=made_pairs,
        rate=is_binary([*first, *second]),
        pairs=pairs,
        missing=pictures - len(pairs),
        unnumbered=unnumbered,
        win=win_rate([-p.difference if lower else p.difference for p in pairs], clusters),
        before=mean(first, clusters),
        after=mean(second, clusters),
        difference=mean_difference(first, second, clusters),
    )


def of_pairs(comparison: Comparison, pairs: list[PairedScores]) -> Comparison:
    """The same over some of its pairs."""
    c, name = comparison, (comparison.scorer, comparison.metric)
    return replace(_compare(name, pairs, c.version, len(pairs), (0, 0), c.lower_is_better, c.made_pairs), rate=c.rate)


def without_prompts(rows: Rows, prompt_ids: Collection[str]) -> Rows:
    """The pictures of all other prompts."""
    return {k: r for k, r in rows.items() if k[0] not in prompt_ids}


def scores_without(table: pa.Table, prompt_ids: Collection[str]) -> pa.Table:
    """The scores of all other prompts."""
    return table.filter(pc.invert(pc.is_in(table["prompt_id"], pa.array(sorted(prompt_ids), pa.string()))))


def cautions(before: Rows, after: Rows, comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader must know before believing the numbers, one sentence each."""
    found = _about_sampling(before, after)
    equal = sum(before[k].sha256 == after[k].sha256 for k in before)
    if equal:
        found.append(
            f"{equal} of {count(len(before), 'pair')} {'shows' if equal == 1 else 'show'} the very same picture "
            f"before and after; {'it counts as a tie' if equal == 1 else 'they count as ties'}."
        )
    for c in comparisons:
        if sum(c.unnumbered):
            without, lacking = c.unnumbered
            found.append(
                f"{c.scorer}: {count(without + lacking, 'picture')} without a number for {c.metric} ({without} before, "
                f"{lacking} after); {c.missing} of {count(c.missing + len(c.pairs), 'pair')} "
                f"{'is' if c.missing == 1 else 'are'} left out of it."
            )
        elif c.missing and c.panel is None:
            found.append(f"{c.scorer} gave no {c.metric} to {c.missing} of {count(c.missing + len(c.pairs), 'pair')}.")
    found += _about_judges(comparisons)
    return found


def _about_sampling(before: Rows, after: Rows) -> list[str]:
    sides = {"before": before, "after": after}
    foreign = [side for side, rows in sides.items() if any(row.foreign for row in rows.values())]
    if foreign:
        return _about_foreign(before, after, " and ".join(foreign))
    found: list[str] = []
    for name in SAMPLING:
        first, second = ({getattr(r, name) for r in rows.values()} for rows in (before, after))
        if first != second:
            words = [", ".join(repr(v) for v in sorted(values)) for values in (first, second)]
            found.append(
                f"Before and after were sampled differently: {name.replace('_', ' ')} is {words[0]} before and "
                f"{words[1]} after, so a difference need not come from training."
            )
    noise = sum(before[k].noise_seed != after[k].noise_seed for k in before)
    if noise:
        found.append(
            f"{noise} of {count(len(before), 'pair')} did not start from the same noise, which widens the intervals."
        )
    return found


def _about_foreign(before: Rows, after: Rows, sides: str) -> list[str]:
    """Where another program made the pictures of a side or of both, as ``sides`` says."""
    found = [
        f"Another program made the pictures {sides}. How, and on which prompts its model was trained, is not known, so "
        "a difference need not come from training."
    ]
    if any(row.numbered for rows in (before, after) for row in rows.values()):
        found.append(
            "Seeds are not known, so the pictures of a prompt are compared by their number, in the order of their "
            "names. They did not start from the same noise, which widens the intervals."
        )
    else:
        found.append("Whether equal seeds began from the same noise is not known; where not, intervals are wider.")
    sizes = [sorted({(row.width, row.height) for row in rows.values()}) for rows in (before, after)]
    if sizes[0] != sizes[1]:
        words = [", ".join(f"{w} × {h}" for w, h in s) if len(s) <= 3 else f"{len(s)} sizes" for s in sizes]
        found.append(f"The pictures differ in size: {words[0]} before and {words[1]} after.")
    return found


def _about_judges(comparisons: Sequence[Comparison]) -> list[str]:
    found: list[str] = []
    for judge in sorted({c.scorer for c in comparisons if c.made_pairs}):
        found.append(
            f"{judge} also made or filtered the training pairs. Its numbers show that training did what "
            "it was told to, not that the pictures are better; they are marked, and stay out of the verdict where "
            "another scorer can speak."
        )
    for c in comparisons:
        if c.panel and c.panel.also_made_pairs:
            found.append(
                f"{c.panel.also_made_pairs} of {count(len(c.panel.shares), 'annotator')} also labelled training pairs."
            )
    return found
