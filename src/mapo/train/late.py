"""What a step leaves to be told: numbers that are still on their way from the device when the next step begins."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class Late:
    """Some numbers of a device. :meth:`read` waits for them and for no work that was given to the device later."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.arrived = numbers.detach(), None
        if numbers.device.type == "cuda":
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers.detach(), non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()

    def read(self) -> list[float]:
        """The numbers, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()


@dataclass(frozen=True)
class StepNumbers:
    """A step that was given to the device, and what is known of it without waiting.

    ``numbers``: how many losses are not finite over all processes, whether one is asked to stop and whether one has
    trouble, the sums that ``names`` name, and the gradient's norm where ``with_norm``. ``losses`` has for every pair of
    this process whether its loss is finite.
    """

    step: int
    names: tuple[str, ...]
    numbers: Late
    losses: Late
    with_norm: bool
    rate: float
    constants: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
