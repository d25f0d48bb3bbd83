"""A LoRA as diffusers' pipelines open it: ``pipeline.load_lora_weights(FOLDER)``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from mapo.models.loras.layers import Layer
from mapo.models.loras.read import METADATA

TRAINED = "default"  # the name of the adapter that is trained


def trained_layers(part: str, network: nn.Module) -> list[Layer]:
    """The layers of the LoRA that was trained beside a network."""
    return [
        Layer(
            part, name, module.lora_A[TRAINED].weight.detach(), module.lora_B[TRAINED].weight.detach(),
            float(module.lora_alpha[TRAINED]),
        )
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer) and TRAINED in module.lora_A
    ]  # fmt: skip


def write_layers(path: Path, layers: Sequence[Layer], about: Mapping[str, str] | None = None) -> None:
    """Write a LoRA's file. Where an alpha is not the rank its head says so, as diffusers writes and reads it.

    ``about`` is more metadata.
    """
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        down, up = _names(layer)
        tensors[down], tensors[up] = layer.down.cpu().contiguous(), layer.up.cpu().contiguous()
    head = {"format": "pt", **(about or {})}
    if any(layer.alpha != layer.rank for layer in layers) or len({layer.rank for layer in layers}) > 1:
        head[METADATA] = json.dumps(peft_settings(layers), indent=2, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, head)


def _names(layer: Layer) -> tuple[str, str]:
    """The names of both matrices. Beside a UNet they are those that diffusers has always written, else peft's."""
    module = layer.module
    if layer.part == "unet":
        return f"unet.{module}.lora.down.weight", f"unet.{module}.lora.up.weight"
    return f"{layer.part}.{module}.lora_A.weight", f"{layer.part}.{module}.lora_B.weight"


def peft_settings(layers: Sequence[Layer]) -> dict[str, Any]:
    """Peft's settings of a LoRA, such as ``unet.r``: the usual rank and alpha, and the layers that have others."""
    found: dict[str, Any] = {}
    for part in dict.fromkeys(layer.part for layer in layers):
        own = [layer for layer in layers if layer.part == part]
        patterns = _patterns(own)
        rank = Counter(layer.rank for layer in own).most_common(1)[0][0]
        alpha = Counter(layer.alpha for layer in own).most_common(1)[0][0]
        values = {
            "r": rank,
            "lora_alpha": _number(alpha),
            "rank_pattern": {patterns[layer.module]: layer.rank for layer in own if layer.rank != rank},
            "alpha_pattern": {patterns[layer.module]: _number(layer.alpha) for layer in own if layer.alpha != alpha},
            "target_modules": [_path(layer) for layer in own],
        }
        found |= {f"{part}.{key}": value for key, value in values.items()}
    return found


def _number(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha


def _patterns(layers: Sequence[Layer]) -> dict[str, str]:
    """By module, what peft finds it by. It looks for ends of names, so a layer that is the end of another is marked."""
    paths = {layer.module: _path(layer) for layer in layers}
    ends = {path[place + 1 :] for path in paths.values() for place in range(len(path)) if path[place] == "."}
    return {module: f"^{path}" if path in ends else path for module, path in paths.items()}


def _path(layer: Layer) -> str:
    """The layer's path as peft finds it, in text encoders of transformers 4 and 5, which differ in its beginning."""
    return layer.module.removeprefix("text_model.") if layer.part.startswith("text_encoder") else layer.module
