"""What a format needs of a row, and what the files that hold rows offer; ``rows.py`` brings the two together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mapo.errors import MapoError
from mapo.importers.types import BadRow
from mapo.texts import refuse_twice

Row = dict[str, Any]
SPLIT = "split"


@dataclass(frozen=True)
class Where:
    """Where a row stands: its name in messages and as a group, and the folder of its pictures (None: it has none)."""

    text: str
    group: str
    folder: Path | None
    split: str | None = None


@dataclass(frozen=True)
class Shape:
    """The columns of a format: all of one of ``forms`` must be there, ``wanted`` may.

    ``names`` says what the source calls columns: our name → its name.
    """

    forms: tuple[tuple[str, ...], ...]
    wanted: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def missing(self, there: Collection[str]) -> list[str]:
        """The columns that the nearest form lacks, by the source's names; none: it is there."""
        return min(([self._name(c) for c in form if self._name(c) not in there] for form in self.forms), key=len)

    def pick(self, there: Collection[str]) -> dict[str, str]:
        """Our name → the source's, of every column that is there."""
        ours = dict.fromkeys((*(c for form in self.forms for c in form), *self.wanted, SPLIT))
        return {c: self._name(c) for c in ours if self._name(c) in there}

    def _name(self, column: str) -> str:
        return self.names.get(column, column)


def refuse_twice_in(name: str, there: Iterable[str]) -> None:
    """MapoError where two columns of a file have one name."""
    try:
        refuse_twice(there)
    except ValueError as error:
        raise MapoError(f"{name} cannot be read: {error}.") from None


class Cursor:
    """Counts rows; those before ``start`` were read by an import that was interrupted."""

    def __init__(self, start: int) -> None:
        self.start, self.seen = start, 0

    def passes(self) -> bool:
        """Count a row; whether it is to be read."""
        self.seen += 1
        return self.seen > self.start

    def skip(self, count: int) -> int:
        """Count as many of the next ``count`` rows as lie before the start, and say how many."""
        skipped = max(0, min(self.start - self.seen, count))
        self.seen += skipped
        return skipped


class File(Protocol):
    """A file of rows."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def place(self) -> str | Path:
        """Where it lies, here or on the hub."""

    @property
    def empty(self) -> str:
        """What is said when no file of the source has a row."""

    def columns(self) -> list[str] | None:
        """The columns of its (first) rows; None when it cannot be read."""

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """Its rows with our names for columns; MapoError when it is damaged or lacks columns."""
