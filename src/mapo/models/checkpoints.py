"""What lies in a run folder for every step, and which checkpoint is the best on held-out pairs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.texts import read_lines

EVALUATIONS = "evaluations.jsonl"
TEXTS, LISTS = ("of", "name", "says"), ("timesteps", "margin_by_time")  # in such a file; the rest are numbers
MAY_BE_NULL = ("logit", "logit_scale")  # those of somebody's own objective may not be finite


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
    return lines_of_steps(run / EVALUATIONS)


def lines_of_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a file in a run that tells of steps; empty where there is none. MapoError where it is damaged."""
    lines = list(read_lines(path)) if path.exists() else []
    for line in lines:
        check_line(path, line)
    return lines


def check_line(path: Path, line: object) -> None:
    """MapoError where a line of such a file is not as training writes it, so that nobody counts with a text."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        why = "a line is not that of a step"
    elif wrong := next((name for name, value in line.items() if not _fits(name, value)), None):
        why = f"the line of step {line['step']} has {wrong} = {str(line[wrong])[:40]!r}"
    else:
        return
    raise MapoError(f"{path} is damaged: {why}. Mend that line, or delete the file, then run the same command again.")


def _fits(name: str, value: object) -> bool:
    if value is None:  # it was not finite, and decides nothing
        return name in MAY_BE_NULL
    if name in TEXTS:
        return isinstance(value, str)
    if name in LISTS:
        return isinstance(value, list) and all(isinstance(one, int | float) for one in value)
    return isinstance(value, dict if name == "changed" else int | float)


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
