"""What training sees of a set: which pairs, what of each picture, how much of each prompt.

``train``, ``encode``, ``mismatch`` and ``check`` ask here, so that all of them count the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mapo.encode.buckets import Framing, framed, frames, framing
from mapo.encode.frame import Frame, square
from mapo.errors import MapoError, count
from mapo.pairs.schema import TIE
from mapo.pairs.splits import SPLITS

if TYPE_CHECKING:
    from mapo.encode.cache import Cache
    from mapo.models import Opened
    from mapo.pairs import PairSet

MUCH = 0.1  # a picture of which more than this is cut away is counted
OFTEN = 2_000  # words that are counted in any case
GROWTH = 3  # bytes that a byte of a letter can become, at most, in lower case and composed
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """A model's way of looking: its frames (the square first), its tokenizers, the most tokens (with begin and end)
    they read."""

    name: str
    frames: tuple[Frame, ...]
    tokenizers: tuple[Any, ...]
    most_tokens: int
    long_prompts: str = "cut"  # or "chunk": then nothing is cut off

    @property
    def resolution(self) -> int:
        """The side of the square."""
        return self.frames[0].height


@dataclass(frozen=True)
class Choice:
    """The rows that are trained on, the pairs in ``other_splits``, and the ties inside the split."""

    rows: Rows
    held_out: int
    other_splits: tuple[str, ...]
    ties: int
    ties_kept: bool

    def line(self) -> str:
        """What a person should know before training, in one line."""
        told = [f"Training on {count(len(self.rows), 'pair')}"]
        if self.held_out:
            told.append(f"{self.held_out:,} held out ({', '.join(self.other_splits)})")
        left = [f"{count(self.ties, 'tie')} {'kept' if self.ties_kept else 'left out'}"] if self.ties else []
        left += self.losses()
        return "; ".join([*told, ", ".join(left)] if left else told) + "."

    def losses(self) -> list[str]:
        """What is cut off, in words; empty where nothing is or it is not known."""
        return []


@dataclass(frozen=True)
class Seen(Choice):
    """A choice, with what is lost of its pictures and prompts."""

    cropped: int  # pictures of which the crop cuts away more than a tenth
    cut_prompts: int  # distinct prompts longer than the encoders read
    most_tokens: int

    def losses(self) -> list[str]:
        """What is cut off, in words; empty where nothing is."""
        told = []
        if self.cropped:
            told.append(f"{count(self.cropped, 'picture')} cropped by more than a tenth")
        if self.cut_prompts:
            told.append(f"{count(self.cut_prompts, 'prompt')} cut at {self.most_tokens} tokens")
        return told


def what_training_sees(
    pairs: PairSet, model: Opened, *, split: str = "train", ties: str = "drop", resolution: int | None = None,
    buckets: bool = False,
) -> Seen:  # fmt: skip
    """What a training with these settings sees of ``pairs``; MapoError where that is nothing."""
    return look(pairs, view_of(model, resolution, buckets), choose(pairs, split, ties))


def look(pairs: PairSet, view: View, choice: Choice) -> Seen:
    """What is lost of the pictures and prompts of a choice."""
    cut_away = framing(pairs, view.frames).cut_away(pairs)
    much = np.zeros(pairs.number_of_images(), bool)
    for side, share in zip(pairs.sides, cut_away, strict=True):
        much[pairs.places_of(side)[choice.rows][share[choice.rows] > MUCH]] = True
    cropped = int(much.sum())
    prompts = pairs.table["prompt"]
    prompts = prompts if len(choice.rows) == len(pairs) else prompts.take(choice.rows)
    cut = int((excess_tokens(view, prompts.unique()) > 0).sum())
    return Seen(**vars(choice), cropped=cropped, cut_prompts=cut, most_tokens=view.most_tokens)


def equal_once_cropped(cache: Cache, pairs: PairSet, rows: Rows, seen_in: Framing) -> int:
    """How many of these pairs differ only in what the crop cuts away; ``cache`` tells by their latents."""
    if not pairs.has_rejected:
        return 0
    chosen_cut, rejected_cut = seen_in.cut_away(pairs)
    some = rows[(chosen_cut[rows] > 0) | (rejected_cut[rows] > 0)]
    names = (pairs.table[side].take(some).to_pylist() for side in ("chosen", "rejected"))
    chosen, rejected = (
        [framed(name, seen_in.of(row), cache.resolution) for name, row in zip(side, some, strict=True)]
        for side in names
    )
    return cache.equal_pairs(chosen, rejected)


def choose(
    pairs: PairSet, split: str, ties: str, where: str = "--set data.split=all", keep: str = "--set data.ties=keep"
) -> Choice:
    """The pairs of ``split`` ("all": of any) that are trained on; MapoError where there are none.

    ``where`` and ``keep`` are the options that ask for all splits, and for ties (empty: they cannot be kept).
    """
    choice = choose_any(pairs, split, ties)
    if not len(choice.rows):
        hint = f"keep ties with {keep}" if choice.ties and keep else f"try {where}"
        but = f" but {count(choice.ties, 'tie')}" if choice.ties else ""
        raise MapoError(f"{pairs.folder} has no pairs{but} in the split {split!r}; {hint}.")
    return choice


def choose_any(pairs: PairSet, split: str, ties: str = "drop") -> Choice:
    """:func:`choose` that may come back with no rows."""
    splits = pairs.table["split"]
    inside = np.ones(len(pairs), bool) if split == "all" else pc.equal(splits, split).to_numpy()
    tie = pairs.table["preference"].to_numpy() == TIE
    others = set(pc.unique(splits).to_pylist()) - {split} if split != "all" else set()
    kept = ties == "keep"
    return Choice(
        np.flatnonzero(inside & (kept | ~tie)), int((~inside).sum()), tuple(s for s in SPLITS if s in others),
        int((inside & tie).sum()), kept,
    )  # fmt: skip


def with_chunks(model: Opened, pairs: PairSet) -> Opened:
    """The model as it reads the prompts of a set: each as many chunks long as the longest of all splits.

    So what becomes of a pair does not depend on the others of its batch. Without chunks it is the model itself.
    """
    if model.files.long_prompts == "cut":
        return model
    from mapo.models import open_model

    chunks = chunks_needed(view_of(model), pairs.table["prompt"].unique())
    return open_model(replace(model.files, chunks=max(model.files.chunks, chunks)), to_train=False)


def view_of(model: Opened, resolution: int | None = None, buckets: bool = False) -> View:
    """How a model looks at a set. Only small files of it are read."""
    tokenizers = model.tokenizers()
    most = max(int(t.model_max_length) for t in tokenizers)  # T5 reads on where CLIP has ended
    return View(model.files.name, frames_of(model, resolution, buckets), tokenizers, most, model.files.long_prompts)


def frames_of(model: Opened, resolution: int | None, buckets: bool) -> tuple[Frame, ...]:
    """The frames in which pictures may be seen: the square, and with ``buckets`` others of about its area."""
    side = model.layout.checked(resolution)
    return frames(side, model.layout.multiple, model.layout.most) if buckets else (square(side),)


def open_view(model: str, buckets: bool = False, **told: Any) -> View:
    """The view of ``mini``, a folder, a file, a run or a hub id, of which only small files are fetched.

    It is ``told`` of what :func:`mapo.models.find_model` may be told.
    """
    from mapo.models import find_model, open_model

    opened = open_model(find_model(model, weights=False, **told))
    opened.lora_layers()  # which refuses a LoRA of another model
    return view_of(opened, buckets=buckets)


def excess_tokens(view: View, prompts: Sequence[str] | pa.Array) -> NDArray[np.int64]:
    """How many tokens of each prompt, begin and end counted, are more than every encoder reads; 0 where none is."""
    texts = prompts if isinstance(prompts, pa.Array) else pa.array(prompts, pa.string())
    if view.long_prompts == "chunk" or not len(texts):
        return np.zeros(len(texts), np.int64)
    return np.asarray(np.min([np.maximum(n - most, 0) for n, most in _own_tokens(view, texts)], axis=0))


def chunks_needed(view: View, prompts: pa.Array) -> int:
    """The chunks of the longest prompt: each holds as many tokens as an encoder reads, but for begin and end."""
    return max((int(-(-n.max() // most)) for n, most in _own_tokens(view, prompts) if len(n)), default=1) or 1


def _own_tokens(view: View, texts: pa.Array) -> Iterator[tuple[NDArray[np.int64], int]]:
    """For each tokenizer that cuts words in its own way: the number of each prompt's tokens without begin and end, and
    how many its encoder reads. Where a prompt surely has no more than that, the number is only an upper bound.

    No token reaches over a space, so a word is counted once, however many prompts have it, and the rare words only of
    prompts that may be too long at all: 10⁵ prompts take a second.
    """
    lists = pc.split_pattern(texts, " ")
    coded = lists.flatten().dictionary_encode()
    words, places, ends = coded.dictionary, coded.indices.to_numpy(), lists.offsets.to_numpy()
    ascii_only = np.asarray(pc.string_is_ascii(words))
    bounds = np.asarray(pc.binary_length(words)).astype(np.int64) * np.where(ascii_only, 1, GROWTH)
    often = np.argsort(-np.bincount(places, minlength=len(words)), kind="stable")[:OFTEN]
    for tokenizer in _different(view.tokenizers):
        most = int(tokenizer.model_max_length) - len(tokenizer("").input_ids)
        lengths = bounds.copy()
        lengths[often] = _lengths(tokenizer, words.take(often))
        doubtful = np.repeat(_sums(lengths, places, ends) > most, np.diff(ends))
        rare = np.setdiff1d(places[doubtful], often)
        lengths[rare] = _lengths(tokenizer, words.take(rare))
        yield _sums(lengths, places, ends), most


def _different(tokenizers: Sequence[Any]) -> list[Any]:
    """The tokenizers without those that cut words as an earlier one does."""
    found: list[Any] = []
    for tokenizer in tokenizers:
        if not any(type(t) is type(tokenizer) and t.get_vocab() == tokenizer.get_vocab() for t in found):
            found.append(tokenizer)
    return found


def _lengths(tokenizer: Any, words: pa.Array) -> NDArray[np.int64]:
    if not len(words):
        return np.zeros(0, np.int64)
    ids = tokenizer(words.to_pylist(), add_special_tokens=False, truncation=False, verbose=False).input_ids
    return np.array([len(i) for i in ids], np.int64)


def _sums(lengths: NDArray[np.int64], places: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    sums = np.concatenate([[0], np.cumsum(lengths[places])])
    return np.asarray(sums[ends[1:]] - sums[ends[:-1]])
