"""Which scorers are used where nobody names any, and what has to be said about those that were named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mapo.errors import MapoError
from mapo.files import read_object
from mapo.images import ImageRow
from mapo.mini.draw import SIDE
from mapo.mini.scenes import parse
from mapo.scorers import GROUPS, SCORERS, scorer_class
from mapo.scorers.weights import at_hand

TOYS = GROUPS["mini"]
NEUTRAL = "guards"  # its numbers have no better or worse


def choose_scorers(folders: Mapping[Path, Sequence[ImageRow]], references: bool = False) -> tuple[str, list[str]]:
    """The scorers for the pictures of these folders, as ``--scorer`` takes them, and what to tell of the choice.

    The judges of the built-in world for what its own model made; else all whose weights are on this machine, of those
    that compare with references only where there are some.
    """
    if all(made_by_mini(folder, rows) for folder, rows in folders.items()):
        return f"mini,{NEUTRAL}", []
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
    if not toys or made_by_mini(folder, rows):
        return []
    return [
        f"{' and '.join(toys)}: made for the drawings of the built-in world, whose model did not make these "
        "pictures. They take any picture for the drawing that it resembles most; of photos their numbers mean nothing."
    ]


def made_by_mini(folder: Path, rows: Sequence[ImageRow]) -> bool:
    """Whether the built-in model made all of these pictures, or runs that stand on it.

    Where a run was moved away, one of its name beside the images folder will do, or prompts that are all captions of
    the built-in world, provided that the pictures have the size of its drawings.
    """
    if any(row.foreign for row in rows):
        return False
    tiny = all((row.width, row.height) == (SIDE, SIDE) for row in rows)
    captions = tiny and all(parse(prompt) for prompt in {row.prompt for row in rows})

    def stands(model: str) -> bool:
        return _stands_on_mini(model) or (tiny and _stands_on_mini(str(folder.resolve().parent / Path(model).name)))

    return captions or all(stands(model) for model in {row.model for row in rows})


def _stands_on_mini(model: str) -> bool:
    """Whether a model is the built-in one, or a run whose base, or its base's base, is."""
    from mapo.families import MINI  # which takes torch along

    seen = {""}
    while model not in seen:
        if model == "mini" or Path(model).resolve() == MINI.resolve():
            return True
        seen.add(model)
        try:
            model = str(read_object(Path(model) / "run.json", "a run", "").get("base", ""))
        except MapoError:
            return False
    return False
