"""A model in one file, opened: what it is, where its parts lie in it, and reading them."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mapo.errors import MapoError, count, is_out_of_memory, reason
from mapo.files import own_place
from mapo.models.files import UNDONE
from mapo.models.names.original import Original
from mapo.models.parts.config import CONFIGS, read_config
from mapo.models.parts.eight_bits import tell_eight_bits
from mapo.models.parts.header import Header, read_header
from mapo.models.parts.weights import quietly
from mapo.models.single.detect import (
    FOLDER,
    called,
    inside,
    refuse_pieces,
    refuse_what_is_not_a_model,
    table_of,
)
from mapo.models.single.layout import LAYOUTS, placed
from mapo.models.single.prediction import BIAS_OF_SD2, PREDICTIONS, prediction_of
from mapo.models.single.tables import copy_small_files, table, write_config, write_folder

LOG = logging.getLogger(__name__)

SAMPLED = 1024  # bytes of each tensor that decide a fingerprint
UNUSED = re.compile(  # tensors that checkpoints hold besides their networks
    r"model_ema\..*|(alphas|betas|sqrt|log_one|posterior).*|v_pred|ztsnr|logvar|lvlb_weights"
    r"|(model\.)?(model_sampling|denoiser)\..*|.*position_ids|.*logit_scale|.*text_projection(\.weight)?"
    r"|cond_stage_model\.model\.transformer\.resblocks\.23\..*|.*encoder\.embed_tokens\.weight"
)
FIRST, SECOND = "text encoder (CLIP-L)", "second text encoder (CLIP-G)"
PARTS = {  # as people call them
    "StableDiffusionXLPipeline": {"vae": "VAE", "text_encoder": FIRST, "text_encoder_2": SECOND},
    "StableDiffusionPipeline": {"vae": "VAE", "text_encoder": "text encoder (CLIP)"},
    "StableDiffusion3Pipeline": {"vae": "VAE", "text_encoder": FIRST, "text_encoder_2": SECOND},
    "FluxPipeline": {"vae": "VAE", "text_encoder": FIRST, "text_encoder_2": "second text encoder (T5)"},
}
MAY_LACK = {"StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3")}
SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True, eq=False)
class SingleFile:
    """A model in one file. ``base`` is a folder of its configurations and tokenizers."""

    header: Header
    title: str
    base: Path
    parts: Mapping[str, Mapping[str, Original]]  # by part: the file's tensors, by name

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path

    @property
    def called(self) -> tuple[str, ...]:
        """Its name, and what its metadata calls it."""
        return called(self.header)

    def load(self, part: str, kind: Any, dtype: Any) -> Any:
        """The network of a part; tensors that are in ``dtype`` already stay mapped. MapoError where that fails."""
        config = read_config(self.base, f"{part}/{CONFIGS.get(part, 'config.json')}")
        return load_from(self.path, self.parts[part], kind, config, dtype)

    def fingerprint(self, part: str) -> str:
        """A hash of a part's configuration and of samples of its tensors."""
        config = read_config(self.base, f"{part}/{CONFIGS.get(part, 'config.json')}")
        return fingerprint_of(self.header, self.parts[part], config)


def open_single(path: Path, prediction: str | None = None, other_vae: bool = False) -> SingleFile:
    """The model in a file; MapoError, by name, where it is none that can be trained, or lacks a part.

    ``prediction`` is what --prediction says. With ``other_vae`` the file need not have one.
    """
    beside = beside_of(path)
    marks = tuple(_mark(p) for p in (path, *sorted(beside.rglob("*.json"))))
    return _open(own_place(path), marks, prediction, other_vae)


def beside_of(path: Path) -> Path:
    """The folder that may lie beside a file, with configurations and tokenizers that no table has."""
    return path.with_suffix(".config")


