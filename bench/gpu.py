"""SDXL at its real size with random weights on a GPU, at 1024 pixels: a command of at most ten minutes for each table.

    python bench/gpu.py speed    [--work FOLDER] [--sizes 1 2 4 8 12 16 24 32] [--out bench/results]
    python bench/gpu.py memory | dpo | cache | levers  [--work FOLDER] [--out bench/results]

speed    all weights, from the cache: pairs a second, peak memory and share of the card's own measured peak in bfloat16,
         at each number of pairs a step until the memory is full; without recomputation and with it
memory   the least memory: all weights and a LoRA of rank 16 with one pair a step
dpo      MaPO against Diffusion-DPO, all else equal, all weights and a LoRA, without recomputation and with it; DPO with
         its frozen copy, and with reference errors computed before
cache    training from the cache against the same with the VAE in float32 and both text encoders in every step
levers   one row for each lever: what it gave and what it cost

Each row is a process of its own, so that no memory is left over from another. What is compared takes turns, and a
ratio is of one turn: the median, the least and the most. The model folder (6.5 GB) and 32 encoded pairs are made first
and kept in ``--work``. The first steps are not counted. Any other model folder (``--model mini --side 64``) goes
through the same code without a GPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from step import anonymous_memory, spread, synchronise

HERE = Path(__file__).resolve()
PAIRS = 32
LEAN = {"train.precision": "bfloat16", "train.weights": "bfloat16-stochastic", "optim.name": "adafactor"}
MASTER = {"train.precision": "bfloat16", "train.weights": "bfloat16-master", "optim.name": "adamw8bit"}
FAST = {"train.compile": True, "train.channels_last": True}
AGAIN = {"train.gradient_checkpointing": True}
LORA = {"adapter.kind": "lora", "adapter.rank": 16, "train.precision": "bfloat16", "train.base_precision": "bfloat16"}
IN_BACKWARD = {"optim.in_backward": True, "optim.clip_norm": 0}
BEFORE = {"train.reference": "before"}
PLAIN = {"train.precision": "bfloat16"}

COUNTED = "the arithmetic of a pair, all weights, nothing recomputed"  # one step, which the counter sees into

Row = dict[str, Any]


def variants(table: str) -> dict[str, Row]:
    """The rows of a table: an objective, settings of `train`, and how a step is taken."""
    rows: dict[str, dict[str, Row]] = {
        "speed": {
            "adamw8bit, masters": MASTER | FAST,
            "adamw8bit, masters, recomputed": MASTER | FAST | AGAIN,
            "adafactor, bfloat16": LEAN | FAST,
            "adafactor, bfloat16, recomputed": LEAN | FAST | AGAIN,
        },
        "memory": {
            "all weights, adafactor in the backward pass, recomputed": LEAN | IN_BACKWARD | AGAIN,
            "the same, not recomputed": LEAN | IN_BACKWARD,
            "LoRA of rank 16, recomputed": LORA | AGAIN,
            "LoRA of rank 16, pair by pair, recomputed": LORA | AGAIN | {"train.pair_by_pair": True},
            "LoRA of rank 16": LORA,
        },
        "dpo": {
            f"{objective}{', reference before' if before else ''}, {kind}{', recomputed' if again else ''}": {
                **settings, **again, **before, "objective": objective,
            }
            for kind, settings in (("all weights", LEAN), ("LoRA", LORA))
            for again in ({}, AGAIN)
            for objective, before in (("mapo", {}), ("dpo", {}), ("dpo", BEFORE))
            if not (before and kind == "LoRA")
        },
        "cache": {
            "from the cache": LEAN | AGAIN,
            "VAE and text encoders in every step": LEAN | AGAIN | {"way": "public"},
        },
        "levers": {
            "as it is": PLAIN,
            "compile": PLAIN | {"train.compile": True},
            "channels_last": PLAIN | {"train.channels_last": True},
            "checkpointing": PLAIN | AGAIN,
            "checkpointing every 2nd block": PLAIN | {"train.gradient_checkpointing": 2},
            "in the backward pass": PLAIN | IN_BACKWARD,
            "adamw8bit": PLAIN | {"optim.name": "adamw8bit"},
            "adafactor": PLAIN | {"optim.name": "adafactor"},
            "pair by pair": PLAIN | {"train.pair_by_pair": True},
            "bfloat16 with masters": PLAIN | {"train.weights": "bfloat16-master"},
            "bfloat16, rounded at random": PLAIN | {"train.weights": "bfloat16-stochastic"},
            "float32, tf32": {"train.tf32": True},
        },
    }  # fmt: skip
    return {**rows[table], COUNTED: LEAN}


SIZES = {"speed": [1, 2, 4, 8, 12, 16, 24, 32], "memory": [1], "dpo": [8], "cache": [4], "levers": [1]}
TURNS = {"speed": 1, "memory": 1, "dpo": 2, "cache": 2, "levers": 1}  # processes of each row, in turn


def make_set(folder: Path, side: int) -> Path:
    """Pairs of noise pictures."""
    import random

    from PIL import Image

    from mapo.pairs import PairWriter
    from mapo.sample.folder import png_bytes

    rng = random.Random(0)
    if not (folder / "set.json").exists():
        with PairWriter(folder, {"made": "by bench/gpu.py"}) as writer:
            for k in range(PAIRS):
                sides = [Image.frombytes("RGB", (side, side), rng.randbytes(3 * side**2)) for _ in range(2)]
                writer.add_pair(f"a small red circle number {k}", *map(png_bytes, sides), split="train")
    return folder


def prepared(work: Path, model: str | None, side: int) -> str:
    """The model folder, the pairs, and what the model's encoders make of them; what is there already stays."""
    import torch

    from mapo.devices import best_device
    from mapo.encode.fill import encode
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet
    from real_size import make_model

    name = model or str(make_model(work / "sdxl"))
    pairs = PairSet(make_set(work / f"pairs-{side}", side))
    encode(
        open_model(find_model(name)), pairs, work / f"cache-{side}", resolution=side, device=torch.device(best_device())
    )
    return name


