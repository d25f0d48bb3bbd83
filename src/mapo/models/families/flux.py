"""FLUX.1 and everything of its layout: T5, a pooled CLIP, a transformer that reads packed latents and may be told a
guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from mapo.errors import MapoError
from mapo.models.families.clip import clip_tokenizer, tokenize
from mapo.models.families.t5 import t5_states, t5_tokenizer
from mapo.models.families.transformer import FlowModel
from mapo.models.family import Cond, Frames, Layout, TextEncoder, Texts
from mapo.models.parts.kinds import FLUX_TRANSFORMER

T5_TOKENS = 512
SIDE = 1024  # in pixels; none of the published files says it


class Flux(FlowModel):
    """FLUX.1: T5's last states, CLIP's pooled output, and for dev the guidance that it was distilled with.

    In training the guidance is 1, or what ``train.guidance`` says.
    """

    pipeline_kind = FluxPipeline
    denoiser_kind = FluxTransformer2DModel
    denoiser_values = FLUX_TRANSFORMER
    encoder_kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}  # noqa: RUF012
    tokenizer_kinds = {"tokenizer": clip_tokenizer, "tokenizer_2": t5_tokenizer(T5_TOKENS)}  # noqa: RUF012
    pipeline_settings = {"image_encoder": None, "feature_extractor": None}  # noqa: RUF012
    usual_sampling = {"steps": 28, "guidance": 3.5}  # noqa: RUF012
    usual_inputs, inputs_per_channel = 64, 4  # packed: 2 × 2 elements are one
    usual_scale = 0.3611
    usual_shift = 0.1159
    adapters = ("lora",)
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip

    @property
    def layout(self) -> Layout:
        """Tokens are squares of 2 × 2 elements of the latent."""
        token = 2 * self.stride
        return Layout(self.channels, self.stride, token, self.files.side or SIDE, drawn=token)

    @property
    def told_guidance(self) -> bool:
        """Those of dev are, those of schnell and models whose distillation was undone are not."""
        return bool(self.files.config("transformer").get("guidance_embeds"))

    @property
    def advised_sampling(self) -> Mapping[str, float]:
        """Schnell is drawn without guidance."""
        is_guided = self.told_guidance or self.files.called_undone()
        return self.usual_sampling if is_guided else {**self.usual_sampling, "guidance": 0.0}

    @property
    def distilled(self) -> str:
        """FLUX.1 schnell is told no guidance, nor are models whose distillation was undone: only a name tells them."""
        if self.told_guidance:
            return super().distilled
        if self.files.called_undone():
            return ""
        return (
            "It has no guidance embedding, as FLUX.1 schnell, which was distilled to draw in one to four steps, and "
            "its name does not say that this was undone (de-distilled)."
        )

    @property
    def prompt_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """T5's states and CLIP's pooled output."""
        clip, t5 = (self.files.config(part) for part in self.text_encoders)
        tokens = T5_TOKENS if self.files.text_tokens is None else self.files.text_tokens
        return {"prompt_embeds": (tokens, t5.get("d_model", 512)), "text_embeds": (clip.get("hidden_size", 512),)}

    def check_denoiser(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the transformer reads text of another width."""
        shapes = self.prompt_shapes
        usual = {"joint_attention_dim": 4096, "pooled_projection_dim": 768}
        for key, name in (("joint_attention_dim", "prompt_embeds"), ("pooled_projection_dim", "text_embeds")):
            reads = config.get(key, usual[key])
            if reads != shapes[name][-1]:
                raise MapoError(
                    f"{path} has {key} {reads}, the text encoder gives {shapes[name][-1]}. Download both from the "
                    "model's page."
                )

    def text_encoder(self, device: Any, dtype: Any = torch.float32) -> TextEncoder:
        """T5's states "n l d" and CLIP's pooled output "n d"."""
        first, second = self.tokenizers()
        clip = self.files.load("text_encoder", CLIPTextModel).to(device).eval()
        t5 = t5_states(self.files, "text_encoder_2", second, device, dtype)

        @torch.no_grad()
        def encode(prompts: Sequence[str]) -> Texts:
            pooled = clip(tokenize(first, prompts)[0].to(clip.device)).pooler_output
            return {"prompt_embeds": t5(prompts), "text_embeds": pooled}

        return encode

    def condition(self, text: Cond, frames: Frames) -> Cond:
        """The prompt's states, and the guidance where the model is told one, "b", in float32."""
        if not self.told_guidance:
            return text
        states = text["prompt_embeds"]
        return {**text, "guidance": torch.full((len(states),), self.files.guidance, device=states.device)}

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity "b c h w". The transformer is told σ, which half precision rounds before it is divided."""
        states = cond["prompt_embeds"].to(x_t.dtype)
        packed: Tensor = denoiser(
            hidden_states=pack(x_t), timestep=t.to(x_t.dtype) / 1000, guidance=cond.get("guidance"),
            pooled_projections=cond["text_embeds"].to(x_t.dtype), encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=x_t.device, dtype=x_t.dtype), img_ids=places(x_t),
            return_dict=False,
        )[0]  # fmt: skip
        return unpack(packed, x_t.shape[-2], x_t.shape[-1])


def pack(latents: Tensor) -> Tensor:
    """Each square of 2 × 2 as a token: "b c h w" → "b (h/2 · w/2) 4c"."""
    return latents.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The other way: "b (h/2 · w/2) 4c" → "b c h w"."""
    squares = tokens.view(len(tokens), height // 2, width // 2, -1, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def places(latents: Tensor) -> Tensor:
    """Of each token of "b c h w": 0, its row and its column, "(h/2 · w/2) 3"."""
    rows, columns = (torch.arange(side // 2, device=latents.device) for side in latents.shape[-2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1).to(latents.dtype)
