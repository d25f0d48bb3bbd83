"""The memory in which pictures are encoded: one by one, or several at once.

    python bench/vae.py [--out bench/results]

SDXL's VAE at its real size, with random weights, in float32. Each row is a process of its own, whose most anonymous
memory above what it had before is taken. Larger pictures take more in proportion to their pixels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from pathlib import Path

from measured import write_measured

ROWS = ((1, 512, False), (4, 512, False), (4, 512, True), (1, 1024, False))  # pictures, side, one at a time


def measure(pictures: int, side: int, alone: bool) -> float:
    """GiB that encoding takes above the VAE's own weights."""
    import torch
    from diffusers import AutoencoderKL

    from mapo.devices import memory_in_use
    from real_size import VAE, VAES

    vae = AutoencoderKL(**VAE, **VAES["sdxl"]).eval()
    if alone:
        vae.enable_slicing()
    pixels = torch.zeros(pictures, 3, side, side)
    before, most, done = memory_in_use("cpu"), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], memory_in_use("cpu"))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.no_grad():
        vae.encode(pixels)
    done.set()
    watcher.join()
    return (most[0] - before) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for pictures, side, alone in ROWS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            taken = pool.apply(measure, (pictures, side, alone))
        rows.append({"pictures": pictures, "side": side, "one at a time": alone, "GiB": round(taken, 2)})
        print(rows[-1])
    if asked.out:
        write_measured(asked.out / "vae.json", {"rows": rows})


if __name__ == "__main__":
    main()
