"""The reference's errors computed once before training."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_train import assert_same, run

from mapo.errors import MapoError
from mapo.train import reference
from mapo.train.loop import Loop
from mapo.train.objectives import OBJECTIVES, Objective

FILE = "reference.safetensors"


@pytest.fixture
def measured(monkeypatch):
    """The positions whose reference was run before training, in order."""
    seen, real = [], reference._measured

    def counted(loop, positions):
        seen.extend(positions)
        return real(loop, positions)

    monkeypatch.setattr(reference, "_measured", counted)
    return seen


def test_no_second_model_is_held(tmp_path, sdxl, pairs, cache, monkeypatch):
    held, made = [], Loop.__init__

    def looked(self, *args, **named):
        made(self, *args, **named)
        held.append(self.trained.reference is not None)

    monkeypatch.setattr(Loop, "__init__", looked)
    for when in ("together", "before"):
        run(tmp_path / when, sdxl, pairs, cache, "dpo", reference=when, steps=1)
    assert held == [True, False]


def test_a_longer_run_measures_its_new_positions_alone(tmp_path, sdxl, pairs, cache, measured, heard):
    whole = run(tmp_path / "whole", sdxl, pairs, cache, "dpo", steps=4)
    run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=2)
    assert measured == list(range(8))
    assert "First the reference's errors of 8 pairs are computed, one forward for each picture" in heard()
    got = run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=4)
    assert measured == list(range(16))  # the weights have moved meanwhile, the reference has not
    assert_same(got, whole, tolerance=1e-9)


def test_a_run_that_is_killed_meanwhile_goes_on_without_doing_it_again(
    tmp_path, sdxl, pairs, cache, monkeypatch, measured
):
    whole = run(tmp_path / "whole", sdxl, pairs, cache, "dpo", steps=4)
    monkeypatch.setattr(reference, "PAIRS", 4)
    monkeypatch.setattr(reference, "SECONDS", 0.0)
    real = reference._write

    def cut(path, errors, of):
        real(path, errors, of)
        if errors.shape[1] == 8:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(reference, "_write", cut)
        run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=4)
    assert measured == list(range(8)) and not (tmp_path / "r" / "metrics.jsonl").exists()
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=4), whole, tolerance=1e-9)
    assert measured == list(range(16))


def test_being_stopped_meanwhile_keeps_what_was_done(tmp_path, sdxl, pairs, cache, monkeypatch, measured):
    monkeypatch.setattr(reference, "PAIRS", 4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            Loop, "asked_to_stop", property(lambda self: lambda: True, lambda self, value: None), raising=False
        )
        run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=3)
    assert measured == list(range(4)) and load_file(tmp_path / "r" / FILE)["chosen"].shape == (4,)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=3)) == 3
    assert measured == list(range(12))


def test_another_run_takes_them_over_where_it_is_of_the_same_model_pairs_and_seed(
    tmp_path, sdxl, pairs, cache, measured, heard
):
    run(tmp_path / "a", sdxl, pairs, cache, "dpo", reference="before", steps=2)
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "a" / FILE, tmp_path / name / FILE)
    measured.clear()
    got = run(tmp_path / "b", sdxl, pairs, cache, {"name": "ipo", "beta": 50.0}, "lora", reference="before", steps=2)
    assert measured == [] and got[0]["margin_over_reference"] == pytest.approx(0, abs=1e-9)
    heard()
    run(tmp_path / "c", sdxl, pairs, cache, "dpo", reference="before", steps=2, seed=1)
    assert measured == list(range(8)) and "is of other settings. It is written again." in heard()


@pytest.mark.parametrize("damage", ["half", "a byte of a number"])
def test_a_damaged_file_is_written_again(tmp_path, sdxl, pairs, cache, measured, heard, damage):
    whole = run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=1)
    data = bytearray((tmp_path / "r" / FILE).read_bytes())
    data[-3] ^= 1
    (tmp_path / "r" / FILE).write_bytes(data if damage != "half" else b"half")
    got = run(tmp_path / "r", sdxl, pairs, cache, "dpo", reference="before", steps=2)
    assert measured == [*range(4), *range(8)] and got[0] == whole[0]
    assert f"{FILE} is damaged. It is written again." in heard()
    assert torch.isfinite(load_file(tmp_path / "r" / FILE)["rejected"]).all()


def test_an_extra_that_needs_the_references_residuals_is_refused():
    def far(both):
        return (both.chosen - both.ref_chosen).square().flatten(1).mean(1)

    own = Objective(lambda errors: errors.extras["far"], needs_reference=True, extras={"far": far})
    with pytest.raises(MapoError, match="the extra far of the objective own cannot be made without its residuals"):
        reference.check_extras(own, "own")
    for name, objective in OBJECTIVES.items():
        reference.check_extras(objective, name)
