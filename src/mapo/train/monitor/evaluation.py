"""How well the model tells chosen from rejected in pairs that it is not trained on.

Each pair is measured with the same four draws of timestep, noise and posterior every time, one from each quarter of the
times that training draws, so what changes from one evaluation to the next is the model alone. What the base makes of
them is measured once and kept in the run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mapo.encode.frame import square
from mapo.encode.seen import Rows, choose_any
from mapo.errors import MapoError, count, reason
from mapo.models.noise.process import Process
from mapo.pairs import PairSet
from mapo.statistics import Floats
from mapo.texts import is_as_written, read_object, sealed, write_json
from mapo.train.batches import Draw, Members, assemble, portions, seed_of
from mapo.train.config import Config
from mapo.train.kept import kept
from mapo.train.loop import Loop
from mapo.train.objectives import Objective
from mapo.train.objectives.reach import ENDED, pushes
from mapo.train.run.changes import told_changes
from mapo.train.run.checkpoint import REMEDY
from mapo.train.run.folder import Run
from mapo.train.step import Predict, pair_errors
from mapo.train.types import Batch

SPLITS = ("validation", "test")  # the first of them that has pairs is measured
DRAWS = 4  # of each pair, one from each quarter of the times
CANDIDATES = 64  # times that are drawn for each quarter, of which one is taken


@dataclass(frozen=True)
class Measured:
    """The errors of held-out pairs and the times that they were measured at, arrays "pairs draws".

    ``rejected`` is NaN in a set without rejected pictures.
    """

    chosen: Floats
    rejected: Floats
    timesteps: Floats

    @property
    def margin(self) -> Floats:
        """Error of rejected minus error of chosen."""
        return self.rejected - self.chosen


def held_out(pairs: PairSet, config: Config) -> tuple[str, Rows]:
    """The split of the pairs that are measured, and their rows, drawn by the seed; MapoError where none is held out.

    A set whose pairs were held out for tests alone is measured on these, but no checkpoint is chosen by them.
    """
    if config.data.split == "all":
        raise MapoError(
            "train.evaluate_every: with data.split=all every pair is trained on, so none is held out. Leave it out, or "
            "train on the split train."
        )
    among = [name for name in SPLITS if name != config.data.split]
    rows_of = {name: choose_any(pairs, name, config.data.ties).rows for name in among}
    split = next((name for name, rows in rows_of.items() if len(rows)), None)
    if split is None:
        raise MapoError(
            f"train.evaluate_every: {pairs.folder} has no pairs in the split {' or '.join(among)}, so none is held "
            "out. Leave it out, or import again without --split train, or make a set of more prompts."
        )
    if split == "test" and kept(config.train.keep_checkpoints).best:
        raise MapoError(
            f"train.keep_checkpoints: {pairs.folder} has no pairs in the split validation. The best checkpoint would "
            "be chosen by its test pairs, which then test nothing. Leave `best` out."
        )
    rows = rows_of[split]
    order = np.random.default_rng(seed_of("held out", config.train.seed)).permutation(len(rows))
    return split, np.sort(rows[order[: config.train.evaluate_pairs]])


def held_out_draw(row: int, pair: str, number: int, process: Process, shape: tuple[int, ...], seed: int) -> Draw:
    """One of the draws of a pair, by its ``pair`` id, the ``number`` of the draw and the seed alone; of a later number
    the time is later.

    It is a random one of 64 neighbours in 256 sorted times, so all draws together are times as training draws them.
    """
    generator = torch.Generator().manual_seed(seed_of("evaluation", seed, pair, number))
    times = process.draw_time(DRAWS * CANDIDATES, generator, shape).sort().values
    at = number * CANDIDATES + int(torch.randint(CANDIDATES, (), generator=generator))
    noise, *samples = (torch.randn(shape, generator=generator) for _ in range(3))
    return Draw(row, times[at], False, noise, (samples[0], samples[1]))


def decides(config: Config) -> dict[str, Any]:
    """The settings that decide what the base's errors are, by their whole names."""
    train = ("evaluate_pairs", "seed", "precision", "base_precision", "weights", "guidance")
    data = ("resolution", "buckets", "ties", "cache_precision", "clip_skip", "long_prompts")
    found = {f"train.{name}": getattr(config.train, name) for name in train}
    return {**found, **{f"data.{name}": getattr(config.data, name) for name in data}, "prediction": config.prediction}


