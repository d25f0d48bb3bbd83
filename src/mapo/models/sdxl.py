"""Stable Diffusion XL and everything of its layout: two CLIP text encoders, size conditioning, VAE, UNet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mapo.errors import MapoError
from mapo.models import Model, read_config
from mapo.models.kind import check_scheduler, check_tokenizer_files, check_vae, check_vocabulary
from mapo.models.lora import LORA_FILE, check_lora, check_on_top_of, on_top_of
from mapo.models.noise import Schedule
from mapo.models.parts import load_part, not_whole, refuse_pickles, variants

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PARTS = ("vae", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
TOKENIZERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))  # each with its encoder
NETWORKS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


USUAL_SCALE = 0.13025  # of SDXL's own VAE


@dataclass(frozen=True)
class TextEncoders:
    """The parts that turn prompts into what the UNet is given."""

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection]


def check(model: Model) -> None:
    """MapoError where the folder is not of SDXL's kind, though its pipeline's class says so; weights are not read."""
    check_scheduler(model.base, read_config(model.base, "scheduler/scheduler_config.json"))
    vae, unet = read_config(model.base, "vae/config.json"), read_config(model.base, "unet/config.json")
    check_vae(model.base, vae, USUAL_SCALE)
    for part, _ in TOKENIZERS:
        check_tokenizer_files(model.base, part)
    for part in NETWORKS:
        refuse_pickles(model.base, part)
    path = model.base / "unet" / "config.json"
    latent, taken = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if taken != latent:
        raise MapoError(f"{path} takes {taken} channels, the VAE gives {latent}: a model for editing or inpainting.")
    if unet.get("addition_embed_type") != "text_time":
        raise MapoError(f"{path} has addition_embed_type {unet.get('addition_embed_type')!r}; SDXL has 'text_time'.")
    if unet.get("time_cond_proj_dim") is not None:
        raise MapoError(
            f"{path} has time_cond_proj_dim, so the model was distilled with its guidance built in. Train the model "
            "that it was made from."
        )


def check_loras(model: Model, on_top: bool) -> None:
    """MapoError where a LoRA of the model is not one of its UNet, or could not be one file with another ``on_top``."""
    if not model.loras:
        return
    base, part = _unet_of(model)
    config = read_config(base, f"{part}/config.json")
    try:
        with torch.device("meta"):  # its layers, without their weights
            unet = UNet2DConditionModel.from_config(config)
    except Exception as error:
        raise not_whole(base, part, error) from None
    for lora in model.loras:
        check_lora(lora, unet)
        if on_top:
            check_on_top_of(lora, unet, LORA_TARGETS)


def _unet_of(model: Model) -> tuple[Path, str]:
    return (model.denoiser.parent, model.denoiser.name) if model.denoiser else (model.base, "unet")


def load_denoiser(model: Model, device: Any, dtype: Any = torch.float32) -> nn.Module:
    """The UNet with a run's weights, its LoRAs merged in."""
    unet = load_part(UNet2DConditionModel, *_unet_of(model), dtype)
    for lora in model.loras:
        check_lora(lora, unet)
    if model.loras:
        pipeline = _load_pipeline_around(model, unet, dtype)
        _fuse(pipeline, model.loras)
        unet = pipeline.unet
    return unet.to(device)  # type: ignore[no-any-return]


