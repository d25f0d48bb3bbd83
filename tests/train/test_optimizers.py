"""What moves the weights: optimizers, weights in half, updates in the backward pass and running means, each by itself."""

import math
from importlib.util import find_spec

import pytest
import torch

from mapo.errors import MapoError
from mapo.train.sections import OptimConfig
from mapo.train.weights import levers, optimizers
from mapo.train.weights.ema import WithMean
from mapo.train.weights.stored import Rounded, WithMaster, rounded
from mapo.train.weights.updater import AtEnd, InBackward

GOOD = torch.tensor(True)


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
