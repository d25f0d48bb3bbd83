"""Which device a process computes on."""

from __future__ import annotations

from mapo.shards import LOCAL_PLACES, number_of


def best_device() -> str:
    """``cuda`` where there is such a GPU, else ``cpu``; training takes a Mac's too (``train/processes.py``)."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def use_own_device() -> None:
    """On a machine with several GPUs each process takes its own, as torchrun or Slurm numbers them."""
    place = next((n for name in LOCAL_PLACES if (n := number_of(name)) is not None), None)
    if place is None:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
