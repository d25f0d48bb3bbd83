"""What a bench found, written with the command that measured it, the day and the machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers")


def write_measured(path: Path, found: Mapping[str, Any]) -> None:
    """Write ``found`` behind what is known of its measurement; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**circumstances(), **found}, indent=1) + "\n")


def circumstances() -> dict[str, Any]:
    """The command of this process, the day, and the machine with its device, threads and packages."""
    return {"command": command(sys.argv), "date": str(date.today()), "machine": machine()}


def command(arguments: list[str]) -> str:
    """What to type for the same again. Folders of one's own machine are told as FOLDER."""
    script, *rest = arguments
    told = ["FOLDER" if Path(one).is_absolute() else one for one in rest]
    return " ".join(["python", f"bench/{Path(script).name}", *told])


def machine() -> dict[str, Any]:
    """The processor or GPU, how busy it is, and the versions of what computes on it."""
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "device": _device(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _device() -> str:
    """The name of the GPU, in a process that computes with torch; else "cpu"."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"
