"""The study's figures: score against number of pairs, and the lead over Diffusion-DPO against mismatch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mapo.files import replacing
from mapo.lab.study.domains import DOMAINS, MADE_BY
from mapo.lab.study.estimates import Cell, Key, Percent, estimate
from mapo.lab.study.runs import ResultsFile
from mapo.lab.study.search import value
from mapo.statistics import MIN_PROMPTS

COLOURS = {
    "sft": "#8a6d3b", "dpo": "#d1495b", "mapo": "#1f6fb2", "mapo_aaai": "#59a5d8",
    "mapo_relative": "#2a9d63",
}  # fmt: skip


def draw_figures(out: Path, cells: Mapping[Key, Cell], titles: Mapping[str, str], tables: Mapping[str, Any]) -> None:
    """Write the PNG files into ``out/figures``."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        _save(_by_pairs(cells, titles), out / "figures" / "score-by-pairs.png")
        if tables.get("mismatch") and tables["leads"] and (by_mismatch := _by_mismatch(tables, titles)):
            _save(by_mismatch, out / "figures" / "lead-by-mismatch.png")
        if ablation := _ablation(out, titles):
            _save(ablation, out / "figures" / "beta.png")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", facecolor="white")


def _legend(figure: Figure, columns: int) -> None:
    """One legend above all panels, with what is in any of them."""
    known = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(known.values()), list(known), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False
    )


def _by_pairs(cells: Mapping[Key, Cell], titles: Mapping[str, str]) -> Figure:
    """A panel per domain: score with its interval against the number of pairs, a line per method."""
    domains = [d for d in DOMAINS if any(key[0] == d for key in cells)]
    columns = min(3, len(domains))
    lines = -(-len(domains) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * lines))
    sizes = sorted({key[2] for key in cells})
    for number, domain in enumerate(domains):
        axes = figure.add_subplot(lines, columns, number + 1)
        base = cells.get((domain, "base", 0))
        methods = [m for m in titles if m != "base" and any(k[:2] == (domain, m) for k in cells)]
        for shift, method in enumerate(methods):
            here = [(n, cells[domain, method, n]) for n in sizes if (domain, method, n) in cells]
            found = ([(0, base)] if base else []) + here
            dodge = 0.045 * (shift - (len(methods) - 1) / 2)
            places = [sizes.index(n) + (dodge if n else 0.0) for n, _ in found]
            values = [estimate(cell.parts("score")) for _, cell in found]
            errors = [[100 * (v.value - v.low) for v in values], [100 * (v.high - v.value) for v in values]]
            axes.errorbar(
                places, [100 * v.value for v in values], errors, color=COLOURS.get(method), label=titles[method],
                marker="o", markersize=3.5, linewidth=1.4, capsize=2, elinewidth=0.9,
            )  # fmt: skip
        axes.set_title(DOMAINS[domain].title, loc="left", fontweight="bold")
        axes.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
        axes.set_ylim(-3, 103)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)
        if number % columns == 0:
            axes.set_ylabel("reached and followed, %")
        if number // columns == lines - 1:
            axes.set_xlabel("pairs in the set")
    _legend(figure, len(titles))
    figure.tight_layout()
    return figure


