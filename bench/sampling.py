"""`mapo sample` against the bare diffusers pipeline: the same settings, batches and pictures.

    python bench/sampling.py [--model mini] [--prompts 16] [--seeds 4] [--rounds 7] [--out bench/results]

Ours makes the pictures and writes an images folder: PNGs, their hashes, the manifest. The bare pipeline of the same
weights makes them in the same batches and keeps nothing; once more it also saves each with `picture.save`. All take
turns, with the models loaded before the clock starts. The pixels have to be equal to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from measured import write_measured


def bare_pipeline(model: Any) -> Any:
    """As diffusers opens the folder, without a bar."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        model.base, dtype=torch.float32, use_safetensors=True, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def bare_pictures(pipeline: Any, jobs: list[tuple[str, int]], how: Any, folder: Path | None = None) -> list[Any]:
    """The pictures of all jobs, batch by batch; saved where a folder is given."""
    import torch

    from mapo.sample.sample import noise_seed

    pictures: list[Any] = []
    for start in range(0, len(jobs), how.images_per_batch):
        batch = jobs[start : start + how.images_per_batch]
        pictures += pipeline(
            [prompt for prompt, _ in batch],
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            width=how.width,
            height=how.height,
            generator=[torch.Generator("cpu").manual_seed(noise_seed(*job)) for job in batch],
        ).images
        if folder:
            for k in range(start, len(pictures)):
                pictures[k].save(folder / f"{k}.png")
    return pictures


def alternate(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each, on the wall and of CPU time, measured in turn so that a busy machine hits all of them."""
    times: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            began = np.array([time.perf_counter(), time.process_time()])
            run()
            if number:  # the first round warms up
                times[name].append(np.array([time.perf_counter(), time.process_time()]) - began)
    return {
        name: {clock: statistics.median(t[k] for t in taken) for k, clock in enumerate(("wall", "cpu"))}
        for name, taken in times.items()
    }


def main() -> None:
    """Measure, compare pixels, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from PIL import Image

    from mapo.models import find_model
    from mapo.sample.prompts import read_prompts
    from mapo.sample.sample import Sampler, default_sampling

    model = find_model(args.model)
    how, sampler, pipeline = default_sampling(model), Sampler(args.model), bare_pipeline(model)
    jobs = [(prompt, seed) for prompt in read_prompts("mini:test")[: args.prompts] for seed in range(args.seeds)]
    with tempfile.TemporaryDirectory() as temporary:
        here, rounds = Path(temporary), iter(range(1_000_000))
        (here / "saved").mkdir()
        variants: dict[str, Callable[[], Any]] = {
            "mapo sample": lambda: sampler.fill(here / str(next(rounds)), jobs, how),
            "bare": lambda: bare_pictures(pipeline, jobs, how),
            "bare, saved": lambda: bare_pictures(pipeline, jobs, how, here / "saved"),
        }
        seconds = alternate(variants, args.rounds)
        for row, picture in zip(sampler.fill(here / "0", jobs, how), bare_pictures(pipeline, jobs, how), strict=True):
            written = np.asarray(Image.open(here / "0" / row.file))
            assert np.array_equal(written, np.asarray(picture)), f"{row.file} is another picture"
    ratios = {
        other: {clock: seconds[other][clock] / seconds["mapo sample"][clock] for clock in ("wall", "cpu")}
        for other in ("bare", "bare, saved")
    }
    for other, found in ratios.items():
        print(f"throughput, mapo sample / {other:12} wall {found['wall']:.3f}, CPU {found['cpu']:.3f}")
    if args.out:
        result = {
            "pictures": len(jobs),
            "steps": how.steps,
            "side": how.width,
            "images_per_batch": how.images_per_batch,
            "equal_to_the_bit": True,
            "median_seconds": seconds,
            "throughput_ratio": ratios,
        }
        write_measured(args.out / "sampling.json", result)


if __name__ == "__main__":
    main()
