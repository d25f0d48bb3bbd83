"""The pairs of a set as arrays, and a finding: what is wrong, how bad it is, and in which rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapo.check.pictures import PictureTable
from mapo.errors import count
from mapo.pairs import PairSet
from mapo.pairs.splits import normalise

SEVERITIES = ("error", "warning", "note")
SHOWN_ROWS = 5

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """``pairs.parquet``, an entry per row. Numbers that name something (prompt, picture, pixels) start at 0."""

    texts: list[str]
    prompts: Integers  # equal where prompts are the same but for case, white space and the coding of accents
    chosen: Integers  # places in PictureTable.names
    rejected: Integers  # those of chosen where the set has no rejected pictures
    chosen_content: Integers  # equal where pixels are equal
    rejected_content: Integers
    preference: NDArray[np.float64]
    weight: NDArray[np.float64]
    split: list[str]
    group: list[str | None]
    source: list[str]
    trained: Flags  # what training sees: the split `train` without ties; all rows where that is none
    has_rejected: bool = True

    @property
    def sides(self) -> tuple[tuple[str, Integers], ...]:
        """The names of the sides that the set has, and their pictures."""
        return (("chosen", self.chosen), ("rejected", self.rejected))[: 1 + self.has_rejected]

    @property
    def contents(self) -> list[Integers]:
        """What is shown on each of these sides."""
        return [self.chosen_content, self.rejected_content][: 1 + self.has_rejected]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Finding:
    """``says`` is a sentence with the counts, ``remedy`` what to do; ``rows`` are the first five, (row, words)."""

    name: str
    severity: str
    says: str
    remedy: str = ""
    count: int = 0  # rows it is about; 0 when it is about the whole set
    rows: tuple[tuple[int, str], ...] = ()

    @property
    def more(self) -> int:
        """How many rows are not shown."""
        return self.count - len(self.rows) if self.rows else 0


def read_rows(pairs: PairSet, pictures: PictureTable, trained: Integers) -> Rows:
    """The rows of a set whose pictures were looked at, and of which ``trained`` are trained on."""
    columns = {c: pairs.table[c].to_pylist() for c in ("prompt", *pairs.sides, "split", "group", "source")}
    place = {name: i for i, name in enumerate(pictures.names)}
    sides = [np.array([place[n] for n in columns[side]], np.int64) for side in pairs.sides]
    chosen, rejected = sides[0], sides[-1]
    _, content = np.unique(pictures.found["content"], return_inverse=True)
    known: dict[str, int] = {}
    return Rows(
        columns["prompt"],
        np.array([known.setdefault(normalise(p), len(known)) for p in columns["prompt"]], np.int64),
        chosen,
        rejected,
        content[chosen],
        content[rejected],
        pairs.table["preference"].to_numpy(),
        pairs.table["weight"].to_numpy(),
        columns["split"],
        columns["group"],
        [source or "" for source in columns["source"]],
        np.isin(np.arange(len(pairs)), trained) if len(trained) else np.ones(len(pairs), bool),
        pairs.has_rejected,
    )


def find(
    name: str, severity: str, rows: Flags, says: str, remedy: str = "",
    tell: Callable[[int], str] | None = None, *, trained: Flags | None = None, **words: Any,
) -> list[Finding]:  # fmt: skip
    """A finding about rows, or none where there are none.

    ``{n}`` in ``says`` is the number of rows with its noun, ``words`` fill the rest; ``tell`` says what is to be said
    of a row. With ``trained`` only those rows count, and where they are not all rows ``{n}`` says so.
    """
    places = np.flatnonzero(rows if trained is None else rows & trained).tolist()
    if not places:
        return []
    shown = tuple((i, tell(i)) for i in places[:SHOWN_ROWS]) if tell else ()
    n = count(len(places), "pair")
    if trained is not None and not trained.all():
        n = f"{len(places):,} of {count(int(trained.sum()), 'pair')} that training sees"
    return [Finding(name, severity, says.format(n=n, **words), remedy, len(places), shown)]


def quote(text: str, most: int = 60) -> str:
    """A text of the set in quotation marks, short and on one line, with nothing that a terminal would obey."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return f"“{line if len(line) <= most else line[: most - 1].rstrip() + '…'}”"
