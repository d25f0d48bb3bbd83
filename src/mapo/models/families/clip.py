"""CLIP's tokenizers and text encoders, as the pipelines of Stable Diffusion use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from mapo.errors import MapoError, count
from mapo.models.families.tokens import open_tokenizer
from mapo.models.files import ModelFiles


def clip_tokenizer(files: ModelFiles, part: str, encoder_part: str) -> CLIPTokenizer:
    """The tokenizer of a CLIP text encoder, with the token that was learned. It reads no more tokens than the encoder
    has places for."""
    tokenizer = open_tokenizer(CLIPTokenizer, "CLIPTokenizer", files, part, encoder_part)
    if files.token is not None:
        tokenizer.add_tokens(files.token.word)
    return limited(tokenizer, files.config(encoder_part))


def limited(tokenizer: Any, encoder: Mapping[str, Any]) -> Any:
    """The tokenizer, which now reads no more tokens than its text encoder, of this configuration, has places for."""
    tokenizer.model_max_length = int(min(tokenizer.model_max_length, encoder.get("max_position_embeddings") or 77))
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The tokens of n prompts, filled up and cut to what the encoder reads, "n l"; and 1 where a token is the prompt's
    own, 0 where it fills up, "n l"."""
    found = tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return found.input_ids, found.attention_mask


def tokenize_in_chunks(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """What :func:`tokenize` gives of each prompt, "1 l", and what it cuts off as further rows like it: "k l" twice.

    Every row begins, ends and is filled up as a prompt of its own, and holds 75 tokens of the text where l is 77, as in
    AUTOMATIC1111's web UI (modules/sd_hijack_clip.py) and ComfyUI (comfy/sd1_clip.py). The first one moves a cut back
    to the last comma, which is not done here.
    """
    ids, mask = tokenize(tokenizer, prompts)
    length = ids.shape[1]
    texts = tokenizer(list(prompts), add_special_tokens=False, truncation=False, verbose=False).input_ids
    found = []
    for row, text in enumerate(texts):
        rows, masks = [ids[row]], [mask[row]]
        for start in range(length - 2, len(text), length - 2):
            own = [tokenizer.bos_token_id, *text[start : start + length - 2], tokenizer.eos_token_id]
            rows.append(torch.tensor(own + [tokenizer.pad_token_id] * (length - len(own))))
            masks.append((torch.arange(length) < len(own)).to(mask.dtype))
        found.append((torch.stack(rows), torch.stack(masks)))
    return found


def in_one_row(states: Tensor, tokens: Tensor) -> Tensor:
    """The states of each chunk "(n k) l d" behind each other, "n (k l) d"; ``tokens`` are theirs, "n k l"."""
    return states.reshape(len(tokens), -1, states.shape[-1])


def leave_out_last_layers(encoder: Any, number: int) -> Any:
    """The text encoder without its last ``number`` layers, in place.

    So its last state is final_layer_norm(hidden_states[−(number + 1)]), which is called clip_skip ``number``.
    """
    inner = getattr(encoder, "text_model", encoder)  # transformers 5 has one level less
    layers = inner.encoder.layers
    inner.encoder.layers = layers[: len(layers) - number]
    encoder.config.num_hidden_layers = len(inner.encoder.layers)
    return encoder


def check_clip_skip(files: ModelFiles, encoder_part: str) -> None:
    """MapoError where the text encoder has not so many layers to leave out."""
    layers = files.config(encoder_part).get("num_hidden_layers") or 12
    if files.clip_skip >= layers:
        raise MapoError(
            f"clip_skip is {files.clip_skip}, but the text encoder of {files.name} has {count(layers, 'layer')}. "
            "Leave out fewer."
        )
