"""The pictures of a built set, made again from what its rows keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mapo.errors import MapoError, several
from mapo.files import prepare_out, replacing, sha256
from mapo.pairs.pairs import Pair, PairSet
from mapo.sample.folder import png_bytes
from mapo.sample.sample import PRECISIONS, Sampler, Sampling
from mapo.sample.samplers import SAMPLERS
from mapo.shards import owned, refuse_existing

SIDES = ("chosen", "rejected")
HOW = ("steps", "guidance", "width", "height", "prefix", "negative_prompt", "precision")


@lru_cache(maxsize=1)
def _sampler(model: str, precision: str, **asked: Any) -> Sampler:
    return Sampler(model, precision, **asked)


def _asked(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of the model that drew a pair; ValueError or KeyError where the row does not say it."""
    found = {key: meta[key] for key in ("clip_skip", "vae", "prediction", "long_prompts") if meta.get(key) is not None}
    if not all(isinstance(value, int if key == "clip_skip" else str) for key, value in found.items()):
        raise ValueError
    if "loras" in meta:
        found["loras"] = tuple(f"{lora['file']}:{float(lora['weight'])}" for lora in meta["loras"])
    return found


def remake(pair: Pair) -> tuple[bytes, bytes]:
    """Make the pictures of a built pair again from its row alone: PNG bytes of chosen and rejected.

    They are the same to the bit on the same machine with the same versions: each picture is made at its place in a
    batch of the same size (the other places are filled with the same prompt, which changes nothing but them).
    """
    chosen, rejected = (_picture(pair, pair.meta.get(side)) for side in SIDES)
    return chosen, rejected


def _picture(pair: Pair, row: Any) -> bytes:
    try:
        _, place, size = map(int, row["batch_layout"].split("/"))
        model, revision, seed = row["model"], row["revision"], row["seed"]
        sampler = row.get("sampler", "")  # the class of the model's own scheduler, where none was asked for
        told = {name: row[name] for name in HOW} | ({"sampler": sampler} if sampler in SAMPLERS else {})
        how = Sampling(**told, images_per_batch=size)
        asked = _asked(pair.meta)
        if not (0 <= place < size and how.precision in PRECISIONS and isinstance(seed, int) and isinstance(model, str)):
            raise ValueError
    except (TypeError, KeyError, ValueError, AttributeError):
        raise MapoError(
            f"The pair {pair.id} does not say how its pictures were made: no model of ours made it."
        ) from None
    sampler = _sampler(model, how.precision, **asked)
    if revision not in sampler.revisions:
        raise MapoError(
            f"The pair {pair.id} was made with revision {revision} of {model}, which is now {sampler.revision}. "
            "Get the old one."
        )
    return png_bytes(sampler.batch([(pair.prompt, seed)] * size, how)[place])


@dataclass(frozen=True)
class Remade:
    """A picture that was made again: whether it is the set's own to the bit, and its file, None where it has none."""

    pair: str
    side: str
    same: bool
    file: Path | None


def remake_pairs(pairs: PairSet, ids: str | Sequence[str], out: Path) -> list[Remade]:
    """Make the pairs ``ids`` of a set again into the folder ``out``, as ``<id>-chosen.png`` and ``<id>-rejected.png``.

    A picture that the set keeps as latents only is made and compared in memory, and written nowhere.
    """
    refuse_existing(out)
    with owned(prepare_out(out)):
        return _remake_pairs(pairs, several(ids), out)


def _remake_pairs(pairs: PairSet, ids: Sequence[str], out: Path) -> list[Remade]:
    rows = dict(zip(pairs.table["id"].to_pylist(), range(len(pairs)), strict=True))
    if unknown := [name for name in ids if name not in rows]:
        raise MapoError(
            f"{pairs.folder} has no pair {unknown[0]!r}. Give an id of its pairs.parquet, such as {pairs[0].id}."
        )
    found = []
    with replacing(out) as temporary:
        temporary.mkdir()
        for pair in (pairs[rows[name]] for name in dict.fromkeys(ids)):
            for side, png in zip(SIDES, remake(pair), strict=True):
                name = getattr(pair, side)
                file = f"{pair.id}-{side}.png" if pairs.keeps(name) else None
                if file:
                    (temporary / file).write_bytes(png)
                found.append(Remade(pair.id, side, sha256(png) == name, out / file if file else None))
    return found
