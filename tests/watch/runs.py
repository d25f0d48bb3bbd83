"""Run folders as `mapo train` leaves them, with made-up numbers."""

import json
import math
from pathlib import Path

from PIL import Image

from mapo.sample.filling import open_folder
from mapo.sample.folder import ImageRow, append_images, png_bytes
from mapo.train.config import make_config, to_toml
from mapo.train.run.folder import Run

PROMPTS = [
    "a small purple star on a blue background",
    "a black triangle below a red heart, and a prompt that goes on " * 2,
]


def line(step, rise=0.0):
    chosen = 0.12 * math.exp(-step / 300) + rise * step
    return {
        "step": step, "pairs_seen": 4 * step, "loss": 0.5, "error_chosen": chosen, "error_rejected": 0.12 + step / 4000,
        "margin": 0.12 + step / 4000 - chosen, "accuracy": min(1.0, 0.5 + step / 800), "lr": 1e-5,
        "pairs_per_second": 2.0, "seconds": 2.0, "memory": 3 * 2**30,
    }  # fmt: skip


def evaluation(step):
    return {
        "step": step, "pairs_seen": 4 * step, "pairs": 64, "accuracy": 0.5 + step / 1000, "error_chosen": 0.1,
        "error_rejected": 0.11, "error_chosen_change": -step / 2000, "error_rejected_change": step / 1000,
        "margin": step / 4000, "margin_over_base": step / 4000, "margin_by_time": [k * step / 1000 for k in range(4)],
        "timesteps": [125.0, 375.0, 625.0, 875.0], "push": 9.0, "beyond_reach": 0.1, "seconds": 3.0,
    }  # fmt: skip


def add(path: Path, lines) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(values) + "\n" for values in lines)


def draw(run: Run, step: int, side: int = 48, sensitive: bool = False) -> None:
    folder = run.pictures_at(step)
    open_folder(folder, {"model": f"run@{step}"}, sensitive)
    rows, data = [], []
    for k, prompt in enumerate(PROMPTS):
        png = png_bytes(Image.new("RGB", (side, side), (40 + step % 200, 90 * k, 160)))
        from mapo.files import sha256

        rows.append(ImageRow(f"{k}.png", f"p{k}", prompt, 0, 1, sha256(png), f"run@{step}", width=side, height=side))
        data.append(png)
    append_images(folder, rows, data)


def make_run(folder: Path, steps=200, done=120, pictures=(0, 50, 100), side=48, sensitive=False) -> Run:
    folder.mkdir(parents=True)
    values = {
        "model": "mini", "pairs": "work/pairs", "objective": {"name": "mapo", "beta": 0.1},
        "train": {"steps": steps, "evaluate_every": 50},
    }  # fmt: skip
    (folder / "config.toml").write_text(to_toml(make_config(values)))
    run = Run(folder)
    add(run.log, map(line, range(1, done + 1)))
    add(run.evaluation_log, [evaluation(step) for step in range(0, done + 1, 50)] if done else [])
    for step in pictures:
        draw(run, step, side, sensitive)
    return run
