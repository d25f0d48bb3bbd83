"""Win rates and means over pairs of scores, with intervals that treat the seeds of a prompt as belonging together.

Two pictures are a pair when they were made from the same prompt and the same noise, once before and once after
training. What is compared is a scorer's number for the one with its number for the other. Pairs of one prompt are not
independent, so every interval resamples whole prompts (a cluster bootstrap, BCa) and never single pictures. Where few
prompts speak at all, an exact test decides whether anything is called.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from mapo.errors import MapoError, suggest

MIN_PAIRS = 20
MIN_PROMPTS = 10  # a 95 % interval misses a true 50 % in 12 % of experiments with 5 prompts, in 5 to 7 % with 10
RESAMPLES = 9_999
CONFIDENCE = 0.95
FEW = 12  # prompts off the null or fewer: a bootstrap calls three that agree, an exact test wants six
EVEN = 0.5

Floats = NDArray[np.float64]
Bounds = Callable[[float, int], tuple[float, float]]


@dataclass(frozen=True)
class PairedScores:
    """What one scorer gave, in its own unit, to the two pictures of a prompt and seed."""

    prompt_id: str
    prompt: str
    seed: int
    before: float
    after: float
    image_before: str
    image_after: str

    @property
    def difference(self) -> float:
        """After minus before, in the scorer's unit."""
        return self.after - self.before


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, in the unit of what was estimated (win rates and rates as shares of 1)."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether ``value`` lies within the interval, its ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Interval(Estimate):
    """An estimate over pairs, which resamples whole prompts.

    ``conclusive`` is false with fewer than 20 pairs or 10 prompts, and when the interval of a win rate covers 50 % or
    that of a difference covers 0; it does so too where a dozen prompts or fewer differ and an exact test cannot tell.
    Bounds are infinite where the data cannot give any (real numbers of one prompt).
    """

    pairs: int
    prompts: int
    conclusive: bool


def paired(before: pa.Table, after: pa.Table, scorer: str, metric: str) -> list[PairedScores]:
    """The pairs that both tables of scores hold for a scorer's metric, joined on prompt and seed, in before's order.

    A pair in which a value is null (the scorer gave no number) is left out. Raises MapoError when a table lacks the
    metric, holds a picture twice or a value that is NaN or infinite, when no pair has two numbers, when the scorer's
    version differs, and when no prompt and seed is in both.
    """
    sides = [_side(table, name, scorer, metric) for table, name in ((before, "before"), (after, "after"))]
    versions = [sorted({f"{r['version']} {r['revision'] or ''}".strip() for r in side.values()}) for side in sides]
    if len({v for side in versions for v in side}) > 1:
        raise MapoError(
            f"{scorer} scored before in version {', '.join(versions[0])} and after in {', '.join(versions[1])}: "
            "they cannot be compared. Score both again with one version."
        )
    first, second = sides
    keys = [key for key in first if key in second]
    if not keys:
        same = {k[0] for k in first} & {k[0] for k in second}
        why = "the prompts are the same but the seeds differ" if same else "they have no prompt in common"
        raise MapoError(
            f"Before and after share no pair of prompt and seed for {scorer} {metric}: {why}. "
            "Sample both from the same prompts with the same seeds."
        )
    keys = [key for key in keys if first[key]["value"] is not None and second[key]["value"] is not None]
    if not keys:
        raise MapoError(f"{scorer} gave no {metric} to any pair of pictures, so there is nothing to compare.")
    return [
        PairedScores(
            *(key[0], first[key]["prompt"], key[1], first[key]["value"], second[key]["value"]),
            *(first[key]["image"], second[key]["image"]),
        )
        for key in keys
    ]


