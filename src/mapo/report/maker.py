"""Whether a run made the pictures of a folder."""

from __future__ import annotations

from pathlib import Path

from mapo.errors import MapoError
from mapo.sample.folder import Rows
from mapo.texts import read_object
from mapo.worlds import MODELS


def check_run(run: Path, folder: Path, rows: Rows) -> list[str]:
    """MapoError where another model made the pictures of ``folder``; a sentence where nobody can tell."""
    if not (run / "metrics.jsonl").is_file():
        return []  # that it is not a run is told elsewhere
    doubt = f"Whether {run} made the pictures after cannot be told"
    if any(row.foreign for row in rows.values()):
        return [f"{doubt}: they come from another program. Curves and pairs are those of this run all the same."]
    own = _revisions(run)
    if own and all(row.revision in own for row in rows.values()):
        return []
    makers = sorted({row.model for row in rows.values()})
    if makers == [str(run.resolve())]:
        return [f"{run} has been trained since it made the pictures after, or has changed."] if own else []
    if len(makers) == 1 and makers[0].rpartition("@")[0] == str(run.resolve()):
        step = makers[0].rpartition("@")[2]
        return [f"The pictures after are those of {run} at step {step}. Curves and pairs are those of the whole run."]
    if not any(row.revision for row in rows.values()):
        return [f"{doubt}: {folder} does not say which weights did."]
    if all(_is_gone(maker) and (not own or Path(maker).name == run.resolve().name) for maker in makers):
        return [f"{doubt}: {makers[0]} made them, which is not there any more."]
    there = [maker for maker in makers if (Path(maker) / "metrics.jsonl").is_file()]
    remedy = f"Give --run {there[0]}" if len(makers) == len(there) == 1 else "Give the run that made them"
    raise MapoError(
        f"--run: {run} did not make the pictures in {folder}; {' and '.join(makers)} did. {remedy}, or leave --run out."
    )


def _is_gone(model: str) -> bool:
    return Path(model).is_absolute() and not Path(model).exists()


def _revisions(run: Path) -> tuple[str, ...]:
    """The forms of the revision of a finished run whose base lies on this machine; the hub is not asked."""
    base, seen = str(run), set[str]()
    while base not in seen and (Path(base) / "run.json").is_file():
        seen.add(base)
        base = str(
            read_object(Path(base) / "run.json", "a run", "Give a folder that `mapo train` made.").get("base", "")
        )
    is_here = base in MODELS or Path(base).is_file() or (Path(base) / "model_index.json").is_file()
    if not seen or not is_here:
        return ()
    try:
        from mapo.models import find_model  # which loads torch

        return find_model(str(run)).revisions()
    except (MapoError, KeyError, TypeError, ValueError, OSError):
        return ()
