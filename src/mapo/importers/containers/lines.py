"""Reading text: JSON lines, a JSON list, CSV and TSV; a row per line, pictures as paths within the file's folder."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mapo.errors import MapoError, count
from mapo.importers.containers.cells import from_text, short
from mapo.importers.containers.shape import Cursor, File, Row, Shape, Where, refuse_twice_in
from mapo.importers.named import CSV_ENDS, JSON_ENDS, texts_in
from mapo.importers.sources import NO_ROWS, Source, lies_in
from mapo.importers.splits import are_parts, split_named, splits_of
from mapo.importers.types import BadRow
from mapo.texts import delimiter_of, encoding_of, json_told, parse_row

ENDS = (*JSON_ENDS, *CSV_ENDS)
LINES_TO_LOOK_AT = 100
READ_AT_ONCE = 2**20
LARGEST_ENTRY = 64 * 2**20
BLANK = " \t\r\n"
Named = tuple[str, Path]  # a file's name below its source, and its place


@dataclass(frozen=True)
class JsonFile:
    """JSON lines, or one JSON list of objects; ``root`` is the folder of the source in which it was found."""

    name: str
    path: Path
    split: str | None
    root: Path | None = None
    empty = "it holds no lines"

    @property
    def place(self) -> Path:
        """Where it lies."""
        return self.path

    def columns(self) -> list[str] | None:
        """The keys of its first rows, the good ones."""
        found: dict[str, None] = {}
        for value in self.first():
            if isinstance(value, dict):
                found |= dict.fromkeys(value)
        return list(found)

    def first(self) -> Iterator[Any]:
        """The values of its first rows."""
        with contextlib.suppress(MapoError):  # what is wrong far on is told when it is read
            yield from (value for _, value in itertools.islice(self._values(errors="replace"), LINES_TO_LOOK_AT))

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """A row per line from the cursor on."""
        if encoding_of(self.path) == "utf-16":
            raise MapoError(f"{self.path} is UTF-16 text. Save it as UTF-8.")
        self._refuse_list()
        what, folder = "entry" if self.is_list() else "line", _folder_of_pictures(self)
        for number, value in self._values():
            if not cursor.passes():
                continue
            where = _where(self, folder, what, number)
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
        """Number and value of each row; a ValueError where it is not JSON."""
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
    """CSV or TSV whose first line names the columns; an empty cell is None. ``root`` as in :class:`JsonFile`."""

    name: str
    path: Path
    split: str | None
    root: Path | None = None
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

    def first(self) -> Iterator[Any]:
        """The cells of its first rows."""
        with contextlib.suppress(csv.Error, ValueError), self._open() as file:
            yield from itertools.islice(csv.reader(file, delimiter=delimiter_of(self.path)), LINES_TO_LOOK_AT)

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """A row per line from the cursor on."""
        line, folder = 1, _folder_of_pictures(self)
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
                    where = _where(self, folder, "line", line)
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
        refuse_twice_in(self.name, names)
        return names


def files(source: Source) -> list[File]:
    """The text files of rows: the source itself, or those that a pattern names or a folder has (see :func:`_found`)."""
    if source.path is None:
        return []
    if source.path.is_file() or source.pattern is not None:
        there = [pair for end in ENDS for pair in source.files(end)]
    else:
        there = _found(source)
    splits = splits_of([name for name, _ in there])
    return [_file(source, *pair, split) for pair, split in zip(there, splits, strict=True)]


def _found(source: Source) -> list[Named]:
    """Of a folder: metadata as datasets has it, here or deeper; else the first files that are meant together."""
    for deep in (False, True):
        for name in ("metadata.jsonl", "metadata.csv"):
            if metadata := [pair for pair in source.files(name, deep) if pair[1].name == name]:
                return metadata
    without_rows: list[Named] = []
    here, in_splits = _groups(source)
    for group in (*here, *filter(_belong_together, in_splits)):
        if not _belong_together(group):
            return []
        if _file(source, *group[0], None).columns():
            return group
        without_rows = without_rows or group
    return without_rows


def _groups(source: Source) -> tuple[list[list[Named]], list[list[Named]]]:
    """The text files in a folder itself or in its ``data``, and in the folders of splits in these; kind by kind."""
    assert source.path is not None
    there = [pair for pair in source.files(ENDS, deep=True) if pair[1].name not in NO_ROWS]
    homes = (source.path, source.path / "data")
    here = [kind for home in homes for kind in _kinds(pair for pair in there if pair[1].parent == home)]
    in_splits = [kind for home in homes for kind in _kinds(pair for pair in there if _split_below(pair[1], home))]
    return here, in_splits


def _kinds(files: Iterable[Named]) -> list[list[Named]]:
    """The files of each kind."""
    files = list(files)
    kinds = ([pair for pair in files if pair[1].name.lower().endswith(end)] for end in ENDS)
    return [kind for kind in kinds if kind]


def _split_below(path: Path, home: Path) -> str | None:
    """The split that the first of the folders of a file below ``home`` is named by."""
    parts = path.relative_to(home).parts if path.is_relative_to(home) else ()
    return split_named(parts[0]) if len(parts) > 1 else None


def _belong_together(files: list[Named]) -> bool:
    """Whether each folder has one file, or files that are named by splits or are numbered parts."""
    names: dict[Path, list[str]] = {}
    for _, path in files:
        names.setdefault(path.parent, []).append(path.stem)
    return all(len(stems) == 1 or all(map(split_named, stems)) or are_parts(stems) for stems in names.values())


def candidates(source: Source) -> list[Path]:
    """The text files of a folder among which a person has to choose."""
    if source.path is None or not source.path.is_dir():
        return []
    return [path for _, path in next((group for group in _groups(source)[0] if not _belong_together(group)), [])]


def deeper(source: Source) -> list[str]:
    """The text files at any depth of a folder, by their names in it; those beside pictures, as captions, too."""
    return [name for name, path in source.files(ENDS, deep=True) if path.name not in NO_ROWS]


def _file(source: Source, name: str, path: Path, split: str | None) -> JsonFile | CellFile:
    kind = CellFile if path.suffix.lower() in CSV_ENDS else JsonFile
    return kind(name, path, split, source.path if source.path and source.pattern is None else None)


def _where(file: JsonFile | CellFile, folder: Path, what: str, number: int) -> Where:
    group = f"{Path(file.name).with_suffix('')}:{number}"
    return Where(f"{file.name} {what} {number}", group, folder, file.split)


def _folder_of_pictures(file: JsonFile | CellFile) -> Path:
    """Where paths begin: at the file, or where none of the first is there, at the folder that was given."""
    home = file.path.parent
    if file.root is not None and file.root.is_dir() and file.root != home:
        texts = list(itertools.chain.from_iterable(map(texts_in, file.first())))
        return next((f for f in (home, file.root) if any(lies_in(f, text) for text in texts)), home)
    return home


def _fit(value: Any, shape: Shape) -> Row:
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if missing := shape.missing(value):
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(value) or 'nothing'}")
    return {ours: value[name] for ours, name in shape.pick(value).items()}


def _value(line: str | bytes) -> Any:
    try:
        return parse_row(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return ValueError(f"it is not JSON ({error})")
    except ValueError as error:
        return error


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
            with json_told():
                value, end = decoder.raw_decode(text, at)
            if end == len(text) and text[end - 1] not in '}]"':  # a number could go on
                raise ValueError("it breaks off")
        except ValueError as error:
            found = file.read(more) if len(text) - at < LARGEST_ENTRY else ""
            if not found:
                why = f"is not a whole JSON list: entry {count + 1} cannot be read ({error})"
                raise MapoError(f"{path} {why}. Write it again, or save its entries as JSON lines.") from None
            text, at, more = text[at:] + found, 0, more * 2
            continue
        yield _value(text[at:end]) if isinstance(value, dict | list) else value
        at, count, more = end, count + 1, READ_AT_ONCE
        if at > READ_AT_ONCE:
            text, at = text[at:], 0
