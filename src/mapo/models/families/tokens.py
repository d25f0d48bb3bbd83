"""Tokenizers on disk: whether their files are whole and fit their text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.models.files import ModelFiles
from mapo.models.parts.config import TOKENIZER_CONFIG
from mapo.models.parts.weights import not_whole, quietly

SPARE = 1024  # rows that an encoder's table of words may have beyond its tokenizer's, as tables are padded
UNSAID = ("TokenizersBackend", "PreTrainedTokenizerFast")  # names that say nothing of the kind; a file may have none
PROBE = "a photo of a cat on a red chair"
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))  # each is enough


def open_tokenizer(kind: Any, name: str, files: ModelFiles, part: str, encoder_part: str) -> Any:
    """The tokenizer of a text encoder, as the class ``kind`` loads it; MapoError where it is not whole or another's.

    ``name`` is the class that its file names, with or without "Fast".
    """
    check_tokenizer_files(files.base, part)
    check_class(files, part, name)
    encoder = files.config(encoder_part)
    try:
        with quietly():
            tokenizer = kind.from_pretrained(files.base, subfolder=part)
    except Exception as error:
        raise not_whole(files.base, part, error) from None
    check_vocabulary(files.base, tokenizer, part, encoder, encoder_part)
    if tokenizer.pad_token_id is None:
        raise MapoError(
            f"{files.base / part / TOKENIZER_CONFIG} has no pad_token, so nothing says what prompts are filled up "
            "with. Take the file from the model's own page."
        )
    check_reads(files.base, tokenizer, part)
    return tokenizer


def check_class(files: ModelFiles, part: str, name: str) -> None:
    """MapoError where a tokenizer's file names another class than ``name``."""
    said = files.config(part).get("tokenizer_class")
    if said is not None and said not in (name, f"{name}Fast", *UNSAID):
        raise MapoError(
            f"{files.config_path(part)} names {said}; the text encoder reads what a {name} makes of a prompt. Take "
            f"{part}/ from the model's own page."
        )


def check_reads(base: Path, tokenizer: Any, part: str) -> None:
    """MapoError where a tokenizer knows nothing of a plain sentence, so that all prompts would be the same to it."""
    ids = tokenizer(PROBE).input_ids
    if set(ids) <= {*tokenizer.all_special_ids, tokenizer.unk_token_id, tokenizer.pad_token_id}:
        raise MapoError(
            f"The tokenizer in {base / part} knows no word of {PROBE!r}, so all prompts would be the same to the "
            f"model. It is of another kind. Take {part}/ from the model's own page."
        )


def check_tokenizer_files(base: Path, part: str) -> None:
    """MapoError where a tokenizer's folder lacks what decides tokens: a library would make one of two tokens up."""
    folder = base / part
    if not folder.is_dir():
        raise MapoError(f"The model folder {base} is not whole: {part}/ is missing. Download it from the model's page.")
    if not any(all((folder / name).is_file() for name in names) for names in VOCABULARIES):
        raise MapoError(
            f"The model folder {base} is not whole: {part}/ has no vocabulary (vocab.json and merges.txt, "
            "spiece.model, or tokenizer.json). Download it from the model's page."
        )
    if not (folder / TOKENIZER_CONFIG).is_file():
        raise MapoError(
            f"The model folder {base} is not whole: {part}/tokenizer_config.json is missing. It says how many "
            "tokens are read and with what prompts are filled up. Download it from the model's page."
        )


def check_vocabulary(
    base: Path, tokenizer: Any, part: str, encoder: Mapping[str, Any], encoder_part: str
) -> None:  # fmt: skip
    """MapoError where a tokenizer's words are not those of its text encoder."""
    words, rows = len(tokenizer), encoder.get("vocab_size")
    if not isinstance(rows, int) or not words <= rows < words + SPARE:
        raise MapoError(
            f"The model folder {base} does not fit together: {part}/ has {words} tokens, "
            f"{encoder_part}/config.json {rows or 'names no number'}. Download both from the model's page."
        )
