"""How much of the time of building pairs is spent in the denoiser.

python bench/build.py [--pairs 256] [--out bench/results]

Builds pairs with the built-in model as `mapo build pick-style-cartoon` does, without a judge and with one, and times
every call of the UNet. The rest is text encoders, scheduler, VAE, PNG, hashing, judging and writing the set.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from measured import write_measured


def now() -> Any:
    """Seconds on the wall and of CPU time (on a busy machine the second is the steadier)."""
    return np.array([time.perf_counter(), time.process_time()])


class Clock:
    """Sums the seconds spent in a method of a class: on the wall, and of this process's CPU time."""

    def __init__(self, kind: Any, method: str) -> None:
        self.seconds, real = np.zeros(2), getattr(kind, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return real(*args, **kwargs)
            finally:
                self.seconds = self.seconds + now() - began

        setattr(kind, method, timed)


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

    from mapo.build.build import build
    from mapo.build.judge import parse_filter
    from mapo.build.recipe import read_recipe
    from mapo.sample.prompts import read_prompts
    from mapo.sample.sample import Sampler

    assert StableDiffusionXLPipeline  # imported before the clock starts, as loading is counted by itself
    denoiser, loading = Clock(UNet2DConditionModel, "forward"), Clock(Sampler, "__init__")
    decoding = Clock(AutoencoderKL, "decode")
    results: dict[str, Any] = {}
    for name, judge in (("no judge", ()), ("mini-learned:cartoon", (parse_filter("mini-learned:cartoon"),))):
        before = denoiser.seconds, loading.seconds, decoding.seconds
        with tempfile.TemporaryDirectory() as folder:
            began = now()
            counts = build(
                read_recipe("pick-style-cartoon"), "mini", read_prompts("mini:train"), args.pairs,
                Path(folder) / "pairs", judges=judge,
            )  # fmt: skip
            seconds = now() - began
        inside, load, decode = (c.seconds - b for c, b in zip((denoiser, loading, decoding), before, strict=True))
        results[name] = {
            "counts": counts,
            **{
                clock: {
                    "seconds": seconds[k],
                    "denoiser_seconds": inside[k],
                    "loading_seconds": load[k],
                    "vae_decode_seconds": decode[k],
                    "share_of_denoiser": inside[k] / (seconds - load)[k],
                    "share_of_denoiser_with_loading": inside[k] / seconds[k],
                }
                for k, clock in enumerate(("wall", "cpu"))
            },
        }
        wall, cpu = (results[name][clock] for clock in ("wall", "cpu"))
        print(
            f"{name:24} {wall['share_of_denoiser']:.3f} of {wall['seconds'] - wall['loading_seconds']:.1f} s, "
            f"with loading {wall['share_of_denoiser_with_loading']:.3f}; of CPU time {cpu['share_of_denoiser']:.3f}"
        )
    if args.out:
        write_measured(args.out / "build.json", {"pairs": args.pairs, "results": results})


if __name__ == "__main__":
    main()
