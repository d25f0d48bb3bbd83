"""Models at their real size with random weights on a GPU, at 1024 pixels: tables that are made by short commands.

    python bench/gpu.py prepare  [--model MODEL] [--work FOLDER]
    python bench/gpu.py speed | memory | dpo | cache | levers | families  [--model MODEL] [--work FOLDER]
                                 [--out bench/results] [--only ROW …] [--sizes N …] [--minutes 9.5] [--again]

MODEL is sdxl (the default, which all tables but the last are about), sd15, sd35-medium (without T5) or flux-dev.

prepare  the model's folder (without weights: they are made at random on the device), 32 encoded pairs, the arithmetic
         of a pair as PyTorch counts it, and the card's own peak in bfloat16; the tables do it where it was not done
speed    all weights, from the cache: pairs a second, peak memory and share of the card's peak, at each number of pairs
         a step until the memory is full; without recomputation and with it
memory   the least memory: all weights and a LoRA of rank 16 with one pair a step
dpo      MaPO against Diffusion-DPO at 8 pairs a step, all else equal, all weights and a LoRA, without recomputation and
         with it; DPO with its frozen copy, and with reference errors computed before. Without recomputation 8 pairs do
         not fit a card of 80 GB, so both sides go through the model one pair at a time (of a LoRA two), and the
         gradients are added up
cache    training from the cache; the same with latents and text made in every step by the encoders of `mapo encode`,
         which is no mode of `train`; and that with text encoders in half precision, as public scripts have them. The
         denoiser is compiled in all of them, pictures are decoded by a thread of their own
levers   one row for each lever: what it gave and what it cost. One is the plain step where a wait for the GPU is an
         error
families a LoRA of rank 8 with one pair a step, as the recipes have it: a command for each MODEL

A command ends within ``--minutes``, whatever it is at. What a row found is in the file at once, and what is there is
not measured again: the same command goes on where the one before ended. ``--again`` measures anew. Another machine,
torch or model has to have another ``--out``.

Each row is a process of its own, which loads once for all its sizes. The first steps are not counted; of the others as
many are as take 15 seconds, at most 40 and at least 3. What is compared takes turns, and a ratio is of one turn: the
median, the least and the most. ``peak_gib`` is what torch's tensors held, ``reserved_gib`` what torch took for them.

On an H100 (estimated, by arithmetic at 350 · 10¹² operations a second, 12 s to start a process and 30 s to compile for
a size; nothing was measured): prepare 2 minutes, memory 4, cache 6, levers 9, and 12 each for dpo and speed, which are
two commands. Rows with adamw8bit need the package torchao (`pip install "mapo[memory]"`), whose update is compiled for
every shape, some minutes in the first row; compiled rows need triton. Without the package a row says so and the others
go on. Any other model folder (``--model mini --side 64``) goes through the same code without a GPU, to see that it
runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from step import spread

ROWS = Path(__file__).resolve().with_name("gpu_rows.py")
Row = dict[str, Any]

PLAIN: Row = {"train.precision": "bfloat16"}  # weights and AdamW's moments in float32: 41 GB, and the activations
MASTER: Row = {"train.weights": "bfloat16-master", "optim.name": "adamw8bit"}
LEAN: Row = {"train.weights": "bfloat16-stochastic", "optim.name": "adafactor"}
LORA: Row = {
    "adapter.kind": "lora", "adapter.rank": 16, "train.precision": "bfloat16", "train.base_precision": "bfloat16"
}  # fmt: skip
FAST: Row = {"train.compile": True, "train.channels_last": True}
AGAIN: Row = {"train.gradient_checkpointing": True}
IN_BACKWARD: Row = {"optim.in_backward": True, "optim.clip_norm": 0}
BEFORE: Row = {"train.reference": "before"}
REAL = ("sdxl", "sd15", "sd35-medium", "flux-dev")
OUT_OF_TIME = "no time was left"
PEAK = "peak in bfloat16, 10^12 a second"


def _dpo() -> dict[str, Row]:
    found = {}
    for kind, settings, portion in (("all weights", PLAIN, 1), ("LoRA", LORA, 2)):
        for again in (False, True):
            how = settings | (AGAIN if again else {"train.pairs_per_device": portion})
            for objective, before in (("mapo", {}), ("dpo", {}), ("dpo", BEFORE)):
                if not (before and kind == "LoRA"):  # which holds no second model
                    name = (
                        f"{objective}{', reference before' if before else ''}, {kind}{', recomputed' if again else ''}"
                    )
                    found[name] = how | before | {"objective": objective}
    return found


TABLES: dict[str, dict[str, Row]] = {  # the rows of each: settings of `train`, an objective, how batches come
    "speed": {
        "adamw": PLAIN | FAST,
        "adamw, recomputed": PLAIN | FAST | AGAIN,
        "adafactor, bfloat16": LEAN | FAST,
        "adafactor, bfloat16, recomputed": LEAN | FAST | AGAIN,
        "adamw8bit, masters, recomputed": MASTER | FAST | AGAIN,
    },
    "memory": {
        "all weights, adafactor in the backward pass, recomputed": LEAN | IN_BACKWARD | AGAIN,
        "the same, not recomputed": LEAN | IN_BACKWARD,
        "LoRA of rank 16, recomputed": LORA | AGAIN,
        "LoRA of rank 16, pair by pair, recomputed": LORA | AGAIN | {"train.pair_by_pair": True},
        "LoRA of rank 16": LORA,
    },
    "dpo": _dpo(),
    "cache": {
        "from the cache": PLAIN | FAST | {"train.pairs_per_device": 1},
        "encoded in every step": PLAIN | FAST | {"train.pairs_per_device": 1, "way": "ours"},
        "encoded in every step, text in half": PLAIN | FAST | {"train.pairs_per_device": 1, "way": "public"},
    },
    "levers": {
        "as it is": PLAIN,
        "as it is, and a wait is an error": PLAIN | {"strict": True},
        "channels_last": PLAIN | {"train.channels_last": True},
        "checkpointing": PLAIN | AGAIN,
        "checkpointing every 2nd block": PLAIN | {"train.gradient_checkpointing": 2},
        "in the backward pass": PLAIN | IN_BACKWARD,
        "adafactor": PLAIN | {"optim.name": "adafactor"},
        "pair by pair": PLAIN | {"train.pair_by_pair": True},
        "bfloat16 with masters": {"train.weights": "bfloat16-master"},
        "bfloat16, rounded at random": {"train.weights": "bfloat16-stochastic"},
        "float32": {},
        "float32, tf32": {"train.tf32": True},
        "compile": PLAIN | {"train.compile": True},
        "adamw8bit": PLAIN | {"optim.name": "adamw8bit"},
    },
    "families": {
        "LoRA of rank 8, recomputed": LORA | AGAIN | {"adapter.rank": 8},
        "LoRA of rank 8": LORA | {"adapter.rank": 8},
    },
}
COUNTED: dict[str, Row] = {  # whose arithmetic is counted
    "mapo, all weights": {}, "dpo, all weights": {"objective": "dpo"},
    "mapo, LoRA of rank 16": LORA, "dpo, LoRA of rank 16": LORA | {"objective": "dpo"},
    "mapo, LoRA of rank 8": LORA | {"adapter.rank": 8},
}  # fmt: skip
SIZES = {"memory": [1], "dpo": [8], "cache": [4], "levers": [1], "families": [1]}
SIZES_OF_SPEED = {True: [8, 16, 24, 32, 48], False: [1, 2, 4]}  # recomputed or not
TURNS = {"dpo": 2, "cache": 2}  # processes of each row, in turn
AGAINST = {  # of a table's rows, which is over which
    "dpo": [
        (name, name.replace("mapo", other, 1))
        for name in TABLES["dpo"] if name.startswith("mapo") for other in ("dpo", "dpo, reference before")
    ],
    "cache": [(name, "from the cache") for name in TABLES["cache"] if name != "from the cache"],
    "levers": [
        (name, "float32" if name == "float32, tf32" else "as it is") for name in TABLES["levers"] if name != "as it is"
    ],
}  # fmt: skip


def counted_as(row: Row) -> str:
    """The name in ``COUNTED`` of the arithmetic that a row's pairs take. A reference that ran before is not in it."""
    objective = "mapo" if row.get("train.reference") == "before" else row.get("objective", "mapo")
    lora = row.get("adapter.kind") == "lora"
    return f"{objective}, LoRA of rank {row['adapter.rank']}" if lora else f"{objective}, all weights"


