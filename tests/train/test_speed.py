"""The same training, compiled and in another layout."""

import pytest
import torch
from test_train import assert_same, run

from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.train.config import make_config
from mapo.train.weights import speed
from mapo.train.weights.speed import blocks_of, check_speed, speed_up

HOW = {"steps": 2, "optim": {"lr": 1e-3, "eps": 1e-4}}


def config(**train):
    return make_config({"model": "mini", "pairs": "p", "train": train})


@pytest.fixture
def compiled(monkeypatch):
    """Blocks that were compiled, by a compiler that keeps each operation as it is."""
    found, real = [], torch.nn.Module.compile

    def counted(self, **how):
        found.append(type(self).__name__)
        return real(self, **how)

    monkeypatch.setattr(speed, "BACKEND", "aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", counted)
    return found


@pytest.mark.long
def test_compiled_blocks_train_as_others(tmp_path, sdxl, pairs, cache, compiled):
    objective, kind, more = "dpo", "lora", {"gradient_checkpointing": True}
    plain = run(tmp_path / "a", sdxl, pairs, cache, objective, kind, **HOW)
    assert compiled == []
    assert_same(run(tmp_path / "b", sdxl, pairs, cache, objective, kind, compile=True, **HOW, **more), plain)
    assert set(compiled) == {"BasicTransformerBlock"} and len(compiled) > 2
    open_model(find_model(str(tmp_path / "b"))).denoiser("cpu", torch.float32)  # under the usual names


def test_every_family_has_blocks_to_compile(any_model):
    model = open_model(find_model(str(any_model)))
    assert blocks_of(model.outline(model.denoiser_part))


def test_the_compiler_of_this_machine_gives_the_same_but_for_rounding():
    """A small block; with all blocks of the small model, which takes minutes, it was tried by hand."""
    try:
        check_speed(config(compile=True), torch.device("cpu"))
    except MapoError:
        pytest.skip("there is no C++ compiler here")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).double()
    network._repeated_blocks = ["Linear"]
    x = torch.randn(3, 4, dtype=torch.float64)
    before = network(x)
    speed_up(network, config(compile=True))
    after = network(x)
    assert torch.allclose(after, before, rtol=1e-12)
    after.sum().backward()
    assert [p.grad is not None for p in network.parameters()] == [True, True]


def test_kernels_lie_with_their_channels_last_where_it_is_asked_for_alone():
    for last in (True, False):
        kernel = torch.nn.Conv2d(4, 4, 3)
        speed_up(kernel, config(channels_last=last))
        assert kernel.weight.is_contiguous(memory_format=torch.channels_last) is last


def test_channels_last_is_the_same_training_and_its_weights_are_saved_as_others(tmp_path, sdxl, pairs, cache):
    plain, other = (run(tmp_path / f"{last}", sdxl, pairs, cache, channels_last=last, **HOW) for last in (False, True))
    assert_same(other, plain)
    ours, theirs = (
        open_model(find_model(str(tmp_path / name))).denoiser("cpu", torch.float32).state_dict()
        for name in ("True", "False")
    )
    assert all(torch.allclose(ours[k], theirs[k], rtol=1e-5, atol=1e-7) for k in theirs)
    more = run(tmp_path / "True", sdxl, pairs, cache, **{**HOW, "steps": 3})
    assert more[:2] == other


def test_products_and_convolutions_are_rounded_by_tf32_where_it_is_asked_for_alone():
    """By torch's own default convolutions are rounded."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [one.allow_tf32 for one in flags]
    try:
        for one in flags:
            one.allow_tf32 = True
        speed_up(torch.nn.Conv2d(1, 1, 1), config())
        assert not any(one.allow_tf32 for one in flags)
        speed_up(torch.nn.Conv2d(1, 1, 1), config(tf32=True))
        assert all(one.allow_tf32 for one in flags)
    finally:
        for one, value in zip(flags, before, strict=True):
            one.allow_tf32 = value


def test_what_the_device_does_not_have_is_refused_in_a_sentence(monkeypatch):
    cpu = torch.device("cpu")
    check_speed(config(), cpu)
    with pytest.raises(MapoError, match="train.tf32=true: this device has no such arithmetic"):
        check_speed(config(tf32=True), cpu)
    with pytest.raises(MapoError, match="compiling for this GPU has not been tried"):
        check_speed(config(compile=True), torch.device("mps"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MapoError, match=r"needs a C\+\+ compiler on a CPU"):
        check_speed(config(compile=True), cpu)
