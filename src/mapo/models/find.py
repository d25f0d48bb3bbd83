"""From the name that a user writes to where the model lies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, suggest
from mapo.files import inside, read_object
from mapo.models.files import LONG_PROMPTS, ModelFiles, quietly, reason
from mapo.models.loras.sources import LORA_FILE, Lora, find_loras
from mapo.worlds import MODELS


def find_model(
    name: str, weights: bool = True, clip_skip: int | None = None, long_prompts: str | None = None,
    loras: Sequence[str] = (),
) -> ModelFiles:  # fmt: skip
    """``mini``, a run folder, a diffusers folder or a hub id → where its parts lie.

    Without ``weights`` only configurations and tokenizers of a hub id are fetched. Where ``clip_skip`` or
    ``long_prompts`` ("cut" or "chunk") is left out it is what a run was trained with. ``loras`` lie on top of the
    model, each a text ``FILE[:WEIGHT]``.
    """
    if loras:
        found = find_model(name, weights, clip_skip, long_prompts)
        return replace(found, loras=(*found.loras, *find_loras(loras)))
    if clip_skip is not None and clip_skip < 0:
        raise MapoError(f"--clip-skip is {clip_skip}; it must not be negative.")
    if long_prompts not in (None, *LONG_PROMPTS):
        raise MapoError(f"--long-prompts {long_prompts!r} is not known. {suggest(str(long_prompts), LONG_PROMPTS)}")
    path = MODELS.get(name, Path(name))
    reading: dict[str, Any] = {"clip_skip": clip_skip or 0, "long_prompts": long_prompts or "cut"}
    if (path / "run.json").is_file():
        return _find_run(name, path, weights, clip_skip, long_prompts)
    if (path / "model_index.json").is_file():
        return ModelFiles(name, path, **reading)
    if path.is_dir():
        raise MapoError(
            f"--model: {name} is neither a diffusers pipeline (it has no model_index.json) nor a finished run of "
            "`mapo train` (it has no run.json)."
        )
    if path.is_file():
        raise MapoError(
            f"--model: {name} is a single file; a model is a folder in diffusers' layout. Convert it once: "
            f'StableDiffusionXLPipeline.from_single_file("{name}").save_pretrained("{path.stem}"), or with '
            "StableDiffusionPipeline where it is a Stable Diffusion 1 or 2. Then give that "
            "folder."
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MapoError(
            f"--model: there is no folder {name}. Give {' or '.join(f'`{world}`' for world in MODELS)}, a diffusers "
            "folder, a run folder or a hub id."
        )
    return ModelFiles(name, _download(name, weights), **reading)


def _find_run(name: str, path: Path, weights: bool, clip_skip: int | None, long_prompts: str | None) -> ModelFiles:
    about = path / "run.json"
    run = read_object(about, "a run folder", "Run the same `mapo train` command again: it writes the file anew.")
    if not all(isinstance(run.get(key), str) for key in ("base", "denoiser", "adapter")):
        raise MapoError(f"{about} is damaged. Run the same `mapo train` command again: it writes the file anew.")
    base, denoiser = _find_base(name, path, run, weights), inside(path, run["denoiser"], f"{path}/run.json")
    if not denoiser.is_dir():
        raise MapoError(f"{path} has lost its {run['denoiser']}. Run the same `mapo train` command again.")
    found = replace(
        base, name=name, sensitive=base.sensitive or bool(run.get("sensitive")),
        clip_skip=base.clip_skip if clip_skip is None else clip_skip,
        long_prompts=long_prompts or base.long_prompts,
        chunks=1 if long_prompts == "cut" else max(base.chunks, run.get("chunks", 1)),
    )  # fmt: skip
    if run["adapter"] == "lora":
        below = () if run.get("holds_loras_below") else base.loras  # a LoRA of 0.1.0 is the last difference alone
        return replace(found, loras=(*below, Lora(denoiser / LORA_FILE)))
    of_text = denoiser.parent / LORA_FILE  # what LoRAs below changed in the text encoders
    return replace(found, denoiser=denoiser, loras=(Lora(of_text),) if of_text.is_file() else ())


def _find_base(name: str, path: Path, run: Mapping[str, Any], weights: bool) -> ModelFiles:
    """What a run stands on: where it lies from here, if that is still the same, else where it lay."""
    base, from_here = run["base"], run.get("base_from_here")
    reading = run.get("clip_skip"), run.get("long_prompts")
    near = (path / from_here).resolve() if isinstance(from_here, str) else path.resolve()
    if near.is_dir() and near != path.resolve():
        with contextlib.suppress(MapoError, RecursionError):  # it is another one that has its name now
            found = find_model(str(near), weights, *reading)
            if run.get("base_revision") in found.revisions():
                return found
    if Path(base).is_absolute() and Path(base).resolve() == path.resolve():
        raise MapoError(f"{name} says that it stands on itself. Write its true base into {path / 'run.json'}.")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise MapoError(
            f"{name} was trained on the model {base}, which is not there any more. Put it back there, or write its "
            f"new place as base into {path / 'run.json'}."
        )
    found = find_model(base, weights, *reading)
    if found.is_local and run.get("base_revision") not in (None, *found.revisions()):
        raise MapoError(
            f"{name} was trained on the model {base} as it was then; that one has changed since. Train {name} again, "
            f"or take base_revision out of {path / 'run.json'} to use it all the same."
        )
    return found


def _download(name: str, weights: bool) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        with quietly():
            if weights:
                return Path(DiffusionPipeline.download(name, use_safetensors=True))  # never a pickle
            small = ["model_index.json", "*/*config.json", "tokenizer*/*"]
            return Path(snapshot_download(name, allow_patterns=small))
    except Exception as error:
        raise MapoError(
            f"--model: {name} is not a local folder and could not be fetched from the hub ({reason(error)}). "
            "Check the name, the connection, and `hf auth login` for models behind a licence."
        ) from None
