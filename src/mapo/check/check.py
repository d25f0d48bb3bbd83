"""What is wrong with a set of pairs, before anything is trained on it: one page, and a verdict for scripts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mapo.check import findings as found
from mapo.check.gallery import Gallery, random_rows, suspicious_rows
from mapo.check.leak import (
    FEW_PROMPTS,
    MARGIN,
    Leak,
    Share,
    Together,
    find_leaks,
    independent,
    statistics,
    tell_together,
)
from mapo.check.pictures import PictureTable, look_at_pictures
from mapo.check.rows import SEVERITIES, Finding, Rows, read_rows
from mapo.check.training import check_training, what_is_trained_on
from mapo.encode.seen import Choice, View, open_view
from mapo.errors import MapoError, count
from mapo.files import prepare_file, write_text
from mapo.pages.templates import environment
from mapo.pairs import PairSet
from mapo.texts import write_json

OWN_FILES = ("set.json", "pairs.parquet", "pictures.npy", "votes.jsonl")
JSON_START = b'{\n "version": 1,\n "set": '  # how the numbers begin, see :func:`_summary`
SHOWN_KINDS = 8  # of sizes, sources and the like; the rest is summed
ASPECTS = (
    (0.5, "taller than 1:2"), (0.64, "about 9:16"), (0.72, "about 2:3"), (0.95, "about 3:4"), (1.05, "square"),
    (1.4, "about 4:3"), (1.6, "about 3:2"), (2.0, "about 16:9"), (math.inf, "wider than 2:1"),
)  # fmt: skip


def check_pairs(
    pairs: PairSet, out: Path, *, model: str | None = None, json_file: Path | None = None,
    veiled: Collection[str] = (), **told: Any,
) -> dict[str, Any]:  # fmt: skip
    """Look at every row and picture of a set; write the page ``out`` and return its numbers.

    ``model`` (mini, a folder, a hub id) adds the length of prompts in its tokens and its size in pixels; it is ``told``
    of another ``vae``, what it predicts (``prediction``), how it reads ``long_prompts``, whether it sees pictures in
    ``buckets``, and of ``loras`` on top of it, which have to fit it. Chosen pictures that were made from the files
    ``veiled`` are blurred on the page until they are clicked. In the result
    ``errors``, ``warnings`` and ``notes`` count the findings; ``findings`` and ``leaks`` list them.
    """
    if told.get("long_prompts") and not model:
        raise MapoError("--long-prompts says how a model reads its prompts. Name the model with --model.")
    pairs.refuse_without_pictures("mapo check")
    if told.get("buckets") and not model:
        raise MapoError("--buckets depends on the sizes that a model can draw. Name the model with --model.")
    if told.get("loras") and not model:
        raise MapoError("--lora is added to a model. Name the model with --model.")
    if json_file and json_file.resolve() == out.resolve():
        raise MapoError(f"--json names the page {out} itself. Give it a file of its own.")
    _refuse(out, pairs)
    prepare_file(out, "an HTML page", b"<!doctype html", "check.html")
    if json_file:
        _refuse(json_file, pairs)
        prepare_file(json_file, "a file of `mapo check --json`", JSON_START, "check.json", "--json")
    view = open_view(model, **told) if model else None
    choice = what_is_trained_on(pairs, view)
    pictures = look_at_pictures(pairs, view.frames if view else ())
    rows = read_rows(pairs, pictures, choice.rows)
    values = statistics(pictures, np.union1d(rows.chosen[rows.trained], rows.rejected[rows.trained]))
    leaks, together = _leaks(rows, pictures, values)
    findings = _findings(rows, pictures, view, choice, leaks, together)
    summary = _summary(pairs, rows, pictures, findings, leaks, together, model, len(choice.rows))
    gallery = Gallery(pairs, rows, pictures, veiled)
    suspicious = suspicious_rows(rows, pictures, values, leaks, together)
    page = _environment().get_template("check.html.j2").render(
        summary=summary,
        findings=findings,
        leaks=leaks,
        together=together,
        margin=MARGIN,
        suspicious=[gallery.card(row, why) for row, why in suspicious.items()],
        random=[gallery.card(row) for row in random_rows(rows, pictures)],
        tables=_tables(rows, pictures),
        provenance=json.dumps(pairs.info.get("provenance", {}), indent=1, ensure_ascii=False),
    )  # fmt: skip
    write_text(out, page)
    if json_file:
        write_json(json_file, summary)
    return summary


def _refuse(path: Path, pairs: PairSet) -> None:
    """MapoError where a page or its numbers would take the place of a file that the set consists of."""
    own = path.name in OWN_FILES or path.match("images-*.parquet")
    if own and path.resolve().parent == pairs.folder.resolve():
        raise MapoError(f"{path} belongs to the set itself. Name another file to write.")


def _leaks(rows: Rows, pictures: PictureTable, values: dict[str, Any]) -> tuple[list[Leak], Together]:
    """The leak test over the pairs that training sees, prefer a picture, and whose pictures could both be read.

    Where their prompts are few, it is over pairs that share no picture, each counted as if it had a prompt of its own.
    """
    asked = rows.trained & pictures.read[rows.chosen] & pictures.read[rows.rejected] & (rows.preference > 0.5)
    asked &= rows.has_rejected
    few = len(np.unique(rows.prompts[asked])) < FEW_PROMPTS
    if few:
        asked[asked] = independent(rows.chosen_content[asked], rows.rejected_content[asked])
    prompts = np.arange(int(asked.sum())) if few else rows.prompts[asked]
    sides = rows.chosen[asked], rows.rejected[asked], prompts
    together = tell_together(values, *sides)
    margins = np.full(len(rows), np.nan)
    margins[asked] = together.margins
    return find_leaks(values, *sides, exact=few), Together(together.share, margins)


def _findings(
    rows: Rows, pictures: PictureTable, view: View | None, choice: Choice, leaks: list[Leak], together: Together
) -> list[Finding]:
    all_of_them = [
        *found.check_files(rows, pictures),
        *found.check_content(rows, pictures),
        *found.check_labels(rows),
        *found.check_leaks(leaks, together),
        *found.check_prompts(rows, view),
        *found.check_sizes(rows, pictures, view),
        *check_training(rows, pictures, view, choice),
    ]
    return sorted(all_of_them, key=lambda finding: SEVERITIES.index(finding.severity))


def verdict(findings: Sequence[Finding], pairs: int, trained: int) -> str:
    """One sentence on ``pairs``, of which so many are ``trained`` on."""
    errors, warnings = (sum(f.severity == s for f in findings) for s in SEVERITIES[:2])
    if errors:
        more = f" and {count(warnings, 'warning')}" if warnings else ""
        return f"{count(errors, 'error')}{more} in {count(pairs, 'pair')}: mend this set before training on it."
    if warnings:
        return f"No errors in {count(pairs, 'pair')}, and {count(warnings, 'warning')} to think about before training."
    if any(f.name == "leak_unsure" for f in findings):
        return f"No errors, but {count(trained, 'pair')} cannot tell whether there is a leak: see the note on it."
    return f"Nothing wrong was found in the {count(trained, 'pair')} that {'is' if trained == 1 else 'are'} trained on."


def _summary(
    pairs: PairSet, rows: Rows, pictures: PictureTable, findings: Sequence[Finding], leaks: Sequence[Leak],
    together: Together, model: str | None, trained: int,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of the page, as JSON can say them."""
    by = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    return {
        "version": 1,
        "set": str(pairs.folder),
        "verdict": verdict(findings, len(rows), trained),
        "errors": by["error"],
        "warnings": by["warning"],
        "notes": by["note"],
        "sensitive": bool(pairs.info.get("sensitive")),
        "model": model,
        "pairs": len(rows),
        "has_rejected": rows.has_rejected,
        "trained": trained,
        "prompts": len(np.unique(rows.prompts)),
        "pictures": len(pictures.names),
        "pictures_read": int(pictures.read.sum()),
        "ties": int((rows.preference == 0.5).sum()),
        "graded": int(((rows.preference > 0.5) & (rows.preference < 1)).sum()),
        "groups": len({g for g in rows.group if g is not None}),
        "splits": dict(sorted(Counter(rows.split).items())),
        "weight": {name: float(getattr(rows.weight, name)()) for name in ("min", "mean", "max")},
        "findings": [asdict(f) for f in findings],
        "leaks": [asdict(leak) for leak in leaks],
        "leak_together": asdict(together.share) | {"tells": together.share.tells},
        "leak_margin": MARGIN,
    }  # fmt: skip


