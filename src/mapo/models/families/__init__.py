"""The families that are known, by the class of their pipelines. A newcomer is one module and one line here."""

from __future__ import annotations

from mapo.models.families.flux import Flux
from mapo.models.families.sd import StableDiffusion
from mapo.models.families.sd3 import StableDiffusion3
from mapo.models.families.sdxl import StableDiffusionXL
from mapo.models.families.zimage import ZImage
from mapo.models.family import Families

FAMILIES: Families = {
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "ZImagePipeline": ZImage,
}
