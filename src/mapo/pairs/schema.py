"""One pair, and the tables of a set of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mapo.pairs.splits import SPLITS, split_of

FORMAT, VERSION = "mapo-pairs", 2
TIE = 0.5
MOST_WEIGHT = 1e300  # the sum of a hundred million such is still a number

IMAGE_SCHEMA = pa.schema(
    [("sha256", pa.string()), ("bytes", pa.binary()), ("width", pa.int32()), ("height", pa.int32())]
)
PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("preference", pa.float64()),
        ("weight", pa.float64()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("meta", pa.string()),
    ]
)


@dataclass(frozen=True)
class Pair:
    """One row of ``pairs.parquet``; ``rejected`` is None in a set that has no rejected pictures."""

    id: str
    prompt: str
    chosen: str
    rejected: str | None
    preference: float = 1.0
    weight: float = 1.0
    group: str | None = None
    split: str = "train"
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def pair_id(prompt: str, chosen: str, rejected: str | None, *, repeat: int = 0) -> str:
    """The name of a pair: 16 hexadecimal digits of a hash of its prompt and its pictures, and of which ``repeat`` it is
    where it stands in a set several times."""
    told = (prompt, chosen, rejected or "", *[str(repeat)] * bool(repeat))
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


def make_pair(prompt: str, chosen: str, rejected: str | None, *, repeat: int = 0, **rest: Any) -> Pair:
    """A pair with its name and split filled in; ValueError when a value is outside the schema."""
    check_text(prompt, "the prompt")
    name = pair_id(prompt, chosen, rejected, repeat=repeat)
    pair = Pair(name, prompt, chosen, rejected, **{"split": split_of(prompt), **rest})
    check_values(prompt, chosen, rejected, pair.preference, pair.weight, pair.split)
    if pair.weight > MOST_WEIGHT:  # in new sets; older ones may have such, if their sum is a number
        raise ValueError(f"weight is {pair.weight:g}, more than {MOST_WEIGHT:g}; only the ratios of weights count")
    return pair


def check_text(text: str, what: str) -> None:
    """ValueError for a text that UTF-8 cannot hold, as JSON can write it (``"\\ud83d"``)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how Python marks a byte that it could not read
            raise ValueError(f"{what} is not UTF-8: byte {code - 0xDC00:#04x} at place {error.start}") from None
        raise ValueError(
            f"{what} has half a character at place {error.start} (U+{code:04X}, a lone surrogate)"
        ) from None


def check_values(prompt: str, chosen: str, rejected: str | None, preference: float, weight: float, split: str) -> None:
    """ValueError says which value of a pair is outside the schema."""
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if not 0.5 <= preference <= 1:
        raise ValueError(f"preference is {preference}, it must lie in 0.5 … 1 (swap the pictures if it is below)")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight is {weight}, it must be a number that is not negative")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, it must be one of {', '.join(SPLITS)}")
    if rejected is None and preference != 1:
        raise ValueError(f"preference is {preference} without a rejected picture, where it must be 1")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same picture")


def to_row(pair: Pair) -> dict[str, Any]:
    """A pair as a row of the table; ValueError for what no JSON or UTF-8 can hold."""
    try:
        meta = json.dumps(dict(pair.meta), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"meta is not JSON ({error})") from None
    for what, text in (("meta", meta), ("source", pair.source), ("group", pair.group or "")):
        check_text(text, what)  # here, not later for the whole table
    return {**vars(pair), "meta": meta}
