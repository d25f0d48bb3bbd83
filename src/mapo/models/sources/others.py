"""Folders that are named as a model and hold something else: what it is, and what to name instead."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.models.checkpoints import checkpoints
from mapo.models.loras.sources import LORA_FILE
from mapo.models.parts.config import read_config

WITH_LORA = "Give --model the model that it belongs to, and this with --lora."


def other_folder(path: Path) -> str:
    """What a folder without a pipeline holds and what to do, as the rest of a sentence; empty where nothing tells."""
    for run in (*list(path.parents)[:2], *list(path.resolve().parents)[:2]):
        if step := next((step for step, place in checkpoints(run).items() if place.resolve() == path.resolve()), None):
            return f"is a checkpoint of the run {run}. Name it {run}@{step}."
        if (run / "run.json").is_file():
            return f"lies in the run {run}. Name the run, or a checkpoint of it as {run}@STEP."
    if (path / LORA_FILE).is_file() or (path / "adapter_config.json").is_file():
        return f"is the folder of a LoRA, not a model. {WITH_LORA}"
    if any(path.glob("learned_embeds*")):
        return "is an embedding (textual inversion), not a model."
    if told := _part(path):
        return told
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return f"is not a diffusers pipeline (it has no model_index.json). Perhaps you mean the file {files[0]}."
    return ""


def _part(path: Path) -> str:
    """The same of the folder of one part of a model."""
    config: dict[str, Any] = {}
    if (path / "config.json").is_file():
        with contextlib.suppress(MapoError):
            config = read_config(path, "config.json")
    kind = str(config.get("_class_name") or next(iter(config.get("architectures") or ()), ""))
    if kind.startswith("Autoencoder"):
        return f"is a VAE ({kind}), not a model. Give it with --vae, and the model with --model."
    if "ControlNet" in kind:
        return f"is a ControlNet ({kind}), not a model. Give --model the model that it belongs to."
    if kind.startswith("UNet") or "Transformer2D" in kind:
        return f"is only a denoiser ({kind}). Give the folder of its whole pipeline, the one with model_index.json."
    if kind.startswith(("CLIP", "T5")):
        return f"is a text encoder ({kind}), not a model. Give the folder with model_index.json."
    return ""
