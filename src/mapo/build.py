"""Pairs that a model makes itself: a recipe says how the chosen and the rejected picture of a prompt come about."""

from __future__ import annotations

import importlib.resources
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mapo.errors import MapoError, suggest
from mapo.families import find_model
from mapo.files import PARTIAL, prepare_out
from mapo.images import ImageRow, read_picture
from mapo.pairs import PairWriter, decode_picture
from mapo.sample import Sampler, Sampling, default_sampling
from mapo.scorers import Scorer, load_scorer, split_judge

MOST_TRIES_PER_PAIR = 5


@dataclass(frozen=True)
class Recipe:
    """The prefixes behind which a prompt gives the chosen and the rejected picture."""

    name: str
    about: str
    chosen_prefix: str
    rejected_prefix: str


def recipe_names() -> list[str]:
    """The recipes that the package carries."""
    folder = importlib.resources.files("mapo") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def read_recipe(name: str) -> Recipe:
    """A recipe of the package by its name, or a TOML file of the user's."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise MapoError(f"There is no recipe file {name}.")
        text = path.read_text("utf-8")
    elif name in recipe_names():
        text = (importlib.resources.files("mapo") / "recipes" / f"{name}.toml").read_text("utf-8")
    else:
        raise MapoError(f"There is no recipe {name!r}. {suggest(name, recipe_names())}")
    try:
        values = tomllib.loads(text)
        prefixes = {side: values[side]["prefix"] for side in ("chosen", "rejected")}
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise MapoError(f"The recipe {name} needs [chosen] prefix and [rejected] prefix ({error}).") from None
    if prefixes["chosen"] == prefixes["rejected"]:
        raise MapoError(f"The recipe {name} gives both pictures the same prefix, so they would be the same picture.")
    return Recipe(Path(name).stem, str(values.get("about", "")), prefixes["chosen"], prefixes["rejected"])


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
        return f"{self.scorer.name}:{'-' * (self.sign < 0)}{self.metric}{than} (version {self.scorer.version})"

    def keeps(self, folders: Sequence[Path], rows: Sequence[Sequence[ImageRow]]) -> list[bool]:
        """One verdict per pair of rows."""
        values = []
        for folder, side in zip(folders, rows, strict=True):
            pictures = [decode_picture(read_picture(folder, row)) for row in side]
            values.append(self.scorer(pictures, [row.prompt for row in side])[self.metric])
        chosen, rejected = values
        bars = rejected if self.threshold is None else [self.threshold] * len(chosen)
        return [self.sign * c > self.sign * bar for c, bar in zip(chosen, bars, strict=True)]


def parse_filter(text: str) -> Filter:
    """``SCORER:METRIC`` or ``SCORER:METRIC:THRESHOLD``, with ``-METRIC`` where less is better."""
    name, metric, number = split_judge(text)
    scorer = load_scorer(name)
    bare = metric.removeprefix("-")
    if bare not in scorer.metrics:
        raise MapoError(f"--judge {text!r}: write {name}:METRIC or {name}:-METRIC. {suggest(bare, scorer.metrics)}")
    try:
        threshold = None if number is None else float(number)
    except ValueError:
        raise MapoError(f"--judge {text!r}: the threshold {number!r} is no number.") from None
    return Filter(scorer, bare, -1 if metric.startswith("-") else 1, threshold)


def build(
    recipe: Recipe,
    model: str,
    prompts: Sequence[str],
    num_pairs: int,
    out: Path,
    *,
    judges: Sequence[Filter] = (),
    **how: Any,
) -> dict[str, int]:
    """Make ``num_pairs`` pairs into the set ``out``; its counts.

    Pictures lie in ``.<out>.pictures.partial`` until the set is whole, so that an interrupted build goes on. Prompts
    are used in turn, with the next seed when all have been used. Both pictures of a pair start from the same noise.
    """
    if out.exists():
        raise MapoError(f"{out} already exists. Choose another --out, or delete it first.")
    if num_pairs < 1:
        raise MapoError(f"--num-pairs is {num_pairs}; it must be at least 1.")
    prepare_out(out)
    work = out.with_name(f".{out.name}.pictures{PARTIAL}")
    folders = (work / "chosen", work / "rejected")
    sampling = default_sampling(find_model(model), **how)
    sampler = Sampler(model, sampling.precision)
    sides = [Sampling(**(asdict(sampling) | {"prefix": p})) for p in (recipe.chosen_prefix, recipe.rejected_prefix)]
    kept: list[tuple[ImageRow, ImageRow]] = []
    tried = judged_out = equal = 0
    bar = tqdm(total=num_pairs, desc=f"build {recipe.name}", unit="pair")
    while len(kept) < num_pairs:
        if tried >= MOST_TRIES_PER_PAIR * num_pairs:
            raise MapoError(
                f"Of {tried} tried pairs only {len(kept)} were kept ({judged_out} judged out, {equal} with equal "
                f"pictures). The pictures are in {work}. Use more prompts, fewer pairs, or another --judge."
            )
        portion = min(4 * sampling.images_per_batch, MOST_TRIES_PER_PAIR * num_pairs - tried)
        portion = min(portion, -(-(num_pairs - len(kept)) // sampling.images_per_batch) * sampling.images_per_batch)
        jobs = [(prompts[k % len(prompts)], k // len(prompts)) for k in range(tried, tried + portion)]
        tried += portion
        rows = [sampler.fill(f, jobs, side, f"  {f.name}") for f, side in zip(folders, sides, strict=True)]
        verdicts = [judge.keeps(folders, rows) for judge in judges]
        for number, (chosen, rejected) in enumerate(zip(*rows, strict=True)):
            keep = all(verdict[number] for verdict in verdicts)
            same = chosen.sha256 == rejected.sha256
            equal += same
            judged_out += not keep and not same
            if keep and not same and len(kept) < num_pairs:
                kept.append((chosen, rejected))
        bar.update(len(kept) - bar.n)
    bar.close()
    counts = {"tried": tried, "judged_out": judged_out, "equal_pictures": equal}
    provenance = {
        "recipe": asdict(recipe),
        "model": sampler.model.stable_name,
        "revision": sampler.revision,
        "sampler": sampler.sampler,
        "sampling": asdict(sampling),
        "judges": [str(judge) for judge in judges],
        "counts": counts,
    }
    with PairWriter(out, provenance) as writer:
        for chosen, rejected in kept:
            meta = {
                side: {k: v for k, v in asdict(row).items() if k not in ("prompt", "file", "prompt_id", "sha256")}
                for side, row in (("chosen", chosen), ("rejected", rejected))
            }
            data = [read_picture(f, row) for f, row in zip(folders, (chosen, rejected), strict=True)]
            writer.add_pair(chosen.prompt, *data, source=recipe.name, meta=meta)
    shutil.rmtree(work)
    return counts
