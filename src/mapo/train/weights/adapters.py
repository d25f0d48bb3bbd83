"""What is trained: every weight of the denoiser, or a LoRA beside frozen weights.

A LoRA that was there before is merged into the weights (``fused``), or lies beside them as an adapter of its own that
is not trained (``frozen``), or is where training starts (``continued``). What DPO compares with is always the base and
what was there before: all adapters but the trained one.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from mapo.errors import MapoError, count
from mapo.models import Opened, TokenModel
from mapo.models.loras.layers import Layer, as_one
from mapo.models.loras.layers import told as layers_told
from mapo.models.loras.write import TRAINED
from mapo.models.names.kohya import layer_shapes
from mapo.train.sections import RANK, AdapterConfig
from mapo.train.weights.dropout import lay_dropout
from mapo.train.weights.token import ROW, WithRow

START = "start"  # the adapters of what was there before: start0, start1 …
HALVES = (torch.float16, torch.bfloat16)


def check_adapter(model: Opened, config: AdapterConfig) -> list[str]:
    """MapoError where a LoRA that lies on the model is not one of it, or the settings do not fit model and LoRAs.

    What becomes of each LoRA that was named, a sentence each. The weights of LoRAs are read, those of the model not.
    """
    before = model.lora_layers()
    if config.start != "fused":
        loras_before(model, config)
    if config.kind == "lora" and config.targets is not None:
        _matching(model.outline(model.denoiser_part), config.targets)
    becomes = {"fused": "merged into the model", "frozen": "left as they are", "continued": "trained further"}
    said = []
    for lora, layers in zip(model.files.loras, before, strict=True):
        if lora.named:
            parts = dict.fromkeys(layer.part for layer in layers)
            own = [layer for layer in layers if layer.part == model.denoiser_part]
            what = f"{lora.path} at {lora.weight:g}: {layers_told(layers)} in {' and '.join(parts)}"
            still = config.start == "fused" or config.text_encoders
            merged = "" if still or len(own) == len(layers) else " Those of text encoders are merged."
            said.append(f"{what}, {becomes[config.start]}.{merged}")
    return said


def loras_before(model: Opened, config: AdapterConfig) -> list[list[Layer]]:
    """The denoiser's layers of each LoRA that lies on the model; MapoError where there is none, or not one to continue.

    What LoRAs change in text encoders is merged into these, unless these are trained too (:func:`text_loras_before`).
    """
    own = [[layer for layer in one if layer.part == model.denoiser_part] for one in model.lora_layers()]
    found = [layers for layers in own if layers]
    if not found:
        raise MapoError(
            f"adapter.start={config.start}: no LoRA lies on the model's {model.denoiser_part}. Name one with --lora, "
            "or leave adapter.start out."
        )
    # one of text encoders alone counts where it was named; what a run with all weights has left there is merged
    there = sum(bool(layers) or lora.named for layers, lora in zip(own, model.files.loras, strict=True))
    if config.start == "continued" and there > 1:
        raise MapoError(f"adapter.start=continued takes one LoRA, and {there} lie on the model. Use fused or frozen.")
    if config.start == "continued" and not any(layer.alpha for layer in found[0]):
        raise MapoError(
            "adapter.start=continued: the LoRA lies on the model at weight 0, so nothing of it could be trained. Give "
            "it another weight, such as FILE:1."
        )
    if config.start == "continued" and config.rank and any(layer.rank != config.rank for layer in found[0]):
        raise MapoError(
            f"adapter.rank is {config.rank}, but the LoRA that is continued has {layers_told(found[0])}. It keeps "
            "them: leave adapter.rank out."
        )
    return found


def add_adapter(
    denoiser: nn.Module, model: Opened, config: AdapterConfig, seed: int, loras: Sequence[Sequence[Layer]] = ()
) -> None:
    """Make the right parameters trainable, in place. The LoRA's first weights depend on ``seed`` alone.

    They are in float32 (or more), whatever the base is in. ``loras`` are those that were there before, where they are
    ``frozen`` or ``continued``. MapoError where a target is the name of no layer.
    """
    if config.kind == "full":
        denoiser.requires_grad_(True)
        return
    targets: list[str] | str = (
        list(model.lora_targets) if config.targets is None else _matching(denoiser, config.targets)
    )
    _adapt(denoiser, targets, config, seed, loras)
    lay_dropout(denoiser, TRAINED, config.dropout, model.denoiser_part, prompts=False)


def add_text_adapters(
    encoders: Mapping[str, nn.Module], model: TokenModel, config: AdapterConfig, seed: int,
    loras: Mapping[str, Sequence[Sequence[Layer]]],
) -> None:  # fmt: skip
    """The same for text encoders, by their parts. Layers of which the denoiser reads nothing are not trained.

    ``loras`` are those that were there before, by part. One that is ``continued`` may have none in a text encoder;
    then its LoRA is new.
    """
    for number, (part, encoder) in enumerate(encoders.items(), 1):
        ends, unread = tuple(f".{end}" for end in model.text_lora_targets), model.unread_text_layers(part, encoder)
        names = [n for n, _ in encoder.named_modules() if n.endswith(ends) and not n.startswith(unread)]
        _adapt(encoder, _exactly(names), config, seed + number, loras[part])
        lay_dropout(encoder, TRAINED, config.dropout, part, prompts=True)
        for name, parameter in encoder.named_parameters():
            if name.startswith(unread):
                parameter.requires_grad_(False)


def text_loras_before(model: Opened, config: AdapterConfig, parts: Iterable[str]) -> dict[str, list[list[Layer]]]:
    """The layers of each LoRA that lies on the model in its text encoders, by part; empty where they are merged."""
    loras = [] if config.start == "fused" else model.lora_layers()
    if config.start == "continued":
        loras = [as_one(layer for layers in loras for layer in layers)]
    own = {part: [[layer for layer in layers if layer.part == part] for layers in loras] for part in parts}
    return {part: [layers for layers in found if layers] for part, found in own.items()}


def _adapt(
    network: nn.Module, targets: list[str] | str, config: AdapterConfig, seed: int, loras: Sequence[Sequence[Layer]]
) -> None:  # fmt: skip
    network.requires_grad_(False)
    for number, layers in enumerate(loras):
        _lay_beside(network, f"{START}{number}", layers)
    if config.start == "continued" and loras:
        (layers,) = loras
        _lay_beside(network, TRAINED, layers)
    else:
        rank = config.rank or RANK
        alpha = rank if config.alpha is None else config.alpha
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _add(network, TRAINED, targets, r=rank, lora_alpha=alpha)
    active = [TRAINED]
    if config.start == "frozen":
        active += [f"{START}{number}" for number in range(len(loras))]
    _activate(network, active)
    for name, parameter in network.named_parameters():
        is_lora = ".lora_A." in name or ".lora_B." in name
        if is_lora and parameter.dtype in HALVES:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(is_lora and f".{TRAINED}." in name)


def _add(denoiser: nn.Module, name: str, targets: list[str] | str, **settings: Any) -> None:
    found = LoraConfig(init_lora_weights="gaussian", target_modules=targets, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        denoiser.add_adapter(found, adapter_name=name)  # type: ignore[operator]


def _lay_beside(denoiser: nn.Module, name: str, layers: Sequence[Layer]) -> None:
    """Add an adapter with the weights of a LoRA that is there already, each layer with its own rank and alpha."""
    ranks = {f"^{re.escape(layer.module)}": layer.rank for layer in layers}
    alphas = {f"^{re.escape(layer.module)}": layer.alpha for layer in layers}
    with torch.random.fork_rng(devices=[]):
        _add(
            denoiser, name, _exactly([layer.module for layer in layers]), r=layers[0].rank, rank_pattern=ranks,
            lora_alpha=layers[0].alpha, alpha_pattern=alphas,
        )  # fmt: skip
    for layer in layers:
        module: Any = denoiser.get_submodule(layer.module)
        for matrix, value in ((module.lora_A[name], layer.down), (module.lora_B[name], layer.up)):
            kind = torch.float32 if matrix.weight.dtype in HALVES else matrix.weight.dtype
            matrix.weight.data = value.to(matrix.weight.device, kind, copy=True)


def _exactly(names: Sequence[str]) -> str:
    """The layers of these names and no others, as peft takes them."""
    return "|".join(re.escape(name) for name in names)


def _matching(denoiser: nn.Module, targets: Sequence[str]) -> str:
    """The layers that the patterns of ``adapter.targets`` are the names of, or the ends of their names."""
    layers = list(layer_shapes(denoiser))
    found: dict[str, None] = {}
    for pattern in targets:
        of_pattern = [name for name in layers if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not of_pattern:
            shown = ", ".join([layers[0], *layers[len(layers) // 2 :][:1], layers[-1]])
            raise MapoError(
                f"adapter.targets: no layer of the model is called {pattern!r}. Its {count(len(layers), 'layer')} have "
                f"names such as {shown}. A pattern is such a name or its end, with * for anything."
            )
        found |= dict.fromkeys(of_pattern)
    return _exactly(list(found))


def _lora_layers(denoiser: nn.Module) -> list[LoraLayer]:
    return [module for module in denoiser.modules() if isinstance(module, LoraLayer)]


def _activate(denoiser: nn.Module, names: list[str]) -> None:
    """Let these adapters work and no others. Peft's own way would also change what is trained."""
    for layer in _lora_layers(denoiser):
        layer._active_adapter = names


