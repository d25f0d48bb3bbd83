"""How trained weights are kept, and what the optimizer moves of them: ``train.weights``.

The optimizer always sees float32 (or float64), whatever the network computes with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from mapo.train.batches import generator_on, seed_of
from mapo.train.processes.sharded import own, part_of
from mapo.train.sections import OptimConfig
from mapo.train.weights.optimizers import as_optimizer_sees


class Stored(Protocol):
    """One trained tensor. ``moved`` is what its optimizer has, between :meth:`open` and :meth:`close`."""

    parameter: nn.Parameter
    moved: nn.Parameter

    @property
    def has_gradient(self) -> bool:
        """Whether a portion of the step gave one."""

    def gradient(self) -> Tensor:
        """That of the step so far, where there is one."""

    def keep_gradient(self) -> None:
        """Before the next portion of a step adds to the gradient."""

    def kept_gradient(self) -> Tensor:
        """That of the portions before the last one."""

    def forget(self) -> None:
        """Let the gradient go."""

    def open(self, factor: Tensor | float) -> None:
        """Give the optimizer the gradient times ``factor``, and what it moves."""

    def close(self, number: int) -> None:
        """Take over what was moved, and forget the gradient. ``number`` is different in every step."""

    def exact(self) -> Tensor:
        """The weight as it is saved."""

    def put(self, value: Tensor) -> None:
        """Take the weight from a checkpoint."""

    @property
    def in_memory_order(self) -> bool:
        """Whether the optimizer sees a kernel's numbers as they lie in memory, and not as files have them."""


class Plain:
    """The network's own numbers are moved."""

    in_memory_order = True

    def __init__(self, parameter: nn.Parameter, config: OptimConfig) -> None:
        seen = as_optimizer_sees(parameter.detach(), config)
        self.parameter, self.config = parameter, config
        self.moved = parameter if seen.shape == parameter.shape else nn.Parameter(seen)

    @property
    def has_gradient(self) -> bool:
        """Whether a portion of the step gave one."""
        return self.parameter.grad is not None

    def gradient(self) -> Tensor:
        """Where the network has it."""
        assert self.parameter.grad is not None
        return self.parameter.grad

    def keep_gradient(self) -> None:
        """Portions add up where they are."""

    def kept_gradient(self) -> Tensor:
        """Nothing is apart from the network."""
        return self.parameter.new_zeros(())

    def forget(self) -> None:
        """The network has none then."""
        self.moved.grad = self.parameter.grad = None

    def open(self, factor: Tensor | float) -> None:
        """The gradient is multiplied in place."""
        gradient = self.gradient()
        if isinstance(factor, Tensor) or factor != 1:
            gradient.mul_(factor)
        if self.moved is not self.parameter:
            self.moved.grad = as_optimizer_sees(gradient, self.config, self.parameter)

    def close(self, number: int) -> None:
        """Nothing is to be taken over."""
        self.forget()

    def exact(self) -> Tensor:
        """The parameter."""
        return self.parameter.detach()

    def put(self, value: Tensor) -> None:
        """Copy, in place."""
        with torch.no_grad():
            self.parameter.copy_(value)


class Shared(Plain):
    """Of the network's own numbers, which the processes share, each moves its part."""

    def __init__(self, parameter: nn.Parameter, config: OptimConfig) -> None:
        super().__init__(parameter, config)
        self.moved = nn.Parameter(own(parameter.detach()))

    def gradient(self) -> Tensor:
        """The part that this process has of it."""
        return own(super().gradient())

    def put(self, value: Tensor) -> None:
        """Copy this process's part."""
        self.moved.detach().copy_(part_of(value, self.parameter))


