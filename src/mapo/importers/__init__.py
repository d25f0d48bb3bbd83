"""Importers: one generator per foreign format, from a source to raw pairs.

A newcomer is a module with ``detects(source)`` and ``read(source)`` and one line in :data:`IMPORTERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from tqdm import tqdm

from mapo.errors import MapoError, suggest
from mapo.pairs import PairWriter

IMPORTERS = {
    "pickapic": "mapo.importers.pickapic",
    "ranking": "mapo.importers.ranking",
}


@dataclass(frozen=True)
class RawPair:
    """A pair as its source tells it; ``where`` names the row in messages. ``preference`` 0.5 is a tie."""

    where: str
    prompt: str
    chosen: bytes
    rejected: bytes
    preference: float = 1.0
    weight: float = 1.0
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot become a pair, and why."""

    where: str
    why: str


class Importer(Protocol):
    """What a format's module offers."""

    def detects(self, source: Path) -> bool:
        """Whether ``source`` looks like this format."""

    def read(self, source: Path) -> Iterator[RawPair | BadRow]:
        """The pairs of ``source``, in order; MapoError when it is not of this format at all."""


def import_pairs(source: Path, out: Path, *, format: str | None = None, on_bad_row: str = "stop") -> dict[str, int]:
    """Read ``source`` into the set ``out``; its counts. Ties are dropped and counted.

    A bad row stops the import and nothing is written, or with ``on_bad_row="drop"`` is dropped and counted.
    """
    if on_bad_row not in ("stop", "drop"):
        raise MapoError(f"--on-bad-row is {on_bad_row!r}; it must be stop or drop.")
    if not source.exists():
        raise MapoError(f"There is no file or folder {source} to import.")
    if format is not None and format not in IMPORTERS:
        raise MapoError(f"There is no format {format!r}. {suggest(format, IMPORTERS)}")
    names = [format] if format else list(IMPORTERS)
    modules = {name: cast("Importer", importlib.import_module(IMPORTERS[name])) for name in names}
    found = format or next((name for name, module in modules.items() if module.detects(source)), None)
    if found is None:
        raise MapoError(f"{source} is in no format that is known ({', '.join(IMPORTERS)}). See `mapo import --help`.")
    counts = {"pairs": 0, "ties": 0, "repeats": 0, "bad": 0}
    complaints: list[str] = []
    with PairWriter(out, {"imported": source.resolve().name, "format": found, "counts": counts}) as writer:
        for row in tqdm(modules[found].read(source), desc=f"import {found}", unit="pair"):
            try:
                if isinstance(row, BadRow):
                    raise ValueError(row.why)
                if row.preference == 0.5:
                    counts["ties"] += 1
                    continue
                rest = {"preference": row.preference, "weight": row.weight, "group": row.group, "meta": row.meta}
                added = writer.add_pair(row.prompt, row.chosen, row.rejected, source=found, **rest)
                counts["pairs" if added else "repeats"] += 1
            except ValueError as error:
                if on_bad_row == "stop":
                    raise MapoError(
                        f"{row.where}: {error}. Mend the row, or leave such rows out with --on-bad-row drop."
                    ) from None
                counts["bad"] += 1
                if len(complaints) < 5:
                    complaints.append(f"{row.where}: {error}")
        if counts["pairs"] == 0:
            first = f" First: {complaints[0]}." if complaints else ""
            raise MapoError(f"{source} gave no pairs ({counts['ties']} ties, {counts['bad']} bad rows).{first}")
    for complaint in complaints:
        print(f"left out: {complaint}")
    if counts["bad"] > len(complaints):
        print(f"left out: {counts['bad'] - len(complaints)} more")
    return counts
