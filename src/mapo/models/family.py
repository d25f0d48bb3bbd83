"""The contract of a family of models: what training, encoding and sampling ask of one, once it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mapo.errors import MapoError
from mapo.models.files import ModelFiles
from mapo.models.loras.layers import Layer
from mapo.models.noise.process import Process

Cond = dict[str, Tensor]  # what the denoiser is given besides x_t and t, by name: "n …", each in a dtype of its own
Texts = Mapping[str, Tensor | Sequence[Tensor]]  # of n prompts, by name: "n …", or one tensor for each prompt
TextEncoder = Callable[[Sequence[str]], Texts]  # no gradients
ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]  # pixels in [-1, 1] "n 3 H W" → mean, log-variance "n c h w"


SMALL = 128  # pixels of a side; pictures that are larger fill a device few at a time
LARGEST = 2**14  # pixels of a side; of a larger one a picture alone takes a gigabyte


@dataclass(frozen=True)
class Layout:
    """The shape of a model's latents."""

    channels: int
    stride: int  # pixels per latent element and side
    multiple: int  # of so many pixels every side has to be
    side: int  # in pixels, at which the model works by itself
    most: int | None = None  # pixels that a side may have in training
    drawn: int = 8  # of so many pixels a side has to be in pictures that are drawn

    def checked(self, resolution: int | None) -> int:
        """The side to train at (None: the model's own); MapoError where the denoiser cannot halve it often enough."""
        side = self.side if resolution is None else resolution
        if side < 1 or side % self.multiple:
            raise MapoError(f"data.resolution is {side}; it has to be a multiple of {self.multiple} for this model.")
        if side > LARGEST:
            raise MapoError(f"data.resolution is {side}; it has to be at most {LARGEST:,}.")
        if self.most and side > self.most:
            raise MapoError(f"data.resolution is {side}; this model has places for at most {self.most} pixels.")
        return side

    def latent(self, height: int, width: int | None = None) -> tuple[int, int, int]:
        """The shape "c h w" of the latent of a picture; without a width, of a square one."""
        return self.channels, height // self.stride, (width or height) // self.stride


@dataclass(frozen=True)
class Frames:
    """How b pictures were framed: ``original`` height and width "b 2", ``crop`` top and left "b 2", ``target`` height
    and width after cropping "b 2"; integers, in pixels."""

    original: Tensor
    crop: Tensor
    target: Tensor

    @classmethod
    def square(cls, sizes: Tensor, side: int) -> Frames:
        """From what the cache holds of each picture, "b 4", and the side of the square that was cut out."""
        return cls.alike(sizes, (side, side))

    @classmethod
    def alike(cls, sizes: Tensor, target: tuple[int, int]) -> Frames:
        """From what the cache holds of each picture, "b 4", and the height and width that were cut out."""
        return cls(sizes[:, :2], sizes[:, 2:], sizes.new_tensor(target).expand(len(sizes), 2))


def together(texts: Sequence[Cond]) -> Cond:
    """The tensors of n prompts, by name, as one: "n …".

    Where their first sides differ they are filled up with zeros behind, and ``NAME_length`` "n" says how long each is.
    """
    found: Cond = {}
    for name in texts[0] if texts else ():
        values = [text[name] for text in texts]
        lengths = [len(value) if value.ndim else 0 for value in values]
        found[name] = torch.stack(values) if len(set(lengths)) == 1 else pad_sequence(values, batch_first=True)
        if len(set(lengths)) > 1:
            found[f"{name}_length"] = torch.tensor(lengths)
    return found


