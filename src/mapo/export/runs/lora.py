"""The LoRA of a run as diffusers' pipelines open it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mapo.errors import MapoError
from mapo.files import replacing

LOG = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mapo.models import Opened
    from mapo.models.loras.layers import Layer


def write_lora(opened: Opened, path: Path) -> None:
    """Write the LoRAs that lie on a model as the file ``path`` of one, with every alpha.

    ``pipeline.load_lora_weights(FOLDER, weight_name=NAME)`` opens it, and without ``weight_name`` where its name is
    pytorch_lora_weights.safetensors. MapoError where no LoRA lies on the model.
    """
    import diffusers

    from mapo.models.loras.write import write_layers

    layers = layers_to_write(opened)
    pipeline = getattr(diffusers, opened.files.pipeline_class)
    for part in sorted({layer.part for layer in layers}.difference(pipeline._lora_loadable_modules)):
        LOG.info(
            f"Note: diffusers lays no LoRA on the {part} of a {pipeline.__name__}, so it passes over these layers."
        )
    with replacing(path) as temporary:
        write_layers(temporary, layers)


def layers_to_write(opened: Opened) -> list[Layer]:
    """The LoRAs that lie on a model as one; MapoError where there is none, or its denoiser has weights of a run."""
    from mapo.models.loras.layers import as_one

    if opened.files.denoiser is not None:
        raise MapoError(
            f"{opened.files.name} is a run in which every weight was trained, and not a LoRA. Write it whole, with "
            "--to diffusers or --to single-file."
        )
    layers = as_one(layer for layers in opened.lora_layers() for layer in layers)
    if not layers:
        raise MapoError(f"No LoRA lies on {opened.files.name}. Name a run of `mapo train --adapter lora`.")
    return layers
