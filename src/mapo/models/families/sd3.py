"""Stable Diffusion 3 and 3.5 and everything of their layout: two CLIP text encoders, perhaps T5, a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from mapo.errors import MapoError
from mapo.models.families.clip import clip_tokenizer, tokenize
from mapo.models.families.t5 import t5_states, t5_tokenizer
from mapo.models.families.transformer import FlowModel
from mapo.models.family import Cond, Frames, Layout, TextEncoder, Texts
from mapo.models.parts.kinds import SD3_TRANSFORMER

T5_TOKENS = 256


class StableDiffusion3(FlowModel):
    """SD3: penultimate states of both CLIP encoders side by side, T5's behind them, and both pooled projections.

    Without T5 the denoiser is given as many tokens of zeros, as its pipeline does.
    """

    pipeline_kind = StableDiffusion3Pipeline
    denoiser_kind = SD3Transformer2DModel
    denoiser_values = SD3_TRANSFORMER
    denoiser_needs = ("sample_size", "patch_size", "joint_attention_dim", "pos_embed_max_size")
    encoder_kinds = {  # noqa: RUF012
        "text_encoder": CLIPTextModelWithProjection, "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }  # fmt: skip
    tokenizer_kinds = {  # noqa: RUF012
        "tokenizer": clip_tokenizer, "tokenizer_2": clip_tokenizer, "tokenizer_3": t5_tokenizer(T5_TOKENS),
    }  # fmt: skip
    may_lack = ("text_encoder_3", "tokenizer_3")
    pipeline_settings = {"image_encoder": None, "feature_extractor": None}  # noqa: RUF012
    usual_sampling = {"steps": 28, "guidance": 5.0}  # noqa: RUF012
    usual_inputs = 16
    usual_scale = 1.5305
    usual_shift = 0.0609
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip

    @property
    def patch(self) -> int:
        """As the transformer's file says."""
        return int(self.files.config("transformer")["patch_size"])

    @property
    def layout(self) -> Layout:
        """The transformer has places for a square of so many patches."""
        config, token = self.files.config("transformer"), self.patch * self.stride
        side, most = config["sample_size"] * self.stride, config["pos_embed_max_size"] * token
        return Layout(self.channels, self.stride, token, side, most, drawn=token)

    @property
    def _t5_tokens(self) -> int:
        return T5_TOKENS if self.files.text_tokens is None else self.files.text_tokens

    @property
    def _width(self) -> int:
        return int(self.files.config("transformer")["joint_attention_dim"])

    @property
    def prompt_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """CLIP's states, those of T5 where there is one, and the pooled projections."""
        clips = [self.files.config(part) for part in ("text_encoder", "text_encoder_2")]
        tokens = clips[0].get("max_position_embeddings") or 77
        found: dict[str, tuple[int, ...]] = {
            "clip_embeds": (tokens, sum(clip.get("hidden_size", 512) for clip in clips)),
            "text_embeds": (sum(clip.get("projection_dim", 512) for clip in clips),),
        }
        if "text_encoder_3" in self.text_encoders:
            found["t5_embeds"] = self._t5_tokens, self._width
        return found

    def check_denoiser(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the transformer reads text of another width."""
        widths = self.prompt_shapes
        given = widths["clip_embeds"][1]
        if given > self._width:
            raise MapoError(
                f"{path} reads text of {self._width} numbers a token, the text encoders give {given}. Download both "
                "from the model's page."
            )
        if "text_encoder_3" in self.text_encoders and self.files.config("text_encoder_3").get("d_model") != self._width:
            raise MapoError(
                f"{path} reads text of {self._width} numbers a token, text_encoder_3 gives "
                f"{self.files.config('text_encoder_3').get('d_model')}. Download both from the model's page."
            )
        pooled = widths["text_embeds"][0]
        if config.get("pooled_projection_dim", 2048) != pooled:
            raise MapoError(
                f"{path} reads a pooled text of {config.get('pooled_projection_dim', 2048)} numbers, the text encoders "
                f"give {pooled}. Download both from the model's page."
            )

    def text_encoder(self, device: Any, dtype: Any = torch.float32) -> TextEncoder:
        """The encoders, one after the other in memory but for their weights."""
        tokenizers = self.tokenizers()
        clips = [
            self.files.load(part, self.text_encoders[part]).to(device).eval() for part in list(self.text_encoders)[:2]
        ]
        t5 = None
        if len(tokenizers) > 2 and self._t5_tokens:
            t5 = t5_states(self.files, "text_encoder_3", tokenizers[2], device, dtype)

        @torch.no_grad()
        def encode(prompts: Sequence[str]) -> Texts:
            outputs = [
                clip(tokenize(tokenizer, prompts)[0].to(clip.device), output_hidden_states=True)
                for tokenizer, clip in zip(tokenizers, clips, strict=False)
            ]
            found = {
                "clip_embeds": torch.cat([output.hidden_states[-2] for output in outputs], -1),
                "text_embeds": torch.cat([output[0] for output in outputs], -1),
            }
            return found if t5 is None else {**found, "t5_embeds": t5(prompts)}

        return encode

    def condition(self, text: Cond, frames: Frames) -> Cond:
        """All tokens as one row, "b l d": CLIP's filled up to T5's width, and T5's or zeros behind them."""
        clip = text["clip_embeds"]
        states = F.pad(clip, (0, self._width - clip.shape[-1]))
        behind = text.get("t5_embeds", states.new_zeros(len(states), self._t5_tokens, self._width))
        return {"prompt_embeds": torch.cat([states, behind.to(states.dtype)], 1), "text_embeds": text["text_embeds"]}

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity "b c h w". The transformer is told t itself, up to 1,000."""
        output: Tensor = denoiser(
            hidden_states=x_t, timestep=t, encoder_hidden_states=cond["prompt_embeds"].to(x_t.dtype),
            pooled_projections=cond["text_embeds"].to(x_t.dtype), return_dict=False,
        )[0]  # fmt: skip
        return output