def _mark(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_size, found.st_mtime_ns


@lru_cache(maxsize=16)
def _open(path: Path, marks: object, prediction: str | None, other_vae: bool) -> SingleFile:
    refuse_pieces(path)
    header = read_header(path)
    refuse_what_is_not_a_model(header)
    base, beside = Path(tempfile.mkdtemp(prefix="mapo-")), beside_of(path)
    atexit.register(shutil.rmtree, base, ignore_errors=True)  # until then parts are loaded by what it says
    is_described = (beside / "model_index.json").is_file()
    if is_described:
        title = f"the model that {beside} describes"
    else:
        name = table_of(header)
        title = table(name)["title"]
        write_folder(base, name)
    if beside.is_dir():
        copy_small_files(beside, base)
        _check_pipeline(beside, base)
    parts = _parts(header, title, base, other_vae)
    _note_prediction(header, base, prediction, is_described)
    if not (beside / SCHEDULER).is_file():
        _note_guidance(header, base)
    tell_eight_bits(header)
    return SingleFile(header, title, base, parts)


def _check_pipeline(beside: Path, base: Path) -> None:
    kind = read_config(base, "model_index.json").get("_class_name")
    if kind not in LAYOUTS:
        raise MapoError(f"{beside} is a {kind}; models in one file are: {', '.join(LAYOUTS)}.")


def _note_prediction(header: Header, base: Path, asked: str | None, is_described: bool) -> None:
    """Write what a UNet predicts into its scheduler's file, as far as the model's own file says it."""
    kind = read_config(base, "model_index.json")["_class_name"]
    if "unet" not in LAYOUTS[kind]:
        return
    begin, scheduler, said = inside(header), read_config(base, SCHEDULER), None
    if (beside_of(header.path) / SCHEDULER).is_file():
        said = "v" if scheduler.get("prediction_type") == PREDICTIONS["v"] else "epsilon"
    is_sd2 = not is_described and read_config(base, "unet/config.json")["cross_attention_dim"] == 1024
    found = prediction_of(header, begin + BIAS_OF_SD2 if is_sd2 else None, asked, said)
    if found.unsaid:
        LOG.info(f"{header.path} does not say what it predicts, so it is taken for epsilon. Else: --prediction v.")
    write_config(base / SCHEDULER, {**scheduler, **found.scheduler})
    if is_sd2 and found.name == "epsilon":  # the models of 512 pixels
        unet = read_config(base, "unet/config.json")
        write_config(base / "unet" / "config.json", {**unet, "sample_size": 64})


def _note_guidance(header: Header, base: Path) -> None:
    """Say what a FLUX.1 without guidance embedding is taken for; one of dev has dev's times, by its scheduler."""
    if read_config(base, "model_index.json")["_class_name"] != "FluxPipeline":
        return
    if read_config(base, "transformer/config.json").get("guidance_embeds"):
        return
    names = " ".join(called(header)).lower()
    begin = f"{header.path} has no guidance embedding, so it is taken for"
    if UNDONE.search(names) and re.search(r"(?<![a-z])dev(?![a-z])", names):
        write_config(base / SCHEDULER, table("flux-dev")["scheduler"])
        LOG.info(f"{begin} FLUX.1 dev whose distillation was undone, as its name says.")
    elif "schnell" not in names or UNDONE.search(names):
        LOG.info(
            f"{begin} FLUX.1 schnell, whose times are not shifted. If they are, say it in the file "
            f"{beside_of(header.path) / SCHEDULER}, taken from the model's page."
        )


def _parts(header: Header, title: str, base: Path, other_vae: bool) -> dict[str, dict[str, Original]]:
    """The tensors of each part, compared with its configuration; MapoError where some lack or are of another shape."""
    index, names = read_config(base, "model_index.json"), header.tensors.keys()
    kind = index["_class_name"]
    found, lacking = {}, []
    for part, places in LAYOUTS[kind].items():
        made = index.get(part)
        if not made or made[0] is None:
            continue
        here = placed(places, made, read_config(base, f"{part}/config.json"), names)
        if here:
            found[part] = here
        else:
            lacking.append(part)
    may = [part for part in lacking if part in MAY_LACK.get(kind, ())]
    needed = [part for part in lacking if part not in may and not (part == "vae" and other_vae)]
    if needed:
        said = " and its ".join(PARTS[kind].get(part, "denoiser") for part in needed)
        what = "Name one with --vae." if needed == ["vae"] else f"Take a file that holds every part. Or: {FOLDER}"
        raise MapoError(f"{header.path} is {title} without its {said}. {what}")
    if may:
        empty = {name: [None, None] for name in MAY_LACK[kind]}
        write_config(base / "model_index.json", {**index, **empty})
    for entries in found.values():
        check_tensors(header, title, entries)
    _check_others(header, title, found)
    return found


def check_tensors(header: Header, title: str, entries: Mapping[str, Original], instead: str = FOLDER) -> None:
    """MapoError where tensors of a part are of another shape than that of ``title``, or lack.

    ``instead`` says what to do where they are of another kind.
    """
    for name, entry in entries.items():
        if name in header.tensors and _core(shape := header.shape(name)) != _core(entry.shape):
            raise MapoError(
                f"{header.path} is not a file of {title}: {name} has the shape {_sides(shape)}, there it has "
                f"{_sides(entry.shape)}. {instead}"
            )
    if lacking := sorted(name for name in entries if name not in header.tensors):
        raise MapoError(
            f"{header.path} is not a file of {title}: it lacks {count(len(lacking), 'tensor')}, such as {lacking[0]}. "
            f"It is not cut off, so it is of another kind, such as a smaller model (SSD-1B …), or a bad copy. {instead}"
        )


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without ones at its end: some programs write a 1 × 1 convolution as the matrix that it is."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _sides(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "of one number"


def _check_others(header: Header, title: str, found: Mapping[str, Mapping[str, Original]]) -> None:
    """MapoError where the denoiser has layers that are not known; a line on other tensors that are not used."""
    used = {name for entries in found.values() for name in entries}
    others = sorted(name for name in header.tensors if name not in used and not UNUSED.fullmatch(name))
    begin = inside(header)
    if begin and (strange := [name for name in others if name.startswith(begin)]):
        raise MapoError(
            f"{header.path} has {count(len(strange), 'tensor')} that {title} does not have, such as {strange[0]}. It "
            f"is a model of another kind. {FOLDER}"
        )
    if others:
        belong = (
            "belongs to no part of the model and is" if len(others) == 1 else "belong to no part of the model and are"
        )
        LOG.info(f"{header.path}: {count(len(others), 'tensor')} {belong} left out ({others[0]} …).")


# ---------------------------------------------------------------------- tensors


def load_from(path: Path, entries: Mapping[str, Original], kind: Any, config: Mapping[str, Any], dtype: Any) -> Any:
    """A network from some tensors of a file. Those that are in ``dtype`` already stay mapped."""
    try:
        with quietly():
            if hasattr(kind, "from_config"):
                return _load_diffusers(path, entries, kind, config, dtype)
            made = kind.config_class(**config)
            tensors = _read(path, entries, None)
            return kind.from_pretrained(None, config=made, state_dict=tensors, dtype=dtype).eval()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise MapoError(f"{path} is not whole: {kind.__name__} cannot be loaded from it ({reason(error)}).") from None


def _load_diffusers(
    path: Path, entries: Mapping[str, Original], kind: Any, config: Mapping[str, Any], dtype: Any
) -> Any:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = kind.from_config(dict(config))
    network.load_state_dict(_read(path, entries, dtype), strict=True, assign=True)
    return network.eval()


def _read(path: Path, entries: Mapping[str, Original], dtype: Any) -> dict[str, torch.Tensor]:
    """The tensors by diffusers' names, each read and cast before the next one."""
    found: dict[str, torch.Tensor] = {}
    with safe_open(path, "pt") as file:
        for name, entry in entries.items():
            tensor = file.get_tensor(name)
            found |= entry.split(tensor if dtype is None else tensor.to(dtype))
    return found


def fingerprint_of(header: Header, entries: Mapping[str, Original], config: Mapping[str, Any]) -> str:
    """A hash of a configuration and of samples of these tensors: cheap for gigabytes, stable."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    with header.path.open("rb") as file:
        for name in sorted(entries):
            held = header.tensors[name]
            digest.update(f"{name}:{held.dtype}:{held.shape}\n".encode())
            size = held.end - held.begin
            for place in {0, max(0, size // 2 - SAMPLED // 2)}:
                file.seek(held.begin + place)
                digest.update(file.read(min(SAMPLED, size - place)))
    return digest.hexdigest()[:16]
