"""CLIP score and PickScore: numbers from the cosine between the embeddings of a picture and of its prompt.

In float32, on CUDA where there is one, with the weights of :data:`CLIP` and :data:`PICKSCORE` or of a folder or
repository of the user's. Pictures are resized by PIL, whatever else is installed.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch import Tensor

from mapo.errors import MapoError
from mapo.scorers import check_inputs
from mapo.scorers.weights import MODEL, PROCESSOR, Repository, find_files, quiet

CLIP = Repository("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
PICKSCORE = Repository("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
PICKSCORE_PROCESSOR = Repository("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
NAMED = 5


class Similarity:
    """A CLIP model in a folder, and what prepares its pictures and texts, in another or the same.

    Weights are loaded when they are first asked for. ``cut`` has the prompts that were too long and their tokens.
    """

    def __init__(self, kind: str, model: Path, processor: Path) -> None:
        self.kind, self.folder, self.cut = kind, model, dict[str, int]()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            config = json.loads((model / "config.json").read_text("utf-8"))
            found = str(config.get("model_type"))
        except (ValueError, AttributeError):
            found = "damaged"
        if found != "clip":
            raise MapoError(f"{kind}: {model} is no CLIP model; its config.json says {found}. Give one that is.")
        try:
            with quiet():
                self.tokenizer = transformers.CLIPTokenizerFast.from_pretrained(processor)
                self.pictures = _pil_processor().from_pretrained(processor)
        except Exception as error:
            raise MapoError(f"{kind}: {processor} is damaged ({_reason(error)}).") from None

    @cached_property
    def model(self) -> Any:
        """The network, in float32. Weights that the file lacks are an error: they would be random numbers."""
        try:
            with quiet():
                model, info = transformers.CLIPModel.from_pretrained(
                    self.folder, use_safetensors=True, output_loading_info=True
                )
        except Exception as error:
            raise MapoError(f"{self.kind}: {self.folder} cannot be loaded ({_reason(error)}).") from None
        if info["missing_keys"]:
            first = sorted(info["missing_keys"])[0]
            raise MapoError(f"{self.kind}: the weights in {self.folder} are not whole; they lack {first}.")
        side, crop = model.config.vision_config.image_size, dict(self.pictures.crop_size)
        if (crop["height"], crop["width"]) != (side, side):
            raise MapoError(
                f"{self.kind}: the model in {self.folder} takes pictures of {side} × {side}, and its "
                f"preprocessor_config.json makes {crop['height']} × {crop['width']}. Put the model's own file there."
            )
        return model.float().eval().to(self.device)

    def __call__(self, pictures: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """The cosine of each picture's and its prompt's embedding, "n". Equal prompts are embedded once."""
        check_inputs(self.kind, pictures, prompts)
        if not pictures:
            return torch.empty(0)
        place = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
        with quiet(), torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            pixels = self.pictures(list(pictures), return_tensors="pt", input_data_format="channels_last")
            found = self.model(pixel_values=pixels["pixel_values"].to(self.device), **self._tokens(list(place)))
            asked = torch.tensor([place[prompt] for prompt in prompts], device=self.device)
            cosines: Tensor = (found.image_embeds * found.text_embeds[asked]).sum(-1)
            return cosines.cpu()

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask "m t", cut to the model's positions with the end of text kept, as CLIP does."""
        most = min(self.model.config.text_config.max_position_embeddings, self.tokenizer.model_max_length)
        for text, ids in zip(texts, self.tokenizer(texts, verbose=False)["input_ids"], strict=True):
            if len(ids) > most:
                self.cut[text] = len(ids)
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def notes(self) -> list[str]:
        """One sentence on the prompts that were too long, the first five named."""
        if not self.cut:
            return []
        named = [f"{textwrap.shorten(text, 60)!r} ({count} tokens)" for text, count in self.cut.items()][:NAMED]
        more = f"; and {len(self.cut) - NAMED} more" if len(self.cut) > NAMED else ""
        return [
            f"{self.kind}: {len(self.cut)} prompts have more tokens than the model reads and were cut: "
            f"{'; '.join(named)}{more}"
        ]


def _pil_processor() -> Any:
    """CLIP's resize and crop by PIL: transformers 5 has a class of that name, before it was the plain one."""
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200].rstrip(".")


class ClipScore:
    """CLIP score, 0 … 100: 100 · max(cosine, 0) (arXiv 2104.08718, with 100 in place of its 2.5 as is usual)."""

    metrics: tuple[str, ...] = ("clip_score",)
    needs_reference = False
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        model, processor = (find_files("clip", source or CLIP, files) for files in (MODEL, PROCESSOR))
        self.name = f"clip@{model.name}" if source else "clip"
        self.revision = _revision(model.revision, processor.revision)
        self.similarity = Similarity("clip", model.folder, processor.folder)

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """How well each picture shows its prompt."""
        return {"clip_score": (100 * self.similarity(pictures, prompts).clamp(min=0)).tolist()}

    def notes(self) -> list[str]:
        """What was cut."""
        return self.similarity.notes()


class PickScore:
    """PickScore, arXiv 2305.01569: exp(logit scale) · cosine, of a CLIP model trained on people's choices.

    A source of the user's without a tokenizer is used with that of :data:`PICKSCORE_PROCESSOR`.
    """

    metrics: tuple[str, ...] = ("pickscore",)
    needs_reference = False
    version = "1"

    def __init__(self, source: str | None = None) -> None:
        model = find_files("pickscore", source or PICKSCORE, MODEL)
        try:
            processor = find_files("pickscore", source or PICKSCORE_PROCESSOR, PROCESSOR)
        except MapoError:
            processor = find_files("pickscore", PICKSCORE_PROCESSOR, PROCESSOR)
        self.name = f"pickscore@{model.name}" if source else "pickscore"
        self.revision = _revision(model.revision, processor.revision)
        self.similarity = Similarity("pickscore", model.folder, processor.folder)

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float]]:
        """How much people would like each picture for its prompt; only differences at one prompt mean anything."""
        cosines = self.similarity(pictures, prompts)
        return {"pickscore": (cosines * self.similarity.model.logit_scale.exp().item()).tolist()}

    def notes(self) -> list[str]:
        """What was cut."""
        return self.similarity.notes()


def _revision(model: str, processor: str) -> str:
    return model if processor == model else f"{model}+{processor}"
