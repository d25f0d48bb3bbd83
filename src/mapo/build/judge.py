"""Judges: scorers that decide which pictures of a prompt become a pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mapo.build.recipe import Recipe
from mapo.errors import MapoError, suggest
from mapo.score.scorers import Scorer, load_scorer, split_judge


@dataclass(frozen=True)
class Filter:
    """Keep a pair only where ``scorer`` gives the chosen picture more of ``metric`` than the rejected one, or more than
    ``threshold`` where that is given (less, with ``sign`` −1)."""

    scorer: Scorer
    metric: str
    sign: int = 1
    threshold: float | None = None

    def __str__(self) -> str:
        than = "" if self.threshold is None else f":{self.threshold:g}"
        revision = f", weights {self.scorer.revision}" if self.scorer.revision else ""
        version = f"(version {self.scorer.version}{revision})"
        return f"{self.scorer.name}:{'-' * (self.sign < 0)}{self.metric}{than} {version}"

    def keeps(self, chosen: float | None, rejected: float | None) -> bool:
        """The verdict on a pair of values; one that is not a number (None: the scorer gave none) keeps nothing."""
        least = rejected if self.threshold is None else self.threshold
        return chosen is not None and least is not None and self.sign * chosen > self.sign * least

    def sides(self, recipe: Recipe) -> list[str]:
        """The pictures of a prompt that it looks at: all, or, where it judges the request (as ``vlm`` does) and
        has a threshold, the chosen one alone."""
        alone = self.threshold is not None and not recipe.ranks and self.judges_request
        return list(recipe.prefixes)[:1] if alone else list(recipe.prefixes)

    @property
    def judges_request(self) -> bool:
        """Whether the scorer is told the prefix of the chosen picture together with the prompt."""
        return bool(getattr(self.scorer, "judges_request", False))

    def verdict(self, chosen: float | None, rejected: float | None) -> dict[str, Any]:
        """What a pair's row says of this judge."""
        return {
            "scorer": self.scorer.name,
            "metric": self.metric,
            "sign": self.sign,
            "threshold": self.threshold,
            "version": self.scorer.version,
            "revision": self.scorer.revision,
            "chosen": chosen,
            "rejected": rejected,
        }


def parse_filter(text: str) -> Filter:
    """``SCORER:METRIC`` or ``SCORER:METRIC:THRESHOLD``, with ``-METRIC`` where less is better."""
    name, metric, number = split_judge(text)
    scorer = load_scorer(name)
    bare = metric.removeprefix("-")
    if bare not in scorer.metrics:
        raise MapoError(f"--judge {text!r}: write {name}:METRIC or {name}:-METRIC. {suggest(bare, scorer.metrics)}")
    if scorer.needs_reference:
        raise MapoError(f"--judge {text!r}: {name} compares with reference pictures, so it judges no pairs.")
    if getattr(scorer, "whole_prompts", False):
        raise MapoError(f"--judge {text!r}: {name} looks at all pictures of a prompt together, so it judges no pairs.")
    try:
        threshold = None if number is None else float(number)
    except ValueError:
        threshold = math.nan
    if threshold is not None and not math.isfinite(threshold):
        raise MapoError(f"--judge {text!r}: the threshold {number!r} is not a number.")
    return Filter(scorer, bare, -1 if metric.startswith("-") else 1, threshold)


def judges_of(recipe: Recipe, given: Sequence[Filter]) -> list[Filter]:
    """The recipe's own judges and the user's, with the recipe's threshold where one names none; scorers load once."""
    judges = [*map(parse_filter, recipe.judges), *given]
    if recipe.threshold is not None and not judges:
        raise MapoError(
            f"The recipe {recipe.name} keeps only pairs whose chosen picture a judge puts above {recipe.threshold:g} "
            "of 10. Name the judge: --judge vlm@SOURCE:vlm_score, or one with another scale and a threshold on it, "
            "--judge SCORER:METRIC:THRESHOLD."
        )
    if recipe.threshold is not None and not recipe.ranks:
        judges = [j if j.threshold is not None else replace(j, threshold=recipe.threshold) for j in judges]
    if recipe.ranks and all(j.threshold is not None for j in judges):
        raise MapoError(
            f"The recipe {recipe.name} takes the best and the worst of {recipe.candidates} pictures; name a judge that "
            "orders them, without a threshold: --judge SCORER:METRIC."
        )
    scorers: dict[str, Scorer] = {}
    return [replace(j, scorer=scorers.setdefault(j.scorer.name, j.scorer)) for j in judges]


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the highest value; equal values share the mean of their places."""
    return [1 + sum(v > own for v in values) + (sum(v == own for v in values) - 1) / 2 for own in values]


def best_and_worst(judges: Sequence[Filter], values: Sequence[Sequence[float]]) -> tuple[int, int]:
    """The candidates with the lowest and the highest mean rank over the judges that order (no threshold).

    ``values`` has a list per judge with a number per candidate; of equal mean ranks the first candidate counts.
    """
    ordered = [ranks([j.sign * v for v in row]) for j, row in zip(judges, values, strict=True) if j.threshold is None]
    mean = [sum(column) / len(ordered) for column in zip(*ordered, strict=True)]
    return mean.index(min(mean)), mean.index(max(mean))


def choose(
    recipe: Recipe, judges: Sequence[Filter], values: Sequence[Mapping[str, float | None]]
) -> tuple[str, str] | None:
    """The sides that become chosen and rejected, or None where a judge does not agree or gave no number to order by.

    ``values`` has for each judge a number per side. A recipe with two prefixes knows its sides already. Of candidates
    the best and the worst by mean rank are taken, and kept only where every judge prefers the one to the other.
    """
    sides = list(recipe.prefixes)
    best, worst = 0, 1
    if recipe.ranks:
        given = [[value for side in sides if (value := row[side]) is not None] for row in values]
        if any(j.threshold is None and len(row) < len(sides) for j, row in zip(judges, given, strict=True)):
            return None
        best, worst = best_and_worst(judges, given)
    chosen, rejected = sides[best], sides[worst]
    agreed = all(j.keeps(row[chosen], row[rejected]) for j, row in zip(judges, values, strict=True))
    return (chosen, rejected) if agreed and best != worst else None


def unjudged(recipe: Recipe, judges: Sequence[Filter], values: Sequence[Mapping[str, float | None]]) -> bool:
    """Whether a judge gave no number for a picture on which it decides."""
    chosen = list(recipe.prefixes)[:1]
    return any(
        row[side] is None
        for j, row in zip(judges, values, strict=True)
        for side in (row if j.threshold is None or recipe.ranks else chosen)
    )
