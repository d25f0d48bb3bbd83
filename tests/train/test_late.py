"""On a GPU a step's numbers are read in the next one. Here the same is done on a CPU."""

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import assert_same, run

from mapo.encode.frame import square
from mapo.errors import DivergedError
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.train import loop
from mapo.train.batches import Members, rows_at
from mapo.train.config import make_config
from mapo.train.late import Late
from mapo.train.loop import Loop
from mapo.train.objectives import OBJECTIVES
from mapo.train.plan import rehearsal
from mapo.train.plan.live import Live
from mapo.train.plan.outlines import Outlines
from mapo.train.plan.rehearsal import META
from mapo.train.processes.processes import Place, Processes
from mapo.train.run.folder import Run
from mapo.train.sections import OptimConfig
from mapo.train.weights.opening import open_trained
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


class Waits(Live):
    """What would wait for a GPU, whoever asks: numbers and copies to the CPU, and sizes that follow from numbers.

    On the meta device, where nothing has numbers, they cannot be read unseen.
    """

    SIZES = ("nonzero", "masked_select", "unique", "_unique2", "bincount", "equal", "repeat_interleave.Tensor")

    def __init__(self):
        super().__init__(META)
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, to = str(func), torch.device((kwargs or {}).get("device") or "meta")
        on_device = any(isinstance(one, torch.Tensor) and one.is_meta for one in args)
        copied = ("_to_copy" in name and to.type == "cpu") or ("copy_" in name and not args[0].is_meta)
        if on_device and (
            "_local_scalar_dense" in name or copied or any(f"aten.{size}" in name for size in self.SIZES)
        ):
            self.seen.append(name)
        return super().__torch_dispatch__(func, types, args, kwargs)


def waits_of_a_step(folder, sections, objective="mapo"):
    """What the second step of a training on a GPU would wait for, by name."""
    config = make_config(
        {"model": "mini", "pairs": "none", "objective": {"name": objective}, **sections}
        | {"train": {"pairs_per_step": 2, "steps": 9, **sections.get("train", {})}}
    )
    found, shown = OBJECTIVES[objective], Members.__new__(Members)
    shown.weights, shown.certain, shown.seen_in, shown.rows = np.ones(4), True, None, np.arange(4)
    shown.pairs = SimpleNamespace(sides=("chosen", "rejected"))
    with pytest.MonkeyPatch.context() as patch, Waits() as waits, META:
        patch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *rest: None)
        model = open_model(Outlines(**vars(find_model(str(folder)))), to_train=False)
        trained = open_trained(config, model, found, Processes(Place(), META), None)
        trained.predictor = lambda network: lambda x_t, *rest: model.predict(network, x_t.to(trained.dtype), *rest)
        for part in getattr(trained.updater, "updater", trained.updater).parts:
            if type(part.optimizer) is torch.optim.AdamW:
                for group in (part.optimizer.defaults, *part.optimizer.param_groups):
                    group["fused"] = True
        loop = Loop(config, found, Processes(Place(), META), shown, None, trained)
        portions = len(loop.micro_batches(0))
        for step in range(2):
            batches = [rehearsal._batch(loop, 2 // portions, [square(model.layout.side)]) for _ in range(portions)]
            waits.seen.clear()
            loop.one_step(step, iter(batches))
    return waits.seen


MASTER, ROUNDED = ({"train": {"weights": f"bfloat16-{kind}"}} for kind in ("master", "stochastic"))
ADAFACTOR = {"optim": {"name": "adafactor"}}
IN_BACKWARD = {"in_backward": True, "clip_norm": 0}
UPDATERS = {
    "adamw": {}, "masters": MASTER, "rounded": ROUNDED, "masters-adafactor": MASTER | ADAFACTOR,
    "rounded-adafactor": ROUNDED | ADAFACTOR, "in-backward": {"optim": IN_BACKWARD},
    "rounded-adafactor-in-backward": ROUNDED | {"optim": {"name": "adafactor", **IN_BACKWARD}},
    "rounded-portions": {"train": {**ROUNDED["train"], "pairs_per_device": 1}},
    "ema": {"train": {"ema": 0.9}}, "checkpointing": {"train": {"gradient_checkpointing": True}},
    "pair-by-pair": {"train": {"pair_by_pair": True}}, "lora": {"adapter": {"kind": "lora"}},
}  # fmt: skip


@pytest.mark.parametrize("sections", UPDATERS.values(), ids=UPDATERS)
def test_a_step_waits_for_nothing_whichever_the_updater_also_not_in_a_library(sdxl, sections):
    assert waits_of_a_step(sdxl, sections) == []


@pytest.mark.parametrize("objective", ["dpo", "sdpo", "sft"])
def test_a_step_waits_for_nothing_whichever_the_objective(sdxl, objective):
    assert waits_of_a_step(sdxl, {}, objective) == []


def test_kto_which_needs_a_mean_before_its_gradient_waits(sdxl):
    assert waits_of_a_step(sdxl, {}, "kto") != []


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("optim", [{}, IN_BACKWARD])
def test_8_bit_adamw_asks_once_a_step_whether_all_was_finite(sdxl, optim):
    assert waits_of_a_step(sdxl, {"optim": {"name": "adamw8bit", **optim}}) == ["aten._local_scalar_dense.default"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("sections", UPDATERS.values(), ids=UPDATERS)
def test_a_gpu_is_not_waited_for(tmp_path, sdxl, pairs, cache, monkeypatch, sections):
    one_step = Loop.one_step

    def watched(self, step, batches):
        given = [next(batches) for _ in self.micro_batches(step)]
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first makes what is kept
        try:
            return one_step(self, step, iter(given))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "one_step", watched)
    kind = sections.get("adapter", {}).get("kind", "full")
    settings = {"precision": "float32", "steps": 3, **sections.get("train", {}), "optim": sections.get("optim", {})}
    assert len(run(tmp_path / "r", sdxl, pairs, cache, kind=kind, **settings)) == 3
