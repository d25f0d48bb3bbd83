"""Batches as pure functions of the number of pairs seen and the seed.

Position k of a run (its k-th pair) decides which pair comes, its noise, timestep and flip: that is :func:`draws`. What
becomes of them is :func:`assemble`. So a resumed run is the uninterrupted one, and neither the number of devices nor
the size of micro-batches changes what is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from mapo.encode.buckets import Framing
from mapo.encode.cache import Cache
from mapo.encode.frame import Frame, square
from mapo.errors import MapoError, count
from mapo.models import Cond, Frames, Opened, TokenModel, together
from mapo.models.family import filled_up
from mapo.models.noise.process import Process
from mapo.pairs.pairs import Pair, PairSet
from mapo.train.types import Batch

T = TypeVar("T")
MOST_TOLD = 4  # frames that are told of


def seed_of(*parts: object) -> int:
    """A seed that these decide, whatever the machine."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def generator_on(device: torch.device) -> torch.Generator:
    """A generator of this device. Where tensors have no numbers, any will do."""
    return torch.Generator("cpu" if device.type == "meta" else device)


class Members(Sequence[Pair]):
    """Some pairs of a set, each read when it is asked for.

    ``weights`` are theirs, an array "n"; ``certain`` says that the preference of each is 1.
    """

    def __init__(self, pairs: PairSet, rows: np.ndarray, seen_in: Framing | None = None) -> None:
        self.pairs, self.rows, self.seen_in = pairs, rows, seen_in
        self.weights = pairs.table["weight"].to_numpy()[rows]
        self.certain = bool((pairs.table["preference"].to_numpy()[rows] == 1).all())
        with np.errstate(over="ignore"):
            if not np.isfinite(self.weights.sum()):
                raise MapoError(
                    f"{pairs.folder}: the weights of its pairs are so large that their sum is infinite (the largest is "
                    f"{self.weights.max():g}). Divide all of them by one number; only their ratios count."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def frame(self, index: int) -> Frame | None:
        """The frame in which both pictures of a pair are seen; None: the square of the cache."""
        return self.seen_in.of(int(self.rows[index])) if self.seen_in else None

    def told(self) -> str:
        """How many pairs are seen in which frame, in a sentence."""
        assert self.seen_in is not None
        found = list(replace(self.seen_in, of_pair=self.seen_in.of_pair[self.rows]).counts())
        some = ", ".join(f"{frame} ({number:,})" for frame, number in found[:MOST_TOLD])
        rest = f", and {count(len(found) - MOST_TOLD, 'other')}" if len(found) > MOST_TOLD else ""
        return f"Seen in {count(len(found), 'frame')}, width × height and pairs of each: {some}{rest}."

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self.pairs[int(row)] for row in self.rows[index]]
        return self.pairs[int(self.rows[index])]