def _side(table: pa.Table, name: str, scorer: str, metric: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of a scorer's metric by prompt and seed."""
    rows = table.filter(pc.and_(pc.equal(table["scorer"], scorer), pc.equal(table["metric"], metric))).to_pylist()
    if not rows:
        known = {f"{s} {m}" for s, m in zip(*(table[c].to_pylist() for c in ("scorer", "metric")), strict=True)}
        hint = suggest(f"{scorer} {metric}", known) if known else "It has no rows at all."
        raise MapoError(f"The scores of {name} have no {scorer} {metric}. {hint} Run `mapo score` with that scorer.")
    found: dict[tuple[str, int], dict[str, Any]] = {}
    versions = sorted({f"{row['version']} {row['revision'] or ''}".strip() for row in rows})
    if len(versions) > 1:
        raise MapoError(
            f"The scores of {name} hold {scorer} {metric} in {len(versions)} versions ({', '.join(versions)}), which "
            "cannot be compared. Score that folder again with one version."
        )
    for row in rows:
        key, where = (row["prompt_id"], row["seed"]), f"prompt {row['prompt']!r}, seed {row['seed']}"
        if key in found:
            raise MapoError(
                f"The scores of {name} hold {scorer} {metric} twice for {where}. Keep one score per picture."
            )
        if row["value"] is not None and not math.isfinite(row["value"]):
            raise MapoError(
                f"The scores of {name} hold {row['value']} as {scorer} {metric} of {where}, which is not a number. "
                "Score that picture again."
            )
        found[key] = row
    return found


# ------------------------------------------------------------------ estimates


def win_rate(
    differences: Sequence[float] | Floats, clusters: Sequence[str], rng: int | np.random.Generator = 0
) -> Interval:
    """The share of pairs in which after beats before, a tie counting half; ``clusters`` names each pair's prompt.

    ``differences`` are after minus before. When all prompts agree there is nothing to resample, and the interval is
    the exact one of Clopper and Pearson over prompts.
    """
    return mean_share((np.sign(_numbers(differences)) + 1) / 2, clusters, rng)


def mean_share(
    shares: Sequence[float] | Floats, clusters: Sequence[str], rng: int | np.random.Generator = 0
) -> Interval:
    """A win rate from each pair's own share, 0 … 1 (such as the votes of several people); conclusive off 50 %."""
    return _interval(_numbers(shares), clusters, _exact, EVEN, rng)


def mean_difference(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    clusters: Sequence[str],
    rng: int | np.random.Generator = 0,
) -> Interval:
    """The mean of after minus before over pairs, in the scorer's unit."""
    first, second = _numbers(before), _numbers(after)
    differences = second - first

    def bounds(value: float, prompts: int) -> tuple[float, float]:
        if not (is_binary(first) and is_binary(second)):
            return _no_spread(value, prompts)
        if not differences.any():  # neither a gain nor a loss in so many prompts
            most = _exact(0.0, prompts)[1]
            return -most, most
        low, high = _exact((value + 1) / 2, prompts)
        return 2 * low - 1, 2 * high - 1

    return _interval(differences, clusters, bounds, 0.0, rng)


def mean(values: Sequence[float] | Floats, clusters: Sequence[str], rng: int | np.random.Generator = 0) -> Interval:
    """The mean of one side's scores, in the scorer's unit; ``pairs`` is then the number of pictures."""
    numbers = _numbers(values)
    return _interval(numbers, clusters, _exact if is_binary(numbers) else _no_spread, None, rng)


def ratio(
    parts: Sequence[float] | Floats,
    wholes: Sequence[float] | Floats,
    clusters: Sequence[str],
    rng: int | np.random.Generator = 0,
) -> Interval:
    """The sum of ``parts`` over that of ``wholes``, all of which are positive; conclusive when it is not 0."""
    weights = _numbers(wholes)
    return _interval(_numbers(parts) / weights, clusters, _no_spread, 0.0, rng, weights)


def is_binary(values: Iterable[float] | Floats) -> bool:
    """Whether all values are 0 or 1, so that their mean is a rate."""
    return all(v in (0.0, 1.0) for v in values)


def _numbers(values: Sequence[float] | Floats) -> Floats:
    numbers = np.asarray(values, np.float64)
    if not numbers.size:
        raise MapoError("There are no pairs to compare. Score pictures of the same prompts and seeds first.")
    if bad := int((~np.isfinite(numbers)).sum()):
        what = "1 score is not a number" if bad == 1 else f"{bad:,} scores are not numbers"
        raise MapoError(f"{what}. Score {'that picture' if bad == 1 else 'those pictures'} again.")
    return numbers


def _interval(
    values: Floats, clusters: Sequence[str], degenerate: Bounds, null: float | None, rng: int | np.random.Generator,
    weights: Floats | None = None,
) -> Interval:  # fmt: skip
    assert len(values) == len(clusters), "one cluster per value"
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.bincount(place, weights).astype(np.float64)
    sums = np.bincount(place, values if weights is None else values * weights).astype(np.float64)
    prompts, value = len(counts), float(np.average(values, weights=weights))
    means = sums / counts
    if prompts == 1 or np.ptp(means) <= 1e-12 * max(1.0, float(np.abs(means).max())):
        low, high = degenerate(value, prompts)
    else:
        low, high = _bootstrap(sums, counts, rng)
    low, high = min(low, value), max(high, value)
    if null is not None and not low <= null <= high and not _rejects(sums - null * counts):
        low, high = min(low, null), max(high, null)
    enough = len(values) >= MIN_PAIRS and prompts >= MIN_PROMPTS
    called = enough and (null is None or not low <= null <= high)
    return Interval(value, low, high, len(values), prompts, called)


def _rejects(gains: Floats) -> bool:
    """Whether the exact sign-flip test over prompts rejects that gains (of whole prompts) are as likely as losses.

    It is asked where few prompts differ from the null; where many do, the bootstrap's word stands.
    """
    speaking = gains[np.abs(gains) > 1e-12 * max(1.0, float(np.abs(gains).max()))]
    if len(speaking) > FEW:
        return True
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(speaking))))
    sums = np.abs(signs @ speaking)
    extreme = sums >= abs(float(speaking.sum())) * (1 - 1e-9)
    return bool(extreme.mean() <= 1 - CONFIDENCE)