def _tables(rows: Rows, pictures: PictureTable) -> list[tuple[str, str, list[tuple[str, int, float]]]]:
    """What the set is made of: heading, unit, and (name, number, share of the largest) per bar."""
    read = pictures.found[pictures.read]
    sizes = Counter(f"{w:.0f} × {h:.0f}" for w, h in zip(read["width"], read["height"], strict=True))
    edges = [edge for edge, _ in ASPECTS]
    places = np.searchsorted(edges, read["width"] / read["height"], side="left")
    shapes = Counter(int(p) for p in places)
    grades = Counter("tie" if p == 0.5 else "sure (1)" if p == 1 else "graded" for p in rows.preference)
    groups = Counter(g for g in rows.group if g is not None)
    per_group = Counter(count(n, "pair") for n in groups.values())
    tables = [
        ("Split", "pairs", _bars(Counter(rows.split).most_common())),
        ("Preference", "pairs", _bars(grades.most_common())),
        ("Weight", "pairs", _bars(Counter(f"{w:g}" for w in rows.weight).most_common())),
        ("Source", "pairs", _bars(Counter(s or "not said" for s in rows.source).most_common())),
        ("Group", "groups", _bars(per_group.most_common())),
        ("Size in pixels", "pictures", _bars(sizes.most_common())),
        ("Shape", "pictures", _bars([(ASPECTS[p][1], shapes[p]) for p in sorted(shapes)], len(ASPECTS))),
        ("File type", "pictures", _bars(Counter(read["format"].tolist()).most_common())),
        ("Colour mode", "pictures", _bars(Counter(read["mode"].tolist()).most_common())),
        ("JPEG quality", "pictures", _bars(_qualities(read["jpeg_quality"]))),
    ]
    return [table for table in tables if table[2]]