def filled_up(text: Cond, empty: Cond, chunks: int) -> Cond:
    """A prompt's tensors with those of the ``empty`` prompt behind them, until they are ``chunks`` chunks long.

    The empty prompt is one chunk: "l d" becomes "(chunks l) d". What has but one axis, as pooled text, stays.
    """
    found: Cond = {}
    for name, value in text.items():
        lacking = chunks * len(empty[name]) - len(value) if value.ndim > 1 else 0
        found[name] = torch.cat([value, *[empty[name]] * (lacking // len(empty[name]))]) if lacking else value
    return found


class Opened(Protocol):
    """A model of a family. b images or n prompts; c h w a latent. Weights are read by the methods that need them."""

    @property
    def files(self) -> ModelFiles:
        """Where its parts lie."""

    @property
    def denoiser_part(self) -> str:
        """The folder of what is trained."""

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """The folders that decide what the cache holds."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """What can be trained of it: "full", "lora"."""

    @property
    def distilled(self) -> str:
        """Why the model is one for few steps, which training makes worse; empty where nothing says so."""

    @property
    def told_guidance(self) -> bool:
        """Whether the denoiser has a guidance embedding, so that a guidance is told to it and not computed."""

    @property
    def prompt_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors that a prompt becomes, by name, at their longest; where prompts are read in chunks, of one."""

    @property
    def prompt_numbers(self) -> int:
        """How many numbers the cache keeps of a prompt."""

    @property
    def zero_without_prompt(self) -> bool:
        """Whether its pipeline stands zeros in for a missing negative prompt, or else the states of an empty one."""

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers of the denoiser beside which a LoRA is laid, by the ends of their names."""

    @property
    def advised_sampling(self) -> Mapping[str, float]:
        """Steps and guidance for pictures, where the folder says nothing."""

    @property
    def process(self) -> Process:
        """The noise process that the model was trained with; MapoError where training does not know it."""

    @property
    def layout(self) -> Layout:
        """The shape of its latents."""

    def check_values(self) -> None:
        """MapoError where a JSON file lacks a value or has one of another kind, or prompts cannot be read as asked."""

    def check(self) -> None:
        """MapoError where the folder says that it is not what this family trains. Weights are not read."""

    def lora_layers(self, heads_only: bool = ...) -> list[list[Layer]]:
        """The layers of each LoRA that lies on the model, at its strength; MapoError where one is not of this model.

        With ``heads_only`` they have no numbers, and nothing but the heads of files is read.
        """

    def tokenizers(self) -> tuple[Any, ...]:
        """What turns prompts into tokens, one for each text encoder; no weights are read."""

    def text_encoder(self, device: Any, dtype: Any = ...) -> TextEncoder:
        """Its text encoders as one function: those of CLIP in float32, large language models in ``dtype``."""

    def image_encoder(self, device: Any) -> ImageEncoder:
        """Its VAE's encoder in float32. The latents are not scaled yet."""

    def scale(self, latents: Tensor) -> Tensor:
        """The VAE's latents as the denoiser knows them, "b c h w"."""

    def condition(self, text: Cond, frames: Frames) -> Cond:
        """All that the denoiser is given for b images: their prompts' ``text`` "b …" and what it is told of frames."""

    def outline(self, part: str) -> nn.Module:
        """The network of a part without its weights."""

    def denoiser(self, device: Any, dtype: Any, loras: bool = ...) -> nn.Module:
        """The network that is trained, with its LoRAs merged in but for where ``loras`` is false."""

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output, "b c h w"."""

    def pipeline(self, device: Any, dtype: Any, given: Mapping[str, Any] = ...) -> Any:
        """A diffusers pipeline that makes pictures; networks that are ``given``, by their parts, are not loaded."""

    def save(self, denoiser: nn.Module, folder: Path) -> None:
        """Write a fully trained denoiser into a run folder, in diffusers' format."""

    def save_lora(self, networks: Mapping[str, nn.Module], folder: Path, continued: bool = ...) -> None:
        """Write the LoRA that was trained beside ``networks`` (parts by name), and those that it stands on, as one
        ``pytorch_lora_weights.safetensors``. One that was ``continued`` is in what was trained."""

    def save_text_loras(self, folder: Path) -> None:
        """Write what LoRAs changed in the text encoders, for a denoiser that has the rest in its weights."""


@runtime_checkable
class TokenModel(Protocol):
    """A model of which tokenizing and encoding are two functions: its prompts can be read in chunks, and its text
    encoders can be trained. n prompts of k chunks, each of l tokens."""

    def tokens(self, prompts: Sequence[str]) -> list[Cond]:
        """What each text encoder reads of each prompt, by names that begin with ``tokens``, "k l"."""

    def load_text_encoders(self, device: Any, dtype: Any = ..., loras: bool = ...) -> dict[str, nn.Module]:
        """Its text encoders by their parts, with their LoRAs merged in but for where ``loras`` is false."""

    def encode_tokens(self, encoders: Sequence[Any], tokens: Cond) -> Cond:
        """What the encoders make of tokens "n k l", with gradients: "n …"."""

    @property
    def text_lora_targets(self) -> tuple[str, ...]:
        """The layers of text encoders beside which a LoRA is laid, by the ends of their names."""

    def unread_text_layers(self, part: str, encoder: nn.Module) -> tuple[str, ...]:
        """How the names of layers begin of which the denoiser reads nothing; training does not reach them."""

    def pipeline_texts(self, pipeline: Any, prompts: Sequence[str], negative_prompt: str) -> list[Cond]:
        """What the pipeline is given in place of each prompt and of the negative one, both of one length, "1 …"."""


Families = Mapping[str, Callable[[ModelFiles], Opened]]
