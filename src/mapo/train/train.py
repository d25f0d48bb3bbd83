"""Training: from a cache of pairs to a run folder.

All state is one integer, the number of steps done: batches, noise, timesteps and the learning rate are functions of
it and of the seed. ``run/folder.py`` owns the folder, ``loop.py`` takes the steps, ``processes/`` is how several agree.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from mapo import progress
from mapo.devices import device_name, give_back_at_once, keep_freed_blocks
from mapo.errors import (
    DivergedError,
    MemoryFull,
    ObjectiveFailed,
    SaidElsewhere,
    SpoiledError,
    StepFailed,
    count,
    is_out_of_memory,
    memory_told,
)
from mapo.models.noise.flow import RectifiedFlow
from mapo.pairs import PairSet
from mapo.train.config import Config
from mapo.train.loop import Loop
from mapo.train.monitor.first_look import look, sentences
from mapo.train.monitor.monitor import NO_HANDS, Hands, Monitor
from mapo.train.plan.at_hand import told_when_full
from mapo.train.prepare import Ready, prepare
from mapo.train.processes.processes import joined, what_is_not_done
from mapo.train.reference import errors_before
from mapo.train.run.folder import REFERENCE, Run, settled
from mapo.train.saving import check_space, full_disk_told, save_step
from mapo.train.weights.adapters import told
from mapo.train.weights.levers import LEAST_RATE, saves_memory, steps_that_drown
from mapo.train.weights.opening import open_trained, restore

LOG = logging.getLogger(__name__)

__all__ = ["Loop", "Run", "settled", "train"]


def train(config: Config, out: Path, hands: Hands = NO_HANDS, *, allow_change: bool = False) -> bool:
    """Train as ``config`` says into the run folder ``out``, or go on where an earlier run of it stopped.

    What ``config`` does not set by name is taken from the run, then from the defaults. ``hands`` are what other rooms
    do meanwhile. With ``allow_change`` a run may go on with other settings. Whether this process is the one that
    writes.
    """
    with joined() as processes, contextlib.ExitStack() as stack:
        if processes.main and (note := what_is_not_done()):
            LOG.info(note)
        run = Run(out)
        processes.first(lambda: stack.enter_context(run.held()))
        known = processes.first(lambda: settled(config, out))
        ready = prepare(known, run, processes, hands, allow_change=allow_change)
        if ready is not None:
            if processes.device.type == "cpu" and saves_memory(ready.config, processes.world) and give_back_at_once():
                stack.callback(keep_freed_blocks)
            _train(ready, hands)
        return processes.main


def _train(ready: Ready, hands: Hands) -> None:
    """Open the weights, take the steps that are left, and leave the final weights and the run's description."""
    config, run, processes = ready.config, ready.run, ready.processes
    model, objective, checkpoint, done = ready.model, ready.objective, ready.checkpoint, ready.done
    before = objective.needs_reference and config.train.reference == "before"  # the reference runs before the steps
    with memory_told(0, rest="", advice=_advice(ready)):
        trained = open_trained(config, model, objective, processes, None if before else checkpoint)
    processes.first(run.sweep)
    processes.first(lambda: check_space(run, config, trained))
    processes.first(lambda: run.bind(config, done))
    for part, network in {model.denoiser_part: trained.denoiser, **trained.encoders}.items():
        processes.say(told(network, part))
    state: dict[str, Any] = {key: forms[0] for key, forms in ready.identity.items()}
    state["model_is"] = processes.first(lambda: run.about(config, model, ready.sensitive))

    def save(step: int) -> None:
        save_step(run, config, trained, processes, {"step": step, **state})

    with interruptible() as interrupted:
        loop = Loop(config, objective, processes, ready.members, ready.cache, trained, interrupted)
        if before:  # while the weights are those that training begins with
            with _memory_told(loop, ready):
                loop.known = errors_before(loop, run.folder / REFERENCE, ready.identity)
            if checkpoint:
                processes.each(lambda: restore(checkpoint, trained))
        _say_of_steps(loop, ready.pairs)
        try:
            with _memory_told(loop, ready):
                if not checkpoint and isinstance(model.process, RectifiedFlow) and ready.pairs.has_rejected:
                    for sentence in sentences(look(loop), config.objective.name, objective, config.objective.settings):
                        processes.say(sentence)
                monitor = Monitor(
                    loop, run, ready.pairs, hands, prompts=ready.prompts, done=done, sensitive=ready.sensitive
                )
                with contextlib.closing(monitor), full_disk_told(run):
                    if not checkpoint:
                        monitor.begin()
                    _take_steps(loop, monitor, done, save)
        finally:
            trained.wrapped = trained.network  # what joins the processes has to go before they part

    weights = trained.gathered(processes.main)

    def finish() -> None:
        with full_disk_told(run):
            with run.final_weights() as folder:
                trained.save(folder, weights)
            run.finish(config, model, ready.sensitive, device_name(processes.device.type), processes.world)

    processes.first(finish)


