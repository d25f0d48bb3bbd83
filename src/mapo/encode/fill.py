"""Filling a cache: every picture and prompt of a set that it lacks goes through the encoders once."""

from __future__ import annotations

import contextlib
import logging
import shutil
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mapo import progress
from mapo.encode.buckets import framed_digests, framing
from mapo.encode.cache import (
    LATENTS,
    PER_SHARD,
    WHERE,
    Cache,
    CacheKey,
    Precision,
    batches,
    cache_key,
    check_head,
    hold,
    hold_with_shards,
    is_cache,
    latents_key,
    prompt_key,
    read_latents,
    work_of,
    write_head,
    write_shard,
)
from mapo.encode.encoding import encode_pictures, encode_prompts, kept, release
from mapo.encode.frame import Frame, square
from mapo.encode.index import Index, digests_of, open_index
from mapo.encode.seen import frames_of
from mapo.errors import MapoError, count
from mapo.files import prepare_out, sweep
from mapo.models import Opened
from mapo.pairs import PairSet
from mapo.shards import WHOLE, Shard, in_shares, locked
from mapo.texts import read_object

LOG = logging.getLogger(__name__)
IMAGES_PER_BATCH = 8
PROMPTS_PER_IMAGE = 4  # prompts are encoded so many times as many at a time
Holding = Literal["all", "and the empty prompt", "pictures alone"]  # what a cache is to hold of a set


class Wanted(NamedTuple):
    """A picture that is to be encoded: its name in the cache and in the set, and its frame."""

    name: str
    picture: str
    frame: Frame


def encode(
    model: Opened,
    pairs: PairSet,
    folder: Path,
    *,
    resolution: int | None = None,
    flip: bool = False,
    precision: Precision = "float32",
    device: Any = "cpu",
    images_per_batch: int = IMAGES_PER_BATCH,
    wait: bool = False,
    shard: Shard = WHOLE,
    locked: bool = True,
    holding: Holding = "all",
    buckets: bool = False,
) -> Cache:
    """Encode every picture and prompt of ``pairs`` that the cache ``folder`` lacks, and open it.

    What ``holding`` says besides is encoded too, or left out. Prompts that are read in chunks need the empty prompt.
    With ``buckets`` every picture is encoded in the frames in which its pairs are seen, else in the square.
    Only one process fills a cache: where another does, ``wait`` for it, or MapoError. The processes of one job share
    the work: each takes ``shard`` (which, of how many), one of them stands in ``with hold(folder):`` before the others
    begin and until all have ended, and all are called with ``locked=False``.
    """
    check_at_once(images_per_batch)
    key = cache_key(model, resolution, flip, precision)
    holding, among = _really(holding, key), frames_of(model, resolution, buckets)
    if is_cache(folder):
        _check_head(folder, key, model)
        index = open_index(folder)
        if _name(pairs, holding, among) in index.complete and not index.stale:
            return Cache(folder, key, index)
        if not any(lacking(pairs, index, shard, holding, among)):
            if shard[0] == 0:  # it spares the next process this look
                with contextlib.suppress(MapoError, OSError), hold(folder) if locked else contextlib.nullcontext():
                    _keep_index(pairs, folder, holding, among)
            return Cache(folder, key, index)
    with hold(folder, wait) if locked else contextlib.nullcontext():
        _write(model, pairs, folder, key, device, images_per_batch, shard, holding, among)
        if shard[0] == 0:
            _keep_index(pairs, folder, holding, among)
    return Cache(folder, key)


def encode_shard(
    model: Opened, pairs: PairSet, folder: Path, shard: Shard, *, resolution: int | None = None, flip: bool = False,
    precision: Precision = "float32", **how: Any,
) -> tuple[Cache, bool]:  # fmt: skip
    """As :func:`encode` for one of several processes, who need not run at the same time; whether the cache is whole.

    Who is last encodes what still lacks, and makes the index. ``how`` are the other arguments of :func:`encode`.
    """
    key = cache_key(model, resolution, flip, precision)
    fill = partial(
        encode, model, pairs, folder, resolution=resolution, flip=flip, precision=precision, locked=False, **how
    )
    if is_cache(folder) and holds_all(
        model, pairs, folder, key, among=frames_of(model, resolution, how.get("buckets", False))
    ):
        return Cache(folder, key), True
    work = work_of(folder)
    prepare_out(work)
    work.mkdir(parents=True, exist_ok=True)

    def share() -> None:
        with locked(work, ["begin"], wait=True), hold_with_shards(folder):
            if is_cache(folder):
                check_head(folder, key)
        fill(shard=shard)
        begin(folder, key)

    def gather() -> Cache:
        with hold_with_shards(folder, wait=True):
            sweep(folder)
            cache = fill()
            shutil.rmtree(work)
            return cache

    whole = in_shares(work, shard, share, gather)
    return whole or Cache(folder, key), whole is not None


