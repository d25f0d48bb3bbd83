"""LAION's aesthetic predictor v2: the rating, 1 … 10, that people would give a picture, whatever its prompt.

Five linear layers without anything between them (github.com/christophschuhmann/improved-aesthetic-predictor) on the
embedding of CLIP ViT-L/14, of unit norm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from mapo.pretrained import MODEL, PROCESSOR, Repository, find_files, quiet
from mapo.score.scorers import check_inputs
from mapo.score.scorers.checkpoint import check_shapes, find_checkpoint, read_tensors
from mapo.score.scorers.clip import CLIP, clip_similarity
from mapo.score.scorers.similarity import join

HEAD = Repository("trl-lib/ddpo-aesthetic-predictor", "cf4bd10345610935a80a5d3be9a3133c50f121e4")
FILE = "aesthetic-model.pth"
WIDTHS = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}  # place among the layers (dropouts count) → numbers that come out
USUAL = "sac+logos+ava1-l14-linearMSE"
PUBLISHED = {  # the fingerprint of a head → its name with LAION, at the commit 6934dd8 of the repository above
    "fdb85b42a8c89470b0107b27c9efb726a87ea22eb81679c8d8ed17dc79ebd94f": USUAL,
    "d30e308be1dad25c589bf3c875b7021ebe9759ea72ffb1f832954cb1db1e5519": "ava+logos-l14-linearMSE",
}


class Head:
    """The five layers, of a checkpoint whose tensors are exactly theirs. ``wide``: numbers in an embedding."""

    def __init__(self, path: Path, wide: int) -> None:
        found, wanted = read_tensors("aesthetic", path), dict[str, Tensor]()
        for place, width in WIDTHS.items():
            wanted |= {f"layers.{place}.weight": torch.empty(width, wide), f"layers.{place}.bias": torch.empty(width)}
            wide = width
        check_shapes("aesthetic", path, found, wanted, "a head of the aesthetic predictor for this CLIP model")
        self.layers = [[found[f"layers.{place}.{part}"].float() for part in ("weight", "bias")] for place in WIDTHS]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """The ratings "n" of embeddings "n wide" of unit norm."""
        for weight, bias in self.layers:
            embeddings = embeddings @ weight.T + bias
        return embeddings[:, 0]

    @property
    def fingerprint(self) -> str:
        """A hash of its numbers, in float32: the same in a pickle and in safetensors, other in a sibling."""
        digest = hashlib.sha256()
        for tensor in (tensor for layer in self.layers for tensor in layer):
            digest.update(tensor.contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


class Aesthetic:
    """The rating of each picture. A source is the head's file, a folder with it and, if you like, a CLIP model."""

    metrics: tuple[str, ...] = ("aesthetic",)
    needs = ((HEAD, (FILE,)), (CLIP, MODEL), (CLIP, PROCESSOR))
    needs_reference = False
    whole_prompts = False
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        head = find_checkpoint("aesthetic", source or HEAD, FILE)
        self.clip = source if source and (Path(source).expanduser() / "config.json").is_file() else None
        model, processor = (find_files("aesthetic", self.clip or CLIP, files) for files in (MODEL, PROCESSOR))
        self.name = f"aesthetic@{head.name}" if source else "aesthetic"
        self.revision = join(head.revision, model.revision, processor.revision)
        self.similarity = clip_similarity("aesthetic", model.folder, processor.folder)
        self.path = head.path

    @cached_property
    def head(self) -> Head:
        """The head, for the embeddings of the CLIP model."""
        return Head(self.path, self.similarity.model.config.projection_dim)

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
        return {"aesthetic": self.head(self.similarity.embeddings(prepared)).tolist()}

    def notes(self) -> list[str]:
        """What keeps its numbers from being compared with those that others print."""
        if "head" not in self.__dict__:
            return []  # nothing was scored
        head, said = f"aesthetic: the head {self.path.name}", list[str]()
        published = PUBLISHED.get(self.head.fingerprint)
        if published is None:
            said.append(f"{head} is not one of the published ones; its numbers cannot be compared with published ones")
        elif published != USUAL:
            said.append(f"{head} is LAION's {published}; its numbers cannot be compared with those of {USUAL}")
        if self.clip:
            said.append(
                f"aesthetic: pictures are read by the CLIP model in {self.clip}; its numbers can be compared with "
                f"published ones only if that is {CLIP.name}"
            )
        return said
