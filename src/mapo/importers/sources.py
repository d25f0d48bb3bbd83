"""Where a person's data lie: a file or folder on this machine, or a set on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import locate
from mapo.importers.named import ARROW_ENDS, CSV_ENDS, JSON_ENDS, state_of

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./~-]+)?")
FILE_ENDS = (
    ".parquet",
    *ARROW_ENDS,
    *JSON_ENDS,
    *CSV_ENDS,
    ".tar",
    ".gz",
    ".tgz",
    ".zip",
    ".txt",
)
NO_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json", "set.json")  # about rows that lie elsewhere
WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """One of ``path`` (on this machine) and ``hub`` (``datasets/owner/name…``, as the hub's file system calls it).

    ``pattern`` names files below ``path``. ``columns`` says what the source calls columns: our name → its name.
    ``seen`` is what was found out about the source, so that it is looked at once.
    """

    path: Path | None = None
    hub: str | None = None
    pattern: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    notes: list[str] = field(default_factory=list, compare=False)  # what is to be said when it has been read

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path / (self.pattern or "")) if self.path is not None else f"hf://{self.hub}"

    @property
    def short_name(self) -> str:
        """What the set remembers: no path of somebody's machine."""
        if self.path is None:
            return self.name
        name = Path(os.path.abspath(self.path)).name  # noqa: PTH100 (a link keeps its own name)
        return str(Path(name, self.pattern or ""))

    def files(self, end: str | tuple[str, ...], deep: bool = False) -> Iterator[tuple[str, Path]]:
        """The files on this machine whose names end so, with their names below ``path``, in the names' order."""
        if self.path is None:
            return
        if self.path.is_file():
            if self.path.name.lower().endswith(end):
                yield self.path.name, self.path
            return
        if "files" not in self.seen:
            paths = self.path.glob(self.pattern) if self.pattern else _below(self.path)
            self.seen["files"] = sorted(p for p in paths if p.name.lower().endswith(FILE_ENDS) and not p.is_dir())
        for path in self.seen["files"]:
            if path.name.lower().endswith(end) and (deep or self.pattern or path.parent == self.path):
                yield str(path.relative_to(self.path)), path

    def identity(self) -> list[Any]:
        """Changes when the source does: sizes and times of all files that are read, their versions on the hub."""
        if self.path is None:
            look = hub_files().glob if "*" in (self.hub or "") else hub_files().find
            files = look(self.hub, detail=True)
            return [self.hub, [[n, v.get("size"), str(v.get("blob_id", ""))] for n, v in sorted(files.items())]]
        if self.pattern:
            return [str(self.path.resolve()), self.pattern, *(state_of(path) for _, path in self.files("", deep=True))]
        return [str(self.path.resolve()), None, *state_of(self.path)]


def _below(folder: Path) -> Iterator[Path]:
    """The files at any depth; what is hidden (``.cache``, ``._x.parquet`` of a Mac) is nobody's data."""
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise MapoError(f"{error.filename} cannot be read ({error.strerror}). Change its permissions, or move it away.")


def hub_files() -> Any:
    """The hub as a file system (fsspec)."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def below_set(place: str) -> str:
    """Where a file of the hub lies in its set (``datasets/owner/name/…``)."""
    return "/".join(place.split("/")[3:])


def find_source(given: str | Path) -> Source:
    """``given`` is a path, a hub id (``owner/name``), or ``hf://…`` with a file, folder or pattern behind the id."""
    text = str(given)
    if text.startswith("hf:/"):  # a Path has lost one of the slashes
        rest = text.removeprefix("hf:").strip("/").removeprefix("datasets/")
        if not re.match(r"[\w.-]+/[\w.-]+", rest):
            raise MapoError(f"{text} is not a set on the hub. Write hf://owner/name.")
        return _on_hub(rest)
    path = Path(given)
    if text and (path.is_file() or path.is_dir()):
        return Source(path=path)
    if path.exists():
        raise MapoError(f"{given or 'The empty name'} is neither a file nor a folder. Give one of the two.")
    if is_hub_id(text):
        return _on_hub(text)
    if WILD.search(text):
        return _matching(path)
    raise MapoError(f"There is no file or folder {given} to import.")


def _matching(path: Path) -> Source:
    """The files on this machine that a pattern names."""
    fixed = next(above for above in path.parents if not WILD.search(str(above)))
    pattern = str(path.relative_to(fixed))
    try:
        there = fixed.is_dir() and any(found.is_file() for found in fixed.glob(pattern))
    except ValueError as error:
        raise MapoError(f"{path} is not a pattern ({error}). Write a pattern such as 'data/train-*.parquet'.") from None
    if not there:
        raise MapoError(f"No file matches {path}. A pattern such as 'data/train-*.parquet' must match one or more.")
    return Source(path=fixed, pattern=pattern)


def is_hub_id(text: str) -> bool:
    """Whether ``text`` reads as ``owner/name`` and not as a path that a person has mistyped."""
    path = Path(text)
    return bool(HUB_ID.fullmatch(text)) and path.suffix not in FILE_ENDS and not path.parent.is_dir()


def _on_hub(name: str) -> Source:
    hub = f"datasets/{name}"
    try:
        files = hub_files()
        there = bool(files.glob(hub) if "*" in hub else files.info(hub))
    except FileNotFoundError:
        there = False
    except Exception as error:  # of whatever client the hub's library uses
        raise MapoError(
            f"The hub cannot be asked for {name} ({_first_line(error)}), and there is no file or folder of that name."
        ) from None
    if not there:
        raise MapoError(f"There is no file or folder {name}, and the hub has no such set (or asks you to log in).")
    return Source(hub=hub)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def lies_in(folder: Path, name: str) -> bool:
    """Whether :func:`picture_at` finds a file of this name; False for what can be no name."""
    try:
        return locate(folder, name).is_file()
    except (OSError, ValueError):
        return False


def picture_at(folder: Path, name: str) -> bytes:
    """The bytes of a file below ``folder``; ValueError when it cannot be read or the path leads elsewhere."""
    path = locate(folder, name)
    try:
        if not path.is_file():
            raise OSError(0, "it is not a file" if path.exists() else "it is not there")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the picture {name[:200]} cannot be read ({error.strerror})") from None
