"""The denoising error of the model's own samples and of a set's pictures, at the same noise and the same timesteps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mapo import progress
from mapo.devices import best_device
from mapo.encode.cache import LATENTS, CacheKey, batches, latents_key, means_and_sizes, read_latents
from mapo.encode.encoding import encode_pictures, encode_prompts, release
from mapo.encode.frame import Frame
from mapo.errors import MapoError
from mapo.mismatch.material import CHOSEN, OWN, REJECTED, Material
from mapo.models import Cond, Frames, Opened, together
from mapo.models.family import filled_up
from mapo.pairs.pairs import Pair, PairSet
from mapo.sample.sample import PRECISIONS
from mapo.statistics import Floats, Interval, mean, mean_difference, ratio
from mapo.texts import read_json
from mapo.train.step import residuals
from mapo.train.types import mean_squares

BINS = 4


@dataclass(frozen=True)
class Gap:
    """The error of pictures, what it is above that of the own samples, and this as a share of the latter."""

    error: Interval
    gap: Interval
    relative: Interval


@dataclass(frozen=True)
class Errors:
    """Errors at timesteps ``first`` … ``last``, means over pairs and draws.

    ``margin`` is the error of the rejected minus that of the chosen; it and ``rejected`` are None where the set has
    neither pictures nor fitting latents of the rejected.
    """

    first: int
    last: int
    own: Interval
    chosen: Gap
    rejected: Gap | None
    margin: Interval | None


@dataclass(frozen=True)
class Encoded:
    """What the denoiser is given, on the CPU: by picture the latent "c h w" and the sizes, by prompt its tensors."""

    latents: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor]
    texts: Mapping[str, dict[str, Tensor]]


def encode(model: Opened, pairs: PairSet, key: CacheKey, material: Material, images_per_batch: int) -> Encoded:
    """Encode the pictures (the mean of the VAE's posterior, not a sample of it) and prompts of ``material``."""
    in_chunks = model.files.long_prompts == "chunk"
    in_frames, prompts = material.in_frames(), list(dict.fromkeys(pair.prompt for pair in material.pairs))
    if in_chunks and "" not in prompts:
        prompts.append("")
    entries, texts = _kept_latents(pairs, material, model, key), dict[str, dict[str, Tensor]]()
    for found in encode_prompts(model, best_device(), prompts, images_per_batch, len(prompts)):
        texts |= found
    if in_chunks:
        texts = {prompt: filled_up(text, texts[""], model.files.chunks) for prompt, text in texts.items()}
    encoder = model.image_encoder(best_device())
    with progress.bar(total=sum(map(len, in_frames.values())), desc="encode pictures", unit="picture") as bar:
        for frame, names in in_frames.items():
            for portion in batches(names, images_per_batch):
                pictures = {name: material.pictures[name]() for name in portion}
                entries |= encode_pictures(encoder, key, pictures, model.files.name, frame)
                bar.update(len(portion))
    del encoder
    release()
    means, sizes = means_and_sizes(entries)
    latents = {name: model.scale(one[None])[0] for name, one in means.items()}
    return Encoded(latents, sizes, texts)


def _kept_latents(pairs: PairSet, material: Material, model: Opened, key: CacheKey) -> dict[str, Tensor]:
    """The latents that the set keeps in place of rejected pictures, if they are of this VAE and resolution."""
    names = [name for (name,) in material.sides.get(REJECTED, ()) if name not in material.pictures]
    if not names:
        return {}
    info = read_json(pairs.folder / LATENTS / "cache.json", "a cache", "The set is not whole; build it again.")
    if info["key"] != latents_key(model.files, key.resolution).as_json():
        return {}
    found: dict[str, Tensor] = {}
    for entries in read_latents([pairs.folder / LATENTS], dict.fromkeys(names)):
        found |= entries
    return found


def draw(pair: Pair, number: int, draws: int, timesteps: int, seed: int, shape: Sequence[int]) -> tuple[int, Tensor]:
    """The number of a timestep, uniform in stratum ``number`` of ``draws``, and the noise "c h w" of a pair's draw."""
    rng = np.random.default_rng([seed, number, *pair.id.encode()])
    first, end = (timesteps * k // draws for k in (number, number + 1))
    return int(rng.integers(first, end)), torch.from_numpy(rng.standard_normal(tuple(shape), np.float32))


def denoise(
    model: Opened,
    encoded: Encoded,
    material: Material,
    seed: int,
    draws: int,
    precision: str,
    images_per_batch: int,
) -> dict[str, Floats]:
    """The error of each side's pictures, "pairs draws". Draw k of a pair takes its own samples in turn.

    The sides go through the denoiser one after the other in the same batch layout, so equal pictures have equal errors.
    A batch holds pairs of one frame.
    """
    device, dtype = best_device(), PRECISIONS[precision]
    denoiser, process = model.denoiser(device, dtype).eval(), model.process

    def predict(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return model.predict(denoiser, x_t.to(dtype), t, cond)

    sides = material.sides_in(encoded.latents)
    errors = {side: np.empty((len(material.pairs), draws)) for side in sides}
    of_frames: dict[Frame, list[int]] = {}
    for row, frame in enumerate(material.frames):
        of_frames.setdefault(frame, []).append(row)
    jobs = {frame: list(itertools.product(rows, range(draws))) for frame, rows in of_frames.items()}
    total = len(material.pairs) * draws * len(sides)
    with (
        progress.bar(total=total, desc="denoise", unit="image") as bar,
        torch.no_grad(),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        for frame, portion in ((f, some) for f, own in jobs.items() for some in batches(own, images_per_batch)):
            pairs = [material.pairs[row] for row, _ in portion]
            shape = encoded.latents[material.sides[CHOSEN][portion[0][0]][0]].shape
            drawn = [
                draw(pair, k, draws, process.num_timesteps, seed, shape)
                for pair, (_, k) in zip(pairs, portion, strict=True)
            ]
            t = process.time(torch.tensor([number for number, _ in drawn])).to(device)
            noise = torch.stack([n for _, n in drawn]).to(device)
            texts = [encoded.texts[pair.prompt] for pair in pairs]
            text = together(texts)
            for side in sides:
                lists = material.sides[side]
                names = [lists[row][k % len(lists[row])] for row, k in portion]
                latents = torch.stack([encoded.latents[name] for name in names]).to(device)
                frames = Frames.alike(torch.stack([encoded.sizes[name] for name in names]), frame)
                cond = {name: value.to(device) for name, value in model.condition(text, frames).items()}
                found = mean_squares(residuals(predict, process, latents, noise, t, cond))
                if not torch.isfinite(found).all():
                    raise MapoError(
                        f"The denoising error of a {side} picture is not finite, pairs {[p.id for p in pairs]}. "
                        f"{'Use --precision float32.' if precision != 'float32' else 'The model is damaged.'}"
                    )
                errors[side][tuple(zip(*portion, strict=True))] = found.double().cpu().numpy()
                bar.update(len(portion))
    return errors


def compare_errors(errors: Mapping[str, Floats], clusters: Sequence[str], timesteps: int) -> list[Errors]:
    """The means over all timesteps, then over each quarter of them, with their intervals."""
    draws = errors[OWN].shape[1]
    found = []
    for start, end in [(0, BINS), *((k, k + 1) for k in range(BINS))]:
        columns = slice(draws * start // BINS, draws * end // BINS)
        mine = {side: values[:, columns].mean(1) for side, values in errors.items()}
        found.append(_errors(mine, clusters, timesteps * start // BINS, timesteps * end // BINS - 1))
    return found


def _errors(errors: Mapping[str, Floats], clusters: Sequence[str], first: int, last: int) -> Errors:
    own = errors[OWN]

    def gap(values: Floats) -> Gap:
        relative = ratio(values - own, own, clusters)
        return Gap(mean(values, clusters), mean_difference(own, values, clusters), relative)

    chosen, rejected = errors[CHOSEN], errors.get(REJECTED)
    margin = None if rejected is None else mean_difference(chosen, rejected, clusters)
    return Errors(
        first, last, mean(own, clusters), gap(chosen), None if rejected is None else gap(rejected), margin
    )  # fmt: skip
