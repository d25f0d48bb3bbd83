"""The parts of a diffusers folder: which files hold their weights, and loading one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from mapo.errors import MapoError

# name.safetensors, name.fp16.safetensors, name-00001-of-00002.safetensors, and both spellings of a variant in shards
WEIGHTS = re.compile(
    r"(?P<name>model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?(\.(?P<variant>\w+?))?(-\d{5}-of-\d{5})?\.safetensors"
)


def variant_of(folder: Path) -> str | None:
    """The variant of a part's weights, such as "fp16", where there are no others; else None."""
    found = {match["variant"] for file in folder.glob("*.safetensors") if (match := WEIGHTS.fullmatch(file.name))}
    if None in found or not found:
        return None
    return "fp16" if "fp16" in found else min(v for v in found if v)


def variants(base: Path, parts: tuple[str, ...]) -> dict[str, str]:
    """The parts of which there is only a variant, with its name."""
    return {part: variant for part in parts if (variant := variant_of(base / part))}


def refuse_pickles(base: Path, part: str) -> None:
    """MapoError where the weights of a part are there only as pickles, which can run code when they are opened."""
    folder = base / part
    pickles = sorted(f.name for f in folder.glob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise MapoError(
            f"{folder} has its weights only as {pickles[0]}. Such a file can run code when it is opened, so it is not "
            "read. If you trust it, write the model anew as safetensors: "
            f'DiffusionPipeline.from_pretrained("{base}", use_safetensors=False).save_pretrained("NEW FOLDER").'
        )


def load_part(kind: Any, base: Path, part: str, dtype: Any = torch.float32) -> Any:
    """The network of a part with its weights, as the class ``kind`` loads them; MapoError where that fails."""
    refuse_pickles(base, part)
    how = {"torch_dtype": dtype, "use_safetensors": True, "variant": variant_of(base / part)}
    try:
        network, report = kind.from_pretrained(base, subfolder=part, output_loading_info=True, **how)
    except Exception as error:
        raise not_whole(base, part, error) from None
    if lacking := sorted(report["missing_keys"]):
        are = "tensor is" if len(lacking) == 1 else "tensors are"
        raise MapoError(
            f"The model folder {base} is not whole: the weights of {part} lack {lacking[0]} "
            f"({len(lacking)} {are} missing). Download the folder again."
        )
    return network


def not_whole(base: Path, part: str, error: Exception) -> MapoError:
    """What to say where a library could not load a part."""
    reason = str(error).strip().split("\n")[0][:200]
    return MapoError(f"The model folder {base} is not whole: {part} cannot be loaded ({reason}).")
