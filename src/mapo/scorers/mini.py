"""The two judges of the mini world as scorers: every number is 0 or 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mapo.mini import scenes
from mapo.mini.draw import SIDE
from mapo.mini.judges import JUDGES, follows

STYLE_METRICS = {style: style.replace(" ", "_") for style in scenes.STYLES}


class _Judge:
    metrics = ("prompt_following", *STYLE_METRICS.values(), "hazard")
    needs_reference = whole_prompts = False
    revision = ""

    def __init__(self, name: str) -> None:
        self.judge: Any = JUDGES[name]()
        self.name, self.version = name, str(self.judge.version)

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """Rates as 0 or 1; a prompt that is no caption of the mini world counts as not followed."""
        seen = self.judge(_arrays(pictures))
        asked = [scenes.parse(prompt) for prompt in prompts]
        result = {
            "prompt_following": [float(a is not None and follows(a, s)) for a, s in zip(asked, seen, strict=True)],
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
