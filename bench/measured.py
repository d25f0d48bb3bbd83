"""What a bench found, written with the command that measured it, the day and the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers")


def write_measured(path: Path, found: Mapping[str, Any]) -> None:
    """Write ``found`` behind its command, day and machine. What it says of these itself counts; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"command": command(sys.argv), "date": str(date.today()), "machine": machine()}
    path.write_text(json.dumps({**about, **found}, indent=1) + "\n")


def command(arguments: list[str]) -> str:
    """What to type for the same again. Folders of one's own machine are told as FOLDER."""
    script, *rest = arguments
    return " ".join(
        ["python", f"bench/{Path(script).name}", *(re.sub("^(|.*?=)/.*", r"\1FOLDER", one) for one in rest)]
    )


def machine() -> dict[str, Any]:
    """The processor and the GPU, how busy it is, and the versions of what computes on it."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
