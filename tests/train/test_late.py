"""On a GPU a step's numbers are read in the next one. Here the same is done on a CPU."""

import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import assert_same, run

from mapo.errors import DivergedError
from mapo.pairs import PairSet
from mapo.train import loop
from mapo.train.batches import rows_at
from mapo.train.config import OptimConfig
from mapo.train.late import Late
from mapo.train.loop import Loop
from mapo.train.run.folder import Run
from mapo.train.weights.updater import AtEnd

HERE = str(Path(loop.__file__).parents[1])  # the package


@pytest.fixture
def late(monkeypatch):
    """As on a GPU: numbers are read late, and a fused optimizer decides on the device whether it moves."""
    made = Loop.__init__

    def later(self, *args, **named):
        made(self, *args, **named)
        self.late = True
        optimizer = self.trained.updater.parts[0].optimizer
        optimizer.defaults["fused"] = True
        for group in optimizer.param_groups:
            group["fused"] = True

    monkeypatch.setattr(Loop, "__init__", later)


def checkpoint(folder, step):
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


def test_lines_and_checkpoints_are_those_of_a_run_that_waits_for_each_step(
    tmp_path, sdxl, pairs, cache, monkeypatch, request
):
    how = {"steps": 5, "save_every_steps": 2, "keep_checkpoints": "all"}
    whole = run(tmp_path / "a", sdxl, pairs, cache, "dpo", **how)
    request.getfixturevalue("late")
    order, one_step, log_step = [], Loop.one_step, Run.log_step
    monkeypatch.setattr(
        Loop, "one_step", lambda self, step, b: order.append(f"do {step + 1}") or one_step(self, step, b)
    )
    monkeypatch.setattr(Run, "log_step", lambda self, v: order.append(f"tell {v['step']}") or log_step(self, v))
    assert_same(run(tmp_path / "b", sdxl, pairs, cache, "dpo", **how), whole)
    assert " ".join(order) == "do 1 do 2 tell 1 tell 2 do 3 do 4 tell 3 tell 4 do 5 tell 5"  # saved after 2, 4 and 5
    for step in (2, 4, 5):
        ours, theirs = (checkpoint(tmp_path / name, step) for name in "ab")
        assert all(torch.allclose(ours[name], theirs[name], rtol=1e-9) for name in theirs)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_step_and_the_one_after_it_leave_the_weights_alone(tmp_path, sdxl, pairs, cache, monkeypatch, late, what):
    real, calls = loop.pair_losses, []
    portions = {} if what == "loss" else {"pairs_per_device": 2}

    def broken(objective, errors, *rest):
        calls.append(1)
        if len(calls) == 5 and what == "gradient":
            errors.chosen.register_hook(lambda gradient: gradient * math.nan)
        return real(objective, errors, *rest) * (math.nan if len(calls) == 3 and what == "loss" else 1)

    with monkeypatch.context() as patch, pytest.raises(DivergedError) as stopped:
        patch.setattr(loop, "pair_losses", broken)
        run(tmp_path / "r", sdxl, pairs, cache, steps=6, **portions)
    says = "Step 3: the loss is not finite for 4 pairs" if what == "loss" else "Step 3: the gradient is not finite"
    assert says in str(stopped.value) and "timestep" in str(stopped.value)
    places = rows_at(range(8, 12), len(PairSet(pairs)), 0)
    assert all(PairSet(pairs)[row].id in str(stopped.value) for row in places)  # of all portions
    assert "up to step 2 is kept" in str(stopped.value)
    assert len(calls) == (4 if what == "loss" else 8)  # the fourth was on its way
    run(tmp_path / "two", sdxl, pairs, cache, steps=2, **portions)
    for name in ("weights", "optimizer"):
        ours, theirs = (
            load_file(tmp_path / folder / "checkpoints" / "step-00000002" / f"{name}.safetensors")
            for folder in ("r", "two")
        )
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize(("objective", "apart"), [("mapo", False), ("sdpo", True), ("sft", False)])
def test_no_number_of_the_device_is_read_within_a_step(
    tmp_path, sdxl, pairs, cache, monkeypatch, late, objective, apart
):
    read, inside = [], []

    def counted(name):
        real = getattr(torch.Tensor, name)

        def call(self, *args, **named):
            frame = sys._getframe(1)
            if inside and frame.f_code.co_filename.startswith(HERE):
                read.append(f"{name} at {frame.f_code.co_filename}:{frame.f_lineno}")
            return real(self, *args, **named)

        monkeypatch.setattr(torch.Tensor, name, call)

    one_step, batch_at = Loop.one_step, Loop.batch_at

    def stepped(self, step, batches):
        given = [next(batches) for _ in self.micro_batches(step)]  # which are read from the disk meanwhile
        inside.append(1)
        try:
            return one_step(self, step, iter(given))
        finally:
            inside.clear()

    monkeypatch.setattr(Loop, "one_step", stepped)
    monkeypatch.setattr("mapo.train.loop.prefetched", lambda jobs: (job() for job in jobs))
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        counted(name)
    lines = run(tmp_path / "r", sdxl, pairs, cache, objective, steps=3, pairs_per_device=2, pair_by_pair=apart)
    assert len(lines) == 3 and batch_at is Loop.batch_at
    assert read == []


def test_numbers_that_are_late_are_those_that_were_given():
    assert Late(torch.tensor([1.5, math.inf])).read() == [1.5, math.inf]


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_is_left_out_whole_where_a_step_was_bad(fused):
    parameter = torch.nn.Parameter(torch.ones(3))
    updater = AtEnd({"p": parameter}, OptimConfig(lr=0.1), 10)
    if fused:
        updater.parts[0].optimizer = torch.optim.AdamW([{"params": [parameter], "share": 1.0}], lr=0.1, fused=True)
    kept = None
    for step, (factor, good) in enumerate([(1.0, True), (math.nan, True), (1.0, False), (1.0, True)]):
        updater.begin(step)
        updater.backward((parameter * factor).sum())
        norm = updater.end(torch.tensor(good))
        now = {name: t.clone() for name, t in {**updater.state(), "p": parameter.detach()}.items()}
        if step in (1, 2):
            assert norm.isfinite() == (step == 2) and all(torch.equal(now[k], kept[k]) for k in kept)
        else:
            assert kept is None or not torch.equal(now["p"], kept["p"])
        kept = now
