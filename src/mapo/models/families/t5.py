"""T5's tokenizer and text encoder, as the pipelines of Stable Diffusion 3 and FLUX use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import T5EncoderModel, T5TokenizerFast

from mapo.models.families.tokens import open_tokenizer
from mapo.models.files import ModelFiles


def t5_tokenizer(tokens: int) -> Callable[[ModelFiles, str, str], Any]:
    """A loader of T5's tokenizer, which reads ``tokens``, or as many as the model folder says."""

    def load(files: ModelFiles, part: str, encoder_part: str) -> Any:
        tokenizer = open_tokenizer(T5TokenizerFast, "T5Tokenizer", files, part, encoder_part)
        tokenizer.model_max_length = tokens if files.text_tokens is None else files.text_tokens
        return tokenizer

    return load


def t5_states(
    files: ModelFiles, part: str, tokenizer: Any, device: Any, dtype: Any
) -> Callable[[Sequence[str]], Tensor]:
    """Loads the encoder. n prompts → its last states "n l d"; what fills up is not masked, as in the pipelines."""
    encoder = files.load(part, T5EncoderModel, dtype).to(device).eval()

    def encode(prompts: Sequence[str]) -> Tensor:
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        states: Tensor = encoder(ids.to(encoder.device))[0]
        return states

    return encode
