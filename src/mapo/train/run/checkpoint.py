"""Training state on disk: weights and optimizer moments in safetensors, everything else in one small JSON file.

A checkpoint is a folder that is either complete or absent (it is written under a temporary name and then renamed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mapo.errors import MapoError
from mapo.files import replacing
from mapo.models.parts.tensors import save_tensors
from mapo.texts import read_object, write_json

REMEDY = "Delete it, or restore it from a copy, then run the same command again."


def save_checkpoint(
    folder: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    add: Callable[[Path], None] | None = None,
) -> None:
    """Write a complete checkpoint folder, atomically, and see that it is on the disk.

    Each of ``groups`` is a file of its name. ``add`` writes more into the folder.
    """
    with replacing(folder, sync=True) as temporary:
        temporary.mkdir(parents=True)
        for name, tensors in groups.items():
            save_tensors(
                {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / f"{name}.safetensors"
            )
        if add is not None:
            add(temporary)
        write_json(temporary / "state.json", dict(state))


def load_checkpoint(folder: Path, groups: Iterable[str] = ("weights", "optimizer")) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint folder, by their groups."""
    try:
        return {name: load_file(folder / f"{name}.safetensors") for name in groups}
    except Exception as error:
        raise MapoError(f"The checkpoint {folder} is damaged ({error}). {REMEDY}") from None


def read_state(folder: Path) -> dict[str, Any]:
    """The small state of a checkpoint; no weight is read."""
    return read_object(folder / "state.json", "a checkpoint", REMEDY)
