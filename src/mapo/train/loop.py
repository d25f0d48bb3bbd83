"""The training loop: batch → errors → loss → update, step by step, in agreement with the other processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from mapo.encode.cache import Cache
from mapo.errors import DivergedError, MapoError, SaidElsewhere, count
from mapo.models import Family, Model
from mapo.models.noise import Schedule
from mapo.train.adapters import without_adapter
from mapo.train.batches import Members, load_batch, prefetched, rows_at
from mapo.train.config import Config
from mapo.train.objectives import OBJECTIVES
from mapo.train.optim import learning_rate
from mapo.train.processes import Processes
from mapo.train.step import Predict, pair_errors, pair_losses, pair_metrics
from mapo.train.types import Batch

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}  # of the weights


class Loop:
    """Yields the metrics of each step after the weights have moved.

    ``wrapped`` is ``denoiser`` as several processes share it, ``asked_to_stop`` says whether this process was told to
    stop. ``stopping`` is true once one of them was: all stop after the same step.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes,
        family: Family,
        model: Model,
        members: Members,
        cache: Cache,
        wrapped: nn.Module,
        denoiser: nn.Module,
        reference_copy: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.processes, self.members, self.optimizer = config, processes, members, optimizer
        self.wrapped, self.denoiser, self.reference_copy = wrapped, denoiser, reference_copy
        self.family, self.asked_to_stop, self.stopping = family, asked_to_stop, False
        self.trouble: Exception | None = None  # of this process, which all hear of in the next step
        self.schedule: Schedule = family.schedule(model)
        self.dtype = DTYPES[config.train.precision]
        self.batch_at = partial(
            load_batch,
            pairs=members,
            cache=cache,
            family=family,
            model=model,
            seed=config.train.seed,
            resolution=config.data.resolution or family.resolution(model),
            num_timesteps=self.schedule.num_timesteps,
            flip=config.data.flip,
            dtype=self.dtype,
        )
        size = config.train.pairs_per_step
        self.first, self.last = (size * rank // processes.world for rank in (processes.rank, processes.rank + 1))

    def micro_batches(self, step: int) -> list[range]:
        """The positions of this process's pairs of a step, in portions that fit the device."""
        start = step * self.config.train.pairs_per_step
        most = self.config.train.pairs_per_device or self.last - self.first
        return [range(start + k, start + min(k + most, self.last)) for k in range(self.first, self.last, most)]

    def total_weight(self, step: int) -> float:
        """The weight of the whole step's pairs over all processes."""
        size = self.config.train.pairs_per_step
        positions = range(step * size, (step + 1) * size)
        rows = rows_at(positions, len(self.members), self.config.train.seed)
        return float(self.members.weights[rows].sum()) or 1.0

    def predictor(self, denoiser: nn.Module) -> Predict:
        """The family's call of a denoiser, under this run's precision."""

        def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.config.train.precision == "bfloat16"):
                return self.family.predict(denoiser, x_t, t, cond)

        return predict

    def reference(self) -> Predict | None:
        """The reference's prediction, where the objective asks for one."""
        if not OBJECTIVES[self.config.objective.name].needs_reference:
            return None
        if self.reference_copy is not None:
            return self.predictor(self.reference_copy)
        adapted = self.predictor(self.denoiser)

        def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            with without_adapter(self.denoiser):
                return adapted(x_t, t, cond)

        return predict

    def run(self, first_step: int) -> Iterator[dict[str, float]]:
        """Steps from ``first_step`` to the end, or until a process is asked to stop."""
        steps = range(first_step, self.config.train.steps)
        jobs = (partial(self.batch_at, list(p)) for step in steps for p in self.micro_batches(step))
        batches = prefetched(jobs)
        predict, reference = self.predictor(self.wrapped), self.reference()
        for step in steps:
            began = time.perf_counter()
            values = self.one_step(step, batches, predict, reference)
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

    def one_step(
        self, step: int, batches: Iterator[Batch], predict: Predict, reference: Predict | None
    ) -> dict[str, float]:
        """Errors, loss, gradient and update of one step; its means over all pairs and processes.

        Raises DivergedError in every process, before the weights move, where a loss or gradient of one is not finite.
        """
        objective, settings = self.config.objective.name, self.config.objective.settings
        rate = learning_rate(step, self.config.train.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total, micros = self.total_weight(step), self.micro_batches(step)
        sums: dict[str, Tensor] = {}
        bad: list[str] = []  # pairs whose loss is not finite
        for number in range(len(micros)):
            batch = next(batches).to(self.processes.device)
            with self._synchronised(number == len(micros) - 1):
                errors = pair_errors(predict, batch, self.schedule, reference)
                losses = pair_losses(objective, errors, settings, batch.preference)
                bad += _not_finite(losses, batch)
                loss = (losses * batch.weight.to(losses.device)).sum() / total
                (loss * self.processes.world).backward()  # type: ignore[no-untyped-call]
            for name, value in pair_metrics(objective, errors, losses, settings).items():
                sums[name] = sums.get(name, 0) + value.sum()
        any_bad, self.stopping, trouble = self.processes.agree(
            bool(bad), self.asked_to_stop(), self.trouble is not None
        )
        if trouble:
            self.say_trouble()
            raise SaidElsewhere("Another process has stopped.")
        if any_bad:
            raise DivergedError(self._bad_losses(step + 1, bad))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.optim.clip_norm))
        if not math.isfinite(norm):
            raise DivergedError(
                f"Step {step + 1}: the gradient is not finite; the weights were left as they were. "
                f"{'Pair' if len(batch.ids) == 1 else 'Pairs'} {', '.join(batch.ids[:5])}, timesteps "
                f"{batch.timesteps[:5].tolist()}. Try a lower optim.lr, "
                "or train.precision=float32."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        device = self.processes.device
        kind = torch.float32 if device.type == "mps" else torch.float64
        stacked = self.processes.sum(torch.stack([s.to(device, kind) for s in sums.values()]))
        means = (stacked / self.config.train.pairs_per_step).tolist()
        return {**dict(zip(sums, means, strict=True)), "grad_norm": norm, "lr": rate}

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
        if last or self.wrapped is self.denoiser:
            return contextlib.nullcontext()
        return self.wrapped.no_sync()  # type: ignore[operator, no-any-return]

    def _bad_losses(self, step: int, mine: list[str]) -> str:
        named = [name for found in self.processes.gather(mine) for name in found]
        return (
            f"Step {step}: the loss is not finite for {count(len(named), 'pair')}: {', '.join(named[:5])}. "
            "The weights were "
            "left as they were. Look at these pictures, try a lower optim.lr, or train.precision=float32."
        )


def _not_finite(losses: Tensor, batch: Batch) -> list[str]:
    """The pairs of a batch whose loss is not finite, with their timesteps."""
    places = (~torch.isfinite(losses.detach())).nonzero().flatten().tolist()
    return [f"{batch.ids[i]} (timestep {int(batch.timesteps[i])})" for i in places]


def check_shares(config: Config, processes: Processes) -> None:
    """Every process needs a pair of each step."""
    size, world = config.train.pairs_per_step, processes.world
    if size < world:
        raise MapoError(f"train.pairs_per_step is {size}, but there are {world} processes. Make it at least {world}.")
