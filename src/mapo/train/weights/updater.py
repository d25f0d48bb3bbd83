"""The update of the weights. The loop knows an updater and no optimizer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from mapo.train.config import RATES, OptimConfig


class Updater(Protocol):
    """From the losses of a step's portions to moved weights. All its state besides the step is in :meth:`state`."""

    rate: float  # of the step that has begun

    def begin(self, step: int) -> None:
        """Get ready for step 0 … steps−1."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one portion's loss."""

    def end(self, good: Tensor) -> Tensor | None:
        """Move the weights and return the norm of the gradient, where it is known, "".

        They stay as they are, with all state, where ``good`` "" is false or the norm is not finite. That is decided on
        the device, which is not waited for.
        """

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on, as ``parameter name/…`` → tensor on the CPU."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave; KeyError, ValueError or RuntimeError where it is of other parameters."""


class AdamW:
    """torch's AdamW, with a clip by the norm of the whole gradient.

    A half-precision base lets small gradients of activations vanish, so the loss is taken times ``scale``, a power of
    two, and the gradient is divided by it again, which is exact. The parameters that ``of_text`` names have a rate of
    their own.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: OptimConfig, steps: int, scale: float = 1.0,
        of_text: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.parameters, self.config, self.steps, self.scale = parameters, config, steps, scale
        self.rate = 0.0
        groups = [{"params": [p for name, p in parameters.items() if name not in of_text], "share": 1.0}]
        if of_text:
            groups.append({"params": [parameters[name] for name in of_text], "share": config.text_share})
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr or RATES["full"], betas=(config.beta1, config.beta2), eps=config.eps,
            weight_decay=config.weight_decay,
        )  # fmt: skip

    def begin(self, step: int) -> None:
        """Set the learning rate."""
        self.rate = learning_rate(step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["share"]

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        (loss * self.scale if self.scale != 1 else loss).backward()  # type: ignore[no-untyped-call]

    def end(self, good: Tensor) -> Tensor:
        """Clip, update where all is finite, and forget the gradients."""
        if self.scale != 1:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad /= self.scale
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        step_where(good.to(norm.device) & torch.isfinite(norm), self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """The moments."""
        return optimizer_tensors(self.optimizer, self.parameters)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put the moments back."""
        load_optimizer_tensors(self.optimizer, self.parameters, state)


def step_where(good: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take the step where ``good`` "" is true. A fused optimizer decides it on the device, others are waited for."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf, optimizer.grad_scale = (~good).float(), None  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(good):
        optimizer.step()


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The state of an optimizer as ``parameter name/moment`` → tensor."""
    state = optimizer.state
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for name, parameter in names.items()
        for key, value in state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` took out."""
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = names[name]
        optimizer.state[parameter][key] = tensor if tensor.ndim == 0 else tensor.to(parameter.device)


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
