"""The plan of a training on the device at hand, as `mapo plan` asks for it and `mapo train` before it begins."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mapo.devices import best_device, device_name
from mapo.errors import MapoError
from mapo.texts import read_object
from mapo.train.config import Config
from mapo.train.monitor.evaluation import held_out
from mapo.train.monitor.trackers import check_tracker
from mapo.train.plan.fit import changed, smaller_encoding, smallest_change
from mapo.train.plan.live import HEAP_MOST
from mapo.train.plan.machine import beside, parse_size, room_of, shown
from mapo.train.plan.plan import ENCODE_ELSEWHERE, Change, Plan, make_plan, usable
from mapo.train.plan.subject import Subject, open_subject
from mapo.train.processes.processes import Place, Processes, place_of_environment
from mapo.train.reference import check_extras
from mapo.train.run.folder import Run, settled
from mapo.train.weights.levers import check_settings

OF_PACE = {
    "pairs_per_step", "pairs_per_device", "precision", "base_precision", "gradient_checkpointing", "weights", "ema",
    "pair_by_pair", "measure_rejected", "reference", "shard", "compile", "channels_last", "tf32",
}  # fmt: skip
RUNS = ("*/run.json", "*/run/run.json", "*/round-*/run/run.json")  # a folder's own, and those of `mapo style` in it
LAST = 20  # steps of a run whose time is told
SMALL = 20  # a training that surely takes less than this part of the memory is not rehearsed


def plan_here(config: Config, out: Path | None = None, memory: str | None = None, processes: int | None = None) -> Plan:
    """The plan of a training on the device at hand, or in a ``memory`` of the size that this text says.

    It is that of each of so many ``processes``, one to a device; left out, of those that were started. Where ``out`` is
    a run that has begun, a change is one with which it goes on.
    """
    room = parse_size(memory) if memory else None
    world = processes or place_of_environment().world
    device = best_device(or_a_macs=world == 1)
    config = settled(config, out)
    check_settings(config, Processes(Place(0, world), torch.device(device)))
    subject = open_subject(config, device, world)
    _refuse_as_train(subject, config)
    begun = bool(out and Run(out).checkpoints())
    plan = make_plan(subject, config, room or room_of(device), begun=begun)
    if out and (rows := Run(out).metrics()):
        return replace(plan, seconds=_seconds(rows), timed_in=str(out))
    if found := _alike(config, device, world, (out or Path(config.pairs)).absolute().parent):
        return replace(plan, seconds=found[1], timed_in=f"{found[2]} on this device")
    return plan


def _refuse_as_train(subject: Subject, config: Config) -> None:
    """MapoError for a tracker that is not there, a set without pairs to measure, a reference that cannot run before."""
    for name in config.train.trackers:
        check_tracker(name)
    if config.train.evaluate_every:
        held_out(subject.pairs, config)
    if subject.objective.needs_reference and config.train.reference == "before":
        check_extras(subject.objective, config.objective.name)


def _alike(config: Config, device: str, world: int, folder: Path) -> tuple[float, float, Path] | None:
    """When, in how many seconds a step and where a finished run in a ``folder`` was trained as ``config`` would be.

    That is on such a device, by as many processes, with the same of all that decides how long a step takes; the newest.
    """
    found, name = list[tuple[float, float, Path]](), device_name(device)
    for path in itertools.chain.from_iterable(map(folder.glob, RUNS)):
        try:
            about, run = read_object(path, "a run", ""), Run(path.parent)
            same = (about.get("device"), about.get("processes")) == (name, world)
            if same and _pace(run.before()) == _pace(config.model_dump(exclude_none=True)) and (rows := run.metrics()):
                found.append((path.stat().st_mtime, _seconds(rows), run.folder))
        except MapoError:  # damaged, which whoever uses it is told
            continue
    return max(found, default=None)


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(float(row["seconds"]) for row in rows[-LAST:])


def _pace(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide how long a step takes."""
    adapter, data, train = (dict(settings.get(name, {})) for name in ("adapter", "data", "train"))
    parts = {"adapter": adapter, "data": {name: data.get(name) for name in ("resolution", "buckets")}}
    optim, objective = settings.get("optim", {}), settings.get("objective", {})
    parts["train"] = {name: value for name, value in train.items() if name in OF_PACE}
    named = (settings.get("model"), objective.get("name"), optim.get("name"), optim.get("in_backward"))
    return {**parts, "named": named}


def checked_plan(subject: Subject, config: Config, *, begun: bool = False) -> tuple[Plan | None, str]:
    """The plan of a training that is about to begin, and its line; MapoError where it cannot fit, unless it is allowed.

    Where it has ``begun`` and goes on from a checkpoint, a change is one that may be made there. There is no plan where
    rehearsing a step would be a waste, as it surely takes little.
    """
    room = room_of(subject.device)
    if (most := subject.most(config)) < room / SMALL:
        most += sum(beside(subject.device, HEAP_MOST).values())
        return None, f"This training surely needs less than {shown(most)} of memory, of {shown(room)}."
    plan = make_plan(subject, config, room, with_change=not config.train.allow_oversize, begun=begun)
    if not plan.fits and not config.train.allow_oversize:
        close = "A tenth and 200 MiB have to be left. " if plan.highest <= room else ""
        begin = "Begin all the same with --set train.allow_oversize=true."
        raise MapoError(f"{plan.line()} {close}{plan.advice()} {begin}")
    return plan, plan.line()


def told_when_full(
    subject: Subject, config: Config, plan: Plan | None, begun: Callable[[], bool], otherwise: str
) -> str:  # fmt: skip
    """What to say where the memory ran out in the middle of a training, ``begun`` if it goes on from a checkpoint.

    What the plan was, what that means, and the smallest change by which a tenth less is planned; ``otherwise`` is what
    to do where there is none.
    """
    plan = plan or make_plan(subject, config, room_of(subject.device), with_change=False)
    needs = f"needs about {shown(plan.memory)} ({plan.largest()}), and this device has {shown(plan.room)}."
    if plan.trains:
        said = f"By its plan this training {needs} So something else takes memory too, or the plan is too low."
    else:
        said = f"That was to be expected: by its plan this training {needs}"
    room = min(int(0.9 * plan.memory), usable(plan.room, plan.device))
    settings = smallest_change(subject, config, room, begun=begun())
    if settings is None:
        return f"{said} {otherwise}"
    change = Change(settings, subject.memory(changed(config, settings)))
    return (
        f"{said} Repeat the command with {change.flags()}, with which about {shown(change.memory)} are planned, or use "
        "a machine with more memory."
    )


def encoding_told_when_full(subject: Subject, config: Config, plan: Plan | None, begun: bool, otherwise: str) -> str:
    """The same where the memory ran out while pictures and prompts were encoded before the first step."""
    plan = plan or make_plan(subject, config, room_of(subject.device), with_change=False)
    said = f"By its plan encoding needs about {plan.told_before()}, and this device has {shown(plan.room)}."
    room = min(int(0.9 * plan.before), usable(plan.room, plan.device))
    settings = smaller_encoding(subject, config, plan.disk, room, begun=begun)
    if settings is None:
        return f"{said} {otherwise} {ENCODE_ELSEWHERE}"
    return f"{said} Repeat the command with {Change(settings, 0).flags()}, or use a machine with more memory."
