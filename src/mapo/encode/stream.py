"""Encoding while reading: a foreign source becomes a set without pictures and a cache, and no picture is kept on disk.

The import reads rows, and every picture that a set would store goes through the VAE instead, in the portions in which
:mod:`mapo.encode.fill` encodes the pictures of a set that keeps them. So the cache is the same. Prompts stay in the
set; they are encoded when it is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mapo.encode.cache import HEAD, PER_SHARD, CacheKey, batches, check_head, hold, is_cache, write_shard
from mapo.encode.encoding import encode_pictures, release
from mapo.encode.fill import begin, check_at_once
from mapo.encode.index import digests_of, open_index
from mapo.errors import MapoError, no_space
from mapo.importers import import_pairs
from mapo.importers.elsewhere import Elsewhere
from mapo.importers.importing import is_import_of
from mapo.models import Opened
from mapo.models.family import ImageEncoder
from mapo.pairs import PairSet
from mapo.pairs.pictures import Picture, decode_picture
from mapo.shards import refuse_existing

Take = Callable[[Sequence[Picture]], None]


@dataclass(frozen=True)
class Read:
    """What was read of a source just now: encoded pictures in bytes, how many were new, and how long it took."""

    bytes: int = 0
    pictures: int = 0
    seconds: float = 0.0


def stream(
    model: Opened, key: CacheKey, source: str, pairs: Path, folder: Path, *, device: Any, images_per_batch: int,
    **options: Any,
) -> Read:  # fmt: skip
    """Read ``source`` into the set ``pairs``, which keeps no picture, and its latents into the cache ``folder``.

    ``options`` are those of :func:`mapo.importers.import_pairs`. What was interrupted goes on; a set that is whole
    already is not read again. MapoError where a set of something else is there.
    """
    check_at_once(images_per_batch)
    if pairs.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise MapoError(
            f"--out {folder} lies in --pairs {pairs}, which is only there once it is whole. Choose another --out."
        )
    if is_cache(folder):
        check_head(folder, key)
    if _is_made(pairs, source, options):
        return Read()
    refuse_existing(pairs, "--pairs")
    begun = time.perf_counter()
    with hold(folder):
        encoder = model.image_encoder(device)
        with _begun(folder, key) as identity:
            take = _taker(encoder, key, folder, model.files.name, images_per_batch)
            rest = Elsewhere(take, PER_SHARD, identity)
            import_pairs(source, pairs, elsewhere=rest, **options)
        del encoder, take
    release()
    return Read(rest.bytes_read, rest.taken, time.perf_counter() - begun)


@contextmanager
def _begun(folder: Path, key: CacheKey) -> Iterator[Any]:
    """The cache has its head; gives what tells it from any other. A new one that stays empty goes again."""
    fresh = not is_cache(folder)
    begin(folder, key)
    try:
        yield [str(folder.resolve()), (folder / HEAD).stat().st_mtime_ns]
    except BaseException:
        if fresh and [path.name for path in folder.iterdir()] == [HEAD]:
            (folder / HEAD).unlink()
        raise


def _is_made(pairs: Path, source: str, options: Mapping[str, Any]) -> bool:
    """Whether the set is there and was streamed from this source in this way; MapoError where in another."""
    if not (pairs / "set.json").is_file() or not (there := PairSet(pairs)).keeps_none():
        return False
    if not is_import_of(there.info.get("provenance", {}), source, **options):
        raise MapoError(
            f"{pairs} was streamed from another source than {source}, from an older state of it, or with other "
            f"options. Choose another --pairs, or delete it first. To encode {pairs} as it is, leave SOURCE and "
            "--stream out."
        )
    return True


def _taker(encoder: ImageEncoder, key: CacheKey, folder: Path, model: str, images_per_batch: int) -> Take:
    """What encodes a portion of pictures into a file of the cache; those that were there before are passed over."""
    index = open_index(folder)
    if index.stale and index.shards:
        index.write()  # so that the next one that goes on reads it at once

    def take(portion: Sequence[Picture]) -> None:
        there = index.holds(digests_of(picture.sha256 for picture in portion))
        lacking = [picture for picture, known in zip(portion, there, strict=True) if not known]
        tensors: dict[str, Tensor] = {}
        for batch in batches(lacking, images_per_batch):
            tensors |= encode_pictures(encoder, key, {one.sha256: _decoded(one) for one in batch}, model)
        if tensors:
            _write(folder, tensors)

    return take


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Add latents to the cache. Its disk may be another than that of the set."""
    try:
        write_shard(folder, "latents", tensors)
    except Exception as error:
        full = no_space(error)
        if full is None:
            raise
        raise MapoError(
            f"The disk of the cache {folder} is full ({os.strerror(full.errno or 0)}). Make room and repeat the "
            "command: it goes on where it stopped."
        ) from None


def _decoded(picture: Picture) -> Any:
    if picture.data is None:
        raise MapoError(f"The picture {picture.sha256} came without its bytes.")
    return decode_picture(picture.data)
