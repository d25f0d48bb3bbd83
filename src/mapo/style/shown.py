"""What is shown of a model before and after its training: pictures of prompts that it was not trained on, and of what
they tell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mapo.encode.frame import Frame
from mapo.pairs import PairSet
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, open_picture, read_images
from mapo.score.scorers.choice import only_neutral
from mapo.style import copies
from mapo.style.asked import Asked
from mapo.style.stages import digest_of
from mapo.texts import read_object, write_json

LOG = logging.getLogger(__name__)

SEEDS = (0, 1)  # of the pictures before and after
BOTH = ("before", "after")
COPIES = "copies.json"
SCORES = ("before-scores.parquet", "after-scores.parquet")  # that the report lays beside itself


def untrained(prompts: Iterable[str], *sets: Path) -> list[str]:
    """Those prompts that none of the sets trains on, each once."""
    return others(prompts, (pair.prompt for pairs in sets for pair in PairSet(pairs) if pair.split == "train"))


def others(prompts: Iterable[str], trained: Iterable[str]) -> list[str]:
    """Those prompts that are none of the ``trained`` ones, each once."""
    known = {prompt_id(prompt) for prompt in trained}
    return [*dict.fromkeys(prompt for prompt in prompts if prompt_id(prompt) not in known)]


def frames_in(pairs: Path) -> list[Frame]:
    """The frames of the pictures of a set, which were cut to them."""
    return [Frame(int(height), int(width)) for width, height in PairSet(pairs).image_sizes()]


def compare(asked: Asked, run: Path) -> str | None:
    """Write ``report.html`` about the pictures before and after; its verdict, or None where nobody scores."""
    from mapo.report.verb import report

    out, scorer = asked.out, asked.scorer

    if scorer is None and only_neutral({out / name: read_images(out / name) for name in BOTH}):
        LOG.warning(
            "No scorer that knows better from worse is on this machine, so there is no report. Look at "
            "after/grid.png, or name one with --scorer, which is fetched once."
        )
        return None
    found = read_object(out / COPIES, "what was found of copies", "Delete it.")
    nearest: dict[str, str] = {}  # of each picture the drawing that is most like it
    for one in found["nearest"]:
        nearest.setdefault(one["own"], one["drawing"])
    likest = [(asked.pictures / own, drawing) for own, drawing in nearest.items()]
    more = replace(asked.beside(), says=asked.found_of(found), nearest=likest)
    page = out / "report.html"
    numbers = report(out / "before", out / "after", page, scorer=scorer, goal=asked.goal, run=run, more=more)
    return str(numbers["verdict"])


def compared_from(asked: Asked) -> list[str]:
    """What the report is made from."""
    sources = [*(f"{name}/manifest.jsonl" for name in BOTH), COPIES]
    return [asked.scorer or "", asked.goal or "", *(digest_of(asked.out / name) for name in sources)]


def write_copies(
    out: Path, pictures: Path, names: Sequence[str], among: Callable[[str], bool] = bool,
    look: copies.Look = copies.HASH,
) -> dict[str, Any]:  # fmt: skip
    """Compare the drawings before and after with the pictures of these names, in ``out/copies.json`` and returned.

    ``among`` says of which prompts.
    """
    own = copies.read_folder(pictures, names)
    known = copies.seen(own, look)
    among_own = copies.closest([known, copies.seen(own, look, mirrored=True)], known, look)
    near = list[list[copies.Nearest]]()
    for name in BOTH:
        rows = {row.file: row for row in read_images(out / name) if among(row.prompt)}
        drawings = copies.LazyPictures(list(rows), partial(_open, out / name, rows))
        ways = [copies.seen(drawings, look, mirrored=mirrored) for mirrored in (False, True)]
        near.append(copies.closest(ways, known, look))
    found = copies.compared(among_own, near[0], near[1], look)
    write_json(out / COPIES, found)
    return found


def _open(folder: Path, rows: Mapping[str, ImageRow], name: str) -> Image:
    return open_picture(folder, rows[name])


def leave(run: Path, form: str, file: Path, embedding: Path | None = None) -> None:
    """Write what other programs take of a run, in place of what a command wrote that was killed right after it.

    ``embedding`` is where its token is left.
    """
    from mapo.export.verb import export

    file.unlink(missing_ok=True)
    export(str(run), form, file, embedding=embedding)
