"""How threads that wait for each other should wait, on quiet and on busy cores.

    python bench/waiting.py [--rounds 7] [--out bench/results]

Forward and backward of the built-in model's UNet, one thread for each core, in a process of its own, while as many
other processes as there are cores do nothing but count, or none do. ``active`` is what OpenMP does by itself: waiting
threads spin. ``passive``: they sleep at once. ``short`` is what the command line of mapo asks for: they spin for a
moment and then sleep. The three take turns; a ratio is of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from measured import write_measured

CHILD = """
import time, torch
from mapo.models import find_model, open_model
unet = open_model(find_model("mini")).denoiser("cpu", torch.float32)
x, t, text = torch.randn(32, 4, 12, 12), torch.full((32,), 500), torch.randn(32, 32, 160)
added = {"text_embeds": torch.randn(32, 80), "time_ids": torch.ones(32, 6)}
def step():
    unet(x, t, text, added_cond_kwargs=added).sample.pow(2).mean().backward()
step()
began = time.perf_counter()
for _ in range(8):
    step()
print(time.perf_counter() - began)
"""


POLICIES: dict[str, dict[str, str]] = {
    "active": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "short": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
}


def seconds(policy: str, others: int) -> float:
    cores = os.cpu_count() or 1
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {"OMP_NUM_THREADS": str(cores)} | POLICIES[policy]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, env=env)
    finally:
        for process in busy:
            process.kill()
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {}
    for name, others in (("quiet cores", 0), ("busy cores", os.cpu_count() or 1)):
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for _ in range(args.rounds):
            for policy, values in times.items():
                values.append(seconds(policy, others))
        found[name] = {"median_seconds": {policy: statistics.median(values) for policy, values in times.items()}}
        for one, other in (("passive", "active"), ("short", "active"), ("short", "passive")):
            ratios = [a / b for a, b in zip(times[one], times[other], strict=True)]
            ends = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            found[name][f"{one} / {other}"] = ends
        print(name, json.dumps(found[name]))
    if args.out:
        write_measured(args.out / "waiting.json", {"rounds": args.rounds, "results": found})


if __name__ == "__main__":
    main()
