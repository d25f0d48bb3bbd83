"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.errors import MapoError
from mapo.settings import merge
from mapo.train.config import make_config
from mapo.train.recipes.recipe import check_recipe, read_recipe

if TYPE_CHECKING:
    from mapo.train.monitor.monitor import Hands

SECTIONS = {
    "objective": ("objective", "name"), "adapter": ("adapter", "kind"), "allow_distilled": ("train", "allow_distilled"),
    "long_prompts": ("data", "long_prompts"), "text_encoders": ("adapter", "text_encoders"),
    "targets": ("adapter", "targets"),
}  # fmt: skip


def train(
    out: Path, settings: Mapping[str, Any], recipe: str | None = None, *, hands: Callable[[], Hands] | None = None,
    allow_change: bool = False, **named: str | bool | list[str] | None,
) -> bool:  # fmt: skip
    """Train into ``out``, or go on there; whether this process is the one that writes.

    What is ``named`` (model, pairs, cache, loras, and the keys of ``SECTIONS``) comes before ``settings``, these before
    those of the ``recipe``, and these before what the run says that is there. ``hands`` gives what other rooms do
    meanwhile. With ``allow_change`` a run may go on with other settings.
    """
    values = _without_other_knobs(read_recipe(recipe), settings, named.get("objective")) if recipe else {}
    if isinstance(asked := settings.get("adapter"), Mapping) and asked.get("start") == "continued":
        values.get("adapter", {}).pop("rank", None)  # the recipe's is that of a new LoRA
    merge(values, settings)
    for key, value in named.items():
        if value is not None:
            section, name = SECTIONS.get(key, (key, ""))
            merge(values, {section: {name: value}} if name else {section: value})
    from mapo.train.train import Run, train

    before = Run(out).before()
    for key in ("model", "pairs"):
        if not (values.get(key) or before.get(key)):
            raise MapoError(f"Give --{key}, or {key} in the --config file.")
    config = make_config({key: before[key] for key in ("model", "pairs") if key in before} | values)
    if recipe:
        check_recipe(recipe, config.model)
    return train(config, out, *([hands()] if hands else []), allow_change=allow_change)


def _without_other_knobs(recipe: dict[str, Any], settings: Mapping[str, Any], named: Any) -> dict[str, Any]:
    """The recipe without the settings of its objective, where another objective is asked for."""
    section = settings.get("objective")
    asked = named or (section.get("name") if isinstance(section, Mapping) else None)
    if asked and asked != recipe["objective"]["name"]:
        recipe["objective"] = {"name": asked}
    return recipe
