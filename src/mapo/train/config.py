"""What a training run can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mapo.errors import MapoError, suggest
from mapo.settings import NotNegative, Number, Positive, Section, told


class ObjectiveConfig(Section):
    """Which loss, and its knobs (``[objective] name = "mapo", beta = 0.1``)."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    name: str = "mapo"

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for key, value in self.settings.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} should be a finite number")
        return self

    @property
    def settings(self) -> dict[str, float]:
        """The knobs that were set."""
        return dict(self.model_extra or {})


class AdapterConfig(Section):
    """What is trained."""

    kind: Literal["full", "lora"] = told(
        "full", "`full` trains every weight of the denoiser, `lora` a LoRA beside its frozen weights."
    )
    rank: Positive = told(8, "The rank of the LoRA, which is its alpha too. No effect with `full`.")


class OptimConfig(Section):
    """AdamW and its rate."""

    lr: Annotated[Number, Field(gt=0)] | None = told(
        None, "The learning rate. Left out, it is 1e-5 with `full` and 1e-4 with `lora`."
    )
    beta1: Annotated[Number, Field(ge=0, lt=1)] = told(0.9, "Decay of the mean gradient.")
    beta2: Annotated[Number, Field(ge=0, lt=1)] = told(0.999, "Decay of the mean squared gradient.")
    eps: Annotated[Number, Field(gt=0)] = told(1e-8, "Added to the root of the mean squared gradient.")
    weight_decay: Annotated[Number, Field(ge=0)] = told(
        1e-2, "In each step weights shrink by this share of the learning rate."
    )
    clip_norm: Annotated[Number, Field(gt=0)] = told(
        1.0, "A gradient of all weights longer than this is shortened to it."
    )
    schedule: Literal["constant", "linear", "cosine"] = told(
        "constant",
        "How the rate goes on after the warm-up. `linear` and `cosine` fall to zero at `train.steps`, so "
        "such a run cannot be lengthened.",
    )
    warmup_steps: NotNegative = told(0, "Steps in which the rate rises from zero to `lr`.")


class DataConfig(Section):
    """Which pairs, and how pictures become latents."""

    resolution: Positive | None = told(
        None, "The side in pixels to which pictures are resized and cropped. Left out, the model's own."
    )
    flip: bool = told(False, "Mirror half of the pairs, always both pictures of a pair. The cache then holds both.")
    split: Literal["train", "validation", "test", "all"] = told(
        "train", "The pairs to train on. A set keeps about a fifth of its prompts for the other splits."
    )
    ties: Literal["drop", "keep"] = told(
        "drop", "Pairs of which neither picture is better: leave them out, or train on them as ties."
    )
    cache_precision: Literal["float32", "bfloat16", "float16"] = told(
        "float32",
        "How the cache keeps latents and text. The two others halve it, and round. docs/data.md has the bytes.",
    )
    clip_skip: NotNegative | None = told(
        None,
        "Layers left out at the end of the text encoder, in training and in sampling. Only for Stable Diffusion 1 and "
        "2; what other programs call clip skip 2 is 1 here. Left out, that of the run that is trained further, or 0.",
    )
    images_per_batch: Positive = told(8, "Pictures encoded at a time, where the cache lacks some. Changes memory only.")


class TrainConfig(Section):
    """How long and how."""

    steps: Positive = told(2000, "Updates of the weights. docs/training.md says how to choose.")
    pairs_per_step: Positive = told(16, "Pairs of one update, over all devices together.")
    pairs_per_device: Positive | None = told(
        None, "Pairs that a device holds at a time. Left out, its whole share. Changes memory only."
    )
    seed: NotNegative = told(0, "Decides the order of pairs, noise, timesteps and a LoRA's first weights.")
    precision: Literal["float32", "bfloat16", "float64"] = told(
        "float32", "Of the arithmetic. With `bfloat16` the weights stay in float32. `float64` is for tests."
    )
    base_precision: Literal["float32", "bfloat16", "float16"] = told(
        "float32",
        "Of the frozen weights beside a LoRA. Half of them takes half the memory. No effect with `full`.",
    )
    gradient_checkpointing: bool = told(
        False, "Compute activations twice to hold few of them: slower, much less memory."
    )
    save_every_steps: Positive = told(
        250, "Steps between checkpoints. Only the last one is kept. A stopped run loses nothing."
    )


RATES = {"full": 1e-5, "lora": 1e-4}  # of optim.lr where it is left out


class Config(Section):
    """A training run."""

    model: str = Field(description="`mini`, a diffusers folder, a run folder, or a hub id of SDXL layout.")
    pairs: str = Field(description="A pairs set.")
    cache: str | None = told(None, "What the encoders make of the pairs. Left out, the folder `cache` beside them.")
    objective: ObjectiveConfig = Field(
        default_factory=lambda: ObjectiveConfig.model_validate({}),
        description="Which loss, and its own settings: docs/objectives.md.",
    )
    adapter: AdapterConfig = AdapterConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @property
    def rate(self) -> float:
        """The learning rate that was set, or that of the adapter."""
        return self.optim.lr if self.optim.lr is not None else RATES[self.adapter.kind]


def _known_keys(section: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for name in path:
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        section = inner[0]
    return list(section.model_fields)


def make_config(values: Mapping[str, Any]) -> Config:
    """A checked configuration, or one error that names the key and says what it may be."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as failure:
        error = failure.errors()[0]
        where = ".".join(str(p) for p in error["loc"])
        if error["type"] == "extra_forbidden":
            path = tuple(str(p) for p in error["loc"])
            elsewhere = [f"{s}.{path[-1]}" for s in Config.model_fields if path[-1] in _known_keys(Config, (s,))]
            section = "".join(f"{name}." for name in path[:-1])
            near = suggest(path[-1], _known_keys(Config, path[:-1]), section)
            hint = f"Did you mean {elsewhere[0]!r}?" if elsewhere else near
            raise MapoError(f"There is no setting {where!r}. {hint}") from None
        if error["type"] == "missing":
            raise MapoError(f"The setting {where} is missing.") from None
        if error["type"] in ("model_type", "model_attributes_type"):
            example = f"{where}.{_known_keys(Config, (where,))[0]}"
            raise MapoError(f"{where} is a section of settings; set one of them, such as {example}.") from None
        why = error["msg"].removeprefix("Value error, ")
        raise MapoError(f"The setting {where} = {error['input']!r} does not fit: {why}.") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML, every value spelled out."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))
