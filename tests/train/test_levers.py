"""What lowers the memory of training: optimizers, weights in half, the update in the backward pass, running means."""

import math
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from test_train import assert_same, metrics, run
from together import train_together

from mapo.errors import DivergedError, MapoError
from mapo.train.config import make_config
from mapo.train.loop import exacter
from mapo.train.plan.subject import open_subject
from mapo.train.processes.processes import Place, Processes
from mapo.train.run.folder import settled
from mapo.train.sections import OptimConfig
from mapo.train.weights import levers, opening, optimizers
from mapo.train.weights.blocks import number_of_blocks
from mapo.train.weights.ema import WithMean
from mapo.train.weights.levers import check_levers, saves_memory
from mapo.train.weights.stored import Rounded, WithMaster, rounded
from mapo.train.weights.updater import AtEnd, InBackward
from tiny import MAKERS, make_sd3

GOOD = torch.tensor(True)
NOT_CLIPPED = {"clip_norm": 0, "in_backward": True}
EIGHT_BITS = pytest.param({"optim": {"name": "adamw8bit"}}, id="adamw8bit")
if find_spec("torchao") is None:
    EIGHT_BITS = pytest.param({}, marks=pytest.mark.skip(reason="torchao is not installed"), id="adamw8bit")
ADAFACTOR = {"optim": {"name": "adafactor"}}
EVERYWHERE = [
    pytest.param({}, id="adamw"),
    EIGHT_BITS,
    pytest.param(ADAFACTOR, id="adafactor"),
    pytest.param({"optim": NOT_CLIPPED}, id="in-backward"),
    pytest.param({"ema": 0.9}, id="ema"),
]
FULL_ONLY = [
    pytest.param({"weights": "bfloat16-master"}, id="master"),
    pytest.param({"weights": "bfloat16-stochastic"}, id="stochastic"),
    pytest.param({"weights": "bfloat16-master", **ADAFACTOR, "ema": 0.9}, id="master-adafactor-ema"),
    pytest.param(
        {"weights": "bfloat16-stochastic", "optim": {"name": "adafactor", **NOT_CLIPPED}}, id="stochastic-in-backward"
    ),
]


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A Stable Diffusion 3, and the cache of its pairs."""
    folder = tmp_path_factory.mktemp("flow")
    return make_sd3(folder / "sd3"), folder / "cache"


def go(out, model, pairs, cache, kind="full", **settings):
    optim = {"lr": 1e-3, **settings.pop("optim", {})}
    return run(out, model, pairs, cache, kind=kind, **{"precision": "float32", "steps": 6, **settings}, optim=optim)


def tensors_below(folder):
    """All tensors of a run that is done: its weights and its last checkpoint."""
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_goes_on(tmp_path, model, pairs, cache, kind, settings):
    """Two steps and two more are four, to the bit."""
    whole = go(tmp_path / "whole", model, pairs, cache, kind, **settings, steps=4)
    go(tmp_path / "two", model, pairs, cache, kind, **settings, steps=2)
    assert_same(go(tmp_path / "two", model, pairs, cache, kind, **settings, steps=4), whole, tolerance=0)
    one, two = tensors_below(tmp_path / "whole"), tensors_below(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)
    assert all(math.isfinite(line["loss"]) for line in whole)
    return one


@pytest.mark.parametrize("settings", EVERYWHERE + FULL_ONLY)
def test_full_training_that_goes_on_is_the_uninterrupted_one_to_the_bit(tmp_path, sdxl, pairs, cache, settings):
    assert_goes_on(tmp_path, sdxl, pairs, cache, "full", settings)


@pytest.mark.parametrize("settings", EVERYWHERE)
def test_a_lora_that_goes_on_is_the_uninterrupted_one_to_the_bit(tmp_path, sdxl, pairs, cache, settings):
    assert_goes_on(tmp_path, sdxl, pairs, cache, "lora", settings)


@pytest.mark.parametrize("settings", [{"ema": 0.9}, ADAFACTOR])
def test_a_run_may_be_allowed_to_go_on_in_another_precision(tmp_path, sdxl, pairs, cache, settings):
    out = tmp_path / "r"
    go(out, sdxl, pairs, cache, **settings, steps=1)
    go(out, sdxl, pairs, cache, **settings, steps=2, precision="float64", allow_change=True)
    (moments,) = (load_file(path) for path in out.glob("checkpoints/*/optimizer.safetensors"))
    assert {tensor.dtype for name, tensor in moments.items() if not name.endswith("/step")} == {torch.float64}
    lines = go(out, sdxl, pairs, cache, **settings, steps=3, precision="float32", allow_change=True)
    assert [line["step"] for line in lines] == [1, 2, 3] and all(math.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize("settings", FULL_ONLY[2:])  # between them: every kind of part that a checkpoint has
def test_a_flow_model_that_goes_on_is_the_uninterrupted_one_to_the_bit(tmp_path, flow, pairs, settings):
    assert_goes_on(tmp_path, flow[0], pairs, flow[1], "full", settings)


@pytest.mark.parametrize("settings", [EIGHT_BITS, ADAFACTOR, {"ema": 0.9}])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_one_batch_of_four_is_four_of_one_accumulated(tmp_path, sdxl, pairs, cache, settings, kind):
    train = partial(go, model=sdxl, pairs=pairs, cache=cache, kind=kind, precision="float64", steps=3, **settings)
    assert_same(train(tmp_path / "four", pairs_per_device=1), train(tmp_path / "one"))
    four, one = (load(tmp_path / name) for name in ("four", "one"))
    eight_bits = (
        settings.get("optim", {}).get("name") == "adamw8bit"
    )  # where rounding may take a moment to the next code
    close = [torch.isclose(four[k], one[k], rtol=1e-9, atol=1e-9).flatten() for k in one]
    assert torch.cat(close).double().mean() > 0.999 if eight_bits else all(same.all() for same in close)


def load(folder):
    return load_file(next((folder / "checkpoints").glob("*/weights.safetensors")))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_in_the_backward_pass_weights_move_as_at_the_end_to_the_bit(tmp_path, sdxl, pairs, cache, name):
    for weights in ("float32", "bfloat16-master", "bfloat16-stochastic"):
        for in_backward in (True, False):
            optim = {"name": name, "clip_norm": 0, "in_backward": in_backward}
            out = tmp_path / f"{weights}-{in_backward}"
            got = go(out, sdxl, pairs, cache, steps=2, weights=weights, optim=optim)
            assert got[0]["grad_norm"] > 0
        one, other = (load(tmp_path / f"{weights}-{in_backward}") for in_backward in (True, False))
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_gradients_are_gone_when_the_backward_pass_is_over():
    weights = {name: torch.nn.Parameter(torch.ones(3)) for name in "ab"}
    updater = InBackward(weights, OptimConfig(lr=0.1, clip_norm=0), 10)
    updater.begin(0)
    updater.backward((weights["a"] * weights["b"] * 2).sum())
    assert all(p.grad is None and (p < 1).all() for p in weights.values())
    assert updater.end(GOOD) == pytest.approx(math.sqrt(6 * 4), rel=1e-6)


def test_in_the_backward_pass_a_loss_that_is_not_finite_moves_no_weight_nor_does_a_later_one():
    weight = torch.nn.Parameter(torch.ones(3))
    updater = InBackward({"w": weight}, OptimConfig(lr=0.1, clip_norm=0), 10)
    for step, loss in enumerate((lambda: (weight / 0).sum(), lambda: weight.sum())):
        updater.begin(step)
        updater.backward(loss())
        assert not math.isfinite(updater.end(GOOD)) and torch.equal(weight.detach(), torch.ones(3))


def test_in_the_backward_pass_the_device_can_leave_out_a_step_whose_loss_is_bad_and_those_after_it():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    updater = InBackward({"w": weight}, OptimConfig(name="adafactor", lr=0.1, clip_norm=0), 10)
    kept = []
    for step, loss in enumerate((lambda: weight.sum(), lambda: (weight / 0).sum(), lambda: weight.sum())):
        updater.begin(step)
        updater.backward(loss())
        assert math.isfinite(updater.end(GOOD)) == (step == 0)
        kept.append({"w": weight.detach().clone(), **{name: t.clone() for name, t in updater.state().items()}})
    assert updater.on_device and not torch.equal(kept[0]["w"], torch.ones(4, 4))
    assert all(torch.equal(kept[0][name], later[name]) for later in kept[1:] for name in later)


def test_a_run_whose_weights_were_spoilt_keeps_its_last_checkpoint_and_no_other(tmp_path, sdxl, pairs, cache):
    settings = {"optim": {**NOT_CLIPPED, "lr": 1e-3}, "save_every_steps": 2}
    go(tmp_path / "r", sdxl, pairs, cache, **settings, steps=2)
    end, calls = InBackward.end, []

    def bad(self, good):
        calls.append(self.step)
        if self.step == 3:
            self.squares[0] *= math.nan
        return end(self, good)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InBackward, "end", bad)
        with pytest.raises(DivergedError, match=r"Step 4: .*What was trained up to step 2 is kept") as stopped:
            go(tmp_path / "r", sdxl, pairs, cache, **settings)
    assert "the gradient is not finite, and with optim.in_backward weights have moved by it" in str(stopped.value)
    assert calls == [2, 3]
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000002"]


CANNOT = [
    ({"optim": {"in_backward": True}}, {}, r"optim.in_backward: .*Set optim.clip_norm=0"),
    ({"optim": NOT_CLIPPED}, {"pairs_per_device": 2}, r"optim.in_backward: .*Leave train.pairs_per_device out"),
    ({"optim": NOT_CLIPPED}, {"data": {"buckets": True}}, r"optim.in_backward: .*Leave data.buckets out"),
    ({"optim": {"lr": 9e-7}}, {"weights": "bfloat16-stochastic"}, r"optim.lr is 9e-07: .*bfloat16-master"),
    ({}, {"weights": "bfloat16-master", "precision": "float64"}, r"does not go together with train.precision=float64"),
    ({}, {"gradient_checkpointing": 12}, r"has 11 blocks, so none would be computed twice. Take a number up to 11, or"),
    ({}, {"kind": "lora", "weights": "bfloat16-master"}, r"is for full training; a LoRA stays in float32"),
]


@pytest.mark.parametrize(("optim", "train", "sentence"), CANNOT)
def test_what_a_lever_cannot_have_is_refused_in_a_sentence(tmp_path, sdxl, pairs, cache, optim, train, sentence):
    with pytest.raises(MapoError, match=sentence):
        go(tmp_path / "r", sdxl, pairs, cache, **optim, **train)
    assert not (tmp_path / "r").exists()


def test_steps_whose_rate_is_too_low_to_be_rounded_at_random_are_told(tmp_path, sdxl, pairs, cache, heard):
    settings = {"weights": "bfloat16-stochastic", "steps": 2}
    go(tmp_path / "low", sdxl, pairs, cache, **settings, optim={"lr": 1e-6})  # the first of two steps of warm-up
    assert (
        "In 1 step of 2 the rate is below 1e-06, where rounding moves weights further than what is learned" in heard()
    )
    train = {"train": settings, "optim": {"lr": 3e-6, "schedule": "cosine"}, "model": "mini", "pairs": "none"}
    assert levers.steps_that_drown(make_config({**train, "train": {**settings, "steps": 100}})) == 39
    assert levers.steps_that_drown(make_config({**train, "train": {"steps": 100}})) == 0


@pytest.mark.parametrize(
    ("kind", "train", "says"),
    [
        ("full", {}, ""),
        ("full", {"precision": "bfloat16", "base_precision": "float16"}, ", or train.precision=float32"),
        ("full", {"weights": "bfloat16-master"}, ", or train.weights=float32"),
        ("lora", {"base_precision": "float16"}, ", or train.base_precision=float32"),
    ],
)
def test_where_numbers_are_not_finite_what_rounds_is_named_and_nothing_else(kind, train, says):
    assert exacter(make_config({"model": "mini", "pairs": "none", "adapter": {"kind": kind}, "train": train})) == says


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_the_blocks_that_may_be_computed_twice_are_counted_without_weights(tmp_path, pairs, monkeypatch, family):
    met = set()

    def noted(network, every):
        network.enable_gradient_checkpointing(lambda block, *args: met.add(block) or block(*args))

    monkeypatch.setattr(opening, "checkpoint_blocks", noted)
    data, how = {"split": "all"}, {"gradient_checkpointing": 2, "pairs_per_step": 1, "allow_distilled": True}
    values = {"model": str(MAKERS[family](tmp_path / "m")), "pairs": str(pairs), "adapter": {"kind": "lora"}}
    config = settled(make_config({**values, "data": data, "train": how}), None)
    subject = open_subject(config, "cpu")
    subject.needs(config)
    assert len(met) == number_of_blocks(subject.model.outline(subject.model.denoiser_part)) > 1


def config_of(**sections):
    from mapo.train.config import make_config

    return make_config({"model": "mini", "pairs": "p", **sections})


def test_the_backward_pass_of_several_processes_does_not_update():
    config = config_of(optim=NOT_CLIPPED)
    with pytest.raises(MapoError, match="the gradients of 2 processes are only added up after"):
        check_levers(config, Processes(Place(0, 2), torch.device("cpu")))


SHARDS_CANNOT = [
    ({"optim": {"name": "adafactor"}}, "optim.name=adafactor needs means over whole rows and columns"),
    ({"train": {"weights": "bfloat16-master"}}, "train.weights=bfloat16-master was not tried with it"),
    ({"train": {"channels_last": True}}, "does not go with train.channels_last"),
    ({"train": {"pictures_every": 5}}, "pictures are drawn by one process, which has a part of the model only"),
    ({"optim": NOT_CLIPPED}, "the gradients of 2 processes are only added up after"),
]


@pytest.mark.parametrize(("sections", "sentence"), SHARDS_CANNOT)
def test_what_processes_that_share_the_model_cannot_have_is_refused_and_one_process_may_have_it(sections, sentence):
    config = config_of(**{**sections, "train": {"shard": "fsdp2", **sections.get("train", {})}})
    with pytest.raises(MapoError, match=sentence):
        check_levers(config, Processes(Place(0, 2), torch.device("cpu")))
    check_levers(config, Processes(Place(), torch.device("cpu")))


def test_an_optimizer_whose_package_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(
        MapoError, match=r'optim.name=adamw8bit needs the package torchao.*pip install "mapo\[memory\]"'
    ):
        levers.check_optimizer(OptimConfig(name="adamw8bit"))


def test_adafactor_holds_a_row_and_a_column_also_of_a_convolution():
    kernel = torch.nn.Parameter(torch.ones(8, 16, 3, 3))
    updater = AtEnd({"k": kernel}, OptimConfig(name="adafactor", lr=0.1, weight_decay=0), 10)
    updater.begin(0)
    updater.backward((kernel * torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0))).sum())
    updater.end(GOOD)
    assert sum(t.numel() for t in updater.state().values()) == 8 + 16 * 9 + 1
    moved = (kernel.detach() - 1).pow(2).mean().sqrt()
    assert 0.05 < moved <= 0.1001  # the rate is a distance, as that of AdamW is


@pytest.mark.parametrize("keep", [None, lambda name, p: Rounded(p, OptimConfig(name="adafactor"), 0, name)])
def test_adafactor_moves_a_convolution_alike_wherever_its_channels_lie(keep):
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    got = []
    for layout in (torch.contiguous_format, torch.channels_last):
        start = torch.ones(8, 4, 3, 3, dtype=torch.float32 if keep is None else torch.bfloat16)
        kernel = torch.nn.Parameter(start.to(memory_format=layout))
        updater = AtEnd({"k": kernel}, OptimConfig(name="adafactor", lr=0.1), 10, keep=keep)
        updater.begin(0)
        updater.backward((kernel * gradient).sum())
        updater.end(GOOD)
        got.append(kernel.detach().float().contiguous())
    assert torch.allclose(*got, atol=1e-6 if keep is None else 1e-2) and not torch.equal(got[0], torch.ones(8, 4, 3, 3))


@pytest.mark.parametrize("keep", [None, lambda name, p: Rounded(p, OptimConfig(name="adafactor"), 0, name)])
def test_adafactor_goes_on_however_the_channels_of_a_convolution_lie(keep):
    """A run may go on with another train.channels_last."""
    random, got = torch.Generator().manual_seed(0), []
    start, *gradients = (torch.randn(8, 4, 3, 3, generator=random) for _ in range(3))
    plain, last = torch.contiguous_format, torch.channels_last
    for layouts in ((plain, plain), (plain, last), (last, plain), (last, last)):
        before = None
        for step, (gradient, layout) in enumerate(zip(gradients, layouts, strict=True)):
            kernel = torch.nn.Parameter(
                start.to(torch.float32 if keep is None else torch.bfloat16, copy=True, memory_format=layout)
            )
            updater = AtEnd({"k": kernel}, OptimConfig(name="adafactor", lr=0.1), 10, keep=keep)
            if before is not None:
                updater.load(before.weights(), before.state(), {})
            updater.begin(step)
            updater.backward((kernel * gradient).sum())
            updater.end(GOOD)
            before = updater
        got.append((before.weights()["k"].float(), before.state()["k/col_var"]))
    for weights, columns in got:
        assert torch.allclose(columns, got[0][1]) and torch.allclose(weights, got[0][0], atol=1e-6)


SHAPES = {"kernel": (6, 4, 3, 3), "matrix": (5, 7), "bias": (5,), "one": (1,)}


@pytest.mark.parametrize("decay", [0, 0.1])
def test_adafactor_is_that_of_torch_but_for_rounding_and_takes_up_its_state(decay):
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start.values()] for _ in range(2))
    how = {"lr": 0.05, "eps": (1e-15, 0.5), "weight_decay": decay}
    made = optimizers.Adafactor(ours, **how), torch.optim.Adafactor(theirs, **how)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator) * 10 ** (step - 2)
            other.grad = one.grad.clone()
        for optimizer in made:
            optimizer.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
            kept, its = made[0].state[one], made[1].state[other]
            assert kept.keys() == its.keys()
            assert all(
                torch.allclose(kept[key], its[key], rtol=1e-5) and kept[key].shape == its[key].shape for key in its
            )
    assert not any(torch.allclose(one, tensor, atol=1e-2) for one, tensor in zip(ours, start.values(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("kept", ["plain", "master", "stochastic"])
def test_a_bad_step_that_the_device_leaves_out_changes_nothing_however_weights_are_kept(name, kept):
    config = OptimConfig(name=name, lr=0.1)
    start = {key: torch.linspace(-1, 1, math.prod(shape)).view(shape) for key, shape in SHAPES.items()}
    how = {
        "plain": None,
        "master": lambda key, p: WithMaster(p, config, start[key].clone()),
        "stochastic": lambda key, p: Rounded(p, config, 0, key),
    }[kept]
    dtype = torch.float32 if kept == "plain" else torch.bfloat16
    parameters = {key: torch.nn.Parameter(tensor.to(dtype, copy=True)) for key, tensor in start.items()}
    updater = AtEnd(parameters, config, 10, keep=how)
    for part in updater.parts if name == "adamw" else ():
        for group in (part.optimizer.defaults, *part.optimizer.param_groups):
            group["fused"] = True  # as on a GPU
    assert updater.on_device
    before = None
    for step, (factor, good) in enumerate([(1.0, True), (math.nan, True), (1.0, False), (1.0, True)]):
        updater.begin(step)
        updater.backward(sum((p.float() * factor).sum() for p in parameters.values()))
        norm = updater.end(torch.tensor(good))
        now = {**updater.state(), **updater.weights(), **{f"{key} itself": p for key, p in parameters.items()}}
        now = {key: tensor.detach().clone() for key, tensor in now.items()}
        if step in (1, 2):
            assert norm.isfinite() == (step == 2)
            assert [key for key in now if not torch.equal(now[key], before[key])] == []
        elif before:
            assert not any(torch.equal(now[key], before[key]) for key in start)
        before = now


def test_random_rounding_is_right_on_average_and_leaves_what_bfloat16_has():
    generator = torch.Generator().manual_seed(0)
    values = torch.full((200_000,), 1 + 0.3 * 2**-7)
    got = rounded(values, generator).float()
    assert set(got.tolist()) == {1.0, 1 + 2**-7}
    assert (got > 1).double().mean().item() == pytest.approx(0.3, abs=0.005)
    exact = torch.tensor([0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, 3e38, 1e-40], dtype=torch.bfloat16)
    assert torch.equal(rounded(exact.float(), generator), exact)
    assert rounded(torch.tensor([math.nan]), generator).isnan().all()


def test_what_is_rounded_at_random_depends_on_seed_step_and_tensor():
    got = {}
    for seed, step, name in ((0, 0, "a"), (0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (2**32, 0, "a")):
        parameter = torch.nn.Parameter(torch.linspace(1, 2, 999).to(torch.bfloat16))
        kept = Rounded(parameter, OptimConfig(), seed, name)
        parameter.grad = torch.ones_like(parameter)
        kept.open(1.0)
        kept.moved.data += 1e-3
        kept.close(step)
        assert got.setdefault((seed, step, name), parameter.tolist()) == parameter.tolist()
    assert len({tuple(v) for v in got.values()}) == len(got) == 5


@pytest.mark.parametrize("kept", ["master", "stochastic", "plain"])
def test_small_steps_move_weights_in_half_as_far_as_those_in_float32(kept):
    start = torch.linspace(0.5, 1.5, 2000)
    parameter = torch.nn.Parameter(start.to(torch.bfloat16))
    config = OptimConfig(lr=1e-4, weight_decay=0)
    make = {
        "master": lambda name, p: WithMaster(p, config, start.clone()),
        "stochastic": lambda name, p: Rounded(p, config, 0, name),
        "plain": None,
    }[kept]
    updater = AtEnd({"w": parameter}, config, 100, keep=make)
    before = parameter.detach().float().mean().item()
    for step in range(50):
        updater.begin(step)
        updater.backward(parameter.float().sum())
        updater.end(GOOD)
    moved = before - parameter.detach().float().mean().item()
    if kept == "plain":
        assert abs(moved) < 1e-3  # each step is lost in rounding, or nearly
    else:
        assert moved == pytest.approx(50 * 1e-4, rel=0.05)


def test_portions_of_a_gradient_in_half_are_added_in_float32():
    got = {}
    for portions in (1, 300):
        parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        updater = AtEnd(
            {"w": parameter}, OptimConfig(clip_norm=0), 10,
            keep=lambda name, p: WithMaster(p, OptimConfig(), torch.ones(4)),
        )  # fmt: skip
        updater.begin(0)
        for _ in range(portions):
            updater.backward((parameter * (300 / portions)).sum())
        got[portions] = updater.end(GOOD)
    assert got[300] == pytest.approx(600, rel=1e-6) and got[1] == pytest.approx(600, rel=1e-2)


def test_masters_begin_as_the_model_is_and_are_what_is_saved(tmp_path, sdxl, pairs, cache):
    still = {"optim": {"lr": 1e-30, "weight_decay": 0}, "steps": 1}
    go(tmp_path / "r", sdxl, pairs, cache, weights="bfloat16-master", **still)
    go(tmp_path / "s", sdxl, pairs, cache, **still)
    masters, plain = tensors_below(tmp_path / "r" / "weights"), tensors_below(tmp_path / "s" / "weights")
    assert masters.keys() == plain.keys()
    assert all(torch.allclose(masters[k], plain[k], rtol=0, atol=1e-29) for k in plain)


def test_the_running_mean_is_the_mean_and_forgets_where_it_began():
    weight = torch.nn.Parameter(torch.zeros(1))
    updater = WithMean(AtEnd({"w": weight}, OptimConfig(lr=1.0, weight_decay=0), 100), 0.5)
    mean = 0.0
    for step in range(8):
        updater.begin(step)
        updater.backward(-weight.sum())
        updater.end(GOOD)
        kept = min(0.5, (2 + step) / (11 + step))
        mean = kept * mean + (1 - kept) * weight.item()
        assert updater.final()["w"].item() == pytest.approx(mean, rel=1e-6)
    before = updater.final()["w"].item()
    updater.begin(8)
    updater.backward((weight / 0).sum())
    assert not math.isfinite(updater.end(GOOD)) and updater.final()["w"].item() == before


@pytest.mark.parametrize(
    ("sections", "frugal"),
    [
        ({}, False),
        ({"adapter": {"kind": "lora"}, "train": {"base_precision": "bfloat16"}}, False),
        ({"train": {"gradient_checkpointing": 2}}, True),
        ({"train": {"pair_by_pair": True}}, True),
        ({"train": {"weights": "bfloat16-master"}}, True),
        ({"optim": {"name": "adafactor"}}, True),
        ({"optim": NOT_CLIPPED}, True),
        ({"train": {"shard": "fsdp2"}}, False),  # of one process
    ],
)
def test_settings_that_take_less_memory_are_known(sections, frugal):
    assert saves_memory(config_of(**sections)) == frugal
    assert saves_memory(config_of(**sections), 2) == (frugal or "shard" in sections.get("train", {}))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_weights_of_a_run_with_a_running_mean_are_that_mean(tmp_path, sdxl, pairs, cache, kind, heard):
    from mapo.models import find_model, open_model

    go(tmp_path / "mean", sdxl, pairs, cache, kind, ema=0.9, steps=4)
    assert "The weights of this run are the running mean of those that are trained (train.ema=0.9)." in heard()
    go(tmp_path / "last", sdxl, pairs, cache, kind, steps=4)
    one, other = load(tmp_path / "mean"), load(tmp_path / "last")
    assert all(torch.equal(one[k], other[k]) for k in one)  # what is trained is the same
    (means,) = (tmp_path / "mean" / "checkpoints").glob("*/ema.safetensors")
    assert any(not torch.equal(value, one[name]) for name, value in load_file(means).items())
    run_, step, last = (
        open_model(find_model(str(name))).denoiser("cpu", torch.float32).state_dict()
        for name in (tmp_path / "mean", f"{tmp_path / 'mean'}@4", tmp_path / "last")
    )
    assert all(torch.equal(run_[k], step[k]) for k in run_)
    assert any(not torch.equal(run_[k], last[k]) for k in run_)
    if kind == "full":
        assert all(torch.equal(run_[k], value) for k, value in load_file(means).items())


@pytest.mark.parametrize("model", ["sdxl", "flow"])
def test_checkpointing_every_second_block_changes_nothing_and_holds_between(
    tmp_path, request, monkeypatch, pairs, cache, model
):
    frugal: list[bool] = []
    monkeypatch.setattr("mapo.train.train.give_back_at_once", lambda: frugal.append(True))
    found = request.getfixturevalue(model)
    folder, cached = found if model == "flow" else (found, cache)
    train = partial(go, model=folder, pairs=pairs, cache=cached, precision="float64", steps=2)
    whole = train(tmp_path / "none")
    assert not frugal
    for every in (2, 3) if model == "sdxl" else (2,):  # of the blocks that it has
        assert_same(train(tmp_path / str(every), gradient_checkpointing=every), whole)
    assert frugal
    with pytest.raises(MapoError, match="it has to be true, false or a whole number, at least 1"):
        train(tmp_path / "less", gradient_checkpointing=-1)


def test_the_blocks_that_compute_twice_are_every_nth_one(sdxl):
    from mapo.models import find_model, open_model
    from mapo.train.weights.blocks import checkpoint_blocks

    counts = {}
    for every in (1, 2, 3):
        model = open_model(find_model(str(sdxl)))
        network = model.denoiser("cpu", torch.float32).train()
        checkpoint_blocks(network, every)
        calls = []
        for block in network.modules():
            if type(block).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
                block.register_forward_pre_hook(lambda module, *rest, calls=calls: calls.append(id(module)))
        cond = {"text_embeds": torch.randn(1, 24), "time_ids": torch.ones(1, 6)}
        x = torch.randn(1, 4, 8, 8, requires_grad=True)
        network(x, torch.tensor([5]), torch.randn(1, 32, 40), added_cond_kwargs=cond).sample.sum().backward()
        counts[every] = len(calls) - len(set(calls))
    assert counts == {every: counts[1] // every for every in (1, 2, 3)} and counts[1] == len(set(calls)) - 1


def test_a_fused_optimizer_takes_up_the_state_of_one_that_is_not():
    state = {}
    for fused in (None, True):
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter], fused=fused)
        if fused is None:
            parameter.grad = torch.ones(3)
            optimizer.step()
            state = optimizers.optimizer_tensors(optimizer, {"w": parameter})
        else:
            optimizers.load_optimizer_tensors(optimizer, {"w": parameter}, state)
            parameter.grad = torch.ones(3)
            optimizer.step()
            assert optimizer.state[parameter]["step"] == 2


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_moments_in_eight_bits_are_saved_as_plain_tensors_and_come_back_to_the_bit():
    from torchao.optim.subclass_8bit import OptimState8bit

    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(64, 64, generator=generator)
    made = []
    for _ in range(2):
        weight = torch.nn.Parameter(torch.ones(64, 64))
        updater = AtEnd({"w": weight}, OptimConfig(name="adamw8bit", lr=0.1), 10)
        made.append((weight, updater))
    (weight, updater), (other_weight, other) = made
    updater.begin(0)
    updater.backward((weight * gradient).sum())
    updater.end(GOOD)
    state = updater.state()
    assert {type(t) for t in state.values()} == {torch.Tensor}
    assert sum(t.numel() * t.element_size() for t in state.values()) < 2.7 * weight.numel()
    other.load({k: v.clone() for k, v in updater.weights().items()}, state, {})
    assert isinstance(other.parts[0].optimizer.state[other_weight]["exp_avg"], OptimState8bit)
    for one in (updater, other):
        one.begin(1)
        one.backward((one.kept["w"].parameter * gradient).sum())
        one.end(GOOD)
    assert torch.equal(weight, other_weight) and not torch.equal(weight, torch.ones(64, 64))
    with pytest.raises(ValueError, match="another optimizer"):
        AtEnd({"w": weight}, OptimConfig(), 10).load(updater.weights(), state, {})


def test_two_processes_add_up_the_portions_of_weights_in_half_as_one_does(tmp_path, sdxl, pairs, cache):
    values = {
        "model": str(sdxl), "pairs": str(pairs), "cache": str(cache), "optim": {"lr": 1e-3, "warmup_steps": 2},
        "train": {"steps": 3, "pairs_per_step": 3, "pairs_per_device": 1, "weights": "bfloat16-master"},
    }  # fmt: skip
    train_together(tmp_path, [(values, tmp_path / "two")])
    how = {"weights": "bfloat16-master", "pairs_per_step": 3, "steps": 3}
    one = go(tmp_path / "one", sdxl, pairs, cache, **how, pairs_per_device=1)
    two = metrics(tmp_path / "two")
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-3)  # then Adam's first step takes signs
    assert [m["loss"] for m in two] == pytest.approx([m["loss"] for m in one], rel=1e-2)
