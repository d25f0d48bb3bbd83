"""What a model's text encoders read of a prompt: asked of its tokenizers, without loading any weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

AT_ONCE = 1024


@dataclass(frozen=True)
class Encoder:
    """A model's tokenizers, the most tokens that all of them read (with begin and end), and its side in pixels."""

    name: str
    tokenizers: tuple[Any, ...]
    most_tokens: int
    resolution: int


def open_encoder(model: str) -> Encoder:
    """The tokenizers of ``mini``, a folder, a run or a hub id, of which only small files are fetched."""
    from mapo.families import family_of, find_model

    found = find_model(model, weights=False)
    family = family_of(found)
    tokenizers = family.load_tokenizers(found)
    most = min(int(t.model_max_length) for t in tokenizers)
    return Encoder(model, tokenizers, most, family.resolution(found))


def tokens(encoder: Encoder, prompts: Sequence[str]) -> NDArray[np.int64]:
    """How many tokens each prompt takes, with begin and end, in the tokenizer that needs most."""
    unique = list(dict.fromkeys(prompts))
    needed: dict[str, int] = {}
    for start in tqdm(range(0, len(unique), AT_ONCE), desc="tokens", unit="k prompt", disable=None):
        part = unique[start : start + AT_ONCE]
        each = [t(part, truncation=False, verbose=False).input_ids for t in encoder.tokenizers]
        needed |= {prompt: max(map(len, ids)) for prompt, *ids in zip(part, *each, strict=True)}
    return np.array([needed[prompt] for prompt in prompts], np.int64)
