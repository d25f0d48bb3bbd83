"""What a set says of where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, suggest
from mapo.pairs.pairs import PairSet
from mapo.worlds import MODELS

UNKNOWN = "unknown"
OURS = "apache-2.0"  # of the built-in models
SOURCES = ("model", "imported", "prompts")  # keys of the provenance that name what a set was made from
TEXTS = ("prompt", "negative_prompt", "prefix", "about")  # their values are words, whatever they begin with


def without_folders(value: Any) -> Any:
    """The value with folders of this machine left with their last part, at any depth."""
    if isinstance(value, dict):
        return {k: v if k in TEXTS else without_folders(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_folders(v) for v in value]
    if isinstance(value, str) and value.startswith(("/", "~/")):
        return Path(value).name or value
    return value


def sources(pairs: PairSet, licences: Mapping[str, str]) -> dict[str, str]:
    """What the set was made from → its licence: the user's word, else the set's own, else unknown."""
    provenance = without_folders(pairs.info.get("provenance") or {})
    recorded = provenance.get("licences") if isinstance(provenance.get("licences"), dict) else {}
    names = [str(provenance[key]) for key in SOURCES if isinstance(provenance.get(key), str)]
    found = {name: str(recorded.get(name) or (OURS if name in MODELS else UNKNOWN)) for name in names}
    if isinstance(provenance.get("imported"), str) and provenance.get("licence"):
        found[provenance["imported"]] = str(provenance["licence"])
    for name, licence in licences.items():
        if name not in found:
            known = suggest(name, found) if found else "The set does not record what it was made from."
            raise MapoError(f"--source-license: the set was not made from {name!r}. {known}")
        found[name] = licence
    return found


def flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The provenance as rows of a table, without the licences, which have one of their own."""
    for key, inner in value.items():
        name = f"{above} · {key}" if above else str(key)
        if name in ("licence", "licences"):
            continue
        if key == "recipe" and "model" in value:  # that made the set, whatever the recipe would have taken
            inner = {own: told for own, told in inner.items() if own != "model"}
        if isinstance(inner, dict):
            yield from flat(inner, name)
        elif isinstance(inner, list):
            yield name, "; ".join(map(str, inner)) or "none"
        elif isinstance(inner, bool):
            yield name, "yes" if inner else "no"
        else:
            yield name, "none" if inner in (None, "") else str(inner)
