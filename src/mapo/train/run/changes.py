"""Settings of a run that is gone on with: which may be others than before, and what those mean that came later."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from mapo.settings import differences, merge
from mapo.train.config import Config, make_config, to_toml

MAY_CHANGE = {
    "cache",
    "pairs",
    "model",
    "loras",
    "vae",
    "train.steps",
    "train.save_every_steps",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "train.evaluate_pairs",
    "train.pictures_every",
    "train.picture_prompts",
    "train.trackers",
    "train.pairs_per_device",
    "train.gradient_checkpointing",
    "train.allow_distilled",
    "train.allow_oversize",
    "optim.in_backward",
    "train.pair_by_pair",
    "train.measure_rejected",
    "train.reference",
    "train.shard",
    "train.compile",
    "train.channels_last",
    "train.tf32",
    "data.images_per_batch",
}
MUST_STAY = {  # with others the tensors of a checkpoint would not fit
    "adapter.kind", "adapter.rank", "adapter.targets", "adapter.start", "adapter.text_encoders", "adapter.token",
    "optim.name", "train.weights", "train.ema",
}  # fmt: skip
# Settings that came after 0.1.0, with what they mean in a run that does not name them.
AS_IN_0_1_0: dict[str, Any] = {
    "vae": None,
    "prediction": None,
    "loras": [],
    "adapter": {
        "alpha": None, "dropout": 0.0, "targets": None, "start": "fused", "text_encoders": False, "token": None,
        "token_from": None,
    },
    "optim": {"name": "adamw", "text_lr": None, "token_lr": 5e-4, "in_backward": False},
    "data": {
        "images_per_batch": 8, "cache_precision": "float32", "clip_skip": None, "long_prompts": None,
        "caption_dropout": 0.0, "buckets": False,
    },
    "train": {
        "base_precision": "float32", "guidance": 1.0, "allow_distilled": False, "keep_checkpoints": 1,
        "weights": "float32", "ema": None,
        "pair_by_pair": False, "measure_rejected": True, "reference": "together", "shard": "none", "compile": False,
        "channels_last": False, "tf32": False, "allow_oversize": False,
        "evaluate_every": 0, "evaluate_pairs": 64, "pictures_every": 0, "picture_prompts": None, "trackers": [],
    },
}  # fmt: skip


def in_full(found: Mapping[str, Any]) -> Config:
    """The settings of a ``config.toml``, with those that came after it was written as they were before they came."""
    return make_config(merge(merge({}, AS_IN_0_1_0), found))


def changed_settings(config: Config, before: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that decide the result and are others than before, with both values; one left out is None."""
    now = tomllib.loads(to_toml(config))
    names = [name for name in differences(before, now) if name not in MAY_CHANGE]
    return {name: [_value(name, before), _value(name, now)] for name in names}


def _value(name: str, settings: Mapping[str, Any]) -> Any:
    """The value of a setting by its whole name; none where it is left out."""
    found: Any = settings
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def told_changes(changed: Mapping[str, Sequence[Any]]) -> str:
    """The first settings that differ, with both values."""
    shown = [f"{name} was {_told(was)} and is now {_told(now)}" for name, (was, now) in list(changed.items())[:5]]
    return "; ".join(shown) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")


def moved_place(changed: Mapping[str, Sequence[Any]], step: int) -> str:
    """Which pairs come next with another ``train.pairs_per_step``: a step begins at its number times that."""
    was, now = changed.get("train.pairs_per_step", (0, 0))
    if was == now:
        return ""
    how = (
        f"the last {(was - now) * step:,} come again, as they were"
        if now < was
        else f"{(now - was) * step:,} are left out"
    )
    return f" Of the order of the pairs {how}: step {step + 1} begins at pair {now * step + 1:,} of it."


def _told(value: Any) -> str:
    return "left out" if value is None else json.dumps(value, ensure_ascii=False)
