"""CLIP's tokenizers and text encoders, as the pipelines of Stable Diffusion use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPTokenizer

from mapo.errors import MapoError, count
from mapo.models.files import TOKENIZER_CONFIG, ModelFiles, not_whole, quietly

SPARE = 128  # rows that an encoder's table of words may have beyond its tokenizer's, as tables are padded


def load_tokenizer(files: ModelFiles, part: str, encoder_part: str) -> CLIPTokenizer:
    """The tokenizer of a text encoder. It reads no more tokens than the encoder has places for."""
    check_tokenizer_files(files.base, part)
    encoder = files.config(encoder_part)
    try:
        with quietly():
            tokenizer = CLIPTokenizer.from_pretrained(files.base, subfolder=part)
    except Exception as error:
        raise not_whole(files.base, part, error) from None
    check_vocabulary(files.base, tokenizer, part, encoder, encoder_part)
    if tokenizer.pad_token_id is None:
        raise MapoError(
            f"{files.base / part / TOKENIZER_CONFIG} has no pad_token, so nothing says what prompts are filled up "
            "with. Take the file from the model's own page."
        )
    return limited(tokenizer, encoder)


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


def check_tokenizer_files(base: Path, part: str) -> None:
    """MapoError where a tokenizer's folder lacks what decides tokens: a library would make one of two tokens up."""
    folder = base / part
    if not folder.is_dir():
        raise MapoError(f"The model folder {base} is not whole: {part}/ is missing. Download it from the model's page.")
    whole = (folder / "tokenizer.json").is_file() or all((folder / f).is_file() for f in ("vocab.json", "merges.txt"))
    if not whole:
        raise MapoError(
            f"The model folder {base} is not whole: {part}/ has no vocabulary (vocab.json and merges.txt, or "
            "tokenizer.json). Download it from the model's page."
        )
    if not (folder / TOKENIZER_CONFIG).is_file():
        raise MapoError(
            f"The model folder {base} is not whole: {part}/tokenizer_config.json is missing. It says how many "
            "tokens are read and with what prompts are filled up. Download it from the model's page."
        )


def check_vocabulary(base: Path, tokenizer: Any, part: str, encoder: dict[str, Any], encoder_part: str) -> None:
    """MapoError where a tokenizer's words are not those of its text encoder."""
    words, rows = len(tokenizer), encoder.get("vocab_size")
    if not isinstance(rows, int) or not words <= rows < words + SPARE:
        raise MapoError(
            f"The model folder {base} does not fit together: {part}/ has {words} tokens, "
            f"{encoder_part}/config.json {rows or 'names no number'}. Download both from the model's page."
        )
