"""LoRAs of anybody: read layer by layer, or refused in a sentence."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.loras.layers import Layer, as_one, fuse
from mapo.models.loras.read import Kind, Tensors, read_layers
from mapo.models.loras.write import write_layers
from mapo.models.names.kohya import layer_shapes
from real import needs_real
from test_published_flows import published
from tiny import make_flux, make_sd, make_sdxl

PIPELINES = {
    "StableDiffusionXLPipeline": "stable-diffusion-xl-base-1.0", "StableDiffusionPipeline": "stable-diffusion-v1-5",
    "FluxPipeline": "FLUX.1-dev",
}  # fmt: skip


# ------------------------------------------------------------------ published names


def outlines(folder, name):
    """The parts of a published model without their weights."""
    model = open_model(find_model(str(published(folder, name))), to_train=False)
    parts = [
        part for part in model.networks if part not in ("vae", "text_encoder_2" if name.startswith("FLUX") else "")
    ]
    return {part: model.outline(part) for part in parts}
