"""What Stability's specification of a model's metadata (modelspec) calls a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapo.models import Opened

ARCHITECTURES = {
    "StableDiffusionXLPipeline": "stable-diffusion-xl-v1-base", "StableDiffusionPipeline": "stable-diffusion-v1",
    "StableDiffusion3Pipeline": "stable-diffusion-3", "FluxPipeline": "flux-1-dev",
}  # fmt: skip
SD2_WIDTH = 1024  # of the text that the UNet of Stable Diffusion 2 reads


def architecture_of(opened: Opened) -> str:
    """Its ``modelspec.architecture``."""
    files = opened.files
    denoiser = files.config(opened.denoiser_part)
    if denoiser.get("cross_attention_dim") == SD2_WIDTH:
        predicts_v = files.config("scheduler").get("prediction_type") == "v_prediction"
        return "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512"
    if files.pipeline_class == "FluxPipeline" and not denoiser.get("guidance_embeds"):
        return "flux-1-schnell"
    return ARCHITECTURES[files.pipeline_class]
