"""Worlds that the package brings along: each adds by its name a model, lists of prompts, and scorers.

The rooms look here and know no world themselves. ``mapo.lab`` adds the built-in one when the package is imported;
places are told as ``module:name``, so nothing is loaded before it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class World:
    """What ``--prompts NAME:LIST``, ``--scorer NAME`` and the names of its models for ``--model`` stand for."""

    name: str
    models: Mapping[str, Path]  # name → pipeline folder; the first bears the world's name
    side: int  # of its pictures in pixels
    lists: tuple[str, ...]  # of prompts
    read_list: str  # the function: a list's name → its prompts
    parse: str  # the function: a prompt → what it asks for, None where it is not one of this world
    scorers: Mapping[str, str]  # name → class; ``--scorer NAME`` is all of them
    embedder: str  # the scorer that embeds its pictures


WORLDS: dict[str, World] = {}
MODELS: dict[str, Path] = {}  # of all worlds, by name


def add(world: World) -> None:
    """Make a world known by its name."""
    WORLDS[world.name] = world
    MODELS.update(world.models)


def find(place: str) -> Any:
    """What ``module:name`` stands for."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def world_of(base: Path) -> World | None:
    """The world one of whose models lies in this folder."""
    folder = base.resolve()
    return next((world for world in WORLDS.values() if folder in (m.resolve() for m in world.models.values())), None)
