"""The training loop: batch → errors → loss → update, step by step, in agreement with the other processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from mapo.encode.cache import Cache
from mapo.encode.frame import Frame, square
from mapo.errors import (
    DivergedError,
    MemoryFull,
    SaidElsewhere,
    SpoiledError,
    StepFailed,
    count,
    is_out_of_memory,
)
from mapo.train.batches import Draw, Members, assemble, draws, portions, prefetched, rows_at
from mapo.train.config import Config
from mapo.train.late import Late, StepNumbers
from mapo.train.objectives import Objective
from mapo.train.objectives.own import constants_of
from mapo.train.processes.processes import Processes
from mapo.train.step import by_pair, pair_errors, pair_losses, pair_metrics
from mapo.train.types import Batch, PairErrors
from mapo.train.weights.dropout import drop_at
from mapo.train.weights.opening import Trained, working_dtype

T = TypeVar("T")
NAMED = 5  # pairs of a bad step


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
        self.process, self.dtype = trained.model.process.on(processes.device), working_dtype(config)
        together = objective.needs_reference and config.train.reference == "together"
        self.reference = trained.reference_predictor() if together else None
        self.known: Tensor | None = None  # the reference's errors at every position, where they were computed before
        self.whole = needs_whole_pairs(config, objective, members)
        self.apart = config.train.pair_by_pair and self.whole
        self.done: int | None = None  # steps that the weights have seen; None while a step moves them
        self.good = torch.ones((), dtype=torch.bool, device=processes.device)  # whether all was finite so far
        self.late = processes.device.type == "cuda"  # whether a step's numbers are read in the next one
        self._asked = False  # whether a process was asked to stop in a step whose numbers were read
        size = config.train.pairs_per_step
        self.first, self.last = (size * rank // processes.world for rank in (processes.rank, processes.rank + 1))

    def frame_at(self, position: int) -> Frame | None:
        """The frame of the pair at a position of the run; None: the square of the cache."""
        return self.members.frame(rows_at([position], len(self.members), self.config.train.seed)[0])

    def drawn_at(self, positions: Sequence[int]) -> list[Draw]:
        """What is drawn at some positions of the run, whose pairs are seen in one frame."""
        frame = self.frame_at(positions[0])
        shape = self.trained.model.layout.latent(*(frame or square(self.cache.resolution)))
        data = self.config.data
        return draws(
            positions, len(self.members), self.process, shape, seed=self.config.train.seed, flip=data.flip,
            caption_dropout=data.caption_dropout,
        )  # fmt: skip

    def batch_at(self, positions: Sequence[int]) -> Batch:
        """The pairs at some positions of the run, which are seen in one frame."""
        drawn, frame, as_tokens = (
            self.drawn_at(positions),
            self.frame_at(positions[0]),
            self.config.adapter.encodes,
        )
        model = self.trained.model
        return assemble(self.members, drawn, self.cache, model, self.dtype, as_tokens=as_tokens, frame=frame)

    def _ready(self, positions: Sequence[int]) -> Batch:
        """The pairs at some positions, where the device can take them from without waiting."""
        batch = self.batch_at(positions)
        if self.known is not None:
            chosen, rejected = self.known[:, list(positions)]
            batch = replace(batch, ref_chosen=chosen, ref_rejected=rejected)
        return batch.pinned() if self.processes.device.type == "cuda" else batch

    def micro_batches(self, step: int) -> list[list[int]]:
        """The positions of this process's pairs of a step, in portions of one frame that fit the device."""
        return self._portions_of(self.processes.rank, step)

    def _portions_of(self, rank: int, step: int) -> list[list[int]]:
        size, world = self.config.train.pairs_per_step, self.processes.world
        first, last = (step * size + size * place // world for place in (rank, rank + 1))
        return portions(range(first, last), self.config.train.pairs_per_device or last - first, self.frame_at)

    def rounds(self, step: int) -> int:
        """The portions of a step in the process that has most of them. Known without asking."""
        return max(len(self._portions_of(rank, step)) for rank in range(self.processes.world))

    def in_turn(self, own: Sequence[T], spare: T) -> Iterator[tuple[T, bool]]:
        """This process's portions of some work without gradients, each with whether it counts.

        Where the network is shared, a process that has fewer than another runs it once more, with its last one or
        ``spare``.
        """
        most = max(self.processes.gather(len(own))) if self.trained.sharded else len(own)
        yield from ((portion, True) for portion in own)
        yield from ((own[-1] if own else spare, False) for _ in range(most - len(own)))

    def total_weight(self, step: int) -> float:
        """The weight of the whole step's pairs over all processes."""
        size = self.config.train.pairs_per_step
        positions = range(step * size, (step + 1) * size)
        rows = rows_at(positions, len(self.members), self.config.train.seed)
        return float(self.members.weights[rows].sum()) or 1.0

    def run(self, first_step: int, pause: Callable[[int], bool] = lambda step: False) -> Iterator[dict[str, float]]:
        """Steps from ``first_step`` to the end, or until a process is asked to stop.

        On a GPU a step's numbers are read while it works on the next one, so that it never waits for them. Where
        ``pause`` is true for a number of steps they are read at once: the weights are then as that step left them.

        Raises DivergedError in every process where a loss or gradient of one is not finite. That step and those after
        it leave the weights as they are.
        """
        steps, self.done = range(first_step, self.config.train.steps), first_step
        batches = prefetched(partial(self._ready, places) for step in steps for places in self.micro_batches(step))
        before: StepNumbers | None = None
        for step in steps:
            began = time.perf_counter()
            told, failed = self._tried(step, batches)
            values = None if before is None else self._values(before)
            seconds = time.perf_counter() - began
            if values is not None:
                yield values
            if told is None:
                assert failed is not None
                raise failed
            before = replace(told, seconds=seconds)
            self.stopping = self._asked or (self.processes.world == 1 and self.asked_to_stop())
            if self.stopping or step + 1 == steps.stop or pause(step + 1) or not self.late:
                values = self._values(replace(before, seconds=time.perf_counter() - began))
                before, self.stopping = None, self.stopping or self._asked
                yield values
            if self.stopping:
                return

    def _tried(self, step: int, batches: Iterator[Batch]) -> tuple[StepNumbers | None, StepFailed | None]:
        """A step, or why it could not be computed; the numbers of the step before are told first."""
        try:
            return self.one_step(step, batches), None
        except StepFailed as error:
            return None, error
        except (MemoryError, RuntimeError, OSError) as error:
            if self.done is None or not is_out_of_memory(error):
                raise
            return None, MemoryFull()  # and not the error, whose frames hold the tensors of the step

    def one_step(self, step: int, batches: Iterator[Batch]) -> StepNumbers:
        """Errors, loss, gradient and update of one step, given to the device; nothing is waited for.

        The weights move where all losses and gradients of all processes are finite, and were in the steps before.
        """
        updater, objective, device = self.trained.updater, self.objective, self.processes.device
        updater.begin(step)
        total, places = self.total_weight(step), self.micro_batches(step)
        own, prepares = len(places), objective.prepare is not None
        rounds = self.rounds(step) if self.trained.sharded or prepares else own
        spare = rounds - own if self.trained.sharded else 0  # which count for nothing
        places += places[-1:] * spare
        portions: Iterable[Batch] = with_last_again((next(batches).to(device) for _ in range(own)), spare)
        constants = dict[str, float]()
        if prepares and rounds > 1:  # in every process, as what they do together has an order
            portions = list(portions)
            found = [self._look_at(*both) for both in zip(portions, places, strict=True)]
            constants = self._constants(found[:own])
        sums: dict[str, Tensor] = {}
        finite: list[Tensor] = []  # whether each pair's loss is

        def loss_of(batch: Batch, counts: bool, errors: PairErrors) -> Tensor:
            if not counts:
                return errors.chosen.sum() * 0
            if prepares and rounds == 1:
                constants.update(self._constants([errors]))
            settings = {**self.config.objective.settings, **constants}
            losses = pair_losses(objective, errors, settings, None if batch.certain else batch.preference)
            finite.append(torch.isfinite(losses.detach()))
            for name, value in pair_metrics(objective, errors, losses, settings).items():
                sums[name] = sums.get(name, 0) + value.sum()
            return (losses * batch.weight.to(losses.device)).sum() / total * self.processes.world

        for place, (batch, positions) in enumerate(zip(portions, places, strict=True), 1):
            terms = self._terms(batch, positions, partial(loss_of, batch, place <= own))
            self.done = None if self.config.optim.in_backward else step
            for number in range(2 if self.apart else 1):
                with self._synchronised(place == len(places) and number == int(self.apart)):
                    updater.backward(next(terms))
        stop = self.processes.world > 1 and self.asked_to_stop()
        flags = [torch.full((), float(flag), device=device) for flag in (stop, self.trouble is not None)]
        bad = torch.stack([(~one).sum() for one in finite]).sum()
        kind = torch.float32 if device.type == "mps" else torch.float64
        numbers = self.processes.sum(torch.stack([v.to(device, kind) for v in (bad, *flags, *sums.values())]))
        self.good = self.good & (numbers[0] == 0)
        self.done = None
        norm = updater.end(self.good)
        self.done = step + 1
        if norm is not None:
            self.good = self.good & torch.isfinite(norm)
            numbers = torch.cat([numbers, norm.to(kind).view(1)])
        losses_finite = Late(torch.cat(finite))
        return StepNumbers(step, tuple(sums), Late(numbers), losses_finite, norm is not None, updater.rate, constants)

    def _terms(
        self, batch: Batch, positions: Sequence[int], loss_of: Callable[[PairErrors], Tensor]
    ) -> Iterator[Tensor]:
        """The loss of a portion: at once, or in two terms with one image of a pair in memory."""
        drop_at(self.trained.network, self.config.train.seed, positions)
        predict = self.trained.predictor(self.trained.wrapped)
        given = (predict, batch, self.process, self.reference, self.objective.extras)
        if self.apart:
            yield from by_pair(*given, loss_of)
        else:
            yield loss_of(pair_errors(*given, whole=self.whole))

    def _values(self, told: StepNumbers) -> dict[str, float]:
        """What is logged of a step, means over all pairs and processes; DivergedError where it left the weights."""
        bad, stop, trouble, *found = told.numbers.read()
        if trouble:
            self.say_trouble()
            raise SaidElsewhere("Another process has stopped.")
        if bad:
            raise DivergedError(self._bad_losses(told))
        norm = {"grad_norm": found.pop()} if told.with_norm else {}
        if not all(map(math.isfinite, norm.values())):
            raise (SpoiledError if self.trained.updater.in_backward else DivergedError)(self._bad_gradient(told))
        self._asked = self._asked or stop > 0
        size = self.config.train.pairs_per_step
        means = {name: value / size for name, value in zip(told.names, found, strict=True)}
        return {
            "step": told.step + 1,
            "pairs_seen": (told.step + 1) * size,
            **means,
            **told.constants,
            **norm,
            "lr": told.rate,
            "pairs_per_second": size / told.seconds,
            "seconds": told.seconds,
        }

    @torch.no_grad()
    def _look_at(self, batch: Batch, positions: Sequence[int]) -> PairErrors:
        """The errors of a portion, without a graph, for what an objective prepares of a whole step."""
        drop_at(self.trained.network, self.config.train.seed, positions)
        predict = self.trained.predictor(self.trained.network)
        return pair_errors(predict, batch, self.process, self.reference, self.objective.extras, apart=self.apart)

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

    def _bad_losses(self, told: StepNumbers) -> str:
        finite, mine = iter(told.losses.read()), list[str]()
        for positions in self.micro_batches(told.step):
            places = [place for place in range(len(positions)) if not next(finite)]
            batch = self.batch_at(positions) if places else None
            if batch is not None:
                mine += [f"{batch.ids[i]} (timestep {int(batch.timesteps[i])})" for i in places]
        named = [name for found in self.processes.gather(mine) for name in found]
        return (
            f"Step {told.step + 1}: the loss is not finite for {count(len(named), 'pair')}: "
            f"{', '.join(named[:NAMED])}. The weights were left as they were. Look at these pictures, or try a lower "
            f"optim.lr{exacter(self.config)}."
        )

    def _bad_gradient(self, told: StepNumbers) -> str:
        size = self.config.train.pairs_per_step
        drawn = [self.drawn_at([told.step * size + place])[0] for place in range(min(size, NAMED))]
        named = ", ".join(f"{self.members[draw.row].id} (timestep {int(draw.time)})" for draw in drawn)
        rest = f" and {size - NAMED} more" if size > NAMED else ""
        spoiled = ", and with optim.in_backward weights have moved by it already. "
        weights = spoiled if self.trained.updater.in_backward else "; the weights were left as they were. "
        return (
            f"Step {told.step + 1}: the gradient is not finite{weights}It is that of {count(size, 'pair')} together: "
            f"{named}{rest}. Try a lower optim.lr{exacter(self.config)}."
        )


def exacter(config: Config) -> str:
    """What else to try where numbers are not finite: the settings that round more than they have to; maybe none."""
    train, lora = config.train, config.adapter.kind == "lora"
    rounds = {"precision": train.precision == "bfloat16", "base_precision": lora and train.base_precision != "float32"}
    rounds["weights"] = not lora and train.weights != "float32"
    return "".join(f", or train.{name}=float32" for name, it_does in rounds.items() if it_does)


def with_last_again(items: Iterable[T], times: int) -> Iterator[T]:
    """``items``, and the last of them so many times more."""
    for item in items:
        yield item
    yield from (item for _ in range(times))


def _numbers(errors: PairErrors) -> dict[str, Tensor]:
    """The numbers of each pair by name, on the CPU without a graph."""
    plain = {f.name: getattr(errors, f.name) for f in fields(errors)}
    numbers = {name: values for name, values in plain.items() if isinstance(values, Tensor)}
    numbers |= {f"extras.{name}": values for name, values in errors.extras.items()}
    return {name: values.detach().cpu().double() for name, values in numbers.items()}


def needs_whole_pairs(config: Config, objective: Objective, members: Members) -> bool:
    """Whether rejected images are run: where the loss depends on them, or their errors are asked for."""
    return objective.needs_rejected or config.train.measure_rejected or not members.certain
