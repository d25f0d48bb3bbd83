"""A sample of bench/kills.py: kill -9 at random moments, and everything ends as if it had never been killed."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ELSEWHERE = ("import", "train, lora")  # killed in tests/importers/test_interrupted.py and tests/test_cli.py


def test_verbs_that_are_killed_end_as_if_they_had_never_been(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "bench")
    kills = importlib.import_module("kills")
    monkeypatch.setattr(kills, "PRELOADED", [*kills.PRELOADED, "frozen"])
    monkeypatch.setattr(kills, "PAIRS", 12)
    whole = kills.jobs
    monkeypatch.setattr(kills, "jobs", lambda material: [job for job in whole(material) if job.name not in ELSEWHERE])
    found = kills.measure(kills=6, seed=11)
    assert found["unlike"] == []
    assert found["kills"] == 6 and len(found["trials"]) == 6
