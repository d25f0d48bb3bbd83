"""What tensors without numbers do not show: which kernel a device would choose, and what autocast would round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.GroupNorm)


@contextlib.contextmanager
def attention_of(device: str) -> Iterator[None]:
    """Inside, attention of tensors without numbers takes the kernel that ``device`` would take, which holds no scores.

    Torch would take the plain products and a softmax for them. Attention of other tensors is as it was.
    """
    plain = F.scaled_dot_product_attention

    def chosen(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Any:
        if not query.is_meta:
            return plain(query, key, value, *rest, **more)
        found = _fused(device, query, key, value, *rest, **more)
        return plain(query, key, value, *rest, **more) if found is None else found

    F.scaled_dot_product_attention = chosen
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _fused(
    device: str, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """The output of the device's fused kernel; None where it has none for what is asked."""
    alike = len({one.shape[-1] for one in (query, key, value)}) == 1 and query.ndim == 4
    if not alike or dropout_p or enable_gqa:
        return None
    mask = None if attn_mask is None else attn_mask.to(query.dtype)
    if device == "cpu":
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)[0]
    if device == "cuda" and query.dtype is not torch.float64:
        efficient, grads = torch.ops.aten._scaled_dot_product_efficient_attention, torch.is_grad_enabled()
        return efficient(query, key, value, mask, grads, 0.0, is_causal, scale=scale)[0]
    return None


def round_products(network: nn.Module, device: str) -> None:
    """Let a network on the meta device, where there is no autocast, compute as with autocast in bfloat16: products of
    matrices and convolutions in bfloat16, and on a GPU norms in float32."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(_linear, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Conv2d):
            module.forward = partial(_convolution, module)  # type: ignore[method-assign]
        elif isinstance(module, NORMS) and device == "cuda":
            module.register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
        elif type(module).__name__ == "RMSNorm":
            module.register_forward_hook(lambda _, given, made: made.to(given[0].dtype))


def _rounded(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.to(torch.bfloat16)


def _linear(module: nn.Linear, given: Tensor) -> Tensor:
    return F.linear(_rounded(given), _rounded(module.weight), _rounded(module.bias))


def _convolution(module: nn.Conv2d, given: Tensor) -> Tensor:
    made: Tensor = module._conv_forward(_rounded(given), _rounded(module.weight), _rounded(module.bias))
    return made
