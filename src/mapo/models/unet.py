"""What the families with a UNet share: AutoencoderKL, UNet2DConditionModel, a DDPM, and LoRAs of the UNet."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from mapo.errors import MapoError
from mapo.models.clip import check_tokenizer_files, limited, load_tokenizer
from mapo.models.family import Cond, Frames, ImageEncoder, Layout, TextEncoder
from mapo.models.files import ModelFiles, quietly, read_config, reason, refuse_pickles, variants
from mapo.models.kinds import (
    INDEX_ENTRY,
    REMEDY,
    SCHEDULER,
    TEXT_ENCODER,
    TOKENIZER,
    UNET,
    VAE,
    Kind,
    check_kinds,
    check_lengths,
)
from mapo.models.lora import LORA_FILE, check_lora, check_on_top_of, on_top_of
from mapo.models.noise import ELSEWHERE, Ddpm, Process


class UNetModel(ABC):
    """A model that denoises with a UNet. What differs between families are its text encoders and what it is told."""

    pipeline_kind: ClassVar[Any]
    pipeline_settings: ClassVar[Mapping[str, Any]] = {}
    text_encoders: ClassVar[Mapping[str, Any]]  # part → class
    tokenizer_parts: ClassVar[tuple[str, ...]]  # one for each text encoder
    usual_scale: ClassVar[float]  # of the latents
    advised_sampling: ClassVar[Mapping[str, float]]
    scale_may_lack: ClassVar[bool]  # in the VAE's file, where the class's own is meant

    denoiser_part = "unet"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.encoder_parts = ("vae", *self.tokenizer_parts, *self.text_encoders)
        self.networks = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, **self.text_encoders}

    @abstractmethod
    def text_encoder(self, device: Any) -> TextEncoder:
        """Its text encoders in float32, as one function."""

    @abstractmethod
    def condition(self, text: Cond, frames: Frames) -> Cond:
        """All that the UNet is given for b images."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The UNet's output "b c h w"."""

    @abstractmethod
    def check_unet(self, config: Mapping[str, Any], path: Path) -> None:
        """MapoError where the UNet is told other things than this family's."""

    @abstractmethod
    def check_clip_skip(self) -> None:
        """MapoError where ``clip_skip`` is more than this model can leave out."""

    # ------------------------------------------------------------------ what the files say

    @cached_property
    def _vae_config(self) -> dict[str, Any]:
        return self.files.config("vae")

    @cached_property
    def process(self) -> Process:
        """The schedule that the model's scheduler names: its betas, rescaled if it says so, and what it predicts."""
        return Ddpm.from_scheduler(self.files.config("scheduler"), self.files.config_path("scheduler"))

    @cached_property
    def layout(self) -> Layout:
        """A stride of 2^(blocks of the VAE − 1), and as many halvings again as the UNet has blocks but one."""
        unet = self.files.config("unet")
        stride = 2 ** (len(self._vae_config["block_out_channels"]) - 1)
        halvings = len(unet.get("block_out_channels") or (320, 640, 1280, 1280)) - 1
        return Layout(self._channels, stride, multiple=stride * 2**halvings, side=unet["sample_size"] * stride)

    @property
    def _channels(self) -> int:
        return self._vae_config.get("latent_channels") or 4

    def check_values(self) -> None:
        """MapoError where a JSON file lacks a value or has one of another kind, or ``clip_skip`` is not possible."""
        files = self.files
        entries = dict.fromkeys((*self.networks, *self.tokenizer_parts, "scheduler"), INDEX_ENTRY)
        check_kinds(files.base / "model_index.json", read_config(files.base, "model_index.json"), entries, entries)
        for part in self.tokenizer_parts:
            check_tokenizer_files(files.base, part)
        kinds: dict[str, Mapping[str, Kind]] = {"vae": VAE, "unet": UNET, "scheduler": SCHEDULER}
        kinds |= dict.fromkeys(self.text_encoders, TEXT_ENCODER) | dict.fromkeys(self.tokenizer_parts, TOKENIZER)
        for part, known in kinds.items():
            needed = {"vae": ("block_out_channels",), "unet": ("sample_size",)}.get(part, ())
            config, path = files.config(part), files.config_path(part)
            check_kinds(path, config, known, needed)
            check_lengths(path, config, "block_out_channels", ("down_block_types", "up_block_types"))
        check_statistics(files.config_path("vae"), self._vae_config, self._channels)
        self.check_clip_skip()

    def check(self) -> None:
        """MapoError where the folder is not of this kind, though its pipeline's class says so; weights are not read."""
        files = self.files
        _ = self.process  # which refuses a scheduler of another kind
        check_vae(files.base, self._vae_config, self.usual_scale, self.scale_may_lack)
        for part in self.networks:
            refuse_pickles(files.base, part)
        config, path = files.config("unet"), files.config_path("unet")
        latent, taken, given = self._channels, config.get("in_channels") or 4, config.get("out_channels") or 4
        if taken != latent:
            raise MapoError(
                f"{path} takes {taken} channels, the VAE gives {latent}: a model for editing or inpainting."
            )
        if given != taken:
            raise MapoError(f"{path} takes {taken} channels and gives {given}; training needs as many. {REMEDY}")
        if config.get("time_cond_proj_dim") is not None:
            raise MapoError(
                f"{path} has time_cond_proj_dim, so the model was distilled with its guidance built in. Train the "
                "model that it was made from."
            )
        self.check_unet(config, path)
        self.tokenizers()
        for part, kind in self.networks.items():
            files.outline(part, kind)

    def check_loras(self, on_top: bool) -> None:
        """MapoError where a LoRA is not one of the UNet, or could not be one file with another ``on_top``."""
        if not self.files.loras:
            return
        unet = self.files.outline("unet", UNet2DConditionModel)
        for lora in self.files.loras:
            check_lora(lora, unet)
            if on_top:
                check_on_top_of(lora, unet, self.lora_targets)

    def tokenizers(self) -> tuple[Any, ...]:
        """Those of the text encoders, in their order."""
        parts = zip(self.tokenizer_parts, self.text_encoders, strict=True)
        return tuple(load_tokenizer(self.files, part, encoder) for part, encoder in parts)

    # ------------------------------------------------------------------ latents

    def image_encoder(self, device: Any) -> ImageEncoder:
        """In float32: SDXL's own VAE overflows in half precision."""
        vae = self.files.load("vae", AutoencoderKL).to(device).eval()

        @torch.no_grad()
        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            posterior = vae.encode(pixels.to(vae.device)).latent_dist
            return posterior.mean, posterior.logvar

        return encode

    def scale(self, latents: Tensor) -> Tensor:
        """(latents − mean) · scaling_factor / std, where the VAE's configuration gives mean and std at all."""
        config = self._vae_config
        check_vae(self.files.base, config, self.usual_scale, self.scale_may_lack)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            shift, spread = (latents.new_tensor(v).view(1, -1, 1, 1) for v in (mean, std))
            latents = (latents - shift) / spread
        return latents * float(config.get("scaling_factor") or self.usual_scale)

    # ------------------------------------------------------------------ the UNet

    def denoiser(self, device: Any, dtype: Any = torch.float32) -> nn.Module:
        """The UNet with a run's weights, its LoRAs merged in."""
        unet = self.files.load("unet", UNet2DConditionModel, dtype)
        for lora in self.files.loras:
            check_lora(lora, unet)
        if self.files.loras:
            pipeline = self._pipeline_around(unet, dtype)
            _fuse(pipeline, self.files.loras)
            unet = pipeline.unet
        return unet.to(device)  # type: ignore[no-any-return]

    def _pipeline_around(self, unet: UNet2DConditionModel, dtype: Any) -> Any:
        """A pipeline of the UNet and nothing else: it knows how its LoRAs are named."""
        index = read_config(self.files.base, "model_index.json")
        absent = {
            part: None for part, made in index.items() if isinstance(made, list) and part not in ("unet", "scheduler")
        }
        return self._assembled(dtype, **absent, unet=unet)

    def _assembled(self, dtype: Any, **parts: Any) -> Any:
        """The folder's pipeline with these parts in place of its own."""
        how = {"torch_dtype": dtype, "use_safetensors": True, **self.pipeline_settings, **parts}
        try:
            with quietly():
                return self.pipeline_kind.from_pretrained(self.files.base, **how)
        except Exception as error:
            raise MapoError(f"The model folder {self.files.base} cannot be loaded ({reason(error)}).") from None

    def own_parts(self, dtype: Any) -> dict[str, Any]:
        """The networks of :meth:`pipeline` that are not those of the base folder."""
        return {"unet": self.denoiser("cpu", dtype)} if self.files.denoiser or self.files.loras else {}

    def pipeline(self, device: Any, dtype: Any = torch.float32) -> Any:
        """The whole pipeline with the run's UNet or LoRA in place."""
        base, own = self.files.base, self.own_parts(dtype)
        for part in self.networks:
            refuse_pickles(base, part)
        halves = variants(base, tuple(part for part in self.networks if part not in own))
        parts = {part: self.files.load(part, self.networks[part], dtype) for part in halves} | own
        made = self._assembled(dtype, **parts)
        for part, encoder in zip(self.tokenizer_parts, self.text_encoders, strict=True):
            limited(getattr(made, part), self.files.config(encoder))
        made.set_progress_bar_config(disable=True)
        return made.to(device)

    def save(self, denoiser: nn.Module, folder: Path) -> None:
        """Write ``folder/unet``."""
        denoiser.save_pretrained(folder / "unet", safe_serialization=True)  # type: ignore[operator]

    def save_lora(self, denoiser: nn.Module, folder: Path) -> None:
        """Write ``folder/pytorch_lora_weights.safetensors``, which ``pipeline.load_lora_weights(folder)`` opens.

        With the LoRAs that the model stands on it is one LoRA whose rank is the sum of theirs.
        """
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser))
        for lora in reversed(self.files.loras):
            layers = on_top_of(lora, layers)
        self.pipeline_kind.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)


def _fuse(pipeline: Any, loras: tuple[Path, ...]) -> None:
    logging.getLogger("diffusers.loaders.lora_base").addFilter(_is_news)
    for number, lora in enumerate(loras):
        name = f"run{number}"
        pipeline.load_lora_weights(lora, weight_name=LORA_FILE, adapter_name=name)
        pipeline.fuse_lora(components=["unet"], adapter_names=[name])
        pipeline.unload_lora_weights()


def _is_news(record: logging.LogRecord) -> bool:
    """False for the library's surprise that a LoRA of the UNet has no layers of text encoders."""
    return "No LoRA keys associated" not in record.getMessage()


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
