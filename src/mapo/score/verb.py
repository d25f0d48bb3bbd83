"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from pathlib import Path

import mapo.score.score as scoring
from mapo.errors import memory_told
from mapo.score.scorers import scorer_names
from mapo.shards import WHOLE, Shard


def score(
    images: Path, scorer: str | None, out: Path, *, references: Path | None = None, shard: Shard = WHOLE,
    images_per_batch: int = scoring.IMAGES_PER_BATCH,
) -> dict[str, int] | None:  # fmt: skip
    """Score a folder; counts as of :func:`mapo.score.score.score`. A table of other pictures is never written over."""
    if scorer is not None:
        scorer_names(scorer)  # a word that is misspelt is told before anything else
    scoring.refuse_table_of_others(images, out)
    with memory_told(images_per_batch, rest=""):
        return scoring.score(images, scorer, out, references=references, shard=shard, images_per_batch=images_per_batch)
