"""Z-Image and everything of its layout: a Qwen3 that reads the prompt as a question, and a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Model

from mapo.errors import MapoError
from mapo.models.families.tokens import open_tokenizer
from mapo.models.families.transformer import FlowModel
from mapo.models.family import Cond, Frames, Layout, TextEncoder, Texts
from mapo.models.files import ModelFiles
from mapo.models.parts.kinds import Z_IMAGE_TRANSFORMER

TOKENS = 512
SIDE = 1024  # in pixels; none of the published files says it


def chat_tokenizer(files: ModelFiles, part: str, encoder_part: str) -> Any:
    """Qwen's tokenizer with its template of a conversation."""
    tokenizer = open_tokenizer(AutoTokenizer, "Qwen2Tokenizer", files, part, encoder_part)
    if not tokenizer.chat_template:
        raise MapoError(
            f"{files.base / part} has no chat template, in which prompts are put. Download it from the model's page."
        )
    tokenizer.model_max_length = TOKENS - len(tokenizer(in_template(tokenizer, "")).input_ids)  # for the prompt
    return tokenizer


def in_template(tokenizer: Any, prompt: str) -> str:
    """A prompt as the question of a conversation, as the pipeline puts it."""
    asked: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return asked


class ZImage(FlowModel):
    """Z-Image: Qwen's penultimate states of a prompt within its template, without what fills up.

    Its transformer is told 1 − σ and predicts x₀ − noise; both are turned round here.
    """

    pipeline_kind = ZImagePipeline
    denoiser_kind = ZImageTransformer2DModel
    denoiser_values = Z_IMAGE_TRANSFORMER
    encoder_kinds = {"text_encoder": Qwen3Model}  # noqa: RUF012
    tokenizer_kinds = {"tokenizer": chat_tokenizer}  # noqa: RUF012
    usual_sampling = {"steps": 50, "guidance": 5.0}  # noqa: RUF012
    usual_inputs = 16
    usual_scale = 0.3611
    usual_shift = 0.1159
    lora_targets = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")

    @property
    def layout(self) -> Layout:
        """Tokens are squares of 2 × 2 elements of the latent."""
        token = 2 * self.stride
        return Layout(self.channels, self.stride, token, self.files.side or SIDE, drawn=token)

    @property
    def prompt_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Qwen's states of the longest prompt."""
        return {"prompt_embeds": (TOKENS, self.files.config("text_encoder").get("hidden_size", 2560))}

    def check_denoiser(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the transformer reads text of another width."""
        if (width := config.get("cap_feat_dim", 2560)) != (given := self.prompt_shapes["prompt_embeds"][1]):
            raise MapoError(
                f"{path} reads text of {width} numbers a token, the text encoder gives {given}. Download both from the "
                "model's page."
            )

    def text_encoder(self, device: Any, dtype: Any = torch.float32) -> TextEncoder:
        """The states of each prompt's own tokens, one "l d" for each."""
        (tokenizer,) = self.tokenizers()
        encoder = self.files.load("text_encoder", Qwen3Model, dtype).to(device).eval()

        @torch.no_grad()
        def encode(prompts: Sequence[str]) -> Texts:
            asked = [in_template(tokenizer, prompt) for prompt in prompts]
            found = tokenizer(asked, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
            mask = found.attention_mask.to(encoder.device).bool()
            states = encoder(found.input_ids.to(encoder.device), attention_mask=mask, output_hidden_states=True)
            pairs = zip(states.hidden_states[-2], mask, strict=True)
            return {"prompt_embeds": [state[own] for state, own in pairs]}

        return encode

    def condition(self, text: Cond, frames: Frames) -> Cond:
        """The prompts' states as they are, with their lengths."""
        return text

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity "b c h w", noise − x₀."""
        states = cond["prompt_embeds"].to(x_t.dtype)
        lengths = cond["prompt_embeds_length"].tolist() if "prompt_embeds_length" in cond else [None] * len(states)
        texts = [state[:length] for state, length in zip(states, lengths, strict=True)]
        made = denoiser(list(x_t.unsqueeze(2)), (1000 - t) / 1000, texts, return_dict=False)[0]
        return -torch.stack(list(made)).squeeze(2)