def _qualities(values: Any) -> list[tuple[str, int]]:
    tens = Counter(int(q) // 10 * 10 for q in values[np.isfinite(values)])
    return [(f"{t}–{t + 9}" if t < 100 else "100", tens[t]) for t in sorted(tens)]


def _bars(counted: Iterable[tuple[str, int]], most: int = SHOWN_KINDS) -> list[tuple[str, int, float]]:
    """The first ``most``, and the sum of the rest."""
    listed = list(counted)
    if len(listed) > most + 1:
        listed = [*listed[:most], (f"{len(listed) - most:,} others", sum(n for _, n in listed[most:]))]
    largest = max((n for _, n in listed), default=1)
    return [(name, number, number / largest) for name, number in listed]


@lru_cache(1)
def _environment() -> jinja2.Environment:
    return environment(
        Path(__file__).parent, statistic=found.statistic, auc=lambda v: f"{v:.2f}", bounds=_bounds, count=count
    )


def _bounds(share: Share) -> str:
    return f"{share.low:.2f}–{share.high:.2f}"


def lines(summary: dict[str, Any]) -> list[str]:
    """The numbers as text for a terminal: findings with their first rows and a remedy, then the leak test."""
    told = []
    for finding in summary["findings"]:
        told.append(f"{finding['severity']:8} {finding['says']}")
        told += [f"{'':9}row {row}: {words}" for row, words in finding["rows"]]
        if finding["rows"] and finding["count"] > len(finding["rows"]):
            told.append(f"{'':9}and {finding['count'] - len(finding['rows']):,} more")
        if finding["remedy"]:
            told.append(f"{'':9}{finding['remedy']}")
    if not summary["has_rejected"]:
        return [*told, "", summary["verdict"]]
    if not summary["trained"]:
        told += ["", "No pair is trained on, so the leak test asks all pairs."]
    told += ["", f"{'chosen against rejected':24} {'paired AUC':>10}  {'95 % interval':13} {'AUC':>5} {'pairs':>9}"]
    every = [(found.statistic(leak["name"]), leak["paired"], leak["auc"], leak["tells"]) for leak in summary["leaks"]]
    together = summary["leak_together"]
    for name, share, auc, tells in [*every, ("all together", together, None, together["tells"])]:
        bounds = f"{share['low']:.2f} to {share['high']:.2f}"
        alone = f"{auc:5.2f}" if auc is not None else " " * 5
        mark = "  leaks" if tells else ""
        told.append(f"{name:24} {share['value']:10.2f}  {bounds:13} {alone} {share['pairs']:9,}{mark}")
    return [*told, "", summary["verdict"]]


__all__ = ["check_pairs", "lines", "verdict"]
