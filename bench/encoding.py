"""The memory of encoding a set: what `mapo plan` says of it, and what `mapo encode` took.

    python bench/encoding.py --work FOLDER [--models mini mini-flow sd15 sdxl] [--out bench/results]

Pairs of noise pictures, each with a prompt of its own: forty, and four where the model has its real size, whose weights
are random (bench/real_size.py). A row is a process of its own, whose most anonymous memory is taken.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured import write_measured
from real_size import PARAMETERS, make_model, watched

ROWS = {  # side, pictures at once, precision
    "mini": ((48, 8, "float32"), (48, 64, "float32"), (48, 256, "float32")),
    "mini-flow": ((48, 64, "float32"), (48, 64, "bfloat16")),
    "sd15": ((512, 1, "float32"), (512, 4, "float32"), (512, 1, "bfloat16")),
    "sdxl": ((512, 1, "float32"), (512, 8, "float32"), (1024, 1, "float32")),
}


def make_pairs(folder: Path, number: int) -> Path:
    """Pairs of noise, a prompt each."""
    from PIL import Image

    from mapo.pairs import PairWriter
    from mapo.sample.folder import png_bytes

    if not folder.exists():
        rng = random.Random(0)
        with PairWriter(folder, {"made": "by bench/encoding.py"}) as writer:
            for k in range(number):
                sides = [png_bytes(Image.frombytes("RGB", (64, 64), rng.randbytes(3 * 64**2))) for _ in range(2)]
                writer.add_pair(f"a small red circle number {k}", *sides, split="train")
    return folder


def rows(work: Path, models: list[str]) -> Iterator[dict[str, Any]]:
    """Plan, encode, watch."""
    from mapo.api import plan

    for name in models:
        real = name in PARAMETERS
        model = str(make_model(work / name, name)) if real else name
        number = 4 if real else 40
        pairs = make_pairs(work / f"pairs-{number}", number)
        for side, at_once, precision in ROWS[name]:
            cache = work / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            settings = {
                "data.resolution": side, "data.images_per_batch": at_once, "data.cache_precision": precision,
                "train.allow_oversize": True, "train.base_precision": "bfloat16",
            }  # fmt: skip
            told = plan(model=model, pairs=pairs, cache=cache, adapter="lora", settings=settings)
            words = ["--resolution", str(side), "--images-per-batch", str(at_once), "--precision", precision]
            _, peak = watched(["encode", "--model", model, "--pairs", str(pairs), "--out", str(cache), *words])
            said = (sum(told.encoding.values()) - told.encoding.get("mapped", 0)) / 2**20
            row = {"model": name, "side": side, "pictures at once": at_once, "precision": precision}
            yield {**row, "planned MiB": round(said), "measured MiB": round(1024 * peak), "ratio": said / 1024 / peak}


def main() -> None:
    """Make, plan, encode, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = []
    for row in rows(args.work, args.models):
        found.append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        write_measured(args.out / "encoding.json", {"rows": found})


if __name__ == "__main__":
    main()
