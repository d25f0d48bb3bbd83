"""SigLIP score (arXiv 2303.15343): 100 · cosine of the embeddings of a picture and of its prompt."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from PIL.Image import Image
from torch import Tensor

from mapo.errors import MapoError
from mapo.pretrained import MODEL, PICTURES, Repository, check_type, find_files, load_model, load_part, process
from mapo.score.scorers.similarity import Similarity, check_side, join

SIGLIP = Repository("google/siglip-so400m-patch14-384", "9fdffc58afc957d1a03a25b10dba0329ab15c2a3")
WORDS = (*PICTURES, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonical(text: str) -> str:
    """A text as SigLIP was trained on it: in small letters, without ASCII punctuation, single spaces."""
    return re.sub(r"\s+", " ", text.lower().translate(PUNCTUATION)).strip()


class SiglipScore:
    """100 · cosine, not clipped. The model's probability σ(scale · cosine + bias) orders pictures in the same way."""

    metrics: tuple[str, ...] = ("siglip_score",)
    needs = ((SIGLIP, MODEL), (SIGLIP, WORDS))
    needs_reference = False
    whole_prompts = False
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        model, words = (find_files("siglip", source or SIGLIP, files) for files in (MODEL, WORDS))
        self.name = f"siglip@{model.name}" if source else "siglip"
        self.revision = join(model.revision, words.revision)
        check_type("siglip", model.folder, "siglip", "SigLIP")
        tokenizer = load_part("siglip", words.folder, "PreTrainedTokenizerFast")
        settings = words.folder / "tokenizer_config.json"
        if tokenizer.pad_token is None or (settings.is_file() and "Gemma" in settings.read_text("utf-8")):
            raise MapoError(
                f"siglip: the tokenizer in {words.folder} is not SigLIP's, but perhaps that of SigLIP 2, which reads "
                "texts in another way. Give a first SigLIP."
            )
        tokenizer.padding_side = "right"
        pictures = load_part("siglip", words.folder, "SiglipImageProcessor")

        def load() -> Any:
            network = load_model("siglip", model.folder, "SiglipModel")
            check_side("siglip", model.folder, pictures.size, network.config.vision_config.image_size)
            return network

        self.similarity = Similarity("siglip", load, partial(process, pictures), tokenizer, canonical, padded=True)

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """How well each picture shows its prompt."""
        return {"siglip_score": (100 * self.similarity(pictures, prompts)).tolist()}

    def prepare(self, picture: Image) -> Tensor:
        """What the network sees of a picture."""
        return self.similarity.prepare(picture)

    def score(
        self, prepared: Sequence[Tensor], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The same of prepared pictures."""
        return {"siglip_score": (100 * self.similarity.cosines(prepared, prompts)).tolist()}

    def embed(self, pictures: Sequence[Image]) -> Tensor:
        """The pictures' embeddings, "n d", of unit norm."""
        return self.similarity.embed(pictures)

    def notes(self) -> list[str]:
        """What was cut."""
        return self.similarity.notes()
