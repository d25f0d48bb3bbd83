"""What the votes come to: how far annotators agree, and a set whose preferences are theirs."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mapo import __version__
from mapo.errors import MapoError, count, to_install
from mapo.files import prepare_out, replacing
from mapo.label.blind import pair_key
from mapo.label.grids import on_pairs
from mapo.label.votes import Vote, read_votes
from mapo.pairs.pairs import PAIR_SCHEMA, TIE, PairSet, pair_id
from mapo.pairs.places import NAME as PLACES
from mapo.shards import refuse_existing
from mapo.texts import read_json, write_json

VALUES = ("first", "second", "tie", "bad")  # first, second: the pictures of a pair, by the order of their hashes
RESAMPLES = 1_000


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha (nominal) over ``pairs`` pairs that two or more people judged, with its 95 % interval.

    ``alpha`` is None where it is not defined: no such pair, or all votes alike. The interval is None as well where
    nobody ever disagreed, as there is then nothing to resample.
    """

    alpha: float | None
    interval: tuple[float, float] | None
    pairs: int

    def __str__(self) -> str:
        if self.pairs == 0:
            return "Agreement cannot be measured: no pair was judged by two people."
        start = f"Krippendorff's alpha over the {count(self.pairs, 'pair')} that two or more people judged:"
        if self.alpha is None:
            return f"{start} not defined, as all their votes are the same."
        span = "no interval, as they never disagreed"
        if self.interval:
            span = f"95 % interval [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"
        return f"{start} {self.alpha:.2f}, {span}."


def value_counts(votes: Iterable[Vote]) -> NDArray[np.int64]:
    """How often each pair got each of VALUES: (pairs, 4). Skipped pairs are missing votes; both bad is a value.

    Pictures go by the order of their hashes and not by chosen and rejected: a set that is mostly right would else make
    any two annotators seem to agree by chance.
    """
    rows: dict[str, list[int]] = {}
    for vote in votes:
        if vote.vote == "skip":
            continue
        value = VALUES.index(vote.vote) if vote.better is None else int(vote.better == max(vote.left, vote.right))
        rows.setdefault(vote.pair, [0] * len(VALUES))[value] += 1
    return np.array(list(rows.values()), np.int64).reshape(-1, len(VALUES))


def agreement(votes: Iterable[Vote], seed: int = 0) -> Agreement:
    """Krippendorff's alpha with a bootstrap interval over pairs (percentiles of resampled pairs).

    The same votes come to the same numbers in whatever order they stand.
    """
    from mapo.statistics import percentiles

    counts = value_counts(votes)
    counts = counts[counts.sum(1) >= 2]
    counts = counts[np.lexsort(counts.T)]
    alpha = _alpha(counts)
    if math.isnan(alpha):
        return Agreement(None, None, len(counts))
    if (counts.max(1) == counts.sum(1)).all():
        return Agreement(alpha, None, len(counts))
    # a resample in which all votes are alike has no alpha, and is passed over
    return Agreement(alpha, percentiles(lambda rows: _alpha(counts[rows]), len(counts), RESAMPLES, seed), len(counts))


def _alpha(counts: NDArray[np.int64]) -> float:
    """NaN where all votes are alike, or where there are none."""
    if np.count_nonzero(counts.sum(0)) < 2:
        return math.nan
    try:
        import krippendorff
    except ModuleNotFoundError:
        raise MapoError(f"Agreement needs the package krippendorff. Install it with: {to_install('label')}") from None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def summarise(votes: Sequence[Vote], pairs: Collection[str]) -> str:
    """A table of votes per annotator on ``pairs`` (their keys), and the agreement between them."""
    votes = on_pairs(votes)
    others, votes = len(votes), [v for v in votes if v.pair in pairs]
    others -= len(votes)
    told = [f"{count(others, 'vote')} on pairs that are not here {_is(others)} left out."] if others else []
    if not votes:
        return "\n".join(["There are no votes yet.", *told])
    width = max(len("annotator"), *(len(v.annotator) for v in votes))
    lines = [f"{'annotator':<{width}}   votes  better   tie  both bad  skipped"]
    for name in sorted({v.annotator for v in votes}):
        kinds = Counter("better" if v.better else v.vote for v in votes if v.annotator == name)
        numbers = [kinds[k] for k in ("better", "tie", "bad", "skip")]
        lines.append("{:<{}}  {:>6}{:>8}{:>6}{:>10}{:>9}".format(name, width, sum(numbers), *numbers))
    judged = len({v.pair for v in votes if v.vote != "skip"})
    return "\n".join([*lines, *told, f"{judged} of {count(len(pairs), 'pair')} judged.", str(agreement(votes))])


