"""The optimizers by name, their state as plain tensors, and Adafactor, which waits for no number of the device."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mapo.errors import MapoError, to_install
from mapo.train.sections import RATES, OptimConfig

FUSED = ("cuda",)  # where torch's AdamW goes over all tensors at once without holding copies of them
PARTS = ("codes", "scale", "qmap")  # of a moment in 8 bits
STATES = {  # what each optimizer has of a parameter that was moved
    "AdamW": ({"step", "exp_avg", "exp_avg_sq"},),
    "AdamW8bit": ({"step", "exp_avg", "exp_avg_sq"},),
    "Adafactor": ({"step", "variance"}, {"step", "row_var", "col_var"}),
}
DECAY = -0.8  # the share of a step in Adafactor's second moments, as a power of the steps so far


def check_optimizer(config: OptimConfig) -> None:
    """MapoError where the optimizer needs a package that is not there."""
    if config.name == "adamw8bit" and find_spec("torchao") is None:
        raise MapoError(
            f"optim.name=adamw8bit needs the package torchao. Install it with `{to_install('memory')}`, or take "
            "optim.name=adafactor, which needs none."
        )


def make_optimizer(groups: Iterable[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of ``optim.name`` over ``groups`` of parameters, as torch takes them."""
    groups, lr = list(groups), config.lr or RATES["full"]
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    if config.name == "adafactor":
        # The rate is multiplied by the root mean square of a tensor where that is above the second number of eps.
        # With 1 the rate is AdamW's distance, but for tensors of larger numbers than the weights of a network are.
        return Adafactor(groups, lr=lr, eps=(1e-15, 1.0), weight_decay=decay)
    if config.name == "adamw8bit":
        with _unheard():
            from torchao.optim import AdamW8bit
        return AdamW8bit(groups, lr=lr, betas=betas, eps=config.eps, weight_decay=decay)  # type: ignore[no-any-return]
    fused = groups[0]["params"][0].device.type in FUSED or None
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=config.eps, weight_decay=decay, fused=fused)


def as_optimizer_sees(values: Tensor, config: OptimConfig, like: Tensor | None = None) -> Tensor:
    """For Adafactor the kernel of a convolution is a matrix "out in·h·w", else nothing would be factored.

    A view, where ``values`` lie in memory as ``like`` does; left out, as they do themselves.
    """
    if config.name != "adafactor" or values.ndim < 3:
        return values
    return values.permute(0, *_as_in_memory(values if like is None else like)).reshape(len(values), -1)


def _as_in_memory(kernel: Tensor) -> list[int]:
    """The axes of a kernel "out in h w" but for the first, as they lie in memory: with channels last these go last."""
    return sorted(range(1, kernel.ndim), key=lambda axis: -kernel.stride()[axis])


def as_saved(columns: Tensor, kernel: Tensor) -> Tensor:
    """Adafactor's means of the columns of a kernel, in the order "in·h·w" however the kernel lies in memory."""
    axes = _as_in_memory(kernel)
    places = sorted(range(len(axes)), key=axes.__getitem__)
    return columns.view([kernel.shape[axis] for axis in axes]).permute(places).reshape(columns.shape)


def as_held(columns: Tensor, kernel: Tensor) -> Tensor:
    """The other way: those that were saved, in the order in which the kernel lies in memory."""
    axes = [axis - 1 for axis in _as_in_memory(kernel)]
    return columns.view(kernel.shape[1:]).permute(axes).reshape(columns.shape)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, its ``share`` of ``rate``."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["share"])
        else:
            group["lr"] = rate * group["share"]


