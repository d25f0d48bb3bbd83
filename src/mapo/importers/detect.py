"""Which format a source is in, and what is said of one that is in none."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import cast

from mapo.errors import MapoError, suggest
from mapo.files import kind_of_folder
from mapo.importers.containers import lines, rows
from mapo.importers.containers.shape import SPLIT, Cursor, Shape
from mapo.importers.formats import IMPORTERS, folders
from mapo.importers.sources import Source
from mapo.importers.types import Importer
from mapo.pairs.pictures import ENDS as PICTURES

SYNONYMS = {  # our name → what others call it, the likeliest first
    "prompt": ("caption", "text", "prompts", "original_prompt", "captions", "instruction", "description", "txt"),
    "chosen": (
        "image_w", "win", "winner", "w", "preferred", "better", "chosen_image", "image_chosen", "img_better",
        "image_win", "win_image", "jpg_w", "positive", "best", "good",
    ),
    "rejected": (
        "image_l", "lose", "loser", "l", "dispreferred", "worse", "rejected_image", "image_rejected", "img_worse",
        "image_lose", "lose_image", "jpg_l", "negative", "worst", "bad",
    ),
    "jpg_0": ("image_0", "img_0", "picture_0"),
    "jpg_1": ("image_1", "img_1", "picture_1"),
    "label_0": ("label0", "preference_0"),
    "label_1": ("label1", "preference_1"),
    "caption": ("prompt", "text", "original_prompt", "txt"),
    "images": ("generations", "image_paths", "pictures", "image", "paths", "image_path", "file_path"),
    "rank": ("ranking", "ranks", "rankings"),
    "scores": ("score", "rewards", "reward"),
}  # fmt: skip
REMEDIES = {
    ".zip": "Unpack it (unzip) and give the folder.",
    ".rar": "Unpack it and give the folder.",
    ".7z": "Unpack it and give the folder.",
    ".gz": "Unpack it with gunzip and give the file.",
    ".zst": "Unpack it with unzstd and give the file.",
    ".xlsx": "Save it as CSV.",
    ".xls": "Save it as CSV.",
    ".ods": "Save it as CSV.",
    ".pkl": "A pickle can run programs, so it is not opened. Save it as Parquet.",
    ".pt": "A pickle can run programs, so it is not opened. Save it as Parquet.",
    ".npz": "Save its rows as Parquet.",
    ".npy": "Save its rows as Parquet.",
    ".db": "Save its table as CSV or Parquet.",
    ".sqlite": "Save its table as CSV or Parquet.",
    ".yaml": "Save it as JSON lines.",
    ".yml": "Save it as JSON lines.",
    ".toml": "Save it as JSON lines.",
    ".xml": "Save it as JSON lines.",
    ".txt": "A list of prompts is for `mapo build --prompts`; pairs need pictures too.",
    **dict.fromkeys(PICTURES, "It is one picture; give the folder that holds chosen/ and rejected/."),
}

ON_THE_HUB = (
    "Only Parquet files and tars are read from the hub. Where it has made a copy in Parquet, that is "
    "OWNER/NAME@~parquet; else download the set and give its folder."
)
FILES_SHOWN = 3


def parse_columns(given: str | Mapping[str, str] | None) -> dict[str, str]:
    """``prompt=text,chosen=image_w`` → what the source calls our columns."""
    if given is None or isinstance(given, Mapping):
        pairs = list((given or {}).items())
    else:
        parts = [part.partition("=") for part in given.split(",")]
        if wrong := ["".join(part) for part in parts if not (part[0].strip() and part[2].strip())]:
            raise MapoError(f"--columns: {wrong[0]!r} is not NAME=COLUMN. Write --columns prompt=text,chosen=image_w.")
        pairs = [(ours.strip(), theirs.strip()) for ours, _, theirs in parts]
    known = {c for shape in _shapes().values() for form in (*shape.forms, shape.wanted) for c in form} | {SPLIT}
    names: dict[str, str] = {}
    for ours, theirs in pairs:
        if ours not in known:
            raise MapoError(f"--columns {ours}={theirs}: there is no column {ours} to fill. {suggest(ours, known)}")
        if ours in names:
            raise MapoError(f"--columns names {ours} twice. Name it once.")
        names[ours] = theirs
    return names


def find_importer(source: Source, format: str | None) -> tuple[str, Importer, str | None]:
    """The format that was named, or the first that recognises the source; and what is said of files passed over."""
    if source.path is not None and (source.path / "set.json").is_file():
        raise MapoError(f"{source.name} is a set of pairs already. Use it as it is.")
    if source.path is not None and (kind := kind_of_folder(source.path)) in ("a run", "a model", "a cache"):
        raise MapoError(f"{source.name} is {kind}, not a source of pairs. Give the folder or file that holds them.")
    if source.path is not None and kind_of_folder(source.path) == "an images folder":
        raise MapoError(
            f"{source.name} is an images folder, and no pairs can be read from it. Where its pictures are the good "
            "ones, name a folder of others of the same prompts with --rejected-from."
        )
    _check_columns(source)
    names = [format] if format else list(IMPORTERS)
    modules = {name: cast("Importer", importlib.import_module(IMPORTERS[name])) for name in names}
    found = format or next((name for name, module in modules.items() if module.detects(source)), None)
    if found is None:
        raise MapoError(_unknown(source))
    shape = getattr(modules[found], "SHAPE", None)
    used = replace(shape, names=source.columns).pick(source.columns.values()) if shape else {}
    if unused := [ours for ours in source.columns if ours not in used]:
        what = f"--columns {unused[0]}={source.columns[unused[0]]}"
        raise MapoError(
            f"{what}: the format {found} has no column {unused[0]}. Leave it out, or name another --format."
        )
    return found, modules[found], rows.passed_over(source, shape) if shape else None


def _check_columns(source: Source) -> None:
    """MapoError where ``--columns`` names one that no file of the source has."""
    if not source.columns:
        return
    there = list(dict.fromkeys(c for _, columns in rows.kinds_of(source) for c in columns or ()))
    if not there:
        raise MapoError(f"--columns: {source.name} has no columns that could have other names.")
    for ours, theirs in source.columns.items():
        if theirs not in there:
            raise MapoError(
                f"--columns {ours}={theirs}: {source.name} has no column {theirs}. {suggest(theirs, there)} "
                f"It has {', '.join(there)}."
            )


def _shapes() -> dict[str, Shape]:
    """The columns of each format that has some."""
    modules = {name: importlib.import_module(place) for name, place in IMPORTERS.items()}
    return {name: module.SHAPE for name, module in modules.items() if hasattr(module, "SHAPE")}


def _unknown(source: Source) -> str:
    """What is said of a source that no importer knows: what it is, then what to do."""
    known = f"Known formats: {', '.join(IMPORTERS)}; see `mapo import --help`."
    if source.path is not None:
        empty = not source.path.stat().st_size if source.path.is_file() else not any(source.path.iterdir())
        if empty:
            return f"{source.name} is empty. There is nothing to import."
    for files, columns in rows.kinds_of(source):
        file = files[0]
        if columns is None:
            for _ in file.read(Shape(((),)), Cursor(0)):  # says what is wrong
                pass
            return f"{source.name} holds no rows. Fetch it again."
        if columns:
            what = "lines have" if isinstance(file, lines.JsonFile) else "columns are"
            near = _nearest(source, columns)
            if near is not None:
                return f"{file.name} {near}"
            shown = ", ".join(sorted(columns) if isinstance(file, lines.JsonFile) else columns)
            if len(files) > 1:
                return (
                    f"{file.name}, the first of {len(files)} files in {source.name}, is not in a known format: "
                    f"its {what} {shown}. Name the files with pairs by a pattern in quotes such as "
                    f"'{source.path or f'hf://{source.hub}'}/data-*{PurePath(file.name).suffix}'. {known}"
                )
            return f"{source.name} is not in a known format: its {what} {shown}. {known}"
        if isinstance(file, lines.JsonFile):
            return _no_rows(file)
    if source.path is None:
        return f"{source.name} is not in a known format. {ON_THE_HUB} {known}"
    if source.path.is_dir() and lines.candidates(source):
        return rows.no_files(source)
    if source.path.is_dir():
        return f"{source.name}/ has no folders chosen/ and rejected/.{_elsewhere(source, source.path)}"
    remedy = REMEDIES.get(source.path.suffix.lower())
    return f"{source.name} is not in a known format. {remedy + ' ' if remedy else ''}{known}"


def _elsewhere(source: Source, root: Path) -> str:
    """Where pairs of a folder may be, or how to put them there."""
    if there := folders.elsewhere(root):
        return there
    if deeper := lines.deeper(source):
        names = ", ".join(deeper[:FILES_SHOWN]) + (" …" if len(deeper) > FILES_SHOWN else "")
        such = PurePath(root, deeper[0])
        return (
            f" Rows may lie in {names}. Name one of these files, or several by a pattern in quotes such as "
            f"'{such.with_name('*' + such.suffix)}'."
        )
    return (
        " Put the better pictures into one and the worse into the other, both of a pair under one name, with the "
        "prompt in NAME.txt. With good pictures only, let `mapo build --chosen` draw the others (or, for --objective "
        "sft, leave them out), or import them with --rejected-from. Other formats: see `mapo import --help`."
    )


def _no_rows(file: lines.JsonFile) -> str:
    """Why a file of JSON has no rows."""
    for item in itertools.islice(file.read(Shape(((),)), Cursor(0)), 1):
        why = getattr(item, "why", "its first row is an object without keys")
        if file.path.suffix.lower() == ".json":
            return f"{file.path} is one JSON value, not a list of rows ({why}). Save the rows as [{{…}}, {{…}}]."
        return f"{file.path} holds no JSON objects ({why}). Write one object per line."
    return f"{file.path} is empty: {file.empty}."


def _nearest(source: Source, there: Sequence[str]) -> str | None:
    """What the nearest format needs and ``--columns`` that would give it; None when none is near."""
    best: tuple[int, int, str, tuple[str, ...], dict[str, str], list[str]] | None = None
    for name, shape in _shapes().items():
        shape = replace(shape, names=source.columns)
        for form in shape.forms:
            missing = [c for c in form if source.columns.get(c, c) not in there]
            free = [c for c in there if c not in form and c not in source.columns.values()]
            called = _called(missing, free)
            lacking = [c for c in missing if c not in called]
            score = (len(lacking), len(missing), name, form, called, lacking)
            if 2 * len(lacking) <= len(form) and (best is None or score[:2] < best[:2]):
                best = score
    if best is None:
        return None
    _, _, name, form, called, lacking = best
    missing = [c for c in form if source.columns.get(c, c) not in there]
    said = f"lacks the columns {', '.join(missing)}; it has {', '.join(there)}. The nearest format is {name}"
    words = ",".join(
        f"{c}={source.columns.get(c) or called.get(c) or 'NAME'}" for c in form if c in {*missing, *source.columns}
    )
    if lacking:
        return f"{said} ({', '.join(form)}). If a column has another name, say so: --columns {words}."
    return f"{said}: say --columns {words}."


def _called(missing: Sequence[str], free: Sequence[str]) -> dict[str, str]:
    """What the source may call columns that are missing; no column is taken twice."""
    lower = {c.lower(): c for c in free}
    called: dict[str, str] = {}
    for column in missing:
        word = next(
            (w for w in (column, *SYNONYMS.get(column, ())) if w in lower and lower[w] not in called.values()), None
        )
        if word:
            called[column] = lower[word]
    return called
