"""What a domain, a method and a number of pairs came to: shares with their intervals.

Two things are random in a result: which prompts were looked at, and the seed of the training (its pairs, noise and
order). Every interval therefore counts both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mapo.lab.study.domains import CONFIRMED_BY
from mapo.statistics import Estimate

Floats = NDArray[np.float64]
Key = tuple[str, str, int]  # domain, method, number of pairs
Cells = Mapping[Key, "Cell"]


@dataclass(frozen=True)
class Percent(Estimate):
    """A share or a difference of shares, which people read in percent."""

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def signed(self) -> str:
        """A difference in points."""
        return f"{100 * self.value:+.0f} [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"

    @property
    def sure(self) -> bool:
        """Whether a difference's interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def shares(digits: Sequence[str], prompts: int) -> Floats:
    """Strings of 0 and 1, one of each training seed → "seeds prompts", the share of each prompt's pictures."""
    flags = np.array([[d == "1" for d in row] for row in digits], np.float64)
    return np.asarray(flags.reshape(len(digits), prompts, -1).mean(2))


def both(one: str, other: str) -> str:
    """1 where both strings have a 1."""
    return "".join("1" if a == b == "1" else "0" for a, b in zip(one, other, strict=True))


def estimate(parts: Sequence[Floats], least: float = 0.0, level: float = 0.95) -> Percent:
    """The mean of the parts' means, with its interval within ``least`` … 1; each part is "seeds prompts".

    Variance of the mean = that among seeds + that among prompts − what is in both; Student's t with the degrees of
    freedom of Welch and Satterthwaite, so that few seeds make wide intervals. With one seed only prompts are drawn.
    Where all prompts of a part are alike, as many more are thought of as Agresti and Coull do (two of four differ);
    a share whose pictures are all alike has the exact interval over prompts.
    """
    value = float(np.mean([part.mean() for part in parts]))
    prompts = min(part.shape[1] for part in parts)
    if len(parts) == 1 and np.ptp(parts[0]) == 0 and value in (0, 1) and least == 0:
        exact = stats.binomtest(round(value * prompts), prompts).proportion_ci(level, "exact")
        return Percent(value, float(exact.low), float(exact.high))
    return around(value, *variance_of(parts), least, level)


def around(value: float, variance: float, freedom: float, least: float, level: float) -> Percent:
    """A value with the interval that its variance and degrees of freedom give it, within ``least`` … 1."""
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return Percent(value, max(least, value - reach), min(1.0, value + reach))


def variance_of(parts: Sequence[Floats]) -> tuple[float, float]:
    """The variance of the mean of the parts' means, and its degrees of freedom."""
    seeds, prompts = len(parts[0]), min(part.shape[1] for part in parts)
    runs = np.mean([part.mean(1) for part in parts], axis=0)
    among_seeds = float(runs.var(ddof=1)) / seeds if seeds > 1 else 0.0
    among_prompts = sum(_prompt_variance(part.mean(0)) for part in parts) / len(parts) ** 2
    in_both = sum(_left_over(part) for part in parts) / len(parts) ** 2
    variance = max(among_seeds, among_prompts, among_seeds + among_prompts - in_both)
    freedom = (among_seeds + among_prompts) ** 2 / (
        among_seeds**2 / max(seeds - 1, 1) + among_prompts**2 / max(prompts - 1, 1)
    )
    return variance, freedom


def _prompt_variance(means: Floats) -> float:
    """The variance of the mean of "prompts" values."""
    n = len(means)
    if np.ptp(means) == 0:
        return 2.0 / (n + 4) * (1 - 2 / (n + 4)) / (n + 4)
    return float(means.var(ddof=1)) / n


def _left_over(part: Floats) -> float:
    """The variance of the mean that is neither of seeds nor of prompts, "seeds prompts"."""
    seeds, prompts = part.shape
    if seeds < 2 or prompts < 2:
        return 0.0
    rest = part - part.mean(0) - part.mean(1)[:, None] + part.mean()
    return float(np.square(rest).sum() / ((seeds - 1) * (prompts - 1)) / (seeds * prompts))


@dataclass(frozen=True)
class Cell:
    """What the runs of a domain, a method and a number of pairs found: a dictionary per seed, in the seeds' order.

    ``wordings`` of a scene follow each other among the goal's prompts; they are not prompts of their own.
    """

    looks: tuple[Mapping[str, Any], ...]
    wordings: int = 1

    def parts(self, what: str, judge: str = CONFIRMED_BY) -> list[Floats]:
        """``reached``, ``followed``, or ``score`` (both on the same picture; where these differ, the mean)."""
        goal, kept = self.looks[0]["prompts"]
        goal //= self.wordings
        reached = [look[f"reached {judge}"] for look in self.looks]
        followed = [look[f"followed {judge}"] for look in self.looks]
        if what == "reached":
            return [shares(reached, goal)]
        if what == "followed":
            return [shares(followed, kept)]
        if self.looks[0]["same"]:
            return [shares([both(*pair) for pair in zip(reached, followed, strict=True)], goal)]
        return [shares(reached, goal), shares(followed, kept)]

    def mean(self, name: str) -> float | None:
        """The mean of a number over the seeds; a training that diverged has none."""
        known = [look[name] for look in self.looks if name in look]
        return float(np.mean(known)) if known else None