def counted_for(table: str, model: str) -> dict[str, Row]:
    """Whose arithmetic a table needs; before the tables only that of a LoRA, as FLUX.1 has no other."""
    rows = TABLES.get(table) or TABLES["families" if model != "sdxl" else "speed"]
    return {name: COUNTED[name] for name in dict.fromkeys(map(counted_as, rows.values()))}


def in_a_process(task: Row, seconds: float, work: Path) -> Iterator[Row]:
    """What a process of gpu_rows.py finds, as it finds it; killed after so many seconds."""
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(work.resolve() / "compiled")}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROWS), json.dumps(task)], stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**kept, **os.environ}, start_new_session=True,
        )  # fmt: skip
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)  # with the compiler's own processes

        timer = threading.Timer(seconds, end)
        timer.start()
        said = False
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    found = json.loads(line)
                    said = "failed" in found
                    yield found
            process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode and not said:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1][:300]
            yield {"failed": OUT_OF_TIME if late.is_set() else last}


class Results:
    """A table's file: what was measured, rewritten whenever something is added."""

    def __init__(self, path: Path, about: Row) -> None:
        self.path, self.about = path, about
        self.rows: list[Row] = []
        if path.exists():
            before = json.loads(path.read_text())
            if differs := [key for key in about if before.get(key) != about[key]]:
                sys.exit(f"{path} is of another {' and '.join(differs)}. Give another --out, or delete it.")
            self.rows = before["rows"]

    def known(self, row: str, settings: Row, pairs: int, turn: int) -> bool:
        """Whether that was measured with these settings, or found not to fit, in which case larger ones do not."""
        found = [one for one in self.rows if (one["row"], one["turn"], one["settings"]) == (row, turn, settings)]
        small = min((one["pairs"] for one in found if one.get("failed") == "out of memory"), default=pairs + 1)
        return small <= pairs or any("seconds" in one and one["pairs"] == pairs for one in found)

    def tried(self, row: str, turn: int) -> bool:
        """Whether a process was begun for it that time ran out on."""
        return any(one["row"] == row and one["turn"] == turn and "seconds" not in one for one in self.rows)

    def add(self, found: Row, told: Row) -> None:
        """Keep what was found, in place of what was known of the same, and write all of it."""
        same = ("row", "pairs", "turn")
        self.rows = [one for one in self.rows if any(one[key] != found[key] for key in same)] + [found]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".tmp")
        ratios = ratios_of(told["table"], self.rows)
        aside.write_text(json.dumps({**self.about, **told, "ratios": ratios, "rows": self.rows}, indent=1) + "\n")
        aside.replace(self.path)


