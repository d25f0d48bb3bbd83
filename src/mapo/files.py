"""Files that are there whole or not at all, and paths that stay where they belong."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mapo.errors import MapoError

PARTIAL = ".partial"
WORK_LEDGER = "ledger.sqlite3"  # what an unfinished set holds already
LEFT_OVER = re.compile(r"\..+\.(\d+)(\.partial|\.old|\.probe)")  # what replacing and prepare_out name by a process
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
HUB_REPOSITORY = re.compile(r"(datasets|models|spaces)--")
MOST_NESTED = 100  # lists and objects of JSON: what reads and writes them goes down by recursion
TOO_NESTED = f"its lists and objects are nested more than {MOST_NESTED} deep"
UMASK = os.umask(0o022)
os.umask(UMASK)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, what the system cannot do names ``path``: a full disk does not say which file it was."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, a file or a folder as you like; renamed over it when the block ends well.

    ``sync``: it is on the disk before it takes the place of an older one.
    """
    refuse_odd_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    _remove(temporary)  # of a killed process that had our number
    try:
        with naming(path):
            yield temporary
            _give_usual_rights(temporary)
            if sync:
                _sync(temporary)
            if temporary.is_dir() and path.exists():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                _remove(old)
                path.rename(old)
                temporary.rename(path)
                _remove(old)
            else:
                temporary.replace(path)
            if sync:
                _sync_one(path.parent)
    finally:
        _remove(temporary)


