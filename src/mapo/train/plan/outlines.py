"""A model's parts without numbers: what loading them would give, on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mapo.models import Opened, open_model
from mapo.models.files import ModelFiles
from mapo.models.parts.header import read_header
from mapo.models.parts.tensors import DTYPES
from mapo.models.parts.weights import WEIGHTS
from mapo.train.plan.live import Live

Mapped = Callable[[list[Tensor]], None]


@dataclass(frozen=True)
class Outlines(ModelFiles):
    """The files of a model whose parts are loaded without their weights. ``mapped`` hears of tensors that would stay in
    their file, as they lie there in the precision that is asked for: they take memory of files and none of their own.
    """

    mapped: Mapped = field(default=lambda tensors: None, compare=False)

    def load(self, part: str, kind: Any, dtype: Any = torch.float32, loras: bool = True) -> Any:
        """The network of a part, in ``dtype``, without numbers."""
        network: nn.Module = copy.deepcopy(self.outline(part, kind))
        exact = tuple(getattr(kind, "_keep_in_fp32_modules", None) or ())
        named = list(chain(network.named_parameters(), network.named_buffers()))
        for name, tensor in named:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.float32 if any(one in name for one in exact) else dtype)
        changed = set[str]()
        if loras and self.loras:
            for layers in self.lora_layers({part: network}, heads_only=True):
                changed |= {f"{layer.module}.weight" for layer in layers if layer.part == part}
        if stored_in(self, part) == {dtype}:
            self.mapped([p.data for name, p in network.named_parameters() if name not in changed])
        return network


def open_outlined(model: Opened, live: Live, stay: bool) -> Opened:
    """The model, without numbers. Where weights may ``stay`` in their file, those do that are computed with as they lie
    there."""
    kind = "mapped" if stay else "weights"
    with live.of("other"), torch.device("meta"):
        files = Outlines(**vars(model.files), mapped=lambda tensors: live.call(kind, tensors))
        return open_model(files, to_train=False)


def stored_in(files: ModelFiles, part: str) -> set[torch.dtype]:
    """The precisions in which the weights of a part lie on disk; empty where they are not there, or in one file."""
    if files.single is not None and part in files.single.parts:
        return set()
    base, part = files.place(part)
    heads = [read_header(file) for file in (base / part).glob("*.safetensors") if WEIGHTS.fullmatch(file.name)]
    found = {DTYPES.get(held.dtype) for head in heads for held in head.tensors.values()}
    return {dtype for dtype in found if dtype is not None and dtype.is_floating_point}
