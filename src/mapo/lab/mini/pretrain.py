"""Makes the built-in model from nothing: draws the world, trains a VAE, then the two text encoders and the UNet.

The result is an ordinary ``StableDiffusionXLPipeline`` folder in half precision. The whole thing takes about an hour
and a half on two cores; it can be interrupted and goes on from its last checkpoint when the command is repeated.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from mapo.errors import MapoError, suggest
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw
from mapo.lab.mini.parts import TOKENS, make_parts, make_tokenizer, save_pipeline, scheduler, time_ids
from mapo.shards import owned
from mapo.texts import append_lines, write_json
from mapo.train.run.checkpoint import (
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from mapo.train.weights.optimizers import load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, written beside it."""

    seed: int = 0
    pictures: int = 48_000
    two_objects: float = 0.6
    unasked_hazard: float = 0.33  # more than the world's quarter: sampling shows less of it than was drawn
    vae_steps: int = 4_000
    vae_batch: int = 16
    vae_lr: float = 2e-3
    steps: int = 8_000
    batch: int = 64
    lr: float = 1.2e-3
    warmup_steps: int = 200
    ema: float = 0.9985
    prompt_dropout: float = 0.1
    snr_cap: float = 5.0
    save_every_steps: int = 250


S = TypeVar("S", bound="DataclassInstance")


def make_settings(values: Mapping[str, Any], usual: S) -> S:
    """The ``usual`` settings with ``values`` on top; an unknown name or a value of another kind is an error."""
    known = asdict(usual)
    for key, value in values.items():
        if key not in known:
            raise MapoError(f"There is no setting {key!r}. {suggest(key, known)}")
        if not isinstance(value, int if isinstance(known[key], int) else int | float) or value < 0:
            raise MapoError(f"The setting {key} = {value!r} has to be a number like {known[key]}.")
    return replace(usual, **values)