def changed_since_base(run: Run, config: Config) -> dict[str, list[Any]]:
    """The settings that are others than those with which the base was measured, with both values."""
    kept = read_object(run.evaluation_base, "a run", REMEDY) if run.evaluation_base.exists() else {}
    before, now = kept.get("settings"), decides(config)
    if not isinstance(before, dict) or not is_as_written(kept):  # of an older version, or damaged, which is told later
        before = now
    return {name: [before.get(name), value] for name, value in now.items() if before.get(name) != value}


def check_base(run: Run, config: Config, done: int) -> None:
    """MapoError where held-out pairs would be compared with a base that was measured in another way."""
    if not (config.train.evaluate_every and done) or config.adapter.kind == "lora":  # whose base is measured again
        return
    if changed := changed_since_base(run, config):
        raise MapoError(
            f"train.evaluate_every: the base of {run.folder} was measured with other settings "
            f"({told_changes(changed)}), and once all weights have been trained it cannot be measured again. Go on "
            "with --set train.evaluate_every=0, or with the settings as they were."
        )


class Evaluation:
    """The held-out pairs of a run, what the base makes of them, and measurements of the model as it is.

    Every process measures its share of the pairs and knows all of the result.
    """

    def __init__(self, loop: Loop, run: Run, pairs: PairSet, done: int) -> None:
        self.loop, self.run = loop, run
        split, rows = held_out(pairs, loop.config)
        if split != SPLITS[0]:
            loop.processes.say(f"{pairs.folder} has no pairs in the split {SPLITS[0]}: those of {split} are measured.")
        self.members = Members(pairs, rows, loop.members.seen_in)
        what = [(pair.id, pair.chosen, pair.rejected, pair.prompt) for pair in self.members]
        self.of = f"{seed_of(what, decides(loop.config), loop.objective.needs_reference):016x}"  # what is measured
        self.base = self._base(done)

    def _base(self, done: int) -> Measured:
        """The base's errors: those of the run's file, else measured where the base can still be had."""
        loop, processes, path = self.loop, self.loop.processes, self.run.evaluation_base
        ids = [pair.id for pair in self.members]
        kept = processes.first(lambda: read_object(path, "a run", REMEDY) if path.exists() else None)
        others = processes.first(lambda: bool(changed_since_base(self.run, loop.config)))
        if kept is not None and done and not others:
            try:
                if kept["pairs"] != ids:
                    raise ValueError("it is of other pairs")
                if not is_as_written(kept):
                    raise ValueError("it is not as it was written")
                found = Measured(*(np.array(kept[name], np.float64) for name in ("chosen", "rejected", "timesteps")))
                if any(values.shape != (len(ids), DRAWS) for values in vars(found).values()):
                    raise ValueError("it lacks numbers")
                return found
            except (KeyError, TypeError, ValueError) as error:
                raise MapoError(
                    f"{path} is damaged ({reason(error)}). Set train.evaluate_every=0 to go on without."
                ) from None
        if done and not loop.trained.lora:
            missing = f"{path} is missing" if self.run.evaluations() else f"{self.run.folder} was begun without it"
            raise MapoError(
                f"train.evaluate_every: {missing}, and once all weights have been trained the base cannot be measured "
                "any more. Go on with --set train.evaluate_every=0, or begin again in another --out."
            )
        predict = loop.trained.reference_predictor() if done else loop.trained.predictor(loop.trained.network)
        found = self.measure(predict)
        told = {
            "settings": decides(loop.config),
            "pairs": ids,
            **{name: _known(values) for name, values in vars(found).items()},
        }
        processes.first(lambda: write_json(path, sealed(told)))
        return found

    def measure(self, predict: Predict) -> Measured:
        """The errors under a prediction, without gradients and dropout."""
        loop, processes, number = self.loop, self.loop.processes, len(self.members)
        mine = [(k, draw) for k in range(processes.rank, number, processes.world) for draw in range(DRAWS)]
        at_once = min(loop.config.train.pairs_per_device or loop.last - loop.first, loop.last - loop.first)
        found = list[tuple[float, ...]]()
        loop.trained.network.eval()
        try:
            with torch.no_grad():
                shares = portions(mine, at_once, lambda one: self.members.frame(one[0]))
                for portion, counts in loop.in_turn(shares, [(0, 0)]):
                    batch = self._batch(portion)
                    errors = pair_errors(predict, batch, loop.process)
                    if not counts:
                        continue
                    sides = (side.double().tolist() for side in (errors.chosen, errors.rejected))
                    found += zip(*zip(*portion, strict=True), *sides, batch.timesteps.tolist(), strict=True)
        finally:
            loop.trained.network.train()
        whole = np.full((number, DRAWS, 3), np.nan)
        for share in processes.gather(found):
            for k, draw, *values in share:
                whole[int(k), int(draw)] = values
        return Measured(whole[..., 0], whole[..., 1], whole[..., 2])

    def _batch(self, portion: Sequence[tuple[int, int]]) -> Batch:
        """Some pairs, each in one of its draws; all are seen in one frame."""
        loop, config = self.loop, self.loop.config
        model, frame = loop.trained.model, self.members.frame(portion[0][0])
        shape = model.layout.latent(*(frame or square(loop.cache.resolution)))
        drawn = [
            held_out_draw(k, self.members[k].id, number, loop.process, shape, config.train.seed)
            for k, number in portion
        ]
        return assemble(
            self.members, drawn, loop.cache, model, loop.dtype, as_tokens=config.adapter.encodes, frame=frame
        ).to(loop.processes.device)

    def row(self, step: int) -> dict[str, Any]:
        """The line of ``evaluations.jsonl`` for the model as it is."""
        began, loop = time.perf_counter(), self.loop
        with loop.trained.with_means():
            found = self.measure(loop.trained.predictor(loop.trained.network))
        objective, settings = loop.objective, loop.config.objective.settings
        values = numbers(found, self.base, objective.needs_reference) | spent(found, self.base, objective, settings)
        size = loop.config.train.pairs_per_step
        return {
            "step": step,
            "pairs_seen": step * size,
            **values,
            "of": self.of,
            "seconds": time.perf_counter() - began,
        }


