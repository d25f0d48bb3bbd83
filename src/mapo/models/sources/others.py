"""Folders that are named as a model and hold something else: what it is, and what to name instead."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import kind_of_folder
from mapo.models.checkpoints import checkpoints
from mapo.models.loras.sources import LORA_FILE
from mapo.models.parts.config import again, read_config

WITH_LORA = "Give --model the model that it belongs to, and this with --lora."


def other_folder(path: Path) -> str:
    """What a folder without a pipeline holds and what to do, as the rest of a sentence; empty where nothing tells."""
    for run in (*list(path.parents)[:2], *list(path.resolve().parents)[:2]):
        if step := next((step for step, place in checkpoints(run).items() if place.resolve() == path.resolve()), None):
            return f"is a checkpoint of the run {run}. Name it {run}@{step}."
        if (run / "run.json").is_file():
            return f"lies in the run {run}. Name the run, or a checkpoint of it as {run}@STEP."
    if told := _in_the_hubs_cache(path):
        return told
    if (path / LORA_FILE).is_file() or (path / "adapter_config.json").is_file():
        return f"is the folder of a LoRA, not a model. {WITH_LORA}"
    if any(path.glob("learned_embeds*")):
        return "is an embedding (textual inversion), not a model."
    if told := _part(path):
        return told
    if kind := kind_of_folder(path):
        return f"is {kind}, not a model. Give a diffusers folder, or a run that `mapo train` has finished."
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return f"is not a diffusers pipeline (it has no model_index.json). Perhaps you mean the file {files[0]}."
    return ""


def _in_the_hubs_cache(path: Path) -> str:
    """The same of a folder in which the hub's cache keeps all versions of a model."""
    kept = path.parent if path.name == "snapshots" else path
    if not kept.name.startswith("models--") or not (kept / "snapshots").is_dir():
        return ""
    newest = max((kept / "snapshots").iterdir(), key=lambda version: version.stat().st_mtime, default=None)
    owner_and_name = kept.name.removeprefix("models--").replace("--", "/", 1)
    such = f", or one version of it, such as {newest}" if newest else ""
    return f"is where the hub's cache keeps versions of a model. Name the model itself, {owner_and_name}{such}."


def refuse_broken_links(path: Path) -> None:
    """MapoError where a model's folder, or a file in it, is a link to something that is not there."""
    index = path / "model_index.json"
    inside = (index, *sorted(path.glob("*/*"))) if index.exists() or index.is_symlink() else ()
    for place in (path, *inside):
        if place.is_symlink() and not place.exists():
            remedy = "Mend it, or name another model." if place == path else again(path)
            raise MapoError(f"--model: {place} is a link to {place.readlink()}, which is not there. {remedy}")


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