def check_at_once(images_per_batch: int) -> None:
    """MapoError where not even one picture would be encoded at a time."""
    if images_per_batch < 1:
        raise MapoError(f"--images-per-batch is {images_per_batch}; it must be at least 1.")


def _really(holding: Holding, key: CacheKey) -> Holding:
    return "and the empty prompt" if holding == "all" and key.long_prompts == "chunk" else holding


def _check_head(folder: Path, key: CacheKey, model: Opened) -> None:
    """MapoError where the cache was encoded in another way; where weights of the model are not whole, about these."""
    try:
        check_head(folder, key)
    except MapoError:
        for part in model.encoder_parts:
            if not part.startswith("tokenizer"):
                model.files.check_weights(part)
        raise


def holds_all(
    model: Opened, pairs: PairSet, folder: Path, key: CacheKey, holding: Holding = "all", among: tuple[Frame, ...] = ()
) -> bool:
    """Whether the cache lacks nothing of the set."""
    if not is_cache(folder):
        return False
    _check_head(folder, key, model)
    holding = _really(holding, key)
    index = open_index(folder)
    known = _name(pairs, holding, among) in index.complete and not index.stale
    return known or not any(lacking(pairs, index, holding=holding, among=among))


def _name(pairs: PairSet, holding: Holding, among: tuple[Frame, ...]) -> str:
    name = f"{pairs.fingerprint()} {pairs.number_of_images()}"
    name = name if holding == "all" else f"{name} {holding}"
    return f"{name} in buckets" if len(among) > 1 else name


def _keep_index(pairs: PairSet, folder: Path, holding: Holding, among: tuple[Frame, ...]) -> None:
    index = open_index(folder)
    if not any(lacking(pairs, index, holding=holding, among=among)):
        index.complete.add(_name(pairs, holding, among))
    index.write()


def lacking(
    pairs: PairSet, index: Index, shard: Shard = WHOLE, holding: Holding = "all",
    among: tuple[Frame, ...] = (),
) -> tuple[list[Wanted], list[str]]:  # fmt: skip
    """The pictures and the prompts of a shard of the set that the cache lacks; pictures of one frame together.

    A shard has every n-th portion of the set, and a portion is what becomes one file. So several processes write the
    files of one, whatever the others have done.
    ``among`` are the frames, the square first; without them every picture is wanted under its own name.
    """
    prompts = [] if holding == "pictures alone" else pairs.table["prompt"].unique().to_pylist()
    if holding == "and the empty prompt" and "" not in prompts:
        prompts.append("")
    among = among or (square(0),)
    numbers, which = framing(pairs, among).pictures(pairs)
    digests = pairs.digests_of(numbers)
    pictures, keys = framed_digests(digests, which, among), digests_of(map(prompt_key, prompts))
    kept = pairs.which_kept(numbers)  # those that are kept as latents need no encoding, and have files of their own
    order = np.where(kept, np.cumsum(kept), np.cumsum(~kept)) - 1
    absent = [
        ~index.holds(pictures) & _in_shard(order, shard),
        ~index.holds(keys) & _in_shard(np.arange(len(prompts)), shard),
    ]
    wanted = [
        Wanted(pictures[row].tobytes().hex(), digests[row].tobytes().hex(), among[which[row]])
        for row in np.flatnonzero(absent[0]).tolist()
    ]
    return wanted, [prompts[k] for k in np.flatnonzero(absent[1]).tolist()]