def _known(values: Floats) -> list[list[float | None]]:
    """As JSON has it, which knows no NaN."""
    return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]


def numbers(found: Measured, base: Measured, over_base: bool) -> dict[str, Any]:
    """What is told of a measurement. Means are over pairs and draws; ``*_change`` is against the base, as a share.

    ``over_base``: accuracy counts margins that have grown over the base's, as for objectives with a reference. Without
    rejected pictures it is the error of chosen ones alone.
    """
    alone = {
        "pairs": len(found.chosen),
        "error_chosen": float(found.chosen.mean()),
        "error_chosen_change": float(found.chosen.mean() / base.chosen.mean() - 1),
        "timesteps": np.median(found.timesteps, 0).tolist(),
    }
    if np.isnan(found.rejected).all():
        return alone
    grown = found.margin - base.margin
    deciding = grown if over_base else found.margin
    return {
        **alone,
        "accuracy": float(((deciding > 0) + 0.5 * (deciding == 0)).mean()),
        "error_rejected": float(found.rejected.mean()),
        "error_rejected_change": float(found.rejected.mean() / base.rejected.mean() - 1),
        "margin": float(found.margin.mean()),
        "margin_over_base": float(grown.mean()),
        "margin_by_time": found.margin.mean(0).tolist(),
    }


def spent(found: Measured, base: Measured, objective: Objective, settings: Mapping[str, float]) -> dict[str, float]:
    """How hard the margin pushes in these pairs, by the objective's formula; empty where it has no margin.

    ``push``: its mean at equal errors, where SFT's pull is 1. ``beyond_reach``: the share of pairs and draws in which
    less than a tenth of that is left.
    """
    if objective.logit is None:
        return {}
    chosen = torch.from_numpy(found.chosen.ravel().copy())
    margin = found.margin - base.margin if objective.needs_reference else found.margin
    apart = chosen + torch.from_numpy(margin.ravel().copy())
    try:
        even, here = (
            pushes(objective, settings, chosen, chosen.clone()),
            pushes(objective, settings, chosen, apart.clamp(min=0)),
        )
    except Exception:  # somebody's own objective, which may ask more of residuals than one element
        return {}
    return {"push": float(even.mean()), "beyond_reach": float((here <= ENDED * even).double().mean())}


def told(row: Mapping[str, Any]) -> str:
    """A line of ``evaluations.jsonl`` in words."""
    change = f"{row['error_chosen_change']:+.1%}".replace("-", "−") + " against the model before training"
    where = f"Step {row['step']}: on {count(row['pairs'], 'held-out pair')}"
    if "accuracy" not in row:
        return f"{where} the error of chosen pictures is {change}."
    margin = f"{row['margin']:.4f}".replace("-", "−")
    return f"{where} the accuracy is {row['accuracy']:.1%}, the error of chosen pictures {change}, the margin {margin}."
