"""How many bytes live at a time while tensors without numbers go through real code: the peak, by kind."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mapo.train.plan.outcomes import Outcomes, changes_numbers

HEAP_MOST = 2**25  # glibc: larger ones go back to the system at once


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every storage that is made is counted from its making to its end, under the kind that is ``making``.

    What asks for a number of a tensor is given 1. Of the kinds that are ``shared`` only this process's part counts, one
    of so many as they are shared ``among``.
    """

    outcomes = Outcomes()  # what one rehearsal has asked, the next one knows

    def __init__(self, device: torch.device, shared: Collection[str] = (), among: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.shared, self.among = device, shared, among
        self.making = "activations"
        self.held: Counter[str] = Counter()  # bytes by kind, now
        self.total = self.peak = 0
        self.freed = 0  # bytes of the largest storage that came to its end, of those up to ``HEAP_MOST``
        self.at_peak: dict[str, int] = {}
        self._known: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and look at what it made."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and _to_cpu(kwargs):
            return torch.ones(args[0].shape, dtype=(kwargs or {}).get("dtype") or args[0].dtype)
        if changes_numbers(func):
            return self.outcomes.changed(func, args, kwargs or {})
        if _gives_its_own(func):
            return func(*args, **(kwargs or {}))
        output = self.outcomes.of(func, args, kwargs or {})
        if isinstance(output, Tensor):
            self._see(output)
        else:
            for one in tree_leaves(output):
                if isinstance(one, Tensor):
                    self._see(one)
        return output

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key)), self.making, size
        self._add(self.making, size)
        self._look()

    def _add(self, kind: str, size: int) -> None:
        size = round(size / self.among) if kind in self.shared else size
        self.held[kind] += size
        self.total += size

    def _look(self) -> None:
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.held)

    def _forget(self, key: int) -> None:
        _, kind, size = self._known.pop(key)
        self._add(kind, -size)
        if self.freed < size <= HEAP_MOST:
            self.freed = size

    def kind(self, tensor: Tensor) -> str:
        """Of what kind a tensor's storage is; empty where it is not known."""
        return self._known.get(tensor.untyped_storage()._cdata, (None, "", 0))[1]

    def call(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Let the storages of ``tensors`` be of this kind from now on."""
        for tensor in tensors:
            self._see(tensor)
            key = tensor.untyped_storage()._cdata
            reference, before, size = self._known.get(key, (None, "", 0))
            if reference is not None and before != kind:
                self._known[key] = reference, kind, size
                self._add(before, -size)
                self._add(kind, size)

    def again(self) -> None:
        """Forget the peak."""
        self.peak, self.at_peak = 0, {}
        self._look()

    @contextlib.contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Inside, what is made is of this kind."""
        before, self.making = self.making, kind
        try:
            yield
        finally:
            self.making = before


@cache
def _gives_its_own(func: Any) -> bool:
    """Whether an operator gives back what it was given, or a view of it."""
    return any(one.alias_info is not None for one in func._schema.returns)


def _to_cpu(kwargs: Any) -> bool:
    device = (kwargs or {}).get("device")
    return device is not None and torch.device(device).type == "cpu"
