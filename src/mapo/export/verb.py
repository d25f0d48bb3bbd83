"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.export.export import export_pairs, export_to_hub, parse_licences
from mapo.pairs import PairSet


@dataclass(frozen=True)
class Exported:
    """The folder that was written, what was counted (nothing where it was there before), and its address on the hub."""

    folder: Path
    counts: Mapping[str, int]
    address: str = ""

    def __fspath__(self) -> str:
        return str(self.folder)


def export(
    pairs: Path, to: str, out: Path | None, *, on_missing_picture: str = "stop",
    source_licences: Sequence[str] = (), **card: Any,
) -> Exported:  # fmt: skip
    """Write a set in the format ``to``. ``card`` is for the hub: repo, private, licence."""
    card["source_licences"] = parse_licences(source_licences)
    opened = PairSet(pairs)
    if to == "hub":
        beside = pairs.resolve() if pairs.name in ("", "..") else pairs
        out = out or beside.with_name(f"{beside.name}-hub")
        return Exported(out, *export_to_hub(opened, out, on_missing_picture=on_missing_picture, **card))
    if unused := [name for name, value in card.items() if value not in (None, {})]:
        name = {"licence": "license", "source_licences": "source-license"}.get(unused[0], unused[0])
        raise MapoError(f"--{name} is for --to hub alone.")
    if out is None:
        raise MapoError("Give --out, the folder to write.")
    return Exported(out, export_pairs(opened, to, out, on_missing_picture=on_missing_picture))
