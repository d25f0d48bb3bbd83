"""How long a report takes, and how large its page is.

python bench/report.py [--pictures 500] [--side 1024] [--rounds 3] [--out bench/results]

Makes two folders of pictures that are as hard to shrink as photographs (smooth shapes, edges and grain), with scores of
six scorers and four guards, votes of two people and the log of a run, and writes the report from these files. Making
the folders is not timed. The best of the rounds, on the wall and of CPU time (on a busy machine the second is the
steadier; the pictures are made ready on all cores).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from measured import write_measured

SCORERS = ("pickscore", "hps_v2.0", "hps_v2.1", "aesthetic", "clip_score", "imagereward")
GUARDS = ("saturation", "edge_density", "colour_entropy", "diversity")


def painted(side: int, seed: int, contrast: float) -> Image.Image:
    """Smooth colours, hard edges at several sizes, and grain."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((side, side, 3))
    for cells, weight, how in ((4, 0.5, 3), (16, 0.3, 3), (64, 0.15, 0), (256, 0.05, 3)):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += weight * np.asarray(small.resize((side, side), Image.Resampling(how)), np.float64)
    picture = (picture - 128) * contrast + 128 + rng.normal(0, 4, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def moved(pictures: list[Image.Image], number: int) -> Image.Image:
    """One of a few painted pictures, shifted, as painting hundreds takes longer than what is measured."""
    shift = 61 * (number // len(pictures)), 37 * number
    return Image.fromarray(np.roll(np.asarray(pictures[number % len(pictures)]), shift, (0, 1)))


def make_folder(folder: Path, name: str, pairs: int, side: int, contrast: float) -> list[Any]:
    """An images folder of ``pairs`` pictures, four seeds a prompt."""
    from mapo.files import sha256
    from mapo.pairs.splits import prompt_id
    from mapo.sample.folder import ImageRow, append_images, png_bytes

    rows: list[ImageRow] = []
    pictures = [painted(side, k, contrast) for k in range(8)]
    for number in range(pairs):
        prompt, seed = f"a picture of place number {number // 4}", number % 4
        data = png_bytes(moved(pictures, number))
        row = ImageRow(
            file=f"{number:04d}.png", prompt_id=prompt_id(prompt), prompt=prompt, seed=seed, noise_seed=number,
            sha256=sha256(data), model=name, steps=30, width=side, height=side,
        )  # fmt: skip
        append_images(folder, [row], [data])
        rows.append(row)
    return rows


def make_scores(path: Path, rows: list[Any], shift: float) -> None:
    """A table of scores as `mapo score` writes it."""
    from mapo.score.table import write_scores

    rng = np.random.default_rng(len(rows))
    names = [(name, name) for name in SCORERS] + [("guards", name) for name in GUARDS]
    write_scores(
        path,
        [
            {
                "image": row.sha256, "prompt_id": row.prompt_id, "prompt": row.prompt, "seed": row.seed,
                "model": row.model, "scorer": scorer, "metric": metric, "version": "1", "revision": "",
                "reference": None, "value": float(rng.normal(20 + shift, 1)),
            }
            for scorer, metric in names
            for row in rows
        ],
    )  # fmt: skip


def make_rest(folder: Path, before: list[Any], after: list[Any]) -> None:
    """Votes of two people on every pair, and the log of a run of 2,000 steps."""
    from mapo.label.votes import Vote

    votes = []
    for who in ("ann", "bob"):
        for number, (one, two) in enumerate(zip(before, after, strict=True)):
            shown, record = (one.sha256, two.sha256), (one.prompt_id, one.seed)
            said = "right" if number % 3 else "tie"
            votes.append(Vote("2026-01-01T00:00:00.000+00:00", who, f"{number}", *shown, said, *shown, *record))
    (folder / "votes.jsonl").write_text("".join(json.dumps(vars(vote)) + "\n" for vote in votes))
    (folder / "run").mkdir()
    steps = (
        {"step": k, "pairs_seen": 16 * k, "error_chosen": 0.1, "error_rejected": 0.2, "margin": 0.1, "accuracy": 0.6}
        for k in range(1, 2001)
    )
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from mapo.report.report import write_report

    seconds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        root, pairs = Path(name), args.pictures // 2
        rows = [make_folder(root / n, n, pairs, args.side, c) for n, c in (("before", 1.2), ("after", 1.5))]
        tables = [root / "before.parquet", root / "after.parquet"]
        for table, side, shift in zip(tables, rows, (0.0, 0.3), strict=True):
            make_scores(table, side, shift)
        make_rest(root, rows[0], rows[1])
        page = root / "report.html"
        for _ in range(args.rounds):
            wall, busy = time.perf_counter(), time.process_time()
            write_report(
                root / "before", root / "after", tables, page, goal="pickscore", run=root / "run",
                votes=[root / "votes.jsonl"],
            )  # fmt: skip
            seconds.append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - busy})
        size = page.stat().st_size
    best = {clock: min(s[clock] for s in seconds) for clock in ("wall", "cpu")}
    print(
        f"{args.pictures} pictures of {args.side} pixels: {size / 1e6:.1f} MB, {best['wall']:.1f} s, "
        f"{best['cpu']:.1f} s of CPU on {os.cpu_count()} cores"
    )
    if args.out:
        result = {
            "pictures": args.pictures,
            "side": args.side,
            "page_bytes": size,
            "seconds": best,
            "rounds": seconds,
        }
        write_measured(args.out / "report.json", result)


if __name__ == "__main__":
    main()
