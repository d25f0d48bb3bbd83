"""A placeholder token that was learned in training (textual inversion): its word, and its row in each text encoder.

Its file holds a row "1 d" for each text encoder, by the names that other programs read, and the word in its metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mapo.errors import MapoError, reason
from mapo.models.parts.fingerprints import add_samples
from mapo.models.parts.tensors import save_tensors

TOKEN_FILE = "learned_embeds.safetensors"
NAMES = {1: ("emb_params",), 2: ("clip_l", "clip_g")}  # of the rows, by how many text encoders there are
WRONG_END = 2  # in the configurations of CLIP's encoders that take the highest token of a prompt for its end
REMEDY = "Put the file that `mapo train` wrote back there, or train that run again."


@dataclass(frozen=True)
class Token:
    """A word that a model has beside those of its tokenizers, and where its rows lie.

    Where nothing of it is learned yet there is no ``path``, and it ``begins`` as another word.
    """

    word: str
    path: Path | None = None
    begins: str = ""

    def fingerprint(self) -> str:
        """A hash of what was learned, and of the word; empty where nothing was."""
        if self.path is None:
            return ""
        digest = hashlib.sha256(self.word.encode())
        add_samples(digest, self.path, "token")
        return digest.hexdigest()[:16]

    def row(self, place: int, encoders: int) -> Tensor:
        """What was learned in one of so many text encoders, "d"; MapoError where the file is damaged."""
        assert self.path is not None
        try:
            with safe_open(self.path, "pt") as file:
                found: Tensor = file.get_tensor(NAMES[encoders][place])
        except (OSError, SafetensorError) as error:
            raise MapoError(f"{self.path} is damaged ({reason(error)}). {REMEDY}") from None
        if found.ndim != 2 or len(found) != 1 or not bool(found.isfinite().all()):
            raise MapoError(f"{self.path} is damaged: {NAMES[encoders][place]} is not one row of numbers. {REMEDY}")
        return found[0]


def number_of(tokenizer: Any, word: str) -> int:
    """The number by which a tokenizer that has the word knows it."""
    found: int = tokenizer.convert_tokens_to_ids(word)
    return found


def pieces_of(tokenizer: Any, words: str) -> list[int]:
    """The tokens of some words alone."""
    found: list[int] = tokenizer(words, add_special_tokens=False).input_ids
    return found


def lay_token(encoder: Any, tokenizer: Any, token: Token, place: int, encoders: int) -> None:
    """Give a CLIP text encoder, the ``place``-th of so many, the row of a token, in place. All other rows stay.

    The pooled output is taken where the prompt ends. Encoders that look for the highest number of a prompt would take
    that of the token, which is higher than the end's.
    """
    table, number = encoder.get_input_embeddings(), number_of(tokenizer, token.word)
    old: Tensor = table.weight.detach()
    if token.path is None:
        row = old[pieces_of(tokenizer, token.begins)].mean(0)
    else:
        row = token.row(place, encoders).to(old)
        if row.shape != old.shape[1:]:
            raise MapoError(f"{token.path} has {len(row)} numbers for a text encoder of {old.shape[1]}. {REMEDY}")
    weight = torch.cat([old[:number], row[None], old[number + 1 :]])  # there may be rows of no word behind
    encoder.set_input_embeddings(nn.Embedding(len(weight), weight.shape[1], _weight=weight))
    encoder.config.vocab_size = len(weight)
    for one in (encoder.config, *encoder.modules()):
        if getattr(one, "eos_token_id", None) == WRONG_END:
            one.eos_token_id = tokenizer.eos_token_id


def write_token(path: Path, word: str, rows: Sequence[Tensor]) -> None:
    """Write the rows of a word, "d" of each text encoder, as :class:`Token` and other programs read them."""
    tensors = {name: row[None].float().cpu() for name, row in zip(NAMES[len(rows)], rows, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, path, {"format": "pt", "token": word})
