"""Stable Diffusion XL and everything of its layout: two CLIP text encoders, size conditioning, VAE, UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from mapo.errors import MapoError
from mapo.models.families.clip import clip_tokenizer, in_one_row
from mapo.models.families.unet import UNetModel
from mapo.models.family import Cond, Frames
from mapo.models.parts.config import read_config


class StableDiffusionXL(UNetModel):
    """SDXL: the penultimate states of both encoders, the second one's pooled projection, and the sizes of pictures."""

    pipeline_kind = StableDiffusionXLPipeline
    pipeline_settings = {"add_watermarker": False}  # noqa: RUF012
    encoder_kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}  # noqa: RUF012
    tokenizer_kinds = {"tokenizer": clip_tokenizer, "tokenizer_2": clip_tokenizer}  # noqa: RUF012
    usual_sampling = {"steps": 30, "guidance": 5.0}  # noqa: RUF012
    usual_scale = 0.13025
    penultimate_of = ("text_encoder",)  # the last layer of the second encoder makes the pooled output

    def check_unet(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the UNet is not told of sizes."""
        if config.get("addition_embed_type") != "text_time":
            raise MapoError(
                f"{path} has addition_embed_type {config.get('addition_embed_type')!r}; SDXL has 'text_time'."
            )

    def check_clip_skip(self) -> None:
        """MapoError where ``clip_skip`` is asked for."""
        if self.files.clip_skip:
            raise MapoError(
                f"clip_skip is {self.files.clip_skip}, but a model of SDXL's layout always leaves out the last layer, "
                "which other programs call clip skip 2. Leave it out."
            )

    @property
    def prompt_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """States of both encoders side by side, and the pooled projection."""
        first, second = (self.files.config(part) for part in self.text_encoders)
        tokens, width = (
            first.get("max_position_embeddings") or 77,
            first.get("hidden_size", 512) + second.get("hidden_size", 512),
        )
        return {"prompt_embeds": (tokens, width), "text_embeds": (second.get("projection_dim", 512),)}

    @cached_property
    def zero_without_prompt(self) -> bool:
        """As ``model_index.json`` says; the pipeline's class takes it for granted."""
        return bool(read_config(self.files.base, "model_index.json").get("force_zeros_for_empty_prompt", True))

    def encode_tokens(self, encoders: Sequence[Any], tokens: Cond) -> Cond:
        """Penultimate states of both encoders side by side "n (k l) d", and the second one's pooled projection of the
        first chunk "n d"."""
        ids = tokens["tokens"], tokens["tokens_2"]
        outputs = [e(i.flatten(0, 1), output_hidden_states=True) for e, i in zip(encoders, ids, strict=True)]
        states = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return {"prompt_embeds": in_one_row(states, ids[0]), "text_embeds": outputs[1][0][:: ids[0].shape[1]]}

    def condition(self, text: Cond, frames: Frames) -> Cond:
        """Adds the time ids: original height and width, crop top and left, target height and width, "b 6"."""
        return {**text, "time_ids": torch.cat([frames.original, frames.crop, frames.target], 1).float()}

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The UNet's output "b c h w"."""
        states, pooled = (cond[name].to(x_t.dtype) for name in ("prompt_embeds", "text_embeds"))
        added = {"text_embeds": pooled, "time_ids": cond["time_ids"]}
        output: Tensor = denoiser(x_t, t, states, added_cond_kwargs=added, return_dict=False)[0]
        return output
