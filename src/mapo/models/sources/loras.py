"""From what a user writes behind --lora to the file that is meant."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mapo.errors import MapoError
from mapo.models.files import at_step
from mapo.models.loras.keys import BY_PEFT
from mapo.models.loras.sources import LORA_FILE, Lora
from mapo.models.sources.steps import REMEDY, checkpoint_of
from mapo.texts import read_object

LOG = logging.getLogger(__name__)

WEIGHT = re.compile(r"(?P<file>.+):(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)
WHAT_TO_GIVE = f"Give a .safetensors file, a folder with {LORA_FILE}, a run folder or RUN@STEP"


def find_loras(texts: Sequence[str]) -> tuple[Lora, ...]:
    """The LoRAs that ``FILE[:WEIGHT]`` name. FILE is a safetensors file, a folder with LORA_FILE, a run or RUN@STEP."""
    return tuple(lora for text in texts for lora in _find(text))


def _find(text: str) -> list[Lora]:
    if not text.strip():
        raise MapoError(f"--lora is empty. {WHAT_TO_GIVE}.")
    match = None if Path(text).exists() else WEIGHT.fullmatch(text)
    name, weight = (match["file"], float(match["weight"])) if match else (text, 1.0)
    if not math.isfinite(weight):
        raise MapoError(f"--lora {text}: the weight has to be a finite number.")
    path = Path(name)
    if place := at_step(name):
        return [Lora(_file_of_checkpoint(*place, name), weight, named=True)]
    if (path / "run.json").is_file():
        return [Lora(_file_of_run(path, name), weight, named=True)]
    if path.is_dir():
        if (path / LORA_FILE).is_file():
            return [Lora(path / LORA_FILE, weight, named=True)]
        if (path / "adapter_config.json").is_file():
            raise MapoError(f"--lora: {name} {BY_PEFT}")
        such = next(iter(sorted(path.glob("*.safetensors"))), "")
        raise MapoError(
            f"--lora: {name} is neither a run of `mapo train` nor a folder with {LORA_FILE}. Name the LoRA's file"
            f"{f', such as {such}' if such else ''}."
        )
    if path.is_symlink() and not path.exists():
        raise MapoError(f"--lora: {name} is a link to {path.readlink()}, which is not there. Mend it, or name another.")
    if not path.is_file():
        raise MapoError(
            f"--lora: there is no file {name}. {WHAT_TO_GIVE}; a weight stands behind a colon, as in FILE:0.8."
        )
    return [Lora(path, weight, named=True)]


def _file_of_run(path: Path, name: str) -> Path:
    run = read_object(path / "run.json", "a run folder", "Run the same `mapo train` command again.")
    if run.get("adapter") != "lora":
        raise MapoError(f"--lora: {name} is a run in which every weight was trained. Give it as --model.")
    file = path / str(run.get("denoiser", "weights")) / LORA_FILE
    if not file.is_file():
        raise MapoError(f"--lora: {name} has lost its {file.name}. Run the same `mapo train` command again.")
    _warn_of_token(run.get("token"), name)
    return file


@cache
def _warn_of_token(word: str | None, name: str) -> None:
    """Once for each."""
    if word:
        LOG.warning(f"--lora: {name} has learned {word}, which a LoRA alone has not. Give it as --model for that.")


def _file_of_checkpoint(run: Path, step: int, name: str) -> Path:
    checkpoint, about = checkpoint_of(run, step, "--lora")
    if about["adapter"] != "lora":
        raise MapoError(f"--lora: {name} is of a run in which every weight is trained. Give it as --model.")
    if not (checkpoint / LORA_FILE).is_file():
        raise MapoError(f"The checkpoint {checkpoint} is damaged: it has no {LORA_FILE}. {REMEDY}")
    _warn_of_token(about.get("token"), name)
    return checkpoint / LORA_FILE
