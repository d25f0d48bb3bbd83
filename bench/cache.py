"""Whether a step and a start cost the same however many pairs there are.

python bench/cache.py [--sizes 100 1000 10000 100000] [--work FOLDER] [--out bench/results]

For each size a set and its cache are written with the package's own writers; latents and texts are small random
tensors, as what is measured is not the reading of bytes. Then, in rounds in which the sizes take turns:

* **batch**: `load_batch` of 16 pairs at random positions of the first epoch, files in the machine's memory.
* **start**: what `mapo train` does up to its first batch, libraries imported: open the set, find the model and its
  fingerprints, say what training sees, see that nothing is left to encode, open the cache, load the UNet, one batch.
* **process**: `mapo train` of one step of one pair as a person starts it, from the interpreter to the finished run.
* **crop**: of the start the comparison of pairs that are cropped, where all of them are.
* **opening**: of the start the parts that know the set: open it, say what training sees, open the cache.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import write_measured

ROUNDS, STARTS, PROCESSES, PAIRS_A_STEP = 300, 9, 5, 16
WORDS = [
    "a",
    "small",
    "large",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "fox",
    "gate",
    "harbour",
    "boat",
    "on",
    "under",
    "beside",
    "paper",
    "glass",
    "of",
    "with",
    "two",
]


def make(folder: Path, count: int) -> None:
    """A set of ``count`` pairs and its cache."""
    import torch

    from mapo.encode.cache import PER_SHARD, batches, cache_key, hold, prompt_key, write_head, write_shard
    from mapo.encode.index import open_index
    from mapo.files import sha256
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet, PairWriter
    from mapo.pairs.pictures import Picture

    rng = random.Random(count)
    with PairWriter(folder / "pairs", {"made": "by a bench"}) as writer:
        for _ in range(count):
            data = [rng.randbytes(64) for _ in range(2)]
            pictures = [Picture(sha256(d), d, 48, 48) for d in data]
            writer.add_checked_pair(" ".join(rng.choices(WORDS, k=12)), *pictures, split="train")
    pairs, model, cache = PairSet(folder / "pairs"), open_model(find_model("mini")), folder / "cache"
    prompts = pairs.table["prompt"].unique().to_pylist()
    with hold(cache):
        write_head(cache, "mini", cache_key(model))
        for names in batches(pairs.image_names(), PER_SHARD):
            latents = {f"{name}|0": torch.randn(2, 4, 12, 12) for name in names}
            sizes = {f"{name}|size": torch.tensor([48, 48, 0, 0], dtype=torch.int32) for name in names}
            write_shard(cache, "latents", latents | sizes)
        for portion in batches(prompts, PER_SHARD):
            states = {f"{prompt_key(p)}|prompt_embeds": torch.randn(2, 160) for p in portion}
            pooled = {f"{prompt_key(p)}|text_embeds": torch.randn(80) for p in portion}
            write_shard(cache, "text", states | pooled)
        open_index(cache).write()


def open_all(folder: Path, whole: bool) -> tuple[Callable[[list[int]], Any], int]:
    """What a training opens; how a batch is loaded, and how many pairs there are."""
    import torch

    from mapo.encode.cache import Cache, cache_key
    from mapo.encode.fill import encode
    from mapo.encode.seen import what_training_sees
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet
    from mapo.train.batches import Members, assemble, draws

    pairs = PairSet(folder / "pairs")
    model = open_model(find_model("mini"))
    seen = what_training_sees(pairs, model, split="train", ties="drop", resolution=None)
    if whole:
        pairs.fingerprint()
        model.files.revision()
        cache = encode(model, pairs, folder / "cache")
        model.denoiser("cpu", torch.float32)
    else:
        cache = Cache(folder / "cache", cache_key(model))
    members = Members(pairs, seen.rows)

    def load(positions: list[int]) -> Any:
        drawn = draws(positions, len(members), model.process, model.layout.latent(48), seed=0)
        return assemble(members, drawn, cache, model)

    return load, len(members)


def clock(job: Callable[[], Any]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def start(folder: Path, whole: bool) -> None:
    load, _ = open_all(folder, whole)
    load(list(range(PAIRS_A_STEP)))


def train(folder: Path) -> None:
    """One step of ``mapo train`` on one pair, in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "mapo", "train", "--model", "mini", "--pairs", str(folder / "pairs")]
        command += ["--cache", str(folder / "cache"), "--out", f"{out}/run"]
        command += ["--set", "train.steps=1", "--set", "train.pairs_per_step=1"]
        subprocess.run(command, check=True, capture_output=True)


