"""What lies in a run folder for every step, and which checkpoint is the best on held-out pairs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.texts import read_lines

EVALUATIONS = "evaluations.jsonl"


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    named = sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name))
    return {int(path.name.removeprefix("step-")): path for path in named}


def runs_inside(folder: Path) -> str:
    """Where the runs lie in a folder of `mapo style` or `mapo personalize`, in a sentence; empty for another folder."""
    found = sorted(path.parent for path in [*folder.glob("run/config.toml"), *folder.glob("*/run/config.toml")])
    return f" Its run is {found[-1]}." if found else ""


def pictures(run: Path) -> dict[int, Path]:
    """What a run drew while it was trained: images folders by their steps, in order."""
    found = (run / "pictures").glob("step-*")
    steps = {int(path.name.removeprefix("step-")): path for path in found if path.name[5:].isdecimal()}
    return dict(sorted(steps.items()))


def evaluations(run: Path) -> list[dict[str, Any]]:
    """What was measured on held-out pairs, in order; empty where nothing was. MapoError where the file is damaged."""
    path = run / EVALUATIONS
    rows = list(read_lines(path)) if path.exists() else []
    if not all(map(_is_measured, rows)):
        raise MapoError(f"{path} is damaged: a line is not that of a step. Delete it, then run the same command again.")
    return rows


def _is_measured(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return False
    return all(isinstance(row.get(name, 0.0), int | float) for name in ("accuracy", "margin", "error_chosen"))


def goodness(row: Mapping[str, Any]) -> tuple[float, float]:
    """By what one step is better than another: held-out accuracy, then margin; without rejected pictures a smaller
    error of the chosen ones."""
    if "accuracy" not in row:
        return 0.0, -float(row.get("error_chosen", 0))
    return float(row["accuracy"]), float(row.get("margin", 0))


def best_of(rows: Iterable[Mapping[str, Any]], among: Collection[int]) -> int | None:
    """The step ``among`` these that is best by :func:`goodness`: with the highest held-out accuracy; of equal ones that
    with the higher margin, then the earlier one. None where none of them was measured.

    The base, step 0, is not among them, nor is what was measured with other pairs or settings than the last time.
    """
    rows = list(rows)
    there = [row for row in rows if row["step"] and row["step"] in among and row.get("of") == rows[-1].get("of")]
    return max(there, key=lambda row: (*goodness(row), -row["step"]))["step"] if there else None


def best_step(run: Path) -> int:
    """The step of the best checkpoint of a run; MapoError where there is none that was measured."""
    found = best_of(evaluations(run), checkpoints(run))
    if found is None:
        raise MapoError(
            f"--model: {run}@best: no checkpoint of this run was measured on held-out pairs. Train with --set "
            "train.evaluate_every=N --set train.keep_checkpoints=best, or name a step."
        )
    return found
