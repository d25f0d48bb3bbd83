"""The families that are known, by the class of their pipelines. A newcomer is one module and one line here."""

from __future__ import annotations

from mapo.models.family import Families
from mapo.models.sd import StableDiffusion
from mapo.models.sdxl import StableDiffusionXL

FAMILIES: Families = {
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusionPipeline": StableDiffusion,
}
