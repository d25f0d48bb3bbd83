"""``captions.jsonl``: what is said of each picture of a folder, a line each, to be read and changed by hand.

=========== ===================================================================================
``file``    the picture, by its path inside the folder
``caption`` what it shows; this is what is drawn and learned
``source``  where it came from: ``list``, ``beside``, ``metadata: PROGRAM``, ``model: NAME``, ``given: FILE``,
            ``by hand``
``raw``     how it was written there
``keep``    false leaves the picture out
=========== ===================================================================================
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, suggest
from mapo.files import write_text
from mapo.pairs.schema import check_text
from mapo.texts import parse_row, read_text

BY_HAND = "by hand"
FIELDS = {"file": str, "caption": str, "source": str, "raw": str, "keep": bool}
LIKE = '{"file": "a.png", "caption": "a red fox"}'


@dataclass(frozen=True)
class Caption:
    """What is said of a picture; ``raw`` is how it was written where it was found."""

    file: str
    caption: str
    source: str = BY_HAND
    raw: str = ""
    keep: bool = True


@dataclass(frozen=True)
class Merged:
    """The captions of the pictures that are there, and what has changed since the file was written."""

    captions: list[Caption]  # in the order of the pictures; those without any are not among them
    new: list[str]
    gone: list[Caption]  # their lines stay in the file
    changed: list[str]  # whose text has changed where it came from


def read_ledger(path: Path) -> dict[str, Caption]:
    """The lines by their pictures; MapoError names the line that cannot be read."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise MapoError(f"{path} cannot be read ({error}). Mend it, or choose another name.") from None
    found: dict[str, Caption] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            one = _read(line)
            if one.file in found:
                raise ValueError(f"it names {one.file} a second time; keep one of the two lines")
        except json.JSONDecodeError as error:
            raise MapoError(f"{path} line {number} is not JSON ({error}). Mend the line, or delete it.") from None
        except ValueError as error:
            raise MapoError(f"{path} line {number}: {error}.") from None
        found[one.file] = one
    return found


def _read(line: str) -> Caption:
    """A line; ValueError says what is wrong with it."""
    row = parse_row(line)
    if not isinstance(row, dict):
        raise ValueError(f"it must be such as {LIKE}")
    for name, value in row.items():
        if name not in FIELDS:
            raise ValueError(
                f"it has {name[:40]!r}, which such a line does not have. {suggest(name, FIELDS).rstrip('.')}"
            )
        if not isinstance(value, FIELDS[name]):
            kind = "true or false" if name == "keep" else "a text in quotes"
            raise ValueError(f"{name} must be {kind}, and is {json.dumps(value, ensure_ascii=False)[:40]}")
        if isinstance(value, str):
            check_text(value, name)
    if not row.get("file", "").strip():
        raise ValueError(f"it names no picture; it must be such as {LIKE}")
    caption = Caption(**{"caption": "", **row})
    if "\n" in caption.caption.strip():
        raise ValueError("its caption has several lines; a caption is one line")
    if caption.keep and not caption.caption.strip():
        raise ValueError(
            f'the caption of {caption.file} is empty; write one, or leave the picture out with "keep": false'
        )
    return replace(caption, file=unicodedata.normalize("NFC", caption.file), caption=caption.caption.strip())


def write_ledger(path: Path, captions: Sequence[Caption]) -> None:
    """Write a line for each, atomically; nothing is touched where the file says that already."""
    text = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in captions)
    if not path.is_file() or path.read_text("utf-8", errors="replace") != text:
        write_text(path, text)


def work_file(out: Path) -> Path:
    """Where captions lie that a model has written, until all are there."""
    return out.with_name(f".{out.name}.written")


def merge(
    pictures: Sequence[str],
    found: Mapping[str, Caption],
    before: Mapping[str, Caption],
    made: Callable[[str, str], str],
) -> Merged:
    """What is found now and what the file said before: a line that a person wrote or changed stays as it is.

    ``made(raw, source)`` is the caption that is made of a text: a line that says something else was changed by hand.
    """
    merged = Merged([], [], [], [])
    unused: dict[str, Any] = dict(before)
    for picture in pictures:
        line, fresh = unused.pop(unicodedata.normalize("NFC", picture), None), found.get(picture)
        if line is None:
            if before:
                merged.new.append(picture)
            if fresh:
                merged.captions.append(fresh)
        elif line.source == BY_HAND or line.caption != made(line.raw, line.source):
            merged.captions.append(replace(line, file=picture, source=BY_HAND))
        elif fresh is None or fresh.raw == line.raw:
            merged.captions.append(replace(line, file=picture, keep=line.keep and (fresh is None or fresh.keep)))
        else:
            merged.changed.append(picture)
            merged.captions.append(replace(fresh, keep=line.keep and fresh.keep))
    merged.gone.extend(unused.values())
    return merged
