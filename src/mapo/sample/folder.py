"""A folder of generated pictures: PNG files and ``manifest.jsonl``, one row per picture, appended as they are made.

A folder of pictures that another program made is read as one too (``foreign.py`` finds the prompts); it is never
written to.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType

from PIL import Image

from mapo.captions.beside import MANIFEST, NAMED, PromptedPicture, is_ours
from mapo.errors import MapoError, count, printable
from mapo.files import inside, kind_of_folder, replacing, sha256, write_text
from mapo.pairs.pictures import check_picture, decode_picture
from mapo.pairs.splits import prompt_id
from mapo.sample.foreign import find_pictures
from mapo.texts import append_lines, numbered_lines, read_object

LOG = logging.getLogger(__name__)

VERSION = 1
REMEDY = "Make it with `mapo sample`."
UNKNOWN, NUMBERED = -1, -2  # in place of a noise seed; real ones are not negative


@dataclass(frozen=True)
class ImageRow:
    """Everything that it takes to make this picture again (to the bit at the same batch layout and machine)."""

    file: str
    prompt_id: str
    prompt: str
    seed: int
    noise_seed: int  # what the picture's own generator was seeded with, or UNKNOWN, or NUMBERED
    sha256: str
    model: str
    revision: str = ""
    prefix: str = ""  # put before the prompt, not part of what the picture is judged by
    negative_prompt: str = ""
    sampler: str = ""
    steps: int = 0
    guidance: float = 0.0
    width: int = 0
    height: int = 0
    precision: str = "float32"
    batch_layout: str = ""  # "batch number/picture in batch/batch size"
    version: int = VERSION

    @property
    def foreign(self) -> bool:
        """Another program made it; how, nobody says."""
        return self.noise_seed < 0

    @property
    def numbered(self) -> bool:
        """Its seed is not known: the number of the picture among those of its prompt stands there."""
        return self.noise_seed == NUMBERED


Key = tuple[str, int]  # prompt and seed
Rows = dict[Key, ImageRow]


def read_images(folder: Path) -> list[ImageRow]:
    """The pictures of a folder: of its ``manifest.jsonl``, or as :mod:`mapo.sample.foreign` finds them."""
    path = folder / MANIFEST
    return read_manifest(folder) if path.is_file() and is_ours(path) else _read_foreign(folder)


def _read_foreign(folder: Path) -> list[ImageRow]:
    if (kind := kind_of_folder(folder)) in ("a pairs set", "a run", "a model"):
        raise MapoError(f"{folder} is {kind}, not an images folder. {REMEDY}")
    found, passed_over = find_pictures(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(lambda one: _look(folder, one), found))
    bad = [f"{one.file} ({look})" for one, look in zip(found, looks, strict=True) if isinstance(look, str)]
    if bad:
        named = "; ".join(bad[:NAMED]) + (f" and {len(bad) - NAMED} more" if len(bad) > NAMED else "")
        raise MapoError(
            f"{folder}: {len(bad)} of {count(len(found), 'picture')} cannot be used: {named}. Mend or remove them."
        )
    if passed_over:
        _say_once(f"note: {folder}: what is neither a picture nor a prompt is passed over ({passed_over})")
    number: Counter[str] = Counter()
    rows: list[ImageRow] = []
    for one, look in zip(found, looks, strict=True):
        name = prompt_id(one.prompt)
        known = one.seed is not None
        rows.append(
            ImageRow(
                file=one.file,
                prompt_id=name,
                prompt=one.prompt,
                seed=one.seed if one.seed is not None else number[name],
                noise_seed=UNKNOWN if known else NUMBERED,
                sha256=str(look[0]),
                model=folder.resolve().name,
                width=int(look[1]),
                height=int(look[2]),
            )
        )
        number[name] += 1
    return rows


def _look(folder: Path, one: PromptedPicture) -> tuple[str, int, int] | str:
    """The hash, width and height of a picture, or why it is none."""
    path = inside(folder, one.file, str(folder))
    state = path.stat()
    return _look_at(path, state.st_size, state.st_mtime_ns)


@cache
def _look_at(path: Path, size: int, time: int) -> tuple[str, int, int] | str:
    try:
        seen = check_picture(path.read_bytes())
    except ValueError as error:
        return str(error)
    return seen.sha256, seen.width, seen.height


@cache
def _say_once(text: str) -> None:
    LOG.info(printable(text))


def read_manifest(folder: Path, check_files: bool = True, path: Path | None = None) -> list[ImageRow]:
    """The rows of ``folder/manifest.jsonl``; a half-written last line (an interrupted run) is left out.

    ``path`` is another file of such rows about pictures in ``folder``.
    """
    path = path or folder / MANIFEST
    if not path.is_file():
        raise MapoError(f"{folder} is not an images folder: it has no manifest.jsonl. {REMEDY}")
    known = {f.name for f in fields(ImageRow)}
    rows: list[ImageRow] = []
    for number, values in numbered_lines(path):
        try:
            row = ImageRow(**{k: v for k, v in values.items() if k in known})
            _check_types(row)
        except (TypeError, AttributeError) as error:
            raise MapoError(f"{path} line {number} is not one of an images folder ({error}). {REMEDY}") from None
        if row.version != VERSION:
            raise MapoError(f"{path} line {number} has version {row.version}, this version reads {VERSION}. {REMEDY}")
        if check_files and not inside(folder, row.file, f"{path} line {number}").is_file():
            raise MapoError(f"{path} line {number} names {row.file}, which is not there. {REMEDY}")
        rows.append(row)
    return rows


def _check_types(row: ImageRow) -> None:
    kinds: dict[str, type | UnionType] = {"str": str, "int": int, "float": int | float}
    for field in fields(row):
        value = getattr(row, field.name)
        if not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool):
            raise TypeError(f"{field.name} is {value!r}")


def keep_whole(folder: Path) -> list[ImageRow]:
    """The rows whose picture is there and unchanged; the others leave the manifest, so that they can be made again."""
    rows = read_manifest(folder, check_files=False)
    whole = whole_rows(folder, rows)
    if len(whole) < len(rows):
        write_rows(folder, whole)
    return whole


def whole_rows(folder: Path, rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Those of these rows whose picture is there and unchanged."""

    def is_whole(row: ImageRow) -> bool:
        path = inside(folder, row.file, str(folder / MANIFEST))
        return path.is_file() and sha256(path.read_bytes()) == row.sha256

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for row, good in zip(rows, pool.map(is_whole, rows), strict=True) if good]


