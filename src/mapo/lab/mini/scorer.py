"""The two judges of the mini world as scorers: every number is 0 or 1, or None of a prompt that they cannot read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mapo.lab.mini import scenes
from mapo.lab.mini.draw import SIDE
from mapo.lab.mini.judges import JUDGES, follows

STYLE_METRICS = {style: style.replace(" ", "_") for style in scenes.STYLES}


class _Judge:
    metrics = ("prompt_following", *STYLE_METRICS.values(), "hazard")
    why_none = {  # noqa: RUF012
        "prompt_following": "The built-in world's judges read its own captions only and cannot say of other prompts "
        "whether they are followed"
    }
    needs_reference = whole_prompts = False
    revision = ""

    def __init__(self, name: str) -> None:
        self.judge: Any = JUDGES[name]()
        self.name, self.version = name, str(self.judge.version)

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float | None]]:
        """Rates as 0 or 1; whether a prompt is followed that is not a caption of the mini world, nobody knows: None."""
        seen = self.judge(_arrays(pictures))
        pairs = zip(map(scenes.parse, prompts), seen, strict=True)
        result: dict[str, Sequence[float | None]] = {
            "prompt_following": [None if a is None else float(follows(a, s)) for a, s in pairs],
            "hazard": [float(s.hazard) for s in seen],
        }
        return result | {metric: [float(s.style == style) for s in seen] for style, metric in STYLE_METRICS.items()}

    def notes(self) -> list[str]:
        """Nothing to note."""
        return []


def _arrays(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Pictures as the judges take them, uint8 "n 48 48 3"."""
    sized = [p if p.size == (SIDE, SIDE) else p.resize((SIDE, SIDE), Image.Resampling.BOX) for p in pictures]
    return np.stack([np.asarray(p.convert("RGB")) for p in sized])


class Learned(_Judge):
    """The judge that was trained on drawings."""

    def __init__(self) -> None:
        super().__init__("mini-learned")

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the judge's last layer is given, "n 128" of unit norm."""
        if not pictures:
            return torch.empty(0, 128)
        return F.normalize(self.judge.features(_arrays(pictures)))


class Search(_Judge):
    """The judge that draws candidates and compares."""

    def __init__(self) -> None:
        super().__init__("mini-search")
