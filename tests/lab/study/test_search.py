import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapo.lab.study.search import compass, lengthen

START, FACTORS = {"lr": 1e-4, "beta": 8.0}, {"lr": 10**0.5, "beta": 4.0}


def hill(top):
    def evaluate(settings):
        gaps = (math.log(settings[k] / top[k]) / math.log(FACTORS[k]) for k in settings)
        return -sum(g * g for g in gaps), dict(settings)

    return evaluate


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_hill_outside_of_what_was_tried_first_is_followed(lr, beta):
    top = {"lr": 1e-4 * FACTORS["lr"] ** lr, "beta": 8 * FACTORS["beta"] ** beta}
    found = compass(hill(top), START, FACTORS, 30)
    for name in START:
        assert abs(math.log(found.settings[name] / top[name]) / math.log(FACTORS[name])) <= 0.75
    assert found.interior


@pytest.mark.parametrize("trials", [1, 2, 5, 9])
@pytest.mark.parametrize("names", [("lr",), ("lr", "beta")])
def test_every_method_gets_the_same_number_of_trials(trials, names):
    seen = []

    def evaluate(settings):
        seen.append(tuple(settings.values()))
        return -len(seen), None

    found = compass(evaluate, {n: START[n] for n in names}, FACTORS, trials)
    assert found.trials == trials == len(seen) == len(set(seen))


def test_a_best_point_whose_neighbours_were_not_all_tried_is_not_called_interior():
    found = compass(hill({"lr": 1.0, "beta": 8.0}), START, FACTORS, 4)
    assert not found.interior
    assert found.settings["lr"] > START["lr"]


def test_the_result_of_the_best_point_is_kept():
    found = compass(hill(START), START, FACTORS, 6)
    assert found.settings == START == found.result


@pytest.mark.parametrize(
    ("values", "enough", "best", "tried"),
    [
        ({384: 0.9, 1152: 0.2}, 0.95, 384, [384, 1152]),  # as long as it helps
        ({384: 0.5}, 0.95, 128, [384]),  # as good is no better
        ({384: 0.9}, 0.9, 384, [384]),  # until that is enough
        ({}, 0.5, 128, []),
        ({384: 0.6, 1152: 0.7, 3456: 0.8}, 0.95, 3456, [384, 1152, 3456]),  # and no further
    ],
)
def test_an_optimum_at_the_last_look_is_followed(values, enough, best, tried):
    asked = []

    def evaluate(steps):
        asked.append(steps)
        return values[steps], steps

    assert lengthen(evaluate, (0.5, 128), 128, enough)[1] == best
    assert asked == tried
