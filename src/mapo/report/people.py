"""The votes of `mapo label --before --after` as a win rate of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mapo.errors import MapoError, count
from mapo.label.votes import Vote, read_votes, standing
from mapo.report.evidence import PEOPLE, PREFERENCE, Comparison, Panel
from mapo.sample.folder import Key, Rows
from mapo.statistics import PairedScores, mean, mean_difference, mean_share

POINTS = {"before": 0.0, "tie": 0.5, "after": 1.0}


def read_people(paths: Iterable[Path], before: Rows, after: Rows) -> list[Vote]:
    """The votes of all files that stand; MapoError where one is on other pictures than these."""
    cast: list[Vote] = []
    for path in paths:
        votes = read_votes(path)
        if not votes:
            raise MapoError(
                f"There are no votes in {path}. Cast some with: mapo label --before BEFORE --after AFTER --out {path}"
            )
        _check(votes, path, before, after)
        cast += votes
    return standing(cast)


def _check(votes: Sequence[Vote], path: Path, before: Rows, after: Rows) -> None:
    if any(not vote.before for vote in votes):
        raise MapoError(
            f"{path} has votes on the pairs of a set, not on pictures before and after. "
            f"Cast some with: mapo label --before BEFORE --after AFTER --out VOTES"
        )
    strange = [v for v in votes if (v.before, v.after) != _shown(v, before, after)]
    if not strange:
        return
    first = strange[0]
    there = _shown(first, before, after)
    if there is None:
        why = "is about a prompt and seed that is in neither folder"
    elif (first.after, first.before) == there:
        why = "was cast with the two folders exchanged"
    else:
        why = "was cast on pictures that have changed since"
    raise MapoError(
        f"{path} has {count(len(strange), 'vote')} on other pictures than these: that of {first.annotator!r} on prompt "
        f"{first.prompt_id} seed {first.seed} {why}. Label these two folders with `mapo label`."
    )


def _shown(vote: Vote, before: Rows, after: Rows) -> tuple[str, str] | None:
    key = (vote.prompt_id, vote.seed)
    return (before[key].sha256, after[key].sha256) if key in before else None


def compare_people(votes: Sequence[Vote], before: Rows, after: Rows, makers: Collection[str] = ()) -> Comparison:
    """The pairs that people judged; a pair's share for after is the mean of the votes on it.

    So a pair that many have judged counts no more than one that only one has, and the interval (over prompts) is that
    of the pictures as these people see them. A tie, or both bad, is half a vote for either; a skip is not a vote.
    ``makers`` are the names of those who labelled the training pairs.
    """
    points: dict[Key, list[float]] = {}
    of_each: dict[str, list[float]] = {}
    kinds: Counter[str] = Counter()
    for vote in votes:
        if (key := (vote.prompt_id, vote.seed)) not in before:
            continue  # of a prompt that is left out
        kinds[vote.vote if vote.vote in ("bad", "skip") else vote.outcome or ""] += 1
        if vote.outcome is not None:
            points.setdefault(key, []).append(POINTS[vote.outcome])
            of_each.setdefault(vote.annotator, []).append(POINTS[vote.outcome])
    if not points:
        all_of_them = "the one vote" if len(votes) == 1 else f"all {len(votes)} votes"
        are = "is a skip" if len(votes) == 1 else "are skips"
        raise MapoError(f"--votes: {all_of_them} on these pictures {are}. Judge some pairs first.")
    pairs = []
    for key, row in before.items():
        if key in points:
            share = sum(points[key]) / len(points[key])
            pairs.append(PairedScores(*key[:1], row.prompt, key[1], 1 - share, share, row.sha256, after[key].sha256))
    first, second = [p.before for p in pairs], [p.after for p in pairs]
    clusters = [p.prompt_id for p in pairs]
    panel = Panel(
        votes=sum(map(len, of_each.values())),
        ties=kinds["tie"],
        both_bad=kinds["bad"],
        skipped=kinds["skip"],
        shares=sorted(((len(v), sum(v) / len(v)) for v in of_each.values()), reverse=True),
        also_made_pairs=len(of_each.keys() & set(makers)),
    )
    return Comparison(
        scorer=PEOPLE,
        metric=PREFERENCE,
        version="",
        lower_is_better=False,
        made_pairs=False,
        rate=False,
        pairs=pairs,
        missing=len(before) - len(pairs),
        unnumbered=(0, 0),
        win=mean_share(second, clusters),
        before=mean(first, clusters),
        after=mean(second, clusters),
        difference=mean_difference(first, second, clusters),
        panel=panel,
    )
