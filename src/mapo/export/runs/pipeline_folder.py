"""A run as a whole pipeline in diffusers' layout, with its weights merged in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo import progress
from mapo.errors import MapoError, suggest

if TYPE_CHECKING:
    from mapo.models import Opened

PRECISIONS = ("float32", "float16", "bfloat16")
CLIP_PREFIX, CLIP_ENCODERS = "text_model.", ("CLIPTextModel", "CLIPTextModelWithProjection")
OUTSIDE = "text_projection.weight"  # of the encoder with a projection, beside what bears the prefix


def write_diffusers(opened: Opened, folder: Path, precision: str = "float32") -> None:
    """Write every part of the model into ``folder``, which ``DiffusionPipeline.from_pretrained`` opens.

    Weights are merged in float32 and rounded once. The names of text encoders are those that every version of
    transformers reads. MapoError where a number is too large for float16.
    """
    import torch

    from mapo.models.parts.weights import quietly

    if precision not in PRECISIONS:
        raise MapoError(f"--precision is {precision!r}. {suggest(precision, PRECISIONS)}")
    dtype = getattr(torch, precision)
    pipeline = opened.pipeline("cpu", torch.float32)
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "save_pretrained")}
    with progress.bar(total=len(parts), desc="export diffusers", unit="part") as bar:
        for name, part in parts.items():
            if isinstance(part, torch.nn.Module) and dtype != torch.float32:
                with quietly():
                    part.to(dtype)
                _check_finite(part, name, precision)
            part.save_pretrained(folder / name)
            if type(part).__name__ in CLIP_ENCODERS:
                name_for_all_versions(folder / name)
            bar.update()
    pipeline.save_config(folder)
    _leave_out_folders(folder)
    if (opened.files.base / "sampling.json").is_file():
        shutil.copyfile(opened.files.base / "sampling.json", folder / "sampling.json")


def _check_finite(part: Any, name: str, precision: str) -> None:
    for key, tensor in part.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise MapoError(f"{key} of {name} has numbers that {precision} cannot hold. Export it in float32.")


def name_for_all_versions(folder: Path) -> None:
    """Put ``text_model.`` before the names of a CLIP text encoder's tensors, where the library has left it out.

    transformers 4 finds no tensor without it, and would fill the encoder with random numbers.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata()
            plain = [name for name in names if not name.startswith(CLIP_PREFIX) and name != OUTSIDE]
            if not plain:
                continue
            tensors = {f"{CLIP_PREFIX * (name in plain)}{name}": file.get_tensor(name) for name in names}
        save_file(tensors, path, metadata)


def _leave_out_folders(folder: Path) -> None:
    """Take out of the JSON files where on this machine the parts came from; the names of the hub stay."""
    for path in _json_files(folder):
        values = json.loads(path.read_text("utf-8"))
        place = str(values.get("_name_or_path") or "") if isinstance(values, dict) else ""
        if place.startswith(("/", ".", "~")) or place.count("/") > 1 or (place and Path(place).exists()):
            del values["_name_or_path"]
            path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _json_files(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*.json")
    for pattern in ("config.json", "*_config.json"):
        yield from folder.glob(f"*/{pattern}")