def drawn(split: str, settings: Settings, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Endless (caption, picture) of a split."""
    rng = random.Random(seed)
    for plain in scenes.random_plain_scenes(split, rng, settings.two_objects):
        words, scene = scenes.random_captioned_scene(plain, rng, settings.unasked_hazard)
        yield words, draw(scene, rng)


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 "n h w 3" → float "n 3 h w" in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _rate(step: int, total: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


class Loop:
    """Steps with a cosine rate, moving average of the weights, log lines and resumable checkpoints."""

    def __init__(self, name: str, module: nn.Module, total: int, lr: float, settings: Settings, work: Path) -> None:
        self.name, self.module, self.total, self.lr, self.settings = name, module, total, lr, settings
        self.folder, self.log = work / f"{name}-checkpoint", work / "log.jsonl"
        self.names = dict(module.named_parameters())
        self.optimizer = torch.optim.AdamW(self.names.values(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
        self.average = {k: v.detach().clone() for k, v in self.names.items()}
        self.step, self.seconds = 0, 0.0
        if self.folder.exists():
            found, state = load_checkpoint(self.folder), read_state(self.folder)
            weights, moments = found["weights"], found["optimizer"]
            with torch.no_grad():
                for k, v in self.names.items():
                    v.copy_(weights[f"now.{k}"])
                    self.average[k].copy_(weights[f"mean.{k}"])
            load_optimizer_tensors(self.optimizer, self.names, moments)
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint."""
        weights = {f"now.{k}": v for k, v in self.names.items()} | {f"mean.{k}": v for k, v in self.average.items()}
        state = {"step": self.step, "seconds": self.seconds}
        moments = optimizer_tensors(self.optimizer, self.names)
        save_checkpoint(self.folder, {"weights": weights, "optimizer": moments}, state)

    def use_average(self) -> None:
        """Put the moving average in place of the weights."""
        with torch.no_grad():
            for k, v in self.names.items():
                v.copy_(self.average[k])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their moving average."""
        now = {k: v.detach().clone() for k, v in self.names.items()}
        self.use_average()
        yield
        with torch.no_grad():
            for k, v in self.names.items():
                v.copy_(now[k])

    def run(self, loss_of: Any, snapshot: Any = None) -> None:
        """Go to the last step; ``loss_of(step)`` is the loss of one, ``snapshot()`` is called now and then."""
        self.module.train()
        bar = tqdm(total=self.total, initial=self.step, desc=f"pretrain {self.name}", unit="step", smoothing=0.05)
        shown, began = 0.0, time.monotonic()
        while self.step < self.total:
            for group in self.optimizer.param_groups:
                group["lr"] = _rate(self.step, self.total, self.settings.warmup_steps, self.lr)
            loss = loss_of(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.names.values(), 1.0)
            self.optimizer.step()
            self.step += 1
            keep = min(self.settings.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.names.values()), 1 - keep)
            shown = loss.item() if shown == 0 else 0.98 * shown + 0.02 * loss.item()
            bar.update()
            if self.step % 100 == 0 or self.step == self.total:
                bar.set_postfix(loss=f"{shown:.4f}")
                elapsed = self.seconds + time.monotonic() - began
                line = {"part": self.name, "step": self.step, "loss": round(shown, 5), "seconds": round(elapsed)}
                append_lines(self.log, [line])
            if self.step % self.settings.save_every_steps == 0 or self.step == self.total:
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                self.save()
                if snapshot and self.step % (4 * self.settings.save_every_steps) == 0:
                    snapshot()
        bar.close()
        self.use_average()
        self.module.eval()


def train_vae(vae: AutoencoderKL, settings: Settings, work: Path) -> None:
    """Reconstruction (absolute error of pixels and of their differences) with a light pull to a unit normal."""
    loop = Loop("vae", vae, settings.vae_steps, settings.vae_lr, settings, work)
    stream = drawn("train", settings, seed=settings.seed * 7919 + 1 + loop.step)

    def loss_of(step: int) -> Tensor:
        real = to_pixels(np.stack([next(stream)[1] for _ in range(settings.vae_batch)]))
        torch.manual_seed(step)
        posterior = vae.encode(real).latent_dist
        made = vae.decode(posterior.sample()).sample
        edges = F.l1_loss(made.diff(dim=2), real.diff(dim=2)) + F.l1_loss(made.diff(dim=3), real.diff(dim=3))
        loss: Tensor = F.l1_loss(made, real) + 0.5 * edges + 2e-6 * posterior.kl().mean()
        return loss

    loop.run(loss_of)


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, settings: Settings) -> tuple[list[str], Tensor, Tensor]:
    """Captions, latent means and standard deviations of the training pictures; sets ``vae.config.scaling_factor``."""
    stream = drawn("train", settings, settings.seed + 100)
    captions, means, deviations = [], [], []
    for _ in tqdm(range(settings.pictures // 128), desc="draw and encode", unit="batch"):
        batch = [next(stream) for _ in range(128)]
        posterior = vae.encode(to_pixels(np.stack([p for _, p in batch]))).latent_dist
        captions += [c for c, _ in batch]
        means.append(posterior.mean)
        deviations.append(posterior.std)
    mean, deviation = torch.cat(means), torch.cat(deviations)
    vae.register_to_config(scaling_factor=round(1 / mean.std().item(), 4))
    return captions, mean, deviation


class Draws:
    """What the steps of a denoiser's training draw, which the seed and the step decide."""

    def __init__(
        self, tokenizer: CLIPTokenizer, captions: list[str], mean: Tensor, deviation: Tensor, seed: int, batch: int,
        prompt_dropout: float,
    ) -> None:  # fmt: skip
        pad = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
        self.ids, self.empty = tokenizer(captions, **pad).input_ids, tokenizer([""], **pad).input_ids[0]
        self.mean, self.deviation = mean, deviation
        self.seed, self.batch, self.prompt_dropout = seed, batch, prompt_dropout

    def of(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens "b l", latents that are not scaled yet and noise "b c h w", and places in time in [0, 1) "b"."""
        draws = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        pick = torch.randint(len(self.ids), (self.batch,), generator=draws)
        tokens = self.ids[pick].clone()
        tokens[torch.rand(self.batch, generator=draws) < self.prompt_dropout] = self.empty
        latents = self.mean[pick] + self.deviation[pick] * torch.randn(self.mean[pick].shape, generator=draws)
        noise = torch.randn(latents.shape, generator=draws)
        places = (torch.arange(self.batch) + torch.rand(self.batch, generator=draws)) / self.batch
        return tokens, latents, noise, places


def train_denoiser(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    encoders: tuple[CLIPTextModel, CLIPTextModel],
    tokenizer: CLIPTokenizer,
    settings: Settings,
    work: Path,
    snapshot: Any,
) -> None:
    """ε-prediction on SDXL's schedule; both text encoders learn together with the UNet."""
    captions, mean, deviation = encode_pool(vae, settings)
    draws = Draws(tokenizer, captions, mean, deviation, settings.seed, settings.batch, settings.prompt_dropout)
    alphas = scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = torch.clamp(snr, max=settings.snr_cap) / snr
    everything = nn.ModuleDict({"unet": unet, "text_encoder": encoders[0], "text_encoder_2": encoders[1]})
    loop = Loop("denoiser", everything, settings.steps, settings.lr, settings, work)
    size = time_ids(settings.batch)

    def loss_of(step: int) -> Tensor:
        tokens, latents, noise, places = draws.of(step)
        latents = latents * vae.config.scaling_factor
        t = (places * len(alphas)).long().clamp(max=len(alphas) - 1)
        a = alphas[t].view(-1, 1, 1, 1)
        hidden = [e(tokens, output_hidden_states=True) for e in encoders]
        states = torch.cat([h.hidden_states[-2] for h in hidden], -1)
        added = {"text_embeds": hidden[1].text_embeds, "time_ids": size}
        made = unet(a.sqrt() * latents + (1 - a).sqrt() * noise, t, states, added_cond_kwargs=added).sample
        loss: Tensor = ((made - noise).pow(2).mean((1, 2, 3)) * weights[t]).mean()
        return loss

    loop.run(loss_of, lambda: snapshot(loop))


def pretrain(out: Path, settings: Settings) -> None:
    """Train everything into ``out`` (a pipeline folder) by way of ``out.work`` (checkpoints and log)."""
    with owned(out):
        _pretrain(out, settings)


def _pretrain(out: Path, settings: Settings) -> None:
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "settings.json", asdict(settings))
    tokenizer = make_tokenizer(work / "tokenizer")
    torch.manual_seed(settings.seed)
    vae, unet, first, second = make_parts(tokenizer)
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in (("vae", vae), ("unet", unet), ("text", first))}
    print(f"parameters: {sizes}, in all {sizes['vae'] + sizes['unet'] + 2 * sizes['text']:,}")
    train_vae(vae, settings, work)

    def save(folder: Path) -> None:
        pipeline = StableDiffusionXLPipeline(
            vae, first, second, tokenizer, tokenizer, unet, scheduler(), force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )  # fmt: skip
        save_pipeline(pipeline, folder, {"steps": 12, "guidance": 1.5})

    def snapshot(loop: Loop) -> None:
        with loop.averaged():
            save(work / "snapshot")

    train_denoiser(vae, unet, (first, second), tokenizer, settings, work, snapshot)
    save(out)
    side_by_side(vae, settings).save(work / "vae.png")


@torch.no_grad()
def side_by_side(vae: AutoencoderKL, settings: Settings) -> Image.Image:
    """Sixteen drawings above what the VAE makes of them."""
    stream = drawn("validation", settings, 5)
    pictures = np.stack([next(stream)[1] for _ in range(16)])
    made = vae.decode(vae.encode(to_pixels(pictures)).latent_dist.mean).sample
    back = made.add(1).mul(127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    return Image.fromarray(np.concatenate([np.concatenate(list(x), 1) for x in (pictures, back)], 0))
