"""Pictures of the model as it is, at the same prompts and seed each time, into ``pictures/step-…`` of the run.

They are drawn by whoever training is handed that by (``Draw``), with the weights that are trained and not with a copy.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mapo.encode.seen import Rows, choose_any
from mapo.errors import foreseen
from mapo.models import Opened
from mapo.pairs import PairSet
from mapo.pairs.splits import prompt_id
from mapo.train.loop import Loop
from mapo.train.monitor.evaluation import SPLITS
from mapo.train.run.folder import Run

LOG = logging.getLogger(__name__)

PROMPTS = 4  # of the set, where no others are named
SEED = 0


@dataclass(frozen=True)
class Live:
    """A model in training: its files, and the networks that stand in for theirs, by their parts.

    ``name`` is how the model of this step is called, RUN@STEP, and ``revision`` says of what it is.
    """

    model: Opened
    networks: Mapping[str, nn.Module]
    dtype: torch.dtype
    autocast: bool  # arithmetic in bfloat16 on weights in float32
    name: str
    revision: str
    sensitive: bool


Draw = Callable[[Live, Sequence[str], int, Path], None]  # prompts and a seed, into an images folder


class PicturesOverSteps:
    """Draws now and then. It uses no randomness of training's, and where it fails training goes on without."""

    def __init__(self, loop: Loop, run: Run, prompts: Sequence[str], draw: Draw | None, sensitive: bool) -> None:
        self.loop, self.run, self.prompts, self.draw, self.sensitive = loop, run, prompts, draw, sensitive
        self.every = loop.config.train.pictures_every if draw else 0

    def due(self, step: int) -> bool:
        """Whether pictures are drawn after this step."""
        return bool(self.every) and (step % self.every == 0 or step == self.loop.config.train.steps)

    def take(self, step: int) -> None:
        """Draw in the first process, while the others wait."""
        if not self.loop.processes.first(lambda: self._take(step)):
            self.every = 0

    def _take(self, step: int) -> bool:
        trained = self.loop.trained
        assert self.draw is not None  # else nothing is ever due
        live = Live(
            trained.model, {trained.model.denoiser_part: trained.denoiser, **trained.encoders}, trained.dtype,
            trained.autocast, f"{self.run.folder.resolve()}@{step}", f"step {step}", self.sensitive,
        )  # fmt: skip
        trained.network.eval()
        try:
            with same_randomness(), trained.with_means():
                self.draw(live, self.prompts, SEED, self.run.pictures_at(step))
        except Exception as error:
            if (why := foreseen(error)) is None:
                raise
            LOG.warning(
                f"The pictures of step {step} could not be drawn ({why.rstrip('.')}). Training goes on without them. "
                "Mend that, or set train.pictures_every=0, before it is started again."
            )
            return False
        finally:
            trained.network.train()
        return True


def first_prompts(pairs: PairSet, trained: Rows) -> list[str]:
    """The first prompts of the pairs that are held out, or of the ``trained`` rows where none is."""
    held = (choose_any(pairs, split, "keep").rows for split in SPLITS)
    prompts = pairs.table["prompt"].take(next((rows for rows in held if len(rows)), trained)).unique().to_pylist()
    return list({prompt_id(prompt): prompt for prompt in reversed(prompts)}.values())[::-1][:PROMPTS]


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """Inside, whatever draws from torch's global generators leaves them as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        yield
