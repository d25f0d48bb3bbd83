"""What a report rests on: pictures of the same prompts and seeds before and after, and the scores of just these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mapo.errors import MapoError, suggest
from mapo.images import ImageRow, read_images
from mapo.scores import SCHEMA, read_scores
from mapo.winrate import Interval, Pair, is_binary, mean, mean_difference, paired, win_rate

PROMPT_FOLLOWING = "prompt_following"
SAMPLING = ("sampler", "steps", "guidance", "prefix", "negative_prompt", "width", "height")

Key = tuple[str, int]
Rows = dict[Key, ImageRow]


@dataclass(frozen=True)
class Comparison:
    """One scorer's metric before and after. ``win`` counts a lower score as better when ``lower_is_better``."""

    scorer: str
    metric: str
    version: str
    lower_is_better: bool
    made_pairs: bool  # the scorer also made or filtered the training pairs
    rate: bool  # every value is 0 or 1
    pairs: list[Pair]
    missing: int  # pairs that the scorer gave no number
    win: Interval
    before: Interval
    after: Interval
    difference: Interval

    def gain(self, pair: Pair) -> float:
        """How much better after is than before, in the scorer's unit."""
        return -pair.difference if self.lower_is_better else pair.difference


def read_pictures(before: Path, after: Path) -> tuple[Rows, Rows]:
    """The pictures of two folders by prompt and seed; both hold the same keys, in before's order."""
    first, second = (_by_key(folder) for folder in (before, after))
    keys = [k for k in first if k in second]
    if not keys:
        same = {k[0] for k in first} & {k[0] for k in second}
        why = "the prompts are the same, but the seeds differ" if same else "they have no prompt in common"
        raise MapoError(
            f"{before} and {after} cannot be compared: {why}. "
            "Run `mapo sample` for both with the same prompts and seeds."
        )
    for have, lack, rows, others in ((before, after, first, second), (after, before, second, first)):
        lonely = [r for k, r in rows.items() if k not in others]
        if lonely:
            raise MapoError(
                f"{lack} lacks {len(lonely)} pictures that {have} has: {_name(lonely)}. "
                "Run `mapo sample` for both with the same prompts and seeds."
            )
    for key in keys:
        if first[key].prompt != second[key].prompt:
            raise MapoError(
                f"Prompt {key[0]} is {first[key].prompt!r} in {before} and {second[key].prompt!r} in {after}. "
                "Sample both from the same prompts."
            )
    return first, {k: second[k] for k in keys}


def _by_key(folder: Path) -> Rows:
    rows: Rows = {}
    for row in read_images(folder):
        if (row.prompt_id, row.seed) in rows:
            raise MapoError(
                f"{folder} has two pictures for {_name([row])}. Keep the pictures of one model in a folder."
            )
        rows[row.prompt_id, row.seed] = row
    if not rows:
        raise MapoError(f"{folder} has no pictures in its manifest.jsonl. Make some with `mapo sample`.")
    return rows


def _name(rows: Sequence[ImageRow]) -> str:
    named = "; ".join(f"{r.prompt!r} seed {r.seed}" for r in rows[:5])
    return f"{named} and {len(rows) - 5} more" if len(rows) > 5 else named


def read_evidence(paths: Iterable[Path], before: Rows, after: Rows) -> tuple[pa.Table, pa.Table]:
    """The rows of all score files, dealt to the pictures they were given to; a row said twice counts once."""
    sides: tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]] = ({}, {})
    for path in paths:
        strange: list[dict[str, Any]] = []
        for row in read_scores(path).to_pylist():
            key = (row["prompt_id"], row["seed"])
            homes = [i for i, rows in enumerate((before, after)) if key in rows and rows[key].sha256 == row["image"]]
            for i in homes:  # both, where training left the picture as it was
                sides[i][tuple(v for k, v in row.items() if k not in ("model", "prompt"))] = row
            if not homes:
                strange.append(row)
        if strange:
            first = strange[0]
            known = (first["prompt_id"], first["seed"]) in before
            why = "was scored as a picture that has changed since" if known else "is in neither folder"
            raise MapoError(
                f"{path} has {len(strange)} scores of other pictures than these: {first['prompt']!r} "
                f"seed {first['seed']} {why}. Run `mapo score` on both folders again."
            )
    if not (sides[0] or sides[1]):
        raise MapoError("There are no scores of these pictures. Run `mapo score` on both folders first.")
    return pa.Table.from_pylist(list(sides[0].values()), SCHEMA), pa.Table.from_pylist(list(sides[1].values()), SCHEMA)


