"""Two folders of pictures of the same prompts and seeds, compared: the numbers of the page, without the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, count
from mapo.pairs.splits import prompt_id
from mapo.report.evidence import (
    FOLLOWING,
    PREFERENCE,
    Comparison,
    Guard,
    cautions,
    compare,
    read_evidence,
    scores_without,
    without_prompts,
)
from mapo.report.guards import compare_guards, warnings
from mapo.report.maker import check_run
from mapo.report.people import compare_people, read_people
from mapo.report.training import Training, read_training
from mapo.report.verdict import Verdict, judge
from mapo.sample.folder import Rows, check_pictures, read_pictures
from mapo.texts import finite


@dataclass(frozen=True)
class Compared:
    """What was found. ``first`` and ``second`` are the pictures before and after, of held-out prompts alone."""

    first: Rows
    second: Rows
    training: Training
    comparisons: Sequence[Comparison]
    guards: Sequence[Guard]
    verdict: Verdict
    goal: str | None
    judges: list[str]  # that made or filtered the pairs
    warnings: list[str]

    def summary(self) -> dict[str, Any]:
        """All numbers. Win rates are shares of 1; a bound that the data cannot give is None."""
        rows = [
            {
                "scorer": c.scorer,
                "metric": c.metric,
                "version": c.version,
                "lower_is_better": c.lower_is_better,
                "made_pairs": c.made_pairs,
                "pictures_without_a_number": sum(c.unnumbered),
                "win_rate": asdict(c.win),
                "before": asdict(c.before),
                "after": asdict(c.after),
                "difference": asdict(c.difference),
                **({"people": asdict(c.panel)} if c.panel else {}),
            }
            for c in self.comparisons
        ]
        found = next((i for i, c in enumerate(self.comparisons) if c is self.verdict.headline), None)
        intervals = ("before", "after", "difference")
        told = {
            "version": 2,
            "verdict": self.verdict.sentence,
            "detail": self.verdict.detail,
            "call": self.verdict.call,
            "goal": self.goal,
            "judges_of_pairs": self.judges,
            "headline": None if found is None else rows[found],
            "comparisons": rows,
            "prompt_following": [r for r in rows if r["metric"] in FOLLOWING],
            "guards": [
                {"metric": g.metric, "spread": g.spread, "shift": g.shift, "warns": g.warns}
                | {name: asdict(getattr(g, name)) for name in intervals}
                for g in self.guards
            ],
            "cautions": self.warnings,
            "pairs": len(self.first),
            "prompts": len({k[0] for k in self.first}),
            "models": {
                side: sorted({r.model for r in pictures.values()})
                for side, pictures in (("before", self.first), ("after", self.second))
            },
        }
        return {name: finite(value) for name, value in told.items()}


def compare_folders(
    before: Path,
    after: Path,
    scores: Sequence[Path],
    goal: str | None,
    run: Path | None,
    judges_of_pairs: Sequence[str],
    votes: Sequence[Path],
    scorers: Collection[str] | None,
    shows: str = "",
) -> Compared:
    """Compare two folders; the arguments are those of ``write_report``, which says what is refused. For ``shows`` see
    :func:`judge`."""
    first, second = read_pictures(before, after)
    tables = read_evidence(scores, first, second, may_be_empty=bool(votes), scorers=scorers)
    cast = read_people(votes, first, second)
    training = read_training(run) if run else Training()
    about_run = check_run(run, after, second) if run else []
    seen = {r.prompt_id for r in first.values() if prompt_id(r.prompt) in training.prompts}
    prompts = len({r.prompt_id for r in first.values()})
    first, second = (without_prompts(rows, seen) for rows in (first, second))
    if not first:
        raise MapoError(
            f"{run} was trained on {'the one prompt' if len(seen) == 1 else f'all {len(seen)} prompts'} of "
            "these pictures, so they say nothing about others. "
            "Sample both models from prompts that are held out."
        )
    if goal == PREFERENCE and not votes:
        raise MapoError(f"--goal {PREFERENCE} is what people say. Give their --votes.")
    one, two = (scores_without(table, seen) for table in tables)
    judges = sorted({*judges_of_pairs, *training.judges})
    comparisons, without_numbers = compare(one, two, len(first), None if goal == PREFERENCE else goal, judges)
    guards, guards_without_numbers = compare_guards(one, two)
    if cast:
        comparisons.insert(0, compare_people(cast, first, second, training.annotators))
    if not comparisons:
        raise MapoError(_why_none(without_numbers, bool(guards or guards_without_numbers)))
    verdict = judge(comparisons, goal, (len(seen), prompts), shows)
    for folder, rows in ((before, first), (after, second)):
        check_pictures(folder, rows.values())
    told = warnings(guards) + cautions(first, second, comparisons)
    told += [*without_numbers, *guards_without_numbers, *about_run, *_about_prompts(training, seen, run, second)]
    return Compared(first, second, training, comparisons, guards, verdict, goal, judges, told)


def _why_none(without_numbers: Sequence[str], guarded: bool) -> str:
    """Why there is nothing to compare by, and what helps."""
    why = "Run `mapo score` on both folders first."
    if guarded:
        why = (
            "Guards know no better or worse. Score both folders by another scorer too, or let people judge with `mapo "
            "label`."
        )
    return f"There are no scores to compare these pictures by. {' '.join(without_numbers) or why}"


def _about_prompts(training: Training, seen: set[str], run: Path | None, after: Rows) -> list[str]:
    """Whether the prompts are held out, as far as that can be known."""
    found: list[str] = []
    if seen:
        found.append(
            f"{count(len(seen), 'prompt')} {'was' if len(seen) == 1 else 'were'} trained on; "
            f"{'its' if len(seen) == 1 else 'their'} pictures and scores are left out of this page, whose "
            "numbers are those of held-out prompts."
        )
    for folder in training.lost:
        found.append(
            f"The pairs {folder} that the run was trained on cannot be opened, so it is not known whether these "
            "prompts are held out, nor which judges made the pairs."
        )
    models = sorted({r.model for r in after.values() if Path(r.model).is_absolute()})
    if run is None and models:
        found.append(
            f"{models[0]} made the pictures after, and without --run it was not looked up whether these prompts are "
            "held out, nor which judges made its pairs."
        )
    return found
