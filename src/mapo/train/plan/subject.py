"""What is planned, opened without weights, and how much memory it takes with some settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from mapo.encode.seen import frames_of, what_training_sees, with_chunks
from mapo.errors import MapoError, count
from mapo.models import Opened, TokenModel, find_model, open_model
from mapo.pairs import PairSet
from mapo.train.batches import Members
from mapo.train.config import Config
from mapo.train.objectives import Objective
from mapo.train.objectives.own import objective_named
from mapo.train.plan.disk import Disk
from mapo.train.plan.encoding import rehearse_encoding
from mapo.train.plan.machine import beside
from mapo.train.plan.rehearsal import rehearse
from mapo.train.sections import RANK
from mapo.train.weights.adapters import check_adapter
from mapo.train.weights.blocks import number_of_blocks
from mapo.train.weights.levers import saves_memory
from mapo.train.weights.token import check_captions, with_token


def open_named(config: Config, *, weights: bool) -> tuple[Opened, PairSet]:
    """The model and the set of a training; MapoError where this model is not trained so.

    Without ``weights`` the model's small files are enough.
    """
    pairs, data = PairSet(Path(config.pairs)), config.data
    _check_rejected(config, pairs)
    files = find_model(
        config.model, weights=weights, clip_skip=data.clip_skip, vae=config.vae, prediction=config.prediction,
        long_prompts=data.long_prompts, loras=config.loras,
    )  # fmt: skip
    model = open_model(replace(files, guidance=config.train.guidance))
    _check_trainable(config, model)
    model = with_chunks(with_token(model, config.adapter), pairs)
    model.layout.checked(data.resolution)
    return model, pairs


def _check_rejected(config: Config, pairs: PairSet) -> None:
    """MapoError where rejected pictures would be run, and the set has none."""
    if objective_named(config.objective.name).needs_rejected:
        pairs.refuse_without_rejected(f"the objective {config.objective.name}", ", or train with --objective sft")
    if config.train.measure_rejected:
        pairs.refuse_without_rejected("train.measure_rejected", ", or leave it out")


def _check_trainable(config: Config, model: Opened) -> None:
    """MapoError where this adapter is not for this family, or the model is one for few steps."""
    if config.adapter.kind not in model.adapters:
        raise MapoError(
            f"{model.files.name} is trained with a LoRA only: all of its weights would be needed several times in "
            "memory. Use --set adapter.kind=lora."
        )
    if config.adapter.encodes and not isinstance(model, TokenModel):
        setting = "token" if config.adapter.token else "text_encoders"
        raise MapoError(
            f"adapter.{setting}: {model.files.name} is a {model.files.pipeline_class}; only the text encoders of "
            "SDXL and Stable Diffusion 1 and 2 are trained. Leave it out."
        )
    every = int(config.train.gradient_checkpointing)
    if every > 1 and every > (most := number_of_blocks(model.outline(model.denoiser_part))):
        raise MapoError(
            f"train.gradient_checkpointing={every}: {model.files.name} has {count(most, 'block')}, so none "
            f"would be computed twice. Take a number up to {most}, or true for all of them."
        )
    if (why := distilled(model)) and not config.train.allow_distilled:
        raise MapoError(
            f"{why} Train the model that it was made from, or train it all the same with --allow-distilled."
        )


def distilled(model: Opened) -> str:
    """What training does to a model for few steps, in sentences; empty where it is none."""
    if not (why := model.distilled):
        return ""
    return (
        f"{model.files.name} is a distilled model. {why} Training on the denoising error undoes that: pictures in few "
        "steps become blurred."
    )


@dataclass(frozen=True)
class Subject:
    """What is planned: all but the settings, which a change may alter."""

    model: Opened
    objective: Objective
    pairs: PairSet
    members: Members
    device: str
    world: int = 1
    known: dict[str, tuple[dict[str, int], int, int]] = field(default_factory=dict, compare=False)

    def needs(self, config: Config) -> tuple[dict[str, int], int, int]:
        """Bytes by kind with these settings, how many parameters, and how many trained ones."""
        key = config.model_dump_json()
        if key not in self.known:
            frames = frames_of(self.model, config.data.resolution, config.data.buckets)
            found = rehearse(config, self.model, self.objective, self.members, frames, self.device, self.world)
            kinds = {**found.kinds, **beside(self.device, found.freed, saves_memory(config, self.world))}
            self.known[key] = kinds, found.parameters, found.trained
        return self.known[key]

    def encoding(self, config: Config, disk: Disk) -> dict[str, int]:
        """Bytes by kind, at its peak, of encoding what the cache lacks."""
        if not disk.pictures and not disk.prompts:
            return {}
        frames = frames_of(self.model, config.data.resolution, config.data.buckets)
        return rehearse_encoding(config, self.model, frames, self.device, disk)

    def memory(self, config: Config) -> int:
        """All bytes with these settings."""
        return sum(self.needs(config)[0].values())

    def most(self, config: Config) -> int:
        """A bound of the tensors of a training and of encoding, far too high, and known without a rehearsal."""
        outline = self.model.outline(self.model.denoiser_part)
        sides = [p.shape[0] for p in outline.parameters() if p.ndim > 1]
        frame = max(
            frames_of(self.model, config.data.resolution, config.data.buckets), key=lambda f: f.height * f.width
        )
        _, height, width = self.model.layout.latent(*frame)
        images = 2 * min(config.train.pairs_per_device or config.train.pairs_per_step, config.train.pairs_per_step)
        layers = sum(1 for module in outline.modules() if not any(True for _ in module.children()))
        activations = 4 * images * height * width * max(sides, default=1) * layers
        parts = [part for part in self.model.encoder_parts if not part.startswith("tokenizer")]
        encoders = sum(p.numel() for part in parts for p in self.model.outline(part).parameters())
        numbers = sum(p.numel() for p in outline.parameters()) + self._most_of_loras(config)
        return 32 * numbers + 4 * encoders + activations

    def _most_of_loras(self, config: Config) -> int:
        """The numbers of LoRAs beside every layer of every network."""
        before = (layer.rank for layers in self.model.lora_layers(heads_only=True) for layer in layers)
        rank = max([config.adapter.rank or RANK, *before])
        parts = [part for part in self.model.encoder_parts if part.startswith("text_encoder")]
        weights = (p for part in (self.model.denoiser_part, *parts) for p in self.model.outline(part).parameters())
        return rank * sum(len(weight) + weight[0].numel() for weight in weights if weight.ndim > 1)


def open_subject(config: Config, device: str, world: int = 1) -> Subject:
    """Open what ``config`` names, without weights; MapoError where it cannot be trained so."""
    objective = objective_named(config.objective.name)
    model, pairs = open_named(config, weights=False)
    data = config.data
    check_adapter(model, config.adapter)
    seen = what_training_sees(
        pairs, model, split=data.split, ties=data.ties, resolution=data.resolution, buckets=data.buckets
    )
    check_captions(config.adapter, model, pairs, seen.rows)
    return Subject(model, objective, pairs, Members(pairs, seen.rows), device, world)
