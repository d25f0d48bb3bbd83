"""Tensors of which every process holds a part: ``train.shard = fsdp2``, torch's ``fully_shard``.

A block's parameters are gathered when it is reached, forward and back, and let go behind it; its gradients are added
up over the processes at once, and each keeps its part. Whoever runs such a network has to do it in every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mapo.train.processes.processes import Processes


class Root(nn.Module):
    """What is called in place of a denoiser whose parameters are shared, so that the denoiser keeps its own class."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, *args: Any, **how: Any) -> Any:
        """The denoiser's output."""
        return self.denoiser(*args, **how)


def shard(network: nn.Module, processes: Processes) -> None:
    """Share the parameters of a network among the processes, in place and block by block, and move it to their device.

    A block is what its library does not split between devices. Nothing is kept whole after a forward pass, so that
    weights may be moved or loaded between any two.
    """
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for module in groups_of(network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if processes.device.type == "cpu" and isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo of torch 2.8 takes a mean for a sum


def groups_of(network: nn.Module) -> dict[nn.Module, list[nn.Parameter]]:
    """What is gathered at a time, with its parameters: blocks, inner ones first, and last what is in none of them."""
    lists = (getattr(module, "_no_split_modules", None) or () for module in network.modules())
    names = {name for found in lists for name in found}
    groups: dict[nn.Module, list[nn.Parameter]] = {}
    taken = set[nn.Parameter]()
    for module in reversed(list(network.modules())):
        if module is network or type(module).__name__ in names:
            groups[module] = [one for one in module.parameters() if one not in taken]
            taken.update(groups[module])
    return groups


def own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; all of one that is not shared."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, detached. Where it is shared every process has to ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """This process's part of ``values``, of which every process has all, cut as ``like`` is."""
    if not isinstance(like, DTensor):
        return values
    return own(distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None))


def joined_parts(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which every process has a ``part`` as it has one of ``like``."""
    if not isinstance(like, DTensor):
        return part
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


@torch.no_grad()
def exchange(one: Tensor, other: Tensor) -> None:
    """Let two tensors, or this process's parts of them, change their numbers."""
    mine, its = own(one), own(other)
    kept = mine.clone()
    mine.copy_(its)
    its.copy_(kept)
