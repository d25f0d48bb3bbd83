"""A checkpoint of a training, and whether there is room for those to come."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

from mapo.errors import MapoError, no_space
from mapo.train.config import Config
from mapo.train.kept import kept
from mapo.train.processes.processes import Processes
from mapo.train.run.checkpoint import save_checkpoint
from mapo.train.run.folder import Run, steps_of
from mapo.train.weights.opening import Trained, checkpoint_size


def save_step(run: Run, config: Config, trained: Trained, processes: Processes, state: dict[str, Any]) -> None:
    """Write the checkpoint of ``state``'s step, and remove those that are not kept. MapoError where it cannot be."""
    step = state["step"]
    folder = run.checkpoint_at(step)
    weights = trained.gathered(processes.main) if trained.lora else {}
    try:
        state = {**state, "line": run.last_line}
        save_checkpoint(folder, trained.groups(), state, partial(trained.save_loras, weights=weights), processes)
    except OSError as error:
        raise MapoError(
            f"The checkpoint of step {step} could not be written to {folder.parent} ({error.strerror or error}). "
            f"{_what_stays(run)}"
        ) from None
    processes.first(lambda: run.keep(config.train.keep_checkpoints))


@contextlib.contextmanager
def full_disk_told(run: Run) -> Iterator[None]:
    """Within the block a disk that is full is told with what of the run is kept."""
    try:
        yield
    except Exception as error:
        full = no_space(error)
        if full is None:
            raise
        what = full.filename or f"A file of {run.folder}"
        raise MapoError(f"{what} could not be written ({full.strerror}). {_what_stays(run)}") from None


def _what_stays(run: Run) -> str:
    made = run.checkpoints()
    last = f"The checkpoint of step {steps_of(made[-1])} is kept" if made else "There is no earlier checkpoint"
    return f"{last}. Make room, then run the same command again."


def check_space(run: Run, config: Config, trained: Trained) -> None:
    """Refuse to begin where the checkpoints that are kept and the final weights would not fit."""
    weights = sum(t.numel() * t.element_size() for t in trained.updater.final().values())
    train, made, each = config.train, run.checkpoints(), checkpoint_size(config, trained)
    to_come = math.ceil((train.steps - (steps_of(made[-1]) if made else 0)) / train.save_every_steps)
    more = max(0, kept(train.keep_checkpoints).to_add(len(made), to_come, train.steps))
    swapped = to_come > more  # then a new one is written before an old one goes
    needed = max(more * each + weights, (more + swapped) * each)
    free = shutil.disk_usage(run.folder if run.folder.exists() else run.folder.parent).free
    if free < needed:
        number = more + swapped
        checkpoints = "A checkpoint" if number < 2 else f"{number} checkpoints"
        checkpoints += " (train.keep_checkpoints)" if more > 1 else ""
        checkpoints += ", of which the new one comes before the old one goes," if swapped and number > 1 else ""
        raise MapoError(
            f"{checkpoints} and the final weights of this run take {needed / 1e6:,.0f} MB, and {run.folder} has "
            f"{free / 1e6:,.0f} MB free. Make room, or choose another --out."
        )
