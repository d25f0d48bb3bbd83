"""What the encoders make of pictures and prompts, as a cache keeps it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapo import progress
from mapo.devices import give_back_now
from mapo.encode.cache import PER_SHARD, CacheKey, Precision, batches
from mapo.encode.frame import Frame, crop, square
from mapo.errors import MapoError, count, is_out_of_memory
from mapo.models import Cond, Opened
from mapo.models.family import ImageEncoder


def to_pixels(picture: Image.Image, to: Frame) -> tuple[Tensor, tuple[int, int, int, int]]:
    """An RGB picture → "3 h w" in [-1, 1], and (height, width, crop top, crop left) for size conditioning.

    Height and width are the picture's own, top and left are measured after resizing, as SDXL was trained.
    """
    part, left, top = crop(picture, to)
    pixels = np.asarray(part, np.float32)
    width, height = picture.size
    return torch.from_numpy(pixels).permute(2, 0, 1).div(127.5).sub(1), (height, width, top, left)


def dtype_of_text(precision: Precision) -> torch.dtype:
    """In which numbers language models are read for a cache of this precision: of half a one in bfloat16, in which T5
    does not overflow."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def encode_prompts(
    model: Opened, device: Any, prompts: Sequence[str], per_batch: int, per_shard: int = PER_SHARD,
    precision: Precision = "float32",
) -> Iterator[dict[str, Cond]]:  # fmt: skip
    """Prompt → its named tensors, on the CPU, in portions for a shard. When the last is given the encoders are gone."""
    if not prompts:
        return
    encoder = model.text_encoder(device, dtype_of_text(precision))
    with progress.bar(total=len(prompts), desc="encode prompts", unit="prompt") as bar:
        for shard in batches(prompts, per_shard):
            found: dict[str, Cond] = {prompt: {} for prompt in shard}
            for batch in batches(shard, per_batch):
                with _enough_memory(count(len(batch), "prompt")):
                    texts = encoder(batch)
                for name, values in texts.items():
                    for prompt, value in zip(batch, values, strict=True):
                        found[prompt][name] = value.cpu().clone(memory_format=torch.contiguous_format)
                bar.update(len(batch))
            yield found
    del encoder
    release()


def release() -> None:
    """Give back the memory of networks that nobody holds any more."""
    gc.collect()
    give_back_now()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def encode_pictures(
    encoder: ImageEncoder, key: CacheKey, pictures: Mapping[str, Image.Image], model: str, frame: Frame | None = None
) -> dict[str, Tensor]:
    """The entries of some pictures in one frame, by their names in the cache; without a frame in the square.

    ``model`` is named where its values are not finite.
    """
    frame = frame or square(key.resolution)
    pixels, sizes = zip(*(to_pixels(picture, frame) for picture in pictures.values()), strict=True)
    stack = torch.stack(pixels)
    tensors: dict[str, Tensor] = {}
    for flipped in (0, 1) if key.flip else (0,):
        with _enough_memory(f"{count(len(pictures), 'picture')} of {frame} pixels"):
            mean, logvar = encoder(stack.flip(-1) if flipped else stack)
        both = torch.stack([mean, logvar], 1).cpu().contiguous().to(key.dtype)
        if not torch.isfinite(both).all():
            raise MapoError(f"The VAE of {model} gave values that are not finite for one of {list(pictures)}.")
        tensors |= {f"{name}|{flipped}": v.clone() for name, v in zip(pictures, both, strict=True)}
    return tensors | {f"{n}|size": torch.tensor(s, dtype=torch.int32) for n, s in zip(pictures, sizes, strict=True)}


@contextlib.contextmanager
def _enough_memory(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MapoError(
            f"There is not enough memory to encode {what} at a time. Encode fewer: --images-per-batch 1, or for "
            "`mapo train` --set data.images_per_batch=1. What is encoded already stays."
        ) from None


def kept(value: Tensor, key: CacheKey, what: str) -> Tensor:
    """A tensor as the cache keeps it: fractions in its precision, whole numbers and masks as they are."""
    kept = value.to(key.dtype) if value.is_floating_point() else value
    if not torch.isfinite(kept).all():
        raise MapoError(
            f"The text encoders gave values for {what} that are not finite in {key.precision}. "
            "Encode with data.cache_precision=float32."
        )
    return kept
