"""Runs that are exported, and a LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exported import trained

from mapo.export.verb import export
from mapo.train.config import make_config
from mapo.train.train import train
from tiny import make_pairs, make_sdxl


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a sensitive set, a run of a LoRA and one of all weights."""
    folder: Path = tmp_path_factory.mktemp("work")
    make_sdxl(folder / "base")
    (folder / "base" / "sampling.json").write_text('{"steps": 2, "guidance": 3.0, "width": 16, "height": 16}')
    make_pairs(folder / "my pairs", count=4)
    (folder / "my pairs" / "set.json").write_text(
        json.dumps({**json.loads((folder / "my pairs" / "set.json").read_text()), "sensitive": True,
                    "provenance": {"imported": "owner/photos", "licence": "cc-by-4.0", "model": "/home/me/secret/model"}})
    )  # fmt: skip
    for kind in ("lora", "full"):
        values = {
            "model": str(folder / "base"), "pairs": str(folder / "my pairs"),
            "adapter": {"kind": kind, "rank": 4, **({"alpha": 2.0} if kind == "lora" else {})},
            "objective": {"name": "mapo", "beta": 0.3}, "optim": {"lr": 1e-2},
            "train": {"steps": 2, "pairs_per_step": 2, "save_every_steps": 1, "keep_checkpoints": "all"},
        }  # fmt: skip
        train(make_config(values), folder / kind)
    return folder


@pytest.fixture(scope="module")
def lora(work: Path) -> Path:
    export(str(work / "lora"), "lora", work / "exported-lora", licence="openrail++")
    return work / "exported-lora"


@pytest.fixture(scope="module")
def run_of_any(any_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return trained(any_model, make_pairs(folder / "pairs", count=2), folder / "run")