def ratios_of(table: str, rows: list[Row]) -> Row:
    """Time and memory of a row over those that it is compared with, in each turn."""
    found = {(one["row"], one["pairs"], one["turn"]): one for one in rows if "seconds" in one}
    ratios: Row = {}
    for one, other in AGAINST.get(table, []):
        for pairs in sorted({size for row, size, _ in found if row == one}):
            turns = [turn for row, size, turn in found if (row, size) == (one, pairs) and (other, pairs, turn) in found]
            both = [(found[one, pairs, turn], found[other, pairs, turn]) for turn in turns]
            for what in ("seconds", "peak_gib"):
                if both:
                    named = ratios.setdefault(f"{one} / {other}, {pairs} a step", {})
                    named[what] = spread([mine[what] / its[what] for mine, its in both])
    return ratios


def prepared(task: Row, work: Path, counted: Row, left: Callable[[], float]) -> tuple[Row, Row]:
    """The card and the arithmetic of a pair, once all is there that rows need."""
    path = work / f"arithmetic-{re.sub(r'[^a-z0-9]+', '-', Path(task['model']).name.lower())}-{task['side']}.json"
    work.mkdir(parents=True, exist_ok=True)
    arithmetic: Row = json.loads(path.read_text()) if path.exists() else {}
    card: Row = {}
    missing = [(name, row) for name, row in counted.items() if name not in arithmetic]
    tasks: list[Row] = [{"task": "prepare"}, *([{"task": "count", "rows": missing}] if missing else [])]
    for one in tasks:
        for found in in_a_process({**task, **one}, left(), work):
            if "failed" in found:
                sys.exit(f"{one['task']}: {found['failed']}")
            if "counted" in found:
                arithmetic[found["counted"]] = found["teraflop"]
                path.write_text(json.dumps(arithmetic, indent=1) + "\n")
            else:
                card |= found
    return card, arithmetic


