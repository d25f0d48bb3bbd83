import pytest

from mapo.train.sections import OptimConfig
from mapo.train.weights.updater import learning_rate


def rates(steps, **settings):
    config = OptimConfig(lr=1.0, **settings)
    return [learning_rate(s, steps, config) for s in range(steps)]


def test_warm_up_climbs_in_equal_parts_and_reaches_the_full_rate():
    assert rates(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_and_cosine_fall_to_zero_after_the_last_step():
    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(4, schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert learning_rate(4, 4, OptimConfig(lr=1.0, schedule="cosine")) == pytest.approx(0, abs=1e-12)


def test_a_warm_up_longer_than_the_run_does_no_harm():
    assert max(rates(3, warmup_steps=10, schedule="cosine")) == pytest.approx(0.3)
