"""What a vote on a grid says of its pairs: the best is better than all others, and all others better than the worst."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mapo.label.blind import pair_key
from mapo.label.votes import Vote


def on_pairs(votes: Iterable[Vote]) -> list[Vote]:
    """Votes on pairs alone. Where an annotator has said twice what a pair is, the later vote stands."""
    found: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        for one in _of_grid(vote) if vote.pictures else [vote]:
            found.pop((one.annotator, one.pair), None)
            found[one.annotator, one.pair] = one
    return list(found.values())


def _of_grid(vote: Vote) -> Iterator[Vote]:
    """Nothing where the grid was skipped; of a tie, and where all are bad, the same of every two."""
    if vote.vote == "skip":
        return
    best, worst = vote.left, vote.right
    pairs = list(itertools.combinations(vote.pictures, 2))
    if vote.better is not None:
        others = [name for name in vote.pictures if name not in (best, worst)]
        pairs = [(best, worst), *((best, name) for name in others), *((name, worst) for name in others)]
    for left, right in pairs:
        yield replace(vote, pair=pair_key(vote.prompt, left, right), left=left, right=right, prompt="", pictures=())
