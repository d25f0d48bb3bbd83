"""A running mean of the trained weights, which is saved as the run's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mapo.train.processes.sharded import joined_parts, own, part_of
from mapo.train.weights.updater import Updater


class WithMean:
    """An updater, and the running mean of what it moves: in step k = 1, 2 … mean ← kept·mean + (1 − kept)·weight.

    ``kept`` is the smaller of ``decay`` and (1 + k) / (10 + k), as in diffusers' ``EMAModel``. The means are in
    float32, or in float64 where the weights are. A step that moves no weights moves no means.
    """

    def __init__(self, updater: Updater, decay: float) -> None:
        self.updater, self.decay = updater, decay
        self.step, self.means = 0, {name: _exactly(weight) for name, weight in updater.weights().items()}

    @property
    def rate(self) -> float:
        """That of the step."""
        return self.updater.rate

    @property
    def in_backward(self) -> bool:
        """As the updater says."""
        return self.updater.in_backward

    def begin(self, step: int) -> None:
        """Begin the step."""
        self.step = step + 1
        self.updater.begin(step)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient."""
        self.updater.backward(loss)

    def end(self, good: Tensor) -> Tensor | None:
        """Move the weights, then their means."""
        norm = self.updater.end(good)
        good = good if norm is None else good.to(norm.device) & torch.isfinite(norm)
        kept = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, weight in self.updater.weights().items():
            mean = own(self.means[name])
            share = torch.where(good, 1 - kept, 0.0).to(mean.device, mean.dtype)
            mean.lerp_(own(weight).to(mean.dtype), share)
        return norm

    def weights(self) -> dict[str, Tensor]:
        """Those that are trained."""
        return self.updater.weights()

    def final(self) -> dict[str, Tensor]:
        """The means."""
        return self.means

    def state(self) -> dict[str, Tensor]:
        """That of the updater, without the means."""
        return self.updater.state()

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> None:
        """Put all of it back."""
        self.updater.load(weights, state, {})
        if means.keys() != self.means.keys():
            raise ValueError("its running means are not those of the model")
        for name, mean in self.means.items():
            own(mean).copy_(part_of(means[name], mean))


def _exactly(weight: Tensor) -> Tensor:
    wide = torch.float64 if weight.dtype is torch.float64 else torch.float32
    return joined_parts(own(weight.detach()).to(wide, copy=True, memory_format=torch.contiguous_format), weight)
