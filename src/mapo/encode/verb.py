"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapo.devices import best_device
from mapo.encode.cache import DTYPES, Cache
from mapo.encode.fill import IMAGES_PER_BATCH
from mapo.encode.fill import encode as fill
from mapo.encode.seen import what_training_sees, with_chunks
from mapo.errors import MapoError, memory_told, suggest
from mapo.models import find_model, open_model
from mapo.pairs import PairSet


def encode(
    model: str, pairs: Path, out: Path, *, resolution: int | None = None, flip: bool = False,
    precision: str = "float32", clip_skip: int | None = None, vae: str | None = None, prediction: str | None = None,
    loras: Sequence[str] = (), long_prompts: str | None = None,
    images_per_batch: int = IMAGES_PER_BATCH, buckets: bool = False,
) -> tuple[Cache, PairSet, list[str]]:  # fmt: skip
    """Encode a set for a model; the cache, the set, and in words what training would not see of the set."""
    if precision not in DTYPES:
        raise MapoError(f"--precision {precision!r} is not known. {suggest(precision, DTYPES)}")
    opened = PairSet(pairs)
    told: dict[str, Any] = {"vae": vae, "prediction": prediction, "loras": loras, "long_prompts": long_prompts}
    found = with_chunks(open_model(find_model(model, clip_skip=clip_skip, **told)), opened)
    found.lora_layers()
    with memory_told(images_per_batch, rest=""):
        cache = fill(
            found, opened, out, resolution=resolution, flip=flip, precision=precision,  # type: ignore[arg-type]
            device=best_device(),
            images_per_batch=images_per_batch, buckets=buckets,
        )  # fmt: skip
    seen = what_training_sees(opened, found, split="all", ties="keep", resolution=resolution, buckets=buckets)
    chunks = found.files.chunks
    return cache, opened, [*seen.losses(), *([f"prompts are up to {chunks} chunks long"] if chunks > 1 else [])]
