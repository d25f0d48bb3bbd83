"""What a training does besides its steps: it measures, warns, draws and tells others, and moves no weight by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mapo.devices import memory_in_use
from mapo.encode.seen import Rows
from mapo.errors import MapoError
from mapo.models.checkpoints import best_of, checkpoints, goodness
from mapo.pairs import PairSet
from mapo.texts import append_lines
from mapo.train.config import Config
from mapo.train.kept import kept
from mapo.train.loop import Loop
from mapo.train.monitor.alarms import Alarm, Alarms, shared
from mapo.train.monitor.evaluation import Evaluation, held_out, told
from mapo.train.monitor.pictures import Draw, PicturesOverSteps, first_prompts
from mapo.train.monitor.trackers import Trackers, check_tracker
from mapo.train.run.folder import Run

LOG = logging.getLogger(__name__)

LINE = {  # what of a step stands beside the bar, by which short name, in how many digits
    "error_chosen": ("chosen", ".4f"), "error_rejected": ("rejected", ".4f"), "margin": ("margin", ".4f"),
    "accuracy": ("accuracy", ".2f"), "pairs_per_second": ("pairs_s", ".1f"),
}  # fmt: skip


@dataclass(frozen=True)
class Hands:
    """What rooms above training do for it while it goes on. Training knows none of them; who starts it hands them in.

    ``prompts`` reads a source of prompts, ``draw`` makes pictures with the weights as they are, ``told_apart`` says in
    a sentence how some pairs are told apart without a model (nothing where they are not).
    """

    prompts: Callable[[str], list[str]] | None = None
    draw: Draw | None = None
    told_apart: Callable[[PairSet, Rows], str] | None = None


NO_HANDS = Hands()


def checked(config: Config, pairs: PairSet, trained: Rows, hands: Hands) -> list[str]:
    """The prompts of the pictures to come (none where none are asked for).

    MapoError where what is asked for cannot be done, before anything is loaded.
    """
    if config.train.evaluate_every:
        held_out(pairs, config)
    for name in config.train.trackers:
        check_tracker(name)
    if not config.train.pictures_every:
        return []
    if hands.draw is None or hands.prompts is None:
        raise MapoError(
            "train.pictures_every: this training was started without what draws pictures. Start it with `mapo train` "
            "or mapo.api.train, or leave it out."
        )
    source = config.train.picture_prompts
    return hands.prompts(source) if source else first_prompts(pairs, trained)


class Monitor:
    """Asked before the first step and after every step, in every process.

    ``prompts`` are those of the pictures, ``done`` the steps before, ``sensitive`` whether pages blur what is drawn.
    """

    def __init__(
        self, loop: Loop, run: Run, pairs: PairSet, hands: Hands, *, prompts: Sequence[str], done: int, sensitive: bool
    ) -> None:
        self.loop, self.run, self.pairs, self.hands = loop, run, pairs, hands
        self.config, self.processes = loop.config.train, loop.processes
        self.rules, self.memory = kept(self.config.keep_checkpoints), 0
        self.pictures = PicturesOverSteps(loop, run, prompts, hands.draw, sensitive)
        names = self.config.trackers if self.processes.main else ()
        self.trackers = self.processes.each(lambda: Trackers(names, run, loop.config))
        self.evaluation = Evaluation(loop, run, pairs, done) if self.config.evaluate_every else None
        self.best = self.processes.first(self._best) if self.evaluation else None
        objective = loop.config.objective
        self.alarms = Alarms(objective.name, loop.objective, objective.settings, self._leak)
        self.processes.first(self._remember)

    def _remember(self) -> None:
        """What an earlier part of the run has heard and said."""
        self.alarms.remember(self.run.metrics(), self.run.alarms(), evaluated=bool(self.run.evaluations()))

    def _best(self) -> tuple[float, float] | None:
        """How good the best checkpoint is that there is, of those that were measured as it is done now."""
        assert self.evaluation is not None
        rows = [row for row in self.run.evaluations() if row.get("of") == self.evaluation.of]
        best = best_of(rows, checkpoints(self.run.folder))
        return next((goodness(row) for row in rows if row["step"] == best), None)

    def begin(self) -> None:
        """What is done before the first step of a run."""
        if self.evaluation:
            self._evaluate(self.evaluation, 0)
        if self.pictures.due(0):
            self.pictures.take(0)

    def due(self, step: int) -> bool:
        """Whether the weights are wanted as this step leaves them."""
        every = self.config.evaluate_every, self.rules.every
        return any(k and step % k == 0 for k in every) or self.pictures.due(step)

    def after(self, values: Mapping[str, float]) -> bool:
        """What is done after a step; whether a checkpoint of it is to be kept for what was seen."""
        step, train = int(values["step"]), self.config
        if self.processes.main:
            self.loop.guarded(lambda: self._tell(values))
        better = False
        if self.evaluation and (step % train.evaluate_every == 0 or step == train.steps):
            better = self._evaluate(self.evaluation, step) and self.rules.best
        if self.pictures.due(step):
            self.pictures.take(step)
        return better or bool(self.rules.every and step % self.rules.every == 0)

    def close(self) -> None:
        """End what was opened."""
        self.trackers.close()

    def line(self, values: Mapping[str, float]) -> dict[str, str]:
        """The numbers beside the bar: the errors, how well pairs are told apart, the speed and the most memory."""
        shown = {short: f"{values[name]:{how}}" for name, (short, how) in LINE.items() if name in values}
        return {**shown, "memory": f"{self.memory / 2**30:.1f}GiB"}

    def with_memory(self, values: Mapping[str, float]) -> dict[str, float]:
        """The line of a step with ``memory``, the most bytes that this process has held so far."""
        self.memory = max(self.memory, memory_in_use(self.processes.device.type))
        return {**values, "memory": self.memory}

    def _tell(self, values: Mapping[str, float]) -> None:
        self.trackers.log(values, "train")
        self._warn(int(values["step"]), self.alarms.step(values))

    def _evaluate(self, evaluation: Evaluation, step: int) -> bool:
        """Measure and write it down; whether it is the best so far."""
        row = evaluation.row(step)
        better = step > 0 and (self.best is None or goodness(row) > self.best)  # the base is not a checkpoint
        self.best = goodness(row) if better else self.best
        if self.processes.main:
            self.loop.guarded(lambda: self._tell_evaluation(row))
        return better

    def _tell_evaluation(self, row: Mapping[str, Any]) -> None:
        append_lines(self.run.evaluation_log, [row])
        LOG.info(told(row))
        self.trackers.log(row, "held_out")
        self._warn(int(row["step"]), self.alarms.evaluation(row))

    def _warn(self, step: int, alarms: Sequence[Alarm]) -> None:
        for name, says in alarms:
            append_lines(self.run.alarm_log, [{"step": step, "name": name, "says": says}])
            LOG.warning(f"Alarm at step {step}: {says}")

    def _leak(self) -> str:
        """What else may tell held-out pairs apart than what the model has learned; empty where nothing is known."""
        assert self.evaluation is not None  # only an evaluation asks
        held = self.evaluation.members.rows
        if common := shared(self.pairs, self.loop.members.rows, held):
            return common
        return self.hands.told_apart(self.pairs, held) if self.hands.told_apart else ""
