"""The tables of a study as a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mapo.lab.study.domains import DOMAINS
from mapo.lab.study.estimates import Percent
from mapo.statistics import MIN_PROMPTS


def as_markdown(tables: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """What was found, in tables; ``titles`` are the names of methods that people read."""
    blocks = [
        _scores(tables["rows"], titles),
        _leads(tables["leads"], titles),
        _ranks(tables["ranks"], titles),
        _means(tables["means"], titles),
        _mismatches(tables["mismatch"]),
        _costs(tables["cost"], titles) if tables["cost"] else "",
        _settings(tables["tuned"], titles),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, or an empty text where nothing was found."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]) if lines else ""


def _scores(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    base = {row["domain"]: row["error chosen"] for row in rows if row["method"] == "base"}

    def told(row: Mapping[str, Any]) -> list[object]:
        error, untrained = row["error chosen"], base.get(row["domain"])
        return [
            DOMAINS[row["domain"]].title,
            row["pairs"],
            titles[row["method"]],
            f"{row['seeds']}" + (f" ({row['diverged']} diverged)" if row.get("diverged") else ""),
            *(Percent(**row[what]) for what in ("score", "reached", "followed")),
            f"{row['diversity']:.1f}" if row["diversity"] else "-",
            f"{error / untrained:.2f}" if error is not None and untrained else "-",
        ]

    heads = "domain", "pairs", "method", "seeds", "score", "reached", "followed", "diversity", "error of chosen / base"
    return _table(heads, map(told, rows))


def _leads(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    def told(row: Mapping[str, Any]) -> list[object]:
        lead = Percent(row["value"], row["low"], row["high"]).signed + ("" if row["sure"] else " (not sure)")
        return [DOMAINS[row["domain"]].title, row["pairs"], titles[row["method"]], lead]

    return _table(("domain", "pairs", "method", "lead over Diffusion-DPO, points"), map(told, rows))


def _ranks(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    def told(row: Mapping[str, Any]) -> list[object]:
        groups = ("; ".join(titles[m] for m in row[name]) or "none" for name in ("best", "level", "worse"))
        return [DOMAINS[row["domain"]].title, row["pairs"], *groups]

    return _table(("domain", "pairs", "highest score", "cannot be told from it", "surely worse"), map(told, rows))


def _means(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    def told(row: Mapping[str, Any]) -> list[object]:
        behind = Percent(**row["behind"]).signed if row["behind"] else "-"
        lowest, mean = f"{100 * row['least']:.0f}", f"{100 * row['mean']:.1f}"
        return [row["pairs"], titles[row["method"]], row["domains"], lowest, mean, behind]

    heads = "pairs", "method", "domains", "lowest score", "mean score", "behind the highest mean, points"
    return _table(heads, map(told, rows))


def _mismatches(rows: Sequence[Mapping[str, Any]]) -> str:
    def told(row: Mapping[str, Any]) -> list[object]:
        number = f"{row['gap']['prompts']}" + ("" if row["gap"]["prompts"] >= MIN_PROMPTS else " (too few)")
        distances = (_three(row[name]) for name in ("distance", "floor"))
        gaps = (_three(row[name], 100, 0) for name in ("gap", "gap of rejected"))
        return [DOMAINS[row["domain"]].title, number, *distances, *gaps]

    of_chosen = "prompts", "distance of chosen", "of its own samples", "gap of chosen, %", "gap of rejected, %"
    return _table(("domain", *of_chosen), map(told, rows))


def _costs(cost: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    heads = "method", f"ms per step of {cost['pairs_per_step']} pairs", "peak memory, MiB"
    found = cost["methods"].items()
    return _table(heads, ([titles[m], f"{c['ms_per_step']:.0f}", f"{c['peak_mib']:.0f}"] for m, c in found))


def _settings(tuned: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    def told(name: str) -> list[object]:
        domain, method = name.split()
        best = tuned[name]["result"]
        score = "diverged" if best["value"] < 0 else f"{100 * best['value']:.0f}"
        settings = ", ".join(f"{k} {v:g}" for k, v in best["settings"].items())
        return [DOMAINS[domain].title, titles[method], settings, best["steps"], score, _inside(tuned[name])]

    heads = "domain", "method", "settings", "steps", "score on validation", "inside what was tried"
    return _table(heads, map(told, tuned))


def _inside(found: Mapping[str, Any]) -> str:
    return "no setting helped" if not found["helped"] else "yes" if found["interior"] else "no"


def _three(interval: Mapping[str, Any], times: float = 1, digits: int = 3) -> str:
    """A value and its interval."""
    value, low, high = (f"{times * interval[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
