"""Reading text: JSON lines, a JSON list, CSV and TSV; a row per line, pictures as paths within the file's folder."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mapo.errors import MapoError, count
from mapo.files import delimiter_of, encoding_of
from mapo.importers import BadRow
from mapo.importers.cells import from_text, short
from mapo.importers.shape import Cursor, File, Row, Shape, Where
from mapo.importers.sources import Source
from mapo.importers.splits import split_named, splits_of

CELL_ENDS = (".csv", ".tsv")
ENDS = (".jsonl", ".ndjson", ".json", *CELL_ENDS)
NO_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json", "set.json")
LINES_TO_LOOK_AT = 100
READ_AT_ONCE = 2**20
LARGEST_ENTRY = 64 * 2**20
BLANK = " \t\r\n"


@dataclass(frozen=True)
class JsonFile:
    """JSON lines, or one JSON list of objects."""

    name: str
    path: Path
    split: str | None
    empty = "it holds no lines"

    @property
    def place(self) -> Path:
        """Where it lies."""
        return self.path

    def columns(self) -> list[str] | None:
        """The keys of its first rows, the good ones."""
        found: dict[str, None] = {}
        with contextlib.suppress(MapoError):  # what is wrong far on is told when it is read
            for _, value in itertools.islice(self._values(errors="replace"), LINES_TO_LOOK_AT):
                if isinstance(value, dict):
                    found |= dict.fromkeys(value)
        return list(found)

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """A row per line from the cursor on."""
        if encoding_of(self.path) == "utf-16":
            raise MapoError(f"{self.path} is UTF-16 text. Save it as UTF-8.")
        self._refuse_list()
        what = "entry" if self.is_list() else "line"
        for number, value in self._values():
            if not cursor.passes():
                continue
            where = _where(self, what, number)
            try:
                if isinstance(value, ValueError):
                    raise value
                yield where, _fit(value, shape)
            except ValueError as error:
                yield BadRow(where.text, str(error))

    def is_list(self) -> bool:
        """Whether it is one JSON list, not lines."""
        return self.path.suffix.lower() == ".json" and self._start().startswith("[")

    def _start(self) -> str:
        with self.path.open(encoding=encoding_of(self.path), errors="replace") as file:
            return file.read(READ_AT_ONCE).lstrip(BLANK)

    def _refuse_list(self) -> None:
        """MapoError for one JSON list in a file that is named as if it held lines."""
        if self.path.suffix.lower() == ".json":
            return
        first, _, rest = self._start().partition("\n")
        if re.fullmatch(r"\[\s*(\{.*)?", first) and (not rest.strip() or isinstance(_value(first), ValueError)):
            raise MapoError(
                f"{self.path} is one JSON list, not lines. Rename it to {self.path.with_suffix('.json').name}."
            )

    def _values(self, errors: str = "surrogateescape") -> Iterator[tuple[int, Any]]:
        """Number and value of each row; a ValueError where it is no JSON."""
        if self.is_list():
            with self.path.open(encoding=encoding_of(self.path), errors=errors) as text:
                yield from enumerate(_entries(text, self.path), 1)
            return
        if errors != "surrogateescape":
            with self.path.open(encoding=encoding_of(self.path), errors=errors) as text:
                yield from ((n, _value(line)) for n, line in enumerate(text, 1) if line.strip())
            return
        with self.path.open("rb") as file:
            yield from ((n, _value(line)) for n, line in enumerate(file, 1) if line.strip())


@dataclass(frozen=True)
class CellFile:
    """CSV or TSV whose first line names the columns; an empty cell is None."""

    name: str
    path: Path
    split: str | None
    empty = "it has no line below the names of its columns"

    @property
    def place(self) -> Path:
        """Where it lies."""
        return self.path

    def columns(self) -> list[str] | None:
        """The names in its first line."""
        with self._open() as file:
            try:
                return self._header(csv.reader(file, delimiter=delimiter_of(self.path)))
            except (csv.Error, ValueError):
                return None

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """A row per line from the cursor on."""
        line = 1
        try:
            with self._open() as file:
                reader = csv.reader(file, delimiter=delimiter_of(self.path), strict=True)
                header = self._header(reader)
                if missing := shape.missing(header):
                    raise MapoError(f"{self.name} lacks the columns {', '.join(missing)}; it has {', '.join(header)}.")
                names = shape.pick(header)
                for cells in reader:
                    line = reader.line_num
                    if not any(cells) or not cursor.passes():
                        continue
                    where = _where(self, "line", line)
                    if len(cells) != len(header):
                        cut = f"it has {count(len(cells), 'cell')}; the first line names {count(len(header), 'column')}"
                        yield BadRow(where.text, cut)
                        continue
                    row = dict(zip(header, cells, strict=True))
                    yield where, {ours: from_text(ours, row[name] or None) for ours, name in names.items()}
        except UnicodeDecodeError as error:
            why = f"byte {error.object[error.start]:#04x}"
            raise MapoError(f"{self.path} is not UTF-8 text behind line {line} ({why}). Save it as UTF-8.") from None
        except csv.Error as error:
            raise MapoError(f"{self.name} cannot be read behind line {line} ({error}). Mend the line.") from None

    def _open(self) -> IO[str]:
        return self.path.open(encoding=encoding_of(self.path), newline="")

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        names = [name.strip() for name in next(reader, [])]
        if twice := next((name for name in names if names.count(name) > 1 and name), None):
            raise MapoError(f"{self.name} has two columns {twice}. Rename one of them.")
        return names


def files(source: Source) -> list[File]:
    """The text files of rows: the source itself, or those that a pattern names or a folder has (see :func:`_found`)."""
    if source.path is None:
        return []
    if source.path.is_file() or source.pattern is not None:
        there = [pair for end in ENDS for pair in source.files(end)]
    else:
        there = _found(source)
    return [_file(*pair, split) for pair, split in zip(there, splits_of([name for name, _ in there]), strict=True)]


def _found(source: Source) -> list[tuple[str, Path]]:
    """Of a folder: metadata as datasets has it, here or deeper; train and test; the only one; or one in each split."""
    for deep in (False, True):
        for name in ("metadata.jsonl", "metadata.csv"):
            if metadata := [pair for pair in source.files(name, deep) if pair[1].name == name]:
                return metadata
    if there := candidates(source):
        clear = len(there) == 1 or all(split_named(path.stem) for path in there)
        return [(path.name, path) for path in there] if clear else []
    for end in ENDS:
        deeper = [pair for pair in source.files(end, deep=True) if split_named(Path(pair[0]).parts[0])]
        if deeper and len({path.parent for _, path in deeper}) == len(deeper):
            return deeper
    return []


def candidates(source: Source) -> list[Path]:
    """The text files that lie in a folder itself, of the first kind that it has."""
    if source.path is None or not source.path.is_dir():
        return []
    for end in ENDS:
        if found := [path for _, path in source.files(end) if path.name not in NO_ROWS]:
            return found
    return []


def _file(name: str, path: Path, split: str | None) -> File:
    kind = CellFile if path.suffix.lower() in CELL_ENDS else JsonFile
    return kind(name, path, split)


def _where(file: JsonFile | CellFile, what: str, number: int) -> Where:
    group = f"{Path(file.name).with_suffix('')}:{number}"
    return Where(f"{file.name} {what} {number}", group, file.path.parent, file.split)


def _fit(value: Any, shape: Shape) -> Row:
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    if missing := shape.missing(value):
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(value) or 'nothing'}")
    return {ours: value[name] for ours, name in shape.pick(value).items()}


def _value(line: str | bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"it is no JSON ({error})")


def _refuse_rest(file: IO[str], text: str, path: Path) -> None:
    """MapoError where a JSON list is not all that a file holds."""
    while text or (text := file.read(READ_AT_ONCE)):
        if rest := text.strip(BLANK):
            what = "another list" if rest.startswith("[") else short(rest[:40])
            raise MapoError(f"{path} goes on behind the end of its list: {what} follows. Write it as one list.")
        text = ""


def _entries(file: IO[str], path: Path) -> Iterator[Any]:
    """The entries of a JSON list, one after the other; a few are in memory at a time."""
    decoder, at, count = json.JSONDecoder(), 0, 0
    text = file.read(READ_AT_ONCE).lstrip(BLANK)[1:]
    more = READ_AT_ONCE
    while True:
        while at < len(text) and text[at] in BLANK + ",":
            at += 1
        if at < len(text) and text[at] == "]":
            return _refuse_rest(file, text[at + 1 :], path)
        try:
            value, end = decoder.raw_decode(text, at)
            if end == len(text) and text[end - 1] not in '}]"':  # a number could go on
                raise ValueError("it breaks off")
        except (ValueError, RecursionError) as error:
            found = file.read(more) if len(text) - at < LARGEST_ENTRY else ""
            if not found:
                why = f"is not a whole JSON list: entry {count + 1} cannot be read ({error})"
                raise MapoError(f"{path} {why}. Write it again, or save its entries as JSON lines.") from None
            text, at, more = text[at:] + found, 0, more * 2
            continue
        yield value
        at, count, more = end, count + 1, READ_AT_ONCE
        if at > READ_AT_ONCE:
            text, at = text[at:], 0