def _say_of_steps(loop: Loop, pairs: PairSet) -> None:
    """What is not as one may think of the steps that come."""
    config, say = loop.config, loop.processes.say
    if loop.trained.ema:
        say(f"The weights of this run are the running mean of those that are trained (train.ema={config.train.ema:g}).")
    if drowned := steps_that_drown(config):
        say(
            f"In {count(drowned, 'step')} of {config.train.steps:,} the rate is below {LEAST_RATE:g}, where rounding "
            "moves weights further than what is learned. train.weights=bfloat16-master does not round so."
        )
    if not loop.whole and pairs.has_rejected:
        what = f"Rejected pictures are not run: {config.objective.name} does not learn from them."
        say(f"{what} train.measure_rejected=true measures their errors, in twice the time.")
    if loop.objective.prepare and len(loop.micro_batches(0)) > 1:
        say(
            f"The objective {config.objective.name} needs the errors of a whole step before its first gradient. "
            "With train.pairs_per_device each pair goes through the model once more for that, without gradients."
        )


def _memory_told(loop: Loop, ready: Ready) -> contextlib.AbstractContextManager[None]:
    """Within the block memory that runs out is told with what would take less."""
    config, portion = loop.config, loop.last - loop.first
    at_once = min(config.train.pairs_per_device or portion, portion)
    apart = loop.apart or not loop.whole or config.optim.in_backward
    less = {"gradient_checkpointing": config.train.gradient_checkpointing, "pair_by_pair": apart}
    rest = ", ".join(f"--set train.{name}=true" for name, used in less.items() if not used)
    how = {"noun": "pair", "flag": "--set train.pairs_per_device={}", "rest": rest}
    return memory_told(at_once, advice=_advice(ready), **how)


def _advice(ready: Ready) -> Callable[[str], str]:
    """What to say besides of memory that runs out, with the plan's numbers."""
    return partial(told_when_full, ready.subject, ready.config, ready.plan, lambda: bool(ready.run.checkpoints()))


def _take_steps(loop: Loop, monitor: Monitor, done: int, save: Callable[[int], None]) -> None:
    """All steps that are left; a checkpoint now and then, at the end, and where the run is stopped or diverges."""
    config, main, run = loop.config.train, loop.processes.main, monitor.run
    saved = step = done
    diverged = ""
    failed: StepFailed | None = None
    spoiled = False
    with progress.bar(total=config.steps, initial=done, desc="train", unit="step", shown=main) as bar:
        try:
            for values in loop.run(done, pause=lambda n: n % config.save_every_steps == 0 or monitor.due(n)):
                step = int(values["step"])
                if main:
                    loop.guarded(partial(run.log_step, monitor.with_memory(values)))
                bar.set_postfix(**monitor.line(values))
                bar.update()
                worth_keeping = monitor.after(values)
                if worth_keeping or loop.stopping or step == config.steps or step % config.save_every_steps == 0:
                    save(step)
                    saved = step
        except DivergedError as error:
            diverged = str(error)  # and no more of it: its frames hold what joins the processes
            spoiled = isinstance(error, SpoiledError)
        except StepFailed as error:
            failed = type(error)(str(error))
        except (MemoryError, RuntimeError, OSError) as error:  # of what is done between two steps
            if not is_out_of_memory(error):
                raise
            failed = MemoryFull()
    if failed is not None:
        _stop_after(failed, loop, run, step, saved, save)
    if spoiled:
        raise DivergedError(f"{diverged} {_how_to_go_on(run, saved)}")
    if diverged:
        if step > saved:
            save(step)
        loop.processes.wait()
        raise DivergedError(f"{diverged} {_how_to_go_on(run, step)}") if main else SaidElsewhere(diverged)
    loop.processes.each(loop.say_trouble)
    if loop.stopping and step < config.steps:
        raise KeyboardInterrupt


def _stop_after(
    failed: StepFailed, loop: Loop, run: Run, step: int, saved: int, save: Callable[[int], None]
) -> NoReturn:
    """Save what was trained before ``step`` failed, where it can be, and say so."""
    what = f"What was trained up to step {step} is kept."
    if loop.processes.world > 1:  # the others stand in this step
        what = "The same command goes on from the last checkpoint, once it is mended."
    elif isinstance(failed, MemoryFull) and loop.done != step:
        what = f"The weights had begun to move on, so what was trained after step {saved} is lost."
    else:
        if step > saved:
            save(step)
        if isinstance(failed, ObjectiveFailed) or not step:
            what = _how_to_go_on(run, step)
    raise type(failed)(f"{failed} {what}".strip())


def _how_to_go_on(run: Run, step: int) -> str:
    if not step:
        return "Nothing has been trained yet."
    return (
        f"What was trained up to step {step} is kept, but the same command would come to the same step. Give it with "
        "other settings, such as a lower optim.lr, and --allow-change: it goes on from there. Or end this run there "
        f"with --set train.steps={step}, and train further from it: mapo train --model {run.folder} --out OTHER."
    )


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C or SIGTERM only asks to stop after the step; a second signal stops at once."""
    asked = False
    old: dict[int, Any] = {}

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for known in old:
            signal.signal(known, signal.default_int_handler)

    with contextlib.suppress(ValueError):  # only the main thread may install handlers
        old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in old:
            signal.signal(number, handle)
    try:
        yield lambda: asked
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in old.items():
                signal.signal(number, handler)
