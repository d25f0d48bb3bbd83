"""LAION's aesthetic predictor v2: the rating, 1 … 10, that people would give a picture, whatever its prompt.

Five linear layers without anything between them (github.com/christophschuhmann/improved-aesthetic-predictor) on the
embedding of CLIP ViT-L/14, of unit norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from mapo.scorers import check_inputs
from mapo.scorers.checkpoint import check_shapes, find_checkpoint, read_tensors
from mapo.scorers.clip import CLIP, clip_similarity
from mapo.scorers.similarity import join
from mapo.scorers.weights import MODEL, PROCESSOR, Repository, find_files, quiet

HEAD = Repository("trl-lib/ddpo-aesthetic-predictor", "cf4bd10345610935a80a5d3be9a3133c50f121e4")
FILE = "aesthetic-model.pth"
WIDTHS = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}  # place among the layers (dropouts count) → numbers that come out


class Aesthetic:
    """The rating of each picture. A source is the head's file, a folder with it and, if you like, a CLIP model."""

    metrics: tuple[str, ...] = ("aesthetic",)
    needs = ((HEAD, (FILE,)), (CLIP, MODEL), (CLIP, PROCESSOR))
    needs_reference = False
    whole_prompts = False
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        head = find_checkpoint("aesthetic", source or HEAD, FILE)
        clip = source if source and (Path(source).expanduser() / "config.json").is_file() else CLIP
        model, processor = (find_files("aesthetic", clip, files) for files in (MODEL, PROCESSOR))
        self.name = f"aesthetic@{head.name}" if source else "aesthetic"
        self.revision = join(head.revision, model.revision, processor.revision)
        self.similarity = clip_similarity("aesthetic", model.folder, processor.folder)
        self.path = head.path

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each linear layer, in float32."""
        found, wide = read_tensors("aesthetic", self.path), self.similarity.model.config.projection_dim
        wanted: dict[str, Tensor] = {}
        for place, width in WIDTHS.items():
            wanted |= {f"layers.{place}.weight": torch.empty(width, wide), f"layers.{place}.bias": torch.empty(width)}
            wide = width
        check_shapes("aesthetic", self.path, found, wanted, "head of the aesthetic predictor for this CLIP model")
        return [(found[f"layers.{place}.weight"].float(), found[f"layers.{place}.bias"].float()) for place in WIDTHS]

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The rating; prompts are not looked at."""
        check_inputs("aesthetic", pictures, prompts)
        with quiet():
            return self.score([self.prepare(picture) for picture in pictures], prompts)

    def prepare(self, picture: Image) -> Tensor:
        """What the network sees of a picture."""
        return self.similarity.prepare(picture)

    def score(
        self, prepared: Sequence[Tensor], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The same of prepared pictures."""
        if not prepared:
            return {"aesthetic": []}
        values = self.similarity.embeddings(prepared)
        for weight, bias in self.layers:
            values = values @ weight.T + bias
        return {"aesthetic": values[:, 0].tolist()}

    def notes(self) -> list[str]:
        """Nothing to note."""
        return []
