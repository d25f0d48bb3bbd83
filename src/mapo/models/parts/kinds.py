"""Which values the JSON files of a model may have, part by part. A null stands for a value that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.errors import MapoError

MOST = 10**6  # no width, place or step of a model is above it
REMEDY = "Take the file from the model's own page."


@dataclass(frozen=True)
class Kind:
    """A kind of value, in ``words`` as a message says it."""

    words: str
    fits: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether it is a number that float32 can hold: no truth value, not infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e38 < value < 1e38


def whole(least: int = 1) -> Kind:
    """A whole number from ``least`` on."""
    return Kind(
        f"one number, whole and at least {least}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= MOST,
    )


def list_of(words: str, fits: Callable[[Any], bool], least: int = 1) -> Kind:
    """A list of at least so many values, each of which ``fits``."""
    return Kind(f"a list of {words}", lambda v: isinstance(v, list) and least <= len(v) and all(map(fits, v)))


WHOLE = whole()
TEXT = Kind("a text", lambda v: isinstance(v, str))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
POSITIVE = Kind("a number above 0", lambda v: is_number(v) and v > 0)
NUMBER = Kind("a number", is_number)
BETA = Kind("a number between 0 and 1", lambda v: is_number(v) and 0 < v < 1)
TEXTS = list_of("texts", TEXT.fits)
SIZES = Kind(
    "a list of at most 16 numbers, whole and at least 1",
    lambda v: isinstance(v, list) and 0 < len(v) <= 16 and all(map(WHOLE.fits, v)),
)
# "No limit" is written as a very large number, also as 1e30
LIMIT = Kind("a whole number, at least 3", lambda v: is_number(v) and v >= 3 and v == int(v))

SIDES = Kind(
    "one number or a list of numbers, whole and at least 1",
    lambda v: WHOLE.fits(v) or (isinstance(v, list) and len(v) > 0 and all(map(WHOLE.fits, v))),
)
INDEX_ENTRY = Kind(
    "a list of two texts, a library and a class",
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(TEXT.fits, v)),
)
VAE = {
    "block_out_channels": SIZES, "down_block_types": TEXTS, "up_block_types": TEXTS, "latent_channels": WHOLE,
    "scaling_factor": POSITIVE, "latents_mean": list_of("numbers", is_number),
    "latents_std": list_of("numbers above 0", POSITIVE.fits), "shift_factor": NUMBER,
}  # fmt: skip
UNET = {
    "sample_size": WHOLE, "block_out_channels": SIZES, "down_block_types": TEXTS, "up_block_types": TEXTS,
    "in_channels": WHOLE, "out_channels": WHOLE,
}  # fmt: skip
SD3_TRANSFORMER = dict.fromkeys(
    (
        "sample_size", "patch_size", "in_channels", "out_channels", "num_layers", "attention_head_dim",
        "num_attention_heads", "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim",
        "pos_embed_max_size",
    ),
    WHOLE,
)  # fmt: skip
FLUX_TRANSFORMER = {
    **dict.fromkeys(
        (
            "patch_size", "in_channels", "out_channels", "num_layers", "num_single_layers", "attention_head_dim",
            "num_attention_heads", "joint_attention_dim", "pooled_projection_dim",
        ),
        WHOLE,
    ),
    "guidance_embeds": FLAG, "axes_dims_rope": SIZES,
}  # fmt: skip
Z_IMAGE_TRANSFORMER = {
    **dict.fromkeys(
        ("in_channels", "dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads", "cap_feat_dim"), WHOLE
    ),
    "all_patch_size": SIZES, "all_f_patch_size": SIZES, "axes_dims": SIZES, "axes_lens": SIZES, "t_scale": POSITIVE,
}  # fmt: skip
TEXT_ENCODER = {
    "num_hidden_layers": WHOLE, "hidden_size": WHOLE, "vocab_size": WHOLE, "max_position_embeddings": whole(3),
}  # fmt: skip
TOKENIZER = {"model_max_length": LIMIT}
SCHEDULER = {
    "num_train_timesteps": whole(2), "beta_start": BETA, "beta_end": BETA, "beta_schedule": TEXT,
    "trained_betas": list_of("at least two numbers between 0 and 1", BETA.fits, 2), "prediction_type": TEXT,
    "rescale_betas_zero_snr": FLAG,
}  # fmt: skip


FLOW_SCHEDULER = {
    "num_train_timesteps": whole(2), "shift": POSITIVE, "use_dynamic_shifting": FLAG, "base_shift": NUMBER,
    "max_shift": NUMBER, "base_image_seq_len": WHOLE, "max_image_seq_len": WHOLE, "time_shift_type": TEXT,
}  # fmt: skip


def first_unfit(config: Mapping[str, Any], kinds: Mapping[str, Kind], needed: Collection[str] = ()) -> str | None:
    """The first key whose value is of another kind, or is ``needed`` and not there; a null is nothing."""
    for key, kind in kinds.items():
        value = config.get(key)
        if key in needed if value is None else not kind.fits(value):
            return key
    return None


def check_kinds(path: Path, config: Mapping[str, Any], kinds: Mapping[str, Kind], needed: Collection[str] = ()) -> None:
    """MapoError about the first value of the file ``path`` that is of another kind, or is ``needed`` and not there."""
    if (key := first_unfit(config, kinds, needed)) is not None:
        value = config.get(key)
        has = f"no {key}" if value is None else f"{key} {_shown(value)}"
        raise MapoError(f"{path} has {has}; it has to be {kinds[key].words}. {REMEDY}")


def check_lengths(path: Path, config: Mapping[str, Any], key: str, others: Collection[str]) -> None:
    """MapoError where a list of the file ``path`` is not as long as the list ``key``, if both are there."""
    length = len(config.get(key) or ())
    for other in others:
        if length and config.get(other) is not None and len(config[other]) != length:
            raise MapoError(f"{path} has {len(config[other])} values in {other}, but {length} in {key}. {REMEDY}")


def _shown(value: Any) -> str:
    """A value as the file has it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
