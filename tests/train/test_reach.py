import math

import pytest

from mapo.train.objectives import OBJECTIVES
from mapo.train.objectives.reach import reach

STEP = 10 ** (6 / 600)  # from one margin that is looked at to the next


def of(name, error, **settings):
    return reach(OBJECTIVES[name], {**OBJECTIVES[name].settings, **settings}, error)


def test_the_public_form_pushes_by_its_formula_and_ends_at_a_margin_that_does_not_grow_with_the_error():
    slope = 0.5 * (math.exp(0.05) - 1 - 0.05 * math.exp(0.05)) / (math.exp(0.05) - 1) ** 2  # of φ at ℓ = 0.1
    assert of("mapo", 0.1).push == pytest.approx(-0.1 * 1000 * 0.5 * slope, rel=1e-6) == pytest.approx(12.29, abs=0.01)
    assert of("mapo", 0.1, beta=0.4).push == pytest.approx(4 * of("mapo", 0.1).push)
    assert of("mapo", 0.1, beta=0.4).margin == of("mapo", 0.1).margin  # its β is a weight, and no reach
    assert of("mapo", 0.02).margin == pytest.approx(0.012, rel=0.04)
    assert of("mapo", 0.25).margin == pytest.approx(0.0125, rel=0.04)


def test_a_large_beta_of_the_aaai_form_pushes_no_more_where_errors_are_those_of_flow_models():
    assert of("mapo_aaai", 0.1, beta=8).push == pytest.approx(0.17, abs=0.001)
    assert of("mapo_aaai", 0.24, beta=8).push == pytest.approx(0.10, abs=0.01)
    assert of("mapo_aaai", 1.0, beta=8).push < 0.004 < 0.09 < of("mapo_aaai", 1.0, beta=2).push


def test_the_relative_form_is_the_same_at_errors_of_every_size():
    small, large = of("mapo_relative", 0.02, floor=0.0), of("mapo_relative", 2.0, floor=0.0)
    assert small.push == large.push == pytest.approx(1.0)  # β / 2
    assert small.margin / small.error == pytest.approx(large.margin / large.error) == pytest.approx(1.17, rel=0.02)


@pytest.mark.parametrize("beta", [3.0, 2000.0])
def test_dpo_pushes_by_a_quarter_of_beta_until_its_margin_has_grown_by_six_over_beta(beta):
    found = of("dpo", 0.3, beta=beta)
    assert found.push == pytest.approx(beta / 4)
    exact = 2 * math.log(19) / beta
    assert exact <= found.margin < exact * STEP * 1.001


def test_what_does_not_push_has_no_reach():
    assert (of("sft", 0.3).push, of("sft", 0.3).margin) == (0.0, None)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"sft"}))
@pytest.mark.parametrize("error", [1e-3, 0.3, 2.0])
def test_every_objective_that_compares_pushes_the_rejected_image_away(name, error):
    found = of(name, error)
    assert math.isfinite(found.push) and found.push > 0
    assert found.margin is None or 0 < found.margin <= 100 * error
