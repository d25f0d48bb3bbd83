"""Names of a LoRA's layers as Kohya's trainer writes them, and as ComfyUI, A1111 and Forge read them.

A name is a prefix that says which network it is, and the path of the layer with underscores in place of dots. UNets of
SDXL and all transformers have the paths of the files that they were first published in (``original.py``), where several
layers may lie in one, such as q, k and v; Stable Diffusion 1 and 2 have those of diffusers. Text encoders have those of
transformers 4. Sources: sd-scripts ``networks/lora*.py``, ComfyUI ``comfy/lora.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mapo.models.names.original import Original, Place, Placing, Shape, clip_placing, denoiser_placing, originals

TRANSFORMER = ("lora_unet", "lora_transformer", "lycoris")
# Pipeline → part → the prefixes that stand for it. The first one is written, the others are read too: OneTrainer has
# lora_transformer, and T5 of FLUX.1 as lora_te2; LyCORIS in SimpleTuner has lycoris. Both have diffusers' paths behind.
PREFIXES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "StableDiffusionXLPipeline": {
        "unet": ("lora_unet", "lycoris"), "text_encoder": ("lora_te1",), "text_encoder_2": ("lora_te2",),
    },
    "StableDiffusionPipeline": {"unet": ("lora_unet", "lycoris"), "text_encoder": ("lora_te",)},
    "StableDiffusion3Pipeline": {
        "transformer": TRANSFORMER, "text_encoder": ("lora_te1",), "text_encoder_2": ("lora_te2",),
        "text_encoder_3": ("lora_te3",),
    },
    "FluxPipeline": {
        "transformer": TRANSFORMER, "text_encoder": ("lora_te1",), "text_encoder_2": ("lora_te3", "lora_te2"),
    },
    "ZImagePipeline": {"transformer": (), "text_encoder": ()},
}  # fmt: skip
OWN_PATHS = "StableDiffusionPipeline"  # whose UNet has diffusers' paths in Kohya's files


def layer_shapes(network: nn.Module) -> dict[str, Shape]:
    """The layers beside which a LoRA can lie, linear and convolutional, with the shapes of their weights."""
    return {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def original_layers(part: str, network: nn.Module) -> dict[str, Original]:
    """The layers of a denoiser by their paths in the file that it was first published in; none where nothing is known.

    Of a text encoder: by the paths of transformers 4.
    """
    if part.startswith("text_encoder"):
        is_clip = "CLIP" in type(network).__name__
        return _layers(clip_placing if is_clip else Place, layer_shapes(network))
    try:
        config: Any = network.config
        placing = denoiser_placing(type(network).__name__, config)
    except KeyError:
        return {}
    return _layers(placing, layer_shapes(network))


def own_layers(network: nn.Module) -> dict[str, Original]:
    """The layers of a network by diffusers' own paths."""
    return _layers(Place, layer_shapes(network))


def kohya_layers(pipeline: str, part: str, network: nn.Module) -> dict[str, Original]:
    """The layers of a part by the names that are written for it, without the prefix; empty where none are known."""
    if not PREFIXES.get(pipeline, {}).get(part):
        return {}
    is_own = pipeline == OWN_PATHS and not part.startswith("text_encoder")
    return underscored(own_layers(network) if is_own else original_layers(part, network))


def underscored(layers: Mapping[str, Original]) -> dict[str, Original]:
    """Layers by their paths with underscores."""
    return {path.replace(".", "_"): layer for path, layer in layers.items()}


def _layers(placing: Placing, shapes: Mapping[str, Shape]) -> dict[str, Original]:
    def known(path: str) -> Place | None:
        try:
            return placing(path)
        except KeyError:  # a layer that no published file has
            return None

    found = originals(known, {f"{name}.weight": shape for name, shape in shapes.items()})
    return {name.removesuffix(".weight"): layer for name, layer in found.items()}
