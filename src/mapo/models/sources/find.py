"""From the name that a user writes to where the model lies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, suggest
from mapo.files import inside, own_place
from mapo.models.checkpoints import checkpoints, runs_inside
from mapo.models.files import LONG_PROMPTS, ModelFiles, at_step, is_there
from mapo.models.loras.sources import LORA_FILE, Lora
from mapo.models.sources.about import check_about
from mapo.models.sources.hub import fetch_model, hub_name
from mapo.models.sources.loras import find_loras
from mapo.models.sources.others import other_folder, refuse_broken_links
from mapo.models.sources.steps import checkpoint_of, on_base, steps_told
from mapo.models.token import REMEDY as OF_TOKEN
from mapo.models.token import TOKEN_FILE, Token
from mapo.texts import read_object
from mapo.worlds import MODELS

UNETS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")  # whose prediction may be told
PREDICTIONS = ("epsilon", "v")


def find_model(
    name: str, weights: bool = True, clip_skip: int | None = None, vae: str | None = None,
    prediction: str | None = None, long_prompts: str | None = None, loras: Sequence[str] = (),
) -> ModelFiles:  # fmt: skip
    """``mini``, a run, ``RUN@STEP`` or ``@best``, a diffusers folder, a safetensors file, a hub id → where parts lie.

    Without ``weights`` only configurations and tokenizers of a hub id are fetched. ``vae`` names another VAE,
    ``prediction`` says what a UNet predicts, "epsilon" or "v", and ``long_prompts`` what becomes of prompts that are
    too long, "cut" or "chunk". Where these and ``clip_skip`` are left out they are what a run was trained with.
    ``loras`` lie on top of the model, each a text ``FILE[:WEIGHT]``.
    """
    if loras:
        found = find_model(name, weights, clip_skip, vae, prediction, long_prompts)
        return replace(found, loras=(*found.loras, *find_loras(loras)))
    if not name.strip():
        raise MapoError(f"--model is empty. {_what_to_give()}")
    if clip_skip is not None and clip_skip < 0:
        raise MapoError(f"--clip-skip is {clip_skip}; it must not be negative.")
    if prediction is not None and prediction not in PREDICTIONS:
        raise MapoError(f"--prediction is {prediction!r}; it is epsilon or v.")
    if long_prompts not in (None, *LONG_PROMPTS):
        raise MapoError(f"--long-prompts {long_prompts!r} is not known. {suggest(str(long_prompts), LONG_PROMPTS)}")
    path = MODELS.get(name, Path(name))
    reading: dict[str, Any] = {"clip_skip": clip_skip or 0, "long_prompts": long_prompts or "cut"}
    if place := at_step(name):
        name = (
            name.replace("@best", f"@{place[1]}") if name.endswith("@best") else name
        )  # which may be another one soon
        return _find_checkpoint(name, *place, weights, clip_skip, vae, prediction, long_prompts)
    if (path / "run.json").is_file():
        return _find_run(name, path, weights, clip_skip, vae, prediction, long_prompts)
    if path.is_file():
        from mapo.models.single.file import open_single

        single = open_single(path, prediction, other_vae=vae is not None)
        found = ModelFiles(name, single.base, single=single, **reading)
    else:
        base, variant = _find_folder(name, path, weights)
        found = ModelFiles(name, base, variant=variant, **reading)
    if prediction is not None:
        if found.pipeline_class not in UNETS:
            raise MapoError(
                f"--prediction is for Stable Diffusion 1, 2 and XL; {name} is a {found.pipeline_class}. Leave it out."
            )
        found = replace(found, prediction=prediction)
    return _with_vae(found, vae, weights)


def _find_folder(name: str, path: Path, weights: bool) -> tuple[Path, str | None]:
    """The folder of a pipeline, here or on the hub, and the variant of its weights that is asked for."""
    refuse_broken_links(path)
    if (path / "model_index.json").is_file():
        return path, None
    if path.is_dir() and checkpoints(path):
        raise MapoError(
            f"--model: the run {name} is not finished. Its checkpoints can be used as models. {steps_told(path)}"
        )
    if path.is_dir() and (told := other_folder(path)):
        raise MapoError(f"--model: {name} {told}")
    if path.is_dir():
        raise MapoError(
            f"--model: {name} is neither a diffusers pipeline (it has no model_index.json) nor a finished run of "
            f"`mapo train` (it has no run.json).{runs_inside(path) or ' Give one of these.'}"
        )
    if (asked := hub_name(name)) is None:
        raise MapoError(f"--model: there is no folder or file {name}. {_what_to_give()}")
    return fetch_model(asked, weights), asked.variant


def _what_to_give() -> str:
    worlds = " or ".join(f"`{world}`" for world in MODELS)
    return (
        f"Give {worlds}, a diffusers folder, a run folder, a safetensors file, or a hub id (owner/name, "
        "owner/name@revision, owner/name:fp16)."
    )


def _with_vae(found: ModelFiles, vae: str | None, weights: bool) -> ModelFiles:
    if vae is None:
        return found
    from mapo.models.families import FAMILIES
    from mapo.models.sources.vae import find_vae

    family: Any = FAMILIES.get(found.pipeline_class)
    usual = family.usual_scale if family is not None and family.scale_may_lack else None
    return replace(found, vae=find_vae(vae, found.name, found.config("vae"), usual, weights))


def _find_run(
    name: str, path: Path, weights: bool, clip_skip: int | None, vae: str | None, prediction: str | None,
    long_prompts: str | None,
) -> ModelFiles:  # fmt: skip
    again = "Run the same `mapo train` command again: it writes the file anew."
    run = read_object(path / "run.json", "a run folder", again)
    check_about(path / "run.json", run, again)
    base = _as_trained(_find_base(name, path, run, weights), run, weights, vae, prediction)
    denoiser = inside(path, run["denoiser"], f"{path}/run.json")
    if not denoiser.is_dir():
        raise MapoError(f"{path} has lost its {run['denoiser']}. Run the same `mapo train` command again.")
    found = _on_top(base, name, run, clip_skip, long_prompts)
    if isinstance(word := run.get("token"), str):
        learned = Token(word, denoiser / TOKEN_FILE)
        if not (denoiser / TOKEN_FILE).is_file():
            raise MapoError(f"{path} has lost its {run['denoiser']}/{TOKEN_FILE}. {OF_TOKEN}")
        found = replace(found, token=learned)
    if run["adapter"] == "lora":
        below = () if run.get("holds_loras_below") else base.loras  # a LoRA of 0.1.0 is the last difference alone
        return replace(found, loras=(*below, Lora(denoiser / LORA_FILE)))
    of_text = denoiser.parent / LORA_FILE  # what LoRAs below changed in the text encoders
    return replace(found, denoiser=denoiser, loras=(Lora(of_text),) if of_text.is_file() else ())


def _find_checkpoint(
    name: str, path: Path, step: int, weights: bool, clip_skip: int | None, vae: str | None, prediction: str | None,
    long_prompts: str | None,
) -> ModelFiles:  # fmt: skip
    checkpoint, run = checkpoint_of(path, step)
    base = _as_trained(_find_base(name, path, run, weights), run, weights, vae, prediction)
    return replace(_on_top(base, name, run, clip_skip, long_prompts), **on_base(base, checkpoint, run))


def _as_trained(
    base: ModelFiles, run: Mapping[str, Any], weights: bool, vae: str | None, prediction: str | None
) -> ModelFiles:
    """The base of a run with another VAE or prediction than it was trained with, where the user names one."""
    if vae is None and prediction is None:
        return base
    told = vae or run.get("vae"), prediction or run.get("prediction")
    return find_model(base.name, weights, base.clip_skip, *told, base.long_prompts)


def _on_top(
    base: ModelFiles, name: str, run: Mapping[str, Any], clip_skip: int | None, long_prompts: str | None
) -> ModelFiles:
    """The base by the name of a run, reading prompts as that was trained if nothing else is said."""
    return replace(
        base, name=name, sensitive=base.sensitive or bool(run.get("sensitive")),
        clip_skip=base.clip_skip if clip_skip is None else clip_skip,
        long_prompts=long_prompts or base.long_prompts,
        chunks=1 if long_prompts == "cut" else max(base.chunks, run.get("chunks", 1)),
    )  # fmt: skip


def _find_base(name: str, path: Path, run: Mapping[str, Any], weights: bool) -> ModelFiles:
    """What a run stands on: where it lies from here, if that is still the same, else where it lay."""
    base, from_here = run["base"], run.get("base_from_here")
    told: dict[str, Any] = {key: run.get(key) for key in ("clip_skip", "vae", "prediction", "long_prompts")}
    near = own_place(path / from_here) if isinstance(from_here, str) else path.resolve()
    if is_there(str(near)) and near != path.resolve():
        with contextlib.suppress(MapoError, RecursionError):  # it is another one that has its name now
            found = find_model(str(near), weights, **told)
            if run.get("base_revision") in found.revisions():
                return found
    if Path(base).is_absolute() and Path(base).resolve() == path.resolve():
        raise MapoError(f"{name} says that it stands on itself. Write its true base into {path / 'run.json'}.")
    if Path(base).is_absolute() and not is_there(base):
        raise MapoError(
            f"{name} was trained on the model {base}, which is not there any more. Put it back there, or write its "
            f"new place as base into {path / 'run.json'}."
        )
    vae = told["vae"]
    if vae is not None and Path(vae).is_absolute() and not Path(vae).exists():
        raise MapoError(f"{name} was trained with the VAE {vae}, which is not there any more. Put it back there.")
    found = find_model(base, weights, **told)
    if found.is_local and run.get("base_revision") not in (None, *found.revisions()):
        raise MapoError(
            f"{name} was trained on the model {base} as it was then; that one has changed since. Train {name} again, "
            f"or take base_revision out of {path / 'run.json'} to use it all the same."
        )
    return found
