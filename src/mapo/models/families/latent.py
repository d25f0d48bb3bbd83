"""What all families share: a pipeline folder with an AutoencoderKL, text encoders, one denoiser, and LoRAs of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mapo.errors import MapoError
from mapo.models.families.tokens import check_tokenizer_files
from mapo.models.family import SMALL, Cond, Frames, ImageEncoder, Layout, TextEncoder
from mapo.models.files import ModelFiles
from mapo.models.loras.layers import Layer, as_one
from mapo.models.loras.sources import LORA_FILE
from mapo.models.loras.write import trained_layers, write_layers
from mapo.models.noise.drawing import check_names, class_named, tell_names
from mapo.models.noise.process import ELSEWHERE, Process
from mapo.models.parts.config import read_config
from mapo.models.parts.header import TAKE_WHOLE
from mapo.models.parts.kinds import (
    INDEX_ENTRY,
    REMEDY,
    TEXT_ENCODER,
    TOKENIZER,
    VAE,
    Kind,
    check_kinds,
    check_lengths,
)
from mapo.models.parts.weights import not_loaded, quietly, refuse_pickles

NOTHING: Mapping[str, Any] = {}

TokenizerLoader = Callable[[ModelFiles, str, str], Any]  # files, its part, its encoder's part → the tokenizer


class LatentModel(ABC):
    """A model that denoises latents. What differs between families stands in these values and the abstract methods."""

    pipeline_kind: ClassVar[Any]
    pipeline_settings: ClassVar[Mapping[str, Any]] = {}
    denoiser_part: ClassVar[str]
    denoiser_kind: ClassVar[Any]
    denoiser_values: ClassVar[Mapping[str, Kind]]  # of its config.json
    denoiser_needs: ClassVar[tuple[str, ...]] = ()
    scheduler_values: ClassVar[Mapping[str, Kind]]
    encoder_kinds: ClassVar[Mapping[str, Any]]  # part → class, of the text encoders
    tokenizer_kinds: ClassVar[Mapping[str, TokenizerLoader]]  # part → loader, one for each text encoder
    may_lack: ClassVar[tuple[str, ...]] = ()  # parts that a folder may come without
    usual_inputs: ClassVar[int]  # channels that the denoiser takes where its file does not say it
    inputs_per_channel: ClassVar[int] = 1  # of the latents
    usual_scale: ClassVar[float]  # of the latents
    scale_may_lack: ClassVar[bool] = False  # in the VAE's file, where the class's own is meant
    usual_sampling: ClassVar[Mapping[str, float]]  # steps and guidance
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    adapters: ClassVar[tuple[str, ...]] = ("full", "lora")

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.lacking = files.parts_left_out(self.may_lack) if self.may_lack else ()
        self.text_encoders = {part: kind for part, kind in self.encoder_kinds.items() if part not in self.lacking}
        pairs = zip(self.tokenizer_kinds, self.encoder_kinds, strict=True)
        self.tokenizer_parts = tuple(part for part, encoder in pairs if encoder in self.text_encoders)
        self.encoder_parts = ("vae", *self.tokenizer_parts, *self.text_encoders)
        self.networks = {self.denoiser_part: self.denoiser_kind, "vae": AutoencoderKL, **self.text_encoders}

    @property
    @abstractmethod
    def process(self) -> Process:
        """The noise process that the scheduler's file names."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The shape of its latents."""

    @property
    @abstractmethod
    def prompt_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors that a prompt becomes, by name, at their longest."""

    @abstractmethod
    def text_encoder(self, device: Any, dtype: Any = torch.float32) -> TextEncoder:
        """Its text encoders, as one function."""

    @abstractmethod
    def condition(self, text: Cond, frames: Frames) -> Cond:
        """All that the denoiser is given for b images."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output "b c h w"."""

    @abstractmethod
    def check_denoiser(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the denoiser is told other things than this family's."""

    # ------------------------------------------------------------------ what the files say

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        """The VAE's configuration."""
        return self.files.config("vae")

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.vae_config.get("latent_channels") or 4

    @property
    def stride(self) -> int:
        """Pixels per latent element and side: 2^(blocks of the VAE − 1)."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @property
    def prompt_numbers(self) -> int:
        """How many numbers the cache keeps of a prompt."""
        return sum(math.prod(shape) for shape in self.prompt_shapes.values())

    @property
    def distilled(self) -> str:
        """Why the model is one for few steps, which training makes worse; empty where nothing says so."""
        return self.files.called_distilled()

    @property
    def told_guidance(self) -> bool:
        """No denoiser has a guidance embedding but FLUX.1 dev's."""
        return False

    @property
    def advised_sampling(self) -> Mapping[str, float]:
        """Steps and guidance for pictures."""
        return self.usual_sampling

    @property
    def zero_without_prompt(self) -> bool:
        """No pipeline does this but SDXL's."""
        return False

    def check_long_prompts(self) -> None:
        """MapoError where prompts are to be read in chunks and this model reads none."""
        self.files.refuse_chunks(self.pipeline_kind.__name__)

    def check_clip_skip(self) -> None:
        """MapoError where ``clip_skip`` is asked for, or is more than this model can leave out."""
        self.files.refuse_clip_skip(self.pipeline_kind.__name__)

    def check_values(self) -> None:
        """MapoError where a JSON file lacks a value or has one of another kind, or prompts cannot be read as asked."""
        files, denoiser = self.files, self.denoiser_part
        entries = dict.fromkeys((*self.networks, *self.tokenizer_parts, "scheduler"), INDEX_ENTRY)
        check_kinds(files.base / "model_index.json", read_config(files.base, "model_index.json"), entries, entries)
        for part in self.tokenizer_parts:
            check_tokenizer_files(files.base, part)
        kinds: dict[str, Mapping[str, Kind]] = {
            "vae": VAE, denoiser: self.denoiser_values, "scheduler": self.scheduler_values
        }  # fmt: skip
        kinds |= dict.fromkeys(self.text_encoders, TEXT_ENCODER) | dict.fromkeys(self.tokenizer_parts, TOKENIZER)
        for part, known in kinds.items():
            needed = {"vae": ("block_out_channels",), denoiser: self.denoiser_needs}.get(part, ())
            config, path = files.config(part), files.config_path(part)
            check_kinds(path, config, known, needed)
            check_lengths(path, config, "block_out_channels", ("down_block_types", "up_block_types"))
        self._check_channels()
        check_statistics(files.config_path("vae"), self.vae_config, self.channels)
        check_names(files.base, files.scheduler_class, str(files.config("scheduler").get("_class_name", "")))
        self.check_clip_skip()
        self.check_long_prompts()

    def _check_channels(self) -> None:
        """MapoError where the denoiser does not take the latents that the VAE gives."""
        path, config = self.files.config_path(self.denoiser_part), self.files.config(self.denoiser_part)
        taken = config.get("in_channels") or self.usual_inputs
        gives, latents = config.get("out_channels") or self.usual_inputs, self.channels * self.inputs_per_channel
        if taken != latents and taken > gives:
            raise MapoError(
                f"{path} takes {taken} channels and gives {gives}: a model for editing or inpainting. Give "
                "the model that it was made from."
            )
        if taken != latents:
            raise MapoError(
                f"{path} takes latents of {taken // self.inputs_per_channel} channels, and the VAE of "
                f"{self.files.config_path('vae')} gives {self.channels}: it is one of another kind of model. "
                "Take both from the model's own page."
            )

    def _check_outputs(self) -> None:
        """MapoError where the denoiser does not give as many channels as it takes."""
        path, config = self.files.config_path(self.denoiser_part), self.files.config(self.denoiser_part)
        taken, gives = config.get("in_channels") or self.usual_inputs, config.get("out_channels")
        if gives not in (None, taken):
            raise MapoError(f"{path} takes {taken} channels and gives {gives}; training needs as many. {REMEDY}")

    def check(self) -> None:
        """MapoError where the folder is not of this kind, though its pipeline's class says so; weights are not read."""
        files = self.files
        _ = self.process  # which refuses a scheduler of another kind
        self.check_vae()
        for part in self.networks:
            refuse_pickles(files.base, part)
            if files.config(part).get("quantization_config"):
                path = files.config_path(part)
                raise MapoError(f"{path} has quantization_config: such weights cannot be trained. {TAKE_WHOLE}")
        self._check_outputs()
        self.check_denoiser(files.config(self.denoiser_part), files.config_path(self.denoiser_part))
        self.tokenizers()
        for part, kind in self.networks.items():
            files.outline(part, kind)

    def check_vae(self) -> None:
        """MapoError where the VAE is of another class or does not say how its latents are scaled."""
        check_vae(self.files.base, self.vae_config, self.usual_scale, self.scale_may_lack)

    def lora_layers(self, heads_only: bool = False) -> list[list[Layer]]:
        """The layers of each LoRA that lies on the model, at its strength; MapoError where one does not fit.

        With ``heads_only`` they have no numbers, and nothing but the heads of files is read.
        """
        if not self.files.lora_parts(self.networks):
            return []
        outlines = {part: self.outline(part) for part in self.networks if part != "vae"}
        return self.files.lora_layers(outlines, heads_only)

    def tokenizers(self) -> tuple[Any, ...]:
        """Those of the text encoders, in their order."""
        parts = zip(self.tokenizer_parts, self.text_encoders, strict=True)
        return tuple(self.tokenizer_kinds[part](self.files, part, encoder) for part, encoder in parts)

    # ------------------------------------------------------------------ latents

    def image_encoder(self, device: Any) -> ImageEncoder:
        """In float32: SDXL's own VAE overflows in half precision."""
        vae = self.files.load("vae", AutoencoderKL).to(device).eval()
        self._one_at_a_time(vae)

        @torch.no_grad()
        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            posterior = vae.encode(pixels.to(vae.device)).latent_dist
            return posterior.mean, posterior.logvar

        return encode

    def _one_at_a_time(self, vae: Any) -> None:
        """A picture of 1,024 pixels takes 2.5 GiB in the VAE, eight together eight times as much: bench/vae.py."""
        if self.layout.side > SMALL:
            vae.enable_slicing()

    def scale(self, latents: Tensor) -> Tensor:
        """(latents − mean) · scaling_factor / std, where the VAE's configuration gives mean and std at all.

        Its ``shift_factor`` is one mean for all channels.
        """
        config = self.vae_config
        self.check_vae()
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            shift, spread = (latents.new_tensor(v).view(1, -1, 1, 1) for v in (mean, std))
            latents = (latents - shift) / spread
        if config.get("shift_factor"):
            latents = latents - float(config["shift_factor"])
        return latents * float(config.get("scaling_factor") or self.usual_scale)

    # ------------------------------------------------------------------ the denoiser

    def outline(self, part: str) -> nn.Module:
        """A part without its weights."""
        return self.files.outline(part, self.networks[part])  # type: ignore[no-any-return]

    def denoiser(self, device: Any, dtype: Any = torch.float32, loras: bool = True) -> nn.Module:
        """The denoiser with a run's weights, and its LoRAs merged in but for where ``loras`` is false."""
        network = self.files.load(self.denoiser_part, self.denoiser_kind, dtype, loras)
        return network.to(device)  # type: ignore[no-any-return]

    def _assembled(self, dtype: Any, **parts: Any) -> Any:
        """The folder's pipeline with these parts in place of its own."""
        how = {"dtype": dtype, "use_safetensors": True, **self.pipeline_settings, **parts}
        if self.files.prediction:  # else the scheduler is as the folder says
            kind = class_named(self.files.base, self.files.scheduler_class)
            how["scheduler"] = kind.from_config(self.files.config("scheduler"))
        try:
            with quietly():
                return self.pipeline_kind.from_pretrained(self.files.base, **how)
        except Exception as error:
            raise not_loaded(self.files.base, error) from None

    def loaded(self, part: str, dtype: Any = torch.float32, loras: bool = True) -> Any:
        """The network of a part as it is used, with its LoRAs merged in but for where ``loras`` is false."""
        return self.files.load(part, self.networks[part], dtype, loras)

    def pipeline(self, device: Any, dtype: Any = torch.float32, given: Mapping[str, Any] = NOTHING) -> Any:
        """The whole pipeline with the run's denoiser or LoRA in place; networks that are ``given`` are not loaded."""
        base = self.files.base
        self.files.lora_parts(self.networks)  # which refuses layers of a part that lacks
        parts = {part: self.loaded(part, dtype) for part in self.networks if part not in given} | dict(given)
        parts |= dict(zip(self.tokenizer_parts, self.tokenizers(), strict=True)) | dict.fromkeys(self.lacking)
        tell_names(base, self.files.scheduler_class, str(self.files.config("scheduler").get("_class_name", "")))
        made = self._assembled(dtype, **parts)
        if self.scale_may_lack and made.vae.config.get("scaling_factor") is None:  # it is null in the file
            made.vae.register_to_config(scaling_factor=self.usual_scale)
        self._one_at_a_time(made.vae)
        made.set_progress_bar_config(disable=True)
        with quietly():  # of half precision on a CPU diffusers says that it fails
            return made.to(device)

    def save(self, denoiser: nn.Module, folder: Path) -> None:
        """Write the denoiser into its folder within ``folder``."""
        denoiser.save_pretrained(folder / self.denoiser_part, safe_serialization=True)  # type: ignore[operator]

    def save_lora(self, networks: Mapping[str, nn.Module], folder: Path, continued: bool = False) -> None:
        """Write ``folder/pytorch_lora_weights.safetensors``, which ``pipeline.load_lora_weights(folder)`` opens.

        It holds what was trained beside ``networks`` (parts by name) and the LoRAs that the model stands on, as one
        LoRA. Where the one below was ``continued`` it is in what was trained, and only its other parts are added.
        """
        trained = [layer for part, network in networks.items() for layer in trained_layers(part, network)]
        below, parts = [layer for layers in self.lora_layers() for layer in layers], {layer.part for layer in trained}
        below = [layer for layer in below if not (continued and layer.part in parts)]
        write_layers(folder / LORA_FILE, as_one([*below, *trained]))

    def save_text_loras(self, folder: Path) -> None:
        """Write what LoRAs changed in the text encoders, beside a denoiser that has their other layers in its weights.

        Nothing is written where that is nothing.
        """
        below = [layer for layers in self.lora_layers() for layer in layers if layer.part != self.denoiser_part]
        if below:
            write_layers(folder / LORA_FILE, as_one(below))


def check_vae(base: Path, config: dict[str, Any], usual: float, may_lack: bool = False) -> None:
    """MapoError where the VAE is of another class or its scaling factor is not said; ``usual`` is the family's."""
    path = base / "vae" / "config.json"
    name = config.get("_class_name", "AutoencoderKL")
    if name != "AutoencoderKL":
        raise MapoError(f"{path} names {name}; training knows AutoencoderKL. {ELSEWHERE}")
    if config.get("scaling_factor") is None and not may_lack:
        raise MapoError(
            f"{path} has no scaling_factor. Pipelines would take 0.18215 without a word, but the usual VAE of this "
            f'kind of model has {usual}. Write the right one into the file: "scaling_factor": {usual}.'
        )


def check_statistics(path: Path, config: Mapping[str, Any], channels: int) -> None:
    """MapoError where the VAE's file ``path`` does not give mean and std of each channel, or neither."""
    given = {key: config[key] for key in ("latents_mean", "latents_std") if config.get(key) is not None}
    if len(given) == 1:
        raise MapoError(f"{path} has {next(iter(given))} alone; latents_mean and latents_std go together. {REMEDY}")
    for key, values in given.items():
        if len(values) != channels:
            raise MapoError(f"{path} has {len(values)} values in {key}, for {channels} channels. {REMEDY}")
