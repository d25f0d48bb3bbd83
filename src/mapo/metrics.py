"""``metrics.jsonl``: a line per step, cut back to the checkpoint on resume, so that every step is there once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mapo.files import replacing


def cut_back(path: Path, step: int) -> None:
    """Keep the lines of steps up to ``step``, in place; a half-written line goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").split("\n")[:-1]:
        if json.loads(line)["step"] <= step:
            kept.append(line + "\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), "utf-8")


def append(path: Path, values: Mapping[str, float]) -> None:
    """Add the line of one step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
