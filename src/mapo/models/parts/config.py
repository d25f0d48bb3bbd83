"""The JSON files in the folder of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapo.errors import MapoError, reason
from mapo.texts import parse_json

TOKENIZER_CONFIG = "tokenizer_config.json"
CONFIGS = {  # others have a config.json
    "scheduler": "scheduler_config.json", "tokenizer": TOKENIZER_CONFIG, "tokenizer_2": TOKENIZER_CONFIG,
    "tokenizer_3": TOKENIZER_CONFIG,
}  # fmt: skip


def read_config(base: Path, name: str) -> dict[str, Any]:
    """A JSON file of a pipeline folder."""
    try:
        found = parse_json((base / name).read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
        return found
    except FileNotFoundError:
        lacking = name if (base / name).parent.is_dir() else f"{name.partition('/')[0]}/"
        raise MapoError(f"The model folder {base} is not whole: there is no {lacking} in it. {again(base)}") from None
    except (OSError, ValueError) as error:
        raise MapoError(f"The model folder {base} is not whole: {name} cannot be read ({reason(error)}).") from None


def again(base: Path) -> str:
    """What to do where the files of a model folder are damaged: one of a run is trained, others were downloaded."""
    is_run = base.name == "weights" and (base.parent / "config.toml").is_file()
    return f"Train {base.parent} again." if is_run else "Download the folder again."
