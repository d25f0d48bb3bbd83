"""One training of the study and the look at what it learned; every result is a line that is written once."""

from __future__ import annotations

import math
import random
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mapo.encode.cache import Cache, cache_key
from mapo.errors import DivergedError
from mapo.files import sha256
from mapo.lab.study.domains import DOMAINS, Eyes, diversity
from mapo.models import find_model, open_model
from mapo.pairs import PairSet, PairWriter
from mapo.sample.sample import Sampler, default_sampling
from mapo.texts import append_lines, read_lines
from mapo.train.batches import assemble, draws
from mapo.train.config import make_config
from mapo.train.step import pair_errors
from mapo.train.train import train

ERRORS = ("error chosen", "error rejected")
JUDGES = ("mini-learned", "mini-search")
HELD_OUT = 32  # pairs at the end of a pool that no run trains on
PAIRS_PER_STEP = 8
WARMUP_STEPS = 8


@dataclass(frozen=True)
class Job:
    """One training: what, with which settings, on how many pairs, and at which numbers of steps to look.

    ``split`` and ``picture_seeds`` say which pictures are looked at. Results of an older ``version`` of the domain are
    not taken for new ones.
    """

    domain: str
    method: str
    settings: tuple[tuple[str, float], ...]  # lr and the objective's knobs
    pairs: int
    seed: int
    steps: tuple[int, ...]
    split: str
    picture_seeds: int
    version: int  # of the domain

    @property
    def key(self) -> str:
        """The name under which its result is kept."""
        return sha256(repr(self).encode())[:16]


def run(work: Path, job: Job, model: str) -> list[dict[str, Any]]:
    """Train ``model`` and look at each of ``job.steps``; a result per look. Leaves no files but in the common cache."""
    folder = work / "running" / job.key
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return _run(work, folder, job, model)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(work: Path, folder: Path, job: Job, model: str) -> list[dict[str, Any]]:
    settings = dict(job.settings)
    lr = settings.pop("lr")
    _subset(work / "pools" / job.domain, folder / "pairs", job.pairs, job.seed)
    results: list[dict[str, Any]] = []
    for steps in job.steps:
        config = make_config({
            "model": model, "pairs": str(folder / "pairs"), "cache": str(work / "cache"),
            "objective": {"name": job.method, **settings},
            "optim": {"lr": lr, "warmup_steps": WARMUP_STEPS},
            "data": {"split": "all"},
            "train": {"steps": steps, "pairs_per_step": PAIRS_PER_STEP, "seed": job.seed, "save_every_steps": 10**6},
        })  # fmt: skip
        try:
            train(config, folder / "run")
            seen = look(work, job, str(folder / "run"))
        except DivergedError as error:
            return [*results, {"steps": steps, "failed": str(error), **_nothing(job)}]  # a result like others
        results.append({"steps": steps, **seen, **_speed(folder / "run")})
    return results


def _subset(pool: Path, out: Path, count: int, seed: int) -> None:
    """A set of ``count`` pairs of the pool, others for every seed."""
    source = PairSet(pool)
    rows = random.Random(f"{pool.name}:{seed}").sample(range(len(source) - HELD_OUT), count)
    with PairWriter(out, {"from": pool.name}) as writer:
        for row in rows:
            pair = source[row]
            assert pair.rejected is not None  # a pool keeps both sides
            writer.add_pair(pair.prompt, source.image_bytes(pair.chosen), source.image_bytes(pair.rejected))


def _speed(run: Path) -> dict[str, float]:
    return {"seconds_per_step": round(statistics.median(step_seconds(run / "metrics.jsonl")), 4)}


def step_seconds(metrics: Path) -> list[float]:
    """The seconds that each step of a run took."""
    return [float(line["seconds"]) for line in read_lines(metrics)]


@lru_cache(maxsize=1)
def _eyes(folder: Path) -> Eyes:
    return Eyes(folder)


