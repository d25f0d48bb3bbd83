"""From the ledgers of a study to its tables and figures: shares with intervals, by domain, method and number of pairs.

The numbers are those of the judge that took no part in choosing settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mapo.errors import MapoError
from mapo.files import write_text
from mapo.lab.study.domains import DOMAINS, MADE_BY
from mapo.lab.study.estimates import Cell, Cells, Key, Percent, around, estimate, variance_of
from mapo.lab.study.figures import draw_figures
from mapo.lab.study.markdown import as_markdown
from mapo.lab.study.methods import METHODS
from mapo.lab.study.runs import ResultsFile
from mapo.lab.study.scale import scale_toml
from mapo.texts import read_json, write_json

MIN_SEEDS = 3  # with fewer nothing is called sure


def read_cells(out: Path) -> dict[Key, Cell]:
    """All results on test prompts; the base is the method ``base`` with 0 pairs.

    Of a method whose settings were chosen again only runs with the new ones count. Only seeds that all methods of a
    domain and number of pairs have are kept: methods are compared on the same seeds.
    """
    found: dict[Key, dict[int, Mapping[str, Any]]] = {}
    tuned = read_part(out, "tuned") or {}
    for name in ("base", "runs"):
        for row in ResultsFile(out / f"{name}.jsonl").rows.values():
            job = row["job"]
            if job["split"] != "test" or job["version"] != DOMAINS[job["domain"]].version:
                continue
            best = tuned.get(f"{job['domain']} {job['method']}", {}).get("result")
            if best and (dict(job["settings"]) != best["settings"] or job["steps"] != [best["steps"]]):
                continue
            look = row["looks"] if isinstance(row["looks"], dict) else row["looks"][0]
            found.setdefault((job["domain"], job["method"], job["pairs"]), {})[job["seed"]] = look
    cells = {}
    for (domain, method, pairs), rows in found.items():
        others = [set(v) for (d, m, p), v in found.items() if (d, p) == (domain, pairs)]
        if common := sorted(set.intersection(*others)):
            cells[domain, method, pairs] = Cell(tuple(rows[seed] for seed in common), DOMAINS[domain].wordings)
    return cells


# ------------------------------------------------------------------ writing


def write_tables(out: Path) -> None:
    """``tables.json``, ``tables.md`` and the figures, from whatever the ledgers hold."""
    cells = read_cells(out)
    titles = {"base": "base", **{name: method.title for name, method in METHODS.items()}}
    rows = [_row(key, cell) for key, cell in sorted(cells.items(), key=_order)]
    lead = [_lead(cells, key) for key in sorted(cells, key=lambda k: (list(DOMAINS).index(k[0]), k[2], k[1]))]
    extra = {name: read_part(out, name) for name in PARTS}
    ranks = [
        {"domain": domain, "pairs": pairs, **rank}
        for domain, pairs in sorted({(d, n) for d, _, n in cells if n}, key=lambda k: (list(DOMAINS).index(k[0]), k[1]))
        if (rank := ranking(cells, domain, pairs))
    ]
    leads = [row for row in lead if row]
    tables = {"version": 2, "rows": rows, "leads": leads, "ranks": ranks, "means": _means(cells), **extra}
    write_json(out / "tables.json", tables)
    write_text(out / "scale.toml", scale_toml(tables))
    write_text(out / "tables.md", as_markdown(tables, titles))
    draw_figures(out, cells, titles, tables)


def _order(item: tuple[Key, Any]) -> tuple[int, int, int]:
    domain, method, pairs = item[0]
    return list(DOMAINS).index(domain), pairs, ["base", *METHODS].index(method)


PARTS: Mapping[str, Callable[[Any], bool]] = {
    "tuned": lambda value: all(len(k.split()) == 2 and "result" in found for k, found in value.items()),
    "cost": lambda value: {"methods", "pairs_per_step"} <= value.keys(),
    "mismatch": lambda value: all({"domain", "gap", "encoder"} <= row.keys() for row in value),
}


def read_part(out: Path, name: str) -> Any:
    """What a study has in ``name.json``, None where there is none yet; MapoError where it is damaged."""
    path, remedy = out / f"{name}.json", "Delete it: the same command makes it again."
    if not path.exists():
        return None
    value = read_json(path, "a study", remedy)
    try:
        good = PARTS[name](value)
    except (TypeError, AttributeError):
        good = False
    if not good:
        raise MapoError(f"{path} is damaged. {remedy}")
    return value


def _row(key: tuple[str, str, int], cell: Cell) -> dict[str, Any]:
    domain, method, pairs = key
    row: dict[str, Any] = {"domain": domain, "method": method, "pairs": pairs, "seeds": len(cell.looks)}
    for what in ("score", "reached", "followed"):
        row[what] = vars(estimate(cell.parts(what)))
        row[f"{what} by {MADE_BY}"] = vars(estimate(cell.parts(what, MADE_BY)))
    for name in ("diversity", "error chosen", "error rejected"):
        row[name] = cell.mean(name)
    if method != "base":
        row["seconds_per_step"], row["steps"] = cell.mean("seconds_per_step"), cell.looks[0]["steps"]
        row["diverged"] = sum("failed" in look for look in cell.looks)
    return row


def difference(one: Cell, other: Cell, level: float = 0.95) -> Percent:
    """By how much the score of ``one`` exceeds that of ``other``, on the same prompts and training seeds.

    The untrained model has no training seed; it stands against each.
    """
    pairs = zip(one.parts("score"), other.parts("score"), strict=True)
    return estimate([a - b for a, b in pairs], -1.0, level)


def mean_difference(cells: Cells, one: str, other: str, pairs: int, level: float = 0.95) -> Percent:
    """The mean of :func:`difference` between two methods over the domains that have both, each of the same weight.

    Trainings and prompts of different domains have nothing to do with each other, so variances add up.
    """
    keys = [(cells.get((d, one, pairs)), cells.get((d, other, pairs))) for d in DOMAINS]
    sides = [(a.parts("score"), b.parts("score")) for a, b in keys if a and b]
    leads = [[x - y for x, y in zip(a, b, strict=True)] for a, b in sides]
    value = float(np.mean([np.mean([part.mean() for part in parts]) for parts in leads]))
    found = [variance_of(parts) for parts in leads]
    total = sum(variance for variance, _ in found)
    freedom = total**2 / sum(variance**2 / own for variance, own in found)
    return around(value, total / len(found) ** 2, freedom, -1.0, level)


def _means(cells: Cells) -> list[dict[str, Any]]:
    """The mean score of each method over the domains, and how far it is behind the highest; where all methods have
    been trained in the same domains."""
    rows: list[dict[str, Any]] = []
    for pairs in sorted({n for _, _, n in cells if n}):
        trained = {m: {d for d, other, n in cells if (other, n) == (m, pairs)} for _, m, n in cells if n == pairs}
        domains = set.union(*trained.values())
        if len(domains) < 2 or any(own != domains for own in trained.values()):
            continue
        scores = {m: [estimate(cells[d, m, pairs].parts("score")).value for d in sorted(domains)] for m in trained}
        best = max(scores, key=lambda m: sum(scores[m]))
        for method, values in sorted(scores.items(), key=lambda item: -sum(item[1])):
            row = {"pairs": pairs, "method": method, "mean": float(np.mean(values)), "least": min(values)}
            behind = None if method == best else vars(mean_difference(cells, method, best, pairs))
            rows.append({**row, "domains": len(domains), "behind": behind})
    return rows


def _lead(cells: Cells, key: Key) -> dict[str, Any] | None:
    """By how much a method's score exceeds Diffusion-DPO's."""
    domain, method, pairs = key
    if method in ("dpo", "base") or (domain, "dpo", pairs) not in cells:
        return None
    found = difference(cells[key], cells[domain, "dpo", pairs])
    enough = len(cells[key].looks) >= MIN_SEEDS
    return {"domain": domain, "method": method, "pairs": pairs, **vars(found), "sure": found.sure and enough}


def ranking(cells: Cells, domain: str, pairs: int) -> dict[str, list[str]] | None:
    """The methods of a domain, the untrained model among them: the one of the highest score, those that cannot be told
    from it, and those whose difference to it leaves 0 out, at 95 % for all pairs of methods together (Bonferroni),
    as nobody knew before which one would be the highest. None with fewer than ``MIN_SEEDS`` trainings."""
    keys = {m: (d, m, n) for d, m, n in cells if d == domain and n in (0, pairs)}
    if min(len(cells[key].looks) for m, key in keys.items() if m != "base") < MIN_SEEDS:
        return None
    best = max(keys, key=lambda m: estimate(cells[keys[m]].parts("score")).value)
    others = [m for m in keys if m != best]
    level = 1 - 0.05 / max(1, math.comb(len(keys), 2))
    worse = [m for m in others if difference(cells[keys[best]], cells[keys[m]], level).sure]
    return {"best": [best], "level": [m for m in others if m not in worse], "worse": worse}
