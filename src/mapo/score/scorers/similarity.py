"""What scorers built on a transformers model share: the cosines of embeddings.

In float32, on CUDA where there is one, without TF32.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from mapo.devices import best_device
from mapo.errors import MapoError, count
from mapo.pretrained import computing, quiet
from mapo.score.scorers import check_inputs, check_pictures

NAMED = 5


class Similarity:
    """A model of pictures and texts, as CLIP's class is one, and what prepares pictures and texts for it.

    ``load`` gives the network when it is first asked for, ``pixels`` turns pictures into its input, ``clean`` changes
    texts before they become tokens. With ``padded`` texts are filled up to the model's positions and nothing is masked.
    ``cut`` has the prompts that were too long and their tokens.
    """

    def __init__(
        self,
        kind: str,
        load: Callable[[], Any],
        pixels: Callable[[Sequence[Image]], Tensor],
        tokenizer: Any,
        clean: Callable[[str], str] = str,
        padded: bool = False,
    ) -> None:
        self.kind, self.load, self.pixels = kind, load, pixels
        self.tokenizer, self.clean, self.padded = tokenizer, clean, padded
        self.device, self.cut = device(), dict[str, int]()

    @cached_property
    def model(self) -> Any:
        """The network, in float32."""
        return self.load().float().eval().to(self.device)

    def prepare(self, picture: Image) -> Tensor:
        """What the network sees of an RGB picture, "3 s s"; any thread may ask."""
        return self.pixels([picture])[0]

    def __call__(self, pictures: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """The cosine of each picture's and its prompt's embedding, "n"."""
        check_inputs(self.kind, pictures, prompts)
        with quiet():
            return self.cosines([self.prepare(picture) for picture in pictures], prompts)

    def cosines(self, prepared: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """The cosines "n" of prepared pictures and their prompts. Equal prompts are embedded once."""
        if not prepared:
            return torch.empty(0)
        place = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
        with computing():
            pixels = torch.stack(list(prepared)).to(self.device)
            found = self.model(pixel_values=pixels, **self._tokens(list(place)))
            asked = torch.tensor([place[prompt] for prompt in prompts], device=self.device)
            cosines: Tensor = (found.image_embeds * found.text_embeds[asked]).sum(-1)
            return cosines.cpu()

    def embed(self, pictures: Sequence[Image]) -> Tensor:
        """The pictures' embeddings, "n d", of unit norm."""
        check_pictures(self.kind, pictures)
        with quiet():
            return self.embeddings([self.prepare(picture) for picture in pictures])

    def embeddings(self, prepared: Sequence[Tensor]) -> Tensor:
        """The embeddings of prepared pictures."""
        with computing():
            pixels = torch.stack(list(prepared)).to(self.device)
            seen = self.model.vision_model(pixel_values=pixels).pooler_output
            if hasattr(self.model, "visual_projection"):
                seen = self.model.visual_projection(seen)
            return torch.nn.functional.normalize(seen, dim=-1).cpu()

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids "m t", and their mask, cut to the model's positions with the end of text kept."""
        most = min(self.model.config.text_config.max_position_embeddings, self.tokenizer.model_max_length)
        cleaned = [self.clean(text) for text in texts]
        for text, ids in zip(texts, self.tokenizer(cleaned, verbose=False)["input_ids"], strict=True):
            if len(ids) > most:
                self.cut[text] = len(ids)
        padding = "max_length" if self.padded else True
        tokens = self.tokenizer(cleaned, padding=padding, truncation=True, max_length=most, return_tensors="pt")
        names = ("input_ids",) if self.padded else ("input_ids", "attention_mask")
        return {name: tokens[name].to(self.device) for name in names}

    def notes(self) -> list[str]:
        """What was cut."""
        return told_of_cuts(self.kind, self.cut, "tokens than the model reads")


def told_of_cuts(kind: str, cut: Mapping[str, int], most: str) -> list[str]:
    """One sentence on prompts that have "more ``most``", the first five named with their number of tokens."""
    if not cut:
        return []
    named = [f"{textwrap.shorten(text, 60)!r} ({count} tokens)" for text, count in cut.items()][:NAMED]
    more = f"; and {len(cut) - NAMED} more" if len(cut) > NAMED else ""
    return [
        f"{kind}: {count(len(cut), 'prompt')} {'has' if len(cut) == 1 else 'have'} more {most} and "
        f"{'was' if len(cut) == 1 else 'were'} cut: {'; '.join(named)}{more}"
    ]


def device() -> str:
    """Where scorers compute."""
    return best_device()


def check_side(kind: str, folder: Path, size: Any, side: int) -> None:
    """Refuse pictures prepared at another side than the model in ``folder`` takes."""
    made = dict(size)
    if (made.get("height"), made.get("width")) != (side, side):
        raise MapoError(
            f"{kind}: the model in {folder} takes pictures of {side} × {side}, and its preprocessor_config.json makes "
            f"{made.get('height')} × {made.get('width')}. Put the model's own file there."
        )


def join(*revisions: str) -> str:
    """The revision of weights that come from several places, each named once."""
    return "+".join(dict.fromkeys(revisions))
