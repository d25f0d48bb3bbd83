"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mapo.devices import best_device, use_own_device
from mapo.encode.cache import DTYPES, Cache
from mapo.encode.fill import IMAGES_PER_BATCH, encode_shard
from mapo.encode.fill import encode as fill
from mapo.encode.seen import what_training_sees, with_chunks
from mapo.errors import MapoError, memory_told, suggest
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.shards import WHOLE, Shard


class Encoded(NamedTuple):
    """What came of it: the cache, the set, whether all of the set is in the cache, and in words what training would not
    see of the set."""

    cache: Cache
    pairs: PairSet
    whole: bool
    losses: list[str]


def encode(
    model: str, pairs: Path, out: Path, *, resolution: int | None = None, flip: bool = False,
    precision: str = "float32", clip_skip: int | None = None, vae: str | None = None, prediction: str | None = None,
    loras: Sequence[str] = (), long_prompts: str | None = None,
    images_per_batch: int = IMAGES_PER_BATCH, buckets: bool = False, shard: Shard = WHOLE,
) -> Encoded:  # fmt: skip
    """Encode a set for a model, or a shard of it."""
    if precision not in DTYPES:
        raise MapoError(f"--precision {precision!r} is not known. {suggest(precision, DTYPES)}")
    opened = PairSet(pairs)
    told: dict[str, Any] = {"vae": vae, "prediction": prediction, "loras": loras, "long_prompts": long_prompts}
    found = with_chunks(open_model(find_model(model, clip_skip=clip_skip, **told)), opened)
    found.lora_layers()
    use_own_device()
    how: dict[str, Any] = {
        "resolution": resolution, "flip": flip, "precision": precision, "device": best_device(),
        "images_per_batch": images_per_batch, "buckets": buckets,
    }  # fmt: skip
    with memory_told(images_per_batch, rest=""):
        cache, whole = (
            (fill(found, opened, out, **how), True)
            if shard == WHOLE
            else encode_shard(found, opened, out, shard, **how)
        )
    seen = what_training_sees(opened, found, split="all", ties="keep", resolution=resolution, buckets=buckets)
    chunks = found.files.chunks
    long = [f"prompts are up to {chunks} chunks long"] if chunks > 1 else []
    return Encoded(cache, opened, whole, [*seen.losses(), *long])
