"""Other programs that are told the numbers of a training, through accelerate's trackers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mapo.errors import MapoError, reason
from mapo.train.config import Config
from mapo.train.run.folder import Run

LOG = logging.getLogger(__name__)


class Trackers:
    """Those that were asked for, opened by the first process; MapoError says what is to be installed."""

    def __init__(self, names: Sequence[str], run: Run, config: Config) -> None:
        self.open: list[Any] = [_opened(name, run) for name in names]
        for tracker in self.open:
            tracker.store_init_configuration(_flat(config.model_dump(exclude_none=True)))

    def log(self, values: Mapping[str, Any], prefix: str) -> None:
        """Tell the numbers of a step, under ``prefix/NAME``."""
        step = int(values["step"])
        told = {f"{prefix}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self.open:
            tracker.log({name: value for name, value in told.items() if name != f"{prefix}/step"}, step=step)

    def close(self) -> None:
        """See that everything is told."""
        for tracker in self.open:
            tracker.finish()
        self.open = []


def check_installed(name: str) -> None:
    """MapoError where a tracker's package is not there."""
    from accelerate import tracking

    there = {"tensorboard": tracking.is_tensorboard_available, "wandb": tracking.is_wandb_available}[name]
    if not there():
        raise MapoError(
            f"train.trackers: {name} is not installed. Install it with: pip install {name}. Or leave it out; "
            "metrics.jsonl has the same numbers."
        )


def _opened(name: str, run: Run) -> Any:
    from accelerate import tracking

    kinds = {"tensorboard": tracking.TensorBoardTracker, "wandb": tracking.WandBTracker}
    folder = {"logging_dir": run.folder} if name == "tensorboard" else {}
    where = "trackers" if name == "tensorboard" else run.folder.name
    try:
        tracker = kinds[name](where, **folder)
        if hasattr(tracker, "start"):
            tracker.start()
    except Exception as error:  # of a program that is not ours
        raise MapoError(f"train.trackers: {name} could not be started ({reason(error)}).") from None
    return tracker


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, int | float | str) else str(value)
    return found
