"""Text on disk: JSON, files of lines that grow, encodings and delimiters."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mapo.errors import MapoError, reason
from mapo.files import naming, write_text

MOST_NESTED = 100  # lists and objects of JSON: what reads and writes them goes down by recursion
TOO_NESTED = f"its lists and objects are nested more than {MOST_NESTED} deep"


def parse_json(text: str | bytes, **how: Any) -> Any:
    """The value of a text of JSON; ValueError says why it cannot be read.

    What is nested more than :data:`MOST_NESTED` deep, or has a number of thousands of digits, is refused too.
    """
    with json_told():
        value = json.loads(text, **how)
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > MOST_NESTED:
        _refuse_nested(value)
    return value


def parse_row(text: str | bytes) -> Any:
    """As :func:`parse_json`, for a row of a user's: no object in it may have two values under one name."""
    return parse_json(text, object_pairs_hook=_object)


@contextlib.contextmanager
def json_told() -> Iterator[None]:
    """Inside, what Python cannot read of JSON is a ValueError in our words."""
    try:
        yield
    except RecursionError:
        raise ValueError(TOO_NESTED) from None
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError("a number in it has too many digits") from None
        raise


def is_whole_text(text: str) -> bool:
    """Whether UTF-8 can hold a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite, such as bounds that nobody knows, are null."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, sync: bool = False) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", sync)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value``, as JSON can hold it, with a checksum by which a digit that changes on the disk is noticed."""
    value = finite(value)
    return {**value, "crc32": _checksum(value)}


def is_as_written(value: Mapping[str, Any]) -> bool:
    """Whether an object that was :func:`sealed` is as it was. Those of older versions have no checksum, and pass."""
    return value.get("crc32") in (None, _checksum({key: v for key, v in value.items() if key != "crc32"}))


def _checksum(value: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def line_of(value: Any) -> str:
    """A line of JSON, in which a number that is not finite is null."""
    return json.dumps(finite(value), ensure_ascii=False) + "\n"


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Add a line of JSON for each value. A last line that a killed process left half written goes first."""
    lines = "".join(line_of(value) for value in values)
    with naming(path), path.open("a+b") as file:
        mend_last_line(file)
        file.write(lines.encode())


def append_synced(file: IO[bytes], value: Any) -> None:
    """Add a line of JSON to a file that is open without a buffer, and wait until it is on the disk.

    On an OSError the file is as it was before. Its last line is to be whole: :func:`mend_last_line`.
    """
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    size = os.fstat(file.fileno()).st_size
    try:
        if os.write(file.fileno(), line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


def mend_last_line(file: IO[bytes], parse: Callable[[bytes], Any] = parse_json) -> None:
    """Take away a last line that a killed process left half written; end one that only lacks its line feed.

    ``parse`` raises ValueError for a line that is not whole.
    """
    end = file.seek(0, os.SEEK_END)
    if not end or _ends_a_line(file, end):
        return
    torn = _last_line(file, end)
    try:
        parse(torn)
    except ValueError:
        file.truncate(end - len(torn))
    else:  # a file that was edited by hand
        file.seek(0, os.SEEK_END)
        file.write(b"\n")


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a file of JSON lines, as :func:`numbered_lines` has them."""
    return (value for _, value in numbered_lines(path))


def numbered_lines(
    path: Path,
    parse: Callable[[bytes], Any] = parse_json,
    what: str = "JSON",
    remedy: str = "Mend the line, or delete it.",
) -> Iterator[tuple[int, Any]]:
    """The values of a file of lines, each with the number of its line. Empty lines are passed over.

    A last line that a killed process left half written is left out. Raises MapoError naming any other line that is not
    ``what`` it has to be, which ``parse`` tells by a ValueError.
    """
    with path.open("rb") as file:  # bytes, as a killed process may have stopped inside a character
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = parse(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise MapoError(f"{path} line {number} is not {what} ({error}). {remedy}") from None
            yield number, value


def lines_after(path: Path, offset: int) -> tuple[list[Any], int]:
    """The values of the whole lines that stand behind ``offset`` bytes, and where they end: for who follows a file.

    A line that is not JSON is passed over: its owner will mend it, and who only looks has nothing to say to that.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    values = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):
            values.append(parse_json(line))
    return values, offset + len(whole)


def _ends_a_line(file: IO[bytes], end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"


def _last_line(file: IO[bytes], end: int) -> bytes:
    """What stands behind the last line feed, read from the end."""
    found, place = b"", end
    while place and b"\n" not in found:
        step = min(place, 65_536)
        place -= step
        file.seek(place)
        found = file.read(step) + found
    return found.rpartition(b"\n")[2]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        refuse_twice([key for key, _ in pairs])
    return found


def refuse_twice(names: Iterable[str]) -> None:
    """ValueError where two columns have one name, as nobody can say which is meant; those without a name may."""
    seen = set[str]()
    for name in names:
        if name and name in seen:
            raise ValueError(f"it has two columns {name}; rename one of them")
        seen.add(name)


def _refuse_nested(value: Any) -> None:
    level = [value]
    for _ in range(MOST_NESTED + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, list | dict))
        level = [one for values in inner for one in values]
        if not level:
            return
    raise ValueError(TOO_NESTED)


def read_json(path: Path, what: str, remedy: str) -> Any:
    """The JSON value of ``path``; ``what`` names the thing and ``remedy`` says what to do when it cannot be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MapoError(f"{path.parent} is not {what}: it has no {path.name}. {remedy}") from None
    except (ValueError, OSError) as error:
        raise MapoError(f"{path} cannot be read ({reason(error)}). {remedy}") from None


def encoding_of(path: Path) -> str:
    """The encoding of a text file of the user's: UTF-8, or UTF-16 where a byte order mark says so."""
    with path.open("rb") as file:
        return _encoding(file.read(2))


def _encoding(start: bytes) -> str:
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def delimiter_of(path: Path) -> str:
    """What stands between the cells of a CSV or TSV file."""
    with path.open(encoding=encoding_of(path), errors="replace") as file:
        first = file.readline(2**20)
    try:
        return delimiter_in(first, path.name)
    except ValueError as error:
        raise MapoError(f"{path} cannot be read: {error}.") from None


def delimiter_in(line: str, name: str) -> str:
    """What stands between the cells of a CSV or TSV file of this name that begins with this line.

    ValueError for the line of Excel that names the sign.
    """
    if sign := re.match(r'[\ufeff"]*(sep=[^\n"]?)', line, re.IGNORECASE):
        raise ValueError(f"it begins with the line {sign[1]!r}, which is meant for Excel alone; take that line out")
    return "\t" if name.lower().endswith(".tsv") else max(",;\t", key=line.count)


def read_text(path: Path) -> str:
    """The text of a file of the user's, lines ending in a line feed; ValueError when it is not a text."""
    return decode_text(path.read_bytes())


def decode_text(data: bytes) -> str:
    """The text in these bytes, as :func:`read_text` has it."""
    text = io.TextIOWrapper(io.BytesIO(data), _encoding(data[:2])).read()
    if "\0" in text:
        raise ValueError("it holds NUL characters, so it is not UTF-8 text")
    return text


def read_object(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object of ``path``, as :func:`read_json`; any other value is damage."""
    value = read_json(path, what, remedy)
    if not isinstance(value, dict):
        raise MapoError(f"{path} is damaged. {remedy}")
    return value
