"""The reference's errors of all pairs of a run, computed once before its training (``train.reference = "before"``).

Noise and timestep of a pair are functions of its position in the run, and so are the reference's errors. They lie in
the run folder and are known by what they depend on: the model, what is seen of the pairs, the seed and the precision,
but neither the objective nor how steps are cut up. A longer run adds those of its new positions.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mapo import progress
from mapo.errors import MapoError, count
from mapo.files import replacing, sha256
from mapo.models.parts.tensors import bytes_of, save_tensors
from mapo.train.config import Config
from mapo.train.loop import Loop
from mapo.train.objectives import Objective
from mapo.train.run.folder import Identity
from mapo.train.step import both_residuals
from mapo.train.types import Residuals, mean_squares

LOG = logging.getLogger(__name__)

PAIRS = 256  # about so many between two looks at the clock
SECONDS = 30.0  # of work that a killed process may have done in vain
SEED_AND_KIND = ("seed", "precision", "base_precision", "weights", "guidance")


def fingerprint(config: Config, identity: Identity) -> str:
    """Of all that the reference's errors at a position depend on."""
    found: dict[str, Any] = {key: identity[key][0] for key in ("pairs", "model")}
    found |= {"data": config.data.model_dump(exclude={"images_per_batch"}), "prediction": config.prediction}
    found |= {"train": config.train.model_dump(include=set(SEED_AND_KIND))}
    of_adapter = {"start", "text_encoders", "token", "token_from"}
    found |= {"adapter": config.adapter.model_dump(include=of_adapter, exclude_none=True)}
    return sha256(json.dumps(found, sort_keys=True).encode())[:16]


def check_extras(objective: Objective, name: str) -> None:
    """MapoError where the objective asks for more of the reference than its errors."""
    one = torch.ones(1, 1, 1, 1)
    for key, extra in objective.extras.items():
        try:
            extra(Residuals(one, one))
        except Exception:
            raise MapoError(
                f"train.reference=before keeps the reference's errors alone, and the extra {key} of the objective "
                f"{name} cannot be made without its residuals. Leave train.reference out."
            ) from None


def errors_before(loop: Loop, path: Path, identity: Identity) -> Tensor:
    """The reference's errors at all positions of the run, chosen and rejected, "2 n"; what lacks in ``path`` is added.

    The network of ``loop`` is still as it was before training. KeyboardInterrupt, with all kept, where a process is
    asked to stop.
    """
    config, processes, size = loop.config, loop.processes, loop.config.train.pairs_per_step
    of = fingerprint(config, identity)
    known = processes.first(lambda: _read(path, of))
    known = torch.empty(2, 0, dtype=loop.dtype) if known is None else known.to(loop.dtype)
    wanted, began, saved = config.train.steps * size, time.perf_counter(), time.monotonic()
    if known.shape[1] >= wanted:
        return known
    if processes.main:
        LOG.info(
            f"First the reference's errors of {count(wanted - known.shape[1], 'pair')} are computed, one forward for "
            f"each picture without gradients, and kept in {path}. Training then holds no second model."
        )
    found = torch.cat([known, torch.full((2, wanted - known.shape[1]), torch.nan, dtype=loop.dtype)], 1)
    done = known.shape[1] - known.shape[1] % size
    steps, at_once = range(done // size, config.train.steps), max(1, PAIRS // size)
    with progress.bar(total=wanted, initial=done, desc="reference", unit="pair", shown=processes.main) as bar:
        for some in (steps[k : k + at_once] for k in range(0, len(steps), at_once)):
            places = [positions for step in some for positions in loop.micro_batches(step)]
            measured = [(_measured(loop, positions), counts) for positions, counts in loop.in_turn(places, [])]
            mine = [portion for portion, counts in measured if counts]
            for positions, errors in (portion for share in processes.gather(mine) for portion in share):
                found[:, positions] = errors
            done = (some[-1] + 1) * size
            bar.update(len(some) * size)
            (stop,) = processes.agree(loop.asked_to_stop())
            if stop or done == wanted or time.monotonic() - saved > SECONDS:
                if processes.main:
                    _write(path, found[:, :done], of)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    if processes.main:
        LOG.info(f"The reference's errors took {time.perf_counter() - began:.1f} s.")
    return found


@torch.no_grad()
def _measured(loop: Loop, positions: list[int]) -> tuple[list[int], Tensor]:
    """The reference's errors at some positions, "2 p", in the portions in which training would compute them; NaN of
    rejected images that there are not."""
    batch, network = loop.batch_at(positions).to(loop.processes.device), loop.trained.network
    network.eval()
    try:
        predict = loop.trained.reference_predictor()
        sides = both_residuals(predict, batch, loop.process, apart=loop.apart)
    finally:
        network.train()
    unknown = torch.full((len(positions),), torch.nan, dtype=loop.dtype)
    return positions, torch.stack([unknown if side is None else mean_squares(side).cpu() for side in sides])


def _write(path: Path, errors: Tensor, of: str) -> None:
    with replacing(path, sync=True) as temporary:
        tensors = {"chosen": errors[0].contiguous(), "rejected": errors[1].contiguous()}
        save_tensors(tensors, temporary, {"format": "mapo-reference", "of": of, "crc32": _checksum(errors)})


def _read(path: Path, of: str) -> Tensor | None:
    """What the file holds, "2 n"; nothing where it is not there, of something else or damaged."""
    if not path.exists():
        return None
    why = "is damaged"
    try:
        with safe_open(path, "pt") as file:
            about: Mapping[str, str] = file.metadata() or {}
            if about.get("of") == of:
                found = torch.stack([file.get_tensor(name) for name in ("chosen", "rejected")])
                if about.get("crc32") in (None, _checksum(found)):  # older versions did not write one
                    return found
            else:
                why = "is of other settings"
    except (OSError, SafetensorError, RuntimeError):
        pass
    LOG.info(f"{path} {why}. It is written again.")
    return None


def _checksum(errors: Tensor) -> str:
    """Of the numbers, by which a byte that changes on the disk is noticed."""
    return str(zlib.crc32(bytes_of(errors)))
