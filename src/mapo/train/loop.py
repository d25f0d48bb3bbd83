"""The training loop: batch → errors → loss → update, step by step, in agreement with the other processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from mapo.encode.cache import Cache
from mapo.encode.frame import Frame, square
from mapo.errors import DivergedError, MapoError, SaidElsewhere, count
from mapo.train.batches import Members, assemble, draws, portions, prefetched, rows_at
from mapo.train.config import Config
from mapo.train.objectives import Objective
from mapo.train.objectives.own import constants_of
from mapo.train.processes import Processes
from mapo.train.step import Predict, pair_errors, pair_losses, pair_metrics
from mapo.train.types import Batch, PairErrors
from mapo.train.weights.dropout import drop_at
from mapo.train.weights.opening import Trained, working_dtype


class Loop:
    """Yields the metrics of each step after the weights have moved.

    ``asked_to_stop`` says whether this process was told to stop. ``stopping`` is true once one of them was: all stop
    after the same step.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        processes: Processes,
        members: Members,
        cache: Cache,
        trained: Trained,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.objective, self.processes, self.members = config, objective, processes, members
        self.cache, self.trained, self.asked_to_stop, self.stopping = cache, trained, asked_to_stop, False
        self.trouble: Exception | None = None  # of this process, which all hear of in the next step
        self.process, self.dtype = trained.model.process, working_dtype(config)
        size = config.train.pairs_per_step
        self.first, self.last = (size * rank // processes.world for rank in (processes.rank, processes.rank + 1))

    def frame_at(self, position: int) -> Frame | None:
        """The frame of the pair at a position of the run; None: the square of the cache."""
        return self.members.frame(rows_at([position], len(self.members), self.config.train.seed)[0])

    def batch_at(self, positions: Sequence[int]) -> Batch:
        """The pairs at some positions of the run, which are seen in one frame."""
        model, seed = self.trained.model, self.config.train.seed
        frame = self.frame_at(positions[0])
        shape = model.layout.latent(*(frame or square(self.cache.resolution)))
        data = self.config.data
        drawn = draws(
            positions, len(self.members), self.process, shape, seed=seed, flip=data.flip,
            caption_dropout=data.caption_dropout,
        )  # fmt: skip
        as_tokens = self.config.adapter.text_encoders
        return assemble(self.members, drawn, self.cache, model, self.dtype, as_tokens=as_tokens, frame=frame)

    def micro_batches(self, step: int) -> list[list[int]]:
        """The positions of this process's pairs of a step, in portions of one frame that fit the device."""
        start = step * self.config.train.pairs_per_step
        most = self.config.train.pairs_per_device or self.last - self.first
        return portions(range(start + self.first, start + self.last), most, self.frame_at)

    def total_weight(self, step: int) -> float:
        """The weight of the whole step's pairs over all processes."""
        size = self.config.train.pairs_per_step
        positions = range(step * size, (step + 1) * size)
        rows = rows_at(positions, len(self.members), self.config.train.seed)
        return float(self.members.weights[rows].sum()) or 1.0

    def run(self, first_step: int) -> Iterator[dict[str, float]]:
        """Steps from ``first_step`` to the end, or until a process is asked to stop."""
        steps = range(first_step, self.config.train.steps)
        jobs = (partial(self.batch_at, positions) for step in steps for positions in self.micro_batches(step))
        batches = prefetched(jobs)
        reference = self.trained.reference_predictor() if self.objective.needs_reference else None
        for step in steps:
            began = time.perf_counter()
            values = self.one_step(step, batches, reference)
            seconds = time.perf_counter() - began
            size = self.config.train.pairs_per_step
            yield {
                "step": step + 1,
                "pairs_seen": (step + 1) * size,
                **values,
                "pairs_per_second": size / seconds,
                "seconds": seconds,
            }
            if self.stopping:
                return

    def one_step(self, step: int, batches: Iterator[Batch], reference: Predict | None) -> dict[str, float]:
        """Errors, loss, gradient and update of one step; its means over all pairs and processes.

        Raises DivergedError in every process, before the weights move, where a loss or gradient of one is not finite.
        """
        updater, settings = self.trained.updater, self.config.objective.settings
        updater.begin(step)
        total, number_of_portions = self.total_weight(step), len(self.micro_batches(step))
        portions: Iterable[Batch] = (next(batches).to(self.processes.device) for _ in range(number_of_portions))
        prepare, constants = self.objective.prepare is not None, dict[str, float]()
        if prepare and number_of_portions > 1:
            portions = list(portions)
            looked = zip(portions, self.micro_batches(step), strict=True)
            constants = self._constants([self._look_at(batch, positions, reference) for batch, positions in looked])
        predict = self.trained.predictor(self.trained.wrapped)
        sums: dict[str, Tensor] = {}
        bad: list[str] = []  # pairs whose loss is not finite
        for number, (batch, positions) in enumerate(zip(portions, self.micro_batches(step), strict=True)):
            with self._synchronised(number == number_of_portions - 1):
                drop_at(self.trained.network, self.config.train.seed, positions)
                errors = pair_errors(predict, batch, self.process, reference, self.objective.extras)
                if prepare and number_of_portions == 1:
                    constants = self._constants([errors])
                losses = pair_losses(self.objective, errors, {**settings, **constants}, batch.preference)
                bad += _not_finite(losses, batch)
                loss = (losses * batch.weight.to(losses.device)).sum() / total
                updater.backward(loss * self.processes.world)
            for name, value in pair_metrics(self.objective, errors, losses, {**settings, **constants}).items():
                sums[name] = sums.get(name, 0) + value.sum()
        any_bad, self.stopping, trouble = self.processes.agree(
            bool(bad), self.asked_to_stop(), self.trouble is not None
        )
        if trouble:
            self.say_trouble()
            raise SaidElsewhere("Another process has stopped.")
        if any_bad:
            raise DivergedError(self._bad_losses(step + 1, bad))
        norm = updater.end()
        if norm is not None and not math.isfinite(norm):
            raise DivergedError(
                f"Step {step + 1}: the gradient is not finite; the weights were left as they were. "
                f"{'Pair' if len(batch.ids) == 1 else 'Pairs'} {', '.join(batch.ids[:5])}, timesteps "
                f"{batch.timesteps[:5].tolist()}. Try a lower optim.lr, "
                "or train.precision=float32."
            )
        device = self.processes.device
        kind = torch.float32 if device.type == "mps" else torch.float64
        stacked = self.processes.sum(torch.stack([s.to(device, kind) for s in sums.values()]))
        means = (stacked / self.config.train.pairs_per_step).tolist()
        told = {} if norm is None else {"grad_norm": norm}
        return {**dict(zip(sums, means, strict=True)), **constants, **told, "lr": updater.rate}

    @torch.no_grad()
    def _look_at(self, batch: Batch, positions: list[int], reference: Predict | None) -> PairErrors:
        """The errors of a portion, without a graph, for what an objective prepares of a whole step."""
        predict = self.trained.predictor(self.trained.network)
        drop_at(self.trained.network, self.config.train.seed, positions)
        return pair_errors(predict, batch, self.process, reference, self.objective.extras)

    def _constants(self, portions: list[PairErrors]) -> dict[str, float]:
        """What the objective prepares from the errors of all pairs of the step, over all processes in their order."""
        mine = [_numbers(errors) for errors in portions]
        everyone = [portion for found in self.processes.gather(mine) for portion in found]
        whole = {name: torch.cat([portion[name] for portion in everyone]) for name in everyone[0]}
        names = [f.name for f in fields(PairErrors)]
        errors = PairErrors(**{name: whole[name] for name in names if name in whole})  # type: ignore[arg-type]
        extras = {name.removeprefix("extras."): values for name, values in whole.items() if name.startswith("extras.")}
        return constants_of(self.objective, replace(errors, extras=extras), self.config.objective.name)

    def guarded(self, work: Callable[[], None]) -> None:
        """Do what only this process does; where it fails all stop in the next step, and it is said here."""
        try:
            work()
        except Exception as error:
            if self.processes.world == 1:
                raise
            self.trouble = error

    def say_trouble(self) -> None:
        """Raise what went wrong in this process, if anything."""
        if self.trouble is not None:
            raise self.trouble

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between processes with the last portion of a step only."""
        if last or self.trained.wrapped is self.trained.network:
            return contextlib.nullcontext()
        return self.trained.wrapped.no_sync()  # type: ignore[operator, no-any-return]

    def _bad_losses(self, step: int, mine: list[str]) -> str:
        named = [name for found in self.processes.gather(mine) for name in found]
        return (
            f"Step {step}: the loss is not finite for {count(len(named), 'pair')}: {', '.join(named[:5])}. "
            "The weights were "
            "left as they were. Look at these pictures, try a lower optim.lr, or train.precision=float32."
        )


def _numbers(errors: PairErrors) -> dict[str, Tensor]:
    """The numbers of each pair by name, on the CPU without a graph."""
    plain = {f.name: getattr(errors, f.name) for f in fields(errors)}
    numbers = {name: values for name, values in plain.items() if isinstance(values, Tensor)}
    numbers |= {f"extras.{name}": values for name, values in errors.extras.items()}
    return {name: values.detach().cpu().double() for name, values in numbers.items()}


def _not_finite(losses: Tensor, batch: Batch) -> list[str]:
    """The pairs of a batch whose loss is not finite, with their timesteps."""
    places = (~torch.isfinite(losses.detach())).nonzero().flatten().tolist()
    return [f"{batch.ids[i]} (timestep {int(batch.timesteps[i])})" for i in places]


def check_shares(config: Config, processes: Processes) -> None:
    """Every process needs a pair of each step."""
    size, world = config.train.pairs_per_step, processes.world
    if size < world:
        raise MapoError(f"train.pairs_per_step is {size}, but there are {world} processes. Make it at least {world}.")
