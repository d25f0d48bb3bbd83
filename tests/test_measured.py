"""What stands beside the figures of a bench."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    return importlib.import_module("measured")


def test_a_command_can_be_typed_again_and_tells_no_folder_of_this_machine(measured):
    given = [
        "/somewhere/bench/style.py",
        "--work",
        "/my/work",
        "--out=/my/out",
        "--out",
        "bench/results",
        "--pairs",
        "8",
    ]
    told = "python bench/style.py --work FOLDER --out=FOLDER --out bench/results --pairs 8"
    assert measured.command(given) == told


def test_results_are_written_behind_command_day_and_machine(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench/cache.py"])
    measured.write_measured(tmp_path / "made" / "cache.json", {"rows": [1]})
    found = json.loads((tmp_path / "made" / "cache.json").read_text())
    assert list(found) == ["command", "date", "machine", "rows"] and found["command"] == "python bench/cache.py"
    assert found["machine"]["threads"] == torch.get_num_threads() and found["machine"]["torch"] == torch.__version__
