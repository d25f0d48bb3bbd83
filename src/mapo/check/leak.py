"""The leak test: can chosen be told from rejected without looking at what is shown?

A model learns whatever tells the two sides apart. Where the size of a file or the quality of a JPEG does, it may learn
that instead of the preference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from mapo.check.pictures import PictureTable
from mapo.statistics import Estimate

EVEN = 0.5
MARGIN = 0.05  # an AUC is called when its whole interval lies farther than this from one half
FOLDS = 5
FEW_PROMPTS = 10  # with fewer of them than this their variance says nothing, and pairs are counted one by one
LEVEL = 0.05  # of the exact test there, over all statistics of the file together, and over all of the content
RIDGE = 1.0  # in units of one pair's loss; keeps weights finite where a statistic tells every pair
# What is shown in a picture can be the reason for a difference in these, unlike in those of the file and its frame.
OF_THE_CONTENT = ("brightness", "saturation", "contrast", "sharpness", "bytes", "bytes_per_pixel")
LOGARITHMIC = ("width", "height", "pixels", "aspect", "bytes", "bytes_per_pixel")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Share(Estimate):
    """A share of pairs, and how many pairs and prompts it rests on."""

    pairs: int
    prompts: int

    @property
    def tells(self) -> bool:
        """Whether the whole interval lies more than the margin away from one half."""
        return self.low > EVEN + MARGIN or self.high < EVEN - MARGIN


@dataclass(frozen=True)
class Leak:
    """How well one statistic tells chosen from rejected."""

    name: str
    of_the_file: bool
    paired: Share  # pairs in which the chosen picture has more of it, ties half
    auc: float  # the same over all chosen against all rejected pictures
    tells: bool
    p: float | None = None  # of the exact sign test that decided, where prompts were few; corrected for their number
    differing: int = 0  # the pairs that this test is over: those whose sides differ in it


@dataclass(frozen=True)
class Together:
    """How well all statistics together tell it: the share of held-out pairs, and each row's margin (NaN: not asked)."""

    share: Share
    margins: Floats


def statistics(pictures: PictureTable, used: Integers | None = None) -> dict[str, Floats]:
    """Name → a number per picture, NaN where it is not known. Those of the file come first.

    Which kinds there are, and the commonest ones, is what it is among the ``used`` pictures.
    """
    found, read = pictures.found, pictures.read
    asked = read if used is None else read & np.isin(np.arange(len(read)), used)
    width, height = found["width"], found["height"]
    values = {"width": width, "height": height, "pixels": width * height, "aspect": width / height}
    values["jpeg_quality"] = found["jpeg_quality"]
    for field in ("format", "mode"):
        kinds = np.unique(found[field][asked])
        for kind in kinds[:1] if len(kinds) == 2 else kinds if len(kinds) > 2 else ():
            values[f"{field} {kind}"] = np.where(read, found[field] == kind, np.nan)
    for field in ("alpha", "exif", "rotated"):
        if len(np.unique(found[field][asked])) == 2:
            values[field] = np.where(read, found[field], np.nan)
    # where one side is all of one kind and the other of many, neither need have more of it
    for name, columns in (("size", (width, height)), ("quality", (found["jpeg_quality"],))):
        known = read & np.isfinite(columns[0])
        kinds, uses = np.unique(np.stack(columns, 1)[known & asked], axis=0, return_counts=True)
        if len(kinds) > 2:
            most = kinds[uses.argmax()]
            same = np.all([column == one for column, one in zip(columns, most, strict=True)], axis=0)
            values[f"{name} {' × '.join(f'{one:.0f}' for one in most)}"] = np.where(known, same, np.nan)
    values |= {name: found[name] for name in ("brightness", "saturation", "contrast", "sharpness", "bytes")}
    values["bytes_per_pixel"] = found["bytes"] / (width * height)
    return {name: np.asarray(column, np.float64) for name, column in values.items()}


def find_leaks(
    values: dict[str, Floats], chosen: Integers, rejected: Integers, prompts: Integers, exact: bool = False
) -> list[Leak]:
    """Each statistic that both pictures of some pair have. ``exact``: the pairs are independent, each of a prompt.

    Then an exact sign test over the pairs whose sides differ decides, and not an interval.
    """
    leaks: list[Leak] = []
    signs: dict[str, Floats] = {}
    for name, column in values.items():
        first, second = column[chosen], column[rejected]
        known = np.isfinite(first) & np.isfinite(second)
        if known.any():
            paired = paired_auc(first[known], second[known], prompts[known])
            leaks.append(Leak(name, of_the_file(name), paired, auc(first[known], second[known]), paired.tells))
            signs[name] = np.sign(np.where(known, first, 0) - np.where(known, second, 0))
    if not exact:
        return leaks
    of_file, of_content = ({n: s for n, s in signs.items() if of_the_file(n) == kind} for kind in (True, False))
    tested = sign_tests(of_file) | sign_tests(of_content)
    return [
        replace(
            leak,
            tells=tested[leak.name] <= LEVEL and abs(leak.paired.value - EVEN) > MARGIN,
            p=tested[leak.name],
            differing=int(np.count_nonzero(signs[leak.name])),
        )
        for leak in leaks
    ]


