"""The plan of a training on the device at hand, as `mapo plan` asks for it and `mapo train` before it begins."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from mapo.errors import MapoError
from mapo.train.config import Config
from mapo.train.plan.machine import parse_size, room_of, shown
from mapo.train.plan.plan import Plan, make_plan
from mapo.train.plan.subject import Subject, open_subject
from mapo.train.processes.processes import Place, Processes, kind_of_device, place_of_environment
from mapo.train.run.folder import Run, settled
from mapo.train.weights.levers import check_settings

LAST = 20  # steps of a run whose time is told


def plan_here(config: Config, out: Path | None = None, memory: str | None = None, processes: int | None = None) -> Plan:
    """The plan of a training on the device at hand, or in a ``memory`` of the size that this text says.

    It is that of each of so many ``processes``, one to a device; left out, of those that were started.
    """
    room = parse_size(memory) if memory else None
    world = processes or place_of_environment().world
    device = kind_of_device(world)
    config = settled(config, out)
    check_settings(config, Processes(Place(0, world), torch.device(device)))
    plan = make_plan(open_subject(config, device, world), config, room or room_of(device))
    rows = Run(out).metrics() if out else []
    if not rows:
        return plan
    return replace(plan, seconds=statistics.median(float(row["seconds"]) for row in rows[-LAST:]))


def checked_plan(subject: Subject, config: Config, *, begun: bool = False) -> Plan | None:
    """The plan of a training that is about to begin; MapoError where it cannot fit, unless it is allowed to.

    Where it has ``begun`` and goes on from a checkpoint, a change is one that may be made there.
    None where it surely takes so little that it need not be planned.
    """
    room = room_of(subject.device)
    if subject.surely_small(config, room):
        return None
    plan = make_plan(subject, config, room, with_change=not config.train.allow_oversize, begun=begun)
    if not plan.fits and not config.train.allow_oversize:
        raise MapoError(f"{plan.line()} {plan.advice()} Begin all the same with --set train.allow_oversize=true.")
    return plan


def told_when_full(subject: Subject, config: Config, plan: Plan | None, begun: Callable[[], bool]) -> str:
    """What to say where the memory ran out in the middle of a training, ``begun`` if it goes on from a checkpoint."""
    plan = plan or make_plan(subject, config, room_of(subject.device), with_change=False)
    less = make_plan(subject, config, int(0.9 * min(plan.memory, plan.room)), begun=begun())
    said = [plan.line()]
    if plan.fits:
        said.append("By that it fits, so something else takes memory too, or it is too low.")
    if less.change is not None:
        said.append(f"It would need about {shown(less.change.memory)} with {less.change.flags()}.")
    return " ".join(said)
