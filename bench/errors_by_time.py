"""The denoising error ℓ by timestep, for both built-in models, and how far each objective's margin reaches there.

    python bench/errors_by_time.py [--work work/errors-by-time] [--out bench/results] [--figure docs/errors-by-time.png]

Pairs of the study's safety, cartoon and culture, made by each model for itself. Every pair is looked at once in each
tenth of the timesteps, and once at times as training draws them, without training; both of its images share timestep
and noise. For the objectives with a β: how hard the margin pushes the rejected image at equal errors (SFT pulls on the
chosen one with 1), and the margin at which the push has fallen to a tenth, at the median error of the model's own
pictures. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measured import write_measured

MODELS, DOMAINS = ("mini", "mini-flow"), ("safety", "cartoon", "culture")
PAIRS, BINS, AT_ONCE = 256, 10, 32
BETAS: dict[str, tuple[float, ...]] = {
    "mapo": (0.025, 0.1, 0.4), "mapo_aaai": (1.0, 2.0, 4.0, 8.0, 32.0, 64.0), "mapo_relative": (2.0,),
    "orpo": (0.1,), "dpo": (1.0, 3.0, 10.0, 100.0, 500.0, 2000.0), "kto": (1000.0,),
}  # fmt: skip


def measure(model: str, pool: Path, cache_folder: Path) -> dict[str, Any]:
    """Errors of every pair by tenth of the timesteps, and as training draws them: lists "pairs" of (t, ℓ_w, ℓ_l)."""
    from dataclasses import replace

    from mapo.encode.fill import encode
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet
    from mapo.train.batches import assemble, draws
    from mapo.train.step import pair_errors

    pairs, opened = PairSet(pool), open_model(find_model(model))
    cache = encode(opened, pairs, cache_folder, images_per_batch=AT_ONCE)
    denoiser, process = opened.denoiser(torch.device("cpu"), torch.float32).eval(), opened.process
    members = [pairs[row] for row in range(len(pairs))]
    drawn = draws(range(PAIRS), PAIRS, process, opened.layout.latent(cache.resolution), seed=0)
    rng = np.random.default_rng(0)
    numbers = [(np.arange(PAIRS) + rng.random(PAIRS)) / PAIRS for _ in range(BINS)]  # even within a tenth
    columns = {"as trained": drawn}
    for k in range(BINS):
        t = process.time(torch.tensor(process.num_timesteps * (k + rng.permutation(numbers[k])) / BINS).long())
        columns[str(k)] = [replace(one, time=time) for one, time in zip(drawn, t, strict=True)]
    found: dict[str, Any] = {}
    for name, column in columns.items():
        rows: list[list[float]] = []
        for start in range(0, PAIRS, AT_ONCE):
            batch = assemble(members, column[start : start + AT_ONCE], cache, opened)
            with torch.no_grad():
                errors = pair_errors(lambda x, t, cond: opened.predict(denoiser, x, t, cond), batch, process)
            rows += [
                [round(float(v), 6) for v in row]
                for row in zip(batch.timesteps.tolist(), errors.chosen, errors.rejected, strict=True)
            ]
        found[name] = rows
    return found


def told(rows: list[list[float]]) -> dict[str, float]:
    """Median and quartiles of ℓ_w, medians of ℓ_l and of the margin's size, accuracy."""
    t, chosen, rejected = np.array(rows).T
    low, middle, high = np.quantile(chosen, (0.25, 0.5, 0.75))
    return {
        "t": float(np.median(t)), "chosen": float(middle), "chosen low": float(low), "chosen high": float(high),
        "rejected": float(np.median(rejected)), "margin": float(np.median(rejected - chosen)),
        "margin size": float(np.median(np.abs(rejected - chosen))), "accuracy": float((rejected > chosen).mean()),
    }  # fmt: skip


