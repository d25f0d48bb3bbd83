"""A whole pipeline as one safetensors file, by the names that other programs read."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapo.errors import MapoError, suggest
from mapo.export.runs.specification import architecture_of
from mapo.files import replacing
from mapo.models import find_model, open_model
from mapo.models.family import Opened
from mapo.models.files import ModelFiles
from mapo.models.names.original import Original
from mapo.models.noise.process import Ddpm
from mapo.models.parts.config import CONFIGS, read_config
from mapo.models.parts.tensors import bytes_of
from mapo.models.single.file import SCHEDULER, beside_of, open_single
from mapo.models.single.layout import LAYOUTS, class_of, placed
from mapo.models.single.tables import copy_small_files, write_config

LOG = logging.getLogger(__name__)

DTYPES = {"float16": (torch.float16, "F16"), "float32": (torch.float32, "F32")}
IMPLEMENTATIONS = {  # of modelspec
    "StableDiffusionXLPipeline": "https://github.com/Stability-AI/generative-models",
    "StableDiffusionPipeline": "https://github.com/Stability-AI/generative-models",
    "StableDiffusion3Pipeline": "https://github.com/comfyanonymous/ComfyUI",
    "FluxPipeline": "https://github.com/black-forest-labs/flux",
}
WIDTH_OF_SD2 = 1024
Plan = dict[str, tuple[Any, dict[str, Original]]]  # by part: its class, and its tensors in the file


def write_single_file(opened: Opened, path: Path, precision: str = "float16") -> None:
    """Write the whole model with a run's weights merged: denoiser, VAE and text encoders.

    Weights are merged in float32 and rounded once, to "float16" or "float32"; one part at a time is in memory. A model
    that predicts v carries the marks of one. Where it is of none of the published sizes, its configurations and
    tokenizers are written beside it, into ``NAME.config/``, without which nothing could open it. MapoError where this
    kind of model has no such file, or a weight is too large for float16.
    """
    files, kind = opened.files, opened.files.pipeline_class
    if precision not in DTYPES:
        raise MapoError(f"A single file is written in float16 or float32. {suggest(precision, DTYPES)}")
    if kind not in LAYOUTS:
        raise MapoError(
            f"{files.name} is a {kind}, which other programs do not read from one file. Export it to diffusers."
        )
    if kind == "StableDiffusionPipeline" and files.config("text_encoder").get("hidden_size") == WIDTH_OF_SD2:
        raise MapoError(
            f"{files.name} is a Stable Diffusion 2. Its file has a last layer of the text encoder that folders in "
            "diffusers' layout lack. Export it to diffusers."
        )
    plan = planned(files, kind)
    marks = _marks(files) if "unet" in plan else {}
    if marks and kind == "StableDiffusionPipeline":
        LOG.info(
            f"Note: {files.name} predicts v. ComfyUI, Forge and AUTOMATIC1111 take every file of Stable Diffusion 1 "
            "for one that predicts epsilon. They have to be told: docs/leaving.md says how."
        )
    beside = beside_of(path)
    if beside.is_dir() and any((beside / name).is_file() for name in ("model_index.json", SCHEDULER)):
        shutil.rmtree(beside)  # of a file that was here before
    dtype, code = DTYPES[precision]
    with replacing(path, sync=True) as temporary, temporary.open("wb") as out:
        out.write(_head(plan, marks, code, _metadata(opened, path, "v_pred" in marks)))
        for part, (made, entries) in plan.items():
            for tensor in _tensors(opened, part, made, entries, dtype, path):
                out.write(bytes_of(tensor))
    if _is_of_published_size(path):
        describe_noise(opened, path)
    else:
        _describe(files, beside)


def planned(files: ModelFiles, kind: str) -> Plan:
    """The tensors of each part as a file has them, worked out from the configurations alone."""
    index, plan = read_config(files.base, "model_index.json"), {}
    for part, places in LAYOUTS[kind].items():
        made = index.get(part)
        if made and made[0] is not None:
            plan[part] = class_of(made), placed(places, made, files.config(part))
    return plan


def _marks(files: ModelFiles) -> Mapping[str, tuple[int, ...]]:
    """Empty tensors by which other programs know a model that predicts v, and one with zero SNR."""
    scheduler = files.config("scheduler")
    if scheduler.get("prediction_type") != "v_prediction":
        return {}
    names = ("v_pred", "ztsnr") if scheduler.get("rescale_betas_zero_snr") else ("v_pred",)
    return dict.fromkeys(names, (0,))


def _tensors(
    opened: Opened, part: str, kind: Any, entries: Mapping[str, Original], dtype: torch.dtype, path: Path
) -> Iterator[Tensor]:
    """A part's tensors in the order of ``entries``; LoRAs are merged in float32, and what comes out is cast once."""
    loaded = torch.float32 if opened.files.loras else dtype
    network = opened.denoiser("cpu", loaded) if part == opened.denoiser_part else opened.files.load(part, kind, loaded)
    tensors = network.state_dict()
    for name, entry in entries.items():
        whole = entry.join([tensors[ours].detach() for ours, _ in entry.parts])
        cast = whole.to(dtype)
        if not bool(torch.isfinite(cast).all()):
            raise MapoError(
                f"{path} was not written: {name} of {opened.files.name} has numbers that float16 cannot hold. Write it "
                "in float32."
            )
        yield cast


