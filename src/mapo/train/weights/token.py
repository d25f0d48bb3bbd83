"""The placeholder token of ``adapter.token``: one row of each text encoder's table of words that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from mapo.errors import MapoError, count
from mapo.models import Opened, open_model
from mapo.models.token import Token, number_of, pieces_of
from mapo.pairs import PairSet
from mapo.train.sections import AdapterConfig

ROW = "token_embedding.row"  # how the names of what is trained of a token end
BEFORE, BEHIND = "a photo of", "on a table"
FEW = 100  # words of a tokenizer that can all be named
ANOTHER = "Take another, such as <my-dog>."


class WithRow(nn.Module):
    """A table of words, frozen, and beside it the one row that is trained.

    The table has the row as training found it, which is what the reference reads (``at_start``).
    """

    def __init__(self, table: nn.Embedding, number: int) -> None:
        super().__init__()
        self.table, self.number, self.at_start = table.requires_grad_(False), number, False
        row = table.weight.detach()[number].clone()
        self.row = nn.Parameter(row.float() if row.dtype in (torch.float16, torch.bfloat16) else row)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens "…" become rows "… d"."""
        found: Tensor = self.table(tokens)
        if self.at_start:
            return found
        return torch.where((tokens == self.number)[..., None], self.row.to(found.dtype), found)


def train_row(encoders: Mapping[str, nn.Module], model: Opened) -> None:
    """Make the token's row of each text encoder trainable, in place."""
    token = model.files.token
    assert token is not None
    for encoder, tokenizer in zip(encoders.values(), model.tokenizers(), strict=True):
        table = encoder.get_input_embeddings()  # type: ignore[operator]
        encoder.set_input_embeddings(WithRow(table, number_of(tokenizer, token.word)))  # type: ignore[operator]


def row_of(encoder: nn.Module) -> Tensor:
    """The row that is trained, "d"."""
    return next(module.row.detach() for module in encoder.modules() if isinstance(module, WithRow))


def with_token(model: Opened, config: AdapterConfig) -> Opened:
    """The model as it reads prompts that have ``adapter.token``, which it may know already; as it is without one.

    MapoError where the token cannot be one of this model, or nothing says where it begins.
    """
    word, known = config.token, model.files.token
    if word is None or (known is not None and known.word == word):
        return model
    if known is not None:
        raise MapoError(
            f"adapter.token: {model.files.name} has learned {known.word} already, and a model has one such token. "
            f"Train {known.word} further, or train {word} from the model that this one was made from."
        )
    if config.token_from is None:
        raise MapoError(
            f"adapter.token: nothing says where {word} begins. Name a word of its kind, such as "
            "--set adapter.token_from=dog."
        )
    for tokenizer in model.tokenizers():
        _check_start(tokenizer, config.token_from)
        _check_word(tokenizer, word)
    return open_model(replace(model.files, token=Token(word, begins=config.token_from)), to_train=False)


def _check_word(tokenizer: Any, word: str) -> None:
    """MapoError where a tokenizer has the word, or would not take it for one token. It is given the word here."""
    if word.split() != [word]:
        raise MapoError(f"adapter.token {word!r}: a token has no spaces and is not empty. {ANOTHER}")
    words = [known.removesuffix("</w>") for known in tokenizer.get_vocab()]
    if word.lower() in words or word in words:
        raise MapoError(f"adapter.token: {word} is a word that the model's tokenizer has already. {ANOTHER}")
    whole = next((known for known in words if word.lower() in known), None)
    if whole is not None:
        raise MapoError(f"adapter.token: {word} is a part of the word {whole}, which would break in two. {ANOTHER}")
    around = [*pieces_of(tokenizer, BEFORE), *pieces_of(tokenizer, BEHIND)]
    tokenizer.add_tokens(word)
    number = number_of(tokenizer, word)
    found = pieces_of(tokenizer, f"{BEFORE} {word} {BEHIND}")
    if found.count(number) != 1 or [one for one in found if one != number] != around:
        raise MapoError(f"adapter.token: the model's tokenizer splits {word} into several tokens. {ANOTHER}")


def _check_start(tokenizer: Any, words: str) -> None:
    """MapoError where a tokenizer does not know one of the class words: it has nothing but letters for it."""
    for word in words.split() or [words]:
        pieces = [one.removesuffix("</w>") for one in tokenizer.convert_ids_to_tokens(pieces_of(tokenizer, word))]
        spelled = len(word) > 1 and all(len(piece) == 1 for piece in pieces)
        if spelled or tokenizer.unk_token in pieces:
            raise MapoError(
                f"adapter.token_from: the model's tokenizer does not know the word {word!r}, of which it has "
                f"the letters alone. {_other_word(tokenizer)}"
            )


def _other_word(tokenizer: Any) -> str:
    """Which word to take instead: those of a tokenizer that has few are named."""
    words = sorted(one.removesuffix("</w>") for one in tokenizer.get_vocab() if one.endswith("</w>") and len(one) > 5)
    words = [word for word in words if word.isalpha()]
    return f"It knows {', '.join(words)}." if len(words) <= FEW else "Take a commoner word of that kind."


def check_captions(config: AdapterConfig, model: Opened, pairs: PairSet, rows: np.ndarray) -> list[str]:
    """How many of the captions that are trained on have the token, and where it begins as several, a sentence each.

    Nothing without a token. MapoError where no caption has it.
    """
    word, token = config.token, model.files.token
    if word is None or token is None:
        return []
    captions = pairs.table["prompt"].take(rows)
    having = pc.sum(pc.match_substring(captions, word, ignore_case=True)).as_py() or 0
    if not having:
        raise MapoError(
            f"adapter.token: no caption that is trained on in {pairs.folder} has {word} in it, so nothing would be "
            "learned of it. Write it into the captions of its pictures."
        )
    said = [f"{word} stands in the captions of {having:,} of {count(len(captions), 'pair')}."]
    pieces = pieces_of(model.tokenizers()[0], token.begins)
    if len(pieces) > 1:
        said.append(f"{token.begins!r} is {count(len(pieces), 'token')} to the model; {word} begins at their mean.")
    return said
