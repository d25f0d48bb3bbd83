"""The whole road on the built-in world: pairs, training, pictures before and after, scores, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mapo.build.build import build
from mapo.build.judge import parse_filter
from mapo.build.recipe import read_recipe
from mapo.encode.fill import encode
from mapo.errors import MapoError, suggest
from mapo.files import prepare_out
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.report.report import write_report
from mapo.sample.prompts import read_prompts
from mapo.sample.sample import sample
from mapo.score.score import score_images
from mapo.score.table import read_scores
from mapo.shards import owned
from mapo.statistics import mean_difference, paired
from mapo.texts import read_json, write_json
from mapo.train.config import make_config
from mapo.train.train import Run, train

GOALS = {"pick-style-cartoon": "cartoon", "pick-style-pixel-art": "pixel_art", "pick-safety-hazard": "-hazard"}
FOLLOWING = "prompt_following"
TIMES = "seconds.json"  # the first file of a demo
PAIRS, STEPS, SEEDS = 256, 80, range(12)
TRAIN_PROMPTS, TEST_PROMPTS = "mini:train", "mini:test-one"
JUDGE, CONFIRMED_BY = "mini-learned", "mini-search"  # makes the pairs; took no part in making them
SETTINGS: dict[str, Any] = {
    "objective": {"name": "mapo"},
    "optim": {"lr": 1e-4, "warmup_steps": 10},
    "train": {"steps": STEPS, "pairs_per_step": 16},
}


def demo(
    out: Path,
    recipe: str = "pick-style-cartoon",
    test_prompts: str | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Run every stage into ``out``, going on where an earlier call stopped; what ``summary.json`` holds."""
    if recipe not in GOALS:
        raise MapoError(f"The demo has no recipe {recipe!r}. {suggest(recipe, GOALS)}")
    if out.is_dir() and any(out.iterdir()) and not (out / TIMES).exists():
        raise MapoError(f"{out} holds other files. Choose another --out, or an empty folder.")
    with owned(out):
        return _demo(out, recipe, test_prompts, seeds)


def _demo(out: Path, recipe: str, test_prompts: str | None, seeds: Sequence[int] | None) -> dict[str, Any]:
    goal = GOALS[recipe]
    times = out / TIMES
    seconds: dict[str, float] = read_json(times, "a demo", f"Delete {out}.") if times.exists() else {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - began, 1)
            write_json(times, seconds)

    prepare_out(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(times, seconds)
    pairs, cache, run = out / "pairs", out / "cache", out / "run"
    config = make_config({"model": "mini", "pairs": str(pairs), "cache": str(cache), **SETTINGS})
    if not pairs.exists():
        with stage("build"):
            judges = [parse_filter(f"{JUDGE}:{what}") for what in (goal, f"{FOLLOWING}:0.5")]
            prompts = read_prompts(TRAIN_PROMPTS)
            build(read_recipe(recipe), "mini", prompts, PAIRS, pairs, judges=judges, prompts_from=TRAIN_PROMPTS)
    if Run(run).finished_steps() < STEPS:
        with stage("encode"):
            encode(open_model(find_model("mini")), PairSet(pairs), cache, images_per_batch=32)
        with stage("train"):
            train(config, run)
    prompts = read_prompts(test_prompts or TEST_PROMPTS)
    with stage("sample"):
        for name, model_name in (("before", "mini"), ("after", str(run))):
            sample(model_name, prompts, list(seeds or SEEDS), out / name)
    with stage("score"):
        tables = [score_images(out / n, "mini,guards", out / f"{n}-scores.parquet") for n in ("before", "after")]
    with stage("report"):
        found = write_report(out / "before", out / "after", tables, out / "report.html", goal=goal, run=run)
    summary = summarise(found, goal, seconds) | {"change_on_these_prompts": change_on_these(*tables)}
    write_json(out / "summary.json", summary)
    print(table(summary))
    print(f"report: {out / 'report.html'}")
    return summary


def change_on_these(before: Path, after: Path) -> dict[str, float]:
    """By how much prompts are followed better after than before on just these prompts, with an interval over seeds.

    The demo's prompts are all one-object prompts of the test split, so that only seeds were drawn. The report's
    interval also holds for prompts that were not looked at, and is wide where no prompt's pictures differ.
    """
    pairs = paired(read_scores(before), read_scores(after), CONFIRMED_BY, FOLLOWING)
    pictures = [f"{pair.prompt_id} {pair.seed}" for pair in pairs]
    found = mean_difference([p.before for p in pairs], [p.after for p in pairs], pictures)
    return {"value": found.value, "low": found.low, "high": found.high}


def summarise(found: dict[str, Any], goal: str, seconds: dict[str, float]) -> dict[str, Any]:
    """The figures of the report that the table shows, by the judge that took no part in making the pairs.

    ``style_rate`` is the share of pictures that show what the recipe is about (for safety: the tape, to be unlearned).
    """
    metric = goal.removeprefix("-")
    by_judge = {
        scorer: {row["metric"]: row for row in found["comparisons"] if row["scorer"] == scorer}
        for scorer in (CONFIRMED_BY, JUDGE)
    }

    def rates(scorer: str, side: str) -> dict[str, float]:
        rows = by_judge[scorer]
        return {name: rows[key][side]["value"] for name, key in (("style_rate", metric), (FOLLOWING, FOLLOWING))}

    def interval(row: dict[str, Any]) -> dict[str, float]:
        return {k: row[k] for k in ("value", "low", "high")}

    own = by_judge[CONFIRMED_BY]
    return {
        "before": rates(CONFIRMED_BY, "before"),
        "after": rates(CONFIRMED_BY, "after"),
        "prompt_following_change": interval(own[FOLLOWING]["difference"]),
        "win_rate": interval(own[metric]["win_rate"]),
        "goal": goal,
        "judge": CONFIRMED_BY,
        "judge_of_pairs": {"name": JUDGE, "before": rates(JUDGE, "before"), "after": rates(JUDGE, "after")},
        "pairs": PAIRS,
        "steps": STEPS,
        "pictures": found["pairs"],
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }


def table(summary: dict[str, Any]) -> str:
    """The short table at the end of the demo."""
    before, after, win = summary["before"], summary["after"], summary["win_rate"]
    change, here = (summary[name] for name in ("prompt_following_change", "change_on_these_prompts"))
    shown = summary["goal"].removeprefix("-").replace("_", " ")
    lines = [
        f"{summary['pictures']} held-out plain prompts × seeds, judged by {summary['judge']}",
        f"{'':24}{'before':>9}{'after':>9}",
        f"{shown + ' pictures':24}{before['style_rate']:9.1%}{after['style_rate']:9.1%}",
        f"{'prompt followed':24}{before[FOLLOWING]:9.1%}{after[FOLLOWING]:9.1%}   change {change['value']:+.1%}",
        f"{'':42}   95 % interval [{here['low']:+.1%}, {here['high']:+.1%}] on these prompts,",
        f"{'':42}   [{change['low']:+.1%}, {change['high']:+.1%}] on any like them",
        f"{'win rate':24}{'':9}{win['value']:9.1%}   95 % interval [{win['low']:.1%}, {win['high']:.1%}]",
        f"{summary['pairs']} pairs, {summary['steps']} steps, {summary['seconds']['total']:.0f} seconds: "
        + ", ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items() if k != "total"),
    ]
    return "\n".join(lines)
