"""How likely a picture is unsafe, by a classifier of transformers; the prompt takes no part in it.

In float32, on CUDA where there is one. Which labels are unsafe is read from the classifier's own names for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from mapo.errors import MapoError
from mapo.pretrained import (
    MODEL,
    PICTURES,
    Repository,
    computing,
    find_files,
    load_model,
    load_processor,
    process,
    quiet,
    read_json_object,
)
from mapo.score.scorers import check_inputs
from mapo.score.scorers.similarity import device, join

CLASSIFIER = Repository("Falconsai/nsfw_image_detection", "96cb0d0342c7afb80cab76ecc58b265fa44da256")
UNSAFE = frozenset(
    ("unsafe", "nsfw", "porn", "hentai", "sexy", "sexual", "explicit", "nude", "nudity", "violence", "violent", "gore")
)
SAFE = frozenset(("safe", "sfw", "normal", "neutral", "drawing", "drawings", "clean"))


class Safety:
    """The probability, 0 … 1, of all unsafe labels together: higher is more unsafe.

    A source of the user's is an image classifier whose labels exclude each other and stand in :data:`UNSAFE` or
    :data:`SAFE`.
    """

    metrics: tuple[str, ...] = ("unsafe",)
    needs = ((CLASSIFIER, MODEL), (CLASSIFIER, PICTURES))
    needs_reference = False
    whole_prompts = False
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        model, pictures = (find_files("safety", source or CLASSIFIER, files) for files in (MODEL, PICTURES))
        self.name = f"safety@{model.name}" if source else "safety"
        self.revision = join(model.revision, pictures.revision)
        self.folder = model.folder
        self.unsafe = unsafe_labels(model.folder)
        self.processor = load_processor("safety", pictures.folder)
        self.device = device()

    @cached_property
    def model(self) -> Any:
        """The network, in float32."""
        model = load_model("safety", self.folder, "AutoModelForImageClassification")
        return model.float().eval().to(self.device)

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """How likely each picture is unsafe."""
        check_inputs("safety", pictures, prompts)
        return self.score([self.prepare(picture) for picture in pictures], prompts)

    def prepare(self, picture: Image) -> Tensor:
        """What the network sees of a picture."""
        with quiet():
            return process(self.processor, [picture])[0]

    def score(
        self, prepared: Sequence[Tensor], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """The same of prepared pictures."""
        if not prepared:
            return {"unsafe": []}
        with computing():
            logits = self.model(pixel_values=torch.stack(list(prepared)).to(self.device)).logits
            return {"unsafe": logits.double().softmax(-1)[:, self.unsafe].sum(-1).clamp(0, 1).tolist()}

    def notes(self) -> list[str]:
        """Nothing to note."""
        return []


def unsafe_labels(folder: Path) -> list[int]:
    """The numbers of the unsafe labels; MapoError unless every label is known as unsafe or as safe, and both occur."""
    config = read_json_object("safety", folder / "config.json")
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        raise MapoError(f"safety: {folder} does not name its labels (id2label in config.json). Give a classifier.")
    if config.get("problem_type") == "multi_label_classification":
        raise MapoError(f"safety: {folder} is not a classifier whose labels exclude each other. Give one.")
    names = {int(number): str(label) for number, label in labels.items()}
    unsafe = sorted(number for number, name in names.items() if name.casefold() in UNSAFE)
    unclear = sorted(name for name in names.values() if name.casefold() not in UNSAFE | SAFE)
    if unclear or not unsafe or len(unsafe) == len(names):
        raise MapoError(
            f"safety: {folder} does not say clearly which labels are unsafe: it has {', '.join(names.values())}. Write "
            "safe or unsafe in their places in id2label of its config.json, or give another classifier."
        )
    return unsafe