def of_the_file(name: str) -> bool:
    """Whether a statistic is of the file or its frame, and not of what is shown."""
    return name not in OF_THE_CONTENT


def independent(chosen: Integers, rejected: Integers) -> NDArray[np.bool_]:
    """Which pairs share no picture with one of these before them: pairs of a ranking are not as many as they seem."""
    used: set[int] = set()
    taken = np.zeros(len(chosen), bool)
    for row, sides in enumerate(zip(chosen.tolist(), rejected.tolist(), strict=True)):
        taken[row] = used.isdisjoint(sides)
        if taken[row]:
            used.update(sides)
    return taken


def sign_tests(signs: dict[str, Floats]) -> dict[str, float]:
    """The p of an exact sign test of each statistic, corrected for their number (Holm).

    ``signs`` say for each pair which side has more. Statistics that part all pairs in the same way, as width and
    pixels do, are one test; those that part none are not a test.
    """
    found: dict[bytes, float] = {}
    names: dict[str, bytes] = {}
    for name, sign in signs.items():
        parting = sign[sign != 0]
        key = names[name] = (sign * parting[0] if len(parting) else sign[:0]).astype(np.int8).tobytes()
        found[key] = float(stats.binomtest(int((parting > 0).sum()), len(parting)).pvalue) if len(parting) else 1.0
    corrected, least = {b"": 1.0}, 0.0
    tests = sorted((p, key) for key, p in found.items() if key)
    for number, (p, key) in enumerate(tests):
        least = corrected[key] = max(least, min(1.0, p * (len(tests) - number)))
    return {name: corrected[key] for name, key in names.items()}


def auc(first: Floats, second: Floats) -> float:
    """The chance that a value of ``first`` is above one of ``second``, ties half (Mann and Whitney)."""
    ranks = stats.rankdata(np.concatenate([first, second]))[: len(first)]
    return float((ranks.sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


def paired_auc(first: Floats, second: Floats, prompts: Integers) -> Share:
    """The share of pairs in which ``first`` is above ``second``, ties half."""
    return share((np.sign(first - second) + 1) / 2, prompts)


def share(values: Floats, prompts: Integers) -> Share:
    """The mean of values 0, ½, 1, with an interval that knows that pairs of a prompt belong together.

    Clopper and Pearson's interval at the effective number of pairs (Korn and Graubard 1998): as many independent
    pairs as would have the variance that is found between prompts, or one per prompt where all agree.
    """
    mean, count = float(values.mean()), len(values)
    _, place = np.unique(prompts, return_inverse=True)
    groups = int(place.max()) + 1
    if groups == 1:
        return Share(mean, 0.0, 1.0, count, groups)
    if not (values - mean).any() and mean not in (0, 1):  # nothing but ties
        return Share(mean, mean, mean, count, groups)
    residuals = np.bincount(place, values - mean)
    variance = float(residuals @ residuals) / count**2 * groups / (groups - 1)
    effective = float(groups) if variance == 0 else mean * (1 - mean) / variance
    effective *= (stats.t.ppf(0.975, max(count - 1, 1)) / stats.t.ppf(0.975, groups - 1)) ** 2
    hits, misses = mean * effective, (1 - mean) * effective
    low = float(stats.beta.ppf(0.025, hits, misses + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, misses)) if misses > 0 else 1.0
    return Share(mean, low, high, count, groups)


def tell_together(values: dict[str, Floats], chosen: Integers, rejected: Integers, prompts: Integers) -> Together:
    """Logistic regression on the differences of all statistics, each pair judged by a model that never saw its prompt.

    Five folds of whole prompts, no intercept (a pair has no first side), what is not known counts as no difference.
    With fewer prompts than folds nothing is judged and the share is one half with no bounds.
    """
    columns = []
    for name, column in values.items():
        known = np.log(np.maximum(column, 1e-12)) if name in LOGARITHMIC else column
        columns.append(np.nan_to_num(known[chosen] - known[rejected], nan=0.0))
    differences = np.stack(columns, 1)  # "pairs statistics"
    _, place = np.unique(prompts, return_inverse=True)
    groups = int(place.max(initial=-1)) + 1
    margins = np.full(len(chosen), np.nan)
    if groups < FOLDS:
        return Together(Share(EVEN, 0.0, 1.0, len(chosen), groups), margins)
    folds = np.random.default_rng(0).permutation(groups)[place] % FOLDS
    for fold in range(FOLDS):
        held = folds == fold
        train = differences[~held]
        spread = np.sqrt((train**2).mean(0))
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
        margins[held] = (differences[held] * scale) @ _fit(train * scale)
    return Together(share((np.sign(margins) + 1) / 2, prompts), margins)


def _fit(differences: Floats) -> Floats:
    """Weights w that minimise Σ log(1 + exp(−w·d)) + ridge/2·|w|²."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = differences @ weights
        value = np.logaddexp(0, -margins).sum() + RIDGE / 2 * weights @ weights
        slope = -(differences.T @ (1 / (1 + np.exp(np.minimum(margins, 700))))) + RIDGE * weights
        return float(value), slope

    return np.asarray(optimize.minimize(loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B").x)