def make_loop(model_name: str, work: Path, row: Row, size: int, side: int) -> Any:
    """The training loop exactly as `mapo train` builds it."""
    import numpy as np
    import torch

    from mapo.devices import best_device
    from mapo.encode.cache import Cache, cache_key
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet
    from mapo.settings import parse_set
    from mapo.train.batches import Members
    from mapo.train.config import make_config
    from mapo.train.loop import Loop
    from mapo.train.objectives import OBJECTIVES
    from mapo.train.processes.processes import Place, Processes
    from mapo.train.weights.levers import check_levers
    from mapo.train.weights.opening import open_trained

    objective = OBJECTIVES[row.get("objective", "mapo")]
    settings = parse_set([f"{key}={json.dumps(value).strip(chr(34))}" for key, value in row.items() if "." in key])
    settings["train"] = {**settings.get("train", {}), "pairs_per_step": size, "steps": 10_000}
    settings["optim"] = {"lr": 1e-5, **settings.get("optim", {})}
    settings["data"] = {"resolution": side}
    settings |= {"model": model_name, "pairs": str(work / f"pairs-{side}")}
    settings["objective"] = {"name": row.get("objective", "mapo"), **objective.settings}
    config, processes = make_config(settings), Processes(Place(), torch.device(best_device()))
    check_levers(config, processes)
    pairs, model = PairSet(work / f"pairs-{side}"), open_model(find_model(model_name))
    cache = Cache(work / f"cache-{side}", cache_key(model, side))
    trained = open_trained(config, model, objective, processes, None)
    loop = Loop(config, objective, processes, Members(pairs, np.arange(len(pairs))), cache, trained)
    if config.train.reference == "before":  # they are read from a table in any case
        loop.known = torch.full((2, 10_000 * size), 0.1)
    return loop


