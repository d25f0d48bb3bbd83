"""What must not move: runs, pictures, pairs and scores of the built-in model, recorded once.

``python tests/golden/recorded.py`` (with ``src`` on the path) records all of it again. Do that only where a change is
meant to move a record, in a commit that says why. ``python tests/golden/recorded.py machine`` adds the runs of a kind of
machine that has none yet, and ``… portable`` those that every kind of machine meets in float64; do that with code of
which another machine says that it moved nothing. Every setting is spelled out here, so a changed default moves nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

HERE = Path(__file__).parent
RECORDS, RECIPE = HERE / "records.json", HERE / "recipe.toml"
PAIRS, IMAGES, CACHE = HERE / "pairs", HERE / "images", HERE / "cache"
LOGGED = ("loss", "error_chosen", "error_rejected", "grad_norm")
STEPS = 20
OBJECTIVES: dict[str, dict[str, float]] = {
    "mapo": {"beta": 0.1, "snr": 0.5, "num_timesteps": 1000},
    "mapo_aaai": {"beta": 8.0},
    "mapo_relative": {"beta": 2.0, "sharpness": 4.0, "floor": 1e-3},
    "sft": {},
    "dpo": {"beta": 50.0},
}
RUNS = [(p, o, a) for p in ("float32", "float64") for o in OBJECTIVES for a in ("full", "lora")]
PORTABLE = [run for run in RUNS if run[0] == "float64"]
PROMPTS = (
    "a small red circle on a blue background", "a large green star on a white background",
    "a yellow square on a black background", "a blue triangle on a yellow background",
)  # fmt: skip
SAMPLING = ["--steps", "8", "--guidance", "1.5", "--precision", "float32", "--images-per-batch", "8"]


def environment() -> dict[str, Any]:
    """What decides how sums are rounded: equal here means equal to the bit."""
    processor: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in ("vendor_id", "cpu family", "model", "stepping"):
            processor.setdefault(key.strip(), value.strip())
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu capability": capability, "processor": processor}


def settings(precision: str, objective: str, adapter: str, cache: Path) -> dict[str, Any]:
    """Those of a recorded run: every one of 0.1.0, and what has another default since.

    A tie and weights are among the pairs; two of four are held at once.
    """
    return {
        "model": "mini",
        "pairs": str(PAIRS),
        "cache": str(cache),
        "objective": {"name": objective, **OBJECTIVES[objective]},
        "adapter": {"kind": adapter, "rank": 4},
        "optim": {
            "lr": 1e-4 if adapter == "full" else 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-4, "weight_decay": 1e-2,
            "clip_norm": 1.0, "schedule": "cosine", "warmup_steps": 3,
        },
        "data": {"resolution": 48, "flip": True, "split": "train", "ties": "keep"},
        "train": {
            "steps": STEPS, "pairs_per_step": 4, "pairs_per_device": 2, "seed": 7, "precision": precision,
            "gradient_checkpointing": False, "save_every_steps": 20, "measure_rejected": True,
        },
    }  # fmt: skip


def mapo(*words: str) -> None:
    """A verb, in this process and on one thread."""
    from mapo.cli import cli

    torch.set_num_threads(1)
    cli.main(list(words), standalone_mode=False)


def trajectory(precision: str, objective: str, adapter: str, work: Path, encoded: Path = CACHE) -> dict[str, Any]:
    """Twenty steps: what is logged, and the weights they end with."""
    import tomli_w

    folder = work / f"{precision}-{objective}-{adapter}"
    config = work / f"{folder.name}.toml"
    shutil.copytree(encoded, work / "cache", dirs_exist_ok=True)  # encoded once: another machine rounds it otherwise
    config.write_text(tomli_w.dumps(settings(precision, objective, adapter, work / "cache")))
    mapo("train", "--config", str(config), "--out", str(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"steps": [[line[name] for name in LOGGED] for line in lines], **weights_of(folder)}


@contextmanager
def exact_draws() -> Iterator[None]:
    """Noise, the noise schedule and the embedding of timesteps made in float64.

    In float32 each kind of processor rounds their logarithms, sines and steps in its own way.
    """
    from diffusers.models import embeddings

    randn, linspace, normal_ = torch.randn, torch.linspace, torch.Tensor.normal_

    def drawn(*size: Any, generator: torch.Generator | None = None) -> torch.Tensor:
        return randn(*size, generator=generator, dtype=torch.float64).float()

    def filled(tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, **how: Any) -> torch.Tensor:
        return tensor.copy_(normal_(torch.empty_like(tensor, dtype=torch.float64), mean, std, **how))

    def even(start: float, end: float, steps: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return linspace(start, end, steps, dtype=torch.float64).to(dtype)

    def embedded(
        timesteps: torch.Tensor, size: int, flip_sin_to_cos: bool, downscale_freq_shift: float, scale: float
    ) -> torch.Tensor:
        half = size // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
        angle = scale * timesteps[:, None].double() * exponent.exp()
        return torch.cat((angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos()), -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", drawn)
        patch.setattr(torch, "linspace", even)
        patch.setattr(torch.Tensor, "normal_", filled)
        patch.setattr(embeddings, "get_timestep_embedding", embedded)
        yield


def portable(run: tuple[str, str, str], work: Path) -> dict[str, Any]:
    """Twenty steps that machines of all makers agree on to the rounding of float64.

    Latents are without spread, whose exponential is taken in float32.
    """
    from safetensors.torch import load_file, save_file

    work = work / "portable"
    still = work / "still"
    shutil.copytree(CACHE, still, dirs_exist_ok=True)
    for shard in still.glob("latents-*.safetensors"):
        tensors = load_file(shard)
        for moments in (values for values in tensors.values() if values.ndim == 4):
            moments[1] = -30.0
        save_file(tensors, shard)
    with exact_draws():
        return trajectory(*run, work, still)


def encoded(out: Path) -> dict[str, np.ndarray]:
    """The committed set, encoded now; every tensor by its name."""
    mapo("encode", "--model", "mini", "--pairs", str(PAIRS), "--out", str(out), "--resolution", "48", "--flip")
    return tensors_of(out)


def tensors_of(cache: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {
        name: values
        for kind in ("latents", "text")
        for path in sorted(cache.glob(f"{kind}-*.safetensors"))
        for name, values in load_file(path).items()
    }


def weights_of(run: Path) -> dict[str, Any]:
    """A hash of the trained weights in the checkpoint, and their sums, which machines agree on to rounding."""
    from safetensors.torch import load_file

    digest, total, squares = hashlib.sha256(), 0.0, 0.0
    tensors = load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "weights.safetensors")
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name].numpy()).tobytes())
        total += float(tensors[name].double().sum())
        squares += float(tensors[name].double().pow(2).sum())
    return {"weights": digest.hexdigest(), "sum": total, "sum_of_squares": squares}


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


def built(out: Path) -> list[dict[str, Any]]:
    """Sixteen pairs by a recipe: prompt and pictures of each."""
    from mapo.pairs import PairSet

    mapo(
        "build", str(RECIPE), "--model", "mini", "--prompts", "mini:train", "--num-pairs", "16", "--out", str(out),
        "--judge", "mini-learned:cartoon", *SAMPLING,
    )  # fmt: skip
    opened = PairSet(out)
    return [
        {"prompt": pair.prompt, **{s: pixels(opened.image(getattr(pair, s))) for s in ("chosen", "rejected")}}
        for pair in opened
    ]


def recorded_pairs() -> list[dict[str, Any]]:
    """The pairs of the committed set, which is what the build made."""
    from mapo.pairs import PairSet

    opened = PairSet(PAIRS)
    return [
        {"prompt": pair.prompt, **{s: pixels(opened.image(getattr(pair, s))) for s in ("chosen", "rejected")}}
        for pair in opened
    ]


def sampled(out: Path) -> dict[str, np.ndarray]:
    """Sixteen pictures, by the name of their file."""
    prompts = out.with_suffix(".txt")
    prompts.write_text("\n".join(PROMPTS) + "\n")
    mapo("sample", "--model", "mini", "--prompts", str(prompts), "--seeds", "0-3", "--out", str(out), *SAMPLING)
    return pictures_of(out)


def pictures_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: pixels(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def scores(out: Path) -> list[list[Any]]:
    """The table of the committed pictures by both judges and the guards, without the folder's own name."""
    from mapo.score.table import read_scores

    mapo("score", str(IMAGES), "--scorer", "mini,guards", "--out", str(out))
    rows = read_scores(out).to_pylist()
    return sorted([r["prompt"], r["seed"], r["scorer"], r["metric"], r["version"], r["value"]] for r in rows)


