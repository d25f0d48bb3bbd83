"""What `mapo plan` says a training needs, beside what `mapo train` then takes, each in a process of its own.

    python bench/plan.py [--work FOLDER] [--only NAME …] [--real] [--again] [--out bench/results]

On a CPU: the most anonymous memory of `mapo train` over three steps and the saving of its checkpoint, from outside,
against the plan's figure. On a GPU: the most that torch holds there. ``mini`` and ``mini-flow`` are the built-in
models, ``wide`` a UNet of SDXL's layout with 77 million random parameters; with ``--real`` SDXL and Stable Diffusion
1.5 of their real size with random weights too, which makes folders of 6.5 and 2.2 GB, and saves runs of 20 GB on the
way; torchao is needed for 8-bit optimizers. By those marked ``fitted`` the
constants of ``mapo/train/plan/machine.py`` were chosen; the others were measured after that. What was measured before
is not measured again, unless ``--again`` asks for it; the plan always is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from measured import write_measured
from real_size import anonymous_gib, make_model
from step import make_set, make_wide

STEPS = 3


@dataclass(frozen=True)
class Setting:
    """A training: the model, the side of pictures, settings as ``--set`` takes them, and its processes."""

    model: str
    side: int
    sets: dict[str, Any] = field(default_factory=dict)
    objective: str = "mapo"
    adapter: str = "full"
    processes: int = 1


def _wide(pairs: int = 2, side: int = 128, **how: Any) -> Setting:
    sets = {"train.pairs_per_step": pairs, **how.pop("sets", {})}
    return Setting("wide", side, sets, **how)


BFLOAT = {"train.base_precision": "bfloat16"}
SMALLEST = {
    "train.weights": "bfloat16-stochastic", "optim.name": "adafactor", "optim.in_backward": True, "optim.clip_norm": 0,
}  # fmt: skip
FITTED: dict[str, Setting] = {  # by which the constants were chosen
    "mini, 16 pairs": Setting("mini", 48, {"train.pairs_per_step": 16}),
    "wide, 1 pair": _wide(1),
    "wide, 4 pairs": _wide(4),
    "wide, LoRA, 2 pairs": _wide(adapter="lora"),
    "wide, LoRA, bfloat16": _wide(adapter="lora", sets=BFLOAT),
    "mini, 4 pairs": Setting("mini", 48, {"train.pairs_per_step": 4}),
    "mini, LoRA, 32 pairs": Setting("mini", 48, {"train.pairs_per_step": 32}, adapter="lora"),
    "mini, 16 pairs of 96 pixels": Setting("mini", 96, {"train.pairs_per_step": 16}),
    "mini-flow, 16 pairs": Setting("mini-flow", 48, {"train.pairs_per_step": 16}),
    "mini-flow, LoRA, 8 pairs": Setting("mini-flow", 48, {"train.pairs_per_step": 8}, adapter="lora"),
    "wide, 2 pairs": _wide(),
    "wide, 1 pair of 256 pixels": _wide(1, 256),
    "wide, LoRA, 4 pairs": _wide(4, adapter="lora"),
    "wide, LoRA, 1 pair of 256 pixels": _wide(1, 256, adapter="lora"),
    "wide, LoRA, checkpointing": _wide(adapter="lora", sets={"train.gradient_checkpointing": True}),
    "wide, LoRA, text encoders": _wide(adapter="lora", sets={"adapter.text_encoders": True}),
    "wide, checkpointing": _wide(4, sets={"train.gradient_checkpointing": True}),
    "wide, every 2nd block": _wide(4, sets={"train.gradient_checkpointing": 2}),
    "wide, pair by pair": _wide(4, sets={"train.pair_by_pair": True}),
    "wide, pairs_per_device 1": _wide(4, sets={"train.pairs_per_device": 1}),
    "wide, adafactor": _wide(sets={"optim.name": "adafactor"}),
    "wide, in backward": _wide(sets={"optim.in_backward": True, "optim.clip_norm": 0}),
    "wide, adafactor in backward": _wide(
        sets={"optim.name": "adafactor", "optim.in_backward": True, "optim.clip_norm": 0}
    ),
    "wide, bfloat16-master": _wide(sets={"train.weights": "bfloat16-master"}),
    "wide, bfloat16-stochastic": _wide(sets={"train.weights": "bfloat16-stochastic"}),
    "wide, bfloat16 arithmetic": _wide(sets={"train.precision": "bfloat16"}),
    "wide, running mean": _wide(sets={"train.ema": 0.999}),
    "wide, SFT": _wide(objective="sft"),
    "wide, DPO": _wide(objective="dpo"),
    "wide, DPO, reference before": _wide(objective="dpo", sets={"train.reference": "before"}),
    "wide, DPO, LoRA": _wide(objective="dpo", adapter="lora"),
    # that two of them were too low was how the constants were looked at again
    "wide, LoRA, pair by pair": _wide(4, adapter="lora", sets={"train.pair_by_pair": True}),
    "wide, bfloat16-stochastic, adafactor in backward, 1 pair": _wide(1, sets=SMALLEST),
}  # fmt: skip
SETTINGS: dict[str, Setting] = {  # which were measured after that
    "mini, 8 pairs of 144 pixels": Setting("mini", 144, {"train.pairs_per_step": 8}),
    "mini, DPO, 8 pairs": Setting("mini", 48, {"train.pairs_per_step": 8}, objective="dpo"),
    "mini-flow, 32 pairs": Setting("mini-flow", 48, {"train.pairs_per_step": 32}),
    "mini-flow, LoRA, 8 pairs of 96 pixels": Setting("mini-flow", 96, {"train.pairs_per_step": 8}, adapter="lora"),
    "wide, 3 pairs": _wide(3),
    "wide, 1 pair of 192 pixels": _wide(1, 192),
    "wide, LoRA, 3 pairs of 160 pixels": _wide(3, 160, adapter="lora"),
    "wide, LoRA, 1 pair of 192 pixels": _wide(1, 192, adapter="lora"),
    "wide, LoRA of rank 32, bfloat16, checkpointing": _wide(
        4, adapter="lora", sets={**BFLOAT, "adapter.rank": 32, "train.gradient_checkpointing": True}
    ),
    "wide, adafactor, checkpointing, 3 pairs": _wide(
        3, sets={"optim.name": "adafactor", "train.gradient_checkpointing": True}
    ),
    "wide, bfloat16-master, running mean, 1 pair": _wide(
        1, sets={"train.weights": "bfloat16-master", "train.ema": 0.99}
    ),
    "wide, DPO, LoRA, 3 pairs": _wide(3, objective="dpo", adapter="lora"),
    "wide, KTO, 2 pairs, one at a time": _wide(objective="kto", sets={"train.pairs_per_device": 1}),
    "wide, SFT, LoRA, 4 pairs": _wide(4, objective="sft", adapter="lora"),
    "wide, bfloat16 arithmetic, 3 pairs": _wide(3, sets={"train.precision": "bfloat16"}),
    "wide, adamw8bit, 3 pairs": _wide(3, sets={"optim.name": "adamw8bit"}),
    "wide, bfloat16-stochastic, adamw8bit in backward, 2 pairs": _wide(
        2,
        sets={
            "train.weights": "bfloat16-stochastic", "optim.name": "adamw8bit", "optim.in_backward": True,
            "optim.clip_norm": 0,
        },
    ),
    "wide, LoRA, pair by pair, 2 pairs": _wide(2, adapter="lora", sets={"train.pair_by_pair": True}),
    "wide, LoRA of rank 16, checkpointing, 2 pairs of 192 pixels": _wide(
        2, 192, adapter="lora", sets={"adapter.rank": 16, "train.gradient_checkpointing": True}
    ),
    "wide, bfloat16-stochastic, adafactor in backward, 3 pairs": _wide(3, sets=SMALLEST),
    "wide, bfloat16-stochastic, adafactor, checkpointing, 2 pairs": _wide(
        2,
        sets={"train.weights": "bfloat16-stochastic", "optim.name": "adafactor", "train.gradient_checkpointing": True},
    ),
}  # fmt: skip
SHARDED = {"train.shard": "fsdp2"}
TOGETHER: dict[str, Setting] = {  # in two processes over gloo: the larger of both, which the plan speaks of
    "wide, 2 pairs, 2 processes": _wide(processes=2),
    "wide, 2 pairs, 2 processes, fsdp2": _wide(sets=SHARDED, processes=2),
    "wide, DPO, 2 pairs, 2 processes, fsdp2": _wide(objective="dpo", sets=SHARDED, processes=2),
    "wide, LoRA, 2 pairs, 2 processes, fsdp2": _wide(adapter="lora", sets=SHARDED, processes=2),
    "mini, 16 pairs, 2 processes, fsdp2": Setting("mini", 48, {"train.pairs_per_step": 16, **SHARDED}, processes=2),
}  # fmt: skip
ONE = {"train.pairs_per_step": 1}
LEAN = {
    **ONE,
    "train.weights": "bfloat16-stochastic",
    "optim.in_backward": True,
    "optim.clip_norm": 0,
    "optim.lr": 1e-5,
}
REAL: dict[str, Setting] = {
    "SDXL, LoRA, 64 pixels, float32": Setting("sdxl", 64, ONE, adapter="lora"),
    "SDXL, LoRA, 64 pixels, bfloat16": Setting("sdxl", 64, {**ONE, **BFLOAT}, adapter="lora"),
    "SDXL, LoRA, 256 pixels, bfloat16": Setting("sdxl", 256, {**ONE, **BFLOAT}, adapter="lora"),
    "SDXL, 64 pixels, bfloat16-stochastic, adafactor in backward": Setting(
        "sdxl", 64, LEAN | {"optim.name": "adafactor"}
    ),
    "SDXL, 64 pixels, bfloat16-stochastic, adamw8bit in backward": Setting(
        "sdxl", 64, LEAN | {"optim.name": "adamw8bit"}
    ),
    "SD 1.5, LoRA, 256 pixels, float32": Setting("sd15", 256, ONE, adapter="lora"),
    "SD 1.5, LoRA, 256 pixels, bfloat16": Setting("sd15", 256, {**ONE, **BFLOAT}, adapter="lora"),
}  # fmt: skip


def words(setting: Setting, model: str, work: Path) -> list[str]:
    """The arguments of `mapo train` and `mapo plan`, but for ``--out``."""
    sets = {"train.steps": STEPS, "data.split": "all", "data.resolution": setting.side, **setting.sets}
    found = ["--model", model, "--pairs", str(work / "pairs"), "--cache", str(cache_of(setting, work))]
    found += ["--objective", setting.objective, "--adapter", setting.adapter]
    return found + [word for key, value in sets.items() for word in ("--set", f"{key}={_told(value)}")]


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def cache_of(setting: Setting, work: Path) -> Path:
    """Where what the encoders make lies."""
    return work / f"cache-{setting.model}-{setting.side}"


def model_of(setting: Setting, work: Path) -> str:
    """The name of the model, which is made where it is not there."""
    if setting.model == "wide":
        return str(work / "wide" if (work / "wide").exists() else make_wide(work / "wide"))
    if setting.model in ("sdxl", "sd15"):
        return str(make_model(work / setting.model, setting.model))
    return setting.model


def measured(command: list[str], out: Path, processes: int = 1) -> dict[str, Any]:
    """The most that a process of `mapo train` held, in MiB, and the seconds of its steps."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "mapo", "train", *command, "--out", str(out)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **place},
        )
        for place in places(processes)
    ]  # fmt: skip
    peaks = [0.0] * processes
    while any(process.poll() is None for process in running):
        peaks = [max(peak, 1024 * anonymous_gib(one.pid)) for peak, one in zip(peaks, running, strict=True)]
        time.sleep(0.003)
    peak = max(peaks)
    for process in running:
        said = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise SystemExit(f"mapo train {' '.join(command)} failed:\n{said[-2000:]}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    import torch

    if torch.cuda.is_available():
        peak = rows[-1]["memory"] / 2**20
    each = {"each_mib": [round(one, 1) for one in peaks]} if processes > 1 else {}
    return {"measured_mib": round(peak, 1), **each, "seconds": [round(row["seconds"], 2) for row in rows]}


def places(processes: int) -> list[dict[str, str]]:
    """What torchrun would say to each of so many processes on this machine; nothing to one alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(port)
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(processes)]


def planned(command: list[str], processes: int = 1) -> dict[str, Any]:
    """The plan of the same training: MiB of its own memory, by kind, and the seconds that planning took."""
    from mapo.settings import parse_set
    from mapo.train.verb import plan

    flags = {name.removeprefix("--"): value for name, value in pairwise(command) if name != "--set"}
    named: dict[str, Any] = {name: flags[name] for name in ("model", "pairs", "cache", "objective", "adapter")}
    began = time.perf_counter()
    found = plan(parse_set(b for a, b in pairwise(command) if a == "--set"), processes=processes, **named)
    kinds = {kind: round(size / 2**20, 1) for kind, size in found.kinds.items()}
    seconds = round(time.perf_counter() - began, 2)
    return {"plan_mib": round(found.own_memory / 2**20, 1), "kinds_mib": kinds, "seconds_of_planning": seconds}


def main() -> None:
    """Measure, plan, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mapo-plan")
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=[*FITTED, *SETTINGS, *TOGETHER, *REAL])
    parser.add_argument("--real", action="store_true", help="models of real size too")
    parser.add_argument("--again", action="store_true", help="measure what was measured before again")
    parser.add_argument("--measure-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "pairs").exists():
        make_set(work / "pairs", 32)
    known: dict[str, Any] = {}
    if (work / "measured.json").exists():
        known = json.loads((work / "measured.json").read_text())
    rows: dict[str, Any] = {}
    all_settings = {**FITTED, **SETTINGS, **TOGETHER, **REAL}
    names = args.only or [*FITTED, *SETTINGS, *TOGETHER, *(REAL if args.real else ())]
    for name in names:
        setting = all_settings[name]
        model = model_of(setting, work)
        if name not in known or args.again:
            common = ["--model", model, "--pairs", str(work / "pairs"), "--resolution", str(setting.side)]
            subprocess.run(
                [sys.executable, "-m", "mapo", "encode", *common, "--out", str(cache_of(setting, work))],
                check=True, capture_output=True,
            )  # fmt: skip
            with tempfile.TemporaryDirectory(dir=work) as temporary:
                known[name] = measured(words(setting, model, work), Path(temporary) / "run", setting.processes)
            known[name]["date"] = time.strftime("%Y-%m-%d")
            (work / "measured.json").write_text(json.dumps(known, indent=1) + "\n")
        if args.measure_only:
            print(name, known[name], flush=True)
            continue
        rows[name] = {**known[name], **planned(words(setting, model, work), setting.processes)}
        rows[name]["error"] = round(rows[name]["plan_mib"] / rows[name]["measured_mib"] - 1, 4)
        rows[name]["fitted"] = name in FITTED
        told = f"{rows[name]['plan_mib']:8.0f} {rows[name]['measured_mib']:8.0f} MiB {rows[name]['error']:+7.1%}"
        print(f"{name:58} {told} {'fitted' * rows[name]['fitted']}", flush=True)
    if args.measure_only:
        return
    others = [abs(row["error"]) for row in rows.values() if not row["fitted"]]
    if others:
        print(f"of {len(others)} that were not fitted: at most {max(others):.1%}, mean {sum(others) / len(others):.1%}")
    if args.out:
        write_measured(args.out / "plan.json", {"libc": " ".join(platform.libc_ver()), "rows": rows})


if __name__ == "__main__":
    main()