def _load_pipeline_around(model: Model, unet: UNet2DConditionModel, dtype: Any) -> StableDiffusionXLPipeline:
    absent = {"vae": None, "text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
    return StableDiffusionXLPipeline.from_pretrained(
        model.base, unet=unet, torch_dtype=dtype, use_safetensors=True, **absent
    )


def _fuse(pipeline: StableDiffusionXLPipeline, loras: Sequence[Path]) -> None:
    logging.getLogger("diffusers.loaders.lora_base").addFilter(_is_news)
    for number, lora in enumerate(loras):
        name = f"run{number}"
        pipeline.load_lora_weights(lora, weight_name=LORA_FILE, adapter_name=name)
        pipeline.fuse_lora(components=["unet"], adapter_names=[name])
        pipeline.unload_lora_weights()


def _is_news(record: logging.LogRecord) -> bool:
    """False for the library's surprise that a LoRA of the UNet has no layers of text encoders."""
    return "No LoRA keys associated" not in record.getMessage()


def load_tokenizers(model: Model) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Those of both text encoders. They read no more tokens than their encoder has places for."""
    made = []
    for part, encoder_part in TOKENIZERS:
        check_tokenizer_files(model.base, part)
        encoder = read_config(model.base, f"{encoder_part}/config.json")
        try:
            tokenizer = CLIPTokenizer.from_pretrained(model.base, subfolder=part)
        except Exception as error:
            raise not_whole(model.base, part, error) from None
        check_vocabulary(model.base, tokenizer, part, encoder, encoder_part)
        tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.get("max_position_embeddings", 77))
        made.append(tokenizer)
    return made[0], made[1]


def load_vae(model: Model, device: Any) -> AutoencoderKL:
    """In float32: SDXL's own overflows in half precision."""
    return load_part(AutoencoderKL, model.base, "vae").to(device).eval()


def load_text_encoders(model: Model, device: Any) -> TextEncoders:
    """Tokenizers and text encoders."""
    kinds = zip((CLIPTextModel, CLIPTextModelWithProjection), TOKENIZERS, strict=True)
    first, second = (load_part(kind, model.base, part).to(device).eval() for kind, (_, part) in kinds)
    return TextEncoders(load_tokenizers(model), (first, second))


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels "n 3 H W" in [-1, 1] → mean and log-variance "n c h w"."""
    posterior = vae.encode(pixels.to(vae.device)).latent_dist
    return posterior.mean, posterior.logvar


@torch.no_grad()
def encode_prompts(encoders: TextEncoders, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Penultimate states of both encoders side by side "n l d", and the second one's pooled projection "n d"."""
    states = []
    pooled = None
    for tokenizer, encoder in zip(encoders.tokenizers, encoders.encoders, strict=True):
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        output = encoder(ids.to(encoder.device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled = output[0]
    assert pooled is not None
    return {"prompt_embeds": torch.cat(states, -1), "text_embeds": pooled}


def scale_latents(model: Model, latents: Tensor) -> Tensor:
    """(latents − mean) · scaling_factor / std, where the VAE's configuration gives mean and std at all."""
    config = read_config(model.base, "vae/config.json")
    check_vae(model.base, config, USUAL_SCALE)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shift, spread = (latents.new_tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        latents = (latents - shift) / spread
    return latents * float(config["scaling_factor"])


def schedule(model: Model) -> Schedule:
    """The schedule that the model's scheduler names: its betas, rescaled if it says so, and what it predicts."""
    config = read_config(model.base, "scheduler/scheduler_config.json")
    check_scheduler(model.base, config)
    scheduler = DDPMScheduler.from_config(config)
    return Schedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)


def latent_stride(model: Model) -> int:
    """2^(number of VAE blocks − 1)."""
    return int(2 ** (len(read_config(model.base, "vae/config.json")["block_out_channels"]) - 1))


def resolution(model: Model) -> int:
    """The UNet's sample size in pixels."""
    size = read_config(model.base, "unet/config.json").get("sample_size")
    if not isinstance(size, int):
        raise MapoError(f"{model.base / 'unet' / 'config.json'} has sample_size {size!r}; it has to be one number.")
    return size * latent_stride(model)


def size_condition(sizes: Tensor, resolution: int) -> dict[str, Tensor]:
    """SDXL's time ids: original height and width, crop top and left, target height and width, "b 6"."""
    target = torch.full((len(sizes), 2), resolution, dtype=sizes.dtype)
    return {"time_ids": torch.cat([sizes, target], 1).float()}


def predict(denoiser: nn.Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """The UNet's output "b c h w"."""
    added = {"text_embeds": cond["text_embeds"], "time_ids": cond["time_ids"]}
    output: Tensor = denoiser(x_t, t, cond["prompt_embeds"], added_cond_kwargs=added, return_dict=False)[0]
    return output


def pipeline(model: Model, device: Any, dtype: Any = torch.float32) -> StableDiffusionXLPipeline:
    """The whole pipeline with the run's UNet or LoRA in place."""
    own = {"unet": load_denoiser(model, "cpu", dtype)} if model.denoiser or model.loras else {}
    for part in NETWORKS:
        refuse_pickles(model.base, part)
    halves = variants(model.base, tuple(part for part in NETWORKS if part not in own))
    parts = {part: load_part(NETWORKS[part], model.base, part, dtype) for part in halves} | own
    try:
        made = StableDiffusionXLPipeline.from_pretrained(
            model.base, torch_dtype=dtype, use_safetensors=True, add_watermarker=False, **parts
        )
    except MapoError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise MapoError(f"The model folder {model.base} cannot be loaded ({reason}).") from None
    made.set_progress_bar_config(disable=True)
    return made.to(device)


def save_denoiser(denoiser: nn.Module, folder: Path) -> None:
    """Write ``folder/unet``."""
    denoiser.save_pretrained(folder / "unet", safe_serialization=True)  # type: ignore[operator]


def save_lora(denoiser: nn.Module, folder: Path, below: Sequence[Path] = ()) -> None:
    """Write ``folder/pytorch_lora_weights.safetensors``, which ``pipeline.load_lora_weights(folder)`` opens.

    With the LoRAs ``below`` it is one LoRA whose rank is the sum of theirs.
    """
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser))
    for lora in reversed(below):
        layers = on_top_of(lora, layers)
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