def compare(folder: Path) -> None:
    """Look for pairs that are equal once cropped among all pairs of a set."""
    from mapo.encode.cache import Cache, cache_key
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet

    table = PairSet(folder / "pairs").table
    cache = Cache(folder / "cache", cache_key(open_model(find_model("mini"))))
    cache.equal_pairs(*(table[side].to_pylist() for side in ("chosen", "rejected")))


def told(seconds: list[float]) -> dict[str, float]:
    return {name: 1000 * f(seconds) for name, f in (("median", statistics.median), ("least", min), ("most", max))}


def ratio(rows: dict[int, dict[str, float]], by: str = "median") -> float:
    values = [row[by] for row in rows.values()]
    return max(values) / min(values)


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--work", type=Path, help="Keep the sets there, and use those that are there.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for size in args.sizes:
            if not (work / str(size)).exists():
                make(work / str(size), size)
        for file in (f for size in args.sizes for f in (work / str(size)).rglob("*") if f.is_file()):
            file.read_bytes()  # else the first look at each file is that of the disk
        loaders = {size: open_all(work / str(size), whole=False) for size in args.sizes}
        batches: dict[int, list[float]] = {size: [] for size in args.sizes}
        rng = random.Random(0)
        for number in range(ROUNDS + 20):
            for size in random.Random(number).sample(args.sizes, len(args.sizes)):
                load, count = loaders[size]
                positions = [rng.randrange(count) for _ in range(PAIRS_A_STEP)]
                seconds = clock(lambda load=load, p=positions: load(p))  # type: ignore[misc]
                if number >= 20:  # warm
                    batches[size].append(seconds)
        ends = [min(args.sizes), max(args.sizes)]
        starts: dict[str, dict[int, list[float]]] = {}
        for name, whole in (("start", True), ("opening", False)):
            starts[name] = {size: [] for size in ends}
            for number in range(STARTS + 1):
                for size in ends:
                    seconds = clock(lambda size=size, whole=whole: start(work / str(size), whole))  # type: ignore[misc]
                    if number:
                        starts[name][size].append(seconds)
        starts["process"] = {size: [] for size in ends}
        for size in ends * PROCESSES:
            starts["process"][size].append(clock(lambda size=size: train(work / str(size))))  # type: ignore[misc]
        starts["crop"] = {size: [clock(lambda size=size: compare(work / str(size)))] for size in ends}  # type: ignore[misc]
    per_size = {size: told(values) for size, values in batches.items()}
    results: dict[str, Any] = {
        "pairs_a_step": PAIRS_A_STEP,
        "rounds": ROUNDS,
        "batch_ms": per_size,
        "batch_largest_over_smallest": ratio(per_size),
        "batch_largest_over_smallest_of_the_least": ratio(per_size, "least"),
    }
    for name, values in starts.items():
        results[f"{name}_ms"] = {size: told(v) for size, v in values.items()}
        results[f"{name}_ratio"] = results[f"{name}_ms"][ends[1]]["median"] / results[f"{name}_ms"][ends[0]]["median"]
    print(json.dumps(results, indent=1))
    if args.out:
        write_measured(args.out / "cache.json", results)


if __name__ == "__main__":
    main()
