"""Guards: numbers without better or worse, which say when training has gone further than it was meant to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mapo.report.evidence import GUARDS, Guard, gather
from mapo.report.verdict import number, places
from mapo.score.scorers.guards import Guards
from mapo.statistics import mean, mean_difference


def warnings(guards: Sequence[Guard]) -> list[str]:
    """What the reader is told where guards warn: one text, however many do."""
    if not (moved := [_moved(guard) for guard in guards if guard.warns]):
        return []
    return [
        f"This looks over-optimised: {'; '.join(moved)}. Look at the pictures: where another style was the goal, that "
        "may be what was asked for."
    ]


def _moved(guard: Guard) -> str:
    much = f"{abs(guard.shift):.1f} times" if math.isfinite(guard.shift) else "more than"
    return (
        f"{guard.metric.replace('_', ' ')} went from {number(guard.before, False, places(guard))} to "
        f"{number(guard.after, False, places(guard))}, {much} its spread between prompts before"
    )


def compare_guards(before: pa.Table, after: pa.Table) -> tuple[list[Guard], list[str]]:
    """All guards that were scored, by name, and a sentence on each that has no numbers."""
    rows = [*before.select(["scorer", "metric"]).to_pylist(), *after.select(["scorer", "metric"]).to_pylist()]
    found: list[Guard] = []
    without_numbers: list[str] = []
    for metric in sorted({r["metric"] for r in rows if r["scorer"] == GUARDS}):
        pairs, _ = gather(before, after, (GUARDS, metric))
        if not pairs:
            why = Guards.why_none.get(metric, f"The guard {metric.replace('_', ' ')} has no numbers for these pictures")
            without_numbers.append(f"{why}.")
            continue
        first, second = [p.before for p in pairs], [p.after for p in pairs]
        clusters = [p.prompt_id for p in pairs]
        parts = mean(first, clusters), mean(second, clusters), mean_difference(first, second, clusters)
        found.append(Guard(metric, pairs, *parts, _spread(first, clusters)))
    return found, without_numbers


def _spread(values: list[float], clusters: list[str]) -> float:
    of_prompt: dict[str, list[float]] = {}
    for value, prompt in zip(values, clusters, strict=True):
        of_prompt.setdefault(prompt, []).append(value)
    means = [float(np.mean(v)) for v in of_prompt.values()]
    return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
