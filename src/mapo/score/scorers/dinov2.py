"""DINOv2 (arXiv 2304.07193): 100 · cosine of the embeddings of a picture and of its reference picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from mapo.errors import MapoError, count
from mapo.pretrained import (
    MODEL,
    PICTURES,
    Repository,
    check_type,
    computing,
    find_files,
    load_model,
    load_part,
    process,
)
from mapo.score.scorers import check_inputs, check_pictures
from mapo.score.scorers.similarity import device, join

DINOV2 = Repository("facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415")


class Dinov2Score:
    """How alike a picture and its reference are; prompts are not looked at.

    The embedding is that of the class token behind the last layer norm (``pooler_output``).
    """

    metrics: tuple[str, ...] = ("dinov2_score",)
    needs = ((DINOV2, MODEL), (DINOV2, PICTURES))
    needs_reference = True
    whole_prompts = False
    version = "1"

    def __init__(self, source: str | None = None, named: str = "dinov2") -> None:
        """``named`` is what messages begin with: the scorer, or the flag that named its source."""
        model, processor = (find_files(named, source or DINOV2, files) for files in (MODEL, PICTURES))
        self.name = f"dinov2@{model.name}" if source else "dinov2"
        self.revision = join(model.revision, processor.revision)
        check_type(named, model.folder, "dinov2", "DINOv2")
        self.folder, self.device = model.folder, device()
        self.pictures = load_part(named, processor.folder, "BitImageProcessor")

    @cached_property
    def model(self) -> Any:
        """The network, in float32."""
        return load_model("dinov2", self.folder, "Dinov2Model").float().eval().to(self.device)

    def embed(self, pictures: Sequence[Image]) -> Tensor:
        """The pictures' embeddings, "n d", of unit norm."""
        check_pictures("dinov2", pictures)
        with computing():
            seen = self.model(pixel_values=process(self.pictures, pictures).to(self.device)).pooler_output
            return torch.nn.functional.normalize(seen, dim=-1).cpu()

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: Sequence[Image] | None = None
    ) -> Mapping[str, Sequence[float]]:
        """The similarity of each picture to its reference. Equal references of a call are embedded once."""
        check_inputs("dinov2", pictures, prompts)
        if references is None or len(references) != len(pictures):
            some = f"{len(references or ())} came for {count(len(pictures), 'picture')}"
            given = "none was given" if references is None else some
            raise MapoError(f"dinov2 compares each picture with a reference picture, and {given}. Give one for each.")
        check_pictures("dinov2", references)
        if not pictures:
            return {"dinov2_score": []}
        keys = [(reference.size, reference.tobytes()) for reference in references]
        unlike = dict(zip(keys, references, strict=True))
        place = {key: number for number, key in enumerate(unlike)}
        wanted = self.embed(list(unlike.values()))[[place[key] for key in keys]]
        return {"dinov2_score": (100 * (self.embed(pictures) * wanted).sum(-1)).tolist()}

    def notes(self) -> list[str]:
        """Nothing to note."""
        return []
