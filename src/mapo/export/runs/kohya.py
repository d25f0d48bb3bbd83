"""The LoRA of a run as ComfyUI, A1111, Forge and Kohya's own scripts open it.

Several layers may be one there, such as q, k and v. They become one LoRA whose ranks stand side by side, with the alpha
that leaves every one of them as strong as it was: all readers divide alpha by the rank that they find.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.errors import MapoError
from mapo.export.runs.lora import layers_to_write
from mapo.export.runs.specification import SD2_WIDTH, architecture_of
from mapo.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from mapo.models import Opened
    from mapo.models.loras.layers import Layer
    from mapo.models.names.original import Original

STABILITY = "https://github.com/Stability-AI/generative-models"
VERSIONS = {  # pipeline: who made its code, ss_base_model_version, ss_network_module
    "StableDiffusionXLPipeline": (STABILITY, "sdxl_base_v1-0", "networks.lora"),
    "StableDiffusionPipeline": ("diffusers", "sd_v1", "networks.lora"),
    "StableDiffusion3Pipeline": (STABILITY, "sd3", "networks.lora_sd3"),
    "FluxPipeline": ("https://github.com/black-forest-labs/flux", "flux1", "networks.lora_flux"),
}


def write_kohya(opened: Opened, path: Path) -> None:
    """Write the LoRAs that lie on a model as the file ``path`` of one, with Kohya's names.

    MapoError where no LoRA lies on the model, or its layers have no such names.
    """
    from safetensors.torch import save_file

    layers = layers_to_write(opened)
    tensors = kohya_tensors(opened, layers)
    with replacing(path) as temporary:
        save_file(tensors, temporary, kohya_metadata(opened, layers, path.stem))


def kohya_tensors(opened: Opened, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The tensors of a LoRA by Kohya's names: ``lora_down`` and ``lora_up`` as in ours, and ``alpha``, one number."""
    import torch

    from mapo.models.names.kohya import PREFIXES, kohya_layers

    pipeline = opened.files.pipeline_class
    found: dict[str, Tensor] = {}
    for part in dict.fromkeys(layer.part for layer in layers):
        own = {f"{layer.module}.weight": layer for layer in layers if layer.part == part}
        for name, original in sorted(kohya_layers(pipeline, part, opened.outline(part)).items()):
            there = {weight: own.pop(weight) for weight, _ in original.parts if weight in own}
            if not there:
                continue
            down, up, alpha = _as_in_the_file(original, there)
            full = f"{PREFIXES[pipeline][part][0]}_{name}"
            found[f"{full}.lora_down.weight"] = down.cpu().contiguous()
            found[f"{full}.lora_up.weight"] = up.cpu().contiguous()
            found[f"{full}.alpha"] = torch.tensor(alpha)
        if own:
            raise MapoError(
                f"{opened.files.name} is a {pipeline}. Files for ComfyUI and A1111 have no known name for its layer "
                f"{next(iter(own)).removesuffix('.weight')} of {part}. Use --to lora, which diffusers opens."
            )
    return found


def _as_in_the_file(original: Original, layers: Mapping[str, Layer]) -> tuple[Tensor, Tensor, float]:
    """Down, up and alpha of a layer of the file, of those of ours that lie in it; some of its parts may lack."""
    import torch

    from mapo.models.names.original import Change

    own = list(layers.values())
    if not any(layer.alpha for layer in own):  # readers take an alpha of 0 for the rank
        layers = {name: replace(layer, up=layer.up * 0, alpha=float(layer.rank)) for name, layer in layers.items()}
        own = list(layers.values())
    scales = {layer.scale for layer in own}
    ups = {name: layer.up if len(scales) == 1 else layer.up * layer.scale for name, layer in layers.items()}
    if len(original.parts) == 1:
        (up,) = ups.values()
        if original.change is Change.SWAPPED:
            up = torch.cat(up.chunk(2)[::-1])
        return own[0].down, up, own[0].alpha
    share_one = len(own) == len(original.parts) and all(torch.equal(layer.down, own[0].down) for layer in own)
    if share_one:  # as they were in a file that was read
        down, up = own[0].down, torch.cat(list(ups.values()))
    else:
        down = torch.cat([layer.down for layer in own])
        up = down.new_zeros(sum(shape[0] for _, shape in original.parts), len(down))
        row = column = 0
        for name, shape in original.parts:
            if name in ups:
                up[row : row + shape[0], column : column + ups[name].shape[1]] = ups[name]
                column += ups[name].shape[1]
            row += shape[0]
    return down, up, float(len(down)) * (scales.pop() if len(scales) == 1 else 1.0)


def kohya_metadata(opened: Opened, layers: Sequence[Layer], title: str) -> dict[str, str]:
    """What tools read of a LoRA's file: which model it is for, its rank and alpha, how big its pictures are."""
    files = opened.files
    made_by, version, module = VERSIONS[files.pipeline_class]
    scheduler = files.config("scheduler")
    is_v = scheduler.get("prediction_type") == "v_prediction"
    is_sd2 = files.config(opened.denoiser_part).get("cross_attention_dim") == SD2_WIDTH
    if is_sd2:
        version = "sd_v2_v" if is_v else "sd_v2"
    side = opened.layout.side
    said = {
        "ss_v2": str(is_sd2),
        "ss_base_model_version": version,
        "ss_sd_model_name": Path(files.base).name,
        "ss_network_module": module,
        "ss_network_dim": _one({layer.rank for layer in layers}),
        "ss_network_alpha": _one({layer.alpha for layer in layers}),
        "ss_network_args": json.dumps({}),
        "ss_output_name": title,
        "ss_tag_frequency": json.dumps({}),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture_of(opened)}/lora",
        "modelspec.implementation": made_by,
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if "prediction_type" in scheduler:
        said["modelspec.prediction_type"] = "v" if is_v else "epsilon"
    if scheduler.get("rescale_betas_zero_snr"):
        said["ss_zero_terminal_snr"] = "True"
    return {"format": "pt", **said}


def _one(values: set[Any]) -> str:
    """A number that all layers share; Kohya's own word where they do not."""
    return f"{next(iter(values)):g}" if len(values) == 1 else "Dynamic"
