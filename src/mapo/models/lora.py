"""The file of a run's LoRA: whether it is whole and fits its denoiser, and two of them as one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mapo.errors import MapoError

LORA_FILE = "pytorch_lora_weights.safetensors"
TENSOR = re.compile(r"(?P<part>\w+)\.(?P<layer>.+)\.(?:(?P<down>lora\.down|lora_A)|lora\.up|lora_B)\.weight")
OF_ANOTHER = "lora_adapter_metadata"  # what others write into a file whose alpha is not its rank
REMEDY = "Put the file that `mapo train` wrote back there, or train that run again."
Sides = dict[bool, tuple[int, ...]]  # the shapes of a layer's two matrices; True: down


def check_lora(folder: Path, denoiser: nn.Module, part: str) -> None:
    """MapoError where a run's LoRA is not one of this denoiser, whose ``part`` of the pipeline its file names.

    Only the head of the file is read.
    """
    for layer, (down, up) in _layers(folder, part).items():
        try:
            module: Any = denoiser.get_submodule(layer)
            size = module.weight.shape
        except AttributeError:
            raise MapoError(f"{folder / LORA_FILE} has the layer {layer}, which its model lacks. {REMEDY}") from None
        if (down[1:], up[:1], up[1:2]) != (size[1:], size[:1], down[:1]):
            raise MapoError(f"{folder / LORA_FILE} does not fit its model: {layer} has another size. {REMEDY}")


def check_on_top_of(folder: Path, denoiser: nn.Module, targets: Collection[str], part: str) -> None:
    """MapoError where a new LoRA of all layers called ``targets`` could not be one file with that of a run."""
    found = _layers(folder, part)
    wanted = {name for name, _ in denoiser.named_modules() if name.endswith(tuple(f".{t}" for t in targets))}
    ranks = sorted({down[0] for down, _ in found.values()})
    if other := sorted(found.keys() ^ wanted):
        why = f"{'lacks' if other[0] in wanted else 'has'} the layer {other[0]}"
    elif len(ranks) > 1:
        why = f"has layers of several ranks ({', '.join(map(str, ranks))})"
    elif _metadata(folder).get(OF_ANOTHER):
        why = "comes from another program, with an alpha of its own"
    else:
        return
    raise MapoError(
        f"{folder / LORA_FILE} {why}, so a LoRA trained on top of it cannot be one file with it. Train every weight "
        "(--adapter full), or name a --model without this LoRA."
    )


def _layers(folder: Path, part: str) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The layers of a run's LoRA, with the shapes of their two matrices, down and up."""
    path = folder / LORA_FILE
    found: dict[str, Sides] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not (tensor := TENSOR.fullmatch(name)) or tensor["part"] != part:
                    raise MapoError(f"{path} holds {name}, which `mapo train` does not write. {REMEDY}")
                shape = tuple(file.get_slice(name).get_shape())
                found.setdefault(tensor["layer"], {})[bool(tensor["down"])] = shape
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None
    if not found:
        raise MapoError(f"{path} holds no layers. {REMEDY}")
    if halves := [layer for layer, sides in found.items() if len(sides) < 2]:
        raise MapoError(f"{path} holds only half of the layer {halves[0]}. {REMEDY}")
    return {layer: (sides[True], sides[False]) for layer, sides in found.items()}


def _metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / LORA_FILE, "pt") as file:
        return file.metadata() or {}


def _damaged(path: Path, error: Exception) -> MapoError:
    return MapoError(f"{path} is damaged ({error}). Run the `mapo train` command that made it again.")


def on_top_of(folder: Path, above: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The LoRA of a run and one of the same layers as one, whose rank is the sum: Σ BA = (B₁ B₂ …)(A₁ A₂ …)ᵀ.

    Each has an alpha that is its rank. ``above`` has the denoiser's own names.
    """
    try:
        below = {_plain(name): tensor for name, tensor in load_file(folder / LORA_FILE).items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(folder / LORA_FILE, error) from None
    plain = {_plain(name): name for name in above}
    return {
        name: torch.cat([below[f"{part}.{key}"].to(above[name]), above[name]], 0 if ".down." in key else 1)
        for key, name in plain.items()
    }


def _plain(name: str) -> str:
    """The name of a tensor as diffusers has always written it; peft's are read too."""
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
