"""Recipes of training: settings that belong together, as TOML that people read, with what is published beside them."""

from __future__ import annotations

import difflib
import importlib.resources
import tomllib
from typing import Any

from mapo.errors import MapoError

FOLDER = importlib.resources.files("mapo.train.recipes")


def recipe_names() -> list[str]:
    """The recipes that the package carries."""
    return sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir() if file.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """A recipe as it stands, with its remarks; MapoError where there is none of that name."""
    if name not in recipe_names():
        near = [one for one in recipe_names() if name in one] or difflib.get_close_matches(name, recipe_names(), 1)
        told = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(recipe_names())}."
        raise MapoError(f"There is no recipe {name!r}. {told} `mapo train` takes a file of your own as --config.")
    return (FOLDER / f"{name}.toml").read_text("utf-8")


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe."""
    return {key: value for key, value in tomllib.loads(recipe_text(name)).items() if key not in ("about", "for")}


MUCH_LARGER = 4  # a side of so many times the model's own is taken for a mistake


def check_recipe(name: str, model: str, resolution: int | None) -> None:
    """MapoError where ``model`` is of another kind than the one that the recipe is for, or much smaller.

    ``resolution`` is the side in pixels that would be trained at; None: the model's own.
    """
    recipe = tomllib.loads(recipe_text(name))
    if model == recipe["model"]:
        return
    from mapo.models import find_model, open_model

    files = find_model(model, weights=False)
    if (kind := files.pipeline_class) != recipe["for"]:
        raise MapoError(
            f"The recipe {name} is for a {recipe['for']}, but {model} is a {kind}, for which its rate, size and beta "
            "were not chosen. Take another recipe, or leave --recipe out."
        )
    if resolution and resolution > MUCH_LARGER * (side := open_model(files).layout.side):
        small = [other for other in recipe_names() if read_recipe(other)["model"] == model]
        raise MapoError(
            f"The recipe {name} trains at {resolution} pixels, but {model} draws {side}. "
            f"{f'Take the recipe {small[0]}' if small else 'Take another recipe'}, or set data.resolution={side}."
        )


def recipe_list() -> list[str]:
    """A line for each recipe: its name, and what it is."""
    abouts = {name: str(tomllib.loads(recipe_text(name))["about"]) for name in recipe_names()}
    width = max(map(len, abouts))
    return [f"{name:{width}}  {about}" for name, about in abouts.items()]