def _ratio(sums: Floats, counts: Floats, axis: int = -1) -> Floats:
    return np.asarray(sums.sum(axis) / counts.sum(axis))


def _bootstrap(sums: Floats, counts: Floats, rng: int | np.random.Generator) -> tuple[float, float]:
    """Bounds of sum over count when whole prompts are drawn again: BCa, or percentiles where BCa is not defined."""
    batch = max(1, 4_000_000 // len(sums))  # resamples held in memory at once
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy's word for "BCa is not defined here"; the next method answers
            low, high = stats.bootstrap(
                (sums, counts), _ratio, n_resamples=RESAMPLES, batch=batch, vectorized=True, paired=True,
                confidence_level=CONFIDENCE, method=method, rng=np.random.default_rng(rng),
            ).confidence_interval  # fmt: skip
        if math.isfinite(low) and math.isfinite(high):
            break
    return float(low), float(high)


def percentiles(
    statistic: Callable[[NDArray[np.int64]], float], rows: int, resamples: int, rng: int | np.random.Generator = 0
) -> tuple[float, float]:
    """Bounds of a ``statistic`` of ``rows`` that is not a mean: the percentiles of what resampled rows give.

    A resample in which it is not defined (NaN) is passed over.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            (np.arange(rows),), statistic, vectorized=False, method="percentile", n_resamples=resamples, batch=1,
            rng=np.random.default_rng(rng),
        ).bootstrap_distribution  # fmt: skip
    low, high = np.nanpercentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def _exact(share: float, prompts: int) -> tuple[float, float]:
    """Clopper-Pearson bounds for ``share`` of ``prompts``, outwards where that is not a whole number of prompts."""
    ends = (math.floor(share * prompts + 1e-9), math.ceil(share * prompts - 1e-9))
    few, many = (stats.binomtest(k, prompts).proportion_ci(CONFIDENCE, "exact") for k in ends)
    return float(few.low), float(many.high)


def _no_spread(value: float, prompts: int) -> tuple[float, float]:
    """Bounds for real numbers that are all equal: none from one prompt, no width from several."""
    return (value, value) if prompts > 1 else (-math.inf, math.inf)


def smooth(values: Floats, reach: int) -> Floats:
    """The mean over ``reach`` values to either side, or as many as there are."""
    sums, places = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))