def _in_shard(order: NDArray[np.int64], shard: Shard) -> NDArray[np.bool_]:
    """Which places in the order of a set belong to a shard."""
    return np.asarray(order // PER_SHARD % shard[1] == shard[0])


def _write(
    model: Opened, pairs: PairSet, folder: Path, key: CacheKey, device: Any, images_per_batch: int,
    shard: Shard, holding: Holding, among: tuple[Frame, ...],
) -> None:  # fmt: skip
    if is_cache(folder):
        check_head(folder, key)
    if pairs.keeps_none():
        refuse_what_is_gone(pairs, open_index(folder), key, among)
    if len(among) > 1 and not pairs.keeps_all():
        raise MapoError(
            f"{pairs.folder} keeps rejected pictures only as latents of a square, so it cannot be seen in buckets. "
            "Leave data.buckets out."
        )
    pictures, prompts = lacking(pairs, open_index(folder), shard, holding, among)
    taken: list[str] = []
    if (pairs.folder / LATENTS).exists():
        taken = [one.name for one in pictures if not pairs.keeps(one.picture)]
        pictures = [one for one in pictures if pairs.keeps(one.picture)]
        _check_own_latents(pairs, model, key)
    # It is small beside the text encoders, and loaded before a cache is bound to a VAE that has to be mended.
    encoder = model.image_encoder(device) if pictures else None
    _tell_size(model, len(prompts), key)
    for portion in encode_prompts(
        model, device, prompts, PROMPTS_PER_IMAGE * images_per_batch, PER_SHARD, key.precision
    ):
        entries = {
            f"{prompt_key(p)}|{name}": kept(value, key, f"the prompt {p!r}")
            for p, text in portion.items()
            for name, value in text.items()
        }
        begin(folder, key)
        write_shard(folder, "text", entries)
    begin(folder, key)
    _take_over(pairs, taken, folder, key)
    if encoder is None:
        return
    with progress.bar(total=len(pictures), desc="encode pictures", unit="picture") as bar:
        for some in batches(pictures, PER_SHARD):
            tensors: dict[str, Tensor] = {}
            for frame, alike in groupby(some, lambda one: one.frame):
                for batch in batches(list(alike), images_per_batch):
                    read = {one.name: pairs.image(one.picture) for one in batch}
                    tensors |= encode_pictures(encoder, key, read, model.files.name, frame)
                    bar.update(len(batch))
            write_shard(folder, "latents", tensors)
    del encoder
    release()


def refuse_what_is_gone(pairs: PairSet, index: Index, key: CacheKey, among: tuple[Frame, ...]) -> None:
    """MapoError where a cache lacks pictures of a set that keeps none."""
    if lack := len(lacking(pairs, index, holding="pictures alone", among=among)[0]):
        raise what_is_gone(pairs, lack, index.folder, key.model, key.resolution)


def what_is_gone(pairs: PairSet, lack: int, cache: Path, model: str, resolution: int) -> MapoError:
    """Of a set that keeps no pictures: what to do where the cache lacks so many of them."""
    return MapoError(
        f"{pairs.folder} keeps no pictures, as `mapo encode --stream` made it, and the cache {cache} lacks "
        f"{count(lack, 'picture')} of it for {model} at {resolution} pixels. Name the cache that was made with the "
        "set; or delete the set and stream it again."
    )


def _tell_size(model: Opened, prompts: int, key: CacheKey) -> None:
    """Say how much the prompts will take, where each takes megabytes."""
    each = model.prompt_numbers * key.dtype.itemsize
    if prompts and each >= 2**20:
        less = " --precision bfloat16 (in `train` data.cache_precision=bfloat16) takes half."
        half = less if key.precision == "float32" else ""
        LOG.info(
            "%s: each takes up to %.1f MiB in %s, all of them %.1f GiB.%s",
            count(prompts, "prompt"), each / 2**20, key.precision, prompts * each / 2**30, half,
        )  # fmt: skip


def begin(folder: Path, key: CacheKey) -> None:
    """Write the head of a cache that has none yet. From then on it is one of these encoders."""
    if is_cache(folder):
        return
    try:
        write_head(folder, key.model, key)
    except OSError as error:
        raise MapoError(f"The cache {folder} cannot be written ({error.strerror or error}). {WHERE}") from None


def _check_own_latents(pairs: PairSet, model: Opened, key: CacheKey) -> None:
    """MapoError where the latents that a set keeps in place of pictures are of another VAE or size."""
    own = pairs.folder / LATENTS
    info = read_object(own / "cache.json", "a cache", "The set is not whole; build it again.")
    if info.get("key") != latents_key(model.files, key.resolution).as_json():
        theirs = info.get("key") or {}
        raise MapoError(
            f"{pairs.folder} keeps rejected pictures only as latents of {info.get('model')} at "
            f"{theirs.get('resolution')} pixels, which {model.files.name} at {key.resolution} cannot use. Train with "
            "that VAE and resolution, or build the set again with --latents-for."
        )


def _take_over(pairs: PairSet, names: list[str], folder: Path, key: CacheKey) -> None:
    """Put the latents that a set keeps in place of pictures into a cache."""
    for tensors in read_latents([pairs.folder / LATENTS], names) if names else ():
        wanted = {k: v for k, v in tensors.items() if key.flip or not k.endswith("|1")}
        write_shard(folder, "latents", {k: v.to(key.dtype) if v.is_floating_point() else v for k, v in wanted.items()})
