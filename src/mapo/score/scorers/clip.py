"""CLIP score and PickScore: numbers from the cosine between the embeddings of a picture and of its prompt.

With the weights of :data:`CLIP` and :data:`PICKSCORE`, or of a folder or repository of the user's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from mapo.errors import MapoError
from mapo.pretrained import MODEL, PROCESSOR, Repository, check_type, find_files, load_model, load_part, process
from mapo.score.scorers.similarity import Similarity, check_side, join

CLIP = Repository("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
PICKSCORE = Repository("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
PICKSCORE_PROCESSOR = Repository("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")


def clip_similarity(kind: str, model: Path, processor: Path) -> Similarity:
    """A CLIP model in a folder, and what prepares its pictures and texts, in another or the same."""
    check_type(kind, model, "clip", "CLIP")
    tokenizer = load_part(kind, processor, "CLIPTokenizerFast")
    pictures = load_part(kind, processor, "CLIPImageProcessor")

    def load() -> Any:
        network = load_model(kind, model, "CLIPModel")
        check_side(kind, model, pictures.crop_size, network.config.vision_config.image_size)
        return network

    return Similarity(kind, load, partial(process, pictures), tokenizer)


class BySimilarity(ABC):
    """How near each picture is to its prompt, as a CLIP model sees both; a kind says how cosines "n" are told."""

    needs_reference = whole_prompts = False
    similarity: Similarity

    @abstractmethod
    def _scaled(self, cosines: Tensor) -> dict[str, list[float]]: ...

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The number of each picture."""
        return self._scaled(self.similarity(pictures, prompts))

    def prepare(self, picture: Image) -> Tensor:
        """What the network sees of a picture."""
        return self.similarity.prepare(picture)

    def score(
        self, prepared: Sequence[Tensor], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The same of prepared pictures."""
        return self._scaled(self.similarity.cosines(prepared, prompts))

    def embed(self, pictures: Sequence[Image]) -> Tensor:
        """The embedding of each picture, "n d" of unit norm."""
        return self.similarity.embed(pictures)

    def notes(self) -> list[str]:
        """What was cut."""
        return self.similarity.notes()


class ClipScore(BySimilarity):
    """CLIP score, 0 … 100: 100 · max(cosine, 0) (arXiv 2104.08718, with 100 in place of its 2.5 as is usual)."""

    metrics: tuple[str, ...] = ("clip_score",)
    needs = ((CLIP, MODEL), (CLIP, PROCESSOR))
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        model, processor = (find_files("clip", source or CLIP, files) for files in (MODEL, PROCESSOR))
        self.name = f"clip@{model.name}" if source else "clip"
        self.revision = join(model.revision, processor.revision)
        self.similarity = clip_similarity("clip", model.folder, processor.folder)

    def _scaled(self, cosines: Tensor) -> dict[str, list[float]]:
        return {"clip_score": (100 * cosines.clamp(min=0)).tolist()}


class PickScore(BySimilarity):
    """PickScore, arXiv 2305.01569: exp(logit scale) · cosine, of a CLIP model trained on people's choices.

    How much people would like a picture for its prompt; only differences at one prompt mean anything.

    A source of the user's without a tokenizer is used with that of :data:`PICKSCORE_PROCESSOR`.
    """

    metrics: tuple[str, ...] = ("pickscore",)
    needs = ((PICKSCORE, MODEL), (PICKSCORE_PROCESSOR, PROCESSOR))
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        model = find_files("pickscore", source or PICKSCORE, MODEL)
        try:
            processor = find_files("pickscore", source or PICKSCORE_PROCESSOR, PROCESSOR)
        except MapoError:
            processor = find_files("pickscore", PICKSCORE_PROCESSOR, PROCESSOR)
        self.name = f"pickscore@{model.name}" if source else "pickscore"
        self.revision = join(model.revision, processor.revision)
        self.similarity = clip_similarity("pickscore", model.folder, processor.folder)

    def _scaled(self, cosines: Tensor) -> dict[str, list[float]]:
        return {"pickscore": (cosines * self.similarity.model.logit_scale.exp().item()).tolist()}
