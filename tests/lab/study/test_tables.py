import json

import numpy as np
import pytest

from mapo.lab.study.domains import DOMAINS
from mapo.lab.study.estimates import Cell, both, estimate, shares
from mapo.lab.study.figures import by_beta
from mapo.lab.study.tables import _means, difference, mean_difference, ranking, read_cells


def test_digits_become_the_share_of_each_prompt_and_seed():
    assert shares(["110100", "111111"], 3).tolist() == [[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]


def test_both_means_on_the_same_picture():
    assert both("1100", "1010") == "1000"


@pytest.mark.parametrize(("seeds", "spread", "least"), [(3, 0.0, 0.92), (3, 0.1, 0.84), (5, 0.1, 0.89), (8, 0.08, 0.9)])
def test_an_interval_covers_the_truth_about_as_often_as_it_says(seeds, spread, least):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        runs, prompts = rng.normal(0, spread, (seeds, 1)), rng.normal(0, 0.15, (1, 40))
        found = estimate([rng.binomial(4, np.clip(0.6 + runs + prompts, 0, 1)) / 4])
        hits += found.low <= 0.6 <= found.high
    assert least <= hits / 400 <= 0.995


def test_an_interval_is_wider_when_trainings_differ():
    rng = np.random.default_rng(1)
    calm = np.full((5, 40), 0.5) + rng.normal(0, 0.05, (5, 40))
    wild = calm + np.array([[-0.3], [0.3], [-0.2], [0.2], [0.0]])
    assert estimate([wild]).high - estimate([wild]).low > 3 * (estimate([calm]).high - estimate([calm]).low)


def test_an_interval_of_pictures_that_are_all_alike_is_the_exact_one_over_prompts():
    found = estimate([np.ones((3, 42))])
    assert (found.value, found.high) == (1, 1) and found.low == pytest.approx(0.025 ** (1 / 42))
    assert estimate([np.zeros((3, 42))]).high == pytest.approx(1 - 0.025 ** (1 / 42))


def test_parts_whose_pictures_are_all_alike_still_have_an_interval():
    found = estimate([np.zeros((1, 4)), np.ones((1, 42))])
    assert found.value == 0.5 and 0.2 < found.low < 0.45 and 0.55 < found.high < 0.8
    equal = estimate([np.zeros((3, 42))], least=-1.0)
    assert equal.low == -equal.high and 0.03 < equal.high < 0.1 and not equal.sure


def test_wordings_of_a_scene_are_not_counted_as_prompts():
    look = {"prompts": [8, 4], "same": False, "reached mini-search": "11110000", "followed mini-search": "1101"}
    reached, followed = Cell((look,), wordings=4).parts("score")
    assert reached.tolist() == [[1, 0]] and followed.shape == (1, 4)


def cells_of(**reached):
    """A cell of each method with the digits of each training seed, on four prompts with two pictures each."""
    looks = {
        method: tuple(
            {"prompts": [4, 4], "same": True, "reached mini-search": d, "followed mini-search": "1" * 8} for d in all_
        )
        for method, all_ in reached.items()
    }
    return {("safety", method, 0 if method == "base" else 64): Cell(rows) for method, rows in looks.items()}


def test_a_lead_has_the_sign_of_the_better_method_and_the_untrained_model_stands_against_every_seed():
    cells = cells_of(base=["00000000"], dpo=["10101010"] * 3, mapo=["11111111", "11111110", "11111111"])
    base, dpo, mapo = cells.values()
    lead = difference(mapo, dpo)
    assert lead.value == pytest.approx(11.5 / 12 - 0.5) and lead.sure
    assert difference(dpo, mapo).value == pytest.approx(-lead.value)
    assert difference(mapo, base).value == pytest.approx(11.5 / 12 * 1)
    ranks = ranking(cells, "safety", 64)
    assert ranks == {"best": ["mapo"], "level": [], "worse": ["base", "dpo"]}


def test_nothing_is_ranked_with_fewer_than_three_trainings_or_where_methods_are_alike():
    few = cells_of(base=["00000000"], dpo=["00000000"] * 2, mapo=["11111111"] * 2)
    assert ranking(few, "safety", 64) is None
    alike = cells_of(base=["10101010"], dpo=["10101011"] * 3, mapo=["10111010"] * 3)
    assert ranking(alike, "safety", 64)["worse"] == []


def line(method="sft", seed=0, lr=1e-4, steps=16, version=DOMAINS["safety"].version):
    """A ledger's line of a training on 64 pairs."""
    job = {"domain": "safety", "method": method, "pairs": 64, "seed": seed, "split": "test", "version": version}
    job |= {"settings": [["lr", lr]], "steps": [steps], "picture_seeds": 2}
    looks = [{"seed": seed, "lr": lr, "steps": steps}]
    return json.dumps({"key": f"{method}{lr}{seed}{steps}{version}", "job": job, "looks": looks}) + "\n"


def test_runs_with_settings_that_were_chosen_anew_do_not_mix_with_old_ones(tmp_path):
    now = "".join(line(seed=seed) for seed in (0, 1))
    (tmp_path / "runs.jsonl").write_text(line(lr=1e-3) + now + line(seed=2, version=0) + line(seed=3, steps=48))
    chosen = {"result": {"settings": {"lr": 1e-4}, "steps": 16}}
    (tmp_path / "tuned.json").write_text(json.dumps({"safety sft": chosen}))
    assert [look["lr"] for look in read_cells(tmp_path)["safety", "sft", 64].looks] == [1e-4, 1e-4]


def test_the_score_asks_for_both_on_one_picture_or_takes_the_mean_of_two_kinds():
    look = {"prompts": [2, 2], "same": True, "reached mini-search": "1100", "followed mini-search": "1010"}
    assert estimate(Cell((look,)).parts("score")).value == pytest.approx(0.25)
    assert estimate(Cell(({**look, "same": False},)).parts("score")).value == pytest.approx(0.5)


def test_methods_are_compared_on_seeds_that_all_of_them_have(tmp_path):
    lines = [line("dpo", seed) for seed in (0, 1, 2)] + [line("mapo", seed) for seed in (2, 0)]
    (tmp_path / "runs.jsonl").write_text("".join(lines))
    cells = read_cells(tmp_path)
    assert [look["seed"] for look in cells["safety", "dpo", 64].looks] == [0, 2]
    assert [look["seed"] for look in cells["safety", "mapo", 64].looks] == [0, 2]


def test_a_training_that_diverged_counts_with_zeros_and_has_no_error():
    lost = {"prompts": [2, 2], "same": True, "failed": "loss is not finite"}
    lost |= {"reached mini-search": "00", "followed mini-search": "00"}
    good = {**lost, "reached mini-search": "11", "followed mini-search": "11", "error chosen": 0.25}
    del good["failed"]
    assert estimate(Cell((good, lost)).parts("score")).value == pytest.approx(0.5)
    assert Cell((good, lost)).mean("error chosen") == 0.25 and Cell((lost,)).mean("error chosen") is None


def trial(beta, digits, method="mapo"):
    """A ledger's line of a trial with the digits of each of its looks."""
    told = ("reached mini-learned", "followed mini-learned")
    looks = [
        {"steps": n, "prompts": [10, 10], "same": True, **dict.fromkeys(told, "1" * ones + "0" * (10 - ones))}
        for n, ones in digits.items()
    ]
    job = {"domain": "safety", "method": method, "settings": [["lr", 1e-4], ["beta", beta]], "steps": list(digits)}
    job |= {"version": DOMAINS["safety"].version, "pairs": 64, "seed": 1000, "split": "validation", "picture_seeds": 1}
    return json.dumps({"key": f"{beta}{digits}", "job": job, "looks": looks}) + "\n"


def test_a_beta_has_its_best_trial_but_no_longer_one_than_the_others(tmp_path):
    trials = [trial(0.1, {16: 2, 48: 5}), trial(0.4, {16: 7, 48: 1}), trial(0.4, {16: 3, 48: 3}), trial(0.1, {144: 9})]
    (tmp_path / "trials.jsonl").write_text("".join(trials))
    points = by_beta(tmp_path)["mapo"]["safety"]
    assert {beta: found.value for beta, found in points.items()} == {0.1: 0.5, 0.4: 0.7}


def test_the_mean_over_domains_has_the_interval_of_independent_trainings():
    rng = np.random.default_rng(3)

    def cell(share):
        flags = rng.random((3, 80)) < share
        digits = ["".join(map(str, row.astype(int))) for row in flags]
        looks = (
            {"prompts": [40, 40], "same": True, "reached mini-search": d, "followed mini-search": "1" * 80}
            for d in digits
        )
        return Cell(tuple(looks))

    cells = {
        (d, m, 64): cell(share) for d in ("safety", "cartoon", "culture") for m, share in (("sft", 0.5), ("mapo", 0.7))
    }
    single = [difference(cells[d, "mapo", 64], cells[d, "sft", 64]) for d in ("safety", "cartoon", "culture")]
    found = mean_difference(cells, "mapo", "sft", 64)
    assert found.value == pytest.approx(np.mean([one.value for one in single]))
    widths = np.array([one.high - one.low for one in single])
    assert found.high - found.low == pytest.approx(np.sqrt(np.square(widths).sum()) / 3, rel=0.2)
    assert mean_difference(cells, "sft", "mapo", 64).value == pytest.approx(-found.value)
    means = {row["method"]: row for row in _means(cells)}
    assert means["mapo"]["behind"] is None and means["sft"]["behind"]["value"] == pytest.approx(-found.value)
    assert means["sft"]["domains"] == 3 and means["sft"]["least"] <= means["sft"]["mean"]
    del cells["safety", "sft", 64]
    assert _means(cells) == []
