"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapo.build.recipe import changed_recipe, read_recipe
from mapo.shards import WHOLE, Shard


def build(
    recipe: str, model: str, prompts: str | Sequence[str], num_pairs: int, out: Path, *,
    judges: Sequence[str] = (), prefixes: str | Sequence[str] = (), candidates: int | None = None,
    seeds: str | None = None, shard: Shard = WHOLE, **how: Any,
) -> dict[str, int] | None:  # fmt: skip
    """Build a set with a recipe of that name; its counts, or None where other shards are not done yet.

    ``prompts`` is a source of prompts, or a list of them. The rest is as :func:`mapo.build.build.build` takes it.
    """
    found = changed_recipe(read_recipe(recipe), prefixes, candidates, seeds)
    from mapo.build.build import build
    from mapo.build.judge import parse_filter
    from mapo.sample.prompts import asked_prompts, source_name

    filters = [parse_filter(judge) for judge in judges]
    how["prompts_from"] = source_name(prompts) if isinstance(prompts, str) else None
    return build(found, model, asked_prompts(prompts), num_pairs, out, judges=filters, shard=shard, **how)
