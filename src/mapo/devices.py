"""Which device a process computes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path

from mapo.errors import count
from mapo.shards import LOCAL_PLACES, number_of

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them
LARGE_BLOCK, LARGEST_KEPT = 2**20, 2**25


def best_device(or_a_macs: bool = False) -> str:
    """``cuda`` where there is such a GPU, else ``cpu``; with ``or_a_macs`` ``mps`` before that.

    Only a training in one process asks for a Mac's GPU: what the other verbs compute was never compared there with what
    a CPU gives, and several processes cannot share one.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if or_a_macs and torch.backends.mps.is_available() else "cpu"


def device_name(device: str) -> str:
    """What a process computes on, as its maker calls it; of a CPU with the number of threads."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, its GPU" if device == "mps" else f"{name}, {count(torch.get_num_threads(), 'thread')}"


def memory_in_use(device: str) -> int:
    """Bytes that this process holds: of a GPU the most so far, of a CPU its anonymous memory now, without files.

    On systems that do not tell anonymous memory it is the most so far, with files. 0 where nothing is known.
    """
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if device == "mps":
        return int(torch.mps.driver_allocated_memory())
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) * (1 if sys.platform == "darwin" else 1024)


def give_back_at_once() -> bool:
    """From now on this process gives the system back each block of a MiB and more when it is freed, where it can.

    That is so with glibc. It would begin that way, and then keep blocks of up to 32 MiB once one was freed, which is
    faster, and leaves holes that nothing fits. What the environment says of it stands. Whether it was done.
    """
    return _told_glibc({M_MMAP_THRESHOLD: LARGE_BLOCK})


def keep_freed_blocks() -> bool:
    """From now on this process keeps freed blocks of up to 32 MiB, as glibc would by then if nobody had asked."""
    return _told_glibc({M_MMAP_THRESHOLD: LARGEST_KEPT, M_TRIM_THRESHOLD: 2 * LARGEST_KEPT})


def give_back_now() -> None:
    """Give the system back what this process has freed and still holds, where the C library can.

    After a network is gone that is hundreds of MiB.
    """
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def _told_glibc(sizes: dict[int, int]) -> bool:
    if not _has_glibc() or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(what, size) for what, size in sizes.items())


def use_own_device() -> None:
    """On a machine with several GPUs each process takes its own, as torchrun or Slurm numbers them."""
    place = next((n for name in LOCAL_PLACES if (n := number_of(name)) is not None), None)
    if place is None:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
