"""The optimizer and its schedule; the learning rate is a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from mapo.train.config import RATES, OptimConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters."""
    return torch.optim.AdamW(
        [p for p in parameters if p.requires_grad],
        lr=config.lr or RATES["full"],  # set anew for every step
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


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
