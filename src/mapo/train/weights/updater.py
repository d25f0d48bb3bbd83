"""The update of the weights. The loop knows an updater and no optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mapo.train.processes.sharded import joined_parts, part_of, whole
from mapo.train.sections import RATES, OptimConfig
from mapo.train.weights import optimizers
from mapo.train.weights.stored import Keep, Plain, Stored

COLUMNS = "/col_var"  # of a matrix, or of a kernel as one: what Adafactor keeps by the order of the columns


class Updater(Protocol):
    """From the losses of a step's portions to moved weights, which it owns with all that a checkpoint has of them."""

    @property
    def rate(self) -> float:
        """Of the step that has begun."""

    @property
    def in_backward(self) -> bool:
        """Whether weights have moved before the norm of the gradient is known."""

    def begin(self, step: int) -> None:
        """Get ready for step 0 … steps−1."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one portion's loss."""

    def end(self, good: Tensor) -> Tensor | None:
        """Move the weights and return the norm of the gradient, where it is known, "".

        They stay as they are, with all state, where ``good`` "" is false or the norm is not finite. That is decided on
        the device, which is not waited for but with 8-bit AdamW. Who moves weights ``in_backward`` knows the loss only:
        where that was finite and the norm is not, they are spoiled.
        """

    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name, as exact as they are held. Not copies."""

    def final(self) -> dict[str, Tensor]:
        """What becomes the weights of the run. Not copies."""

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on besides the weights, as ``parameter name/…`` → tensor. Not copies."""

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> None:
        """Put back what was saved; KeyError, ValueError or RuntimeError where it is of other parameters.

        ``means`` are what :meth:`final` gave, where that is not the weights themselves.
        """


@dataclass
class Part:
    """Tensors that one optimizer moves at once."""

    kept: Mapping[str, Stored]
    optimizer: torch.optim.Optimizer

    def move(self, step: int, rate: float, factor: Tensor | float = 1.0, good: Tensor | None = None) -> None:
        """By the gradients times ``factor``, where ``good`` "" is true. Tensors without a gradient stay as they are."""
        kept = [one for one in self.kept.values() if one.has_gradient]
        for one in kept:
            one.open(factor)
        optimizers.set_rates(self.optimizer, rate)
        optimizers.step(self.optimizer, good)
        for one in kept:
            one.close(step)

    @property
    def moved(self) -> dict[str, nn.Parameter]:
        """What the optimizer has, by name."""
        return {name: one.moved for name, one in self.kept.items()}


class _Parts:
    """What both kinds of updaters have: how tensors are kept, their optimizers, rate and state.

    A half-precision base lets small gradients of activations vanish, so the loss is taken times ``scale``, a power of
    two, and the gradient is divided by it again, which is exact. The parameters that ``of_text`` names have a rate of
    their own, and those that ``of_token`` names another one and no weight decay. ``keep`` says how a tensor is kept;
    left out, as it is.
    """

    in_backward: bool = False

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: OptimConfig, steps: int, scale: float = 1.0,
        of_text: Collection[str] = (), keep: Keep | None = None, of_token: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.config, self.steps, self.scale = config, steps, scale
        self.step, self.rate = 0, 0.0
        self.kept: dict[str, Stored] = {
            name: keep(name, parameter) if keep else Plain(parameter, config) for name, parameter in parameters.items()
        }
        self.plain = all(isinstance(one, Plain) for one in self.kept.values())
        together = self.plain and not self.in_backward
        text, token = (config.text_share, config.weight_decay), (config.token_share, 0.0)
        usual = 1.0, config.weight_decay
        hows = {name: token if name in of_token else text if name in of_text else usual for name in parameters}
        self.parts = [self._part(hows)] if together else [self._part({name: how}) for name, how in hows.items()]

    @property
    def on_device(self) -> bool:
        """Whether it is the device that decides if a step moves anything."""
        return all(optimizers.decides_on_device(part.optimizer) for part in self.parts)

    def _part(self, hows: Mapping[str, tuple[float, float]]) -> Part:
        """The tensors of these names, of each its share of the rate and its weight decay."""
        kept = {name: self.kept[name] for name in hows}
        groups = [
            {
                "params": [kept[name].moved for name in hows if hows[name] == (share, decay)],
                "share": share, "weight_decay": decay,
            }
            for share, decay in dict.fromkeys(hows.values())
        ]  # fmt: skip
        return Part(kept, optimizers.make_optimizer(groups, self.config))

    def begin(self, step: int) -> None:
        """Set the learning rate."""
        self.step, self.rate = step, learning_rate(step, self.steps, self.config)

    def weights(self) -> dict[str, Tensor]:
        """The parameters, or their masters."""
        return {name: one.exact() for name, one in self.kept.items()}

    def final(self) -> dict[str, Tensor]:
        """The same."""
        return self.weights()

    def state(self) -> dict[str, Tensor]:
        """The moments."""
        found: dict[str, Tensor] = {}
        for part in self.parts:
            for key, value in optimizers.optimizer_tensors(part.optimizer, part.moved).items():
                one = self.kept[key.rpartition("/")[0]]
                if key.endswith(COLUMNS) and one.in_memory_order:
                    value = optimizers.as_saved(value, one.parameter)
                found[key] = joined_parts(value, one.parameter) if value.shape == one.moved.shape else value
        return found

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> None:
        """Put weights and moments back."""
        if weights.keys() != self.kept.keys() or means:
            raise ValueError("its tensors are not those of the model")
        for name, one in self.kept.items():
            one.put(weights[name])
        by_name: dict[str, dict[str, Tensor]] = {name: {} for name in self.kept}
        for full_name, tensor in state.items():
            name = full_name.rpartition("/")[0]
            like = self.kept[name].parameter
            if full_name.endswith(COLUMNS) and self.kept[name].in_memory_order:
                tensor = optimizers.as_held(tensor, like)
            by_name[name][full_name] = part_of(tensor, like) if tensor.shape == like.shape else tensor
        for part in self.parts:
            own = {key: tensor for name in part.kept for key, tensor in by_name[name].items()}
            optimizers.load_optimizer_tensors(part.optimizer, part.moved, own)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale if self.scale != 1 else loss