def _head(plan: Plan, marks: Mapping[str, tuple[int, ...]], code: str, metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file: its length in 8 bytes, then JSON, filled up to whole groups of 8 bytes."""
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    place, size = 0, {"F16": 2, "F32": 4}[code]
    for _, entries in plan.values():
        for name, entry in entries.items():
            count = int(torch.Size(entry.shape).numel())
            head[name] = {"dtype": code, "shape": list(entry.shape), "data_offsets": [place, place + size * count]}
            place += size * count
    for name, shape in marks.items():
        head[name] = {"dtype": "I64", "shape": list(shape), "data_offsets": [place, place]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _metadata(opened: Opened, path: Path, predicts_v: bool) -> dict[str, str]:
    """What other programs show of a file (Stability's specification of a model's metadata)."""
    implementation = IMPLEMENTATIONS[opened.files.pipeline_class]
    side = opened.layout.side
    said = {
        "sai_model_spec": "1.0.1", "architecture": architecture_of(opened), "implementation": implementation,
        "title": path.stem, "resolution": f"{side}x{side}", "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    if opened.denoiser_part == "unet":
        said["prediction_type"] = "v" if predicts_v else "epsilon"
    return {"format": "pt"} | {f"modelspec.{key}": value for key, value in said.items()}


def _is_of_published_size(path: Path) -> bool:
    try:
        open_single(path)
    except MapoError:
        return False
    return True


def _describe(files: ModelFiles, folder: Path) -> None:
    """Write what a file does not hold: the configurations of its parts, and its tokenizers."""
    with replacing(folder) as temporary:
        copy_small_files(files.base, temporary)
        for part in ("scheduler", *LAYOUTS[files.pipeline_class]):
            if (temporary / part).is_dir():
                write_config(temporary / part / CONFIGS.get(part, "config.json"), files.config(part))


def describe_noise(opened: Opened, path: Path) -> None:
    """Write the scheduler beside a file of a published size, where its noise is another than such files have."""
    own = opened.process
    usual = open_model(find_model(str(path)), to_train=False).process
    if isinstance(own, Ddpm) and isinstance(usual, Ddpm):
        same = own.prediction_type == usual.prediction_type and torch.equal(own.alphas_cumprod, usual.alphas_cumprod)
    else:
        same = own == usual
    if not same:
        beside = beside_of(path)
        write_config(beside / SCHEDULER, opened.files.config("scheduler"))
        LOG.info(
            f"Note: {beside.name}/{SCHEDULER} beside the file says which noise the model was trained with. Other "
            "programs take the usual one."
        )
