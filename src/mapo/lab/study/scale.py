"""From a study's tables to the scale of `mapo mismatch`: how far each domain is from the model, and what won there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mapo.lab.study.domains import DOMAINS
from mapo.statistics import MIN_PROMPTS

HEAD = """\
# What mismatch came with which result: the domains of the study of the built-in world (docs/study.md), as
# `mapo mismatch` measured them on its model, and the ranking of the objectives there. Written by `mapo study`.
# Numbers are [value, low, high] of the 95 % interval; `level` cannot be told from `best`; of `worse` the
# difference to it leaves 0 out. `base` is the model before training. A domain of fewer than ten prompts is left out.
"""


def scale_toml(tables: Mapping[str, Any]) -> str:
    """The scale of a study, from its tables; at 256 pairs, where settings were chosen, or at the most there are."""
    text = HEAD
    for row in tables["mismatch"] or []:
        ranks = [rank for rank in tables["ranks"] if rank["domain"] == row["domain"]]
        if not ranks or row["gap"]["prompts"] < MIN_PROMPTS:
            continue
        rank = next((r for r in ranks if r["pairs"] == 256), max(ranks, key=lambda r: r["pairs"]))
        encoder, version, revision = row["encoder"]
        (best,) = rank["best"]
        found = (tables["tuned"] or {}).get(f"{row['domain']} {best}")
        settings = {**found["result"]["settings"], "steps": found["result"]["steps"]} if found else {}
        entry = {
            "name": DOMAINS[row["domain"]].title,
            "distance": _three(row["distance"]),
            "encoder": encoder,
            "version": version,
            "revision": revision,
            "relative_gap": _three(row["gap"]),
            "pairs": rank["pairs"],
            "best": best,
            "level": rank["level"],
            "worse": rank["worse"],
        }
        text += "\n[[domain]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in entry.items())
        text += "settings = { " + ", ".join(f"{k} = {v}" for k, v in settings.items()) + " }\n"
    return text


def _three(interval: Mapping[str, float]) -> list[float]:
    return [round(interval[k], 4) for k in ("value", "low", "high")]
