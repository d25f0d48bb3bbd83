"""The search for a method's settings: every method gets the same number of trials, and no grid has an edge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Point = tuple[float, ...]


@dataclass(frozen=True)
class SearchResult:
    """What a search ended with. ``interior``: higher and lower values of every setting were tried."""

    settings: dict[str, float]
    result: Any
    trials: int
    interior: bool


def compass(
    evaluate: Callable[[dict[str, float]], tuple[float, Any]],
    start: Mapping[str, float],
    factors: Mapping[str, float],
    trials: int,
) -> SearchResult:
    """Climb from ``start`` by multiplying or dividing one setting at a time by its factor; higher is better.

    The best point's untried neighbours come next, those along the direction of the last gain first, so an optimum at
    the edge of what was tried is always followed outwards. Where all neighbours have been tried and trials are left,
    factors shrink to their square roots. ``evaluate`` gives a value and what is to be kept with it.
    """
    names = list(start)
    tried: dict[Point, tuple[float, Any]] = {}
    scale, direction, best = 1.0, (0.0,) * len(names), (0.0,) * len(names)

    def settings(point: Point) -> dict[str, float]:
        return {n: start[n] * factors[n] ** p for n, p in zip(names, point, strict=True)}

    def try_(point: Point) -> float:
        tried[point] = evaluate(settings(point))
        return tried[point][0]

    try_(best)
    while len(tried) < trials:
        fresh = [p for p in _neighbours(best, scale) if p not in tried]
        if not fresh:
            scale /= 2
            continue
        point = max(fresh, key=lambda p: sum((a - b) * d for a, b, d in zip(p, best, direction, strict=True)))
        if try_(point) > tried[best][0]:
            direction = tuple(a - b for a, b in zip(point, best, strict=True))
            best = point
    sides = {(i, other[i] > best[i]) for other in tried for i in range(len(best)) if other[i] != best[i]}
    return SearchResult(settings(best), tried[best][1], len(tried), len(sides) == 2 * len(best))


def lengthen(
    evaluate: Callable[[int], tuple[float, Any]], first: tuple[float, Any], steps: int, enough: float
) -> tuple[float, Any]:
    """Follow an optimum at its last look: three times as many ``steps``, and again, while that helps and the best is
    below ``enough``, three times at most. ``evaluate`` takes a number of steps and gives, as ``first`` is, a value and
    what is to be kept with it; the best of them."""
    best = first
    for times in (3, 9, 27):
        if best[0] >= enough:
            break
        found = evaluate(times * steps)
        if found[0] <= best[0]:
            break
        best = found
    return best


def _neighbours(point: Point, scale: float) -> list[Point]:
    return [
        tuple(v + sign * scale if i == axis else v for i, v in enumerate(point))
        for axis, sign in itertools.product(range(len(point)), (1, -1))
    ]


def value(looked: Mapping[str, Any]) -> float:
    """What a search maximises: the share of pictures that show the goal and follow their prompt, by the judge that
    also made pairs. Where these are different pictures, the mean of the two shares. A training that diverged has −1."""
    if "failed" in looked:
        return -1.0
    reached, followed = (str(looked[f"{what} mini-learned"]) for what in ("reached", "followed"))
    if looked["same"]:
        return sum(a == b == "1" for a, b in zip(reached, followed, strict=True)) / len(reached)
    return (reached.count("1") / len(reached) + followed.count("1") / len(followed)) / 2


def merit(looked: Mapping[str, Any]) -> float:
    """What a search compares: :func:`value`, and where that is equal the mean of its two shares. So a method that
    reaches nothing ends with settings that at least keep prompts followed."""
    if "failed" in looked:
        return -1.0
    told = [str(looked[f"{what} mini-learned"]) for what in ("reached", "followed")]
    return value(looked) + 1e-4 * sum(flags.count("1") / len(flags) for flags in told)