class AtEnd(_Parts):
    """All weights move at the end of a step, with a clip by the norm of the whole gradient.

    One optimizer has all tensors where they are kept as they are; else each has its own, so that never all of them are
    in float32 at once. ``mean`` makes a tensor the mean over all processes, in place; it is only needed where the
    gradients of portions are added apart from the network.
    """

    def __init__(self, *args: Any, mean: Callable[[Tensor], None] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.mean = mean

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        for one in self.kept.values():
            one.keep_gradient()
        self._scaled(loss).backward()  # type: ignore[no-untyped-call]

    def end(self, good: Tensor) -> Tensor:
        """Clip, update where all is finite, and forget the gradients."""
        if self.mean is not None:
            for one in self.kept.values():
                self.mean(one.kept_gradient())
        kept = [one for one in self.kept.values() if one.has_gradient]
        if self.scale != 1:
            for one in kept:
                one.gradient().div_(self.scale)
        norm, factor = self._clip(kept)
        good = good.to(norm.device) & torch.isfinite(norm)
        on_device = self.on_device
        if on_device or bool(good):  # which is waited for
            for part in self.parts:
                part.move(self.step, self.rate, factor, good if on_device else None)
        for one in kept:
            one.forget()
        return norm

    def _clip(self, kept: Collection[Stored]) -> tuple[Tensor, Tensor | float]:
        """The norm of the gradient, and what it is still to be multiplied by."""
        longest = self.config.clip_norm or math.inf
        if self.plain:
            return whole(nn.utils.clip_grad_norm_([one.parameter for one in kept], longest)), 1.0
        norm = torch.stack([square(one.gradient()) for one in kept]).sum().sqrt()
        return norm, (longest / (norm + 1e-6)).clamp(max=1.0)


class InBackward(_Parts):
    """Each weight moves as soon as its gradient is there, which is then forgotten: ``optim.in_backward``.

    The loss is looked at before any weight moves; the gradient cannot be. Nothing is clipped.
    """

    in_backward = True

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.squares: list[Tensor] = []
        self.good: Tensor | None = None  # whether all was finite so far
        for part in self.parts:
            (one,) = part.kept.values()
            one.parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._move, part)
            )

    def _move(self, part: Part, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.squares.append(square(parameter.grad))
        good = self.good if optimizers.decides_on_device(part.optimizer) else None
        part.move(self.step, self.rate, 1 / self.scale, good)

    def backward(self, loss: Tensor) -> None:
        """Move the weights, but not by a loss that is not finite, nor after one."""
        finite = torch.isfinite(loss.detach())
        self.good = finite if self.good is None else self.good & finite
        if self.on_device or bool(self.good):  # which is waited for
            self._scaled(loss).backward()  # type: ignore[no-untyped-call]
        else:
            self.squares.append(torch.full_like(loss.detach(), math.nan))

    def end(self, good: Tensor) -> Tensor:
        """The norm of the gradient; NaN where a loss was not finite."""
        assert self.good is not None
        norm = torch.stack(self.squares).sum().sqrt() / self.scale
        norm = torch.where(self.good, norm, math.nan)
        self.squares.clear()
        self.good = self.good & torch.isfinite(norm)
        return norm


def square(values: Tensor) -> Tensor:
    """The sum of squares "" of all numbers, at least in float32."""
    wide = torch.float64 if values.dtype is torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(values.detach(), dtype=wide)
    return norm.square()


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step 0 … steps−1: linear warm-up, then constant, or falling to 0 at ``steps``.

    Where ``config`` leaves the rate out, it is that of full training; ``train`` fills in that of the adapter.
    """
    lr = config.lr or RATES["full"]
    if step < config.warmup_steps:
        return lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    match config.schedule:
        case "linear":
            return lr * max(0.0, 1 - done)
        case "cosine":
            return lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case "constant":
            return lr
