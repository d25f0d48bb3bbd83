"""The answer a person can read: one self-contained page with pictures, win rates and intervals, before and after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mapo.errors import MapoError
from mapo.files import prepare_out, write_text
from mapo.images import is_sensitive
from mapo.report.curves import draw_curves, read_metrics
from mapo.report.evidence import (
    PROMPT_FOLLOWING,
    Comparison,
    Rows,
    cautions,
    compare,
    read_evidence,
    read_pictures,
)
from mapo.report.pictures import embed, spread
from mapo.report.verdict import Verdict, followed, judge, number, percent, score, signed, span
from mapo.winrate import MIN_PAIRS, MIN_PROMPTS, Pair

SHOWN_PAIRS = 48
FIRST_PAIRS = 12  # in sight at once; the others unfold
EXTREMES = 6  # best and worst changes


def write_report(
    before: Path,
    after: Path,
    scores: list[Path],
    out: Path,
    goal: str | None = None,
    run: Path | None = None,
    judge_of_pairs: str | None = None,
    blur: bool = False,
) -> dict[str, Any]:
    """Write a page about two folders of pictures of the same prompts and seeds; return its numbers.

    ``scores`` are files of `mapo score` that together cover both folders. ``goal`` is the metric that training was
    for, ``-metric`` when lower is better. ``run`` adds training curves and configuration. ``judge_of_pairs`` is the
    scorer that made or filtered the training pairs. ``blur`` hides the pictures until the reader asks, as is done by
    itself when a run trained on a sensitive set made some of them. In the result win rates are shares of 1, and a
    bound that the data cannot give is None.

    Raises MapoError when pictures are missing or their seeds do not match, and when scores are stale or incomplete.
    """
    prepare_out(out)
    first, second = read_pictures(before, after)
    tables = read_evidence(scores, first, second)
    comparisons = compare(*tables, len(first), goal, judge_of_pairs)
    verdict = judge(comparisons, goal)
    curves = draw_curves(read_metrics(run)) if run else []
    warnings = cautions(first, second, comparisons, judge_of_pairs)
    summary = _plain(_summary(first, second, comparisons, verdict, goal, judge_of_pairs, warnings))
    cards = _Cards(before, after, first, second, verdict.headline or comparisons[0])
    keys = list(first)
    best, worst = _extremes(verdict.headline)
    page = _environment().get_template("page.html.j2").render(
        sensitive=blur or is_sensitive(before) or is_sensitive(after) or _sensitive(run),
        verdict=verdict,
        summary=summary,
        cautions=warnings,
        comparisons=comparisons,
        following=[c for c in comparisons if c.metric == PROMPT_FOLLOWING],
        cards=[cards.card(keys[i]) for i in spread([k[0] for k in keys], SHOWN_PAIRS)],
        first_pairs=FIRST_PAIRS,
        pairs=len(keys),
        best=[cards.card((p.prompt_id, p.seed)) for p in best],
        worst=[cards.card((p.prompt_id, p.seed)) for p in worst],
        counts=_counts(verdict.headline),
        curves=[(c.title, c.note, Markup(c.svg)) for c in curves],  # drawn here, holds no foreign text
        config=_config(run),
        run=str(run) if run else "",
        provenance=_provenance(before, after, first, second),
        files=[str(p) for p in scores],
        limits=(MIN_PAIRS, MIN_PROMPTS),
    )  # fmt: skip
    write_text(out, page)
    return dict(summary)


def _sensitive(run: Path | None) -> bool:
    """Whether the run was trained on a set that is marked sensitive."""
    path = run / "run.json" if run else None
    return bool(path and path.is_file() and json.loads(path.read_text("utf-8")).get("sensitive"))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, number=number, signed=signed, span=span, followed=followed, words=lambda n: n.replace("_", " ")
    )
    return environment


class _Cards:
    """Pairs of pictures ready for the page, each embedded once however often it is asked for."""

    def __init__(self, before: Path, after: Path, first: Rows, second: Rows, shown: Comparison) -> None:
        self.sides = ((before, first), (after, second))
        self.shown = shown
        self.scores = {(p.prompt_id, p.seed): p for p in shown.pairs}
        self.ready: dict[tuple[str, int], dict[str, Any]] = {}

    def card(self, key: tuple[str, int]) -> dict[str, Any]:
        if key not in self.ready:
            (small, large, tiny), (small_after, large_after, tiny_after) = (
                embed(folder, rows[key]) for folder, rows in self.sides
            )
            row, pair = self.sides[0][1][key], self.scores.get(key)
            self.ready[key] = {
                "prompt": row.prompt,
                "seed": row.seed,
                "before": small,
                "after": small_after,
                "large_before": large,
                "large_after": large_after,
                "pixels": tiny and tiny_after,
                "width": row.width,
                "height": row.height,
                "change": self._change(pair) if pair else "",
            }
        return self.ready[key]

    def _change(self, pair: Pair) -> str:
        first, second = score(pair.before, self.shown), score(pair.after, self.shown)
        return f"{self.shown.metric.replace('_', ' ')} {first}\u00a0→\u00a0{second}"


def _extremes(headline: Comparison | None) -> tuple[list[Pair], list[Pair]]:
    """The pairs that gained and lost most by the headline's scorer, one of a prompt; ties in the pictures' order."""
    if headline is None:
        return [], []
    ranked = {p.prompt_id: p for p in sorted(headline.pairs, key=headline.gain)}  # the best of each prompt
    best = sorted((p for p in ranked.values() if headline.gain(p) > 0), key=lambda p: -headline.gain(p))
    ranked = {p.prompt_id: p for p in sorted(headline.pairs, key=lambda p: -headline.gain(p))}  # and the worst
    worst = sorted((p for p in ranked.values() if headline.gain(p) < 0), key=headline.gain)
    return best[:EXTREMES], worst[:EXTREMES]


def _counts(headline: Comparison | None) -> dict[str, int]:
    gains = [headline.gain(p) for p in headline.pairs] if headline else []
    return {
        "better": sum(g > 0 for g in gains),
        "equal": sum(g == 0 for g in gains),
        "worse": sum(g < 0 for g in gains),
    }


def _config(run: Path | None) -> str:
    path = run / "config.toml" if run else None
    if path is None or not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MapoError(f"{path} cannot be read ({error}). Run `mapo train` again or leave --run out.") from None


def _provenance(before: Path, after: Path, first: Rows, second: Rows) -> list[tuple[str, str, str]]:
    """Name, before, after: how the pictures were made."""

    def told(rows: Rows, name: str) -> str:
        values = sorted({getattr(r, name) for r in rows.values()})
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values if v != "") or "none"

    def seeds(rows: Rows) -> str:
        values = sorted({r.seed for r in rows.values()})
        return ", ".join(map(str, values)) if len(values) <= 8 else f"{len(values)} from {values[0]} to {values[-1]}"

    def sizes(rows: Rows) -> str:
        return ", ".join(f"{w} × {h}" for w, h in sorted({(r.width, r.height) for r in rows.values()}))

    table = [("folder", str(before), str(after))]
    for name in ("model", "revision", "sampler", "steps", "guidance", "prefix", "negative_prompt"):
        values = told(first, name), told(second, name)
        if values != ("none", "none"):
            table.append((name.replace("_", " "), *values))
    table.append(("size in pixels", sizes(first), sizes(second)))
    table.append(("seeds", seeds(first), seeds(second)))
    table.append(("prompts", str(len({k[0] for k in first})), str(len({k[0] for k in second}))))
    table.append(("pictures", str(len(first)), str(len(second))))
    return table


def _summary(
    first: Rows,
    second: Rows,
    comparisons: Sequence[Comparison],
    verdict: Verdict,
    goal: str | None,
    judge_of_pairs: str | None,
    warnings: list[str],
) -> dict[str, Any]:
    rows = [
        {
            "scorer": c.scorer,
            "metric": c.metric,
            "version": c.version,
            "lower_is_better": c.lower_is_better,
            "made_pairs": c.made_pairs,
            "win_rate": asdict(c.win),
            "before": asdict(c.before),
            "after": asdict(c.after),
            "difference": asdict(c.difference),
        }
        for c in comparisons
    ]
    found = next((i for i, c in enumerate(comparisons) if c is verdict.headline), None)
    return {
        "version": 1,
        "verdict": verdict.sentence,
        "detail": verdict.detail,
        "call": verdict.call,
        "goal": goal,
        "judge_of_pairs": judge_of_pairs,
        "headline": None if found is None else rows[found],
        "comparisons": rows,
        "prompt_following": [r for r in rows if r["metric"] == PROMPT_FOLLOWING],
        "cautions": warnings,
        "pairs": len(first),
        "prompts": len({k[0] for k in first}),
        "models": {
            side: sorted({r.model for r in pictures.values()})
            for side, pictures in (("before", first), ("after", second))
        },
    }


def _plain(value: Any) -> Any:
    """The same with bounds that are not known as null, which JSON can say."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["write_report"]
