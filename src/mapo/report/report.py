"""The answer a person can read: one self-contained page with pictures, win rates and intervals, before and after."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mapo.errors import MapoError, count
from mapo.files import prepare_file, write_text
from mapo.pages.templates import environment
from mapo.pages.thumbs import spread
from mapo.pairs.splits import prompt_id
from mapo.report.cards import Cards, count_gains, extremes, strip
from mapo.report.curves import draw_curves, read_metrics
from mapo.report.distributions import count_changes, draw_distribution
from mapo.report.evidence import (
    FOLLOWING,
    PREFERENCE,
    Comparison,
    Guard,
    cautions,
    compare,
    read_evidence,
    scores_without,
    without_prompts,
)
from mapo.report.guards import compare_guards, warning
from mapo.report.maker import check_run
from mapo.report.people import compare_people, read_people
from mapo.report.training import Training, read_config, read_training
from mapo.report.verdict import Verdict, based_on, followed, judge, number, percent, places, signed, span, told_by
from mapo.sample.folder import Rows, check_pictures, is_sensitive, read_pictures
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
) -> dict[str, Any]:
    """Write a page about two folders of pictures of the same prompts and seeds; return its numbers.

    ``scores`` are files of `mapo score` that together cover both folders, of which only what ``scorers`` said is taken
    (None: all); ``votes`` are those of `mapo label` on the two.
    ``goal`` is the metric that training was for, ``-metric`` when lower is better; without one it is what people
    prefer, where there are votes. ``run`` adds training curves, configuration and what is known of its pairs: prompts
    that it was trained on are left out of everything, and the judges that made or filtered its pairs are marked, as
    are ``judges_of_pairs``. ``blur`` hides the pictures until the reader asks, as is done by itself when a run trained
    on a sensitive set made some of them. In the result win rates are shares of 1, and a bound that the data cannot
    give is None.

    Raises MapoError when pictures are missing or their seeds do not match, when scores or votes are stale or
    incomplete, when the run did not make the pictures after, and when all prompts were trained on.
    """
    check_out(out, [*scores, *votes])
    first, second = read_pictures(before, after)
    tables = read_evidence(scores, first, second, may_be_empty=bool(votes), scorers=scorers)
    cast = read_people(votes, first, second)
    training = read_training(run) if run else Training()
    about_run = check_run(run, after, second) if run else []
    seen = {r.prompt_id for r in first.values() if prompt_id(r.prompt) in training.prompts}
    prompts = len({r.prompt_id for r in first.values()})
    first, second = (without_prompts(rows, seen) for rows in (first, second))
    if not first:
        raise MapoError(
            f"{run} was trained on {'the one prompt' if len(seen) == 1 else f'all {len(seen)} prompts'} of "
            "these pictures, so they say nothing about others. "
            "Sample both models from prompts that are held out."
        )
    one, two = (scores_without(table, seen) for table in tables)
    judges = sorted({*judges_of_pairs, *training.judges})
    if goal == PREFERENCE and not votes:
        raise MapoError(f"--goal {PREFERENCE} is what people say. Give their --votes.")
    comparisons, without_numbers = compare(one, two, len(first), None if goal == PREFERENCE else goal, judges)
    guards, guards_without_numbers = compare_guards(one, two)
    if cast:
        comparisons.insert(0, compare_people(cast, first, second, training.annotators))
    if not comparisons:
        why = " ".join(without_numbers) or (
            "Guards know no better or worse. Score both folders by another scorer too, or let people judge with `mapo "
            "label`."
            if guards or guards_without_numbers
            else "Run `mapo score` on both folders first."
        )
        raise MapoError(f"There are no scores to compare these pictures by. {why}")
    verdict = judge(comparisons, goal, (len(seen), prompts))
    for folder, rows in ((before, first), (after, second)):
        check_pictures(folder, rows.values())
    warnings = [warning(g) for g in guards if g.warns] + cautions(first, second, comparisons)
    warnings += [*without_numbers, *guards_without_numbers, *about_run, *_about_prompts(training, seen, run, second)]
    summary = _plain(_summary(first, second, comparisons, guards, verdict, goal, judges, warnings))
    page = _environment().get_template("page.html.j2").render(
        sensitive=blur or is_sensitive(before) or is_sensitive(after) or _sensitive(run),
        verdict=verdict,
        summary=summary,
        cautions=warnings,
        comparisons=comparisons,
        guards=guards,
        following=[c for c in comparisons if c.metric in FOLLOWING],
        pairs=len(first),
        numbered=any(row.numbered for row in (*first.values(), *second.values())),
        **_pictures(before, after, first, second, verdict.headline or comparisons[0], verdict),
        **_plots(comparisons, guards),
        curves=_marked(draw_curves(read_metrics(run)) if run else []),
        strip=strip(run) if run else {"steps": []},
        config=read_config(run) if run else "",
        run=str(run) if run else "",
        training=training,
        provenance=_provenance(before, after, first, second),
        files=[str(p) for p in (*scores, *votes)],
        limits=(MIN_PAIRS, MIN_PROMPTS),
    )  # fmt: skip
    write_text(out, page)
    return dict(summary)


def check_out(out: Path, read: Sequence[Path]) -> None:
    """Refuse a page that would be written over a folder, or over what it is made from."""
    if out.exists() and any(path.exists() and path.samefile(out) for path in read):
        raise MapoError(f"--out: {out} is also given as --scores or --votes. Choose another name for the page.")
    prepare_file(out, "an HTML page", b"<!doctype html", "report.html")


def _about_prompts(training: Training, seen: set[str], run: Path | None, after: Rows) -> list[str]:
    """Whether the prompts are held out, as far as that can be known."""
    found: list[str] = []
    if seen:
        found.append(
            f"{count(len(seen), 'prompt')} {'was' if len(seen) == 1 else 'were'} trained on; "
            f"{'its' if len(seen) == 1 else 'their'} pictures and scores are left out of this page, whose "
            "numbers are those of held-out prompts."
        )
    for folder in training.lost:
        found.append(
            f"The pairs {folder} that the run was trained on cannot be opened, so it is not known whether these "
            "prompts are held out, nor which judges made the pairs."
        )
    models = sorted({r.model for r in after.values() if Path(r.model).is_absolute()})
    if run is None and models:
        found.append(
            f"{models[0]} made the pictures after, and without --run it was not looked up whether these prompts are "
            "held out, nor which judges made its pairs."
        )
    return found


def _pictures(
    before: Path, after: Path, first: Rows, second: Rows, shown: Comparison, verdict: Verdict
) -> dict[str, Any]:
    """The template's pictures: pairs that are spread over the prompts, and the largest gains and losses."""
    keys = list(first)
    some = [keys[i] for i in spread([k[0] for k in keys], SHOWN_PAIRS)]
    best, worst = ([(p.prompt_id, p.seed) for p in pairs] for pairs in extremes(verdict.headline))
    cards = Cards(before, after, first, second, [*some, *best, *worst], shown)
    return {
        "cards": [cards.card(key) for key in some],
        "best": [cards.card(key) for key in best],
        "worst": [cards.card(key) for key in worst],
        "counts": count_gains(verdict.headline),
        "first_pairs": FIRST_PAIRS,
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


def _summary(
    first: Rows,
    second: Rows,
    comparisons: Sequence[Comparison],
    guards: Sequence[Guard],
    verdict: Verdict,
    goal: str | None,
    judges: list[str],
    warnings: list[str],
) -> dict[str, Any]:
    rows = [
        {
            "scorer": c.scorer,
            "metric": c.metric,
            "version": c.version,
            "lower_is_better": c.lower_is_better,
            "made_pairs": c.made_pairs,
            "pictures_without_a_number": sum(c.unnumbered),
            "win_rate": asdict(c.win),
            "before": asdict(c.before),
            "after": asdict(c.after),
            "difference": asdict(c.difference),
            **({"people": asdict(c.panel)} if c.panel else {}),
        }
        for c in comparisons
    ]
    found = next((i for i, c in enumerate(comparisons) if c is verdict.headline), None)
    intervals = ("before", "after", "difference")
    return {
        "version": 2,
        "verdict": verdict.sentence,
        "detail": verdict.detail,
        "call": verdict.call,
        "goal": goal,
        "judges_of_pairs": judges,
        "headline": None if found is None else rows[found],
        "comparisons": rows,
        "prompt_following": [r for r in rows if r["metric"] in FOLLOWING],
        "guards": [
            {"metric": g.metric, "spread": g.spread, "shift": g.shift, "warns": g.warns}
            | {name: asdict(getattr(g, name)) for name in intervals}
            for g in guards
        ],
        "cautions": warnings,
        "pairs": len(first),
        "prompts": len({k[0] for k in first}),
        "models": {
            side: sorted({r.model for r in pictures.values()})
            for side, pictures in (("before", first), ("after", second))
        },
    }


def _plain(value: Any) -> Any:
    """The same with bounds that are not known as null, which JSON can say."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["write_report"]