def decides_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the device itself can leave out an optimizer's update. Of the others torchao's is the one on a GPU."""
    return isinstance(optimizer, Adafactor) or bool(optimizer.defaults.get("fused"))


def step(optimizer: torch.optim.Optimizer, good: Tensor | None = None) -> None:
    """Move the parameters, where ``good`` "" is true; only for one that :func:`decides_on_device`.

    torchao compiles its steps, which on a CPU takes minutes and gains little: not there, nor where nothing is computed.
    """
    if isinstance(optimizer, Adafactor):
        optimizer.good = good
    elif good is not None:
        optimizer.found_inf, optimizer.grad_scale = (~good).float(), None  # type: ignore[attr-defined]
    device = optimizer.param_groups[0]["params"][0].device.type
    eager = type(optimizer).__module__.startswith("torchao") and device in ("cpu", "meta")
    with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
        optimizer.step()


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The state of an optimizer as ``parameter name/moment`` → tensor. A moment in 8 bits is ``moment.codes`` …

    They are not copies.
    """
    state, found = optimizer.state, dict[str, Any]()
    for name, parameter in names.items():
        for key, value in state.get(parameter, {}).items():
            if hasattr(value, "codes"):
                found |= {f"{name}/{key}.{part}": getattr(value, part) for part in PARTS}
            else:
                found[f"{name}/{key}"] = value
    return {key: torch.as_tensor(value).detach() for key, value in found.items()}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` took out. ValueError where it is of another optimizer."""
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = names[name]
        key, _, part = key.partition(".")
        if part:
            _blank(optimizer, parameter, key, part).copy_(tensor)
        else:
            on_cpu = tensor.ndim == 0 and not decides_on_device(optimizer)
            kind = tensor.dtype if tensor.ndim == 0 else parameter.dtype  # the run may go on in another precision
            where = tensor.device if on_cpu else parameter.device
            optimizer.state[parameter][key] = tensor.to(where, kind, copy=True)
    for name, parameter in names.items():
        found = optimizer.state[parameter].keys() if parameter in optimizer.state else set()
        if found and set(found) not in STATES[type(optimizer).__name__]:
            raise ValueError(f"of {name} it has {', '.join(sorted(found))}, which are not the moments of the optimizer")


def _blank(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str, part: str) -> Tensor:
    """A part of a moment in 8 bits, which is made if it is not there yet."""
    if not hasattr(optimizer, "_new_buffer") or part not in PARTS:
        raise ValueError("its moments are those of another optimizer")
    state = optimizer.state[parameter]
    if key not in state:
        state[key] = optimizer._new_buffer(parameter, key == "exp_avg")
    return getattr(state[key], part)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without what torchao says when it is imported of kernels that this machine has no use for."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


class Adafactor(torch.optim.Optimizer):
    """Shazeer and Stern's optimizer (arXiv 1804.04235), as ``torch.optim.Adafactor`` reads it, to rounding.

    Of a matrix it keeps the mean squares of rows and columns in place of every number's. ``eps`` are the least mean
    square's root, and the least root mean square of a tensor by which its rate is multiplied. Torch's asks the device
    for two numbers of every tensor; here they stay there, and so does the count of steps. A step moves nothing, with
    all state, where ``good`` "" is false.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, eps: tuple[float, float] = (1e-15, 1.0), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        self.good: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient, whose numbers are not to be used afterwards."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (least, least_size), rate, state = group["eps"], group["lr"], self.state[parameter]
        if not state:
            state |= _nothing_yet(gradient)
        wide = torch.float32 if parameter.device.type == "mps" else torch.float64  # of the few numbers of a tensor
        good = torch.ones_like(state["step"], dtype=torch.bool) if self.good is None else self.good
        gradient.masked_fill_(~good, 0)
        state["step"] += good
        count = state["step"].to(wide)
        share = torch.where(good, count**DECAY, 0).to(gradient.dtype)
        rate_now = torch.where(good, (count**-0.5).clamp(max=rate), 0)
        distance = _size(parameter, wide).clamp(min=least_size) * rate_now
        if group["weight_decay"]:
            parameter.mul_((1 - rate * group["weight_decay"] * good.to(wide)).to(parameter.dtype))
        update = _second_moment(state, gradient, share, least).clamp_(min=least**2).rsqrt_().mul_(gradient)
        factor = distance / _size(update, wide).clamp(min=1)
        parameter.sub_(update.mul_(factor.to(update.dtype)))


def _nothing_yet(gradient: Tensor) -> dict[str, Tensor]:
    """The state before the first step."""
    count = torch.zeros((), device=gradient.device)
    if gradient.ndim < 2:
        return {"step": count, "variance": torch.zeros_like(gradient)}
    *rows, columns = gradient.shape
    row, column = gradient.new_zeros(*rows, 1), gradient.new_zeros(*rows[:-1], 1, columns)
    return {"step": count, "row_var": row, "col_var": column}


def _second_moment(state: dict[str, Any], gradient: Tensor, share: Tensor, least: float) -> Tensor:
    """The mean square of each number, after this ``gradient`` has had its ``share`` in what is kept of them."""
    if gradient.ndim < 2:
        variance: Tensor = state["variance"].lerp_(gradient * gradient, share)
        return variance.clone()
    for name, side in (("row_var", -1), ("col_var", -2)):
        # a norm, as the square would be a tensor as large as the gradient
        state[name].lerp_(gradient.norm(dim=side, keepdim=True).square_().div_(gradient.size(side)), share)
    found: Tensor = state["row_var"] @ state["col_var"]
    return found.div_(state["row_var"].mean(dim=-2, keepdim=True).clamp_(min=least))


def _size(values: Tensor, wide: torch.dtype) -> Tensor:
    """The root mean square ""."""
    size: Tensor = values.norm(2).to(wide) / values.numel() ** 0.5
    return size
