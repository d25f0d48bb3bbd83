"""Recipes: what a pair's two pictures are made from, as TOML that people read.

A recipe either names two sides (``[chosen]`` and ``[rejected]``, each a prefix put before the prompt) or a number of
``candidates``, of which judges choose the best and the worst.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mapo.errors import MapoError, several, suggest
from mapo.files import at_home
from mapo.settings import Section, why_not
from mapo.texts import is_whole_text, read_text

SIDES = ("chosen", "rejected")


class Side(Section):
    """How one picture of a pair comes about: words put before the prompt."""

    prefix: str = ""


class Advice(Section):
    """How to sample from the recipe's own model."""

    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None


class Recipe(Section):
    """A recipe. ``threshold`` is what the value of a judge that names none has to exceed on the chosen picture."""

    name: str
    about: str
    chosen: Side | None = None
    rejected: Side | None = None
    candidates: Annotated[int, Field(ge=2)] | None = None
    seeds: Literal["same", "other"] = "same"
    context: bool = False  # pictures are made from context prompts, so the way to them has to be named
    sensitive: bool = False  # rejected pictures are unsafe: no prompt that could mean minors, pages blur
    judges: tuple[str, ...] = ()
    threshold: float | None = None
    model: str = ""  # the one it was written for, to which [sampling] applies
    sampling: Advice = Advice()

    @property
    def ranks(self) -> bool:
        """Whether judges find the best and the worst of several candidates."""
        return self.candidates is not None

    @property
    def prefixes(self) -> dict[str, str]:
        """The prefix of each picture that is made for a prompt, by the name of its side."""
        if self.candidates is not None:
            return {f"candidate-{k}": "" for k in range(self.candidates)}
        assert self.chosen is not None and self.rejected is not None
        return {"chosen": self.chosen.prefix, "rejected": self.rejected.prefix}

    def advice(self, model: str) -> dict[str, Any]:
        """How to sample from ``model``, where it is the one that the recipe was written for (or a copy of it)."""
        same = self.model and Path(model).name == self.model.split("/")[-1]
        return self.sampling.model_dump(exclude_none=True) if same else {}


def recipe_names() -> list[str]:
    """The recipes that the package carries."""
    folder = importlib.resources.files("mapo.build") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def read_recipe(name: str) -> Recipe:
    """A recipe of the package by its name, or a TOML file of the user's."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise MapoError(f"There is no recipe file {name}.")
    elif name in recipe_names():
        path = Path(str(importlib.resources.files("mapo.build") / "recipes" / f"{name}.toml"))
    else:
        raise MapoError(f"There is no recipe {name!r}. {suggest(name, recipe_names())}")
    try:
        values = at_home(tomllib.loads(read_text(path)))
    except (OSError, ValueError) as error:
        raise MapoError(f"The recipe {name} cannot be read ({error}).") from None
    return _checked({"about": "", **values, "name": path.stem}, name)


def _checked(values: Mapping[str, Any], name: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as failure:
        error = failure.errors()[0]
        where = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            raise MapoError(f"The recipe {name} has no key {where!r}. {suggest(where, Recipe.model_fields)}") from None
        raise MapoError(f"The recipe {name}: {where} does not fit: {why_not(error)}.") from None
    if recipe.ranks == bool(recipe.chosen or recipe.rejected):
        raise MapoError(f"The recipe {name} needs [chosen] prefix and [rejected] prefix, or a number of candidates.")
    if not recipe.ranks and not (recipe.chosen and recipe.rejected):
        raise MapoError(f"The recipe {name} needs [chosen] prefix and [rejected] prefix; one of them is missing.")
    return recipe


def changed_recipe(
    recipe: Recipe, prefixes: str | Sequence[str] = (), candidates: int | None = None, seeds: str | None = None
) -> Recipe:
    """The recipe with ``SIDE=TEXT`` prefixes, a number of candidates and a choice of seeds of the user's own."""
    values = recipe.model_dump()
    for text in several(prefixes):
        side, equals, prefix = text.partition("=")
        if side not in SIDES or not equals:
            raise MapoError(f"--prefix {text!r}: write chosen=WORDS or rejected=WORDS.")
        if not is_whole_text(prefix):
            raise MapoError(f"--prefix {text!r} is not a text in UTF-8. Write it anew.")
        if recipe.ranks:
            raise MapoError(f"--prefix: the recipe {recipe.name} chooses among candidates, which have no prefixes.")
        values[side] = {"prefix": prefix.strip()}
    if candidates is not None:
        if not recipe.ranks:
            raise MapoError(f"--candidates: the recipe {recipe.name} makes two pictures of a prompt, by two prefixes.")
        values["candidates"] = candidates
    if seeds is not None:
        values["seeds"] = seeds
    made = _checked(values, recipe.name)
    if len({*made.prefixes.values()}) == 1 and made.seeds == "same":
        raise MapoError(
            f"The recipe {recipe.name} gives all pictures of a prompt the same prefix and the same seed, so they would "
            "be the same picture. Change a prefix, or use --seeds other."
        )
    return made
