"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.files import prepare_file

if TYPE_CHECKING:
    from mapo.mismatch.mismatch import Mismatch


def mismatch(
    model: str, pairs: Path, out: Path, seeds: str | int | Sequence[int], **how: Any
) -> tuple[Mismatch, list[str]]:
    """Measure a set against a model and write the numbers to ``out``; they, and the lines that say what they mean."""
    prepare_file(out, "a file of `mapo mismatch`", b'{\n "format": "mapo-mismatch"', "mismatch.json")
    from mapo.mismatch.mismatch import measure
    from mapo.mismatch.words import write_mismatch
    from mapo.sample.verb import asked_seeds
    from mapo.shards import owned

    numbers = asked_seeds(seeds)
    with owned(out):
        found = measure(model, pairs, out.with_name(f"{out.stem}-images"), seeds=numbers, **how)
        return found, write_mismatch(found, out)
