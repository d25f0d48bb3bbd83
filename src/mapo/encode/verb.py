"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mapo.arguments import Names, Number, Text, of_kind
from mapo.devices import best_device, use_own_device
from mapo.encode.cache import DTYPES, Cache, cache_key
from mapo.encode.fill import IMAGES_PER_BATCH, encode_shard
from mapo.encode.fill import encode as fill
from mapo.encode.seen import what_training_sees, with_chunks
from mapo.encode.stream import Read, stream
from mapo.errors import MapoError, memory_told, suggest
from mapo.importers import Options
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.shards import WHOLE, Shard

IMPORTS: Mapping[str, Any] = {"columns": Names, "least_gap": Number}  # all other options of an import are texts
MAY_BE_NONE = ("format", "licence", "columns", "captions", "split")


class Encoded(NamedTuple):
    """What came of it: the cache, the set, whether all of the set is in the cache, in words what training would not see
    of the set, and what was read."""

    cache: Cache
    pairs: PairSet
    whole: bool
    losses: list[str]
    read: Read | None = None  # of a source


def encode(
    model: str, pairs: Path, out: Path, *, resolution: int | None = None, flip: bool = False,
    precision: str = "float32", clip_skip: int | None = None, vae: str | None = None, prediction: str | None = None,
    loras: Sequence[str] = (), long_prompts: str | None = None,
    images_per_batch: int = IMAGES_PER_BATCH, buckets: bool = False, shard: Shard = WHOLE,
    source: str | None = None, imports: Mapping[str, Any] | None = None,
) -> Encoded:  # fmt: skip
    """Encode a set for a model, or a shard of it.

    With a ``source`` the set is made of it meanwhile, and keeps no picture; ``imports`` are then the options of
    :func:`mapo.importers.import_pairs`.
    """
    if precision not in DTYPES:
        raise MapoError(f"--precision {precision!r} is not known. {suggest(precision, DTYPES)}")
    if imports and source is None:
        flag = "--" + next(iter(imports)).replace("_", "-")
        raise MapoError(f"{flag} says how SOURCE is read. Give SOURCE and --stream, or leave it out.")
    asked = _known(imports or {})
    opened = PairSet(pairs) if source is None else None
    told: dict[str, Any] = {"vae": vae, "prediction": prediction, "loras": loras, "long_prompts": long_prompts}
    found = open_model(find_model(model, clip_skip=clip_skip, **told))
    found.lora_layers()
    use_own_device()
    read = None
    if source is not None:
        _refuse_with_stream(buckets, shard)
        key = cache_key(found, resolution, flip, precision)  # type: ignore[arg-type]
        with memory_told(images_per_batch, rest=""):
            read = stream(
                found, key, source, pairs, out, device=best_device(), images_per_batch=images_per_batch,
                **asked,
            )  # fmt: skip
    opened = opened or PairSet(pairs)
    found = with_chunks(found, opened)
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
    return Encoded(cache, opened, whole, [*seen.losses(), *long], read)


def _refuse_with_stream(buckets: bool, shard: Shard) -> None:
    if buckets:
        raise MapoError("--stream encodes pictures in the square, as it sees each once. Leave --buckets out.")
    if shard != WHOLE:
        raise MapoError(
            "--stream reads its source in order, in one process. Leave --shard out, and start it without torchrun or "
            "srun; or say --shard 0/1 in the one process that does it."
        )


def _known(imports: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of an import, all of them known and of their kind."""
    names = ["format", "licence", *Options.__dataclass_fields__]
    if unknown := [name for name in imports if name not in names]:
        raise MapoError(f"There is no option {unknown[0]!r} of an import. {suggest(unknown[0], names)}")
    there = {name: value for name, value in imports.items() if value is not None or name not in MAY_BE_NONE}
    return {name: of_kind(f"encode(): imports[{name!r}]", IMPORTS.get(name, Text), there[name]) for name in there}
