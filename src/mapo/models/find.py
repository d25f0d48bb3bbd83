"""From the name that a user writes to where the model lies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import inside, read_object
from mapo.models.files import ModelFiles
from mapo.models.hub import fetch_model, hub_name
from mapo.worlds import MODELS

UNETS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")  # whose prediction may be told
PREDICTIONS = ("epsilon", "v")


def find_model(
    name: str, weights: bool = True, clip_skip: int | None = None, vae: str | None = None, prediction: str | None = None
) -> ModelFiles:
    """``mini``, a run folder, a diffusers folder, a safetensors file or a hub id → where its parts lie.

    Without ``weights`` only configurations and tokenizers of a hub id are fetched. ``vae`` names another VAE, and
    ``prediction`` says what a UNet predicts, "epsilon" or "v". Where these and ``clip_skip`` are left out they are what
    a run was trained with.
    """
    if clip_skip is not None and clip_skip < 0:
        raise MapoError(f"--clip-skip is {clip_skip}; it must not be negative.")
    if prediction is not None and prediction not in PREDICTIONS:
        raise MapoError(f"--prediction is {prediction!r}; it is epsilon or v.")
    path = MODELS.get(name, Path(name))
    if (path / "run.json").is_file():
        return _find_run(name, path, weights, clip_skip, vae, prediction)
    if path.is_file():
        from mapo.models.single.file import open_single

        single = open_single(path, prediction, other_vae=vae is not None)
        found = ModelFiles(name, single.base, clip_skip=clip_skip or 0, single=single)
    else:
        base, variant = _find_folder(name, path, weights)
        found = ModelFiles(name, base, clip_skip=clip_skip or 0, variant=variant)
    if prediction is not None:
        if found.pipeline_class not in UNETS:
            raise MapoError(
                f"--prediction is for Stable Diffusion 1, 2 and XL; {name} is a {found.pipeline_class}. Leave it out."
            )
        found = replace(found, prediction=prediction)
    return _with_vae(found, vae, weights)


def _find_folder(name: str, path: Path, weights: bool) -> tuple[Path, str | None]:
    """The folder of a pipeline, here or on the hub, and the variant of its weights that is asked for."""
    if (path / "model_index.json").is_file():
        return path, None
    if path.is_dir():
        raise MapoError(
            f"--model: {name} is neither a diffusers pipeline (it has no model_index.json) nor a finished run of "
            "`mapo train` (it has no run.json)."
        )
    if (asked := hub_name(name)) is None:
        raise MapoError(
            f"--model: there is no folder or file {name}. Give {' or '.join(f'`{world}`' for world in MODELS)}, a "
            "diffusers folder, a run folder, a safetensors file, or a hub id (owner/name, owner/name@revision, "
            "owner/name:fp16)."
        )
    return fetch_model(asked, weights), asked.variant


def _with_vae(found: ModelFiles, vae: str | None, weights: bool) -> ModelFiles:
    if vae is None:
        return found
    from mapo.models.vae import find_vae

    return replace(found, vae=find_vae(vae, found.name, found.config("vae"), weights))


def _find_run(
    name: str, path: Path, weights: bool, clip_skip: int | None, vae: str | None, prediction: str | None
) -> ModelFiles:
    about = path / "run.json"
    run = read_object(about, "a run folder", "Run the same `mapo train` command again: it writes the file anew.")
    if not all(isinstance(run.get(key), str) for key in ("base", "denoiser", "adapter")):
        raise MapoError(f"{about} is damaged. Run the same `mapo train` command again: it writes the file anew.")
    base, denoiser = _find_base(name, path, run, weights), inside(path, run["denoiser"], f"{path}/run.json")
    if vae is not None or prediction is not None:  # other ones than it was trained with
        base = find_model(
            base.name, weights, base.clip_skip, vae or run.get("vae"), prediction or run.get("prediction")
        )
    if not denoiser.is_dir():
        raise MapoError(f"{path} has lost its {run['denoiser']}. Run the same `mapo train` command again.")
    found = replace(
        base, name=name, sensitive=base.sensitive or bool(run.get("sensitive")),
        clip_skip=base.clip_skip if clip_skip is None else clip_skip,
    )  # fmt: skip
    if run["adapter"] == "lora":
        below = () if run.get("holds_loras_below") else base.loras  # a LoRA of 0.1.0 is the last difference alone
        return replace(found, loras=(*below, denoiser))
    return replace(found, denoiser=denoiser, loras=())


def _find_base(name: str, path: Path, run: Mapping[str, Any], weights: bool) -> ModelFiles:
    """What a run stands on: where it lies from here, if that is still the same, else where it lay."""
    base, from_here = run["base"], run.get("base_from_here")
    told = (weights, run.get("clip_skip"), run.get("vae"), run.get("prediction"))
    near = (path / from_here).resolve() if isinstance(from_here, str) else path.resolve()
    if near.exists() and near != path.resolve():
        with contextlib.suppress(MapoError, RecursionError):  # it is another one that has its name now
            found = find_model(str(near), *told)
            if run.get("base_revision") in found.revisions():
                return found
    if Path(base).is_absolute() and Path(base).resolve() == path.resolve():
        raise MapoError(f"{name} says that it stands on itself. Write its true base into {path / 'run.json'}.")
    if Path(base).is_absolute() and not Path(base).exists():
        raise MapoError(
            f"{name} was trained on the model {base}, which is not there any more. Put it back there, or write its "
            f"new place as base into {path / 'run.json'}."
        )
    found = find_model(base, *told)
    if found.is_local and run.get("base_revision") not in (None, *found.revisions()):
        raise MapoError(
            f"{name} was trained on the model {base} as it was then; that one has changed since. Train {name} again, "
            f"or take base_revision out of {path / 'run.json'} to use it all the same."
        )
    return found