# ------------------------------------------------------------------ the set that the votes make


@dataclass(frozen=True)
class Verdict:
    """What all annotators together say of a pair."""

    better: str  # of the two pictures; for a tie the one that was chosen before
    preference: float  # 0.5 … 1: the share of votes for it, ties half; votes of both bad and skips do not count
    votes: int  # how many these are
    bad: int


def verdict(votes: Iterable[Vote], chosen: str, rejected: str) -> Verdict | None:
    """The votes on one pair, put together; None when more than half of them say that both pictures are bad."""
    said = [v for v in votes if v.vote != "skip"]
    judged = [v for v in said if v.vote != "bad"]
    bad = len(said) - len(judged)
    if bad > len(judged):
        return None
    points = sum({chosen: 1.0, rejected: 0.0}.get(v.better or "", 0.5) for v in judged)
    most = max(points, len(judged) - points)
    return Verdict(chosen if points == most else rejected, most / len(judged), len(judged), bad)


def apply_votes(pairs: PairSet, out: Path, keep_ties: bool = False, keep_unlabeled: bool = False) -> dict[str, int]:
    """Write the set that the votes make of ``pairs`` to ``out``; the input is not touched. Returns counts.

    Preference is the share of votes for the better picture, which becomes chosen; weight is the number of votes that
    were counted, so that a set trains as if every vote were a pair of its own. Ties and pairs without a vote are left
    out unless kept (unlabelled ones as they are), pairs that most find bad on both sides always.
    """
    refuse_existing(out)
    pairs.refuse_without_rejected("mapo label")
    path = pairs.folder / "votes.jsonl"
    by_pair: dict[str, list[Vote]] = {}
    for vote in on_pairs(read_votes(path)):
        by_pair.setdefault(vote.pair, []).append(vote)
    if not by_pair:
        raise MapoError(f"{path} holds no votes. Cast some with: mapo label {pairs.folder}")
    counts = Counter(dict.fromkeys(("pairs", "swapped", "ties", "both_bad", "unlabeled", "repeats"), 0))
    rows: dict[str, dict[str, Any]] = {}
    used: dict[str, list[Vote]] = {}
    for row in pairs.table.to_pylist():
        key = pair_key(row["prompt"], row["chosen"], row["rejected"])
        used[key] = by_pair.get(key, [])
        new = _relabelled(row, used[key], counts, keep_ties, keep_unlabeled)
        if new is not None:
            counts["repeats"] += new["id"] in rows  # the set had the pair both ways round
            rows.setdefault(new["id"], new)
    if not rows:
        why = spoken(counts, keep_ties, keep_unlabeled).removeprefix("0 pairs; ")
        raise MapoError(f"The votes in {path} leave no pair: {why} Judge more pairs, or use --keep-….")
    counts["pairs"] = len(rows)
    _write(pairs, out, list(rows.values()), _provenance([v for votes in used.values() for v in votes], counts))
    return dict(counts)


def _relabelled(
    row: Mapping[str, Any], votes: Sequence[Vote], counts: Counter[str], keep_ties: bool, keep_unlabeled: bool
) -> dict[str, Any] | None:
    """The row as the votes have it, or None when it is left out; ``counts`` says why."""
    if all(v.vote == "skip" for v in votes):
        counts["unlabeled"] += 1
        return dict(row) if keep_unlabeled else None
    found = verdict(votes, row["chosen"], row["rejected"])
    if found is None:
        counts["both_bad"] += 1
        return None
    if found.preference == 0.5:
        counts["ties"] += 1
        if not keep_ties:
            return None
    meta = json.loads(row["meta"] or "{}")
    new = dict(row)
    if found.better == row["rejected"]:
        counts["swapped"] += row["preference"] != TIE  # of a tie nobody had said which is better
        new["chosen"], new["rejected"] = row["rejected"], row["chosen"]
        meta = exchanged(meta)
    meta["label"] = {"votes": found.votes, "both_bad": found.bad, "id_before": row["id"]}
    new["id"] = pair_id(row["prompt"], new["chosen"], new["rejected"])
    new["preference"], new["weight"] = found.preference, float(found.votes)
    return {**new, "meta": json.dumps(meta, ensure_ascii=False)}