def reaches(rows: list[list[float]]) -> list[dict[str, Any]]:
    """Each objective and β at the median of the smaller error of a pair, which is that of the model's own picture."""
    from mapo.train.objectives import OBJECTIVES
    from mapo.train.objectives.reach import reach

    _, chosen, rejected = np.array(rows).T
    error, found = float(np.median(np.minimum(chosen, rejected))), []
    for name, betas in BETAS.items():
        for beta in betas:
            here = reach(OBJECTIVES[name], {**OBJECTIVES[name].settings, "beta": beta}, error)
            beyond = None if here.margin is None else float((rejected - chosen > here.margin).mean())
            found.append({
                "objective": name, "beta": beta, "error": error, "push": here.push, "reach": here.margin,
                "reach / error": None if here.margin is None else here.margin / here.error, "pairs beyond": beyond,
            })  # fmt: skip
    return found


def draw(errors: dict[str, Any], path: Path) -> None:
    """A panel for each model and domain: median and quartiles of ℓ of chosen and rejected by tenths of the timesteps,
    and below them which timesteps training draws."""
    import matplotlib
    from matplotlib.figure import Figure

    blue, red = "#1f6fb2", "#d1495b"
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.3 * len(DOMAINS), 2.7 * len(MODELS)))
        for line, model in enumerate(MODELS):
            for column, domain in enumerate(DOMAINS):
                axes = figure.add_subplot(len(MODELS), len(DOMAINS), line * len(DOMAINS) + column + 1)
                found = errors[model][domain]
                for side, colour, word in ((1, blue, "chosen"), (2, red, "rejected")):
                    parts = [np.array(found[str(k)])[:, side] for k in range(BINS)]
                    low, middle, high = np.quantile(np.array(parts), (0.25, 0.5, 0.75), axis=1)
                    at = 100 * np.arange(BINS) + 50
                    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
                    axes.plot(at, middle, color=colour, label=word, marker="o", markersize=2.5, linewidth=1.3)
                drawn = np.histogram(np.array(found["as trained"])[:, 0], bins=10, range=(0, 1000))[0]
                axes.set_yscale("log")
                axes.set_ylim(1.5e-3, 4)
                share = axes.twinx()
                share.bar(100 * np.arange(10) + 50, drawn / drawn.sum(), width=90, color="#999999", alpha=0.35)
                share.set_ylim(0, 1)
                share.set_yticks([])
                axes.set_title(f"{model}: {domain}", loc="left", fontweight="bold")
                axes.set_xlim(0, 1000)
                if column == 0:
                    axes.set_ylabel("error ℓ")
                if line == column == 0:
                    axes.legend(frameon=False, loc="upper right")
                if line == len(MODELS) - 1:
                    axes.set_xlabel("timestep (1000 is noise)")
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, facecolor="white")


def main() -> None:
    """Make pairs, measure, print, write JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/errors-by-time"))
    parser.add_argument("--pools", type=Path, help="Of mini-flow, from a study's folder, in place of new ones.")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()

    from mapo.lab.study.domains import DOMAINS as ALL

    errors: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for model in MODELS:
        errors[model], results[model] = {}, {}
        for domain in DOMAINS:
            pool = args.work / model / "pools" / domain
            if model == "mini-flow" and args.pools:
                pool = args.pools / domain
            elif not pool.exists():
                ALL[domain].pool(model, pool, PAIRS)
            kept = args.work / model / f"{domain}.json"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(measure(model, pool, args.work / model / "cache")))
            found = errors[model][domain] = json.loads(kept.read_text())
            results[model][domain] = {
                "by tenth": [told(found[str(k)]) for k in range(BINS)],
                "as trained": told(found["as trained"]),
                "reach": reaches(found["as trained"]),
            }
            print(f"{model:10} {domain:8} " + " ".join(f"{k} {v:.4g}" for k, v in told(found["as trained"]).items()))
            for row in results[model][domain]["reach"]:
                print("   ", " ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    write_measured(args.out / "errors-by-time.json", {"pairs": PAIRS, "models": results})
    if args.figure:
        draw(errors, args.figure)


if __name__ == "__main__":
    main()
