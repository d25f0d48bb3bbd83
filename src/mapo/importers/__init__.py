"""Importers: one generator per foreign format, from a source to raw pairs.

A newcomer is a module with ``detects(source)`` and ``read(source, options, start)`` and one line in :data:`IMPORTERS`.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from mapo.errors import MapoError, printable, suggest
from mapo.importers.sources import Source, find_source
from mapo.pairs import TIE, PairWriter
from mapo.shards import refuse_existing
from mapo.splits import SPLITS

IMPORTERS = {
    "pickapic": "mapo.importers.pickapic",
    "preference": "mapo.importers.preference",
    "ranking": "mapo.importers.ranking",
    "scores": "mapo.importers.scores",
    "jsonl": "mapo.importers.jsonl",
    "folders": "mapo.importers.folders",
}
ROWS_PER_COMMIT = 8192
COMPLAINTS_SHOWN = 5
BY_PROMPT = "by-prompt"


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
    """A row that cannot become a pair, and why; ``where`` is empty where ``why`` names the file."""

    where: str
    why: str


@dataclass(frozen=True)
class Options:
    """What a person may ask for; the flags of ``mapo import`` have these names."""

    ties: str = "drop"  # or keep
    rankings: str = "all"  # or best-worst
    least_gap: float = 0.0  # scores closer than this are a tie
    on_bad_row: str = "stop"  # or drop
    split: str = BY_PROMPT  # or the one into which every pair goes

    def __post_init__(self) -> None:
        choices = {
            "ties": ("drop", "keep"),
            "rankings": ("all", "best-worst"),
            "on_bad_row": ("stop", "drop"),
            "split": (BY_PROMPT, *SPLITS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                flag = "--" + name.replace("_", "-")
                raise MapoError(f"{flag} is {getattr(self, name)!r}; it must be {' or '.join(known)}.")
        if not 0 <= self.least_gap < float("inf"):
            raise MapoError(f"--least-gap is {self.least_gap}; it must be a number that is not negative.")


class Importer(Protocol):
    """What a format's module offers."""

    def detects(self, source: Source) -> bool:
        """Whether ``source`` looks like this format."""

    def read(self, source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow]]:
        """A list for each row of ``source`` from number ``start`` on; MapoError when it is not of this format."""


