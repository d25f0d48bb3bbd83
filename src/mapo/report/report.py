"""The answer a person can read: one self-contained page with pictures, win rates and intervals, before and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mapo.errors import MapoError, count
from mapo.files import prepare_file, write_text
from mapo.pages.templates import environment
from mapo.pages.thumbs import spread
from mapo.report.beside import aside, by_kind, shown_beside
from mapo.report.cards import Cards, count_gains, extremes, first_alike, strip
from mapo.report.compared import compare_folders
from mapo.report.curves import draw_curves, read_metrics
from mapo.report.distributions import count_changes, draw_distribution
from mapo.report.evidence import (
    FOLLOWING,
    Comparison,
    Guard,
)
from mapo.report.training import read_config
from mapo.report.verdict import Verdict, based_on, followed, number, percent, places, signed, span, told_by
from mapo.sample.beside import NOTHING, Beside
from mapo.sample.folder import Rows, is_sensitive
from mapo.statistics import MIN_PAIRS, MIN_PROMPTS
from mapo.texts import read_object

SHOWN_PAIRS = 250
UNKNOWN = "not known"
FIRST_PAIRS = 12  # in sight at once; the others unfold


def write_report(
    before: Path,
    after: Path,
    scores: Sequence[Path],
    out: Path,
    goal: str | None = None,
    run: Path | None = None,
    judges_of_pairs: Sequence[str] = (),
    votes: Sequence[Path] = (),
    blur: bool = False,
    scorers: Collection[str] | None = None,
    more: Beside = NOTHING,
) -> dict[str, Any]:
    """Write a page about two folders of pictures of the same prompts and seeds; return its numbers.

    ``scores`` are files of `mapo score` that together cover both folders, of which only what ``scorers`` said is taken
    (None: all); ``votes`` are those of `mapo label` on the two.
    ``goal`` is the metric that training was for, ``-metric`` when lower is better; without one it is what people
    prefer, where there are votes. ``run`` adds training curves, configuration and what is known of its pairs: prompts
    that it was trained on are left out of everything, and the judges that made or filtered its pairs are marked, as
    are ``judges_of_pairs``. ``blur`` hides the pictures until the reader asks, as is done by itself when a run trained
    on a sensitive set made some of them. ``more`` is shown beside the pictures. In the result win rates are shares of
    1, and a bound that the data cannot give is None.

    Raises MapoError when pictures are missing or their seeds do not match, when scores or votes are stale or
    incomplete, when the run did not make the pictures after, and when all prompts were trained on.
    """
    check_out(out, [*scores, *votes])
    found = compare_folders(before, after, scores, goal, run, judges_of_pairs, votes, scorers, more.shows)
    first, second, shown = found.first, found.second, found.verdict.headline or found.comparisons[0]
    others = aside(found.comparisons, goal)
    told = [c for c in found.comparisons if c not in others]
    following = [c for c in found.comparisons if c.metric in FOLLOWING]
    page = _environment().get_template("page.html.j2").render(
        sensitive=blur or is_sensitive(before) or is_sensitive(after) or _sensitive(run),
        verdict=found.verdict,
        summary=found.summary(),
        cautions=found.warnings,
        comparisons=found.comparisons,
        told=told,
        aside=others,
        kinds=by_kind(found.verdict.headline, following, more.kinds),
        own=shown_beside(more, after, second),
        guards=found.guards,
        following=following,
        pairs=len(first),
        numbered=any(row.numbered for row in (*first.values(), *second.values())),
        **_pictures(before, after, first, second, shown, found.verdict, more.kinds),
        **_plots(told, found.guards),
        curves=_marked(draw_curves(read_metrics(run)) if run else []),
        strip=strip(run) if run else {"steps": []},
        config=read_config(run) if run else "",
        run=str(run) if run else "",
        training=found.training,
        provenance=_provenance(before, after, first, second),
        files=[str(p) for p in (*scores, *votes)],
        limits=(MIN_PAIRS, MIN_PROMPTS),
    )  # fmt: skip
    write_text(out, page)
    return found.summary()


def check_out(out: Path, read: Sequence[Path]) -> None:
    """Refuse a page that would be written over a folder, or over what it is made from."""
    if out.exists() and any(path.exists() and path.samefile(out) for path in read):
        raise MapoError(f"--out: {out} is also given as --scores or --votes. Choose another name for the page.")
    prepare_file(out, "an HTML page", b"<!doctype html", "report.html")


def _pictures(
    before: Path, after: Path, first: Rows, second: Rows, shown: Comparison, verdict: Verdict, kinds: Mapping[str, str]
) -> dict[str, Any]:
    """The template's pictures: pairs that are spread over the prompts, and the largest gains and losses."""
    keys = list(first)
    some = [keys[i] for i in spread([k[0] for k in keys], SHOWN_PAIRS)]
    best, worst = ([(p.prompt_id, p.seed) for p in pairs] for pairs in extremes(verdict.headline))
    cards = Cards(before, after, first, second, [*some, *best, *worst], shown, kinds)
    return {
        "cards": [cards.card(key) for key in some],
        "best": [cards.card(key) for key in best],
        "worst": [cards.card(key) for key in worst],
        "counts": count_gains(verdict.headline),
        "first_pairs": FIRST_PAIRS,
        "start": first_alike(before, after, [(first[key], second[key]) for key in some[:FIRST_PAIRS]]),
    }


