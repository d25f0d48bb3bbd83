"""Reading what ``datasets.save_to_disk`` writes, and single Arrow files; mapped from disk, never loaded whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mapo.errors import MapoError
from mapo.files import inside
from mapo.importers.containers.shape import Cursor, File, Row, Shape, Where
from mapo.importers.containers.tables import ROWS_AT_ONCE, guarded, pick, values
from mapo.importers.named import ARROW_ENDS, opened
from mapo.importers.sources import Source
from mapo.importers.splits import splits_of
from mapo.importers.types import BadRow
from mapo.texts import read_object

STATE, SPLITS = "state.json", "dataset_dict.json"
REMEDY = "Save the dataset again with save_to_disk."


@dataclass(frozen=True)
class ArrowFile:
    """One Arrow file, a stream or with a footer."""

    name: str
    place: Path
    folder: Path | None
    split: str | None = None
    empty = "its Arrow files have no rows"
    kind = "Arrow"

    def columns(self) -> list[str] | None:
        """Its columns; None when it is not a whole file."""
        try:
            with pa.memory_map(str(self.place)) as file:
                return list(opened(file)[0].names)
        except (pa.ArrowException, OSError):
            return None

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """Its rows from the cursor on."""
        return guarded(self, cursor, lambda: self._read(shape, cursor))

    def _read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[int, Row]]:
        number = 0
        with pa.memory_map(str(self.place)) as file:
            schema, batches = opened(file)
            names = pick(self.name, shape, schema.names)
            theirs = list(dict.fromkeys(names.values()))
            for batch in batches:
                first = cursor.skip(batch.num_rows)
                table = pa.Table.from_batches([batch]).select(theirs)
                for start in range(first, batch.num_rows, ROWS_AT_ONCE):
                    for at, row in enumerate(values(table.slice(start, ROWS_AT_ONCE)), start):
                        yield number + at, {ours: row[name] for ours, name in names.items()}
                number += batch.num_rows


def files(source: Source) -> list[File]:
    """The Arrow files of a folder of save_to_disk in its own order, or else those that are there by themselves."""
    root = source.path
    if root is None:
        return []
    if source.pattern is None and (root / SPLITS).is_file():
        names = read_object(root / SPLITS, "a dataset", REMEDY).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise MapoError(f"{root / SPLITS} names no splits. {REMEDY}")
        return [file for name in names for file in _saved(root, f"{name}/", name)]
    if source.pattern is None and (root / STATE).is_file():
        return _saved(root, "", None)
    found = [pair for end in ARROW_ENDS for pair in source.files(end, deep=True)]
    splits = splits_of([name for name, _ in found])
    return [ArrowFile(name, path, path.parent, split) for (name, path), split in zip(found, splits, strict=True)]


def _saved(root: Path, below: str, split: str | None) -> list[File]:
    folder = inside(root, below, str(root / SPLITS)) if below else root
    state = read_object(folder / STATE, "a dataset of save_to_disk", REMEDY)
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise MapoError(f"{folder / STATE} names no data files. {REMEDY}") from None
    paths = [(below + name, inside(folder, name, str(folder / STATE))) for name in names]
    if gone := [name for name, path in paths if not path.is_file()]:
        raise MapoError(f"{root} is not whole: it lacks {gone[0]}. {REMEDY}")
    own = state.get("_split")
    split = split or (own if isinstance(own, str) else None)
    return [ArrowFile(name, path, path.parent, split) for name, path in paths]
