"""One order of opening what is trained: load, adapt, checkpoint activations, compile, share, updater, state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mapo.errors import MapoError
from mapo.models import Opened, TokenModel
from mapo.train.config import Config
from mapo.train.objectives import Objective
from mapo.train.processes import Processes
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
from mapo.train.weights.speed import speed_up
from mapo.train.weights.updater import AdamW, Updater

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
    where there is one.
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
    continued: bool = False  # whether training starts with a LoRA that was there before

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

    def save(self, folder: Path) -> None:
        """Write what was trained in diffusers' format."""
        self.denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if not self.lora:
            self.model.save(self.denoiser.float() if self.dtype is torch.float64 else self.denoiser, folder)
        self.save_loras(folder)

    def save_loras(self, folder: Path) -> None:
        """Write the LoRA that was trained, or what LoRAs below changed beside the weights that were trained."""
        if self.lora:
            networks = {self.model.denoiser_part: self.denoiser, **self.encoders}
            self.model.save_lora(networks, folder, self.continued)
        else:
            self.model.save_text_loras(folder)


def working_dtype(config: Config) -> torch.dtype:
    """Of latents, noise and errors: float64 where it is asked for, else float32."""
    return torch.float64 if config.train.precision == "float64" else torch.float32


def base_dtype(config: Config) -> torch.dtype:
    """Of the weights that are loaded."""
    if config.adapter.kind == "lora" and config.train.base_precision != "float32":
        return DTYPES[config.train.base_precision]
    return working_dtype(config)


def open_trained(
    config: Config, model: Opened, objective: Objective, processes: Processes, checkpoint: Path | None
) -> Trained:
    """What is trained, in every process, with the state of ``checkpoint``."""
    dtype = base_dtype(config)
    fused = config.adapter.start == "fused"
    denoiser = processes.each(lambda: model.denoiser(processes.device, dtype, loras=fused))
    reference = None
    if objective.needs_reference and config.adapter.kind == "full" and config.train.reference == "together":
        reference = copy.deepcopy(denoiser).requires_grad_(False).eval()
    before = [] if fused else processes.each(lambda: loras_before(model, config.adapter))
    processes.each(lambda: add_adapter(denoiser, model, config.adapter, config.train.seed, before))
    encoders = processes.each(lambda: _text_encoders(config, model, processes, dtype))
    if config.train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        for encoder in encoders.values():
            encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    for one in filter(None, (denoiser, reference)):
        speed_up(one, config)
    network = WithText(model, denoiser, encoders) if encoders else denoiser
    wrapped = network.train()
    if processes.world > 1:
        wrapped = DistributedDataParallel(network, broadcast_buffers=False)
    of_text = {f"{part}.{name}": p for part, encoder in encoders.items() for name, p in trainable(encoder).items()}
    parameters = trainable(denoiser) | of_text
    scale = HALF_SCALE if dtype is torch.float16 else 1.0
    updater = AdamW(parameters, config.optim, config.train.steps, scale, tuple(of_text))
    trained = Trained(
        model, denoiser, encoders, network, wrapped, reference, parameters, updater,
        lora=config.adapter.kind == "lora", autocast=config.train.precision == "bfloat16", dtype=dtype,
        continued=config.adapter.start == "continued",
    )  # fmt: skip
    if checkpoint:
        processes.each(lambda: restore(checkpoint, trained))
    return trained


def _text_encoders(config: Config, model: Opened, processes: Processes, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Those that are trained, by their parts, each with its LoRA; none where the denoiser is trained alone."""
    adapter = config.adapter
    if not adapter.text_encoders:
        return {}
    assert isinstance(model, TokenModel)
    encoders = model.load_text_encoders(processes.device, dtype, loras=adapter.start == "fused")
    add_text_adapters(encoders, model, adapter, config.train.seed, text_loras_before(model, adapter, encoders))
    return encoders


def restore(checkpoint: Path, trained: Trained) -> None:
    """Put the state of a checkpoint in place; MapoError where it is of other weights."""
    weights, moments = load_checkpoint(checkpoint)
    try:
        if weights.keys() != trained.parameters.keys():
            raise ValueError("its tensors are not those of the model")
        with torch.no_grad():
            for name, parameter in trained.parameters.items():
                parameter.copy_(weights[name])
        trained.updater.load(moments)
    except (KeyError, ValueError, RuntimeError) as error:
        raise MapoError(f"The checkpoint {checkpoint} is damaged ({error}). {REMEDY}") from None
