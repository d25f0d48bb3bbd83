"""Reading WebDataset: tar files whose members of one name are a row. They are read in a stream and never unpacked.

``000.chosen.png 000.rejected.png 000.txt`` is a row with ``chosen``, ``rejected`` and ``prompt``; ``000.jpg_0.jpg`` or
``000.jpg_0`` is its ``jpg_0``, ``000.label_0.txt`` its ``label_0``, and what stands in ``000.json`` is the row's.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from mapo.errors import MapoError, reason
from mapo.importers import sources
from mapo.importers.containers import cells
from mapo.importers.containers.shape import Cursor, File, Row, Shape, Where
from mapo.importers.sources import Source
from mapo.importers.splits import splits_of
from mapo.importers.types import BadRow
from mapo.pairs.pictures import CAPTION_ENDS
from mapo.pairs.pictures import ENDS as PICTURES
from mapo.texts import decode_text, parse_row

ENDS = (".tar", ".tar.gz", ".tgz")
TEXTS = (*CAPTION_ENDS, ".cls")
SAMPLES_TO_LOOK_AT = 20
MOST_BYTES = 256 * 2**20
EndOfTar: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
Sample = tuple[str, Row | ValueError]


@dataclass(frozen=True)
class TarFile:
    """One tar file; ``on_hub`` says where it lies."""

    name: str
    place: str
    split: str | None
    on_hub: bool
    empty = "its tar files hold no samples"

    def columns(self) -> list[str] | None:
        """The columns of its first samples; None when it is not a tar file."""
        found: dict[str, None] = {}
        with contextlib.suppress(MapoError):  # what is wrong far on is told when it is read
            for _, row in itertools.islice(self._samples(Cursor(0)), SAMPLES_TO_LOOK_AT):
                found |= dict.fromkeys(row if isinstance(row, dict) else ())
        return list(found) or None

    def read(self, shape: Shape, cursor: Cursor) -> Iterator[tuple[Where, Row] | BadRow]:
        """Its samples from the cursor on."""
        for key, row in self._samples(cursor):
            text = f"{self.name} sample {key}"
            if isinstance(row, ValueError):
                yield BadRow(text, str(row))
            elif missing := shape.missing(row):
                yield BadRow(text, f"it lacks {', '.join(missing)}; it has {', '.join(row)}")
            else:
                there = {ours: cells.from_text(ours, row[name]) for ours, name in shape.pick(row).items()}
                if wrong := next((value for value in there.values() if isinstance(value, ValueError)), None):
                    yield BadRow(text, str(wrong))
                    continue
                yield Where(text, f"{self.name.partition('.tar')[0]}:{key}", None, self.split), there

    def _samples(self, cursor: Cursor) -> Iterator[Sample]:
        """Name and row of each sample that the cursor passes."""
        last = ""
        try:
            with self._open() as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as tar:
                for key, members in itertools.groupby(_members(tar), key=lambda member: _parts(member.name)[0]):
                    last = key
                    if cursor.passes():
                        yield key, _row(tar, members)
                _refuse_rest(tar)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            how = f"breaks off after sample {last}" if last else "is not a whole tar file"
            raise MapoError(
                f"{self.name} {how} ({reason(error)}). Fetch it again, or import the others without it."
            ) from None
        except (MapoError, GeneratorExit):
            raise
        except Exception as error:
            if self.on_hub:  # of whatever client the hub's library uses
                raise ConnectionError(f"{self.name} sample {last} could not be fetched ({error})") from None
            if isinstance(error, OSError):
                raise MapoError(f"{self.name} cannot be read ({reason(error)}). Fetch it again.") from None
            raise

    def _open(self) -> IO[bytes]:
        file = sources.hub_files().open(self.place, "rb") if self.on_hub else Path(self.place).open("rb")  # noqa: SIM115
        zipped = self.name.lower().endswith(ENDS[1:])
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file) if zipped else file)  # notices what is cut off


def files(source: Source) -> list[File]:
    """The tar files of ``source``, in order of their names."""
    if source.path is not None:
        found = sorted(pair for end in ENDS for pair in source.files(end, deep=True))
        splits = splits_of([name for name, _ in found])
        return [TarFile(name, str(path), split, False) for (name, path), split in zip(found, splits, strict=True)]
    hub, root = sources.hub_files(), str(source.hub)
    if root.endswith(ENDS):
        places = sorted(hub.glob(root)) if "*" in root else [root]
    else:
        places = sorted(place for end in ENDS for place in hub.glob(f"{root}/**/*{end}"))
    splits = splits_of([sources.below_set(place) for place in places])
    return [TarFile(PurePosixPath(place).name, place, split, True) for place, split in zip(places, splits, strict=True)]


class _Member(tarfile.TarInfo):
    """A member of a tar that notes whether the mark at the end was met: without it, the tar was cut off."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except EndOfTar:
            tarfile.ended = True
            raise


