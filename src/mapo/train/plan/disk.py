"""What a training's cache still takes on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mapo.encode.cache import DTYPES, check_way, is_cache
from mapo.encode.fill import Holding, lacking, what_is_gone
from mapo.encode.index import open_index
from mapo.encode.seen import frames_of
from mapo.errors import MapoError
from mapo.models import Opened
from mapo.pairs import PairSet
from mapo.train.config import Config


@dataclass(frozen=True)
class Disk:
    """What a cache lacks of a set, and how many bytes that takes at most; ``refused`` says why it cannot be used."""

    folder: Path
    pictures: int
    prompts: int
    bytes: int
    refused: str = ""


def cache_folder(config: Config, pairs: PairSet) -> Path:
    """The cache of a training."""
    return Path(config.cache) if config.cache else pairs.folder.resolve().parent / "cache"


def holding_of(config: Config) -> Holding:
    """What a training wants of the cache. Prompts of text encoders that are trained are encoded in every step."""
    if config.adapter.encodes:
        return "pictures alone"
    return "and the empty prompt" if config.data.caption_dropout else "all"


def disk_of(config: Config, model: Opened, pairs: PairSet) -> Disk:
    """What is still to be encoded: two tensors of a picture's latent, and the states of a prompt at their longest.

    Nothing is added to a cache of another resolution or the like, so then it is all of the set. MapoError where
    pictures lack of a set that keeps none.
    """
    data, folder = config.data, cache_folder(config, pairs)
    refused = _why_refused(config, model, folder) if is_cache(folder) else ""
    holding = holding_of(config)
    if holding == "all" and model.files.chunks > 1:
        holding = "and the empty prompt"
    among = frames_of(model, data.resolution, data.buckets)
    pictures, prompts = lacking(pairs, open_index(folder / "none" if refused else folder), holding=holding, among=among)
    if pictures and pairs.keeps_none():
        raise what_is_gone(pairs, len(pictures), folder, model.files.name, model.layout.checked(data.resolution))
    each = DTYPES[data.cache_precision].itemsize
    latents = sum(2 * math.prod(model.layout.latent(*one.frame)) * each for one in pictures)
    text = len(prompts) * model.prompt_numbers * each
    return Disk(folder, len(pictures), len(prompts), latents * (2 if data.flip else 1) + text, refused)


def _why_refused(config: Config, model: Opened, folder: Path) -> str:
    """What training will say of a cache that was encoded in another way, as far as that is known without weights."""
    data = config.data
    try:
        check_way(folder, model.layout.checked(data.resolution), data.flip, data.cache_precision)
    except MapoError as error:
        return str(error)
    return ""
