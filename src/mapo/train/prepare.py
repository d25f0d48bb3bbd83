"""What comes before a training's weights: all is checked, a plan is made, and what the cache lacks is encoded.

Cheap checks come first. Nothing is written to the run's folder here but a damaged checkpoint's new name.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mapo.encode.buckets import framing
from mapo.encode.cache import Cache, cache_key, hold, is_cache
from mapo.encode.fill import encode, holds_all
from mapo.encode.seen import equal_once_cropped, frames_of, what_training_sees
from mapo.errors import count, memory_told
from mapo.models import Opened
from mapo.pairs import PairSet
from mapo.train.batches import Members
from mapo.train.config import Config
from mapo.train.monitor.evaluation import check_base
from mapo.train.monitor.monitor import Hands, checked
from mapo.train.objectives import Objective
from mapo.train.objectives.own import file_identity, objective_named
from mapo.train.objectives.trial import doubts
from mapo.train.plan.at_hand import checked_plan, encoding_told_when_full
from mapo.train.plan.disk import cache_folder, holding_of
from mapo.train.plan.plan import Plan
from mapo.train.plan.subject import Subject, distilled, open_named
from mapo.train.processes.processes import Processes
from mapo.train.reference import check_extras
from mapo.train.run.folder import Identity, Run, steps_of
from mapo.train.weights.adapters import check_adapter
from mapo.train.weights.levers import check_settings
from mapo.train.weights.token import check_captions


@dataclass(frozen=True)
class Ready:
    """A training whose weights are not opened yet."""

    config: Config
    run: Run
    processes: Processes
    objective: Objective
    model: Opened
    pairs: PairSet
    members: Members
    cache: Cache
    subject: Subject
    plan: Plan | None
    identity: Identity
    prompts: list[str]
    checkpoint: Path | None  # from which it goes on

    @property
    def done(self) -> int:
        """The steps that are done."""
        return steps_of(self.checkpoint) if self.checkpoint else 0

    @property
    def sensitive(self) -> bool:
        """Whether the set's pictures are not shown."""
        return bool(self.pairs.info.get("sensitive"))


def prepare(config: Config, run: Run, processes: Processes, hands: Hands, *, allow_change: bool) -> Ready | None:
    """Check all that can be checked without weights, say what is worth knowing, and encode what the cache lacks.

    None where the run is finished already.
    """
    objective = _checked_objective(config, processes)
    model, pairs = open_named(config, weights=True)
    _check_model(model, config, processes)
    data = config.data
    seen = what_training_sees(
        pairs, model, split=data.split, ties=data.ties, resolution=data.resolution, buckets=data.buckets
    )
    of_token = processes.each(lambda: check_captions(config.adapter, model, pairs, seen.rows))
    seen_in = framing(pairs, frames_of(model, data.resolution, data.buckets))
    members = Members(pairs, seen.rows, seen_in)
    prompts = processes.first(lambda: checked(config, pairs, seen.rows, hands))
    identity: Identity = {"pairs": (pairs.fingerprint(),), "model": model.files.revisions()}
    identity |= file_identity(config.objective.name)
    checkpoint = processes.first(lambda: run.accept(config, identity, allow_change))
    done = steps_of(checkpoint) if checkpoint else 0
    finished = processes.first(run.finished_steps)
    if finished == config.train.steps and (done == finished or not checkpoint):
        after = count(finished, "step")
        processes.say(f"{run.folder} is finished, after {after}. Ask for more with --set train.steps=N.")
        return None
    processes.first(lambda: check_base(run, config, done))
    subject = Subject(model, objective, pairs, members, processes.device.type, processes.world)
    plan, planned = processes.first(lambda: checked_plan(subject, config, begun=bool(done)))
    lines = [planned, f"{seen.line()} {_passes(config, len(seen.rows))}", *of_token]
    lines += [f"This run goes on after {count(done, 'step')} of {config.train.steps:,}."] if done else []
    if done and not is_cache(folder := cache_folder(config, pairs)):
        lines.append(
            f"There is no cache at {folder} any more, so all is encoded again. If it lies elsewhere now, stop this "
            "command and name it with --cache."
        )
    lines += [members.told()] if data.buckets else []
    if (chunks := model.files.chunks) > 1:
        lines.append(f"Every prompt is given {chunks} chunks of the text encoders, as the longest one needs.")
    for line in lines:
        processes.say(line)
    in_full = partial(encoding_told_when_full, subject, config, plan, bool(done))
    with memory_told(config.data.images_per_batch, flag="--set data.images_per_batch={}", rest="", advice=in_full):
        cache = _open_cache(config, model, pairs, processes)
    if processes.main and not done and (equal := equal_once_cropped(cache, pairs, seen.rows, seen_in)):
        processes.say(
            f"{count(equal, 'pair')} of these {'shows' if equal == 1 else 'show'} the same picture twice once cropped, "
            "so there is nothing to learn there. `mapo check` names them."
        )
    return Ready(
        config, run, processes, objective, model, pairs, members, cache, subject, plan, identity, prompts, checkpoint
    )


def _checked_objective(config: Config, processes: Processes) -> Objective:
    """The objective, where the settings are such as it and this machine can have."""
    processes.first(lambda: check_settings(config, processes))
    processes.each(lambda: check_settings(config, processes))  # another machine may lack what this one has
    name = config.objective.name
    objective = processes.each(lambda: objective_named(name))
    if objective.needs_reference and config.train.reference == "before":
        processes.each(lambda: check_extras(objective, name))
    for doubt in processes.each(lambda: doubts(name, objective, config.objective.settings)):
        processes.say(doubt)
    return objective


def _check_model(model: Opened, config: Config, processes: Processes) -> None:
    """Look at the weights' files before anything is encoded, and at the LoRA's settings."""
    if why := distilled(model):
        processes.say(f"Warning: {why}")
    if config.train.guidance != 1 and not model.told_guidance:
        setting = f"train.guidance={config.train.guidance:g}"
        processes.say(f"The model has no guidance embedding, so {setting} has no effect.")
    model.files.check_weights(model.denoiser_part)
    for part in model.encoder_parts if config.adapter.encodes else ():
        if part.startswith("text_encoder"):
            model.files.check_weights(part)
    for line in processes.each(lambda: check_adapter(model, config.adapter)):
        processes.say(line)


def _passes(config: Config, pairs: int) -> str:
    """How often each pair is seen, the number by which people choose how many steps."""
    steps, size = config.train.steps, config.train.pairs_per_step
    seen = steps * size / pairs
    times = f"{seen:,.0f}" if seen >= 10 else f"{seen:.2g}"
    often = "once" if times == "1" else f"{times} times"
    return f"In {count(steps, 'step')} of {size} each is seen {often}."


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
        if not processes.first(lambda: holds_all(model, pairs, folder, key, holding, among)):
            processes.first(lambda: stack.enter_context(hold(folder, wait=True)) and None)
            processes.each(lambda: fill(shard=(processes.rank, processes.world), locked=False) and None)
    return processes.each(lambda: Cache(folder, key))
