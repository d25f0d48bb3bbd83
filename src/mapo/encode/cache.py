"""The cache: what the encoders make of pictures and prompts, computed once.

A cache is a folder of safetensors shards and ``cache.json``::

    latents-<name>.safetensors  "<sha256>|<flip>" → mean and log-variance "2 c h w"; of a picture in another frame than
                                the square, a hash of its own and the frame (buckets.py)
                                "<sha256>|size" → the picture's height and width, crop top and left "4"
    text-<name>.safetensors     "<prompt hash>|<name>" → what the denoiser is given for that prompt
    cache.json                  format, version, and the fingerprint of the model, resolution, flips, precision
    index.safetensors           where each tensor lies, made from the shards (see index.py)

A shard is named by a hash of the names in it, so two writers never give one name to different shards. It is there whole
or not at all, so an interrupted encoding goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from mapo.encode.buckets import framed
from mapo.encode.frame import Frame
from mapo.encode.index import CHECKS, Entry, Index, checksums, digests_of, open_index
from mapo.errors import MapoError
from mapo.files import PARTIAL, named, refuse_odd_place, replacing, sweep
from mapo.models import ModelFiles, Opened
from mapo.models.parts.tensors import save_tensors
from mapo.shards import all_locks, locked, owned
from mapo.texts import read_object, write_json

LOG = logging.getLogger(__name__)

FORMAT, VERSION = "mapo-cache", 1
HEAD = "cache.json"
PER_SHARD = 64
FIRST_NUMBERS, ROUNDING = 64, 1e-3  # by which latents are compared
COMPARED = 4096  # pairs at once
LATENTS = "latents"  # within a set: the cache of pictures that it does not keep
WHERE = "Name another folder for the cache: --out of `mapo encode`, --cache of `mapo train`."
Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNSAID = {"precision": "float32", "clip_skip": 0, "vae": "", "long_prompts": "cut"}  # in a key's JSON
T = TypeVar("T")


@dataclass(frozen=True)
class CacheKey:
    """What two encodings must share to be interchangeable."""

    encoders: str
    resolution: int
    flip: bool
    precision: Precision = "float32"
    model: str = field(default="", compare=False)  # for people
    clip_skip: int = field(default=0, compare=False)  # for people, as ``encoders`` tells it too
    vae: str = field(default="", compare=False)  # likewise, where it is not the model's own
    long_prompts: str = field(default="cut", compare=False)  # likewise

    @property
    def dtype(self) -> torch.dtype:
        """In which latents and text are kept."""
        return DTYPES[self.precision]

    def as_json(self) -> dict[str, Any]:
        """As files hold it: float32, no clip_skip and prompts that are cut go without saying, as they did in 0.1.0."""
        found = {name: value for name, value in vars(self).items() if name != "model"}
        return {name: value for name, value in found.items() if (name, value) not in UNSAID.items()}


def cache_key(
    model: Opened, resolution: int | None = None, flip: bool = False, precision: Precision = "float32"
) -> CacheKey:
    """The key for a model at a resolution (None: the model's own)."""
    side = model.layout.checked(resolution)
    files = model.files
    encoders, vae = files.fingerprint(model.encoder_parts), files.vae.name if files.vae else ""
    return CacheKey(encoders, side, flip, precision, files.name, files.clip_skip, vae, files.long_prompts)


def latents_key(files: ModelFiles, resolution: int) -> CacheKey:
    """The key of latents that a set keeps in place of pictures: of the VAE alone, with the mirrored ones."""
    return CacheKey(files.fingerprint(("vae",)), resolution, True)


def prompt_key(prompt: str) -> str:
    """The name of a prompt in the cache: 32 hexadecimal digits of its hash, to the letter."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in order, ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


# ------------------------------------------------------------------ the folder


def is_cache(folder: Path) -> bool:
    """Whether there is a cache in ``folder``."""
    return (folder / HEAD).exists()


def check_head(folder: Path, key: CacheKey) -> None:
    """MapoError where the cache is of another version or was encoded in another way."""
    model, theirs = _head_of(folder)
    if theirs.get("encoders") != key.encoders:
        raise _encoded(folder, _other_encoders(model, theirs, key))
    _check_way(folder, theirs, vars(key))


def check_way(folder: Path, resolution: int, flip: bool, precision: Precision) -> None:
    """:func:`check_head` without the encoders, of which no weight is read."""
    _check_way(folder, _head_of(folder)[1], {"resolution": resolution, "flip": flip, "precision": precision})


def _check_way(folder: Path, theirs: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in ("resolution", "flip", "precision"):
        if theirs.get(name) != asked[name]:
            raise _encoded(folder, f"with {name} {theirs.get(name)}, this run asks for {asked[name]}")


def _encoded(folder: Path, otherwise: str) -> MapoError:
    return MapoError(
        f"The cache {folder} was encoded {otherwise}. Delete it, or run `mapo encode` into another folder and give it "
        "with --cache."
    )


def _head_of(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The name of the model, and what a cache says of the way in which it was encoded."""
    info = read_object(folder / HEAD, "a cache", "Run `mapo encode` into another folder.")
    if (info.get("format"), info.get("version")) != (FORMAT, VERSION):
        raise MapoError(f"{folder} is a cache of another version. Delete it and run `mapo encode` again.")
    theirs = info.get("key")
    if not isinstance(theirs, dict):
        raise MapoError(f"{folder / HEAD} is damaged. Delete the cache and run `mapo encode` again.")
    return info.get("model"), {**UNSAID, **theirs}


def _other_encoders(model: Any, theirs: Mapping[str, Any], key: CacheKey) -> str:
    """How a cache of ``model`` was encoded, and what this run has instead."""
    if model != key.model:
        return f"for the model {model}, this run trains {key.model}, whose encoders are others"
    for name in ("clip_skip", "long_prompts"):
        if theirs[name] != getattr(key, name):
            return f"with {name} {theirs[name]}, this run asks for {getattr(key, name)}"
    if theirs["vae"] != key.vae:
        own = "the model's own VAE"
        return f"with {theirs['vae'] or own}, this run asks for {key.vae or own}"
    return f"for the model {model} as it was then, whose encoders or tokenizers have changed since"


def write_head(folder: Path, model: str, key: CacheKey) -> None:
    """Write ``cache.json``; ``model`` is the name by which people know the encoders."""
    write_json(folder / HEAD, {"format": FORMAT, "version": VERSION, "model": model, "key": key.as_json()})


def write_shard(folder: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    """Add a shard of a kind, ``latents`` or ``text``."""
    name = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:16]
    with replacing(folder / f"{kind}-{name}.safetensors") as temporary:
        save_tensors(tensors, temporary, {CHECKS: checksums(tensors)})


def work_of(folder: Path) -> Path:
    """The folder with the locks and marks of those who fill a cache together."""
    refuse_odd_place(folder)
    place = named(folder)
    return place.with_name(f".{place.name}.encode{PARTIAL}")


@contextlib.contextmanager
def hold(folder: Path, wait: bool = False) -> Iterator[None]:
    """Be the one who writes into the cache ``folder``, which is made where it is missing.

    Where another process is, or shards of one work are: wait for it and say so, or MapoError. The lock ends with its
    process however that ends; what a killed writer left half-written is removed.
    """
    work = work_of(folder)
    with contextlib.ExitStack() as stack:
        apart = _keep_shards_away(work, wait, stack)  # first, as the last of them waits for the cache
        stack.enter_context(hold_with_shards(folder, wait))
        if not apart:  # none was there; has one begun since?
            _keep_shards_away(work, False, stack)
        sweep(folder)
        yield
        shutil.rmtree(work, ignore_errors=True)  # what shards have made stands in the cache


def _keep_shards_away(work: Path, wait: bool, stack: contextlib.ExitStack) -> bool:
    """Hold the locks of all shards of an encoding; False where no shards are at work."""
    try:
        stack.enter_context(locked(work, all_locks(work)))
    except FileNotFoundError:
        return False
    except MapoError:
        if not wait:
            raise
        LOG.warning(f"Other processes fill the cache in shards ({work}). Waiting until they have finished.")
        stack.enter_context(locked(work, all_locks(work), wait=True))
    return True


@contextlib.contextmanager
def hold_with_shards(folder: Path, wait: bool = False) -> Iterator[None]:
    """:func:`hold` for one of several who write at the same time, for the moment in which it begins."""
    made = not folder.exists()
    strange = not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())
    if folder.exists() and not is_cache(folder) and strange:
        raise MapoError(f"{folder} exists and is not a cache. {WHERE}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(owned(folder, wait))
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise MapoError(f"The cache {folder} cannot be written ({error.strerror or error}). {WHERE}") from None
        try:
            yield
        finally:
            if made:
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()


# ------------------------------------------------------------------ reading


def read_latents(folders: Iterable[Path], names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The entries of the named pictures, wherever in ``folders`` they lie, in portions for a shard each."""
    indexes = [open_index(folder) for folder in folders]
    for portion in batches(list(names), PER_SHARD):
        found: dict[str, Tensor] = {}
        for name in portion:
            entries = next((e for index in indexes if (e := index.find(bytes.fromhex(name)))), {})
            if not entries:
                raise MapoError(f"The latents of picture {name} are missing. Build the set again.")
            found |= {f"{name}|{column}": entry.read() for column, entry in entries.items()}
        yield found


def means_and_sizes(entries: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of pictures whose ``entries`` these are: the mean "c h w" of each, not mirrored, and its sizes "4"."""
    means = {name.removesuffix("|0"): both[0] for name, both in entries.items() if name.endswith("|0")}
    return means, {name: entries[f"{name}|size"] for name in means}


class Cache:
    """A cache opened for reading. What a tensor costs does not depend on how many there are."""

    def __init__(self, folder: Path, key: CacheKey, index: Index | None = None) -> None:
        check_head(folder, key)
        self.folder, self.resolution = folder, key.resolution
        self.index = index or open_index(folder)
        self.text_names: tuple[str, ...] = tuple(self.index.columns_of("text"))

    def __fspath__(self) -> str:
        return str(self.folder)

    def _entries(self, name: str, columns: Iterable[str], what: str) -> list[Entry]:
        found = self.index.find(bytes.fromhex(name))
        if any(column not in found for column in columns):
            raise MapoError(f"The cache {self.folder} lacks {what}. Run `mapo encode` again.")
        return [found[column] for column in columns]

    def latents(self, picture: str, flip: bool, to: Frame | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of a picture's latents, "c h w" each, in a frame; without one in the square."""
        picture = self._framed(picture, to)
        mean, logvar = self._entries(picture, [str(int(flip))], f"picture {picture}")[0].read()
        return mean, logvar

    def equal_pairs(self, chosen: Sequence[str], rejected: Sequence[str]) -> int:
        """How many of these pairs are twice the same to the encoder, but for rounding.

        Most differ in their first numbers, which are read of all at once.
        """
        doubtful: list[int] = []
        for rows in batches(range(len(chosen)), COMPARED):
            ours, theirs = (
                self.index.first_numbers(digests_of(names[row] for row in rows), "0", FIRST_NUMBERS)
                for names in (chosen, rejected)
            )
            near = torch.isclose(ours, theirs, rtol=ROUNDING, atol=ROUNDING, equal_nan=True).all(dim=1)
            doubtful += [row for row, it in zip(rows, near.tolist(), strict=True) if it]
        return sum(self._same(chosen[row], rejected[row]) for row in doubtful)

    def _same(self, one: str, other: str) -> bool:
        ours, theirs = (self._entries(name, ["0"], f"picture {name}")[0].read().float() for name in (one, other))
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=ROUNDING, atol=ROUNDING)

    def _framed(self, picture: str, to: Frame | None) -> str:
        return picture if to is None else framed(picture, to, self.resolution)

    def size(self, picture: str, to: Frame | None = None) -> Tensor:
        """Height, width, crop top and left, "4"."""
        picture = self._framed(picture, to)
        return self._entries(picture, ["size"], f"picture {picture}")[0].read()

    def text(self, prompt: str) -> dict[str, Tensor]:
        """The tensors of a prompt by their names, in the order of ``text_names``."""
        entries = self._entries(prompt_key(prompt), self.text_names, f"the prompt {prompt!r}")
        return {name: entry.read() for name, entry in zip(self.text_names, entries, strict=True)}