def _plots(comparisons: Sequence[Comparison], guards: Sequence[Guard]) -> dict[str, Any]:
    """The template's distributions: of numbers a histogram each, of yes and no how the answers changed."""
    numbers = [c for c in comparisons if not c.rate and not c.panel]
    plots = [
        draw_distribution(c.metric.replace("_", " "), _in_words(c, c.scorer), c.pairs, f"metric{i}")
        for i, c in enumerate(numbers)
    ]
    guarded = [
        draw_distribution(g.metric.replace("_", " "), _in_words(g), g.pairs, f"guard{i}") for i, g in enumerate(guards)
    ]
    changes = [(c, count_changes(c.pairs)) for c in comparisons if c.rate and not c.panel]
    return {"distributions": _marked(plots), "guard_plots": _marked(guarded), "changes": changes}


def _in_words(found: Comparison | Guard, scorer: str = "") -> str:
    by = f"{scorer}. " if scorer else ""
    first, second = (number(side, False, places(found)) for side in (found.before, found.after))
    return f"{by}Mean {first} before, {second} after."


def _marked(plots: Sequence[Any]) -> list[tuple[str, str, Markup]]:
    return [(p.title, p.note, Markup(p.svg)) for p in plots]  # drawn here, holds no foreign text


def _sensitive(run: Path | None) -> bool:
    """Whether the run was trained on a set that is marked sensitive."""
    path = run / "run.json" if run else None
    if not path or not path.is_file():
        return False
    return bool(read_object(path, "a run", "Give a folder that `mapo train` made.").get("sensitive"))


@lru_cache(1)
def _environment() -> jinja2.Environment:
    return environment(
        Path(__file__).parent,
        percent=percent, number=number, signed=signed, span=span, followed=followed, told_by=told_by,
        places=places, based_on=based_on, count=count,
        words=lambda n: n.replace("_", " "),
    )  # fmt: skip


def _provenance(before: Path, after: Path, first: Rows, second: Rows) -> list[tuple[str, str, str]]:
    """Name, before, after: how the pictures were made."""

    def told(rows: Rows, name: str) -> str:
        if any(r.foreign for r in rows.values()):
            return UNKNOWN
        values = sorted({getattr(r, name) for r in rows.values()})
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values if v != "") or "none"

    def seeds(rows: Rows) -> str:
        if any(r.numbered for r in rows.values()):
            return UNKNOWN
        values = sorted({r.seed for r in rows.values()})
        return ", ".join(map(str, values)) if len(values) <= 8 else f"{len(values)} from {values[0]} to {values[-1]}"

    def sizes(rows: Rows) -> str:
        found = [f"{w} × {h}" for w, h in sorted({(r.width, r.height) for r in rows.values()})]
        return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")

    table = [("folder", str(before), str(after))]
    for name in ("model", "revision", "sampler", "steps", "guidance", "prefix", "negative_prompt"):
        values = told(first, name), told(second, name)
        if not {"none", UNKNOWN}.issuperset(values):
            table.append((name.replace("_", " "), *values))
    table.append(("size in pixels", sizes(first), sizes(second)))
    table.append(("seeds", seeds(first), seeds(second)))
    table.append(("prompts", str(len({k[0] for k in first})), str(len({k[0] for k in second}))))
    table.append(("pictures", str(len(first)), str(len(second))))
    return table


__all__ = ["write_report"]
