"""Stable Diffusion 1 and 2 and everything of their layout: one CLIP text encoder, VAE, UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from mapo.errors import MapoError
from mapo.models.families.clip import check_clip_skip, clip_tokenizer, in_one_row, leave_out_last_layers
from mapo.models.families.unet import UNetModel
from mapo.models.family import Cond, Frames


class StableDiffusion(UNetModel):
    """Stable Diffusion 1.5 and 2.1: the last states of one text encoder, after its final norm; nothing of sizes.

    Pictures are made without the folder's safety checker, which would hand over black ones in their place.
    """

    pipeline_kind = StableDiffusionPipeline
    pipeline_settings = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}  # noqa: RUF012
    encoder_kinds = {"text_encoder": CLIPTextModel}  # noqa: RUF012
    tokenizer_kinds = {"tokenizer": clip_tokenizer}  # noqa: RUF012
    usual_sampling = {"steps": 50, "guidance": 7.5}  # noqa: RUF012
    usual_scale = 0.18215
    scale_may_lack = True  # the published files leave it out, and diffusers takes this one

    def check_unet(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the UNet is told more than its prompt, or reads states of another width."""
        for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim"):
            if config.get(key) is not None:
                raise MapoError(
                    f"{path} has {key} {config[key]!r}; Stable Diffusion has none. Such a model (an upscaler, "
                    "unCLIP, SDXL …) is told more than its prompt."
                )
        width, given = config.get("cross_attention_dim", 1280), self.files.config("text_encoder").get("hidden_size")
        if width != given:
            raise MapoError(
                f"{path} reads text of {width} numbers a token, the text encoder gives {given}. Download both from the "
                "model's page."
            )

    def check_clip_skip(self) -> None:
        """MapoError where the text encoder has not so many layers to leave out."""
        check_clip_skip(self.files, "text_encoder")

    def loaded(self, part: str, dtype: Any = torch.float32, loras: bool = True) -> Any:
        """The text encoder is without the layers that are left out."""
        network, left_out = super().loaded(part, dtype, loras), self.files.clip_skip
        return leave_out_last_layers(network, left_out) if left_out and part == "text_encoder" else network

    @property
    def prompt_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The encoder's states."""
        config = self.files.config("text_encoder")
        return {"prompt_embeds": (config.get("max_position_embeddings") or 77, config.get("hidden_size", 512))}

    def encode_tokens(self, encoders: Sequence[Any], tokens: Cond) -> Cond:
        """The encoder's last states, after the final norm, "n (k l) d"."""
        (encoder,), ids = encoders, tokens["tokens"]
        masked = getattr(encoder.config, "use_attention_mask", False)  # then the pipeline gives a mask too
        mask = tokens["tokens_mask"].flatten(0, 1) if masked else None
        return {"prompt_embeds": in_one_row(encoder(ids.flatten(0, 1), attention_mask=mask)[0], ids)}

    def condition(self, text: Cond, frames: Frames) -> Cond:
        """The prompt's states as they are."""
        return text

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The UNet's output "b c h w"."""
        output: Tensor = denoiser(x_t, t, cond["prompt_embeds"].to(x_t.dtype), return_dict=False)[0]
        return output
