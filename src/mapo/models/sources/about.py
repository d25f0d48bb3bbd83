"""What a run or a checkpoint says of the model that it is: the values of ``run.json`` and their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.models.parts.kinds import FLAG, NUMBER, TEXT, WHOLE, Kind, first_unfit, whole

ADAPTER = Kind('"full" or "lora"', lambda value: value in ("full", "lora"))
LORA: Mapping[str, Kind] = {"file": TEXT, "weight": NUMBER, "sha256": TEXT}
LORAS = Kind(
    "a list of LoRAs with file, weight and sha256",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(one, dict) and all(kind.fits(one.get(key)) for key, kind in LORA.items()) for one in value)
    ),
)
NEEDED = ("base", "denoiser", "adapter")
VALUES: Mapping[str, Kind] = {
    "base": TEXT, "denoiser": TEXT, "adapter": ADAPTER, "base_from_here": TEXT, "base_revision": TEXT, "vae": TEXT,
    "prediction": TEXT, "long_prompts": TEXT, "token": TEXT, "start": TEXT, "clip_skip": whole(0), "chunks": WHOLE,
    "steps": whole(0), "sensitive": FLAG, "holds_loras_below": FLAG, "loras": LORAS,
}  # fmt: skip


def check_about(path: Path, about: Mapping[str, Any], remedy: str) -> None:
    """MapoError where a value is missing or of another kind, in the file ``path``."""
    if (key := first_unfit(about, VALUES, NEEDED)) is not None:
        why = f"it does not say {key}" if about.get(key) is None else f"{key} has to be {VALUES[key].words}"
        raise MapoError(f"{path} is damaged: {why}. {remedy}")
