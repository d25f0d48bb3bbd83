"""Whether pictures that somebody gives look unsafe, where a safety scorer is on this machine, and could show minors.

It is a look, not a proof: a scorer sees some of what is unsafe, and takes harmless pictures for it now and then. So its
findings are told, and refused is only what also could mean minors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mapo import progress
from mapo.build.minors import names_minor
from mapo.captions.beside import named, some
from mapo.captions.ledger import Caption
from mapo.errors import MapoError, count
from mapo.pairs.pictures import decode_picture
from mapo.score.scorers import load_scorer
from mapo.score.scorers.choice import lacks
from mapo.style.stages import Stage
from mapo.texts import write_json

LOG = logging.getLogger(__name__)

METRICS = {"nsfw": "nsfw", "safety": "unsafe"}  # of the scorers, the first that is at hand looks
UNSAFE = 0.5
SCREENED = "screen.json"
NOBODY = 'no safety scorer is on this machine; pip install "mapo[safety]" brings one'


def screener() -> str | None:
    """The safety scorer that is on this machine."""
    return next((name for name in METRICS if lacks(name) is None), None)


def screen(folder: Path, captions: Sequence[Caption], scorer: str, out: Path) -> str:
    """Let a scorer look at the pictures of a folder, and write its numbers to ``out``; what it found.

    MapoError where a picture looks unsafe and its caption could mean minors.
    """
    judge, metric = load_scorer(scorer), METRICS[scorer]
    values: dict[str, float] = {}
    with progress.bar(total=len(captions), desc="screen", unit="picture") as bar:
        for one in captions:
            picture = decode_picture((folder / one.file).read_bytes())
            values[one.file] = float(judge([picture], [one.caption])[metric][0] or 0.0)
            bar.update()
    unsafe = {name: value for name, value in values.items() if value > UNSAFE}
    refuse_minors(folder, [one for one in captions if one.file in unsafe], f"{scorer} takes pictures for unsafe")
    write_json(out, {"by": scorer, "metric": metric, "unsafe_above": UNSAFE, "pictures": values})
    if not unsafe:
        return f"{scorer} takes none of {count(len(values), 'picture')} for unsafe"
    shown = [f"{name} ({value:.2f})" for name, value in sorted(unsafe.items(), key=lambda item: -item[1])]
    LOG.warning(
        f"{folder}: {some(shown, 'picture looks', 'pictures look')} unsafe to {scorer}: {named(shown)}. Look at them. "
        '"keep": false in its line of captions.jsonl leaves a picture out.'
    )
    return f"{scorer} takes {len(unsafe)} of {count(len(values), 'picture')} for unsafe: {named(shown)}"


def screening(
    folder: Path, scorer: str, out: Path, captions: Callable[[], list[Caption]], seen: Callable[[], list[str]]
) -> Stage:
    """The stage that lets a scorer look at the pictures of a folder, as they and their captions are then."""

    def look() -> str:
        return screen(folder, captions(), scorer, out / SCREENED)

    return Stage("screen", "whether a picture looks unsafe", (SCREENED,), lambda: [scorer, *seen()], look)


def refuse_minors(folder: Path, captions: Sequence[Caption], why: str) -> None:
    """MapoError names the pictures whose caption, or what it was made from, could mean minors; ``why`` that matters."""
    found = {one.file: names_minor(f"{one.caption}\n{one.raw}") for one in captions if one.keep}
    if shown := [f"{name} (“{word}”)" for name, word in found.items() if word]:
        raise MapoError(
            f"{folder}: {why}, and {some(shown, 'caption', 'captions')} could mean minors: {named(shown)}. Nothing is "
            "made of them. Take these pictures out."
        )
