"""What a folder says of its pictures: lists of prompts, and texts beside the pictures.

===================  ===================================================================================
a list               ``metadata.jsonl``, or another ``.jsonl``, ``.ndjson``, ``.csv``, ``.tsv``: a line per picture with
                     ``file_name`` (or ``file``, ``image``, ``path``), ``prompt`` (or ``caption``, ``text``) and, where
                     it is known, ``seed``; paths begin at the list
a text per picture   ``NAME.txt`` or ``NAME.caption`` beside ``NAME.png``: one line, or what AUTOMATIC1111 writes
===================  ===================================================================================

Pictures may lie in folders inside the folder.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mapo.errors import MapoError
from mapo.files import inside
from mapo.pairs.pictures import CAPTION_ENDS, ENDS
from mapo.pairs.schema import check_text
from mapo.texts import delimiter_in, is_whole_text, parse_json, parse_row, read_text, refuse_twice

JSON_LINES = (".jsonl", ".ndjson")
LISTS = (*JSON_LINES, ".csv", ".tsv")
MANIFEST = "manifest.jsonl"
NAMED_LISTS = ("metadata.jsonl", "metadata.csv", MANIFEST)  # these come first, and must be readable
FILE = ("file_name", "file", "filename", "image", "path")
PROMPT = ("prompt", "caption", "text")
ABOUT = ("readme", "license", "licence", "notice")  # texts that are not prompts
LINE = '{"file_name": "a.png", "prompt": "a red fox"}'
NAMED = 5
MOST_SEED = 2**63 - 1  # a table of scores holds no larger one

Files = dict[str, str]  # a file's path with slashes and composed accents → as the disk has it


@dataclass(frozen=True)
class PromptedPicture:
    """A picture, by its path inside the folder, and its prompt; ``seed`` is None where nobody says."""

    file: str
    prompt: str
    seed: int | None = None


def is_ours(manifest: Path) -> bool:
    """Whether a ``manifest.jsonl`` is of `mapo sample`, or damaged; one written by hand names no hashes."""
    with manifest.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = parse_json(first)
    except ValueError:
        return True
    return not isinstance(row, dict) or not {"sha256", "prompt_id"}.isdisjoint(row)


def files_of(folder: Path, what: str) -> Files:
    """Every file but hidden ones. MapoError, that it is not ``what``, where there is no such folder."""
    if not folder.is_dir():
        why = "it is a file. Name the folder that it is in" if folder.exists() else "it is not there"
        raise MapoError(f"{folder} is not {what}: {why}.")
    found: Files = {}
    for place, below, names in os.walk(folder, onerror=_raise):
        below[:] = sorted(name for name in below if not name.startswith("."))
        where = Path(place).relative_to(folder)
        for name in sorted(names):
            path = (where / name).as_posix()
            composed = unicodedata.normalize("NFC", path)
            found[path if composed in found else composed] = path
    shown = {name: path for name, path in found.items() if not PurePosixPath(name).name.startswith(".")}
    if odd := next((name for name in shown if name.lower().endswith(ENDS) and not is_whole_text(name)), None):
        raise MapoError(f"{folder} has a picture whose name is not UTF-8, {odd!r}. Rename it.")
    return shown


def _raise(error: OSError) -> None:
    raise error


def in_order(name: str) -> list[tuple[int, str]]:
    """Numbers in names count as numbers: 2.png comes before 10.png."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def stem_of(name: str) -> str:
    """The name without its end."""
    return str(PurePosixPath(name).with_suffix(""))