def public_steps(loop: Any, work: Path, side: int) -> Iterator[None]:
    """The same step, with pictures decoded, and the VAE in float32 and both text encoders run in every one."""
    import torch

    from mapo.encode.fill import to_pixels
    from mapo.encode.frame import square
    from mapo.models import Frames
    from mapo.pairs import PairSet
    from mapo.train.batches import rows_at
    from mapo.train.step import pair_errors, pair_losses
    from mapo.train.types import Batch

    model, device = loop.trained.model, loop.processes.device
    pictures, prompts = model.image_encoder(device), model.text_encoder(device)
    pairs, size = PairSet(work / f"pairs-{side}"), loop.config.train.pairs_per_step
    updater, predict = loop.trained.updater, loop.trained.predictor(loop.trained.denoiser)
    done = 0
    while True:
        rows = [pairs[r] for r in rows_at(range(done * size, (done + 1) * size), len(pairs), 0)]
        names = [p.chosen for p in rows] + [p.rejected for p in rows]
        pixels, sizes = zip(*(to_pixels(pairs.image(n), square(side)) for n in names), strict=True)
        mean, logvar = pictures(torch.stack(pixels))
        latents = model.scale(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        twice = {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in prompts([p.prompt for p in rows]).items()}
        cond = model.condition(twice, Frames.square(torch.tensor(sizes, device=device), side))
        one, t = torch.ones(size, dtype=torch.float64), torch.randint(1000, (size,))
        batch = Batch(latents, cond, one, one, torch.randn_like(latents[:size]), t).to(device)
        updater.begin(done)
        errors = pair_errors(predict, batch, loop.process)
        updater.backward(pair_losses(loop.objective, errors, loop.config.objective.settings).mean())
        updater.end(loop.good)
        done += 1
        yield


def measured(model: str, work: Path, row: Row, size: int, side: int, warm: int, steps: int) -> Row:
    """Seconds of a step, the peak of memory, and the arithmetic of one step as PyTorch's counter counts it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    loop = make_loop(model, work, row, size, side)
    taken = public_steps(loop, work, side) if row.get("way") == "public" else loop.run(0)
    flops = None
    if not row.get("train.compile"):  # the counter does not see into compiled blocks
        with FlopCounterMode(display=False) as counter:
            next(taken)
        flops = counter.get_total_flops() / size
    for _ in range(warm):
        next(taken)
    synchronise()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(steps):
        next(taken)
    synchronise()
    seconds = (time.perf_counter() - began) / steps
    return {"pairs": size, "seconds": seconds, "pairs_per_second": size / seconds,
            "peak_gib": anonymous_memory() / 1024, "teraflop_per_pair": flops and flops / 1e12}  # fmt: skip


def peak_of_the_card() -> float:
    """10¹² operations a second in products of large bfloat16 matrices; the best of five."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, times = (8192, 20) if device == "cuda" else (1024, 2)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(5):
        synchronise()
        began = time.perf_counter()
        for _ in range(times):
            a @ a
        synchronise()
        best = max(best, 2 * side**3 * times / (time.perf_counter() - began) / 1e12)
    return best


def in_a_process(words: list[str]) -> Row:
    """A row measured by this file in a process of its own; what went wrong, where it did."""
    done = subprocess.run([sys.executable, str(HERE), *words], capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    found: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table_of(name: str, ask: Callable[[str, int], Row], sizes: list[int]) -> list[Row]:
    """All rows of a table; those that are compared take turns. A size that does not fit ends the larger ones."""
    rows: list[Row] = []
    full: set[str] = set()
    for size in sizes:
        for turn in range(TURNS[name]):
            for variant in variants(name):
                if variant in full or variant == COUNTED:
                    continue
                row = {"row": variant, "turn": turn, **ask(variant, size)}
                if "failed" in row:
                    full.add(variant)
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def ratios(name: str, rows: list[Row]) -> dict[str, Any]:
    """Time and memory of a row over those that it is compared with, in each turn."""
    found = {(r["row"], r["turn"]): r for r in rows if "seconds" in r}

    def over(one: str, other: str) -> Row:
        turns = [t for row, t in found if row == one and (other, t) in found]
        both = [(found[one, t], found[other, t]) for t in turns]
        return {what: spread([a[what] / b[what] for a, b in both]) for what in ("seconds", "peak_gib")} if both else {}

    names = list(variants(name))
    names.remove(COUNTED)
    against = {"dpo": [(m, m.replace("mapo", other, 1)) for m in names if m.startswith("mapo")
                       for other in ("dpo", "dpo, reference before")],
               "cache": [(names[-1], names[0])], "levers": [(n, names[0]) for n in names[1:]]}  # fmt: skip
    return {f"{one} / {other}": over(one, other) for one, other in against.get(name, []) if over(one, other)}


def main() -> None:
    """Prepare, measure each row, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(SIZES))
    parser.add_argument("--work", type=Path, default=Path("work/gpu"))
    parser.add_argument("--model", help="another model folder, or mini; default: SDXL at its real size")
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--sizes", type=int, nargs="+", help="pairs a step")
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=9.5, help="no row begins after that")
    parser.add_argument("--only", nargs="+", help="rows of the table")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        row = variants(args.table)[args.row]
        size = args.sizes[0]
        print(json.dumps(measured(args.model, args.work, row, size, args.side, args.warm, args.steps)))
        return
    import torch

    model = prepared(args.work, args.model, args.side)
    peak, began = peak_of_the_card(), time.monotonic()

    def ask(variant: str, size: int) -> Row:
        if args.only and variant not in args.only:
            return {"failed": "not asked for"}
        if time.monotonic() - began > 60 * args.minutes:
            return {"failed": "no time was left"}
        return in_a_process([
            args.table, "--row", variant, "--model", model, "--work", str(args.work), "--side", str(args.side),
            "--sizes", str(size), "--warm", str(args.warm), "--steps", str(args.steps),
        ])  # fmt: skip

    rows = table_of(args.table, ask, args.sizes or SIZES[args.table])
    if args.table == "speed" and not args.only:
        needed = ask(COUNTED, 1).get("teraflop_per_pair", float("nan"))
        for row in rows:
            if "seconds" in row:
                row["share_of_peak"] = needed * row["pairs_per_second"] / peak
    result = {
        "command": " ".join(["python bench/gpu.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "torch": torch.__version__, "peak in bfloat16, 10^12 a second": peak,
        },
        "model": args.model or "SDXL, random weights", "side": args.side, "rows": rows,
        "ratios": ratios(args.table, rows),
    }  # fmt: skip
    print(json.dumps(result["ratios"], indent=1))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"gpu-{args.table}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