def sweep(folder: Path, pattern: re.Pattern[str] | None = None) -> None:
    """Remove what killed processes left half written in ``folder``. Only its owner may do that.

    What a process that lives is writing stays, and so does unfinished work that its own command goes on with.
    """
    for path in folder.glob(".*") if folder.is_dir() else ():
        found = LEFT_OVER.fullmatch(path.name)
        ours = found and (pattern is None or pattern.fullmatch(path.name))
        if found and ours and not _is_alive(int(found[1])) and not (path / WORK_LEDGER).exists():
            _remove(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _sync(path: Path) -> None:
    for inner in (path, *(path.rglob("*") if path.is_dir() else ())):
        _sync_one(inner)


def _sync_one(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a folder on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give_usual_rights(path: Path) -> None:
    """Rights by the umask for the files that safetensors wrote: it leaves them to their owner alone."""
    for file in [path, *(path.rglob("*.safetensors") if path.is_dir() else ())]:
        if file.is_file() and file.stat().st_mode & 0o077 == 0:
            file.chmod(0o666 & ~UMASK)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with replacing(path, sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, sync: bool = False) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", sync)


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Add a line of JSON for each value. A last line that a killed process left half written goes first."""
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    with naming(path), path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end and not _ends_a_line(file, end):
            torn = _last_line(file, end)
            if _is_json(torn):  # a file that was edited by hand
                lines = "\n" + lines
            else:
                file.truncate(end - len(torn))
        file.write(lines.encode())


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a file of JSON lines, as :func:`numbered_lines` has them."""
    return (value for _, value in numbered_lines(path))


def numbered_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines, each with the number of its line. Empty lines are passed over.

    A last line that a killed process left half written is left out. Raises MapoError naming any other
    line that is not JSON.
    """
    with path.open("rb") as file:  # bytes, as a killed process may have stopped inside a character
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = parse_json(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise MapoError(f"{path} line {number} is not JSON ({error}). Mend the line, or delete it.") from None
            yield number, value


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


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


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
        raise MapoError(f"{path} cannot be read ({error}). {remedy}") from None


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


def sha256(data: bytes) -> str:
    """The content hash that names a picture everywhere, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_object(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object of ``path``, as :func:`read_json`; any other value is damage."""
    value = read_json(path, what, remedy)
    if not isinstance(value, dict):
        raise MapoError(f"{path} is damaged. {remedy}")
    return value


def inside(folder: Path, name: str, where: str) -> Path:
    """:func:`locate`, whose refusals become a MapoError that begins with ``where``."""
    try:
        return locate(folder, name)
    except ValueError as error:
        raise MapoError(f"{where}: {error}.") from None


def locate(folder: Path, name: str) -> Path:
    """The place of ``name`` below ``folder``; ValueError says why it leads elsewhere.

    Backslashes of Windows and accents that are coded in another way find their file. A link is followed out of the
    folder only into the ``blobs/`` of the hub cache's repository in which the folder lies.
    """
    if not name:
        raise ValueError(f"a path is empty. Name a file inside {folder}")
    if ADDRESS.match(name):
        raise ValueError(f"{_short(name)} is a web address. Fetch the file, and give its path inside the folder")
    path = as_on_disk(folder, name)
    if WINDOWS.match(name) and os.name != "nt" and not os.path.exists(path):  # noqa: PTH110 (never raises)
        raise ValueError(
            f"the path {_short(name)} is one of a Windows machine. Use paths inside the folder, such as images/a.png"
        )
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise ValueError(
            f"no file can have the path {_short(name)} (it holds a NUL or half a character, or its links lead in a "
            "circle). Use paths inside the folder"
        ) from None
    if real.is_relative_to(root):
        return path
    shown = folder if folder.name not in ("", "..") else root
    written = Path(os.path.abspath(path))  # noqa: PTH100 (links are not followed)
    if not any(written.is_relative_to(top) for top in (os.path.abspath(folder), root)):  # noqa: PTH100
        how = f"is absolute and lies outside of its folder {shown}"
        how = how if Path(name).is_absolute() else f"leaves its folder {shown} by '..'"
        raise ValueError(f"the path {_short(name)} {how}. Use paths inside the folder")
    blobs = _blobs(root)
    if blobs is not None and real.is_relative_to(blobs):
        return path
    how = "is a link" if path.is_symlink() else "lies behind a link"
    raise ValueError(
        f"the path {_short(name)} {how} that leads to {real}, outside of its folder {shown}. Put the file itself there"
    )


def as_on_disk(folder: Path, name: str) -> Path:
    """``folder / name``; where that is not there, as it may be spelled on disk."""
    if (name.isascii() and "\\" not in name) or os.path.lexists(folder / name):
        return folder / name
    found, parts = folder, Path(name.replace("\\", "/")).parts
    for number, part in enumerate(parts):
        spellings = dict.fromkeys((part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))))
        there = next((found / spelling for spelling in spellings if os.path.lexists(found / spelling)), None)
        if there is None:
            return found.joinpath(*parts[number:])
        found = there
    return found


def _blobs(root: Path) -> Path | None:
    """Where the files of a snapshot of the hub cache lie, if ``root`` is one or lies in one."""
    for part in (root, *root.parents):
        if part.parent.name == "snapshots" and HUB_REPOSITORY.match(part.parent.parent.name):
            return part.parent.parent / "blobs"
    return None


def _short(name: str) -> str:
    return repr(name if len(name) <= 200 else f"{name[:200]}…")


def refuse_odd_place(out: Path) -> None:
    """MapoError where an output is a device, a pipe or a socket, or where it, or a folder on the way to it, is a link
    that leads nowhere or in a circle."""
    for path in (out, *out.parents):
        if path.is_symlink() and not path.exists():
            raise MapoError(
                f"{path} is a link to {path.readlink()}, which leads nowhere. Delete the link, or choose another place."
            )
    if out.exists() and not out.is_file() and not out.is_dir():
        raise MapoError(
            f"{out} is neither a file nor a folder (it is a device, a pipe or a socket). Choose another name."
        )


def prepare_file(path: Path, what: str, starts: bytes, example: str, flag: str = "--out") -> Path:
    """As :func:`prepare_out` for a file, which may only replace an older one of its kind: empty, or with this start."""
    refuse_odd_place(path)
    if path.is_dir():
        raise MapoError(f"{flag}: {path} is a folder. Name the file to write, such as {path / example}.")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(len(starts))
        if start and start.lower() != starts.lower():
            raise MapoError(f"{flag}: {path} exists and is not {what}. Choose another name.")
    return prepare_out(path)


def prepare_out(path: Path) -> Path:
    """Make the parent of an output path, or say in one sentence why it cannot be written."""
    refuse_odd_place(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = error.strerror or error
        raise MapoError(
            f"Cannot write to {path.parent} ({why}). Choose another --out, or change its permissions."
        ) from None
    return path