def _by_mismatch(tables: Mapping[str, Any], titles: Mapping[str, str]) -> Figure | None:
    """The lead of each method over Diffusion-DPO against the measured gap in denoising error, where that is known."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot()
    at = {row["domain"]: row for row in tables["mismatch"] if row["gap"]["prompts"] >= MIN_PROMPTS}
    size = 256 if any(row["pairs"] == 256 for row in tables["leads"]) else max(r["pairs"] for r in tables["leads"])
    rows = [r for r in tables["leads"] if r["pairs"] == size and r["domain"] in at]
    if not rows:
        return None
    for method in titles:
        here = sorted((r for r in rows if r["method"] == method), key=lambda r: at[r["domain"]]["gap"]["value"])
        if not here:
            continue
        x = [100 * at[r["domain"]]["gap"]["value"] for r in here]
        found = [Percent(r["value"], r["low"], r["high"]) for r in here]
        errors = [[100 * (v.value - v.low) for v in found], [100 * (v.high - v.value) for v in found]]
        axes.errorbar(
            x, [100 * v.value for v in found], errors, color=COLOURS.get(method), label=titles[method], marker="o",
            markersize=4, linewidth=0.8, linestyle=":", capsize=2, elinewidth=0.9,
        )  # fmt: skip
    gaps = sorted((100 * at[domain]["gap"]["value"], domain) for domain in {r["domain"] for r in rows})
    close = 0.04 * (gaps[-1][0] - gaps[0][0])
    for number, (gap, domain) in enumerate(gaps):  # of two that are close the second stands on the other side
        beside = number > 0 and gap - gaps[number - 1][0] < close
        axes.annotate(
            DOMAINS[domain].title, (gap, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7,
            xytext=(5 if beside else -3, 0), textcoords="offset points",
            color="#777777", ha="left" if beside else "right", va="bottom",
        )  # fmt: skip
    axes.axhline(0, color=COLOURS["dpo"], linewidth=1)
    axes.set_xlabel("mismatch: by how much the chosen pictures' denoising error exceeds that of own samples, %")
    axes.set_ylabel(f"lead over Diffusion-DPO, points\n({size} pairs)")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def by_beta(out: Path) -> dict[str, dict[str, dict[float, Percent]]]:
    """Score on validation prompts by method, domain and β, from the trials of the search: the best of those with each
    β, one training each. Where the search went on from a β it tried more learning rates, so other points are lower
    bounds, and the intervals are over prompts alone. A domain with fewer scenes than a conclusion takes is left out.
    """
    found: dict[str, dict[str, dict[float, Percent]]] = {}
    ledger = ResultsFile(out / "trials.jsonl").rows.values()
    trials = [row for row in ledger if row["job"]["version"] == DOMAINS[row["job"]["domain"]].version]
    last = min((row["job"]["steps"][-1] for row in trials), default=0)
    for row in trials:
        job, settings = row["job"], dict(row["job"]["settings"])
        if job["steps"][0] > last:
            continue  # the best one, gone further: no other β was given these steps
        looks = [look for look in row["looks"] if "failed" not in look]
        scenes = min(looks[0]["prompts"]) // DOMAINS[job["domain"]].wordings if looks else 0
        if "beta" in settings and scenes >= MIN_PROMPTS:
            points = found.setdefault(job["method"], {}).setdefault(job["domain"], {})
            best = estimate(Cell((max(looks, key=value),), DOMAINS[job["domain"]].wordings).parts("score", MADE_BY))
            if settings["beta"] not in points or best.value > points[settings["beta"]].value:
                points[settings["beta"]] = best
    return found


def _ablation(out: Path, titles: Mapping[str, str]) -> Figure | None:
    """Score on validation prompts against β (:func:`by_beta`), a panel per method."""
    found = by_beta(out)
    if not found:
        return None
    figure = Figure(figsize=(3.1 * len(found), 2.9))
    shades = dict(zip(DOMAINS, ("#1b3a57", "#d17b0f", "#c2334d", "#2a9d63", "#7a5195", "#2f8fc4"), strict=True))
    for number, (method, domains) in enumerate(sorted(found.items(), key=lambda item: list(titles).index(item[0]))):
        axes = figure.add_subplot(1, len(found), number + 1)
        for domain in (d for d in DOMAINS if d in domains):
            betas = sorted(domains[domain])
            found_at = [domains[domain][beta] for beta in betas]
            errors = [[100 * (v.value - v.low) for v in found_at], [100 * (v.high - v.value) for v in found_at]]
            axes.errorbar(
                betas,
                [100 * v.value for v in found_at], errors, marker="o", markersize=3,
                color=shades[domain], label=DOMAINS[domain].title, linewidth=1.2, elinewidth=0.8, capsize=2,
            )  # fmt: skip
        axes.set_xscale("log")
        ticks = sorted({beta for points in domains.values() for beta in points})
        axes.set_xticks(ticks, [f"{beta:g}" for beta in ticks])
        axes.minorticks_off()
        axes.set_title(titles[method], loc="left", fontweight="bold")
        axes.set_xlabel("β")
        axes.set_ylim(-3, 103)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    figure.axes[0].set_ylabel("best on validation, %")
    _legend(figure, 3)
    figure.tight_layout()
    return figure
