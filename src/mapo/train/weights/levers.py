"""What the memory levers cannot have, said before anything is loaded."""

from __future__ import annotations

from mapo.errors import MapoError
from mapo.train.config import Config
from mapo.train.processes import Processes
from mapo.train.weights.optimizers import check_optimizer

LEAST_RATE = 1e-6  # of an update that is rounded at random: below, the rounding moves weights further than the gradient


def check_levers(config: Config, processes: Processes) -> None:
    """MapoError where a setting of memory does not go together with the others, or needs a package."""
    check_optimizer(config.optim)
    if config.optim.in_backward:
        _check_in_backward(config, processes.world)
    if config.train.weights != "float32":
        _check_weights(config)


def _check_in_backward(config: Config, world: int) -> None:
    train = config.train
    if config.optim.clip_norm:
        raise MapoError(
            "optim.in_backward: the norm of the whole gradient is known only after the weights have moved, so it "
            "cannot be clipped. Set optim.clip_norm=0."
        )
    if train.pairs_per_device is not None and train.pairs_per_device < train.pairs_per_step:
        raise MapoError(
            "optim.in_backward: a gradient is forgotten at once, so those of several portions cannot be added up. "
            "Leave train.pairs_per_device out, or lower train.pairs_per_step to as many."
        )
    if config.data.buckets:
        raise MapoError(
            "optim.in_backward: pictures of several shapes come in several portions of a step, whose gradients cannot "
            "be added up. Leave data.buckets out."
        )
    if world > 1:
        raise MapoError(
            f"optim.in_backward: the gradients of {world} processes are only added up after the weights have moved. "
            "Train with one process, or leave it out."
        )


def _check_weights(config: Config) -> None:
    setting = f"train.weights={config.train.weights}"
    if config.adapter.kind == "lora":
        raise MapoError(
            f"{setting} is for full training; a LoRA stays in float32. Leave it out; train.base_precision=bfloat16 "
            "halves the frozen weights."
        )
    if config.train.precision == "float64":
        raise MapoError(f"{setting} does not go together with train.precision=float64. Leave one of them out.")
    if config.train.weights == "bfloat16-stochastic" and config.rate < LEAST_RATE:
        raise MapoError(
            f"{setting} is for rates of {LEAST_RATE:g} and more, and optim.lr is {config.rate:g}: the noise of "
            "rounding would be greater than what is learned. Take train.weights=bfloat16-master."
        )
