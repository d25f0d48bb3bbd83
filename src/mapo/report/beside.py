"""What stands beside the verdict: pictures that a model was to learn from, numbers by kind of prompt, other metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mapo.pages.thumbs import shrink
from mapo.pairs.pictures import decode_picture
from mapo.report.evidence import FOLLOWING, Comparison, of_pairs
from mapo.sample.beside import Beside
from mapo.sample.folder import Rows, open_picture
from mapo.score.scorers import FLAWS

LIKEST = 4  # pictures that are shown with the drawing that is most like them


def shown_beside(more: Beside, after: Path, second: Rows) -> dict[str, Any]:
    """The pictures to learn from for the template, and which drawings ``second`` in ``after`` are most like them."""
    rows = {row.file: row for row in second.values()}
    likest = [(own, rows[file]) for own, file in more.nearest if file in rows][:LIKEST]
    return {
        "title": more.title,
        "says": more.says,
        "pictures": [_thumb(_opened(path), path in more.veiled) for path in more.some()],
        "likest": [
            (_thumb(_opened(own), own in more.veiled), _thumb(open_picture(after, row), own in more.veiled), row.prompt)
            for own, row in likest
        ],
    }


def _opened(path: Path) -> Image:
    return decode_picture(path.read_bytes())


def _thumb(picture: Image, veiled: bool) -> dict[str, Any]:
    source, _, tiny = shrink(picture)
    return {"source": source, "tiny": tiny, "size": picture.size, "veiled": veiled}


def by_kind(
    headline: Comparison | None, following: Sequence[Comparison], kinds: Mapping[str, str]
) -> list[tuple[str, Comparison]]:
    """The headline, and by the same scorer how prompts are followed, over the prompts of each kind alone.

    Nothing where all prompts are of one kind, or nothing of it is known.
    """
    lead = headline or next(iter(following), None)
    if lead is None:
        return []
    shown = [lead, *(c for c in following if c.scorer == lead.scorer and c is not lead)]
    names = list(dict.fromkeys(kinds[p.prompt_id] for c in shown for p in c.pairs if p.prompt_id in kinds))
    of_kind = (
        (name, c, [pair for pair in c.pairs if kinds.get(pair.prompt_id) == name]) for name in names for c in shown
    )
    return [(name, of_pairs(c, pairs)) for name, c, pairs in of_kind if pairs] if len(names) > 1 else []


def aside(comparisons: Sequence[Comparison], goal: str | None) -> list[Comparison]:
    """Those that play no part: of scorers that say the goal, their other metrics; and what changed in no picture.

    People, prompt following, and flaws that changed always play one.
    """
    wanted = (goal or "").removeprefix("-")
    givers = {c.scorer for c in comparisons if c.metric == wanted}
    found = [c for c in comparisons if _is_aside(c, wanted, givers)]
    return found if len(found) < len(comparisons) else []


def _is_aside(comparison: Comparison, wanted: str, givers: Collection[str]) -> bool:
    if comparison.panel or comparison.metric == wanted or comparison.metric in FOLLOWING:
        return False
    if comparison.scorer in givers and comparison.metric not in FLAWS:
        return True
    return not any(pair.difference for pair in comparison.pairs)
