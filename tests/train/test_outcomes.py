"""What operators make of tensors without numbers is asked once."""

import pytest
import torch

from mapo.api import plan
from mapo.train.plan.live import Live
from mapo.train.plan.outcomes import Outcomes, changes_numbers

aten = torch.ops.aten


class Forgetful(Outcomes):
    def of(self, func, args, kwargs):
        return func(*args, **kwargs)

    changed = of


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("StableDiffusionXLPipeline", {"train.weights": "bfloat16-stochastic", "optim.lr": 1e-4}),
        ("FluxPipeline", {"adapter.kind": "lora", "objective.name": "dpo"}),
    ],
)
def test_a_plan_is_the_one_of_a_rehearsal_that_asks_torch_each_time(small_model, pairs, monkeypatch, family, settings):
    how = {"model": small_model(family), "pairs": pairs, "settings": {"data.split": "all", **settings}}
    found = [plan(**how) for _ in range(2)]
    monkeypatch.setattr(Live, "outcomes", Forgetful())
    assert found[0].kinds == found[1].kinds == plan(**how).kinds


def meta(*shape, **how):
    return torch.empty(*shape, device="meta", **how)


@pytest.fixture
def outcomes():
    return Outcomes()


def asked_twice(outcomes, func, *args, **kwargs):
    return [outcomes.of(func, args, kwargs) for _ in range(2)]


def test_what_is_made_again_has_its_shape_strides_and_kind_and_a_storage_of_its_own(outcomes):
    wide = meta(2, 4, 3, 3).to(memory_format=torch.channels_last)
    first, again = asked_twice(outcomes, aten.convolution.default, wide, meta(4, 4, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)  # fmt: skip
    assert (first.shape, first.stride(), first.dtype) == (again.shape, again.stride(), again.dtype)
    assert first.untyped_storage().nbytes() == again.untyped_storage().nbytes()
    assert first.untyped_storage()._cdata != again.untyped_storage()._cdata


def test_several_tensors_and_none_among_them_come_as_torch_gives_them(outcomes):
    given = meta(2, 3, 3, 3), meta(2, 3, 3, 3), meta(3, 3, 1, 1), [3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    first, again = asked_twice(outcomes, aten.convolution_backward.default, *given, [True, False, True])
    assert [one is None for one in first] == [one is None for one in again] == [False, True, False]
    assert [one.shape for one in first if one is not None] == [one.shape for one in again if one is not None]


@pytest.mark.parametrize("other", [{"dtype": torch.float16}, {"size": (4, 3)}, {"stride": (1, 3)}])
def test_another_kind_shape_or_stride_is_asked_anew(outcomes, other):
    outcomes.of(aten.neg.default, (meta(3, 4),), {})
    size, stride = other.get("size", (3, 4)), other.get("stride", (4, 1))
    given = torch.empty_strided(size, stride, dtype=other.get("dtype", torch.float32), device="meta")
    made, plain = outcomes.of(aten.neg.default, (given,), {}), torch.neg(given)
    assert (made.shape, made.stride(), made.dtype) == (plain.shape, plain.stride(), plain.dtype)


def test_numbers_that_decide_a_shape_are_part_of_what_is_asked(outcomes):
    sizes = [outcomes.of(aten.arange.default, (number,), {"device": torch.device("meta")}) for number in (3, 4, 3)]
    assert [len(one) for one in sizes] == [3, 4, 3]


def test_tensors_that_have_numbers_are_computed_with(outcomes):
    for k in (1.0, 2.0):
        assert outcomes.of(aten.neg.default, (torch.tensor([k]),), {}).item() == -k


def test_what_does_not_fit_is_refused_each_time(outcomes):
    outcomes.of(aten.mm.default, (meta(2, 3), meta(3, 2)), {})
    for _ in range(2):
        with pytest.raises(RuntimeError):
            outcomes.of(aten.mm.default, (meta(2, 3), meta(2, 3)), {})
        with pytest.raises(RuntimeError):
            outcomes.changed(aten.add_.Tensor, (meta(2, 3), meta(4)), {})


def test_what_is_changed_in_place_stays_the_same_tensor(outcomes):
    tensor = meta(3)
    assert all(outcomes.changed(aten.add_.Tensor, (tensor, 1.0 * k), {}) is tensor for k in range(3))
    known = torch.tensor([1.0])
    outcomes.changed(aten.add_.Tensor, (known, 1.0), {})
    assert outcomes.changed(aten.add_.Tensor, (known, 1.0), {}).item() == 3.0
    assert changes_numbers(aten.addcdiv_.default) and changes_numbers(aten.normal_.default)
    others = (aten.add.Tensor, aten.add.out, aten.copy_.default, aten.t_.default, aten.squeeze_.dim)
    assert not any(map(changes_numbers, others))
