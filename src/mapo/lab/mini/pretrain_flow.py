"""Makes the second built-in model: flow matching, in the layout of Stable Diffusion 3 without its T5.

It takes VAE, tokenizers and text encoders of the first model, and trains a small ``SD3Transformer2DModel`` together
with the text encoders. The result is an ordinary ``StableDiffusion3Pipeline`` folder in half precision. The whole thing
takes an hour or two on two cores; it can be interrupted and goes on from its last checkpoint when the command is
repeated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mapo.lab.mini.parts import LATENT_SIDE, save_pipeline
from mapo.lab.mini.pretrain import Draws, Loop, encode_pool
from mapo.lab.mini.pretrain import Settings as PictureSettings
from mapo.shards import owned
from mapo.texts import write_json
from mapo.worlds import MODELS


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, written beside it."""

    seed: int = 0
    pictures: int = 24_000
    two_objects: float = 0.6
    unasked_hazard: float = 0.33
    steps: int = 5_000
    batch: int = 64
    lr: float = 1e-3
    warmup_steps: int = 200
    ema: float = 0.9985
    prompt_dropout: float = 0.1
    shift: float = 2.0  # of the noise levels, in training and in sampling (SD3 at 1024 pixels: 3)
    save_every_steps: int = 250

    def of_pictures(self) -> PictureSettings:
        """What the drawing of pictures and the loop of steps are told."""
        known = PictureSettings().__dict__.keys()
        return PictureSettings(**{k: v for k, v in asdict(self).items() if k in known})


def make_transformer(width: int) -> SD3Transformer2DModel:
    """SD3's transformer at a thousandth of its size, with random weights. ``width`` is that of one text encoder."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=16,
        num_attention_heads=5,
        joint_attention_dim=2 * width,
        caption_projection_dim=80,
        pooled_projection_dim=2 * width,
        pos_embed_max_size=LATENT_SIDE,
        qk_norm="rms_norm",
    )


def open_first(folder: Path) -> tuple[AutoencoderKL, CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """VAE and text encoders of the first model in float32. SD3's first encoder has a projection too: a random one."""
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
    plain = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    first = CLIPTextModelWithProjection(plain.config)
    first.text_model.load_state_dict(getattr(plain, "text_model", plain).state_dict())
    second = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2", dtype=torch.float32)
    return vae, first, second


def scheduler(settings: Settings) -> FlowMatchEulerDiscreteScheduler:
    """SD3's scheduler with the shift of these settings."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=settings.shift)


def noise_levels(places: Tensor, shift: float) -> Tensor:
    """σ of quantiles ``places`` in (0, 1): logit-normal, then shifted (arXiv 2403.03206, sections 3.1 and 5.3.2)."""
    plain = torch.sigmoid(torch.special.ndtri(places))
    return shift * plain / (1 + (shift - 1) * plain)


def train_denoiser(
    vae: AutoencoderKL,
    transformer: SD3Transformer2DModel,
    encoders: tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    settings: Settings,
    work: Path,
    snapshot: Any,
) -> None:
    """Velocity = noise − x₀ at x = (1 − σ) x₀ + σ noise; both text encoders learn together with the transformer."""
    captions, mean, deviation = encode_pool(vae, settings.of_pictures())
    vae.register_to_config(shift_factor=round(mean.mean().item(), 4))
    draws = Draws(tokenizer, captions, mean, deviation, settings.seed, settings.batch, settings.prompt_dropout)
    everything = nn.ModuleDict({"transformer": transformer, "text_encoder": encoders[0], "text_encoder_2": encoders[1]})
    loop = Loop("denoiser", everything, settings.steps, settings.lr, settings.of_pictures(), work)

    def loss_of(step: int) -> Tensor:
        tokens, latents, noise, places = draws.of(step)
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        sigma = noise_levels(places.clamp(1e-4, 1 - 1e-4), settings.shift)
        s = sigma.view(-1, 1, 1, 1)
        hidden = [e(tokens, output_hidden_states=True) for e in encoders]
        states = torch.cat([h.hidden_states[-2] for h in hidden], -1)
        pooled = torch.cat([h.text_embeds for h in hidden], -1)
        made = transformer((1 - s) * latents + s * noise, states, pooled, sigma * 1000).sample
        loss: Tensor = (made - (noise - latents)).pow(2).mean()
        return loss

    loop.run(loss_of, lambda: snapshot(loop))


def pretrain(out: Path, settings: Settings) -> None:
    """Train the transformer into ``out`` (a pipeline folder) by way of ``out.work`` (checkpoints and log)."""
    with owned(out):
        _pretrain(out, settings)


def _pretrain(out: Path, settings: Settings) -> None:
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "settings.json", asdict(settings))
    base = MODELS["mini"]
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    torch.manual_seed(settings.seed)
    vae, first, second = open_first(base)
    transformer = make_transformer(first.config.hidden_size)
    parts = {"vae": vae, "transformer": transformer, "text_encoder": first, "text_encoder_2": second}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    print(f"parameters: {sizes}, in all {sum(sizes.values()):,}")

    def save(folder: Path) -> None:
        pipeline = StableDiffusion3Pipeline(
            transformer, scheduler(settings), vae, first, tokenizer, second, tokenizer, None, None
        )
        save_pipeline(pipeline, folder, {"steps": 12, "guidance": 1.5, "max_sequence_length": 0})

    def snapshot(loop: Loop) -> None:
        with loop.averaged():
            save(work / "snapshot")

    train_denoiser(vae, transformer, (first, second), tokenizer, settings, work, snapshot)
    save(out)
