"""A look at the errors before the first step: how large they are by timestep, and how far the objective's margin
reaches there.

What is known of an objective's settings was found on models that predict noise. The errors of a flow model are of
another size, so its training begins with this look at the model and the pairs themselves. It has noise and timesteps of
its own and moves nothing: the run is the same with it and without.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from mapo import progress
from mapo.encode.frame import square
from mapo.errors import count
from mapo.statistics import Floats
from mapo.train.batches import assemble, draws, portions, rows_at
from mapo.train.loop import Loop
from mapo.train.objectives import Objective
from mapo.train.objectives.reach import Reach, reach
from mapo.train.step import pair_errors

PAIRS, QUARTERS = 64, 4
SEED = 6 * 10**9  # of its noise and timesteps; runs count from 0
HARDLY = 0.01  # a push below this share of SFT's pull is not worth the name


@dataclass(frozen=True)
class Look:
    """The timestep of each pair that was looked at and the errors of its two images, arrays "pairs"."""

    timesteps: Floats
    chosen: Floats
    rejected: Floats
    seconds: float


def look(loop: Loop) -> Look:
    """Measure the run's first pairs, each once, without gradients; every process takes its share and knows all."""
    began, model, processes = time.perf_counter(), loop.trained.model, loop.processes
    number = min(PAIRS, len(loop.members))
    rows = rows_at(range(number), len(loop.members), loop.config.train.seed)
    mine = range(number)[processes.rank :: processes.world]
    at_once = min(loop.config.train.pairs_per_device or loop.last - loop.first, loop.last - loop.first)
    predict, found = loop.trained.predictor(loop.trained.network), list[tuple[float, float, float]]()
    loop.trained.network.eval()  # without dropout
    try:
        with (
            torch.no_grad(),
            progress.bar(total=len(mine), desc="first look", unit="pair", shown=processes.main) as bar,
        ):
            shares = portions(mine, at_once, lambda k: loop.members.frame(rows[k]))
            for portion, counts in loop.in_turn(shares, [0]):
                frame = loop.members.frame(rows[portion[0]])
                shape = model.layout.latent(*(frame or square(loop.cache.resolution)))
                drawn = draws(portion, number, loop.process, shape, seed=SEED)
                drawn = [replace(one, row=rows[k]) for one, k in zip(drawn, portion, strict=True)]
                batch = assemble(loop.members, drawn, loop.cache, model, loop.dtype, frame=frame).to(processes.device)
                errors = pair_errors(predict, batch, loop.process)
                if not counts:
                    continue
                both = (side.double().tolist() for side in (errors.chosen, errors.rejected))
                found += zip(batch.timesteps.tolist(), *both, strict=True)
                bar.update(len(portion))
    finally:
        loop.trained.network.train()
    columns = np.array([row for share in processes.gather(found) for row in share]).T
    return Look(columns[0], columns[1], columns[2], time.perf_counter() - began)


def sentences(seen: Look, name: str, objective: Objective, settings: Mapping[str, float]) -> list[str]:
    """What a person should know of the errors and of the margin's reach; nothing where errors are not finite, as the
    first step will tell that."""
    if not (np.isfinite(seen.chosen).all() and np.isfinite(seen.rejected).all()):
        return []
    return [_errors(seen), *_margin(seen, name, objective, settings)]


def _errors(seen: Look) -> str:
    parts = [part for part in np.array_split(np.argsort(seen.timesteps, kind="stable"), QUARTERS) if len(part)]
    by_time = ", ".join(f"{_median(seen.chosen[p])} up to t {seen.timesteps[p[-1]]:.0f}" for p in parts)
    return (
        f"Before the first step the denoising error is {_median(seen.chosen)} for chosen pictures and "
        f"{_median(seen.rejected)} for rejected ones; the two of a pair differ by "
        f"{_median(np.abs(seen.rejected - seen.chosen))} (medians of {count(len(seen.chosen), 'pair')}, "
        f"looked at in {seen.seconds:.1f} s). Chosen by timestep: {by_time}."
    )


def _margin(seen: Look, name: str, objective: Objective, settings: Mapping[str, float]) -> list[str]:
    error = float(np.median(np.minimum(seen.chosen, seen.rejected)))
    try:
        here = reach(objective, settings, error)
    except Exception:  # somebody's own objective, which may ask more of residuals than one element; training goes on
        return []
    if not here.push > 0:
        return []
    told = f"{name} with beta {settings['beta']:g}" if "beta" in settings else name
    strength = (
        f"{told}: where both errors are {_number(error)}, the margin pushes the rejected picture away "
        f"{_number(here.push)} times as hard as SFT learns the chosen one."
    )
    if here.push < HARDLY and not objective.needs_reference:
        return [f"{strength} So this is all but SFT."]
    return [f"{strength} {_end(here, seen, objective.needs_reference)}"]


def _end(here: Reach, seen: Look, over_reference: bool) -> str:
    """Where the push has ended."""
    if here.margin is None:
        return "The push does not end, however far the rejected error rises."
    over = "above where it began" if over_reference else "above the chosen one"
    end = (
        f"The push has fallen to a tenth once the rejected error is {_number(here.margin)} "
        f"({here.margin / here.error:.0%}) {over}."
    )
    if over_reference:
        return end
    beyond = int((seen.rejected - seen.chosen > here.margin).sum())
    return f"{end} {beyond} of these {count(len(seen.chosen), 'pair')} {'is' if beyond == 1 else 'are'} there already."


def _median(values: Floats) -> str:
    return _number(float(np.median(values)))


def _number(value: float) -> str:
    """Two digits of it, as people write them."""
    return f"{float(f'{value:.2g}'):g}"