class _Half:
    """A parameter in bfloat16. The gradients of several portions are added in float32."""

    in_memory_order = False

    def __init__(self, parameter: nn.Parameter, config: OptimConfig) -> None:
        self.parameter, self.config = parameter, config
        self.sum: Tensor | None = None

    @property
    def has_gradient(self) -> bool:
        """Whether a portion of the step gave one."""
        return self.parameter.grad is not None or self.sum is not None

    def gradient(self) -> Tensor:
        """In float32."""
        last = self.parameter.grad
        if self.sum is None:
            assert last is not None
            return last.float()
        return self.sum if last is None else self.sum + last

    def keep_gradient(self) -> None:
        """Add it to the sum, as bfloat16 would lose small portions."""
        if self.parameter.grad is not None:
            self.sum = self.parameter.grad.float() if self.sum is None else self.sum.add_(self.parameter.grad)
            self.parameter.grad = None

    def kept_gradient(self) -> Tensor:
        """The sum."""
        if self.sum is None:
            self.sum = torch.zeros_like(self.parameter, dtype=torch.float32)
        return self.sum

    def forget(self) -> None:
        """The sum too."""
        self.sum = self.parameter.grad = None

    def _seen(self, values: Tensor) -> Tensor:
        return as_optimizer_sees(values.contiguous(), self.config)


class WithMaster(_Half):
    """The optimizer moves a master in float32, and the network has it rounded."""

    def __init__(self, parameter: nn.Parameter, config: OptimConfig, master: Tensor) -> None:
        super().__init__(parameter, config)
        self.moved = nn.Parameter(self._seen(master))
        self.put(master)

    def open(self, factor: Tensor | float) -> None:
        """Give the master its gradient."""
        self.moved.grad = self._seen(self.gradient() * factor)

    def close(self, number: int) -> None:
        """Round to the nearest."""
        self.moved.grad = None
        self.forget()
        self.parameter.data.copy_(self.exact())

    def exact(self) -> Tensor:
        """The master."""
        return self.moved.detach().view(self.parameter.shape)

    def put(self, value: Tensor) -> None:
        """Copy, and round."""
        self.exact().copy_(value)
        self.parameter.data.copy_(value)


class Rounded(_Half):
    """The optimizer moves a copy in float32, which is rounded at random and forgotten.

    What is drawn depends on the number of the step, ``salt`` and ``name`` alone.
    """

    def __init__(self, parameter: nn.Parameter, config: OptimConfig, salt: int, name: str) -> None:
        super().__init__(parameter, config)
        self.salt, self.name = salt, name
        self.moved = nn.Parameter(self._nothing())

    def _nothing(self) -> Tensor:
        """A tensor of the right shape that takes no memory."""
        shape = self._seen(self.parameter.detach()).shape
        return torch.zeros((), device=self.parameter.device).expand(shape)

    def open(self, factor: Tensor | float) -> None:
        """Make the copy."""
        self.moved.data = self._seen(self.parameter.detach().float())
        self.moved.grad = self._seen(self.gradient() * factor)

    def close(self, number: int) -> None:
        """Round the copy."""
        moved = self.moved.detach().view(self.parameter.shape)
        self.parameter.data.copy_(rounded(moved, _generator(moved.device, self.salt, number, self.name)))
        self.moved.grad, self.moved.data = None, self._nothing()
        self.forget()

    def exact(self) -> Tensor:
        """The parameter."""
        return self.parameter.detach()

    def put(self, value: Tensor) -> None:
        """Copy; a checkpoint has it in bfloat16 too."""
        self.parameter.data.copy_(value)


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 to bfloat16, up or down at random, so that the mean is the value.

    The 16 bits that bfloat16 has not are added to random ones, and what is carried rounds up. What is not finite stays
    so.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    carried = noise.add_(bits).bitwise_and_(-1 << 16).view(torch.float32)
    return torch.where(torch.isfinite(values), carried, values).to(torch.bfloat16)


def _generator(device: torch.device, *parts: object) -> torch.Generator:
    return generator_on(device).manual_seed(seed_of("rounding", *parts))


Keep = Callable[[str, nn.Parameter], Stored]  # name and parameter → how it is kept