def asked_for(args: argparse.Namespace) -> list[tuple[int, str, Row, list[int]]]:
    """Turn, name, settings and sizes of every row of the table, in the order in which they are measured."""
    rows = TABLES[args.table]
    if unknown := [name for name in args.only or () if name not in rows]:
        sys.exit(f"--only: {args.table} has no row {unknown[0]!r}. It has {'; '.join(rows)}.")

    def sizes(row: Row) -> list[int]:
        own = SIZES.get(args.table) or SIZES_OF_SPEED["train.gradient_checkpointing" in row]
        return sorted(args.sizes or own)

    return [
        (turn, name, row, sizes(row))
        for turn in range(TURNS.get(args.table, 1))
        for name, row in rows.items()
        if not args.only or name in args.only
    ]


def arguments() -> argparse.Namespace:
    """What the command was told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["prepare", *TABLES])
    parser.add_argument("--work", type=Path, default=Path("work/gpu"), help="what is prepared")
    parser.add_argument("--model", default="sdxl", help="one of those above, another model folder, or mini")
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--sizes", type=int, nargs="+", help="pairs a step")
    parser.add_argument("--warm", type=int, default=3, help="steps that are not counted")
    parser.add_argument("--steps", type=int, default=40, help="counted steps at most")
    parser.add_argument("--seconds", type=float, default=15, help="of the counted steps of a size, about")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which the command ends")
    parser.add_argument("--only", nargs="+", help="rows of the table")
    parser.add_argument("--again", action="store_true", help="also measure what was measured before")
    parser.add_argument("--out", type=Path, help="folder of the results; default: that of --work")
    return parser.parse_args()


def main() -> None:
    """Prepare, measure each row that is not known yet, print, and keep it."""
    began, args = time.monotonic(), arguments()

    def left() -> float:
        return max(0.1, float(60 * args.minutes) - (time.monotonic() - began))

    name = str(args.work / args.model) if args.model in REAL else args.model
    common = {"model": name, "work": str(args.work), "side": args.side}
    card, arithmetic = prepared(common, args.work, counted_for(args.table, args.model), left)
    print(json.dumps({**card, "arithmetic of a pair, 10^12": arithmetic}, indent=1), flush=True)
    if args.table == "prepare":
        return
    about = {"machine": {key: card[key] for key in ("device", "torch")},
             "model": f"{args.model}, random weights", "side": args.side}  # fmt: skip
    slug = re.sub(r"[^a-z0-9]+", "-", card["device"].lower())
    table = f"families-{Path(args.model).name}" if args.table == "families" else args.table
    results = Results((args.out or args.work) / f"gpu-{table}-{slug}.json", about)
    told = {"table": args.table, "command": " ".join(["python bench/gpu.py", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"), PEAK: card[PEAK], "arithmetic of a pair, 10^12": arithmetic}  # fmt: skip
    rows = asked_for(args)
    rows.sort(key=lambda one: results.tried(one[1], one[0]))  # those on which time ran out come last
    for turn, name, row, sizes in rows:
        lacking = sizes if args.again else [n for n in sizes if not results.known(name, row, n, turn)]
        if not lacking or left() < 1:
            continue
        task = {**common, "task": "measure", "row": row, "sizes": lacking, "warm": args.warm, "steps": args.steps,
                "seconds": args.seconds}  # fmt: skip
        waiting = iter(lacking)
        for found in in_a_process(task, left(), args.work):
            one = {"row": name, "turn": turn, "pairs": next(waiting, lacking[-1]), **found, "settings": row}
            if "seconds" in one:
                one["share_of_peak"] = arithmetic[counted_as(row)] * one["pairs_per_second"] / card[PEAK]
            results.add(one, told)
            print(json.dumps({key: value for key, value in one.items() if key != "settings"}), flush=True)
    lacks = sum(not results.known(name, row, n, turn) for turn, name, row, sizes in rows for n in sizes)
    print(json.dumps(ratios_of(args.table, results.rows), indent=1))
    print(f"{results.path}: {lacks} of {sum(len(one[3]) for one in rows)} measurements lack. "
          + ("The same command goes on." if lacks else "The table is whole."))  # fmt: skip


if __name__ == "__main__":
    main()
