"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapo.check.check import check_pairs
from mapo.files import prepare_out
from mapo.pairs import PairSet
from mapo.shards import owned


def check(pairs: Path, out: Path, **how: Any) -> dict[str, Any]:
    """Look for what is wrong in a set and write the page; its numbers, as of :func:`mapo.check.check.check_pairs`."""
    with owned(prepare_out(out)):
        return check_pairs(PairSet(pairs), out, **how)
