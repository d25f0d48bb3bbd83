"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.sample.beside import NOTHING, Beside
from mapo.sample.folder import ImageRow
from mapo.sample.grid import GRID, Column, pictures_of, write_grid
from mapo.sample.prompts import asked_prompts
from mapo.shards import WHOLE, Shard


def sample(
    model: str, prompts: str | Sequence[str], seeds: str | int | Sequence[int], out: Path, *, grid: bool = False,
    compare: Sequence[Path] = (), more: Beside = NOTHING, shard: Shard = WHOLE, **how: Any,
) -> list[ImageRow] | None:  # fmt: skip
    """Make a picture of every prompt at every seed; the rows, or None where other shards are not done yet.

    ``prompts`` is a source of prompts, or a list of them. ``grid`` lays the pictures out in ``out/grid.png``;
    ``compare`` too, beside the same ones of other images folders. ``more`` is shown with them. Of shards the last one
    does it.
    """
    words, numbers = asked_prompts(prompts), asked_seeds(seeds)
    beside = [pictures_of(folder, words, numbers) for folder in compare]
    from mapo.sample.sample import sample

    rows = sample(model, words, numbers, out, shard=shard, **how)
    if rows is not None and (grid or compare):
        own = Column(out, {(row.prompt_id, row.seed): row for row in rows})
        write_grid(out / GRID, [*beside, own], words, numbers, more)
    return rows


def asked_seeds(given: str | int | Sequence[int]) -> list[int]:
    """The seeds of a text such as 0-3, one seed, or a list without repeats; MapoError where there is none."""
    from mapo.sample.sample import parse_seeds

    if isinstance(given, str):
        return parse_seeds(given)
    seeds = [given] if isinstance(given, int) else list(dict.fromkeys(map(int, given)))
    if not seeds:
        raise MapoError("--seeds is empty; give at least one seed.")
    if bad := [seed for seed in seeds if not 0 <= seed < 2**63]:
        raise MapoError(f"--seeds: {bad[0]} is not a seed. A seed is a whole number from 0 on, below 2^63.")
    return seeds
