"""What a training will take, said before there is a pair: by a set of blank pictures of the right sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.build.against import Own, held_out
from mapo.encode.frame import Frame
from mapo.errors import count
from mapo.pairs import PairWriter
from mapo.pairs.splits import prompt_id
from mapo.settings import merge


@dataclass(frozen=True)
class Planned:
    """A training, its memory and its time, a line each, and why it cannot begin; empty where it can."""

    lines: list[str]
    refusal: str


def plan_training(
    own: Sequence[Own], frames: Sequence[Frame], settings: Mapping[str, Any], recipe: str | None,
    named: Mapping[str, Any], out: Path, *, hold_out: bool = True,
) -> Planned:  # fmt: skip
    """What a training of these pictures needs. ``named`` is the model and what lies on it.

    The time is that of a finished run beside or below ``out``, where there is one like it.
    """
    from mapo.train import verb

    with tempfile.TemporaryDirectory() as temporary:
        blank = _blank_set(Path(temporary) / "pairs", own, frames, held_out(own) if hold_out else {})
        cache = str(Path(temporary) / "cache")
        found = verb.plan(settings, recipe, out=out, pairs=str(blank), cache=cache, **named)
    first, *rest = found.lines()
    kept = [line for line in rest if not line.startswith("disk")]
    train = _train_settings(settings, recipe)
    way = f"recipe {recipe}" if recipe else "a LoRA with default settings"
    told = f"{way}, {count(train['steps'], 'step')} of {count(train['pairs_per_step'], 'pair')}"
    refusal = (
        ""
        if found.fits or train["allow_oversize"]
        else f"The training does not fit, so nothing was begun. {found.advice()} Begin all the same with --set "
        "train.allow_oversize=true."
    )
    return Planned([f"training   {told}", first, *kept], refusal)


def _train_settings(settings: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    from mapo.train.config import TrainConfig
    from mapo.train.recipes.recipe import read_recipe

    values = read_recipe(recipe) if recipe else {}
    train: dict[str, Any] = merge(
        {"train": TrainConfig().model_dump()}, merge({"train": values.get("train", {})}, settings)
    )["train"]
    return train


def _blank_set(folder: Path, own: Sequence[Own], frames: Sequence[Frame], split: Mapping[str, str]) -> Path:
    from PIL import Image

    from mapo.sample.folder import png_bytes

    with PairWriter(folder, {"made": "to plan with"}) as writer:
        for number, (one, frame) in enumerate(zip(own, frames, strict=True)):
            colours = [(number % 256, number // 256 % 256, k) for k in range(2)]
            sides = [png_bytes(Image.new("RGB", (frame.width, frame.height), colour)) for colour in colours]
            writer.add_pair(one.caption, *sides, split=split.get(prompt_id(one.caption), "train"))
    return folder