def import_pairs(
    given: str | Path,
    out: Path,
    *,
    format: str | None = None,
    licence: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> dict[str, int]:
    """Read a source (a path or a hub id) into the set ``out``; its counts. ``options`` are those of :class:`Options`.

    Pictures are checked by ``workers`` threads (default: as many as there are cores); the set does not depend on their
    number. An interrupted import goes on where it stopped when it is called again in the same way.
    """
    asked = Options(**options)
    if format is not None and format not in IMPORTERS:
        raise MapoError(f"There is no format {format!r}. {suggest(format, IMPORTERS)}")
    refuse_existing(out)
    source = find_source(given)
    name, module = _importer(source, format)
    counts = {"pairs": 0, "ties": 0, "repeats": 0, "bad": 0}
    how = {"format": name, **{k: v for k, v in asdict(asked).items() if k != "on_bad_row"}}
    provenance = {"imported": source.short_name, **how, "licence": licence, "counts": counts}
    job = {"source": source.identity(), "licence": licence, "on_bad_row": asked.on_bad_row, **how}
    try:
        with PairWriter(out, provenance, job=job) as writer:
            complaints = _import(source, module, name, asked, writer, counts, workers)
            if counts["pairs"] == 0:
                raise MapoError(_no_pairs(source, counts, complaints))
    except ConnectionError as error:
        raise MapoError(f"{error}. Repeat the command: it goes on where it stopped.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise MapoError(
            f"There is no space left for {out} ({error.strerror or error}). "
            "Make room and repeat the command: it goes on where it stopped."
        ) from None
    for complaint in complaints:
        print(f"left out: {printable(complaint)}")
    if counts["bad"] > len(complaints):
        print(f"left out: {counts['bad'] - len(complaints)} more")
    for note in (*source.notes, *_held_out(out, asked.split)):
        print(printable(note))
    return counts


def _held_out(out: Path, split: str) -> list[str]:
    """How many pairs of the set ``out`` are not trained on, and why."""
    splits = pq.read_table(out / "pairs.parquet", columns=["split"])["split"]
    total, train = len(splits), pc.sum(pc.equal(splits, "train")).as_py()
    if train == total:
        return []
    why = "for validation and test, by their prompts"
    if train:
        verb = "is" if total - train == 1 else "are"
        return [f"{total - train} of {total} pairs {verb} held out {why}; --split train trains on all."]
    every = "The only pair is" if total == 1 else f"All {total} pairs are"
    if split != BY_PROMPT:
        return [f"{every} held out, as --split {split} says; nothing is trained on them."]
    return [
        f"{every} held out {why}, so there is nothing to train on. Delete {out}, and import again with --split train."
    ]


def _import(
    source: Source,
    module: Importer,
    name: str,
    options: Options,
    writer: PairWriter,
    counts: dict[str, int],
    workers: int | None,
) -> list[str]:
    """Fill ``writer`` and ``counts``; the first complaints about bad rows."""
    from mapo.importers.checking import checked_rows

    before = writer.progress or {"rows": 0, "counts": counts, "complaints": []}
    done, complaints = int(before["rows"]), list(before["complaints"])
    counts.update(before["counts"])
    rows = checked_rows(module.read(source, options, done), workers, check_ties=options.ties == "keep")
    since = 0
    for row in tqdm(rows, desc=f"import {name}", unit="row", initial=done):
        for item in row:
            try:
                if isinstance(item, BadRow):
                    raise ValueError(item.why)
                raw, pictures = item
                counts["ties"] += raw.preference == TIE
                if pictures is None:
                    continue
                rest: dict[str, Any] = {
                    "preference": raw.preference,
                    "weight": raw.weight,
                    "group": raw.group,
                    "meta": raw.meta,
                }
                if options.split != BY_PROMPT:
                    rest["split"] = options.split
                added = writer.add_checked_pair(raw.prompt, *pictures, source=name, **rest)
                counts["pairs" if added else "repeats"] += 1
            except ValueError as error:
                where = item.where if isinstance(item, BadRow) else item[0].where
                if options.on_bad_row == "stop":
                    raise MapoError(_refusal(where, str(error).rstrip("."))) from None
                counts["bad"] += 1
                if len(complaints) < COMPLAINTS_SHOWN:
                    complaints.append(f"{where}: {error}" if where else str(error))
        done, since = done + 1, since + 1
        if writer.wants_commit or since >= ROWS_PER_COMMIT:
            writer.commit({"rows": done, "counts": counts, "complaints": complaints})
            since = 0
    writer.commit({"rows": done, "counts": counts, "complaints": complaints})
    return complaints


def _refusal(where: str, why: str) -> str:
    if not where:
        return f"{why}. Mend it, or leave such pairs out with --on-bad-row drop."
    return f"{where}: {why}. Mend the row, or leave such rows out with --on-bad-row drop."


def _importer(source: Source, format: str | None) -> tuple[str, Importer]:
    """The format that was named, or the first that recognises the source."""
    if source.path is not None and (source.path / "set.json").is_file():
        raise MapoError(f"{source.name} is a set of pairs already. Use it as it is.")
    names = [format] if format else list(IMPORTERS)
    modules = {name: cast("Importer", importlib.import_module(IMPORTERS[name])) for name in names}
    found = format or next((name for name, module in modules.items() if module.detects(source)), None)
    if found is None:
        raise MapoError(_unknown(source))
    return found, modules[found]


def _unknown(source: Source) -> str:
    """What a source is that no importer knows."""
    from mapo.importers import lines, tables

    known = f"Known formats: {', '.join(IMPORTERS)}; see `mapo import --help`."
    if source.path is not None:
        empty = not source.path.stat().st_size if source.path.is_file() else not any(source.path.iterdir())
        if empty:
            return f"{source.name} is empty. There is nothing to import."
        if source.path.is_dir() and not (tables.columns(source) or lines.keys(source)):
            return (
                f"{source.name}/ has no folders chosen/ and rejected/. Put the better pictures into one and the worse "
                "into the other, both of a pair under one name, with the prompt in NAME.txt. "
                "Other formats: see `mapo import --help`."
            )
    if columns := tables.columns(source):
        return f"{source.name} is in no format that is known: its columns are {', '.join(columns)}. {known}"
    if columns is not None:
        return f"{source.name} is no whole Parquet file. Fetch it again."
    if keys := lines.keys(source):
        return f"{source.name} is in no format that is known: its lines have {', '.join(sorted(keys))}. {known}"
    return f"{source.name} is in no format that is known. {known}"


def _no_pairs(source: Source, counts: dict[str, int], complaints: list[str]) -> str:
    first = f" First: {complaints[0]}." if complaints else ""
    advice = " Keep the ties with --ties keep." if counts["ties"] and not counts["bad"] else ""
    return f"{source.name} gave no pairs ({counts['ties']} ties, {counts['bad']} bad rows).{first}{advice}"