def compare(
    before: pa.Table, after: pa.Table, pictures: int, goal: str | None, judge_of_pairs: str | None
) -> list[Comparison]:
    """Every scorer's every metric: the goal's first, then prompt following, then by name.

    ``pictures`` counts the pairs of pictures, so that unscored ones are noticed. ``goal`` is a metric, with ``-`` in
    front when lower is better. Raises MapoError when no scorer gave it, and when a picture was scored before and not
    after or the other way round.
    """
    wanted = goal.removeprefix("-") if goal else None
    names: dict[tuple[str, str], set[Key]] = {}
    nulls: dict[tuple[str, str], set[Key]] = {}  # pictures that the scorer gave no number
    for table in (before, after):
        for row in table.select(["scorer", "metric", "prompt_id", "seed", "value"]).to_pylist():
            found = nulls if row["value"] is None else names
            found.setdefault((row["scorer"], row["metric"]), set()).add((row["prompt_id"], row["seed"]))
    names = {name: left for name, keys in names.items() if (left := keys - nulls.get(name, set()))}
    if wanted and wanted not in {m for _, m in names}:
        raise MapoError(f"--goal: no scorer gave {wanted!r}. {suggest(wanted, {m for _, m in names})}")
    order = sorted(names, key=lambda n: (n[1] != wanted, n[1] != PROMPT_FOLLOWING, n[1], n[0] == judge_of_pairs, n[0]))
    return [
        _compare(before, after, name, names[name], pictures, goal == f"-{name[1]}", judge_of_pairs) for name in order
    ]


def _compare(
    before: pa.Table,
    after: pa.Table,
    name: tuple[str, str],
    keys: set[Key],
    pictures: int,
    lower: bool,
    judge: str | None,
) -> Comparison:
    scorer, metric = name
    pairs = paired(before, after, scorer, metric)
    if len(pairs) < len(keys):
        have = {(p.prompt_id, p.seed) for p in pairs}
        where = ", ".join(f"prompt {k[0]} seed {k[1]}" for k in sorted(keys - have)[:5])
        raise MapoError(
            f"{scorer} {metric} was given to only one picture of {len(keys) - len(pairs)} pairs ({where}). "
            "Run `mapo score` on both folders again."
        )
    first, second = [p.before for p in pairs], [p.after for p in pairs]
    clusters = [p.prompt_id for p in pairs]
    version = next(r for r in before.select(["scorer", "version", "revision"]).to_pylist() if r["scorer"] == scorer)
    return Comparison(
        scorer=scorer,
        metric=metric,
        version=" ".join(v for v in (version["version"], version["revision"]) if v),
        lower_is_better=lower,
        made_pairs=scorer == judge,
        rate=is_binary([*first, *second]),
        pairs=pairs,
        missing=pictures - len(pairs),
        win=win_rate([-p.difference if lower else p.difference for p in pairs], clusters),
        before=mean(first, clusters),
        after=mean(second, clusters),
        difference=mean_difference(first, second, clusters),
    )


def cautions(before: Rows, after: Rows, comparisons: Sequence[Comparison], judge_of_pairs: str | None) -> list[str]:
    """What a reader must know before believing the numbers, one sentence each."""
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
        found.append(f"{noise} of {len(before)} pairs did not start from the same noise, which widens the intervals.")
    equal = sum(before[k].sha256 == after[k].sha256 for k in before)
    if equal:
        found.append(f"{equal} of {len(before)} pairs show the very same picture before and after; they count as ties.")
    for c in comparisons:
        if c.missing:
            found.append(f"{c.scorer} gave no {c.metric} to {c.missing} of {c.missing + len(c.pairs)} pairs.")
    if judge_of_pairs and any(c.made_pairs for c in comparisons):
        found.append(
            f"{judge_of_pairs} also made or filtered the training pairs. Its numbers show that training did what "
            "it was told to, not that the pictures are better; they are marked, and stay out of the verdict where "
            "another scorer can speak."
        )
    return found
