"""The smallest change of settings by which a training fits, and what is encoded before it: the fewest levers, and of
these the cheapest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from mapo.encode.cache import is_cache
from mapo.errors import MapoError
from mapo.settings import merge, nested
from mapo.train.config import Config, make_config
from mapo.train.loop import needs_whole_pairs
from mapo.train.plan.disk import Disk
from mapo.train.plan.subject import Subject
from mapo.train.processes.processes import Place, Processes
from mapo.train.reference import check_extras
from mapo.train.weights.levers import LEAST_RATE, check_levers

Settings = dict[str, Any]
Lever = Callable[[Subject, Config], Iterator[Settings]]


def smallest_change(subject: Subject, config: Config, room: int, *, begun: bool = False) -> Settings | None:
    """The settings to change so that it fits into ``room`` bytes, as ``--set`` takes them; None where nothing helps.

    Of a training that has ``begun`` only those are changed with which it may go on.

    A single lever where one is enough, the cheapest first; else all of them one after another until it fits, without
    those that turn out not to be needed.
    """
    levers = LATER if begun else LEVERS
    without = tuple(lever for lever in levers if lever is not _shared)  # which excludes others
    found = _found(subject, config, room, levers) or _found(subject, config, room, without)
    if found is None:
        return None
    now = config.model_dump()
    return {key: value for key, value in found.items() if now[key.split(".")[0]][key.split(".")[1]] != value}


def smaller_encoding(
    subject: Subject, config: Config, disk: Disk, room: int, *, begun: bool = False
) -> Settings | None:  # fmt: skip
    """The mildest settings by which what the cache lacks can be encoded in ``room`` bytes; None where none do.

    A run or a cache that has begun keeps its precision.
    """
    fewer = [{"data.images_per_batch": number} for number in _halves(config.data.images_per_batch)]
    halved: list[Settings] = []
    if config.data.cache_precision == "float32" and not begun and not is_cache(disk.folder):
        halved = [{**one, "data.cache_precision": "bfloat16"} for one in ({}, *fewer)]
    for settings in (*fewer, *halved):
        if sum(subject.encoding(changed(config, settings), disk).values()) <= room:
            return settings
    return None


def _halves(number: int) -> Iterator[int]:
    while number := number // 2:
        yield number


def _found(subject: Subject, config: Config, room: int, levers: Sequence[Lever]) -> Settings | None:
    strongest = config
    for lever in levers:
        strongest = changed(strongest, _most(lever, subject, strongest))
    if subject.memory(strongest) > room:
        return None
    for lever in levers:
        if not _fits(subject, config, _most(lever, subject, config), room):
            continue
        for settings in _possible(lever, subject, config):
            if subject.memory(changed(config, settings)) <= room:
                return settings
    used: list[Settings] = []
    for lever in levers:
        now = changed(config, _together(used))
        most = _most(lever, subject, now)
        if most and subject.memory(changed(now, most)) < subject.memory(now):
            used.append(most)
        if used and subject.memory(changed(config, _together(used))) <= room:
            break
    else:
        return None
    for one in list(used):
        without = [other for other in used if other is not one]
        if _fits(subject, config, _together(without), room):
            used = without
    return _together(used)


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with other settings."""
    values = merge(config.model_dump(exclude_none=True), nested(settings))
    if settings.get("adapter.kind"):  # whose rate is another
        values["optim"].pop("lr", None)
    return make_config(values)


def _together(some: list[Settings]) -> Settings:
    return {key: value for one in some for key, value in one.items()}


def _fits(subject: Subject, config: Config, settings: Settings, room: int) -> bool:
    with_them = _allowed(subject, config, settings)
    return with_them is not None and subject.memory(with_them) <= room


def _possible(lever: Lever, subject: Subject, config: Config) -> Iterator[Settings]:
    """What the lever may do, the mildest first, of what does not clash with the other settings."""
    return (settings for settings in lever(subject, config) if _allowed(subject, config, settings) is not None)


def _most(lever: Lever, subject: Subject, config: Config) -> Settings:
    """The strongest that the lever may do; empty where it may do nothing."""
    return [{}, *_possible(lever, subject, config)][-1]


def _allowed(subject: Subject, config: Config, settings: Settings) -> Config | None:
    try:
        found = changed(config, settings)
        check_levers(found, Processes(Place(0, subject.world), torch.device(subject.device)))
    except MapoError:
        return None
    return found


# ------------------------------------------------------------------ the levers, the cheapest first


def _fewer_pairs(subject: Subject, config: Config) -> Iterator[Settings]:
    share = -(-config.train.pairs_per_step // subject.world)
    for number in _halves(min(config.train.pairs_per_device or share, share)):
        yield {"train.pairs_per_device": number}


def _reference_before(subject: Subject, config: Config) -> Iterator[Settings]:
    if subject.objective.needs_reference and config.adapter.kind == "full" and config.train.reference == "together":
        try:
            check_extras(subject.objective, config.objective.name)
        except MapoError:
            return
        yield {"train.reference": "before"}


def _half_base(subject: Subject, config: Config) -> Iterator[Settings]:
    train = config.train
    if config.adapter.kind == "lora" and train.base_precision == "float32" and train.precision != "float64":
        yield {"train.base_precision": "bfloat16"}


def _shared(subject: Subject, config: Config) -> Iterator[Settings]:
    if subject.world > 1 and config.train.shard == "none":
        yield {"train.shard": "fsdp2"}


def _checkpointing(subject: Subject, config: Config) -> Iterator[Settings]:
    if not config.train.gradient_checkpointing:
        yield {"train.gradient_checkpointing": True}


def _pair_by_pair(subject: Subject, config: Config) -> Iterator[Settings]:
    if not config.train.pair_by_pair and needs_whole_pairs(config, subject.objective, subject.members):
        yield {"train.pair_by_pair": True}


def _smaller_optimizer(subject: Subject, config: Config) -> Iterator[Settings]:
    if config.optim.name == "adamw" and find_spec("torchao"):
        yield {"optim.name": "adamw8bit"}
    if config.optim.name == "adamw":
        yield {"optim.name": "adafactor"}


def _in_backward(subject: Subject, config: Config) -> Iterator[Settings]:
    if not config.optim.in_backward and config.adapter.kind == "full":
        yield {"optim.in_backward": True, "optim.clip_norm": 0}


def _half_weights(subject: Subject, config: Config) -> Iterator[Settings]:
    if config.adapter.kind == "full" and config.train.weights == "float32" and config.rate >= LEAST_RATE:
        yield {"train.weights": "bfloat16-stochastic"}


def _lora(subject: Subject, config: Config) -> Iterator[Settings]:
    if config.adapter.kind == "full" and "lora" in subject.model.adapters:
        plain = {"train.weights": "float32", "optim.name": "adamw", "optim.in_backward": False}
        now = {"train.weights": config.train.weights, "optim.name": config.optim.name}
        now["optim.in_backward"] = config.optim.in_backward  # type: ignore[assignment]
        back = {key: value for key, value in plain.items() if now[key] != value}
        yield {"adapter.kind": "lora", **back}
        if config.train.precision != "float64":
            yield {"adapter.kind": "lora", **back, "train.base_precision": "bfloat16"}


LEVERS: tuple[Lever, ...] = (
    _fewer_pairs, _reference_before, _half_base, _shared, _checkpointing, _pair_by_pair, _smaller_optimizer,
    _in_backward, _half_weights, _lora,
)  # fmt: skip
LATER: tuple[Lever, ...] = (_fewer_pairs, _reference_before, _shared, _checkpointing, _pair_by_pair)  # see MAY_CHANGE
