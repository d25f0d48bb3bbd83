"""The memory of a training step under each lever, each in a process of its own.

    python bench/levers.py [--pairs-per-step 2] [--steps 3] [--only NAME …] [--out bench/results]

A UNet of SDXL's layout with 77 million random parameters (that of ``bench/step.py --model wide``), all weights or a
LoRA. Of each lever: the peak of anonymous memory of the process over some steps (on a GPU, of what torch holds there)
and the seconds of each step. What the process holds with its libraries but without a model is measured too. Plain
training comes first and last, so that a drift shows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from measured import write_measured
from step import anonymous_memory, make_set, make_wide, synchronise

HERE = Path(__file__).resolve()
NOT_CLIPPED = {"clip_norm": 0, "in_backward": True}
LEVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adamw8bit": {"optim": {"name": "adamw8bit"}},
    "adafactor": {"optim": {"name": "adafactor"}},
    "in backward": {"optim": NOT_CLIPPED},
    "adafactor in backward": {"optim": {"name": "adafactor", **NOT_CLIPPED}},
    "bfloat16-master": {"train": {"weights": "bfloat16-master"}},
    "bfloat16-master, adamw8bit": {"train": {"weights": "bfloat16-master"}, "optim": {"name": "adamw8bit"}},
    "bfloat16-master, adafactor in backward": {
        "train": {"weights": "bfloat16-master"}, "optim": {"name": "adafactor", **NOT_CLIPPED}
    },
    "bfloat16-stochastic": {"train": {"weights": "bfloat16-stochastic"}},
    "bfloat16-stochastic, adamw8bit": {
        "train": {"weights": "bfloat16-stochastic"}, "optim": {"name": "adamw8bit"}
    },
    "bfloat16-stochastic, adafactor in backward": {
        "train": {"weights": "bfloat16-stochastic"}, "optim": {"name": "adafactor", **NOT_CLIPPED}
    },
    "checkpointing every block": {"train": {"gradient_checkpointing": True}},
    "checkpointing every 2nd block": {"train": {"gradient_checkpointing": 2}},
    "running mean": {"train": {"ema": 0.999}},
    "pair by pair": {"train": {"pair_by_pair": True}},
    "one pair at a time": {"train": {"pairs_per_device": 1}},
    "dpo": {"objective": "dpo"},
    "dpo, reference before": {"objective": "dpo", "train": {"reference": "before"}},
    "lora": {"adapter": {"kind": "lora"}},
    "lora, checkpointing every block": {"adapter": {"kind": "lora"}, "train": {"gradient_checkpointing": True}},
    "plain again": {},
}  # fmt: skip


def make_steps(model_name: str, folder: Path, lever: str, size: int) -> Any:
    """The training loop exactly as `mapo train` builds it, with a lever's settings."""
    import numpy as np
    import torch

    from mapo.devices import give_back_at_once
    from mapo.encode.cache import Cache, cache_key
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet
    from mapo.train.batches import Members
    from mapo.train.config import make_config
    from mapo.train.loop import Loop
    from mapo.train.objectives import OBJECTIVES
    from mapo.train.processes.processes import Place, Processes
    from mapo.train.weights.levers import check_levers, saves_memory
    from mapo.train.weights.opening import open_trained

    settings = LEVERS[lever]
    name = settings.get("objective", "mapo")
    pairs, model, objective = PairSet(folder / "pairs"), open_model(find_model(model_name)), OBJECTIVES[name]
    config = make_config(
        {
            "model": model_name,
            "pairs": str(folder / "pairs"),
            "objective": {"name": name, **objective.settings},
            "adapter": settings.get("adapter", {}),
            "optim": settings.get("optim", {}),
            "train": {"pairs_per_step": size, "steps": 1000, **settings.get("train", {})},
        }
    )
    processes = Processes(Place(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    check_levers(config, processes)
    cache = Cache(folder / "cache", cache_key(model))
    if processes.device.type == "cpu" and saves_memory(config):
        give_back_at_once()
    trained = open_trained(config, model, objective, processes, None)
    loop = Loop(config, objective, processes, Members(pairs, np.arange(len(pairs))), cache, trained)
    if objective.needs_reference and config.train.reference == "before":
        loop.known = torch.full((2, 1000 * size), 0.1)  # made up: they are read from a table in any case
    return loop.run(0)


def measured(model_name: str, folder: Path, lever: str, size: int, steps: int) -> dict[str, Any]:
    """The peak in MiB over some steps, sampled while they run, and what they took."""
    if lever == "nothing":
        import torch

        from mapo.train.weights.opening import open_trained  # noqa: F401

        (torch.ones(8, 8) @ torch.ones(8, 8)).sum().item()
        return {"peak_mib": anonymous_memory()}
    peak, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, anonymous_memory())
            time.sleep(0.002)

    loop = make_steps(model_name, folder, lever, size)
    loaded = anonymous_memory()
    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds, losses = [], []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(next(loop)["loss"])
        synchronise()
        seconds.append(time.perf_counter() - began)
    stop.set()
    watcher.join()
    return {"loaded_mib": loaded, "peak_mib": peak, "seconds": seconds, "losses": losses}


def prepare(folder: Path, size: int) -> str:
    """The pairs, the model, and what its encoders make of the pairs."""
    from mapo.encode.fill import encode
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet

    make_set(folder / "pairs", 4 * size)
    model = str(make_wide(folder / "wide"))
    encode(open_model(find_model(model)), PairSet(folder / "pairs"), folder / "cache")
    return model


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs-per-step", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--lever", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size, steps = args.pairs_per_step, args.steps
    if args.lever:
        print(json.dumps(measured(args.model, args.folder, args.lever, size, steps)))
        return

    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = prepare(folder, size)
        for name in ["nothing", *args.only]:
            command = [sys.executable, str(HERE), "--pairs-per-step", str(size), "--steps", str(steps)]
            command += ["--model", model, "--folder", str(folder), "--lever", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name:44} {done.stderr.strip().splitlines()[-1]}")
                continue
            rows[name] = json.loads(done.stdout.strip().splitlines()[-1])
            took = f"{rows[name]['seconds'][-1]:6.1f} s" if "seconds" in rows[name] else ""
            print(f"{name:44} {rows[name]['peak_mib']:7.0f} MiB {took}", flush=True)
    if args.out:
        write_measured(args.out / "levers.json", {"pairs_per_step": size, "rows": rows})


if __name__ == "__main__":
    main()
