"""What is planned, opened without weights, and how much memory it takes with some settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from mapo.encode.seen import frames_of, what_training_sees, with_chunks
from mapo.errors import MapoError
from mapo.models import Opened, find_model, open_model
from mapo.pairs import PairSet
from mapo.train.batches import Members
from mapo.train.config import Config
from mapo.train.objectives import Objective
from mapo.train.objectives.own import objective_named
from mapo.train.plan.machine import beside
from mapo.train.plan.rehearsal import rehearse
from mapo.train.weights.adapters import check_adapter

SMALL = 20  # a training that surely takes less than this part of the memory need not be planned


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
            kinds = {**found.kinds, **beside(self.device, found.freed)}
            self.known[key] = kinds, found.parameters, found.trained
        return self.known[key]

    def memory(self, config: Config) -> int:
        """All bytes with these settings."""
        return sum(self.needs(config)[0].values())

    def surely_small(self, config: Config, room: int) -> bool:
        """Whether a training takes so little that rehearsing it would be a waste: by a bound that is far too high."""
        outline = self.model.outline(self.model.denoiser_part)
        sides = [p.shape[0] for p in outline.parameters() if p.ndim > 1]
        frame = max(
            frames_of(self.model, config.data.resolution, config.data.buckets), key=lambda f: f.height * f.width
        )
        _, height, width = self.model.layout.latent(*frame)
        images = 2 * min(config.train.pairs_per_device or config.train.pairs_per_step, config.train.pairs_per_step)
        layers = sum(1 for module in outline.modules() if not any(True for _ in module.children()))
        activations = 4 * images * height * width * max(sides, default=1) * layers
        return 32 * sum(p.numel() for p in outline.parameters()) + activations < room / SMALL


def open_subject(config: Config, device: str, world: int = 1) -> Subject:
    """Open what ``config`` names, without weights; MapoError where it cannot be trained so."""
    objective = objective_named(config.objective.name)
    pairs, data = PairSet(Path(config.pairs)), config.data
    files = find_model(
        config.model, weights=False, clip_skip=data.clip_skip, vae=config.vae, prediction=config.prediction,
        long_prompts=data.long_prompts, loras=config.loras,
    )  # fmt: skip
    model = with_chunks(open_model(replace(files, guidance=config.train.guidance)), pairs)
    if config.adapter.kind not in model.adapters:
        raise MapoError(f"{model.files.name} is trained with a LoRA only. Use --adapter lora.")
    check_adapter(model, config.adapter)
    seen = what_training_sees(
        pairs, model, split=data.split, ties=data.ties, resolution=data.resolution, buckets=data.buckets
    )
    return Subject(model, objective, pairs, Members(pairs, seen.rows), device, world)
