"""Whether some pairs are told apart without a model: the leak test in a sentence, for a training that goes on."""

from __future__ import annotations

import numpy as np

from mapo.check.findings import statistic
from mapo.check.leak import EVEN, FEW_PROMPTS, find_leaks, independent, statistics, tell_together
from mapo.check.pictures import look_at_pictures
from mapo.encode.seen import Rows
from mapo.errors import count
from mapo.pairs import PairSet
from mapo.pairs.splits import normalise

NEARLY_ALL = 0.9  # of the pairs; what tells fewer does not explain that a model tells all


def told_apart(pairs: PairSet, rows: Rows) -> str:
    """What alone tells the two sides in nearly all of these ``rows`` of a set; empty where nothing is found."""
    columns = {name: pairs.table[name].take(rows).to_pylist() for name in ("prompt", "chosen", "rejected")}
    pictures = look_at_pictures(pairs, only={*columns["chosen"], *columns["rejected"]})
    place = {name: k for k, name in enumerate(pictures.names)}
    chosen, rejected = (np.array([place[n] for n in columns[side]], np.int64) for side in ("chosen", "rejected"))
    names = [normalise(prompt) for prompt in columns["prompt"]]
    _, prompts = np.unique(np.array(names), return_inverse=True)
    asked = pictures.read[chosen] & pictures.read[rejected]
    few = len(np.unique(prompts[asked])) < FEW_PROMPTS
    if few:
        content = pictures.found["content"]
        _, content = np.unique(content, return_inverse=True)
        asked[asked] = independent(content[chosen[asked]], content[rejected[asked]])
    if not asked.any():
        return ""
    sides = chosen[asked], rejected[asked], np.arange(int(asked.sum())) if few else prompts[asked]
    values = statistics(pictures, np.union1d(sides[0], sides[1]))
    leaks = [leak for leak in find_leaks(values, *sides, exact=few) if leak.tells]
    alone = max(leaks, key=lambda leak: abs(leak.paired.value - EVEN), default=None)
    told = count(int(asked.sum()), "held-out pair")
    if alone and (share := max(alone.paired.value, 1 - alone.paired.value)) >= NEARLY_ALL:
        return f"{statistic(alone.name)} alone tells chosen from rejected in {share:.0%} of {told}."
    together = tell_together(values, *sides).share
    if together.tells and together.value >= NEARLY_ALL:
        share = together.value
        return f"size, file type, brightness and the like together tell chosen from rejected in {share:.0%} of {told}."
    return ""
