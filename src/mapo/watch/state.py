"""What a run is like now, read from its folder alone: nothing is locked or written, and training is not asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapo.errors import MapoError
from mapo.files import why_not
from mapo.models.checkpoints import best_of, check_line, runs_inside
from mapo.sample.folder import ImageRow, is_sensitive, read_manifest
from mapo.shards import is_owned
from mapo.statistics import smooth
from mapo.texts import lines_after
from mapo.train.run.folder import Run

POINTS = 240  # of a curve, each the mean of so many steps as it takes
SMOOTH = 25  # a training curve is smoothed over a part of the run to either side: one in so many
RECENT = 20  # steps that tell the speed
TRAINED = ("error_chosen", "error_rejected", "margin", "margin_over_reference", "accuracy", "lr")
SPEED = ("seconds", "pairs_per_second")
SIDES = ("chosen", "rejected")
Line = dict[str, Any]


class Growing:
    """The lines of a file that grows, each read once; all again where another file has taken its place."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self._offset, self._number = path, list[Line](), 0, 0

    def read(self) -> list[Line]:
        """All whole lines so far; none where there is no file. MapoError where one is damaged, until it is mended."""
        try:
            state = self.path.stat()
            if state.st_ino != self._number or state.st_size < self._offset:
                self.lines, self._offset, self._number = [], 0, state.st_ino
            new, end = lines_after(self.path, self._offset)
        except OSError:
            self.lines, self._offset = [], 0
            return []
        for line in new:
            check_line(self.path, line)
        self.lines += new
        self._offset = end
        return self.lines


class Watched:
    """A run folder that is looked at. MapoError where it is none."""

    def __init__(self, folder: Path, blur: bool = False) -> None:
        if not (folder / "config.toml").is_file():
            where = runs_inside(folder) or " Give the folder that `mapo train` writes, or wait until it has begun."
            raise MapoError(f"{folder} is not a run folder{why_not(folder, 'config.toml')}.{where}")
        self.run, self.blur = Run(folder), blur
        self.run.before()  # a config.toml that cannot be read is said at once
        logs = (self.run.log, self.run.evaluation_log, self.run.alarm_log)
        self._metrics, self._evaluations, self._alarms = map(Growing, logs)

    def state(self) -> dict[str, Any]:
        """Everything that the page shows."""
        metrics, evaluations = self._metrics.read(), self._evaluations.read()
        before = self.run.before()
        steps, done = int(before["train"]["steps"]), int(metrics[-1]["step"]) if metrics else 0
        pictures = self.pictures()
        return {
            "name": self.run.folder.resolve().name,
            "status": self._status(done, steps),
            "about": [
                ("model", str(before["model"])),
                ("objective", _objective(before["objective"])),
                ("trained", "a LoRA" if before["adapter"]["kind"] == "lora" else "all weights"),
                ("pairs", str(before["pairs"])),
            ],
            "step": done,
            "steps": steps,
            **self._speed(metrics, steps - done),
            "alarms": [{"step": line["step"], "says": str(line.get("says", ""))} for line in self._alarms.read()],
            "curves": [*held_out(evaluations), *trained(metrics)],
            "missing": _missing(before["train"]),
            "best": best_of(evaluations, [row["step"] for row in evaluations]),
            "pictures": pictures,
            "sensitive": self.blur or any(is_sensitive(self.run.pictures_at(step)) for step in pictures["steps"]),
        }

    def _status(self, done: int, steps: int) -> str:
        if self.run.finished_steps() >= steps:
            return "finished"
        if is_owned(self.run.folder):
            return "running" if done else "starting"
        return "stopped"

    def _speed(self, metrics: Sequence[Line], left: int) -> dict[str, Any]:
        last = [line for line in metrics[-RECENT:] if all(np.isfinite(line.get(name, np.nan)) for name in SPEED)]
        if not last:
            return {"pairs_per_second": None, "seconds_left": None, "memory": None, "seconds_since": None}
        each = float(np.median([line["seconds"] for line in last]))
        return {
            "pairs_per_second": float(np.median([line["pairs_per_second"] for line in last])),
            "seconds_left": each * left,
            "memory": last[-1].get("memory"),
            "seconds_since": max(0.0, time.time() - self.run.log.stat().st_mtime),
        }

    def pictures(self) -> dict[str, Any]:
        """The steps of which there are pictures, and for each prompt its pictures in their order (none: not yet)."""
        steps = [step for step in self.run.pictures() if self.rows(step)]
        prompts = list(dict.fromkeys(row.prompt for step in steps for row in self.rows(step)))
        files = {(step, row.prompt): row for step in steps for row in self.rows(step)}
        shown = [[_shown(step, files.get((step, prompt))) for step in steps] for prompt in prompts]
        return {"steps": steps, "prompts": [{"prompt": p, "pictures": s} for p, s in zip(prompts, shown, strict=True)]}

    def rows(self, step: int) -> list[ImageRow]:
        """The pictures of a step; none while they are only being made."""
        try:
            return read_manifest(self.run.pictures_at(step))
        except (MapoError, OSError):
            return []


