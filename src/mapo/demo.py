"""The whole road on the built-in world: pairs, training, pictures before and after, scores, report."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapo.build import build, parse_filter, read_recipe
from mapo.cache import encode
from mapo.config import make_config
from mapo.families import family_of, find_model
from mapo.files import read_json, write_json
from mapo.pairs import PairSet
from mapo.prompts import read_prompts
from mapo.report import write_report
from mapo.sample import sample
from mapo.scorers import score_images
from mapo.train import train

RECIPE, METRIC = "pick-style-cartoon", "cartoon"
PAIRS, STEPS, SEEDS = 256, 150, range(5)
JUDGE, CONFIRMED_BY = "mini-learned", "mini-search"  # makes the pairs; took no part in making them
SETTINGS: dict[str, Any] = {
    "objective": {"name": "mapo"},
    "optim": {"lr": 1e-4, "warmup_steps": 10},
    "train": {"steps": STEPS, "pairs_per_step": 16},
}


def demo(out: Path) -> dict[str, Any]:
    """Run every stage into ``out`` (a stage that is there is not run again); what ``summary.json`` holds."""
    seconds: dict[str, float] = {}
    times = out / "seconds.json"
    if times.exists():
        seconds = read_json(times, "a demo", "Delete the folder.")

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - began, 1)
        out.mkdir(parents=True, exist_ok=True)
        write_json(times, seconds)

    pairs, cache, run = out / "pairs", out / "cache", out / "run"
    if not pairs.exists():
        with stage("build"):
            judge = parse_filter(f"{JUDGE}:{METRIC}")
            build(read_recipe(RECIPE), "mini", read_prompts("mini:train"), PAIRS, pairs, judge=judge)
    with stage("encode"):
        model = find_model("mini")
        encode(family_of(model), model, PairSet(pairs), cache, images_per_batch=32)
    with stage("train"):
        train(make_config({"model": "mini", "pairs": str(pairs), "cache": str(cache), **SETTINGS}), run)
    prompts = read_prompts("mini:test")
    with stage("sample"):
        for name, model_name in (("before", "mini"), ("after", str(run))):
            sample(model_name, prompts, list(SEEDS), out / name)
    with stage("score"):
        tables = [score_images(out / n, "mini", out / f"{n}-scores.parquet") for n in ("before", "after")]
    with stage("report"):
        found = write_report(
            out / "before", out / "after", tables, out / "report.html", goal=METRIC, run=run, judge_of_pairs=JUDGE
        )
    return summarise(found, out, seconds)


def summarise(found: dict[str, Any], out: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Print the table and write ``summary.json``."""
    raise NotImplementedError


def clean(out: Path) -> None:
    """Remove what the demo made."""
    shutil.rmtree(out, ignore_errors=True)
