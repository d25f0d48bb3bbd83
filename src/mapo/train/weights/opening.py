"""One order of opening what is trained: load, adapt, checkpoint activations, compile, share, updater, state."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mapo.errors import MapoError, reason
from mapo.models import Opened, TokenModel
from mapo.models.token import TOKEN_FILE, write_token
from mapo.train.config import Config
from mapo.train.objectives import Objective
from mapo.train.processes.processes import Processes
from mapo.train.processes.sharded import Root, exchange, shard, whole
from mapo.train.run.checkpoint import REMEDY, load_checkpoint
from mapo.train.step import Predict
from mapo.train.weights.adapters import (
    add_adapter,
    add_text_adapters,
    loras_before,
    text_loras_before,
    trainable,
    without_adapter,
)
from mapo.train.weights.blocks import checkpoint_blocks, checkpoint_layers
from mapo.train.weights.ema import WithMean
from mapo.train.weights.levers import is_sharded
from mapo.train.weights.speed import speed_up
from mapo.train.weights.stored import Keep, Plain, Rounded, Shared, Stored, WithMaster
from mapo.train.weights.token import ROW, row_of, train_row
from mapo.train.weights.updater import AtEnd, InBackward, Updater

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64
}  # fmt: skip
HALF_SCALE = 1024.0  # of the loss where the frozen weights are in float16, whose smallest number is 6e-8


class WithText(nn.Module):
    """A denoiser and the text encoders that are trained with it, as one network: x_t, t and tokens → its output."""

    def __init__(self, model: Opened, denoiser: nn.Module, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model, self.denoiser, self.encoders = model, denoiser, nn.ModuleDict(encoders)

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The output "b c h w". The prompt of a pair is read once, also where both of its images are among the b."""
        return self.model.predict(self.denoiser, x_t, t, self.told(cond, len(x_t)))

    def told(self, cond: dict[str, Tensor], images: int) -> dict[str, Tensor]:
        """What the denoiser is told of b ``images``, with the states of prompts in place of their tokens."""
        assert isinstance(self.model, TokenModel)
        tokens = {name: value for name, value in cond.items() if name.startswith("tokens")}
        zero = cond["zero"]
        found = {name: value for name, value in cond.items() if name not in tokens and name != "zero"}
        for name, value in self.model.encode_tokens(tuple(self.encoders.values()), tokens).items():
            kept = value.masked_fill(zero.view(-1, *[1] * (value.ndim - 1)), 0)
            found[name] = torch.cat([kept] * (images // len(zero)))
        return found


@dataclass
class Trained:
    """A denoiser in training, and its text encoders where they are trained too.

    ``network`` is all of it as one, and ``wrapped`` the same as the processes share it. ``reference`` is DPO's copy,
    where there is one. ``sharded``: each process has a part of every weight, so all of them have to run a network for
    one of them to run it.
    """

    model: Opened
    denoiser: nn.Module
    encoders: Mapping[str, nn.Module]  # by their parts
    network: nn.Module
    wrapped: nn.Module
    reference: nn.Module | None
    parameters: dict[str, nn.Parameter]
    updater: Updater
    lora: bool
    autocast: bool  # arithmetic in bfloat16 on weights in float32
    dtype: torch.dtype  # of what the denoiser is given
    sharded: bool = False
    ema: bool = False  # whether a running mean of the weights is saved
    token: str | None = None  # whose rows are trained
    continued: bool = False  # whether training starts with a LoRA that was there before
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # of the denoiser, where it has them rounded

    def predictor(self, network: nn.Module) -> Predict:
        """The family's call of a denoiser, in this run's precision."""

        def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.autocast):
                if self.encoders:
                    return network(x_t.to(self.dtype), t, cond)  # type: ignore[no-any-return]
                return self.model.predict(network, x_t.to(self.dtype), t, cond)

        return predict

    def reference_predictor(self) -> Predict:
        """The prediction of what training began with: of a copy, or of the denoiser without its new adapter.

        With neither it is the denoiser as it is now.
        """
        if self.reference is not None:
            return self.predictor(self.reference)
        adapted = self.predictor(self.network)

        def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            with without_adapter(self.network):
                return adapted(x_t, t, cond)

        return predict

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: trained weights, the optimizer's state, and running means where there are some."""
        groups = {"weights": self.updater.weights(), "optimizer": self.updater.state()}
        return {**groups, "ema": self.updater.final()} if self.ema else groups

    def gathered(self, main: bool) -> dict[str, Tensor]:
        """What becomes the weights of the run, whole: running means or masters where there are some.

        Every process has to ask where weights are shared. Those that are not ``main`` get nothing then, and without
        that nothing is copied.
        """
        if not self.sharded:
            return {**self.updater.final(), **self.buffers}
        found = {}
        for name, tensor in self.updater.final().items():
            all_of_it = whole(tensor)
            if main:
                found[name] = all_of_it.cpu()
        return found

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write what was trained in diffusers' format; ``weights`` are those that were :meth:`gathered`."""
        if not self.lora:
            with self._holding(weights):
                self.model.save(self.denoiser, folder)
        self.save_loras(folder, weights)

    def save_loras(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the LoRA and the rows of the token that were trained, or what LoRAs below changed beside weights."""
        if self.lora:
            networks = {self.model.denoiser_part: self.denoiser, **self.encoders}
            with self._holding(weights):
                self.model.save_lora(networks, folder, self.continued)
                if self.token:
                    write_token(folder / TOKEN_FILE, self.token, [row_of(one) for one in self.encoders.values()])
        else:
            self.model.save_text_loras(folder)

    @contextlib.contextmanager
    def with_means(self) -> Iterator[None]:
        """Inside, the network computes with the running means that the run will have, where there are some."""
        means = self.updater.final() if self.ema else {}
        before = {name: self.parameters[name].data for name in means}
        try:
            for name, mean in means.items():
                if self.sharded:
                    exchange(before[name], mean)
                else:
                    self.parameters[name].data = mean.to(before[name].device, before[name].dtype)
            yield
        finally:
            for name, data in before.items():
                if self.sharded:
                    exchange(data, means[name])
                else:
                    self.parameters[name].data = data

    @contextlib.contextmanager
    def _holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the networks have these tensors, laid out as files have them and none in float64.

        They are not computed with meanwhile.
        """
        networks = {"": self.denoiser, **self.encoders}
        exact = self.dtype is torch.float64 and not self.lora
        held = dict(weights) | (dict(self.denoiser.named_buffers()) if exact else {})
        before: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        try:
            for name, tensor in held.items():
                part = next((part for part in self.encoders if name.startswith(f"{part}.")), "")
                owner, _, leaf = name.removeprefix(f"{part}." if part else "").rpartition(".")
                module: Any = networks[part].get_submodule(owner)
                place = module._parameters if leaf in module._parameters else module._buffers
                before.append((place, leaf, place[leaf]))
                place[leaf] = (tensor.float() if exact and tensor.is_floating_point() else tensor).contiguous()
            yield
        finally:
            for place, leaf, was in before:
                place[leaf] = was


def working_dtype(config: Config) -> torch.dtype:
    """Of latents, noise and errors: float64 where it is asked for, else float32."""
    return torch.float64 if config.train.precision == "float64" else torch.float32


def base_dtype(config: Config) -> torch.dtype:
    """Of the weights that the denoiser computes with."""
    if config.adapter.kind == "lora" and config.train.base_precision != "float32":
        return DTYPES[config.train.base_precision]
    return working_dtype(config) if config.train.weights == "float32" else torch.bfloat16


def open_trained(
    config: Config, model: Opened, objective: Objective, processes: Processes, checkpoint: Path | None
) -> Trained:
    """What is trained, in every process, with the state of ``checkpoint``.

    Weights that are shared are first whole in the memory of the machine, in every process, and go to its device in
    parts.
    """
    dtype, sharded = base_dtype(config), is_sharded(config, processes)
    device = torch.device("cpu") if sharded else processes.device
    fused = config.adapter.start == "fused"
    master = config.train.weights == "bfloat16-master"
    loaded = torch.float32 if master else dtype
    denoiser = processes.each(lambda: model.denoiser(device, loaded, loras=fused))
    masters, buffers = _exactly(denoiser) if master else ({}, {})
    reference = None
    if objective.needs_reference and config.adapter.kind == "full" and config.train.reference == "together":
        reference = copy.deepcopy(denoiser).requires_grad_(False).eval()
    before = [] if fused else processes.each(lambda: loras_before(model, config.adapter))
    processes.each(lambda: add_adapter(denoiser, model, config.adapter, config.train.seed, before))
    encoders = processes.each(lambda: _text_encoders(config, model, device, dtype))
    if every := int(config.train.gradient_checkpointing):
        checkpoint_blocks(denoiser, every)
        for encoder in encoders.values():
            checkpoint_layers(encoder, every)
    for one in filter(None, (denoiser, reference)):
        speed_up(one, config)
    network = WithText(model, denoiser, encoders) if encoders else denoiser
    if sharded:
        network = network if encoders else Root(denoiser)
        reference = None if reference is None else Root(reference).eval()
        for one in filter(None, (network, reference)):
            shard(one, processes)
    wrapped = network.train()
    if processes.world > 1 and not sharded:
        wrapped = DistributedDataParallel(network, broadcast_buffers=False)
    of_text = {f"{part}.{name}": p for part, encoder in encoders.items() for name, p in trainable(encoder).items()}
    parameters = trainable(denoiser) | of_text
    updater = _updater(config, processes, parameters, tuple(of_text), masters)
    trained = Trained(
        model, denoiser, encoders, network, wrapped, reference, parameters, updater,
        lora=config.adapter.kind == "lora", autocast=config.train.precision == "bfloat16", dtype=dtype,
        sharded=sharded, ema=config.train.ema is not None, continued=config.adapter.start == "continued",
        buffers=buffers, token=config.adapter.token,
    )  # fmt: skip
    if checkpoint:
        processes.each(lambda: restore(checkpoint, trained))
    return trained


def _exactly(denoiser: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of a denoiser in float32, which itself is in bfloat16 then."""
    found = dict(denoiser.named_parameters()), dict(denoiser.named_buffers())
    masters, buffers = ({name: tensor.data for name, tensor in tensors.items()} for tensors in found)
    nn.Module.to(denoiser, torch.bfloat16)  # that of diffusers has a warning beside it
    return masters, buffers


def _updater(
    config: Config, processes: Processes, parameters: Mapping[str, nn.Parameter], of_text: tuple[str, ...],
    masters: Mapping[str, Tensor],
) -> Updater:  # fmt: skip
    """How the weights are kept and moved."""
    keep: Keep | None = None
    if is_sharded(config, processes):

        def keep(name: str, parameter: nn.Parameter) -> Stored:
            return Shared(parameter, config.optim)

    elif config.train.weights != "float32":

        def keep(name: str, parameter: nn.Parameter) -> Stored:
            if parameter.dtype is not torch.bfloat16:  # which diffusers keeps in float32
                return Plain(parameter, config.optim)
            if masters:
                return WithMaster(parameter, config.optim, masters[name])
            return Rounded(parameter, config.optim, config.train.seed, name)

    def mean(values: Tensor) -> None:
        processes.sum(values).div_(processes.world)

    scale = HALF_SCALE if base_dtype(config) is torch.float16 else 1.0
    of_token = tuple(name for name in of_text if name.endswith(ROW))
    how = (parameters, config.optim, config.train.steps, scale, of_text, keep, of_token)
    portions = config.train.pairs_per_device is not None or config.train.pair_by_pair or config.data.buckets
    apart = config.train.weights != "float32" and portions  # the gradients of portions are added in float32
    updater: Updater = (
        InBackward(*how)
        if config.optim.in_backward
        else AtEnd(*how, mean=mean if apart and processes.world > 1 else None)
    )
    return updater if config.train.ema is None else WithMean(updater, config.train.ema)


def _text_encoders(config: Config, model: Opened, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Those of which something is trained, by their parts: a LoRA, the row of a token, or both; none where the denoiser
    is trained alone."""
    adapter = config.adapter
    if not adapter.encodes:
        return {}
    assert isinstance(model, TokenModel)
    merged = adapter.start == "fused" or not adapter.text_encoders
    encoders = model.load_text_encoders(device, dtype, loras=merged)
    for module in (module for encoder in encoders.values() for module in encoder.requires_grad_(False).modules()):
        if isinstance(getattr(module, "dropout", None), float):  # of attention; the LoRA has its own
            module.dropout = 0.0  # type: ignore[assignment]
    if adapter.text_encoders:
        add_text_adapters(encoders, model, adapter, config.train.seed, text_loras_before(model, adapter, encoders))
    if adapter.token:
        train_row(encoders, model)
    return encoders


def checkpoint_size(config: Config, trained: Trained) -> float:
    """About how many bytes a checkpoint takes: weights, moments, and running means where there are some."""
    weights = trained.updater.weights().values()
    numbers = sum(weight.numel() for weight in weights)
    own = sum(weight.numel() * weight.element_size() for weight in weights)
    moments = {"adamw": 2 * max(own, 4 * numbers), "adamw8bit": 2.1 * numbers, "adafactor": 0.1 * numbers}
    return own + moments[config.optim.name] + (max(own, 4 * numbers) if trained.ema else 0)


def restore(checkpoint: Path, trained: Trained) -> None:
    """Put the state of a checkpoint in place; MapoError where it is of other weights."""
    found = load_checkpoint(checkpoint, ("weights", "optimizer", "ema") if trained.ema else ("weights", "optimizer"))
    try:
        trained.updater.load(found["weights"], found["optimizer"], found.get("ema", {}))
    except (KeyError, ValueError, RuntimeError) as error:
        raise MapoError(f"The checkpoint {checkpoint} is damaged ({reason(error)}). {REMEDY}") from None