def _refuse_rest(tar: Any) -> None:
    """TarError where a tar has no end, or goes on behind it."""
    if not getattr(tar, "ended", False):
        raise tarfile.ReadError("its end is missing")
    while data := tar.fileobj.read(tarfile.RECORDSIZE):
        if data.strip(b"\0"):
            raise tarfile.ReadError("another tar follows in the same file")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # or memory grows with their number
        name = PurePosixPath(member.name).name
        if member.isfile() and not name.startswith(".") and "." in name:
            yield member


def _parts(name: str) -> tuple[str, str]:
    """What comes before and behind the first dot of a member's name; its folders are part of the first."""
    path = PurePosixPath(name)
    stem, _, rest = path.name.partition(".")
    return str(path.with_name(stem)).removeprefix("./"), rest.lower()


def _row(tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo]) -> Row | ValueError:
    row: Row = {}
    wrong: ValueError | None = None
    for member in members:
        if wrong is None:
            try:
                _add(row, _parts(member.name)[1], member, tar)
            except ValueError as error:
                wrong = error
    return wrong or row


def _add(row: Row, end: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """Put what a member says into the row; what is neither picture, text nor JSON is passed over."""
    name, _, kind = end.rpartition(".")
    is_picture = f".{kind}" in PICTURES or "_" in kind  # jpg_0
    is_text = f".{kind}" in TEXTS
    if not (is_picture or is_text or kind == "json"):
        return
    if member.size > MOST_BYTES:
        raise ValueError(f"{member.name} has {member.size} bytes, more than {MOST_BYTES}")
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if is_picture:
        said: Row = {name or kind: data}
    elif is_text:
        said = {name or "prompt": _text(data, member.name, whole=bool(name))}
    else:
        said = _json(data, name, member.name)
    for column, value in said.items():
        before = row.get(column, value)
        if isinstance(before, ValueError):
            continue
        if isinstance(before, bytes) != isinstance(value, bytes):  # what JSON says of a picture that is there
            row[column] = before if isinstance(before, bytes) else value
        elif _same(before, value):
            row[column] = value
        else:
            row[column] = ValueError(f"{column} differs in {member.name} and the members before it; keep one of them")


def _same(one: Any, other: Any) -> bool:
    """Whether two members say the same, a number as JSON or as text."""
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    number = cells.as_number(one)
    return bool(one == other or (number is not None and number == cells.as_number(other)))


def _text(data: bytes, name: str, whole: bool) -> Any:
    """The text of a member; that of a caption file with several lines is the list of them."""
    try:
        text = decode_text(data).strip("\r\n")
    except ValueError as error:
        raise ValueError(f"{name} cannot be read ({error})") from None
    return text if whole or "\n" not in text else text.split("\n")


def _json(data: bytes, column: str, name: str) -> Row:
    try:
        value = parse_row(data)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error})") from None
    if column:
        return {column: value}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value