@contextlib.contextmanager
def without_adapter(denoiser: nn.Module) -> Iterator[None]:
    """The denoiser as it was before training, with the LoRAs that were there: DPO's reference at no cost of memory."""
    layers = _lora_layers(denoiser)
    before = [layer.active_adapters for layer in layers]
    rows = [module for module in denoiser.modules() if isinstance(module, WithRow)]
    try:
        for row in rows:
            row.at_start = True
        for layer in layers:
            layer._active_adapter = [name for name in layer.lora_A if name != TRAINED]
        yield
    finally:
        for row in rows:
            row.at_start = False
        for layer, names in zip(layers, before, strict=True):
            layer._active_adapter = names


def told(denoiser: nn.Module, part: str) -> str:
    """How much is trained, in a sentence."""
    trained = trainable(denoiser)
    numbers = sum(p.numel() for name, p in trained.items() if not name.endswith(ROW))
    layers = [layer for layer in _lora_layers(denoiser) if TRAINED in layer.lora_A]
    with_row = any(name.endswith(ROW) for name in trained)
    if not layers and with_row:
        return f"Of the {part} the row of the token alone is trained."
    if not layers:
        return f"All {numbers:,} weights of the {part} are trained."
    ranks = sorted({layer.r[TRAINED] for layer in layers})
    scales = sorted({layer.scaling[TRAINED] for layer in layers})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    alpha = f", alpha {ranks[0] * scales[0]:g}" if len(ranks) == len(scales) == 1 and scales != [1] else ""
    row = ", and the row of the token" if with_row else ""
    beside = f"{count(len(layers), 'layer')} of the {part}"
    return f"A LoRA of {rank}{alpha} beside {beside} is trained: {numbers:,} numbers{row}."


def trainable(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
