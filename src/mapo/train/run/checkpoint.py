"""Training state on disk: weights and optimizer moments in safetensors, everything else in one small JSON file.

A checkpoint is a folder that is either complete or absent (it is written under a temporary name and then renamed).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mapo.errors import MapoError, reason
from mapo.files import replacing
from mapo.models.parts.tensors import checksum_of, save_in_turn
from mapo.texts import is_as_written, read_object, sealed, write_json
from mapo.train.processes.processes import Place, Processes
from mapo.train.processes.sharded import whole

REMEDY = "Delete it, or restore it from a copy, then run the same command again."
ALONE = Processes(Place(), torch.device("cpu"))


def save_checkpoint(
    folder: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    add: Callable[[Path], None] | None = None,
    processes: Processes = ALONE,
) -> None:
    """Write a complete checkpoint folder, atomically, and see that it is on the disk.

    Each of ``groups`` is a file of its name. ``add`` writes more into the folder. All ``processes`` call this. The
    first one writes; tensors of which each has a part it gets whole, one after another. An error there ends all.
    """
    checksums: dict[str, int] = {}
    with ExitStack() as stack:
        temporary = processes.first(lambda: stack.enter_context(_begun(folder)))
        for name, tensors in groups.items():
            _write(temporary / f"{name}.safetensors", tensors, processes, checksums)

        def complete() -> None:
            if add is not None:
                add(temporary)
            write_json(temporary / "state.json", sealed({**state, "checksums": checksums}))
            stack.close()

        processes.first(complete)


@contextmanager
def _begun(folder: Path) -> Iterator[Path]:
    with replacing(folder, sync=True) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


def _write(path: Path, tensors: Mapping[str, Tensor], processes: Processes, checksums: dict[str, int]) -> None:
    """A file of tensors. All are gathered even where they can no longer be written: the other processes wait for it."""
    gathered = (whole(tensor) for tensor in tensors.values())

    def work() -> None:
        try:
            if processes.main:
                checksums[path.name] = save_in_turn(tensors, gathered, path)
        finally:
            deque(gathered, maxlen=0)

    processes.each(work)


def load_checkpoint(folder: Path, groups: Iterable[str] = ("weights", "optimizer")) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint folder, by their groups."""
    try:
        return {name: load_file(folder / f"{name}.safetensors") for name in groups}
    except Exception as error:
        raise MapoError(f"The checkpoint {folder} is damaged ({reason(error)}). {REMEDY}") from None


def why_damaged(folder: Path) -> str:
    """Why a checkpoint is not what was saved; empty where it is. All of its files are read, unless it is an old one.

    Those that were saved before there were checksums are told by the sizes of their files.
    """
    try:
        state = read_state(folder)
        files = [folder / "weights.safetensors", folder / "optimizer.safetensors", *folder.glob("*.safetensors")]
        for file in dict.fromkeys(files):
            with safe_open(file, "pt"):  # which compares its size with what its head says
                pass
    except MapoError:
        return "its state.json cannot be read"
    except (OSError, SafetensorError):
        return f"{file.name} is cut off or missing"
    if not isinstance(step := state.get("step"), int):
        return "its state.json lacks the step"
    if folder.name.startswith("step-") and folder.name != f"step-{step:08d}":
        return f"its state.json is that of step {step}"
    if not is_as_written(state):
        return "its state.json is not as it was saved"
    saved = state.get("checksums")
    changed = [n for n, value in (saved if isinstance(saved, dict) else {}).items() if checksum_of(folder / n) != value]
    return f"{changed[0]} is not as it was saved" if changed else ""


def read_state(folder: Path) -> dict[str, Any]:
    """The small state of a checkpoint; no weight is read."""
    return read_object(folder / "state.json", "a checkpoint", REMEDY)