def named(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def some(names: Sized, one: str, many: str) -> str:
    """How many there are, with the word for one or for many."""
    return f"{len(names)} {one if len(names) == 1 else many}"


# ------------------------------------------------------------------ a list


def lists_of(folder: Path, files: Files) -> list[str]:
    """The lists to be read: the one of the folder itself, else one in each folder inside it."""
    known = [name for name in files if name.lower().endswith(LISTS) and _is_list(folder, files[name])]
    homes: dict[str, list[str]] = {}
    for name in known:
        homes.setdefault(str(PurePosixPath(name).parent), []).append(name)
    if "." in homes:
        homes = {".": homes["."]}
    chosen = []
    for names in homes.values():
        first = [name for name in names if PurePosixPath(name).name in NAMED_LISTS] or names
        if len(first) > 1:
            raise MapoError(f"{folder} has {len(first)} lists of prompts: {named(first)}. Keep one of them.")
        chosen += first
    return chosen


def _is_list(folder: Path, path: str) -> bool:
    """Whether a file has a column of pictures and one of prompts."""
    try:
        columns = set(columns_of(inside(folder, path, "a list of prompts")))
    except (ValueError, OSError) as error:
        if PurePosixPath(path).name in NAMED_LISTS:
            raise MapoError(f"{folder / path} cannot be read ({error}). Each line is such as {LINE}.") from None
        return False
    return not columns.isdisjoint(FILE) and not columns.isdisjoint(PROMPT)


def columns_of(path: Path) -> list[str]:
    """The names in a list's first line."""
    line = next((line for line in read_text(path).split("\n") if line.strip()), "")
    if path.suffix.lower() in JSON_LINES:
        row = parse_json(line or "{}")
        return [key.strip().lower() for key in row] if isinstance(row, dict) else []
    return [
        name.strip() for name in next(iter(csv.reader([line.lower()], delimiter=delimiter_in(line, path.name))), [])
    ]


def _lowered(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The row with the names of its columns in small letters; ValueError where two become one."""
    refuse_twice(key.strip().lower() for key in row if isinstance(key, str))
    return {key.strip().lower(): value for key, value in row.items() if isinstance(key, str)}


def _rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """The lines of a list with their numbers; ValueError says which is none."""
    text = read_text(path)
    if path.suffix.lower() in JSON_LINES:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    row = parse_row(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from None
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is not such as {LINE}")
                yield number, _lowered(row)
        return
    text = text.lstrip("\n")
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter_in(text.split("\n")[0], path.name))
    try:
        refuse_twice(name.strip().lower() for name in reader.fieldnames or ())
        for row in reader:
            if row.pop(None, None):
                raise ValueError(f"line {reader.line_num} has more fields than the first; put prompts in quotes")
            yield reader.line_num, _lowered(row)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


@dataclass(frozen=True)
class Listed:
    """What a list says: the pictures with their prompts, those whose prompt is empty, and those that are not there."""

    found: list[PromptedPicture]
    empty: list[str]
    absent: list[str]


def read_list(folder: Path, name: str, files: Files) -> Listed:
    """A list that lies in the folder of its pictures; the paths in it begin at the list."""
    return read_rows(folder / files[name], folder, PurePosixPath(name).parent, files)


def read_rows(path: Path, folder: Path, home: PurePosixPath, files: Files) -> Listed:
    """A list of pictures of ``folder``, whose paths begin at the folder ``home`` inside it."""
    found: dict[str, PromptedPicture] = {}
    absent, silent, empty = list[str](), list[str](), list[str]()
    try:
        rows = list(_rows(path))
        columns = [_column(rows, known) for known in (FILE, PROMPT)]
        for number, row in rows:
            file, prompt = (_told(row, column) for column in columns)
            if not file:
                silent.append(f"line {number}")
                continue
            picture = _picture(folder, home, file, files, f"{path} line {number}")
            if not prompt:
                empty.append(f"{file} (line {number})")
            elif picture is None:
                absent.append(f"{file} (line {number})")
            elif picture in found:
                raise ValueError(f"line {number} names {file} a second time")
            else:
                check_text(prompt, f"the prompt in line {number}")
                found[picture] = PromptedPicture(picture, prompt, _seed(row.get("seed"), f"line {number}"))
    except (ValueError, OSError) as error:
        raise MapoError(f"{path} cannot be used: {error}. Mend it and give the same command again.") from None
    if silent:
        raise MapoError(f"{path} names no picture in {named(silent)}. Each line is such as {LINE}.")
    return Listed(list(found.values()), empty, absent)


def told_absent(path: Path, absent: Sequence[str]) -> str:
    """That a list names pictures that are not there: the beginning of a sentence."""
    return f"{path} names {some(absent, 'picture that is', 'pictures that are')} not there: {named(absent)}"


def _column(rows: Iterable[tuple[int, Mapping[str, Any]]], known: Sequence[str]) -> str:
    """The column to read in every row: the first of ``known`` that says something in any."""
    return next((name for name in known if any(_told(row, name) for _, row in rows)), known[0])


def _told(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return value.strip() if isinstance(value, str) else ""


def _picture(folder: Path, home: PurePosixPath, given: str, files: Files, where: str) -> str | None:
    """The file that a list means, whatever the slashes and the coding of accents; None where it is not there."""
    for file in (given, given.replace("\\", "/")):
        if Path(file).is_absolute() and Path(file).is_relative_to(folder.resolve()):
            name = Path(file).relative_to(folder.resolve()).as_posix()
        else:
            name = os.path.normpath(home / file)
        if (found := files.get(unicodedata.normalize("NFC", name))) is not None:
            return found
    inside(folder, str(home / given), where)
    return None


def _seed(value: object, where: str) -> int | None:
    """A seed as programs write it: a number, or its digits."""
    text = str(value).strip() if value is not None else ""
    if not text:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.0*)?", text):
        raise ValueError(f"{where} has the seed {text[:40]}, which is not a whole number from 0")
    if (seed := int(text.partition(".")[0])) > MOST_SEED:
        raise ValueError(
            f"{where} has the seed {seed}, and a table of scores holds none above {MOST_SEED}; leave the seeds out, "
            "and pictures are matched by their number"
        )
    return seed


# ------------------------------------------------------------------ a text per picture


def texts_beside(folder: Path, files: Files, pictures: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The texts and the pictures of a folder, both by their names without the end."""
    texts: dict[str, list[str]] = {}
    for name in files:
        file = PurePosixPath(name)
        if file.suffix.lower() in CAPTION_ENDS and file.stem.lower() not in ABOUT:
            texts.setdefault(stem_of(name), []).append(name)
    owners: dict[str, str] = {}
    for name in pictures:
        stem = stem_of(name)
        if stem in owners and stem in texts:
            raise MapoError(f"{folder}: {owners[stem]} and {name} share the prompt in {texts[stem][0]}. Keep one.")
        owners[stem] = name
    return texts, owners


def text_of(folder: Path, paths: Sequence[str]) -> tuple[str, int | None]:
    """The prompt in a text, and the seed where AUTOMATIC1111 wrote it."""
    said = {}
    for path in paths:
        try:
            text = read_text(inside(folder, path, str(folder))).strip()
            check_text(text, "it")
        except (ValueError, OSError) as error:
            raise MapoError(f"{folder / path} cannot be read ({error}). Write the prompt into it as UTF-8.") from None
        if settings := re.search(r"^Steps: \d+.*", text, re.MULTILINE):
            seed = re.search(r"\bSeed: (\d+)", settings[0])
            words = re.split(r"^(?:Negative prompt|Steps): ", text, maxsplit=1, flags=re.MULTILINE)[0]
            said[path] = " ".join(words.split("\n")).strip(), int(seed[1]) if seed else None
        elif count := text.count("\n"):
            raise MapoError(f"{folder / path} has {count + 1} lines. A prompt is one line: join them, or keep one.")
        else:
            said[path] = text, None
    if len(set(said.values())) > 1:
        raise MapoError(f"{folder}: the prompts in {' and '.join(said)} differ. Keep one of the two.")
    return next(iter(said.values()))
