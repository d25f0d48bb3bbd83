"""The tables of bench/style.py, from whatever its lines hold: shares with intervals over seeds and prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapo.lab.study.estimates import Cell, Percent, estimate
from mapo.style.copies import NEAR
from mapo.texts import read_lines

OBJECTIVES = {"none": "untrained", "mapo": "MaPO", "sft": "SFT (plain LoRA)", "dpo": "Diffusion-DPO"}
JUDGES = ("mini-search", "mini-learned")
Key = tuple[str, int, str]  # style, number of drawings, objective
Floats = NDArray[np.float64]


def read_cells(path: Path) -> dict[Key, list[dict[str, Any]]]:
    """The last look of every run, by style, number of drawings and objective. Only seeds that all objectives of a style
    and number have are kept, so that they are compared on the same."""
    found: dict[Key, dict[int, dict[str, Any]]] = {}
    for row in read_lines(path) if path.exists() else ():
        found.setdefault((row["style"], row["drawings"], row["objective"]), {})[row["seed"]] = row["looks"][-1]
    cells = {}
    for (style, number, objective), rows in found.items():
        others = [set(found.get((style, number, other), {})) for other in OBJECTIVES]
        if common := sorted(set.intersection(*others)):
            cells[style, number, objective] = [rows[seed] for seed in common]
    return cells


def shares_near(looks: Sequence[Mapping[str, Any]], name: str = "bits") -> list[Floats]:
    """Which drawings are near to a picture, "seeds prompts"; of a training that diverged none is."""
    return [np.array([[bits <= NEAR for bits in look.get(name) or [99] * look["prompts"][0]] for look in looks], float)]


def change(looks: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], judge: str, what: str) -> Percent:
    """How much more of some share there is than before the training, on the same prompts, seeds and noise."""
    ours, theirs = (Cell(tuple(some)).parts(what, judge) for some in (looks, before))
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)], -1.0)


def main_table(cells: Mapping[Key, list[dict[str, Any]]], judge: str) -> list[str]:
    """Style shown, prompts followed, and both, by a judge."""
    lines = [
        f"By `{judge}`:", "",
        "| style | drawings | objective | seeds | style shown | prompts followed | change, points | both |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (style, number, objective), looks in ordered(cells):
        cell, before = Cell(tuple(looks)), cells[style, number, "none"]
        shown, followed, both = (estimate(cell.parts(what, judge)) for what in ("reached", "followed", "score"))
        moved = "" if objective == "none" else change(looks, before, judge, "followed").signed
        lines.append(
            f"| {style} | {number} | {OBJECTIVES[objective]} | {len(looks)} | {shown} | {followed} | {moved} | {both} |"
        )
    return [*lines, ""]


def against_table(cells: Mapping[Key, list[dict[str, Any]]], judge: str) -> list[str]:
    """By how much MaPO leads another objective, in pictures that show the style and follow their prompt."""
    lines = [
        f"Lead of MaPO in both, points, by `{judge}`:",
        "",
        "| style | drawings | over | lead |",
        "|---|---|---|---|",
    ]
    for (style, number, objective), looks in ordered(cells):
        if objective in ("sft", "dpo"):
            lead = change(cells[style, number, "mapo"], looks, judge, "score").signed
            lines.append(f"| {style} | {number} | {OBJECTIVES[objective]} | {lead} |")
    return [*lines, ""]


def copies_table(cells: Mapping[Key, list[dict[str, Any]]]) -> list[str]:
    """Pictures near to a drawing that was trained on, and to as many that were not."""
    lines = [
        f"Share of pictures within {NEAR} of 63 bits of a drawing (perceptual hash):", "",
        "| style | drawings | objective | trained on | as many others | difference, points | `style` says it copies |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (style, number, objective), looks in ordered(cells):
        near, other = shares_near(looks), shares_near(looks, "bits to others")
        more = estimate([a - b for a, b in zip(near, other, strict=True)], -1.0).signed
        said = "" if objective == "none" else f"{sum(bool(one.get('copies')) for one in looks)} of {len(looks)}"
        name = OBJECTIVES[objective]
        lines.append(f"| {style} | {number} | {name} | {estimate(near)} | {estimate(other)} | {more} | {said} |")
    return [*lines, ""]


def ordered(cells: Mapping[Key, list[dict[str, Any]]]) -> list[tuple[Key, list[dict[str, Any]]]]:
    """The cells of 50 drawings first, then the others; the objectives in their order."""
    names = list(OBJECTIVES)
    return sorted(cells.items(), key=lambda item: (item[0][1] != 50, item[0][1], item[0][0], names.index(item[0][2])))


def settings_table(path: Path) -> list[str]:
    """What was trained with."""
    found: dict[str, tuple[dict[str, float], int, list[float]]] = {}
    for row in read_lines(path) if path.exists() else ():
        if row["objective"] != "none":
            seconds = found.get(row["objective"], ({}, 0, []))[2]
            seconds += [look["seconds_per_step"] for look in row["looks"] if "seconds_per_step" in look]
            found[row["objective"]] = row["settings"], row["steps"][-1], seconds
    lines = ["| objective | settings | steps of 8 pairs | ms a step, median of the runs |", "|---|---|---|---|"]
    for objective, (settings, steps, seconds) in found.items():
        told = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        pace = f"{1000 * np.median(seconds):.0f}" if seconds else "-"
        lines.append(f"| {OBJECTIVES[objective]} | {told} | {steps} | {pace} |")
    return [*lines, ""]


def trials_table(path: Path) -> list[str]:
    """What the search saw: pictures that show the style and follow their prompt, after each number of steps."""
    lines = [
        "| objective | settings | style | shown and followed, % of validation pictures, by steps |",
        "|---|---|---|---|",
    ]
    for row in read_lines(path) if path.exists() else ():
        told = ", ".join(f"{name} {value:g}" for name, value in row["settings"].items())
        scores = ", ".join(f"{look['steps']}: {_score(look)}" for look in row["looks"])
        lines.append(f"| {OBJECTIVES[row['objective']]} | {told} | {row['style']} | {scores} |")
    return [*lines, ""]


def _score(look: dict[str, Any]) -> str:
    return "diverged" if "failed" in look else f"{100 * Cell((look,)).parts('score', 'mini-learned')[0].mean():.0f}"


def judges_table(path: Path) -> list[str]:
    """How often the judges are right on fresh drawings."""
    if not path.exists():
        return []
    right = json.loads(path.read_text())["judges"]
    lines = ["| judge | drawings of | style right | all that a prompt says and the style right |", "|---|---|---|---|"]
    for name, table in right.items():
        lines += [
            f"| `{name}` | {s} | {100 * r['style']:.1f} % | {100 * r['everything']:.1f} % |" for s, r in table.items()
        ]
    return [*lines, ""]


def write_tables(out: Path) -> None:
    """``tables.md``, from whatever is there."""
    cells = read_cells(out / "runs.jsonl")
    lines = ["# A style from a folder of pictures, on the built-in model", ""]
    lines += ["Shares in % with 95 % intervals over seeds and prompts. Written by `bench/style.py`.", ""]
    for judge in JUDGES:
        lines += main_table(cells, judge)
    for judge in JUDGES:
        lines += against_table(cells, judge)
    lines += [*copies_table(cells), *settings_table(out / "runs.jsonl"), *trials_table(out / "trials.jsonl")]
    lines += judges_table(out / "about.json")
    (out / "tables.md").write_text("\n".join(lines).rstrip() + "\n")
