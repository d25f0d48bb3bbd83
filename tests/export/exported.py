"""What tests of exported runs have in common."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard

from mapo.models import find_model, open_model
from mapo.train.config import make_config
from mapo.train.train import train

PROMPT = "a small red circle"


def latents(pipeline: Any, **how: Any) -> torch.Tensor:
    """What a pipeline draws, before it is decoded."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "width": 16, "height": 16, **how}
    with torch.inference_mode():
        found: torch.Tensor = pipeline(
            PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **settings
        )[0]
    return found


@functools.cache
def of_run(name: Path | str) -> torch.Tensor:
    return latents(open_model(find_model(str(name)), to_train=False).pipeline("cpu", torch.float32))


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text("utf-8"))


def trained(base: Path, pairs: Path, out: Path, loras: tuple[str, ...] = ()) -> Path:
    values = {
        "model": str(base), "pairs": str(pairs), "adapter": {"kind": "lora", "rank": 2}, "optim": {"lr": 1e-1},
        "train": {"steps": 2, "pairs_per_step": 2}, "loras": list(loras),
    }  # fmt: skip
    train(make_config(values), out)
    return out
