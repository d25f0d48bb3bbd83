"""Files that are there whole or not at all, and paths that stay where they belong."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mapo.errors import MapoError

PARTIAL = ".partial"
WORK_LEDGER = "ledger.sqlite3"  # what an unfinished set holds already
LEFT_OVER = re.compile(r"\..+\.(\d+)(\.partial|\.old|\.probe)")  # what replacing and prepare_out name by a process
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
HUB_REPOSITORY = re.compile(r"(datasets|models|spaces)--")


KINDS = {  # what a folder is, by files that only such a one has
    ("set.json",): "a pairs set",
    ("run.json",): "a run",
    ("config.toml", "metrics.jsonl"): "a run",
    ("model_index.json",): "a model",
    ("cache.json",): "a cache",
    ("images.json", "manifest.jsonl"): "an images folder",
}


UMASK = os.umask(0o022)
os.umask(UMASK)


def at_home(value: Any) -> Any:
    """A path that begins with ``~/`` as a shell gives it, in the home folder, at any depth of a value.

    It is for what a shell does not expand: ``--out=~/x``, ``--set cache=~/x``, and files of settings.
    """
    if isinstance(value, dict):
        return {key: at_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [at_home(inner) for inner in value]
    home = os.environ.get("HOME", "").rstrip("/")
    return home + value[1:] if home and isinstance(value, str) and value.startswith("~/") else value


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


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those that it lies in. The ones that were not there, the innermost first."""
    made = list(itertools.takewhile(lambda one: not one.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(one for one in made if os.path.isdir(one))  # noqa: PTH112 (never raises)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, each of which lies in the next one, up to the first that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with replacing(path, sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(data: bytes) -> str:
    """The content hash that names a picture everywhere, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


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


def kind_of_folder(folder: Path) -> str:
    """What a folder is by its files, such as ``a run``; empty where they do not tell."""
    return next((kind for names, kind in KINDS.items() if all((folder / name).is_file() for name in names)), "")


def why_not(folder: Path, file: str) -> str:
    """Why ``folder``, in which ``file`` is not, is not what it was taken for: the rest of a sentence."""
    if kind := kind_of_folder(folder):
        return f", but {kind}"
    return f": it has no {file}" if folder.is_dir() else f": it is {'a file' if folder.exists() else 'not there'}"


def own_place(path: Path) -> Path:
    """Where a file or folder lies, with all links followed; a file that is a link keeps its own name, which may tell
    what it holds."""
    return path.parent.resolve() / path.name if path.is_file() else path.resolve()


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
    """MapoError where an output is a device, a pipe, a socket or the root of all folders, or where it, or a folder on
    the way to it, is a link that leads nowhere or in a circle."""
    for path in (out, *out.parents):
        if path.is_symlink() and not path.exists():
            raise MapoError(
                f"{path} is a link to {path.readlink()}, which leads nowhere. Delete the link, or choose another place."
            )
    if out.exists() and not out.is_file() and not out.is_dir():
        raise MapoError(
            f"{out} is neither a file nor a folder (it is a device, a pipe or a socket). Choose another name."
        )
    if not named(out).name:
        raise MapoError(f"Nothing can be written in the place of {out}. Choose a folder in it.")


def named(path: Path) -> Path:
    """The same place by a path that ends in its name, which one such as ``.`` does not, to name something beside it."""
    return path.resolve() if path.name in ("", "..") else path


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
    """The path, where an output can be written there, else MapoError. No folder is left of asking."""
    refuse_odd_place(path)
    try:
        made = make_folder(path.parent)
        try:
            probe = path.parent / f".{path.name}.{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        finally:
            remove_empty(made)
    except OSError as error:
        why = error.strerror or error
        raise MapoError(
            f"Cannot write to {path.parent} ({why}). Choose another --out, or change its permissions."
        ) from None
    return path
