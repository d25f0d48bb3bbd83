"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.report.curves import read_metrics
from mapo.report.evidence import PREFERENCE
from mapo.report.maker import check_run
from mapo.report.people import read_people
from mapo.report.report import check_out, write_report
from mapo.report.training import read_training
from mapo.sample.folder import read_pictures
from mapo.score.score import score_sides
from mapo.score.scorers import scorer_names
from mapo.shards import owned


def report(
    before: Path, after: Path, out: Path, *, scores: Sequence[Path] = (), scorer: str | None = None,
    votes: Sequence[Path] = (), judges_of_pairs: Sequence[str] = (), **rest: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write the page and return its numbers. Without ``scores`` both folders are scored first."""
    if scores and scorer:
        raise MapoError("--scorer is for a report that makes the scores itself. Leave it out, or --scores.")
    rest["judges_of_pairs"] = [name for judge in judges_of_pairs for name in scorer_names(judge)]
    check_out(out, [*scores, *votes])
    with owned(out):
        tables = list(scores)
        if not tables:
            _check(before, after, votes, rest.get("run"))
            goal = None if rest.get("goal") == PREFERENCE else rest.get("goal")
            tables, rest["scorers"] = score_sides(before, after, scorer, out, bool(votes), goal)
        return write_report(before, after, tables, out, votes=votes, **rest)


def _check(before: Path, after: Path, votes: Sequence[Path], run: Path | None) -> None:
    """MapoError where the page could not be made, before hours of scoring."""
    first, second = read_pictures(before, after)
    read_people(votes, first, second)
    if run is not None:
        read_metrics(run)
        read_training(run)
        check_run(run, after, second)
