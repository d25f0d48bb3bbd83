"""Files that are there whole or not at all, and paths that stay where they belong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapo.errors import MapoError

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, a file or a folder as you like; renamed over it when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str, remedy: str) -> Any:
    """The JSON value of ``path``; ``what`` names the thing and ``remedy`` says what to do when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MapoError(f"{path.parent} is not {what}: it has no {path.name}. {remedy}") from None
    except (ValueError, OSError) as error:
        raise MapoError(f"{path} cannot be read ({error}). {remedy}") from None


def sha256(data: bytes) -> str:
    """The content hash that names a picture everywhere, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def inside(folder: Path, name: str, where: str) -> Path:
    """``folder / name``, refused when it would leave ``folder`` (absolute, ``..`` or a link that leads out)."""
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise MapoError(f"{where}: the path {name!r} leaves its folder {folder}. Use paths inside the folder.")
    return path


def prepare_out(path: Path) -> Path:
    """Make the parent of an output path, or say in one sentence why it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MapoError(
            f"Cannot write to {path.parent} ({error.strerror or error}). Choose another --out, or change its permissions."
        ) from None
    return path
