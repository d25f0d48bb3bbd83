"""The memory that is at hand, and what a process takes besides its tensors."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from mapo.errors import MapoError

# Of `mapo train` on a CPU with glibc's malloc, chosen by the settings of FITTED in bench/plan.py.
LIBRARIES = 378 * 2**20  # anonymous memory with the libraries and the set, without a model
HEAP = 13  # times the largest tensor that ends in the heap (up to 32 MiB): holes, and what is not given back
HEAP_AT_ONCE = 10  # the same where large blocks are given back at once: what kernels take for themselves
# What has to be left beside a plan, its tenth and so many bytes: so much too low were plans that were measured.
SPARE, SPARE_BYTES = 0.1, 200 * 2**20
# Of a GPU: taken for a reason and not measured.
CONTEXT = 600 * 2**20  # CUDA's own, and the workspace of its libraries
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def beside(device: str, freed: int, at_once: bool = False) -> dict[str, int]:
    """Bytes that a process takes besides its tensors, by kind; ``freed`` are those of its largest short-lived one.

    ``at_once``: freed blocks go back to the system (:func:`mapo.devices.give_back_at_once`).
    """
    if device == "cpu":
        return {"heap": (HEAP_AT_ONCE if at_once else HEAP) * freed, "libraries": LIBRARIES}
    return {"libraries": CONTEXT}


def room_of(device: str) -> int:
    """The bytes of memory that a device has: of the CPU the machine's, or what its group may take, if that is less."""
    import torch

    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    if device == "mps":
        return int(torch.mps.recommended_max_memory())
    import os

    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            found.append(int(Path(name).read_text("utf-8")))
    return min(found)


def parse_size(text: str) -> int:
    """``24GB``, ``22.5 GiB`` or ``24G`` as bytes, and a bare number of them; MapoError for another text.

    A bare number of less than 1 MiB is refused: whoever writes 8 or 24000 means another unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not found or found[2] not in UNITS or not float(found[1]):
        raise MapoError(f"--memory {text!r} is not a size. Write it as 24GB or 22.5GiB.")
    size = int(float(found[1]) * UNITS[found[2]])
    if size < 2**20 and text.strip()[-1].isdigit():
        raise MapoError(f"--memory {text!r} would be {size} bytes. Give a unit, as in 24GB or 22.5GiB.")
    return size


def shown(number: float) -> str:
    """Bytes as people read them: ``340 MiB``, ``5.0 GiB``."""
    if number < 2**30:
        return f"{number / 2**20:,.0f} MiB" if number >= 2**20 or not number else "less than 1 MiB"
    return f"{number / 2**30:,.1f} GiB"