def record() -> None:
    """Make the committed set and pictures, and write all records."""
    import pyarrow as pa

    from mapo.pairs.pairs import PairSet, replace_pairs

    for folder in (PAIRS, IMAGES, CACHE):
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        built(PAIRS)
        table = PairSet(PAIRS).table
        columns = {
            "split": ["train"] * 12 + ["validation"] * 2 + ["test"] * 2,
            "preference": [1.0] * 8 + [0.5, 0.8, 0.7, 1.0] + [1.0] * 4,
            "weight": [1.0] * 10 + [2.0, 0.5] + [1.0] * 4,
        }
        for name, values in columns.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
        replace_pairs(PAIRS, table)
        encoded(CACHE)
        sampled(work / "images")
        shutil.copytree(work / "images", IMAGES)
        found = {"logged": LOGGED, "scores": scores(work / "scores.parquet"), "machines": [of_this_machine(work)]}
    write(found)
    add_portable()


def of_this_machine(work: Path) -> dict[str, Any]:
    """The twenty steps of every run, and what decides how they are rounded."""
    return {"environment": environment(), "runs": {"/".join(run): trajectory(*run, work) for run in RUNS}}


def add_machine() -> None:
    """Write the runs of this kind of machine beside those that are there."""
    found = json.loads(RECORDS.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        others = [machine for machine in found["machines"] if machine["environment"] != environment()]
        write(found | {"machines": [*others, of_this_machine(Path(temporary))]})


def add_portable() -> None:
    """Write the runs that are drawn in float64."""
    found = json.loads(RECORDS.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        runs = {"/".join(run): portable(run, Path(temporary)) for run in PORTABLE}
    write(found | {"portable": {"environment": environment(), "runs": runs}})


def write(found: dict[str, Any]) -> None:
    RECORDS.write_text(json.dumps(found, indent=None, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    print(f"recorded: {environment()}", file=sys.stderr)


if __name__ == "__main__":
    {"": record, "machine": add_machine, "portable": add_portable}["".join(sys.argv[1:])]()
