"""Batches as pure functions of the number of pairs seen and the seed.

Position k of a run (its k-th pair) decides which pair comes, its noise, timestep and flip. So a resumed run is the
uninterrupted one, and neither the number of devices nor the size of micro-batches changes what is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from mapo.encode.cache import Cache
from mapo.models import Family, Model
from mapo.pairs.pairs import Pair, PairSet
from mapo.train.types import Batch

T = TypeVar("T")


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Members(Sequence[Pair]):
    """Some pairs of a set, each read when it is asked for. ``weights`` are theirs, an array "n"."""

    def __init__(self, pairs: PairSet, rows: np.ndarray) -> None:
        self.pairs, self.rows = pairs, rows
        self.weights = pairs.table["weight"].to_numpy()[rows]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self.pairs[int(row)] for row in self.rows[index]]
        return self.pairs[int(self.rows[index])]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(_seed("order", seed, epoch)).permutation(count)


def rows_at(positions: Iterable[int], count: int, seed: int) -> list[int]:
    """The rows of the pairs at ``positions``: every epoch is a fresh permutation of ``count`` rows."""
    return [int(_order(count, seed, k // count)[k % count]) for k in positions]


def load_batch(
    positions: Sequence[int],
    pairs: Sequence[Pair],
    cache: Cache,
    family: Family,
    model: Model,
    *,
    seed: int,
    resolution: int,
    num_timesteps: int,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """The pairs at ``positions``, chosen images first. One timestep, one noise and one flip for both of a pair."""
    chosen = [pairs[row] for row in rows_at(positions, len(pairs), seed)]
    means, deviations, samples, noises, timesteps, flips = [], [], [], [], [], []
    for position, pair in zip(positions, chosen, strict=True):
        draws = torch.Generator().manual_seed(_seed("pair", seed, position))
        timesteps.append(int(torch.randint(num_timesteps, (), generator=draws)))
        flips.append(bool(torch.rand((), generator=draws) < 0.5) and flip)
        encoded = [cache.latents(name, flips[-1]) for name in (pair.chosen, pair.rejected)]
        means.append([mean for mean, _ in encoded])
        deviations.append([(0.5 * logvar.clamp(-30, 20)).exp() for _, logvar in encoded])
        noises.append(torch.randn(encoded[0][0].shape, generator=draws))
        samples.append([torch.randn(mean.shape, generator=draws) for mean, _ in encoded])

    def side(values: list[list[Tensor]]) -> Tensor:
        return torch.stack([v[0] for v in values] + [v[1] for v in values])

    latents = family.scale_latents(model, side(means) + side(deviations) * side(samples))
    texts = [cache.text(pair.prompt) for pair in chosen]
    cond = {name: torch.stack([t[name] for t in texts] * 2).to(dtype) for name in texts[0]}
    sizes = torch.stack([cache.size(p.chosen) for p in chosen] + [cache.size(p.rejected) for p in chosen])
    cond |= {k: v.to(dtype) for k, v in family.size_condition(sizes, resolution).items()}
    return Batch(
        latents.to(dtype),
        cond,
        torch.tensor([p.preference for p in chosen], dtype=torch.float64),
        torch.tensor([p.weight for p in chosen], dtype=torch.float64),
        torch.stack(noises).to(dtype),
        torch.tensor(timesteps),
        tuple(p.id for p in chosen),
    )


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
