"""What a method costs: time of a step and peak memory, each training in a process of its own, methods in turn."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

STEPS, PAIRS_PER_STEP = 14, 16
FIRST = 4  # steps that are not counted: the first ones are slower


def cost(work: Path, model: str, domain: str, methods: Sequence[str], rounds: int) -> dict[str, Any]:
    """Milliseconds per step and MiB above what a process holds before it trains, medians of rounds in turn."""
    found: dict[str, list[Mapping[str, float]]] = {method: [] for method in methods}
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for method in methods:
            with ProcessPoolExecutor(1, context) as pool:
                found[method].append(pool.submit(_one, work, model, domain, method).result())
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "device": found[methods[0]][0]["device"]}
    rows = {
        method: {name: statistics.median(r[name] for r in measured) for name in ("ms_per_step", "peak_mib")}
        for method, measured in found.items()
    }
    return {"machine": machine, "pairs_per_step": PAIRS_PER_STEP, "rounds": rounds, "methods": rows}


def _one(work: Path, model: str, domain: str, method: str) -> dict[str, Any]:
    import torch

    from mapo.lab.study.runs import step_seconds
    from mapo.train.config import make_config
    from mapo.train.train import train

    with Path(os.devnull).open("w") as nothing, tempfile.TemporaryDirectory() as folder:
        sys.stdout = sys.stderr = nothing
        before = _peak_mib()
        run = Path(folder) / "run"
        config = {
            "model": model, "pairs": str(work / "pools" / domain), "cache": str(work / "cache"),
            "objective": {"name": method}, "data": {"split": "all"}, "optim": {"lr": 1e-6},
            "train": {"steps": STEPS, "pairs_per_step": PAIRS_PER_STEP},
        }  # fmt: skip
        train(make_config(config), run)
        seconds = step_seconds(run / "metrics.jsonl")[FIRST:]
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _peak_mib() - before
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"ms_per_step": 1000 * statistics.median(seconds), "peak_mib": peak, "device": device}


def _peak_mib() -> float:
    """The most memory that this process has held. Linux's rusage would begin with what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(next(r.split()[1] for r in status.read_text().splitlines() if r.startswith("VmHWM"))) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
