"""Which scorers are used where nobody names any, and what has to be said about those that were named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mapo.errors import MapoError, suggest
from mapo.pretrained import at_hand
from mapo.sample.folder import ImageRow
from mapo.score.scorers import SCORERS, scorer_class, scorer_names
from mapo.texts import read_object
from mapo.worlds import WORLDS, World, find, world_of

TOYS = frozenset(name for world in WORLDS.values() for name in world.scorers)
NEUTRAL = "guards"  # its numbers have no better or worse


def choose_scorers(folders: Mapping[Path, Sequence[ImageRow]], references: bool = False) -> tuple[str, list[str]]:
    """The scorers for the pictures of these folders, as ``--scorer`` takes them, and what to tell of the choice.

    The judges of the built-in world for what its own model made; else all whose weights are on this machine, of those
    that compare with references only where there are some.
    """
    makers = [maker_of(folder, rows) for folder, rows in folders.items()]
    if makers and makers[0] and all(maker is makers[0] for maker in makers):
        return f"{makers[0].name},{NEUTRAL}", []
    found, absent, told = list[str](), list[str](), list[str]()
    for name in SCORERS:
        if name in TOYS or (scorer_class(name).needs_reference and not references):
            continue
        lack = lacks(name)
        if lack is None:
            found.append(name)
        elif lack:
            told.append(lack)
        else:
            absent.append(name)
    told.insert(0, f"no --scorer was named, so these score: {', '.join(found)}.")
    if absent:
        told.append(
            f"these are not on this machine: {', '.join(absent)}. Name those that you want, and they are fetched once: "
            f"--scorer {','.join([*found, absent[0]])}"
        )
    return ",".join(found), told


def only_neutral(folders: Mapping[Path, Sequence[ImageRow]]) -> bool:
    """Whether no scorer that knows better from worse would be chosen for the pictures of these folders."""
    return set(choose_scorers(folders)[0].split(",")) <= {NEUTRAL, ""}


def check_goal(goal: str, scorers: str | None, model: str) -> None:
    """MapoError where no scorer will give the metric ``goal`` of what a model draws, so that it is known before hours.

    ``scorers`` are those that are named; left out, those that would be chosen.
    """
    wanted = goal.removeprefix("-")
    giving = {name for name in SCORERS if wanted in scorer_class(name).metrics}
    every = {metric for name in SCORERS if name != NEUTRAL for metric in scorer_class(name).metrics}
    if wanted not in every:
        raise MapoError(f"--goal: {wanted!r} is not a metric of any scorer. {suggest(wanted, every)}")
    if scorers:
        if giving.isdisjoint(name.partition("@")[0] for name in scorer_names(scorers)):
            raise MapoError(f"--goal: {wanted} comes from {' and '.join(sorted(giving))}, and --scorer names others.")
        return
    own = next((set(world.scorers) for world in WORLDS.values() if _stands_on(world, model)), None)
    there = own or {name for name in giving - TOYS if lacks(name) is None}
    if giving.isdisjoint(there):
        raise MapoError(
            f"--goal: {wanted} comes from {' and '.join(sorted(giving))}, which would not be asked here. Name it with "
            "--scorer."
        )


def check_measured(goal: str, names: str) -> None:
    """MapoError where none of these scorers gives the metric ``goal``, so that it is known before they are run."""
    wanted = goal.removeprefix("-")
    given = {metric for name in scorer_names(names) for metric in scorer_class(name.partition("@")[0]).metrics}
    if wanted not in given:
        raise MapoError(f"--goal: {wanted!r} is not a metric of {names}. {suggest(wanted, given)}")


def lacks(name: str) -> str | None:
    """None where the scorer has all that it needs on this machine, "" where it is fetched when it is named, else what
    to type; nothing is fetched to find out."""
    kind = scorer_class(name)
    if hasattr(kind, "lacks"):
        said: str | None = kind.lacks()
        return said
    return None if all(at_hand(*need) for need in getattr(kind, "needs", ())) else ""


def warn_of_toys(names: Sequence[str], folder: Path, rows: Sequence[ImageRow]) -> list[str]:
    """What the judges of the built-in world mean on pictures that its model did not make."""
    toys = [name for name in names if name in TOYS]
    if not toys or maker_of(folder, rows):
        return []
    return [
        f"{' and '.join(toys)}: made for the drawings of the built-in world, whose model did not make these "
        "pictures. They take any picture for the drawing that it resembles most; of photos their numbers mean nothing."
    ]


def maker_of(folder: Path, rows: Sequence[ImageRow]) -> World | None:
    """The world whose model made all of these pictures, or runs that stand on it.

    Where a run was moved away, one of its name beside the images folder will do, or prompts that all belong to the
    world, provided that the pictures have the size of its own.
    """
    return next((world for world in WORLDS.values() if _made(world, folder, rows)), None)


def _made(world: World, folder: Path, rows: Sequence[ImageRow]) -> bool:
    if any(row.foreign for row in rows):
        return False
    sized = all((row.width, row.height) == (world.side, world.side) for row in rows)
    own = sized and all(find(world.parse)(prompt) for prompt in {row.prompt for row in rows})

    def stands(model: str) -> bool:
        beside = str(folder.resolve().parent / Path(model).name)
        return _stands_on(world, model) or (sized and _stands_on(world, beside))

    return own or all(stands(model) for model in {row.model for row in rows})


def _stands_on(world: World, model: str) -> bool:
    """Whether a model is that of the world, or a run whose base, or its base's base, is."""
    seen = {""}
    while model not in seen:
        if model in world.models or world_of(Path(model)) is world:
            return True
        seen.add(model)
        try:
            model = str(read_object(Path(model) / "run.json", "a run", "").get("base", ""))
        except MapoError:
            return False
    return False
