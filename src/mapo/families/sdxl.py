"""Stable Diffusion XL and everything of its layout: two CLIP text encoders, size conditioning, VAE, UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mapo.errors import MapoError
from mapo.families import Model, read_config
from mapo.noise import Schedule

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PARTS = ("vae", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Encoders:
    """The parts that turn pictures and prompts into what the UNet is given."""

    vae: AutoencoderKL
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    text_encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection]


def _load(kind: Any, base: Path, part: str, dtype: Any = torch.float32) -> Any:
    how = {} if kind is CLIPTokenizer else {"torch_dtype": dtype, "use_safetensors": True}
    try:
        return kind.from_pretrained(base, subfolder=part, **how)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise MapoError(f"The model folder {base} is not whole: {part} cannot be loaded ({reason}).") from None


def load_denoiser(model: Model, device: Any, dtype: Any = torch.float32) -> nn.Module:
    """The UNet with a run's weights, its LoRAs merged in."""
    base, part = (model.denoiser.parent, model.denoiser.name) if model.denoiser else (model.base, "unet")
    unet = _load(UNet2DConditionModel, base, part, dtype)
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
    for number, lora in enumerate(loras):
        name = f"run{number}"
        read_lora(lora)  # whether it is whole
        pipeline.load_lora_weights(lora, weight_name=LORA_FILE, adapter_name=name)
        pipeline.fuse_lora(components=["unet"], adapter_names=[name])
        pipeline.unload_lora_weights()


def load_tokenizers(model: Model) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Those of both text encoders."""
    return _load(CLIPTokenizer, model.base, "tokenizer"), _load(CLIPTokenizer, model.base, "tokenizer_2")


def load_encoders(model: Model, device: Any) -> Encoders:
    """VAE (in float32: SDXL's own overflows in half precision), tokenizers and text encoders."""
    return Encoders(
        _load(AutoencoderKL, model.base, "vae").to(device).eval(),
        load_tokenizers(model),
        (
            _load(CLIPTextModel, model.base, "text_encoder").to(device).eval(),
            _load(CLIPTextModelWithProjection, model.base, "text_encoder_2").to(device).eval(),
        ),
    )


@torch.no_grad()
def encode_images(encoders: Encoders, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels "n 3 H W" in [-1, 1] → mean and log-variance "n c h w"."""
    posterior = encoders.vae.encode(pixels.to(encoders.vae.device)).latent_dist
    return posterior.mean, posterior.logvar


@torch.no_grad()
def encode_prompts(encoders: Encoders, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Penultimate states of both encoders side by side "n l d", and the second one's pooled projection "n d"."""
    states = []
    pooled = None
    for tokenizer, encoder in zip(encoders.tokenizers, encoders.text_encoders, strict=True):
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
    factor = config.get("scaling_factor", 0.18215)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shift, spread = (latents.new_tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        latents = (latents - shift) / spread
    return latents * float(factor)


def schedule(model: Model) -> Schedule:
    """The schedule that the model's scheduler names: its betas, rescaled if it says so, and what it predicts."""
    config = read_config(model.base, "scheduler/scheduler_config.json")
    scheduler = DDPMScheduler.from_config(config)
    return Schedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)


def latent_stride(model: Model) -> int:
    """2^(number of VAE blocks − 1)."""
    return int(2 ** (len(read_config(model.base, "vae/config.json")["block_out_channels"]) - 1))


def resolution(model: Model) -> int:
    """The UNet's sample size in pixels."""
    return int(read_config(model.base, "unet/config.json")["sample_size"]) * latent_stride(model)


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
    parts = {"unet": load_denoiser(model, "cpu", dtype)} if model.denoiser or model.loras else {}
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

    With the LoRAs ``below`` it is one LoRA whose rank is the sum of theirs: Σ BA = (B₁ B₂ …)(A₁ A₂ …)ᵀ. Each has an
    alpha that is its rank.
    """
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser))
    for lora in reversed(below):
        layers = _on_top_of(read_lora(lora), layers)
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)


def read_lora(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run's LoRA, by the UNet's own names."""
    path = folder / LORA_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MapoError(f"{path} is damaged ({error}). Run the `mapo train` command that made it again.") from None
    return {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}


def _on_top_of(below: dict[str, Tensor], above: dict[str, Tensor]) -> dict[str, Tensor]:
    if below.keys() != above.keys():
        raise MapoError("The LoRAs that this run stands on are of other layers, so they cannot be one file.")
    return {
        name: torch.cat([below[name].to(tensor), tensor], 0 if ".lora_A." in name or ".lora.down." in name else 1)
        for name, tensor in above.items()
    }