@lru_cache(maxsize=4)
def _order(number: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(seed_of("order", seed, epoch)).permutation(number)


def rows_at(positions: Iterable[int], number: int, seed: int) -> list[int]:
    """The rows of the pairs at ``positions``: every epoch is a fresh permutation of ``number`` rows."""
    return [int(_order(number, seed, k // number)[k % number]) for k in positions]


@dataclass(frozen=True)
class Draw:
    """What is drawn for one pair of a step: ``row`` of the set, timestep "", noise and posterior samples "c h w"."""

    row: int
    time: Tensor
    flip: bool
    noise: Tensor
    samples: tuple[Tensor, Tensor]  # for the chosen and the rejected image
    without_prompt: bool = False


def draws(
    positions: Iterable[int], number: int, process: Process, shape: tuple[int, ...], *, seed: int, flip: bool = False,
    caption_dropout: float = 0.0,
) -> list[Draw]:  # fmt: skip
    """What the pairs at ``positions`` of a run over ``number`` pairs are given; ``shape`` is that of a latent, "c h w".

    One timestep, one noise and one flip for both images of a pair. In the share ``caption_dropout`` of all draws both
    are without their prompt.
    """
    found = []
    for position, row in zip(positions, rows_at(positions, number, seed), strict=True):
        generator = torch.Generator().manual_seed(seed_of("pair", seed, position))
        time = process.draw_time(1, generator, shape)[0]
        mirrored = bool(torch.rand((), generator=generator) < 0.5) and flip
        noise, *samples = (torch.randn(shape, generator=generator) for _ in range(3))
        dropped = caption_dropout > 0 and bool(torch.rand((), generator=generator) < caption_dropout)
        found.append(Draw(row, time, mirrored, noise, (samples[0], samples[1]), dropped))
    return found


def assemble(
    pairs: Sequence[Pair], drawn: Sequence[Draw], cache: Cache, model: Opened, dtype: torch.dtype = torch.float32,
    *, as_tokens: bool = False, frame: Frame | None = None,
) -> Batch:  # fmt: skip
    """The batch of some draws: chosen images first, then the rejected ones, if any, in the same order.

    All are seen in one ``frame``; without one it is the square of the cache.
    With ``as_tokens`` prompts are tokens, which the text encoders still have to read (``opening.WithText``).
    """
    members = [pairs[draw.row] for draw in drawn]
    images = [(pair.chosen, draw, 0) for pair, draw in zip(members, drawn, strict=True)]
    images += [(pair.rejected, draw, 1) for pair, draw in zip(members, drawn, strict=True) if pair.rejected]
    latents = []
    for name, draw, side in images:
        mean, logvar = (values.float() for values in cache.latents(name, draw.flip, frame))
        latents.append(mean + (0.5 * logvar.clamp(-30, 20)).exp() * draw.samples[side])
    texts = tokens = []
    if as_tokens:
        assert isinstance(model, TokenModel)
        tokens = [tokens_of(pair, draw, model, model) for pair, draw in zip(members, drawn, strict=True)]
    else:
        texts = [text_of(pair, draw, cache, model) for pair, draw in zip(members, drawn, strict=True)]
    sizes = torch.stack([cache.size(name, frame) for name, _, _ in images])
    frames = Frames.alike(sizes, frame or square(cache.resolution))
    return Batch(
        model.scale(torch.stack(latents)).to(dtype),
        model.condition(together(texts), frames),  # of the prompt a row for each pair: moved to the device once
        torch.tensor([pair.preference for pair in members], dtype=torch.float64),
        torch.tensor([pair.weight for pair in members], dtype=torch.float64),
        torch.stack([draw.noise for draw in drawn]).to(dtype),
        torch.stack([draw.time for draw in drawn]),
        tuple(pair.id for pair in members),
        together(tokens),
        all(pair.preference == 1 for pair in members),
    )


def portions(items: Iterable[T], most: int, kind: Callable[[T], Hashable]) -> list[list[T]]:
    """``items`` in portions of at most ``most``, each of one kind. Those of a kind keep their order."""
    kinds: dict[Hashable, list[T]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    return [alike[k : k + most] for alike in kinds.values() for k in range(0, len(alike), most)]


def text_of(pair: Pair, draw: Draw, cache: Cache, model: Opened) -> Cond:
    """What the denoiser is told of a pair's prompt; without prompt it is what the pipeline gives in guidance for none.

    Where prompts are read in chunks it is as long as that of the longest prompt of the run.
    """
    text = cache.text("" if draw.without_prompt and not model.zero_without_prompt else pair.prompt)
    if model.files.long_prompts == "chunk":
        text = filled_up(text, cache.text(""), model.files.chunks)
    if draw.without_prompt and model.zero_without_prompt:
        return {name: torch.zeros_like(value) for name, value in text.items()}
    return text


def tokens_of(pair: Pair, draw: Draw, model: Opened, reader: TokenModel) -> Cond:
    """The tokens of a pair's prompt; ``zero`` is 1 where the denoiser is to be told zeros in place of its states."""
    zero = draw.without_prompt and model.zero_without_prompt
    own, empty = reader.tokens(["" if draw.without_prompt else pair.prompt, ""])
    return {**filled_up(own, empty, model.files.chunks), "zero": torch.tensor(zero)}


def prefetched(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of ``jobs`` in order, each computed while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for job in jobs:
            upcoming = pool.submit(job)
            if waiting is not None:
                yield waiting.result()
            waiting = upcoming
        if waiting is not None:
            yield waiting.result()