def _shown(step: int, row: ImageRow | None) -> dict[str, Any] | None:
    return None if row is None else {"from": f"picture/{step}/{row.file}", "width": row.width, "height": row.height}


def _missing(train: Mapping[str, Any]) -> list[str]:
    """A sentence for each section that the page will not have, as a setting is at none."""
    asked = {
        "evaluate_every": "Pairs that are not trained on are not measured in this run",
        "pictures_every": "No pictures are drawn in this run",
    }
    return [
        f"{says}. Begin one with --set train.{name}=50 to see them every 50 steps."
        for name, says in asked.items() if not train.get(name)
    ]  # fmt: skip


def _objective(values: Mapping[str, Any]) -> str:
    knobs = ", ".join(f"{name} {value:g}" for name, value in values.items() if name != "name")
    return f"{values['name']}{f' ({knobs})' if knobs else ''}"


def _curve(title: str, note: str, lines: Sequence[tuple[str, str, Sequence[Any], Sequence[Any]]], **rest: Any) -> Line:
    """A curve of the page; each line has a label, a colour's name and its points."""
    reach = 0 if rest.get("held") else len(lines[0][2]) // SMOOTH if lines else 0
    drawn = [{"label": label, "tone": tone, "points": points(x, y, reach)} for label, tone, x, y in lines]
    return {"title": title, "note": note, "lines": drawn, **rest}


def points(steps: Sequence[float], values: Sequence[Any], reach: int = 0) -> list[tuple[float, float]]:
    """At most so many points as a curve has: the means of equal portions, at their last step; no point where there is
    no number. Before that each value is the mean of so many to either ``reach``."""
    x, y = np.array(steps, np.float64), np.array([np.nan if v is None else v for v in values], np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    y = smooth(y, reach) if reach else y
    portions = min(POINTS, len(x))
    parts = zip(np.array_split(x, portions), np.array_split(y, portions), strict=True) if portions else ()
    return [(float(a[-1]), float(b.mean())) for a, b in parts]


def trained(metrics: Sequence[Line]) -> list[Line]:
    """The curves of ``metrics.jsonl``."""
    if not metrics:
        return []
    steps = [line["step"] for line in metrics]
    column = {name: [line.get(name) for line in metrics] for name in TRAINED}
    margin = "margin_over_reference" if column["margin_over_reference"][-1] is not None else "margin"
    over = ", over the reference's" if margin != "margin" else ""
    sides = [(side, side, steps, column[f"error_{side}"]) for side in SIDES]

    def single(name: str) -> list[tuple[str, str, Sequence[Any], Sequence[Any]]]:
        return [("", "ink", steps, column[name])]

    return [
        _curve("Errors in training", "Denoising error; other noise and timesteps in each step.", sides),
        _curve("Margin in training", f"Error of rejected minus error of chosen{over}.", single(margin), even=0),
        _curve(
            "Accuracy in training", "Pairs in which chosen has the smaller error.", single("accuracy"), even=0.5,
            share=True,
        ),
        _curve("Learning rate", "", single("lr")),
    ]  # fmt: skip


def held_out(rows: Sequence[Line]) -> list[Line]:
    """The curves of ``evaluations.jsonl``."""
    if not rows:
        return []
    steps, pairs = [row["step"] for row in rows], rows[-1].get("pairs", 0)
    margins = [row.get("margin_by_time", []) for row in rows]
    accuracy = [("", "ink", steps, [row.get("accuracy") for row in rows])]
    changes = [(side, side, steps, [row.get(f"error_{side}_change") for row in rows]) for side in SIDES]
    quarters = [
        (f"t ≈ {time:.0f}", f"quarter-{k + 1}", steps, [margin[k] if k < len(margin) else None for margin in margins])
        for k, time in enumerate(rows[-1].get("timesteps", []) if margins[-1] else [])
    ]
    drawn: dict[str, Any] = {"marked": True, "held": True}
    return [
        _curve("Accuracy", f"Of {pairs} pairs at four timesteps each.", accuracy, even=0.5, share=True, **drawn),
        _curve("Errors against the base's", "With the same noise each time.", changes, even=0, signed=True, **drawn),
        _curve("Margin by timestep", "Error of rejected minus error of chosen.", quarters, even=0, **drawn),
    ]
