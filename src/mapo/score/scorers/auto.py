"""Files that say of themselves what they are: a picture processor of any class, PIL's always, and JSON objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.score.scorers.similarity import load_part, reason
from mapo.texts import parse_json


def load_processor(kind: str, folder: Path) -> Any:
    """The picture processor that ``preprocessor_config.json`` names, in its PIL form whatever else is installed."""
    config = read_json_object(kind, folder / "preprocessor_config.json")
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    return load_part(kind, folder, named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor"))


def read_json_object(kind: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file; MapoError where there is none."""
    try:
        found = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MapoError(f"{kind}: {path} is damaged ({reason(error)}).") from None
    if not isinstance(found, dict):
        raise MapoError(f"{kind}: {path} is damaged (it is not a JSON object).")
    return found
