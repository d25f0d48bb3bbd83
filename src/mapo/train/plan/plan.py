"""The plan of a training: parameters, memory by kind, disk of the cache, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mapo.errors import count
from mapo.train.config import Config
from mapo.train.plan.disk import Disk, disk_of
from mapo.train.plan.fit import changed, smaller_encoding, smallest_change
from mapo.train.plan.machine import SPARE, SPARE_BYTES, shown
from mapo.train.plan.subject import Subject

KINDS = {  # in the order in which they are told
    "mapped": "frozen weights, mapped from their file",
    "weights": "frozen weights",
    "trained": "trained weights",
    "gradients": "gradients",
    "optimizer": "the optimizer's state",
    "mean": "the running mean",
    "reference": "the reference",
    "gathered": "blocks that are gathered whole",
    "activations": "activations",
    "update": "the update's own",
    "batch": "batches",
    "other": "other tensors",
    "heap": "freed memory that the allocator keeps",
    "libraries": "libraries",
}
# The same for what is encoded first.
ENCODING = {**KINDS, "mapped": "encoders, mapped from their file", "weights": "encoders", "batch": "pictures"}
ENCODE_ELSEWHERE = (
    "Encode the set where there is more memory, or without the GPU: CUDA_VISIBLE_DEVICES= mapo encode, with the same "
    "model, pairs and cache."
)


@dataclass(frozen=True)
class Change:
    """Settings that make a training fit, and what it then takes. ``settings`` are as ``--set`` takes them."""

    settings: Mapping[str, Any]
    memory: int

    def flags(self) -> str:
        """What is to be added to the command: to any that trains, as not all have flags of their own for settings."""
        return " ".join(f"--set {key}={_told(value)}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Plan:
    """What a training needs. Bytes; ``kinds`` are those of its memory at the peak of a step, by the names of ``KINDS``.

    It is that of each of so many ``processes``. ``room`` is the memory of the ``device`` ("cpu", "cuda" or "mps"), or
    the size that was given. ``change`` is the smallest one by which it fits; None where it fits as it is, or nothing
    known makes it fit. ``encoding`` are the bytes by kind of what is encoded before the first step, at its own peak;
    empty where the cache lacks nothing. ``seconds`` is the median of a step of the run ``timed_in``: the one that was
    given, or another on this device with the same settings. None where no step was taken there.
    """

    device: str
    room: int
    kinds: Mapping[str, int]
    parameters: int
    trained: int
    disk: Disk
    change: Change | None = None
    seconds: float | None = None
    timed_in: str = ""
    processes: int = 1
    encoding: Mapping[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """All that it needs."""
        return sum(self.kinds.values())

    @property
    def own_memory(self) -> int:
        """What can be measured of it: on a CPU that without what is mapped from files, on a GPU what torch holds."""
        return self.memory - self.kinds.get("mapped" if self.device == "cpu" else "libraries", 0)

    @property
    def fits(self) -> bool:
        """Whether there is so much; on a CPU a tenth and 200 MiB more, as the plan may be too low."""
        return self.highest <= usable(self.room, self.device)

    @property
    def trains(self) -> bool:
        """Whether there is so much for the training alone."""
        return self.memory <= usable(self.room, self.device)

    @property
    def highest(self) -> int:
        """What it needs where it needs most: while it encodes, or in a step."""
        return max(self.memory, self.before)

    @property
    def before(self) -> int:
        """What encoding takes before the first step."""
        return sum(self.encoding.values())

    def line(self) -> str:
        """In one line."""
        each = f" on each of {self.processes} devices" if self.processes > 1 else ""
        return (
            f"This training needs about {shown(self.memory)} of memory{each}, of {shown(self.room)}: {self.largest()}."
            + (f" Encoding before it needs more: {self.told_before()}." if self.before > self.memory else "")
        )

    def told_before(self) -> str:
        """What encoding takes before the first step, and the two kinds that take most."""
        most = sorted(self.encoding.items(), key=lambda one: -one[1])[:2]
        return f"{shown(self.before)} ({', '.join(f'{ENCODING[kind]} {shown(size)}' for kind, size in most)})"

    def largest(self) -> str:
        """The three kinds that take most."""
        most = sorted(self.kinds.items(), key=lambda one: -one[1])[:3]
        return ", ".join(f"{KINDS[kind]} {shown(size)}" for kind, size in most)

    def advice(self) -> str:
        """What to do where it does not fit."""
        if self.change is None and self.trains:
            return f"No setting makes encoding fit. {ENCODE_ELSEWHERE}"
        if self.change is None:
            return (
                "No setting that is known to take less memory makes it fit. Take a smaller model, a smaller "
                "data.resolution, or a device with more memory."
            )
        return f"The smallest change that makes it fit, in {shown(self.change.memory)}, is {self.change.flags()}."

    def lines(self) -> list[str]:
        """All of it, for people."""
        told = [f"parameters   {self.parameters:,}, of which {self.trained:,} are trained"]
        each = f" on each of {self.processes} devices" if self.processes > 1 else ""
        told.append(f"memory       {shown(self.memory)} of {shown(self.room)} ({self.device}){each}")
        told += [f"  {shown(size):>10}  {KINDS[kind]}" for kind, size in self.kinds.items() if size >= 2**19]
        if self.encoding:
            told.append(f"before it    {self.told_before()}, to encode pictures and prompts")
        disk = self.disk
        lacks = f"{count(disk.pictures, 'picture')} and {count(disk.prompts, 'prompt')} to encode"
        where = "another cache" if disk.refused else f"the cache {disk.folder}"
        told.append(f"disk         {shown(disk.bytes)} more in {where} ({lacks})")
        told += [f"             {disk.refused}"] if disk.refused else []
        if self.seconds is not None:
            told.append(f"time         {self.seconds:.2f} s a step, as {self.timed_in} measured")
        close = (
            "It may not fit: a tenth and 200 MiB have to be left." if self.highest <= self.room else "It does not fit."
        )
        told.append("It fits." if self.fits else f"{close} {self.advice()}")
        return told


def usable(room: int, device: str) -> int:
    """The bytes of ``room`` that a plan may fill."""
    return max(0, int((room - SPARE_BYTES) / (1 + SPARE))) if device == "cpu" else room


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_plan(
    subject: Subject, config: Config, room: int, *, with_change: bool = True, begun: bool = False
) -> Plan:  # fmt: skip
    """The plan of a training, with the smallest change that makes it fit where it does not.

    Where it has ``begun`` it is one with which its checkpoint goes on.
    """
    found, parameters, trained = subject.needs(config)
    kinds = {kind: found[kind] for kind in KINDS if found.get(kind)}
    disk = disk_of(config, subject.model, subject.pairs)
    encoding = subject.encoding(config, disk)
    plan = Plan(
        subject.device, room, kinds, parameters, trained, disk, processes=subject.world, encoding=encoding
    )  # fmt: skip
    if plan.fits or not with_change:
        return plan
    most = usable(room, subject.device)
    settings = smallest_change(subject, config, most, begun=begun) if plan.memory > most else {}
    of_encoding = smaller_encoding(subject, config, disk, most, begun=begun) if plan.before > most else {}
    if settings is None or of_encoding is None:
        return plan
    settings |= of_encoding
    then = changed(config, settings)
    needed = max(subject.memory(then), sum(subject.encoding(then, disk).values()))
    return replace(plan, change=Change(settings, needed))
