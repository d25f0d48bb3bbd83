"""A checkpoint of a run as a model, ``RUN@STEP``: also of a run that is still being trained.

A checkpoint of a LoRA has it as a file that is read as it is. One of all weights has them by the denoiser's own names;
they are laid, with what diffusers reads beside them, into a folder that is gone with the process.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mapo.errors import MapoError, reason
from mapo.models.checkpoints import checkpoints
from mapo.models.files import ModelFiles
from mapo.models.loras.sources import LORA_FILE, Lora
from mapo.models.parts.config import read_config
from mapo.models.parts.tensors import save_tensors
from mapo.models.sources.about import check_about
from mapo.models.token import TOKEN_FILE, Token
from mapo.texts import read_object

REMEDY = "Take another step of the run, or go on with its training, which writes checkpoints anew."
WEIGHTS = "diffusion_pytorch_model"
LAID_OUT: dict[tuple[Path, int], Path] = {}  # of a checkpoint's file and its time: where diffusers reads it


def steps_told(run: Path) -> str:
    """The checkpoints of a run as a user names them."""
    names = [f"{run}@{step}" for step in checkpoints(run)]
    return f"There {'is' if len(names) == 1 else 'are'} {', '.join(names)}."


def checkpoint_of(run: Path, step: int, flag: str = "--model") -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a step, and what it says of the model that it is; MapoError where there is none."""
    found, flag = checkpoints(run), f"{flag}: " if flag else ""
    if not found:
        raise MapoError(f"{flag}{run} has no checkpoints. Give a run folder that `mapo train` has begun to fill.")
    if step not in found:
        raise MapoError(
            f"{flag}{run} has no checkpoint of step {step}. {steps_told(run)} Only the last one is kept unless "
            "train.keep_checkpoints says more."
        )
    state = read_object(found[step] / "state.json", "a checkpoint", REMEDY)
    about = state.get("model_is")
    if about is None:
        raise MapoError(
            f"{flag}{found[step]} was written by an older version and does not say what model it is of. {REMEDY}"
        )
    if not isinstance(about, dict):
        raise MapoError(f"{found[step]}/state.json is damaged. {REMEDY}")
    check_about(found[step] / "state.json", about, REMEDY)
    return found[step], about


def on_base(base: ModelFiles, checkpoint: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's files a checkpoint replaces: its LoRAs, and its denoiser where all weights are trained."""
    weights, loras = checkpoint / "ema.safetensors", checkpoint / LORA_FILE  # the running mean, where there is one
    if not weights.exists():
        weights = checkpoint / "weights.safetensors"
    if about["adapter"] == "lora":
        if not loras.is_file():
            raise MapoError(f"The checkpoint {checkpoint} is damaged: it has no {LORA_FILE}. {REMEDY}")
        return {"loras": (Lora(loras),)} | _token_of(checkpoint, about)
    try:
        state = weights.resolve(), weights.stat().st_mtime_ns
        if state not in LAID_OUT:
            LAID_OUT[state] = _denoiser(base, weights, str(about["denoiser"]))
    except (OSError, SafetensorError) as error:
        raise MapoError(f"The checkpoint {checkpoint} is damaged ({reason(error)}). {REMEDY}") from None
    return {"denoiser": LAID_OUT[state], "loras": (Lora(loras),) if loras.is_file() else ()}


def _token_of(checkpoint: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The token that was trained, where there is one; that of the base stays otherwise."""
    if not isinstance(word := about.get("token"), str):
        return {}
    if not (checkpoint / TOKEN_FILE).is_file():
        raise MapoError(f"The checkpoint {checkpoint} is damaged: it has no {TOKEN_FILE}. {REMEDY}")
    return {"token": Token(word, checkpoint / TOKEN_FILE)}


def _denoiser(base: ModelFiles, weights: Path, part: str) -> Path:
    """A folder with the denoiser: its configuration, a link to its weights, and what is never trained of the base's.

    That is tensors such as the places of Stable Diffusion 3, which no gradient reaches.
    """
    own = Path(tempfile.mkdtemp(prefix="mapo-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    folder = own / part
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(base.config(part)), "utf-8")
    with safe_open(weights, "pt") as file:
        trained = set(file.keys())
    rest: dict[str, Any] = {}
    below, name = base.place(part)
    if base.single is not None and base.denoiser is None:
        import diffusers

        kind = getattr(diffusers, read_config(base.base, "model_index.json")[part][1])
        if lacking := base.outline(part, kind).state_dict().keys() - trained:
            rest = {key: tensor for key, tensor in base.load(part, kind).state_dict().items() if key in lacking}
    for path in sorted((below / name).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            rest |= {key: file.get_tensor(key) for key in file.keys() if key not in trained}  # noqa: SIM118
    if not rest:
        (folder / f"{WEIGHTS}.safetensors").symlink_to(weights.resolve())
        return folder
    names = [f"{WEIGHTS}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / names[0]).symlink_to(weights.resolve())
    save_tensors(rest, folder / names[1])
    index = {"metadata": {}, "weight_map": dict.fromkeys(trained, names[0]) | dict.fromkeys(rest, names[1])}
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder
