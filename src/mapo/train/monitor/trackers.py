"""Other programs that are told the numbers of a training, through accelerate's trackers."""

from __future__ import annotations

import logging
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mapo.errors import MapoError, reason, suggest
from mapo.train.config import Config
from mapo.train.run.folder import Run

LOG = logging.getLogger(__name__)

FOLDER = "trackers"  # of the run, for those that write files where they are told to
SECRETS = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL")  # in names of environment variables
SHORTEST = 6  # letters of a secret; shorter values stand in other words too
SAME = "metrics.jsonl has the same numbers."


class Trackers:
    """Those that were asked for, opened by the first process; MapoError where one cannot be."""

    def __init__(self, names: Sequence[str], run: Run, config: Config) -> None:
        self.open = {name: _opened(name, run, config) for name in names}

    def log(self, values: Mapping[str, Any], prefix: str) -> None:
        """Tell the numbers of a step, under ``prefix/NAME``."""
        step = int(values["step"])
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        told = {f"{prefix}/{name}": value for name, value in numbers.items()}
        self._each(lambda tracker: tracker.log(told, step=step))

    def close(self) -> None:
        """See that everything is told."""
        self._each(lambda tracker: tracker.finish())
        self.open = {}

    def _each(self, work: Callable[[Any], None]) -> None:
        """Training goes on without a tracker that fails, as its service may be away for a while."""
        for name, tracker in list(self.open.items()):
            try:
                work(tracker)
            except Exception as error:  # of a program that is not ours
                del self.open[name]
                LOG.warning(f"{name} could not be told ({_reason(error)}). Training goes on without it; {SAME}")


def check_tracker(name: str) -> None:
    """MapoError where accelerate does not know a tracker, or its package is not there."""
    from accelerate import tracking

    if name not in tracking.LOGGER_TYPE_TO_CLASS:
        raise MapoError(
            f"train.trackers: accelerate does not know {name!r}. {suggest(name, tracking.LOGGER_TYPE_TO_CLASS)}"
        )
    is_there = getattr(tracking, f"is_{name}_available", lambda: True)  # of a class of one's own it does not say
    if not is_there():
        raise MapoError(
            f"train.trackers: {name} is not installed. Install it with: pip install {name}. Or leave it out; {SAME}"
        )


def _opened(name: str, run: Run, config: Config) -> Any:
    from accelerate import PartialState, tracking

    kind = tracking.LOGGER_TYPE_TO_CLASS[name]
    to_files = {"logging_dir": run.folder / FOLDER} if kind.requires_logging_directory else {}
    threads = torch.get_num_threads()
    try:
        PartialState()  # which trackers ask who they are, and which may take to another number of threads
        torch.set_num_threads(threads)
        tracker = kind(run.folder.name, **to_files)
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(_flat(config.model_dump(exclude_none=True)))
    except Exception as error:  # of a program that is not ours
        raise MapoError(f"train.trackers: {name} could not be started ({_reason(error)}).") from None
    return tracker


def _reason(error: Exception) -> str:
    """The first line of what a program says, without the keys and passwords that the environment holds."""
    line = reason(error, 500)
    for name, value in os.environ.items():
        if SECRETS.search(name.upper()) and len(value) >= SHORTEST:
            line = line.replace(value, "…")
    return textwrap.shorten(re.sub(r"//[^/\s@]+@", "//…@", line), 300, placeholder=" …")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, int | float | str) else str(value)
    return found
