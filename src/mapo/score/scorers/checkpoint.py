"""Weights in a single file: safetensors, or a pickle, which is read as tensors only and known by its sha256.

The sha256 that a pickle had when it was first used is kept in the user's cache folder, and a file of the same name that
has another is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mapo.errors import MapoError, reason
from mapo.files import sha256
from mapo.pretrained import Repository, find_files, repository
from mapo.texts import read_json, write_json

PICKLES = (".pt", ".pth")
SUFFIXES = (*PICKLES, ".safetensors")
SAFE_TORCH = (2, 6)  # before it weights_only could be made to run code (CVE-2025-32434)


@dataclass(frozen=True)
class Checkpoint:
    """A file that is there. ``revision`` is the commit on the hub, where it is from there, and the file's sha256."""

    path: Path
    revision: str
    name: str  # of the repository, the folder or the file


def find_checkpoint(scorer: str, source: str | Repository, file: str) -> Checkpoint:
    """The checkpoint that ``source`` is, a file, or that it holds: a folder its only one, a repository ``file``.

    The sha256 of a pickle is compared with the one of its first use. Raises MapoError.
    """
    path = Path(source).expanduser() if isinstance(source, str) else Path()
    commit = ""
    if isinstance(source, str) and path.is_file():
        if path.suffix not in SUFFIXES:
            raise MapoError(f"{scorer}: {path} is not a checkpoint. Give a file that ends in {', '.join(SUFFIXES)}.")
        label = name = path.name
    elif isinstance(source, str) and path.is_dir():
        name, path = path.resolve().name, _only_checkpoint(scorer, path, file)
    else:
        if isinstance(source, str):
            source = repository(scorer, source, "a file or folder")
        found = find_files(scorer, source, (file,))
        path, name, commit = found.folder / file, source.name, found.revision
    label = f"{name}/{file}" if commit else str(path.absolute())
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if path.suffix in PICKLES:
        _compare(scorer, label, digest)
    return Checkpoint(path, "/".join(part for part in (commit, digest[:16]) if part), name)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder; what belongs to a transformers model there is none."""
    model = set(folder.glob("model*.safetensors")) if (folder / "config.json").is_file() else set()
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path not in model)


def _only_checkpoint(scorer: str, folder: Path, file: str) -> Path:
    found = checkpoints(folder)
    if folder / file in found:
        return folder / file
    if len(found) != 1:
        what = f"several checkpoints, {found[0].name} and {found[1].name}" if found else f"no checkpoint such as {file}"
        raise MapoError(f"{scorer}: {folder} holds {what}. Name the file with {scorer}@FILE.")
    return found[0]


def _compare(scorer: str, label: str, digest: str) -> None:
    """Keep the sha256 of a pickle on its first use, and refuse another afterwards."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mapo" / "pickles"
    record = cache / f"{sha256(label.encode())[:16]}.json"
    remedy = f"If you trust the file as it is now, delete {record} and repeat the command."
    if record.is_file():
        known = read_json(record, "a record of sha256", remedy)
        known = known.get("sha256") if isinstance(known, dict) else None
        if known != digest:
            raise MapoError(
                f"{scorer}: {label} is a pickle and not the file that was used first: its sha256 was {known} and is "
                f"{digest}. {remedy}"
            )
        return
    try:
        write_json(record, {"file": label, "sha256": digest})
    except OSError as error:
        raise MapoError(
            f"{scorer}: the sha256 of {label} cannot be kept in {cache} ({error.strerror or error}). Set "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from None


def read_tensors(scorer: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, those under ``state_dict`` where it has that; nothing in it is run."""
    from safetensors.torch import load_file

    try:
        if path.suffix not in PICKLES:
            return load_file(path)
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
            raise MapoError(
                f"{scorer}: {path} is a pickle, which torch {torch.__version__} cannot read safely. Install torch 2.6."
            )
        found = torch.load(path, map_location="cpu", weights_only=True)
    except MapoError:
        raise
    except Exception as error:
        raise MapoError(f"{scorer}: {path} cannot be read as tensors ({reason(error)}). Fetch it again.") from None
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise MapoError(f"{scorer}: {path} holds other things than named tensors. Fetch it again.")
    return dict(found)


def check_shapes(scorer: str, path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that are not exactly those wanted, by name and by shape."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted or name not in found:
            problem = f"it has {name}, which is not in one" if name in found else f"it lacks {name}"
        elif found[name].shape != wanted[name].shape:
            problem = f"{name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        else:
            continue
        raise MapoError(f"{scorer}: {path} is not {what}: {problem}. Give another with {scorer}@FILE.")
