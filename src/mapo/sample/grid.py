"""Pictures of several seeds or models side by side: one PNG with a row for each prompt."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.errors import MapoError, count
from mapo.files import replacing
from mapo.pairs.pictures import decode_picture
from mapo.pairs.splits import prompt_id
from mapo.sample.beside import NOTHING, Beside
from mapo.sample.folder import ImageRow, Key, open_picture, png_bytes, read_images

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

LOG = logging.getLogger(__name__)

GRID = "grid.png"
MOST_ROWS, MOST_COLUMNS = 40, 16
LEAST_SIDE, MOST_SIDE = 96, 256  # of a picture in the grid, its longer one
TEXT_WIDTH, LINE, GAP, FONT_SIZE = 240, 18, 6, 13
GREY = "#6b6b70"


@dataclass(frozen=True)
class Column:
    """An images folder and its pictures by prompt and seed."""

    folder: Path
    rows: Mapping[Key, ImageRow]


def pictures_of(folder: Path, prompts: Sequence[str], seeds: Sequence[int]) -> Column:
    """The pictures of these prompts and seeds in an images folder; MapoError where it lacks some."""
    rows = {(row.prompt_id, row.seed): row for row in read_images(folder)}
    wanted = [(prompt_id(prompt), seed) for prompt in prompts for seed in seeds]
    if lacking := [(prompt, seed) for prompt in prompts for seed in seeds if (prompt_id(prompt), seed) not in rows]:
        raise MapoError(
            f"--compare: {folder} lacks {count(len(lacking), 'picture')} of these prompts and seeds, the first of them "
            f"{lacking[0][0]!r} with seed {lacking[0][1]}. Draw them with the same --prompts and --seeds."
        )
    return Column(folder, {key: rows[key] for key in wanted})


def write_grid(
    path: Path, columns: Sequence[Column], prompts: Sequence[str], seeds: Sequence[int], more: Beside = NOTHING
) -> None:
    """Lay pictures out in a PNG: a row for each prompt; for each seed a column of every folder.

    The first :data:`MOST_ROWS` prompts and as many seeds as have room are shown. ``more`` stands above them and beside
    the prompts.
    """
    from PIL import Image, ImageDraw

    prompts = list(dict.fromkeys(prompts))
    shown, numbers = prompts[:MOST_ROWS], seeds[: max(1, MOST_COLUMNS // len(columns))]
    if len(shown) < len(prompts) or len(numbers) < len(seeds):
        LOG.info(
            f"{path.name} shows the first {len(shown)} of {count(len(prompts), 'prompt')} and {len(numbers)} of "
            f"{count(len(seeds), 'seed')}."
        )
    places = [(column, seed) for seed in numbers for column in columns]
    first = open_picture(columns[0].folder, columns[0].rows[prompt_id(shown[0]), numbers[0]])
    width, height = _cell(first.size)
    labels = [_label(column, seed, len(columns) > 1, len(numbers) > 1) for column, seed in places]
    own = more.some(2 * len(places), veiled=False)
    above = -(-len(own) // len(places)) * (height + GAP) + 2 * GAP if own else 0
    head = above + max(map(len, labels)) * LINE + 2 * GAP
    size = TEXT_WIDTH + len(places) * (width + GAP) + GAP, head + len(shown) * (height + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    if own:
        draw.text((GAP, GAP), _lines(draw, more.title, font, TEXT_WIDTH - 2 * GAP, 1)[0], GREY, font)
        _lay_above(sheet, own, len(places), (width, height))
    for number, (column, seed) in enumerate(places):
        left = TEXT_WIDTH + GAP + number * (width + GAP)
        for place, label in enumerate(labels[number]):
            draw.text((left, above + GAP + place * LINE), _lines(draw, label, font, width, 1)[0], "black", font)
        for row, prompt in enumerate(shown):
            picture = open_picture(column.folder, column.rows[prompt_id(prompt), seed])
            sheet.paste(_fitted(picture, width, height), (left, head + row * (height + GAP)))
    for row, prompt in enumerate(shown):
        top = head + row * (height + GAP)
        kind = more.kinds.get(prompt_id(prompt))
        room = max(1, height // LINE - bool(kind))
        lines = _lines(draw, prompt, font, TEXT_WIDTH - 2 * GAP, room)
        for place, line in enumerate([*lines, *([kind] if kind else [])]):
            draw.text((GAP, top + place * LINE), line, GREY if place == len(lines) else "black", font)
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(sheet))


def _lay_above(sheet: Image.Image, own: Sequence[Path], columns: int, cell: tuple[int, int]) -> None:
    """The pictures that a model was to learn from, in as many columns as those of the grid."""
    width, height = cell
    for number, picture in enumerate(own):
        down, across = divmod(number, columns)
        left, top = TEXT_WIDTH + GAP + across * (width + GAP), GAP + down * (height + GAP)
        sheet.paste(_fitted(decode_picture(picture.read_bytes()), width, height), (left, top))


def _label(column: Column, seed: int, several_folders: bool, several_seeds: bool) -> list[str]:
    """What stands above a column, a line each."""
    lines = [column.folder.resolve().name] if several_folders else []
    return [*lines, f"seed {seed}"] if several_seeds or not lines else lines


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture in the grid: small ones are enlarged by a whole number, large ones made smaller."""
    longer = max(size)
    scale = math.ceil(LEAST_SIDE / longer) if longer < LEAST_SIDE else min(1.0, MOST_SIDE / longer)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in its cell, whole."""
    from PIL import Image, ImageOps

    how = Image.Resampling.NEAREST if picture.width < width else Image.Resampling.LANCZOS
    return ImageOps.pad(picture, (width, height), how, "white")


def _font() -> Any:
    """A font that comes with matplotlib and has the letters of more languages than Pillow's own."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)


def _lines(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int, most: int) -> list[str]:
    """The text in lines that are not wider than ``width``, cut with an ellipsis after ``most`` of them."""
    lines, words = [""], text.split()
    for word in words:
        joined = f"{lines[-1]} {word}".strip()
        if draw.textlength(joined, font) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    kept = lines[:most]
    for place, line in enumerate(kept):
        cut = len(lines) > most and place == most - 1
        end = "…" if cut or draw.textlength(line, font) > width else ""
        while line and draw.textlength(line + end, font) > width:
            line = line[:-1]
        kept[place] = line + end
    return kept
