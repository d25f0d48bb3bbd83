import json

import numpy as np
import pytest

from mapo.study.tables import Cell, both, estimate, read_cells, shares


def test_digits_become_the_share_of_each_prompt_and_seed():
    assert shares(["110100", "111111"], 3).tolist() == [[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]


def test_both_means_on_the_same_picture():
    assert both("1100", "1010") == "1000"


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        runs, prompts = rng.normal(0, 0.08, (8, 1)), rng.normal(0, 0.15, (1, 40))
        chance = np.clip(0.6 + runs + prompts, 0, 1)
        found = estimate([rng.binomial(4, chance) / 4], seed=trial)
        hits += found.low <= 0.6 <= found.high
    assert hits >= 51  # 85 %: with eight runs a percentile interval is a little short


def test_an_interval_is_wider_when_trainings_differ():
    rng = np.random.default_rng(1)
    calm = np.full((5, 40), 0.5) + rng.normal(0, 0.05, (5, 40))
    wild = calm + np.array([[-0.3], [0.3], [-0.2], [0.2], [0.0]])
    assert estimate([wild]).high - estimate([wild]).low > 3 * (estimate([calm]).high - estimate([calm]).low)


def test_an_interval_of_pictures_that_are_all_alike_is_the_exact_one_over_prompts():
    found = estimate([np.ones((3, 42))])
    assert (found.value, found.high) == (1, 1) and found.low == pytest.approx(0.025 ** (1 / 42))
    assert estimate([np.zeros((3, 42))]).high == pytest.approx(1 - 0.025 ** (1 / 42))


def test_the_score_asks_for_both_on_one_picture_or_takes_the_mean_of_two_kinds():
    look = {"prompts": [2, 2], "same": True, "reached mini-search": "1100", "followed mini-search": "1010"}
    assert estimate(Cell((look,)).parts("score")).value == pytest.approx(0.25)
    assert estimate(Cell(({**look, "same": False},)).parts("score")).value == pytest.approx(0.5)


def test_methods_are_compared_on_seeds_that_all_of_them_have(tmp_path):
    def row(method, seed):
        job = {"domain": "safety", "method": method, "pairs": 64, "seed": seed, "split": "test"}
        return json.dumps({"key": f"{method}{seed}", "job": job, "looks": [{"seed": seed}]}) + "\n"

    (tmp_path / "runs.jsonl").write_text("".join(row("dpo", s) for s in (0, 1, 2)) + row("mapo", 2) + row("mapo", 0))
    cells = read_cells(tmp_path)
    assert [look["seed"] for look in cells["safety", "dpo", 64].looks] == [0, 2]
    assert [look["seed"] for look in cells["safety", "mapo", 64].looks] == [0, 2]
