"""Training: from a cache of pairs to a run folder.

All state is one integer, the number of steps done: batches, noise, timesteps and the learning rate are functions of
it and of the seed. ``run/folder.py`` owns the folder, ``loop.py`` takes the steps, ``processes/`` is how several agree.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from mapo import progress
from mapo.devices import device_name
from mapo.encode.buckets import framing
from mapo.encode.cache import Cache, cache_key, hold
from mapo.encode.fill import encode, holds_all
from mapo.encode.seen import equal_once_cropped, frames_of, what_training_sees
from mapo.errors import (
    DivergedError,
    MapoError,
    MemoryFull,
    ObjectiveFailed,
    SaidElsewhere,
    SpoiledError,
    StepFailed,
    count,
    is_out_of_memory,
    memory_told,
)
from mapo.models import Opened
from mapo.models.noise.flow import RectifiedFlow
from mapo.pairs import PairSet
from mapo.train.batches import Members
from mapo.train.config import Config
from mapo.train.kept import kept
from mapo.train.loop import Loop
from mapo.train.monitor.evaluation import check_base
from mapo.train.monitor.first_look import look, sentences
from mapo.train.monitor.monitor import NO_HANDS, Hands, Monitor, checked
from mapo.train.objectives.own import file_identity, objective_named
from mapo.train.objectives.trial import doubts
from mapo.train.plan.at_hand import checked_plan, told_when_full
from mapo.train.plan.disk import cache_folder, holding_of
from mapo.train.plan.subject import Subject, distilled, open_named
from mapo.train.processes.processes import Processes, joined, what_is_not_done
from mapo.train.reference import check_extras, errors_before
from mapo.train.run.checkpoint import save_checkpoint
from mapo.train.run.folder import REFERENCE, Identity, Run, settled, steps_of
from mapo.train.weights.adapters import check_adapter, told
from mapo.train.weights.levers import check_settings
from mapo.train.weights.opening import Trained, checkpoint_size, open_trained, restore
from mapo.train.weights.token import check_captions

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
        _train(processes.first(lambda: settled(config, out)), run, processes, hands, allow_change)
        return processes.main


def _train(config: Config, run: Run, processes: Processes, hands: Hands, allow_change: bool) -> None:
    processes.first(lambda: check_settings(config, processes))
    processes.each(lambda: check_settings(config, processes))  # another machine may lack what this one has
    name, settings = config.objective.name, config.objective.settings
    objective = processes.each(lambda: objective_named(name))
    if objective.needs_reference and config.train.reference == "before":
        processes.each(lambda: check_extras(objective, name))
    for doubt in processes.each(lambda: doubts(name, objective, settings)):
        _say(processes, doubt)
    model, pairs = open_named(config, weights=True)
    data = config.data
    if why := distilled(model):
        _say(processes, f"Warning: {why}")
    model.files.check_weights(model.denoiser_part)  # before anything is encoded
    for part in model.encoder_parts if config.adapter.encodes else ():
        if part.startswith("text_encoder"):
            model.files.check_weights(part)
    for line in processes.each(lambda: check_adapter(model, config.adapter)):
        _say(processes, line)
    seen = what_training_sees(
        pairs, model, split=data.split, ties=data.ties, resolution=data.resolution, buckets=data.buckets
    )
    of_token = processes.each(lambda: check_captions(config.adapter, model, pairs, seen.rows))
    seen_in = framing(pairs, frames_of(model, data.resolution, data.buckets))
    prompts = processes.first(lambda: checked(config, pairs, seen.rows, hands))
    members = Members(pairs, seen.rows, seen_in)
    identity: Identity = {"pairs": (pairs.fingerprint(),), "model": model.files.revisions()}
    identity |= file_identity(config.objective.name)
    checkpoint = processes.first(lambda: run.accept(config, identity, allow_change))
    done, finished = steps_of(checkpoint) if checkpoint else 0, processes.first(run.finished_steps)
    if finished == config.train.steps and (done == finished or not checkpoint):
        after = count(finished, "step")
        _say(processes, f"{run.folder} is finished, after {after}. Ask for more with --set train.steps=N.")
        return
    processes.first(lambda: check_base(run, config, done))
    subject = Subject(model, objective, pairs, members, processes.device.type, processes.world)
    plan, line = processes.first(lambda: checked_plan(subject, config, begun=bool(done)))
    _say(processes, line)
    _say(processes, f"{seen.line()} {_passes(config, len(seen.rows))}")
    for line in of_token:
        _say(processes, line)
    if data.buckets:
        _say(processes, members.told())
    if (chunks := model.files.chunks) > 1:
        _say(processes, f"Every prompt is given {chunks} chunks of the text encoders, as the longest one needs.")
    cache = _open_cache(config, model, pairs, processes)
    if processes.main and not done and (equal := equal_once_cropped(cache, pairs, seen.rows, seen_in)):
        LOG.info(
            f"{count(equal, 'pair')} of these {'shows' if equal == 1 else 'show'} the same picture twice once cropped, "
            "so there is nothing to learn there. `mapo check` names them."
        )
    first = objective.needs_reference and config.train.reference == "before"
    trained = open_trained(config, model, objective, processes, None if first else checkpoint)
    processes.first(lambda: run.bind(config, done))
    for part, network in {model.denoiser_part: trained.denoiser, **trained.encoders}.items():
        _say(processes, told(network, part))

    sensitive = bool(pairs.info.get("sensitive"))
    state: dict[str, Any] = {key: forms[0] for key, forms in identity.items()}
    state["model_is"] = processes.first(lambda: run.about(config, model, sensitive))

    def save(step: int) -> None:
        _save(run, config, trained, processes, {"step": step, **state})

    with interruptible() as interrupted:
        loop = Loop(config, objective, processes, members, cache, trained, interrupted)
        if first:  # while the weights are those that training begins with
            loop.known = errors_before(loop, run.folder / REFERENCE, identity)
            if checkpoint:
                processes.each(lambda: restore(checkpoint, trained))
        processes.first(lambda: _check_space(run, config, trained))
        if trained.ema:
            of = f"train.ema={config.train.ema:g}"
            _say(processes, f"The weights of this run are the running mean of those that are trained ({of}).")
        if not loop.whole and pairs.has_rejected:
            what = f"Rejected pictures are not run: {config.objective.name} does not learn from them."
            _say(processes, f"{what} train.measure_rejected=true measures their errors, in twice the time.")
        if objective.prepare and len(loop.micro_batches(0)) > 1:
            _say(
                processes,
                f"The objective {config.objective.name} needs the errors of a whole step before its first gradient. "
                "With train.pairs_per_device each pair goes through the model once more for that, without gradients.",
            )
        at_once = min(config.train.pairs_per_device or loop.last - loop.first, loop.last - loop.first)
        apart = loop.apart or not loop.whole or config.optim.in_backward
        less = {"gradient_checkpointing": config.train.gradient_checkpointing, "pair_by_pair": apart}
        rest = ", ".join(f"--set train.{name}=true" for name, used in less.items() if not used)
        in_full = partial(told_when_full, subject, config, plan, lambda: bool(run.checkpoints()))
        try:
            with memory_told(at_once, noun="pair", flag="--set train.pairs_per_device={}", rest=rest, plan=in_full):
                if not checkpoint and isinstance(model.process, RectifiedFlow) and pairs.has_rejected:
                    for sentence in sentences(look(loop), name, objective, settings):
                        _say(processes, sentence)
                monitor = Monitor(loop, run, pairs, hands, prompts=prompts, done=done, sensitive=sensitive)
                with contextlib.closing(monitor):
                    if not checkpoint:
                        monitor.begin()
                    _take_steps(loop, monitor, done, save)
        finally:
            trained.wrapped = trained.network  # what joins the processes has to go before they part

    weights = trained.gathered(processes.main)

    def finish() -> None:
        with run.final_weights() as folder:
            trained.save(folder, weights)
        run.finish(config, model, sensitive, device_name(processes.device.type), processes.world)

    processes.first(finish)


def _passes(config: Config, pairs: int) -> str:
    """How often each pair is seen, the number by which people choose how many steps."""
    steps, size = config.train.steps, config.train.pairs_per_step
    seen = steps * size / pairs
    times = f"{seen:,.0f}" if seen >= 10 else f"{seen:.2g}"
    often = "once" if times == "1" else f"{times} times"
    return f"In {count(steps, 'step')} of {size} each is seen {often}."


def _say(processes: Processes, text: str) -> None:
    if processes.main:
        LOG.info(text)


def _open_cache(config: Config, model: Opened, pairs: PairSet, processes: Processes) -> Cache:
    """The cache of the pairs. What it lacks is encoded first, by each process its share."""
    folder, data, holding = cache_folder(config, pairs), config.data, holding_of(config)
    key = cache_key(model, data.resolution, data.flip, data.cache_precision)
    among = frames_of(model, data.resolution, data.buckets)
    fill = partial(
        encode, model, pairs, folder,
        resolution=data.resolution, flip=data.flip, precision=data.cache_precision, device=processes.device,
        images_per_batch=data.images_per_batch, wait=True, holding=holding, buckets=data.buckets,
    )  # fmt: skip
    if processes.world == 1:
        return fill()
    with contextlib.ExitStack() as stack:
        if not processes.first(lambda: holds_all(pairs, folder, key, holding, among)):
            processes.first(lambda: stack.enter_context(hold(folder, wait=True)) and None)
            processes.each(lambda: fill(shard=(processes.rank, processes.world), locked=False) and None)
    return processes.each(lambda: Cache(folder, key))


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
        except (MemoryError, RuntimeError) as error:  # of what is done between two steps
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
        f"What was trained up to step {step} is kept, but the same command would come to the same step. End this run "
        f"there with --set train.steps={step}, and train further from it with other settings: mapo train --model "
        f"{run.folder} --out OTHER."
    )


def _save(run: Run, config: Config, trained: Trained, processes: Processes, state: dict[str, Any]) -> None:
    step = state["step"]
    folder = run.checkpoint_at(step)
    weights = trained.gathered(processes.main) if trained.lora else {}
    try:
        state = {**state, "line": run.last_line}
        save_checkpoint(folder, trained.groups(), state, partial(trained.save_loras, weights=weights), processes)
    except OSError as error:
        kept = run.checkpoints()
        last = f"The checkpoint of step {steps_of(kept[-1])} is kept" if kept else "There is no earlier checkpoint"
        raise MapoError(
            f"The checkpoint of step {step} could not be written to {folder.parent} ({error.strerror or error}). "
            f"{last}. Make room, then run the same command again."
        ) from None
    processes.first(lambda: run.keep(config.train.keep_checkpoints))


def _check_space(run: Run, config: Config, trained: Trained) -> None:
    """Refuse to begin where the checkpoints that are kept and the final weights would not fit."""
    weights = sum(t.numel() * t.element_size() for t in trained.updater.final().values())
    train, made = config.train, run.checkpoints()
    to_come = math.ceil((train.steps - (steps_of(made[-1]) if made else 0)) / train.save_every_steps)
    more = max(1, kept(train.keep_checkpoints).to_add(len(made), to_come, train.steps))
    needed, free = weights + more * checkpoint_size(config, trained), shutil.disk_usage(run.folder).free
    if free < needed:
        checkpoints = "A checkpoint" if more == 1 else f"{more} checkpoints (train.keep_checkpoints)"
        raise MapoError(
            f"{checkpoints} and the final weights of this run take {needed / 1e6:,.0f} MB, and {run.folder} has "
            f"{free / 1e6:,.0f} MB free. Make room, or choose another --out."
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