def look(work: Path, job: Job, model: str) -> dict[str, Any]:
    """What a model's pictures of the domain's prompts show, as strings of 0 and 1 with a digit per picture.

    Pictures stand prompt by prompt, seeds together. DivergedError where its errors are not finite.
    """
    measured = errors(work, job.domain, model)
    if not all(map(math.isfinite, measured.values())):
        raise DivergedError("The last step ruined it: its errors are not finite.")
    domain, eyes = DOMAINS[job.domain], _eyes(work / "probes")
    sampler = Sampler(model)
    goal, kept = domain.prompts(job.split)
    seen: dict[str, Any] = {}
    pictures, prompts = _pictures(sampler, goal, job.picture_seeds)
    for judge in JUDGES:
        seen[f"reached {judge}"] = _digits(eyes.reached(job.domain, judge, pictures, prompts))
    seen["diversity"] = round(diversity(pictures, prompts), 3)
    if kept != goal:
        pictures, prompts = _pictures(sampler, kept, 1)
    for judge in JUDGES:
        seen[f"followed {judge}"] = _digits(eyes.followed(job.domain, judge, pictures, prompts))
    seen |= {"prompts": [len(goal), len(kept)], "same": goal == kept}
    return {**seen, **{name: round(value, 6) for name, value in measured.items()}}


def _nothing(job: Job) -> dict[str, Any]:
    """The look at a model that is lost: no picture shows anything."""
    goal, kept = DOMAINS[job.domain].prompts(job.split)
    reached = "0" * (len(goal) * job.picture_seeds)
    followed = reached if goal == kept else "0" * len(kept)
    told = {"reached": reached, "followed": followed}
    seen = {f"{what} {judge}": digits for what, digits in told.items() for judge in JUDGES}
    return {**seen, "prompts": [len(goal), len(kept)], "same": goal == kept}


def _pictures(sampler: Sampler, prompts: Sequence[str], seeds: int) -> tuple[Any, list[str]]:
    how = default_sampling(sampler.model)
    jobs = [(prompt, seed) for prompt in prompts for seed in range(seeds)]
    made: list[Image.Image] = []
    for start in range(0, len(jobs), how.images_per_batch):
        made += sampler.batch(jobs[start : start + how.images_per_batch], how)
    return np.stack([np.asarray(picture.convert("RGB")) for picture in made]), [prompt for prompt, _ in jobs]


def _digits(flags: Any) -> str:
    return "".join("1" if flag else "0" for flag in flags)


@torch.no_grad()
def errors(work: Path, domain: str, model: str) -> dict[str, float]:
    """Mean denoising errors on the pool's held-out pairs, with the same noise and timesteps for every model."""
    found = open_model(find_model(model))
    pool = PairSet(work / "pools" / domain)
    held_out = [pool[row] for row in range(len(pool) - HELD_OUT, len(pool))]
    cache = Cache(work / "cache", cache_key(found))
    drawn = draws(range(HELD_OUT), HELD_OUT, found.process, found.layout.latent(cache.resolution), seed=0)
    batch = assemble(held_out, drawn, cache, found)
    denoiser = found.denoiser(torch.device("cpu"), torch.float32).eval()
    result = pair_errors(lambda x, t, cond: found.predict(denoiser, x, t, cond), batch, found.process)
    return dict(zip(ERRORS, (float(result.chosen.mean()), float(result.rejected.mean())), strict=True))


JOB = {field.name for field in fields(Job)}


class ResultsFile:
    """Results by key, a JSON line each, appended as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            for row in read_lines(path):
                try:
                    if row["job"].keys() == JOB and row["job"]["domain"] in DOMAINS and row["looks"]:
                        self.rows[row["key"]] = row
                except (TypeError, KeyError, AttributeError):
                    continue  # of another version; what it told is made again

    def add(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a result."""
        self.rows[key] = {"key": key, **row}
        append_lines(self.path, [self.rows[key]])
        return self.rows[key]
