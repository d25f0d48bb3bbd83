"""A folder of generated pictures: PNG files and ``manifest.jsonl``, one row per picture, appended as they are made."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType

from PIL import Image

from mapo.errors import MapoError
from mapo.files import inside, read_object, replacing, sha256, write_text
from mapo.pictures import decode_picture

VERSION = 1
REMEDY = "Make it with `mapo sample`."


@dataclass(frozen=True)
class ImageRow:
    """Everything that it takes to make this picture again (to the bit at the same batch layout and machine)."""

    file: str
    prompt_id: str
    prompt: str
    seed: int
    noise_seed: int  # what the picture's own generator was seeded with
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


def read_images(folder: Path, check_files: bool = True) -> list[ImageRow]:
    """The rows of ``folder/manifest.jsonl``; a half-written last line (an interrupted run) is left out."""
    path = folder / "manifest.jsonl"
    if not path.is_file():
        raise MapoError(f"{folder} is not an images folder: it has no manifest.jsonl. {REMEDY}")
    known = {f.name for f in fields(ImageRow)}
    rows: list[ImageRow] = []
    lines = path.read_bytes().split(b"\n")  # bytes, as an interrupted run may have stopped inside a character
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            row = ImageRow(**{k: v for k, v in values.items() if k in known})
            _check_types(row)
        except (ValueError, TypeError, AttributeError) as error:
            if number == len(lines):
                continue
            raise MapoError(f"{path} line {number} is no row of an images folder ({error}). {REMEDY}") from None
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
    rows = read_images(folder, check_files=False)

    def is_whole(row: ImageRow) -> bool:
        path = inside(folder, row.file, str(folder / "manifest.jsonl"))
        return path.is_file() and sha256(path.read_bytes()) == row.sha256

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        whole = [row for row, good in zip(rows, pool.map(is_whole, rows), strict=True) if good]
    if len(whole) < len(rows):
        write_text(folder / "manifest.jsonl", "".join(_line(row) for row in whole))
    return whole


def _line(row: ImageRow) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def is_sensitive(folder: Path) -> bool:
    """Whether the folder's ``images.json`` marks its pictures, so that pages blur them until asked."""
    if not (folder / "images.json").exists():
        return False
    return bool(read_object(folder / "images.json", "an images folder", REMEDY).get("sensitive"))


def read_picture(folder: Path, row: ImageRow) -> bytes:
    """The PNG bytes of a row, checked against its hash."""
    data = inside(folder, row.file, str(folder / "manifest.jsonl")).read_bytes()
    if sha256(data) != row.sha256:
        raise MapoError(f"{folder / row.file} is not the picture that the manifest names (its hash differs). {REMEDY}")
    return data


def open_picture(folder: Path, row: ImageRow) -> Image.Image:
    """The picture of a row, RGB; any thread may ask."""
    try:
        return decode_picture(read_picture(folder, row))
    except ValueError as error:
        raise MapoError(f"{folder / row.file}: {error}. {REMEDY.replace('Make it', 'Make it again')}") from None


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


def append_images(folder: Path, rows: list[ImageRow], data: list[bytes] | None) -> None:
    """Write pictures, then their rows: a row is there only when its picture is. ``None``: rows alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, png in zip(rows, data, strict=True) if data is not None else ():
        with replacing(folder / row.file) as temporary:
            temporary.write_bytes(png)
    path = folder / "manifest.jsonl"
    kept = path.read_bytes() if path.exists() else b""
    if kept and not kept.endswith(b"\n"):  # an interrupted write, or a file that was edited by hand
        start = kept.rfind(b"\n") + 1
        with replacing(path) as temporary:
            temporary.write_bytes(kept + b"\n" if _is_json(kept[start:]) else kept[:start])
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(_line, rows)))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
