"""The cache: what the encoders make of pictures and prompts, computed once.

A cache is a folder of safetensors shards and ``cache.json``::

    latents-00000.safetensors   "<sha256>|<flip>" → mean and log-variance "2 c h w"
                                "<sha256>|size" → the picture's height and width, crop top and left "4"
    text-00000.safetensors      "<prompt hash>|<name>" → what the denoiser is given for that prompt
    cache.json                  format, version, and the fingerprint of the model, resolution and flips

Pictures are resized to the shorter side (bilinear), then cropped in the middle. A shard is there whole or not at all,
so an interrupted encoding goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mapo.errors import MapoError
from mapo.families import Family, Model, fingerprint
from mapo.files import prepare_out, read_json, replacing, write_json
from mapo.pairs import PairSet

FORMAT, VERSION = "mapo-cache", 1
PER_SHARD = 64
LATENTS = "latents"  # within a set: the cache of pictures that it does not keep
T = TypeVar("T")


@dataclass(frozen=True)
class CacheKey:
    """What two encodings must share to be interchangeable."""

    encoders: str
    resolution: int
    flip: bool


def cache_key(family: Family, model: Model, resolution: int | None, flip: bool) -> CacheKey:
    """The key for a model at a resolution (None: the model's own)."""
    side = resolution or family.resolution(model)
    stride = family.latent_stride(model)
    if side % (stride * 4):
        raise MapoError(f"data.resolution is {side}; it has to be a multiple of {stride * 4} for this model.")
    return CacheKey(fingerprint(model.base, family.PARTS), side, flip)


def latents_key(model: Model, resolution: int) -> CacheKey:
    """The key of latents that a set keeps in place of pictures: of the VAE alone, with the mirrored ones."""
    return CacheKey(fingerprint(model.base, ("vae",)), resolution, True)


def prompt_key(prompt: str) -> str:
    """The name of a prompt in the cache: 32 hexadecimal digits of its hash, to the letter."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def to_pixels(picture: Image.Image, side: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """An RGB picture → "3 side side" in [-1, 1], and (height, width, crop top, crop left) for size conditioning.

    Height and width are the picture's own, top and left are measured after resizing, as SDXL was trained.
    """
    width, height = picture.size
    scale = side / min(width, height)
    resized = (max(side, round(width * scale)), max(side, round(height * scale)))
    if resized != picture.size:
        picture = picture.resize(resized, Image.Resampling.BILINEAR)
    left, top = (resized[0] - side) // 2, (resized[1] - side) // 2
    pixels = np.asarray(picture.crop((left, top, left + side, top + side)), np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).div(127.5).sub(1), (height, width, top, left)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _shards(folder: Path, kind: str) -> Iterator[tuple[Path, set[str]]]:
    for path in sorted(folder.glob(f"{kind}-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                yield path, set(file.keys())
        except (SafetensorError, OSError) as error:
            raise MapoError(f"{path} is damaged ({error}). Delete it and run `mapo encode` again.") from None


def _write(folder: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    number = len(list(folder.glob(f"{kind}-*.safetensors")))
    with replacing(folder / f"{kind}-{number:05d}.safetensors") as temporary:
        save_file(tensors, temporary)


def _check(folder: Path, key: CacheKey) -> None:
    info = read_json(folder / "cache.json", "a cache", "Run `mapo encode` into another folder.")
    if (info.get("format"), info.get("version")) != (FORMAT, VERSION):
        raise MapoError(f"{folder} is a cache of another version. Delete it and run `mapo encode` again.")
    for name, ours in vars(key).items():
        if info["key"].get(name) != ours:
            raise MapoError(
                f"The cache {folder} was encoded with {name} {info['key'].get(name)}, this run asks for {ours}. "
                "Run `mapo encode` into another folder, and give it with --cache."
            )


def write_head(folder: Path, model: Model, key: CacheKey) -> None:
    """Write ``cache.json``."""
    write_json(folder / "cache.json", {"format": FORMAT, "version": VERSION, "model": model.name, "key": vars(key)})


def encode_pictures(
    family: Family, encoders: Any, model: Model, key: CacheKey, pictures: Mapping[str, Image.Image]
) -> dict[str, Tensor]:
    """The entries of some pictures, by their hashes."""
    pixels, sizes = zip(*(to_pixels(picture, key.resolution) for picture in pictures.values()), strict=True)
    stack = torch.stack(pixels)
    tensors: dict[str, Tensor] = {}
    for flipped in (0, 1) if key.flip else (0,):
        mean, logvar = family.encode_images(encoders, stack.flip(-1) if flipped else stack)
        both = torch.stack([mean, logvar], 1).cpu().contiguous()
        if not torch.isfinite(both).all():
            raise MapoError(f"The VAE of {model.name} gave values that are not finite for one of {list(pictures)}.")
        tensors |= {f"{name}|{flipped}": v.clone() for name, v in zip(pictures, both, strict=True)}
    return tensors | {f"{n}|size": torch.tensor(s, dtype=torch.int32) for n, s in zip(pictures, sizes, strict=True)}


def write_latents(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Add a shard of :func:`encode_pictures` entries to a cache."""
    _write(folder, "latents", tensors)


def read_latents(folders: Iterable[Path], names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The entries of the named pictures, wherever in ``folders`` they lie, in portions for a shard each."""
    place = {key: path for folder in folders for path, keys in _shards(folder, "latents") for key in keys}
    opened = lru_cache(maxsize=512)(lambda path: safe_open(path, "pt"))
    for portion in _batches(list(names), PER_SHARD):
        wanted = [f"{name}|{kind}" for name in portion for kind in ("0", "1", "size")]
        lacking = [key for key in wanted if key not in place]
        if lacking:
            raise MapoError(f"The latents of picture {lacking[0].split('|')[0]} are missing. Build the set again.")
        yield {key: opened(place[key]).get_tensor(key) for key in wanted}  # type: ignore[no-untyped-call]


def _take_over(pairs: PairSet, names: list[str], folder: Path, model: Model, key: CacheKey) -> None:
    """Put the latents that a set keeps in place of pictures into a cache, if they are of the same VAE and size."""
    own = pairs.folder / LATENTS
    info = read_json(own / "cache.json", "a cache", "The set is not whole; build it again.")
    if info["key"] != vars(latents_key(model, key.resolution)):
        raise MapoError(
            f"{pairs.folder} keeps rejected pictures only as latents of {info['model']} at {info['key']['resolution']} "
            f"pixels, which {model.name} at {key.resolution} cannot use. Train with that VAE and resolution, or build "
            f"the set again with --latents-for."
        )
    for tensors in read_latents([own], names):
        _write(folder, "latents", {k: v for k, v in tensors.items() if key.flip or not k.endswith("|1")})


def encode(
    family: Family,
    model: Model,
    pairs: PairSet,
    folder: Path,
    *,
    resolution: int | None = None,
    flip: bool = False,
    device: Any = "cpu",
    images_per_batch: int = 8,
) -> None:
    """Encode every picture and prompt of ``pairs`` that ``folder`` lacks."""
    key = cache_key(family, model, resolution, flip)
    if (folder / "cache.json").exists():
        _check(folder, key)
    elif folder.exists() and any(folder.iterdir()):
        raise MapoError(f"{folder} exists and is no cache. Choose another --out.")
    else:
        prepare_out(folder)
        folder.mkdir(exist_ok=True)
        write_head(folder, model, key)
    done = {name.split("|")[0] for kind in ("latents", "text") for _, names in _shards(folder, kind) for name in names}
    pictures = [name for name in pairs.image_names() if name not in done]
    prompts = [p for p in dict.fromkeys(pairs.table["prompt"].to_pylist()) if prompt_key(p) not in done]
    if not pictures and not prompts:
        return
    if (pairs.folder / LATENTS).exists():
        _take_over(pairs, [name for name in pictures if not pairs.keeps(name)], folder, model, key)
        pictures = [name for name in pictures if pairs.keeps(name)]
    encoders = family.load_encoders(model, device)
    bar = tqdm(total=len(pictures) + len(prompts), desc="encode", unit="item")
    for shard in _batches(prompts, PER_SHARD):
        tensors: dict[str, Tensor] = {}
        for batch in _batches(shard, 4 * images_per_batch):
            for name, values in family.encode_prompts(encoders, batch).items():
                tensors |= {
                    f"{prompt_key(p)}|{name}": v.cpu().clone(memory_format=torch.contiguous_format)
                    for p, v in zip(batch, values, strict=True)
                }
            bar.update(len(batch))
        _write(folder, "text", tensors)
    for shard in _batches(pictures, PER_SHARD):
        tensors = {}
        for batch in _batches(shard, images_per_batch):
            tensors |= encode_pictures(family, encoders, model, key, {name: pairs.image(name) for name in batch})
            bar.update(len(batch))
        _write(folder, "latents", tensors)
    bar.close()


class Cache:
    """A cache opened for reading; shards stay memory-mapped."""

    def __init__(self, folder: Path, key: CacheKey) -> None:
        _check(folder, key)
        self.folder = folder
        self._place = {
            name: path for kind in ("latents", "text") for path, names in _shards(folder, kind) for name in names
        }
        self._open = lru_cache(maxsize=512)(lambda path: safe_open(path, "pt"))

    def _get(self, name: str, what: str) -> Tensor:
        path = self._place.get(name)
        if path is None:
            raise MapoError(f"The cache {self.folder} lacks {what}. Run `mapo encode` again.")
        tensor: Tensor = self._open(path).get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def latents(self, picture: str, flip: bool) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of a picture's latents, "c h w" each."""
        mean, logvar = self._get(f"{picture}|{int(flip)}", f"picture {picture}")
        return mean, logvar

    def size(self, picture: str) -> Tensor:
        """Height, width, crop top and left, "4"."""
        return self._get(f"{picture}|size", f"picture {picture}")

    def text(self, prompt: str, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors of a prompt."""
        return {name: self._get(f"{prompt_key(prompt)}|{name}", f"the prompt {prompt!r}") for name in names}

    def text_names(self) -> list[str]:
        """The names that every prompt has."""
        return sorted({n.split("|")[1] for n, path in self._place.items() if path.name.startswith("text")})

    def lacks(self, pairs: PairSet) -> bool:
        """Whether a picture or prompt of ``pairs`` is missing."""
        prompts = {
            f"{prompt_key(p)}|{n}" for p in set(pairs.table["prompt"].to_pylist()) for n in self.text_names()[:1]
        }
        return not prompts or bool((prompts | {f"{n}|size" for n in pairs.image_names()}) - self._place.keys())