def exchanged(meta: Any) -> Any:
    """``meta`` with what is said of the chosen and the rejected picture exchanged, however deep it lies."""
    if not isinstance(meta, dict):
        return meta
    own = "file" if any(key.startswith("rejected_") for key in meta) else None  # the chosen picture's, beside those
    return {_other(key, own): exchanged(value) for key, value in meta.items()}


def _other(key: str, own: str | None) -> str:
    """The name by which the same is said of the other picture; ``own`` is such a name, too."""
    if key == own:
        return "rejected_file"
    side, line, rest = key.partition("_")
    if side == "rejected" and rest == own:
        return rest
    return {"chosen": "rejected", "rejected": "chosen"}.get(side, side) + line + rest


def _provenance(votes: Sequence[Vote], counts: Mapping[str, int]) -> dict[str, Any]:
    """Numbers only: who the annotators are stays in votes.jsonl, as provenance is published with a set."""
    found = agreement(votes)
    each = sorted(Counter(v.annotator for v in votes).values(), reverse=True)
    return {
        "by": f"mapo label {__version__}",
        "annotators": len(each),
        "votes_per_annotator": each,
        "alpha": found.alpha,
        "alpha_interval": found.interval,
        "pairs_judged_by_two_or_more": found.pairs,
        "counts": dict(counts),
    }


def spoken(counts: Mapping[str, int], keep_ties: bool = False, keep_unlabeled: bool = False) -> str:
    """What :func:`apply_votes` counted, in words: ``28 pairs; 4 left out because votes were even.``"""
    ties, bare, bad = counts["ties"], counts["unlabeled"], counts["both_bad"]
    told = [
        (ties, f"{ties} {_is(ties)} kept as {'a tie' if ties == 1 else 'ties'} because votes were even")
        if keep_ties
        else (ties, f"{ties} left out because votes were even"),
        (bad, f"{bad} left out because most found both pictures bad"),
        (bare, f"{bare} kept as before because nobody judged {'it' if bare == 1 else 'them'}")
        if keep_unlabeled
        else (bare, f"{bare} left out because nobody judged {'it' if bare == 1 else 'them'}"),
        (counts["swapped"], f"{counts['swapped']} turned round"),
        (counts["repeats"], f"{counts['repeats']} left out because the set had the pair both ways round"),
    ]
    return "; ".join([count(counts["pairs"], "pair"), *(words for number, words in told if number)]) + "."


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _write(pairs: PairSet, out: Path, rows: list[dict[str, Any]], labels: Mapping[str, Any]) -> None:
    """A set of ``rows`` over the same pictures, which it shares with ``pairs`` by hard links where the disk can."""
    prepare_out(out)
    info = read_json(pairs.folder / "set.json", "a pairs set", "")
    with replacing(out) as temporary:
        temporary.mkdir()
        for shard in [*sorted(pairs.folder.glob("images-*.parquet")), pairs.folder / PLACES]:
            try:
                os.link(shard, temporary / shard.name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(shard, temporary / shard.name)
        shutil.copyfile(pairs.folder / "votes.jsonl", temporary / "votes.jsonl")
        pq.write_table(pa.Table.from_pylist(rows, PAIR_SCHEMA), temporary / "pairs.parquet", compression="zstd")
        provenance = {**info.get("provenance", {}), "labels": labels}
        ties = sum(row["preference"] == TIE for row in rows)
        write_json(temporary / "set.json", {**info, "pairs": len(rows), "ties": ties, "provenance": provenance})
