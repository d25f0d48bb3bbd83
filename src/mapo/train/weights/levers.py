"""What settings cannot have together, or with this device and these processes, said before anything is loaded."""

from __future__ import annotations

from mapo.errors import MapoError
from mapo.train.config import Config
from mapo.train.processes.processes import Processes
from mapo.train.weights.optimizers import check_optimizer
from mapo.train.weights.speed import check_speed
from mapo.train.weights.updater import learning_rate

NOT_TOGETHER = {("bfloat16", "float16"), ("float64", "float16"), ("float64", "bfloat16")}  # precision, base_precision
LEAST_RATE = 1e-6  # of an update that is rounded at random: below, the rounding moves weights further than the gradient


def check_settings(config: Config, processes: Processes) -> None:
    """MapoError where settings cannot be trained with here: `train` and `plan` refuse the same."""
    _check_shares(config, processes)
    _check_precisions(config, processes)
    check_levers(config, processes)
    check_speed(config, processes.device)


def check_levers(config: Config, processes: Processes) -> None:
    """MapoError where a setting of memory does not go together with the others, or needs a package."""
    check_optimizer(config.optim)
    if config.optim.in_backward:
        _check_in_backward(config, processes.world)
    if config.train.weights != "float32":
        _check_weights(config)
    if is_sharded(config, processes):
        _check_shard(config)


def saves_memory(config: Config, world: int = 1) -> bool:
    """Whether anything is asked for that takes less memory and, most of it, more time, in so many processes."""
    train, optim = config.train, config.optim
    return (
        bool(train.gradient_checkpointing)
        or train.pair_by_pair
        or train.weights != "float32"
        or optim.in_backward
        or optim.name != "adamw"
        or (train.shard == "fsdp2" and world > 1)
    )


def _check_shares(config: Config, processes: Processes) -> None:
    """Every process needs a pair of each step."""
    size, world = config.train.pairs_per_step, processes.world
    if size < world:
        raise MapoError(f"train.pairs_per_step is {size}, but there are {world} processes. Make it at least {world}.")


def _check_precisions(config: Config, processes: Processes) -> None:
    """MapoError where two precisions do not go together, or the device has not the one."""
    precision, base = config.train.precision, config.train.base_precision
    if precision == "float64" and processes.device.type == "mps":
        raise MapoError("train.precision=float64: this GPU has no such numbers. Train with float32.")
    if config.adapter.kind == "lora" and (precision, base) in NOT_TOGETHER:
        raise MapoError(
            f"train.base_precision={base} does not go together with train.precision={precision}. Set train.precision "
            f"to {'float32' if base == 'float16' else 'float32 or bfloat16'}."
        )


def is_sharded(config: Config, processes: Processes) -> bool:
    """Whether each process has a part of every weight."""
    return config.train.shard == "fsdp2" and processes.world > 1


def _check_shard(config: Config) -> None:
    train, setting = config.train, "train.shard=fsdp2"
    if config.optim.name != "adamw":
        why = {
            "adamw8bit": "shares one scale among 256 numbers of a tensor, which other parts would cut differently",
            "adafactor": "needs means over whole rows and columns, of which each process has a part",
        }
        raise MapoError(
            f"{setting}: optim.name={config.optim.name} {why[config.optim.name]}. Take optim.name=adamw, whose moments "
            "the processes share too."
        )
    if train.weights != "float32":
        raise MapoError(
            f"{setting} keeps the parts in float32, and train.weights={train.weights} was not tried with it. Leave one "
            "of them out; train.precision=bfloat16 goes with it."
        )
    if train.channels_last:
        raise MapoError(
            f"{setting} does not go with train.channels_last: torch shares tensors of the usual layout only. Leave one "
            "of them out."
        )
    if train.pictures_every:
        raise MapoError(
            f"{setting}: pictures are drawn by one process, which has a part of the model only. Set "
            "train.pictures_every=0, and draw from a checkpoint: mapo sample --model RUN@STEP."
        )


def _check_in_backward(config: Config, world: int) -> None:
    """MapoError with everything that is asked for and cannot be had: all of it needs all gradients at once."""
    train, portion = config.train, config.train.pairs_per_device
    cannot = [
        (
            train.pair_by_pair,
            "It moves the weights after the chosen pictures, before the gradient of the rejected ones is known, so "
            "train.pair_by_pair does not go together with it. Leave one of them out.",
        ),
        (
            config.optim.clip_norm,
            "The norm of the whole gradient is known only after the weights have moved, so it cannot be clipped. Set "
            "optim.clip_norm=0.",
        ),
        (
            portion is not None and portion < train.pairs_per_step,
            "A gradient is forgotten at once, so those of several portions cannot be added up. Leave "
            "train.pairs_per_device out, or lower train.pairs_per_step to as many.",
        ),
        (
            config.data.buckets,
            "Pictures of several shapes come in several portions of a step, whose gradients cannot be added up. Leave "
            "data.buckets out.",
        ),
        (
            world > 1,
            f"The gradients of {world} processes are only added up after the weights have moved. Train with one "
            "process, or leave it out.",
        ),
    ]
    if said := [why for asked, why in cannot if asked]:
        raise MapoError(f"optim.in_backward: {said[0][0].lower()}{said[0][1:]}{''.join(f' {why}' for why in said[1:])}")


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


def steps_that_drown(config: Config) -> int:
    """How many steps of ``optim.schedule`` and the warm-up have a rate below that for which weights may be rounded at
    random; 0 where they are not."""
    if config.train.weights != "bfloat16-stochastic":
        return 0
    steps = config.train.steps
    return sum(learning_rate(step, steps, config.optim) < LEAST_RATE for step in range(steps))
