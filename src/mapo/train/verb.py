"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.errors import MapoError
from mapo.settings import merge
from mapo.train.config import Config, make_config
from mapo.train.recipes.recipe import check_recipe, read_recipe

if TYPE_CHECKING:
    from mapo.train.monitor.monitor import Hands
    from mapo.train.plan.plan import Plan

SECTIONS = {
    "objective": ("objective", "name"), "adapter": ("adapter", "kind"), "allow_distilled": ("train", "allow_distilled"),
    "long_prompts": ("data", "long_prompts"), "text_encoders": ("adapter", "text_encoders"),
    "targets": ("adapter", "targets"), "keep": ("train", "keep_checkpoints"),
}  # fmt: skip
OF_A_RUN = ("model", "pairs", "adapter", "optim", "data", "train")  # the objective's depend on its name


def train(
    out: Path, settings: Mapping[str, Any], recipe: str | None = None, *, hands: Callable[[], Hands] | None = None,
    allow_change: bool = False, **named: str | bool | list[str] | None,
) -> bool:  # fmt: skip
    """Train into ``out``, or go on there; whether this process is the one that writes.

    What is ``named`` (model, pairs, cache, loras, and the keys of ``SECTIONS``) comes before ``settings``, these before
    those of the ``recipe``, and these before what the run says that is there. ``hands`` gives what other rooms do
    meanwhile. With ``allow_change`` a run may go on with other settings.
    """
    from mapo.train.train import train

    config = config_of(out, settings, recipe, named)
    return train(config, out, *([hands()] if hands else []), allow_change=allow_change)


def plan(
    settings: Mapping[str, Any], recipe: str | None = None, *, out: Path | None = None, memory: str | None = None,
    processes: int | None = None, **named: str | bool | list[str] | None,
) -> Plan:  # fmt: skip
    """What `train` would need with the same settings, in ``memory`` (a text such as "24GB") or on the device at hand.

    It is that of each of so many ``processes``; left out, of those that were started.

    No weights are read, and nothing is written. Where ``out`` is a run its settings count, as they do for `train`.
    """
    from mapo.train.plan.at_hand import plan_here

    return plan_here(config_of(out, settings, recipe, named), out, memory, processes)


def config_of(
    out: Path | None,
    settings: Mapping[str, Any],
    recipe: str | None,
    named: Mapping[str, str | bool | list[str] | None],
) -> Config:
    """What was said of a training, on top of what the run says that is there: some settings need one another."""
    values = _without_other_knobs(read_recipe(recipe), settings, named.get("objective")) if recipe else {}
    if isinstance(asked := settings.get("adapter"), Mapping) and asked.get("start") == "continued":
        values.get("adapter", {}).pop("rank", None)  # the recipe's is that of a new LoRA
    merge(values, settings)
    for key, value in named.items():
        if value is not None:
            section, name = SECTIONS.get(key, (key, ""))
            merge(values, {section: {name: value}} if name else {section: value})
    from mapo.train.run.folder import Run

    before = Run(out).before() if out else {}
    for key in ("model", "pairs"):
        if not (values.get(key) or before.get(key)):
            going_on = out and not before and not (values.get("model") or values.get("pairs"))
            none = f"There is no run at {out} to go on with. " if going_on else ""
            raise MapoError(f"{none}Give --{key}, or {key} in the --config file.")
    known = {key: value for key, value in before.items() if key in OF_A_RUN}
    config = make_config(merge(known, values))
    if recipe:
        check_recipe(recipe, config.model, config.data.resolution)
    return config


def _without_other_knobs(recipe: dict[str, Any], settings: Mapping[str, Any], named: Any) -> dict[str, Any]:
    """The recipe without the settings of its objective, where another objective is asked for."""
    section = settings.get("objective")
    asked = named or (section.get("name") if isinstance(section, Mapping) else None)
    if asked and asked != recipe["objective"]["name"]:
        recipe["objective"] = {"name": asked}
    return recipe
