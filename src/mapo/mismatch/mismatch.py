"""Mismatch: how far a set of pairs is from a model before anything is trained, measured in two ways.

Both compare the model's own samples with the set's pictures of the same prompts: by the distance of embeddings, as in
the paper (``distance.py``), and by the model's denoising error, without another network (``denoising.py``).
``words.py`` says what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.encode.cache import cache_key
from mapo.encode.frame import square
from mapo.encode.seen import frames_of, what_training_sees, with_chunks
from mapo.errors import MapoError, memory_told
from mapo.mismatch.denoising import BINS, Errors, compare_errors, denoise, encode
from mapo.mismatch.distance import Distances, compare_embeddings, default_encoder, embed, load_encoder
from mapo.mismatch.material import choose_pairs, frames_of_pairs, gather, own_samples
from mapo.models import ModelFiles, find_model, open_model
from mapo.pairs import PairSet
from mapo.sample.sample import default_sampling
from mapo.statistics import MIN_PAIRS, MIN_PROMPTS
from mapo.worlds import world_of

NUM_PAIRS, DRAWS = 128, 8
SEEDS = (1000, 1001)  # far from those of `mapo build`, which counts from 0: its pictures would meet themselves


@dataclass(frozen=True)
class Mismatch:
    """What was measured of a model and a set, every number with its 95 % interval over prompts.

    ``distances`` is None where no encoder was asked for. ``bins`` are the errors by quarters of the timesteps.
    """

    model: str
    revision: str
    built_in: bool  # a model that the package brings along, or a run of it
    on_scale: bool  # the one on which the study measured its scale, or a run of it
    pairs: str
    fingerprint: str
    split: str
    of_pairs: int  # the pairs that the split has
    num_pairs: int  # those that were measured
    num_prompts: int
    seeds: tuple[int, ...]  # of the own samples
    seed: int  # of the choice of pairs, of noise and timesteps
    draws: int  # of noise and timestep, for each pair
    sampling: dict[str, Any]
    usual: bool  # whether pictures were made as the model advises, which is how the study's scale was measured
    distances: Distances | None
    errors: Errors
    bins: tuple[Errors, ...]
    notes: tuple[str, ...]

    @property
    def conclusive(self) -> bool:
        """Whether pairs and prompts are enough to say anything."""
        return self.num_pairs >= MIN_PAIRS and self.num_prompts >= MIN_PROMPTS


def measure(
    model: str,
    pairs: Path,
    images: Path,
    *,
    encoder: str | None = None,
    num_pairs: int = NUM_PAIRS,
    seeds: Sequence[int] = SEEDS,
    split: str = "train",
    seed: int = 0,
    draws: int = DRAWS,
    clip_skip: int | None = None,
    vae: str | None = None,
    prediction: str | None = None,
    loras: Sequence[str] = (),
    long_prompts: str | None = None,
    resolution: int | None = None,
    buckets: bool = False,
    **how: Any,
) -> Mismatch:
    """Measure at most ``num_pairs`` pairs of ``split``, chosen at random, against the model's own samples.

    Own samples, one of each prompt and seed, go to the images folder ``images``; what is there is not made again.
    ``encoder`` is a scorer that embeds, or "none" (default: mini-learned for the built-in model, dinov2 for others).
    ``draws`` is a multiple of 4. ``clip_skip`` is for Stable Diffusion 1 and 2, ``long_prompts`` ("cut" or "chunk")
    for SDXL too; ``vae`` is another VAE, ``prediction`` what the denoiser predicts (default: as a run was trained).
    ``how`` is a :class:`mapo.sample.sample.Sampling`; the denoiser runs in its precision too, errors are float32 in any
    case. Pictures are seen, and own samples drawn, as in a training at ``resolution`` (default: the model's own): in
    the square, or with ``buckets`` in the frames of ``data.buckets``.

    Raises MapoError when the split has no pairs, an encoder cannot embed or is not there, and when the folder
    ``images`` holds pictures that were made with other settings.
    """
    _refuse_impossible(num_pairs, seed, seeds, draws)
    told: dict[str, Any] = {
        "clip_skip": clip_skip, "vae": vae, "prediction": prediction, "loras": loras, "long_prompts": long_prompts,
    }  # fmt: skip
    opened, found = PairSet(pairs), find_model(model, **told)
    opened.refuse_without_pictures("mapo mismatch")
    trainee = with_chunks(open_model(found), opened)
    key, sampling = cache_key(trainee, resolution), default_sampling(found, **how)
    pace = {"precision": sampling.precision, "images_per_batch": sampling.images_per_batch}  # change them by rounding
    usual = sampling == default_sampling(found, **pace)
    members, of_pairs = choose_pairs(opened, split, num_pairs, seed)
    usually = square(trainee.layout.checked(None))
    among = frames_of(trainee, resolution, buckets)
    frames = [] if among == (usually,) else frames_of_pairs(opened, members, among)
    usual &= set(frames) <= {usually}
    scorer = load_encoder(encoder or default_encoder(found))
    rows = own_samples(model, members, seeds, images, sampling, frames, **told)
    material = gather(opened, members, images, rows, key.resolution, frames)
    distances = None
    with memory_told(sampling.images_per_batch):
        if scorer is not None:
            distances = compare_embeddings(scorer, embed(scorer, material, sampling.images_per_batch), material)
        del scorer  # and its weights
        encoded = encode(trainee, opened, key, material, sampling.images_per_batch)
        errors = denoise(trainee, encoded, material, seed, draws, sampling.precision, sampling.images_per_batch)
    losses = what_training_sees(opened, trainee, split=split, resolution=resolution, buckets=buckets).losses()
    notes = material.notes(encoded.latents.keys()) + _loras_told(found)
    if among[0] != usually:
        notes.append(f"Measured at {key.resolution} pixels; the model's own are {usually.width}.")
    if losses:
        notes.append(f"Of the split: {', '.join(losses)}.")
    bins = compare_errors(errors, material.clusters, trainee.process.num_timesteps)
    world = world_of(found.base)
    on_scale = world is not None and found.base.resolve() == world.models[world.name].resolve()
    return Mismatch(
        found.stable_name, found.revision(), world is not None, on_scale, str(pairs), opened.fingerprint(), split,
        of_pairs, len(members), len(set(material.clusters)), tuple(seeds), seed, draws, sampling.told(), usual,
        distances, bins[0], tuple(bins[1:]), tuple(notes),
    )  # fmt: skip


def _loras_told(model: ModelFiles) -> list[str]:
    """A sentence for each LoRA that lies on the model."""
    loras = model.named_loras_told()
    return [f"On top of the model lies the LoRA {lora['file']} at {lora['weight']:g}." for lora in loras]


def _refuse_impossible(num_pairs: int, seed: int, seeds: Sequence[int], draws: int) -> None:
    """MapoError for a number that a person may have given wrong, ValueError for one of ours."""
    if num_pairs < 1:
        raise MapoError(f"--num-pairs is {num_pairs}; it must be at least 1.")
    if seed < 0:
        raise MapoError(f"--seed is {seed}; it must not be negative.")
    if not seeds or draws < BINS or draws % BINS:
        raise ValueError(f"it takes a seed, and draws in a multiple of {BINS}")
