"""What a training run can be told: frozen sections, TOML files and ``--set`` flags on top of each other."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mapo.errors import MapoError, suggest
from mapo.files import read_text


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


Number = Annotated[float, BeforeValidator(_no_truth)]  # pydantic would take true for 1
Positive = Annotated[int, BeforeValidator(_no_truth), Field(gt=0)]
NotNegative = Annotated[int, BeforeValidator(_no_truth), Field(ge=0)]


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    """What is trained: every weight of the denoiser (``full``) or a LoRA of the given rank (its alpha is its rank)."""

    kind: Literal["full", "lora"] = "full"
    rank: Positive = 8


class OptimConfig(Section):
    """AdamW and its schedule. ``lr`` 1e-5 is for a full SDXL; a LoRA wants about 1e-4."""

    lr: Annotated[Number, Field(gt=0)] = 1e-5
    beta1: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Number, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0)] = 1e-2
    clip_norm: Annotated[Number, Field(gt=0)] = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NotNegative = 0


class DataConfig(Section):
    """Which pairs, and how pictures become latents. No ``resolution``: the model's own.

    ``flip`` mirrors both pictures of a pair or neither. ``ties``: pairs whose preference is ½ are left out, or trained
    on as the ties they are.
    """

    resolution: Positive | None = None
    flip: bool = False
    split: Literal["train", "validation", "test", "all"] = "train"
    ties: Literal["drop", "keep"] = "drop"


class TrainConfig(Section):
    """How long and how. ``pairs_per_step`` is over all devices, ``pairs_per_device`` what one holds at a time."""

    steps: Positive = 2000
    pairs_per_step: Positive = 16
    pairs_per_device: Positive | None = None
    seed: NotNegative = 0
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    gradient_checkpointing: bool = False
    save_every_steps: Positive = 250


class Config(Section):
    """A training run."""

    model: str
    pairs: str
    cache: str | None = None
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig.model_validate({}))
    adapter: AdapterConfig = AdapterConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


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


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file."""
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise MapoError(f"--config: there is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise MapoError(f"--config: {path} cannot be read ({error}).") from None


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """``["optim.lr=1e-5"]`` → nested values; the right side is TOML, or else a string."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise MapoError(f"--set {assignment!r} does not look like section.key=value, for example optim.lr=1e-5.")
        try:
            parsed = tomllib.loads(f"v = {text}")
        except tomllib.TOMLDecodeError:
            parsed = {}
        value = parsed["v"] if parsed.keys() == {"v"} else text
        if isinstance(value, date | time):  # pairs=2026-11-22 means a folder
            value = text
        merge(values, _nest(key.strip().split("."), value))
    return values


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``under``, in place, section by section."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            merge(under[key], value)
        else:
            under[key] = merge({}, value) if isinstance(value, Mapping) else value
    return under


def to_toml(config: Config) -> str:
    """The configuration as TOML, every value spelled out."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def differences(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of the settings in which two configurations differ."""
    found: list[str] = []
    for key in sorted(one.keys() | two.keys()):
        a, b = one.get(key), two.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