def write_rows(folder: Path, rows: Iterable[ImageRow]) -> None:
    """Write ``manifest.jsonl`` anew, atomically."""
    write_text(folder / MANIFEST, "".join(_line(row) for row in rows))


def _line(row: ImageRow) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def is_sensitive(folder: Path) -> bool:
    """Whether the folder's ``images.json`` marks its pictures, so that pages blur them until asked."""
    if not (folder / "images.json").exists() or not (folder / MANIFEST).exists():
        return False
    return bool(read_object(folder / "images.json", "an images folder", REMEDY).get("sensitive"))


def read_picture(folder: Path, row: ImageRow) -> bytes:
    """The encoded bytes of a row's picture, checked against its hash."""
    data = inside(folder, row.file, str(folder / MANIFEST)).read_bytes()
    if sha256(data) != row.sha256:
        if row.foreign:
            raise MapoError(f"{folder / row.file} has changed in the meantime. Give the same command again.")
        raise MapoError(f"{folder / row.file} is not the picture that the manifest names (its hash differs). {REMEDY}")
    return data


def open_picture(folder: Path, row: ImageRow) -> Image.Image:
    """The picture of a row, RGB; any thread may ask."""
    try:
        return decode_picture(read_picture(folder, row))
    except ValueError as error:
        again = "Mend it." if row.foreign else REMEDY.replace("Make it", "Make it again")
        raise MapoError(f"{folder / row.file}: {error}. {again}") from None


def check_pictures(folder: Path, rows: Iterable[ImageRow]) -> None:
    """Compare every file with its row's hash, without decoding it; MapoError naming the first that has changed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda row: len(read_picture(folder, row)), rows):
            pass


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def append_images(
    folder: Path, rows: list[ImageRow], data: list[bytes] | None, manifest: Path | None = None
) -> None:  # fmt: skip
    """Write pictures, then their rows: a row is there only when its picture is. ``None``: rows alone.

    ``manifest`` is the file of rows, where it is not that of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row, png in zip(rows, data, strict=True) if data is not None else ():
        with replacing(folder / row.file) as temporary:
            temporary.write_bytes(png)
    append_lines(manifest or folder / MANIFEST, map(asdict, rows))


# ------------------------------------------------------------------ two folders


def read_pictures(before: Path, after: Path) -> tuple[Rows, Rows]:
    """The pictures of two folders by prompt and seed; both hold the same keys, in before's order."""
    if before.exists() and after.exists() and before.samefile(after):
        raise MapoError(f"--before and --after are both {before}. Give the pictures of two models.")
    first, second = (_by_key(folder) for folder in (before, after))
    keys = [k for k in first if k in second]
    if not keys:
        same = {k[0] for k in first} & {k[0] for k in second}
        why = "the prompts are the same, but the seeds differ" if same else "they have no prompt in common"
        raise MapoError(f"{before} and {after} cannot be compared: {why}. {_how_to_match(first, second)}")
    for have, lack, rows, others in ((before, after, first, second), (after, before, second, first)):
        lonely = [r for k, r in rows.items() if k not in others]
        if lonely:
            raise MapoError(
                f"{lack} lacks {count(len(lonely), 'picture')} that {have} has: {_name(lonely)}. "
                f"{_how_to_match(first, second)}"
            )
    for key in keys:
        if first[key].prompt != second[key].prompt and not (first[key].foreign or second[key].foreign):
            raise MapoError(
                f"Prompt {key[0]} is {first[key].prompt!r} in {before} and {second[key].prompt!r} in {after}. "
                "Sample both from the same prompts."
            )
    return first, {k: second[k] for k in keys}


def _how_to_match(first: Rows, second: Rows) -> str:
    rows = [*first.values(), *second.values()]
    if not any(row.foreign for row in rows):
        return "Run `mapo sample` for both with the same prompts and seeds."
    if len({row.numbered for row in rows}) > 1:
        return (
            "The seeds of one folder are not known, so that its pictures are numbered from 0: give them in a column "
            "seed, or number the other folder so too."
        )
    return "Both folders need the same prompts, and as many pictures of each."


def told_seed(row: ImageRow) -> str:
    """Which of its prompt's pictures it is."""
    return f"picture {row.seed + 1}" if row.numbered else f"seed {row.seed}"


def _by_key(folder: Path) -> Rows:
    rows: Rows = {}
    for row in read_images(folder):
        if (row.prompt_id, row.seed) in rows:
            raise MapoError(
                f"{folder} has two pictures for {_name([row])}. Keep the pictures of one model in a folder."
            )
        rows[row.prompt_id, row.seed] = row
    if not rows:
        raise MapoError(f"{folder} has no pictures in its manifest.jsonl. Make some with `mapo sample`.")
    return rows


def _name(rows: Sequence[ImageRow]) -> str:
    named = "; ".join(f"{r.prompt!r} {told_seed(r)}" for r in rows[:5])
    return f"{named} and {len(rows) - 5} more" if len(rows) > 5 else named
