"""The cosine distance of picture embeddings, 0 … 2: between the model's own samples and a set's pictures."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from mapo import progress
from mapo.encode.cache import batches
from mapo.errors import MapoError
from mapo.mismatch.material import CHOSEN, OWN, REJECTED, Material
from mapo.models import ModelFiles
from mapo.score.scorers import SCORERS, Scorer, load_scorer, scorer_names
from mapo.statistics import Floats, Interval, mean, mean_difference
from mapo.worlds import world_of

NO_ENCODER = "none"


class Encoder(Scorer, Protocol):
    """A scorer that can embed pictures."""

    def embed(self, pictures: Sequence[Image]) -> Tensor:
        """Pictures → "n d" of unit norm."""


@dataclass(frozen=True)
class Distances:
    """Mean cosine distances over pairs, each between the pair's picture and all own samples of its prompt.

    ``floor`` is the distance between two own samples of a prompt and ``excess`` that of the chosen minus the floor,
    None with one seed. ``rejected`` is None where the set does not keep those pictures.
    """

    encoder: str
    version: str
    revision: str
    chosen: Interval
    rejected: Interval | None
    floor: Interval | None
    excess: Interval | None


def default_encoder(model: ModelFiles) -> str:
    """The judge's features for the built-in world, which DINOv2 has never seen; DINOv2 as in the paper elsewhere."""
    world = world_of(model.base)
    return world.embedder if world else "dinov2"


def load_encoder(text: str) -> Encoder | None:
    """The scorer ``text`` if it can embed; None for "none". Its weights are loaded when it is first called."""
    if text == NO_ENCODER:
        return None
    able = [name for name, place in SCORERS.items() if _embeds(place)]
    if scorer_names(text)[0].partition("@")[0] not in able:
        raise MapoError(f"--encoder: {text} does not embed pictures. Those that do: {', '.join(able)}; or none.")
    try:
        return cast("Encoder", load_scorer(text))
    except MapoError as error:
        raise MapoError(f"{error} Or measure without one: --encoder none.") from None


def _embeds(place: str) -> bool:
    module, name = place.split(":")
    return hasattr(getattr(importlib.import_module(module), name), "embed")


def embed(encoder: Encoder, material: Material, images_per_batch: int) -> dict[str, Tensor]:
    """The embedding "d" of every picture by its hash, float64 of unit norm."""
    names, found = list(material.pictures), dict[str, Tensor]()
    with progress.bar(total=len(names), desc=f"embed {encoder.name}", unit="image") as bar:
        for portion in batches(names, images_per_batch):
            rows = encoder.embed([material.pictures[name]() for name in portion]).double().cpu()
            if not torch.isfinite(rows).all():
                raise MapoError(f"{encoder.name} gave embeddings that are not finite for one of {list(portion)}.")
            found |= zip(portion, torch.nn.functional.normalize(rows), strict=True)
            bar.update(len(portion))
    return found


def compare_embeddings(encoder: Encoder, vectors: Mapping[str, Tensor], material: Material) -> Distances:
    """The means over pairs with their intervals."""
    own = material.sides[OWN]
    clusters, sides = material.clusters, material.sides_in(vectors)

    def to_own(side: str) -> Floats:
        return np.array(
            [np.mean([_distance(vectors[a], vectors[name]) for a in row])
             for row, (name,) in zip(own, material.sides[side], strict=True)]
        )  # fmt: skip

    chosen, floor, excess = to_own(CHOSEN), None, None
    if len(own[0]) > 1:
        among = [[_distance(vectors[a], vectors[b]) for a, b in itertools.combinations(row, 2)] for row in own]
        floors = np.mean(among, axis=1)
        floor, excess = mean(floors, clusters), mean_difference(floors, chosen, clusters)
    rejected = mean(to_own(REJECTED), clusters) if REJECTED in sides else None
    return Distances(
        encoder.name, encoder.version, encoder.revision, mean(chosen, clusters), rejected, floor, excess
    )  # fmt: skip


def _distance(a: Tensor, b: Tensor) -> float:
    """1 − cos of two vectors of unit norm, exactly 0 for equal ones."""
    return float((a - b).square().sum()) / 2
