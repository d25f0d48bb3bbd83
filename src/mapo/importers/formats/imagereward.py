"""Rows as ImageRewardDB has them: a row per picture, with ``prompt_id, prompt, rank`` and ``image`` or ``image_path``.

Paths may begin with folders that are not there: ``images/train/train_1/x.webp`` for ``x.webp`` beside the file. Rows of
one ``prompt_id`` stand together and are one ranking. Its groups have lists in ``image`` and ``rank``, its pairs
``img_better`` and ``img_worse``.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mapo.importers.containers import cells, rows
from mapo.importers.containers.shape import Row, Shape, Where
from mapo.importers.formats.ranking import many, number, pairs_of
from mapo.importers.sources import Source, lies_in
from mapo.importers.types import BadRow, LeftOut, Options, RawPair

SHAPE = Shape(
    (
        ("prompt_id", "prompt", "rank", "image"),
        ("prompt_id", "prompt", "rank", "image_path"),
        ("prompt_id", "prompt", "img_better", "img_worse"),
    )
)
MOST_ROWS = 1000
Item = RawPair | BadRow | LeftOut


@dataclass
class Group:
    """The rows of one prompt; the first that is bad spoils them all, as a ranking with a gap would be another one."""

    where: Where
    prompt: Any
    rows: list[Row]
    bad: BadRow | None = None


def detects(source: Source) -> bool:
    """Whether all columns of its rows, groups or pairs are there."""
    return rows.has(source, SHAPE)


def read(source: Source, options: Options, start: int = 0) -> Iterator[list[Item]]:
    """The pairs of each prompt, in one group."""
    with contextlib.closing(sqlite3.connect("")) as done:  # on disk, so that memory does not grow with the prompts
        done.execute("CREATE TABLE done (id TEXT PRIMARY KEY) WITHOUT ROWID")
        for number, group in enumerate(_groups(source)):
            again = not done.execute("INSERT OR IGNORE INTO done VALUES (?)", (group.where.group,)).rowcount
            if number < start:
                continue
            try:
                if again:
                    raise ValueError("rows of this prompt_id stood further up already; sort the rows by prompt_id")
                if group.bad:
                    raise ValueError(group.bad.why)
                pairs = _pairs(group, options)
                yield [replace(pair, split=group.where.split) for pair in pairs]
            except ValueError as error:
                yield [BadRow(group.bad.where if group.bad else group.where.text, str(error))]


def _groups(source: Source) -> Iterator[Group]:
    group: Group | None = None
    stray: BadRow | None = None  # a row of which nobody knows whether it is of the prompt before or behind it
    for item in rows.read(source, SHAPE):
        if isinstance(item, BadRow):
            stray = stray or item
            if group is not None and group.bad is None:
                group.bad = item
            continue
        where, row = item
        name = str(row["prompt_id"])
        split = where.split if row.get("split") is None else str(row["split"])
        key = f"{split or ''}:{name}"
        if group is None or group.where.group != key:
            if group is not None:
                yield group
            group = Group(
                replace(where, text=f"{where.text} (prompt_id {name})", group=key, split=split),
                row["prompt"],
                [],
                stray,
            )
        stray = None
        if row["prompt"] != group.prompt and group.bad is None:
            group.bad = BadRow(where.text, f"prompt_id {name} has two prompts")
        if len(group.rows) >= MOST_ROWS and group.bad is None:
            group.bad = BadRow(where.text, f"prompt_id {name} has more than {MOST_ROWS} rows")
        if group.bad is None:
            group.rows.append({**row, "folder": where.folder})
    if group is not None:
        yield group
    elif stray is not None:
        yield Group(Where(stray.where, stray.where, None), None, [], stray)


def _pairs(group: Group, options: Options) -> list[RawPair]:
    where = replace(group.where, group=group.where.group.lstrip(":"))
    first = group.rows[0]
    prompt = cells.text_of(group.prompt, "prompt")
    if "img_better" in first:
        pairs = []
        for row in group.rows:
            better, worse = (cells.picture_of(row[side], row["folder"]) for side in ("img_better", "img_worse"))
            pairs.append(RawPair(where.text, prompt, better, worse, group=where.group))
        return pairs
    image = "image" if first.get("image") is not None else "image_path"
    if isinstance(first[image], list):
        return [
            pair for row in group.rows for pair in pairs_of(where, *many(row, image, "rank", where), options.rankings)
        ]
    if len(group.rows) < 2:
        raise ValueError("it has one picture; a ranking needs two or more")
    ranks = [number(row["rank"]) for row in group.rows]
    if None in ranks:
        raise ValueError(f"rank is {cells.short(group.rows[ranks.index(None)]['rank'])}, which is not a number")
    data = [cells.picture_of(_beside(row[image], row["folder"]), row["folder"]) for row in group.rows]
    names = [cells.name_of(row[image], k) for k, row in enumerate(group.rows)]
    return pairs_of(where, prompt, names, [rank or 0 for rank in ranks], data, options.rankings)


def _beside(cell: Any, folder: Path | None) -> Any:
    """The cell, or the name of the picture alone where only that lies beside the file."""
    if folder is None or not isinstance(cell, str) or lies_in(folder, cell):
        return cell
    name = PurePosixPath(cell).name
    return name if lies_in(folder, name) else cell
