"""What is warned of while training goes on: on made-up numbers both ways, and in real small runs."""

import json
import random

import numpy as np
import pytest
from held import make_held_out
from test_train import run

from mapo.api import train as train_verb
from mapo.check.apart import told_apart
from mapo.pairs import PairSet
from mapo.train.monitor.alarms import WINDOW, Alarms, both_rise, both_rise_held_out, margin_in_training, shared
from mapo.train.monitor.evaluation import Measured, spent
from mapo.train.objectives import OBJECTIVES


def alarms(name="mapo", leak=lambda: "", **settings):
    objective = OBJECTIVES[name]
    return Alarms(name, objective, {**objective.settings, **settings}, leak)


def steps(count, chosen=0.1, rejected=0.11, chosen_rise=0.0, rejected_rise=0.0, spread=0.0, seed=0):
    """Lines of metrics.jsonl whose errors rise evenly to so much more at the end."""
    rng, found = random.Random(seed), []
    for k in range(1, count + 1):
        one, two = (
            value * (1 + rise * k / count) * (1 + spread * rng.uniform(-1, 1))
            for value, rise in ((chosen, chosen_rise), (rejected, rejected_rise))
        )
        found.append({"step": k, "error_chosen": one, "error_rejected": two, "margin": two - one})
    return found


def heard(watcher, lines, about=("both_errors_rise", "only_sft", "out_of_reach")):
    return [(line["step"], name) for line in lines for name, _ in watcher.step(line) if name in about]


def row(accuracy=0.6, chosen=-0.1, rejected=0.05, push=10.0, beyond=0.2):
    return {
        "step": 10, "accuracy": accuracy, "error_chosen_change": chosen, "error_rejected_change": rejected, "push": push,
        "beyond_reach": beyond,
    }  # fmt: skip


def test_both_errors_that_rise_in_training_are_warned_of_once():
    lines = steps(400, chosen_rise=0.6, rejected_rise=0.9, spread=0.3)
    assert heard(alarms(), lines, ["both_errors_rise"]) == [(200, "both_errors_rise")]


def test_a_training_of_chosen_pictures_alone_is_not_warned_of_margins():
    lines = [{"step": line["step"], "error_chosen": line["error_chosen"]} for line in steps(200, chosen_rise=2.0)]
    assert heard(alarms("sft"), lines) == []


@pytest.mark.parametrize(
    "how",
    [
        {"rejected_rise": 0.9, "chosen_rise": -0.2},
        {"chosen_rise": 0.9},
        {"chosen_rise": 0.05, "rejected_rise": 0.05},
        {"spread": 0.9},
    ],
)
def test_errors_of_which_one_falls_or_that_only_scatter_are_not_warned_of(how):
    for seed in range(20):
        assert heard(alarms(), steps(400, seed=seed, **{"spread": 0.3, **how}), ["both_errors_rise"]) == []


def test_a_rise_says_by_how_much_both_errors_are_higher():
    first, last = steps(WINDOW), steps(WINDOW, chosen=0.15, rejected=0.22)
    assert "both rise: +50% and +100% in the last 50 steps against the first 50" in both_rise(first, last)
    assert both_rise(first, steps(WINDOW, chosen=0.105, rejected=0.22)) == ""


def test_a_training_that_is_spoiled_within_its_first_steps_is_warned_of_soon():
    whole, spoiled = steps(4, spread=0.9), steps(400, chosen=1.0, rejected=1.1, spread=0.3)[4:]
    assert heard(alarms(), [*whole, *spoiled], ["both_errors_rise"]) == [(50, "both_errors_rise")]
    doubled = both_rise(steps(5), steps(WINDOW, chosen=0.21, rejected=0.22), 1.0)
    assert "+110% and +100% in the last 50 steps against the first 5" in doubled
    assert both_rise(steps(5), steps(WINDOW, chosen=0.19, rejected=0.3), 1.0) == ""


def test_a_real_run_with_a_rate_that_is_too_high_is_warned_of_and_one_with_a_low_one_is_not(tmp_path, sdxl):
    pairs = make_held_out(tmp_path / "pairs")
    for rate, names in ((0.1, ["both_errors_rise"]), (1e-6, [])):
        out = tmp_path / f"{rate}"
        run(out, sdxl, pairs, optim={"lr": rate}, steps=3, evaluate_every=3)
        said = out / "alarms.jsonl"
        lines = map(json.loads, said.read_text().splitlines() if said.exists() else ())
        assert [line["name"] for line in lines if line["step"] == 3] == names


def test_held_out_errors_above_the_bases_are_warned_of_and_one_alone_is_not():
    assert "above the base's: +8% and +20%." in both_rise_held_out(row(chosen=0.08, rejected=0.2))
    for chosen, rejected in ((0.04, 0.5), (-0.3, 0.5), (0.5, 0.0)):
        assert both_rise_held_out(row(chosen=chosen, rejected=rejected)) == ""


def test_pairs_that_are_nearly_all_beyond_the_margins_reach_are_warned_of():
    ((name, says),) = alarms().evaluation(row(beyond=0.93))
    assert name == "out_of_reach" and "The margin of mapo with beta 0.1 is out of reach: in 93% of pairs" in says
    assert "almost only the chosen pictures teach" in says and "This is not a fault" in says
    ((_, says),) = alarms("dpo").evaluation(row(beyond=0.93))
    assert "dpo with beta 2000" in says and "From here on little is learned" in says
    assert alarms().evaluation(row(beyond=0.89)) == []
    assert alarms("sft").evaluation(row(beyond=1.0)) == []


def test_a_margin_that_is_out_of_reach_is_seen_in_training_too():
    for rejected, name in ((0.16, ["out_of_reach"]), (0.105, [])):  # its push has ended at 0.0124
        assert [n for _, n in heard(alarms(), steps(200, rejected=rejected, spread=0.05))] == name
    found = margin_in_training(OBJECTIVES["mapo"], OBJECTIVES["mapo"].settings, steps(50, rejected=0.1))
    assert found["push"] == pytest.approx(12.0, rel=0.05) and found["beyond_reach"] == 0


def test_an_alarm_that_nobody_heard_before_a_run_was_stopped_comes_when_it_goes_on():
    """Held-out pairs said that the margin was not out of reach yet, and they count more than training's errors."""
    watcher = alarms()
    watcher.remember(steps(50, rejected=0.16), [], evaluated=True)
    assert [name for name, _ in watcher.evaluation(row(beyond=0.95))] == ["out_of_reach"]
    watcher.remember([{"step": 1, "margin": 0.1}], [{"step": 1}], evaluated=True)  # lines that somebody has changed
    watcher.remember([], [{"step": 50, "name": "out_of_reach", "says": "…"}], evaluated=True)
    assert watcher.evaluation(row(beyond=0.95)) == []


def test_a_beta_that_makes_the_objective_sft_is_warned_of():
    ((name, says),) = alarms("mapo_aaai", beta=1024.0).evaluation(row(push=1e-23))
    assert name == "only_sft" and "mapo_aaai with beta 1024 is all but SFT here" in says and "1e-23 times" in says
    assert heard(alarms("mapo_aaai", beta=1024.0), steps(100)) == [(50, "only_sft")]
    assert heard(alarms("mapo_aaai", beta=8.0), steps(100)) == []
    assert alarms("mapo_aaai").evaluation(row(push=0.17)) == []


def test_the_push_of_each_pair_is_that_of_the_formula():
    """β·T·s/2·σ(−T(φ_w − φ_l)) at small errors, by hand for mapo: 0.1 · 1000 · 0.25 · ½."""
    chosen = np.full((2, 4), 1e-4)
    even = Measured(chosen, chosen.copy(), chosen)
    found = spent(even, even, OBJECTIVES["mapo"], OBJECTIVES["mapo"].settings)
    assert found["push"] == pytest.approx(12.5, rel=1e-3) and found["beyond_reach"] == 0
    far = Measured(chosen, chosen + np.array([[0.02], [0.001]]), chosen)
    assert spent(far, even, OBJECTIVES["mapo"], OBJECTIVES["mapo"].settings)["beyond_reach"] == 0.5
    assert spent(far, far, OBJECTIVES["dpo"], OBJECTIVES["dpo"].settings)["beyond_reach"] == 0
    assert spent(far, even, OBJECTIVES["sft"], {}) == {}


def test_an_accuracy_of_all_is_warned_of_where_a_leak_explains_it():
    asked = []
    watcher = alarms(leak=lambda: asked.append(1) or "of 9 held-out pairs 4 share their prompt.")
    assert watcher.evaluation(row(accuracy=0.94)) == [] and not asked
    ((name, says),) = watcher.evaluation(row(accuracy=1.0))
    assert name == "leak" and says.endswith(
        "the model may not have earned it: of 9 held-out pairs 4 share their prompt."
    )
    assert watcher.evaluation(row(accuracy=1.0)) == [] and len(asked) == 1
    assert alarms().evaluation(row(accuracy=1.0)) == []


def test_pairs_that_share_prompts_or_pictures_with_those_trained_on_are_counted(tmp_path):
    pairs = PairSet(make_held_out(tmp_path / "pairs", 6, 4, shared=3))
    assert shared(pairs, np.arange(6), np.arange(6, 10)) == (
        "of 4 held-out pairs 3 share their prompt with pairs that are trained on."
    )
    assert (
        shared(pairs, np.arange(3), np.arange(7, 10))
        == "of 3 held-out pairs 2 share their prompt with pairs that are trained on."
    )
    assert "10 share their prompt and 10 share a picture" in shared(pairs, np.arange(10), np.arange(10))
    apart = PairSet(make_held_out(tmp_path / "apart", 6, 4))
    assert shared(apart, np.arange(6), np.arange(6, 10)) == ""


def test_pairs_that_brightness_tells_apart_are_named_and_noise_is_not(tmp_path):
    light = PairSet(make_held_out(tmp_path / "light", 2, 40, light=120))
    assert "brightness alone tells chosen from rejected in 100% of 40 held-out pairs." in told_apart(
        light, np.arange(2, 42)
    )
    even = PairSet(make_held_out(tmp_path / "even", 2, 40))
    assert told_apart(even, np.arange(2, 42)) == ""


def test_each_alarm_is_written_down_once_also_where_a_run_goes_on(tmp_path, sdxl, caplog):
    pairs = make_held_out(tmp_path / "pairs", 6, 12, shared=2)
    objective = {"name": "mapo_aaai", "beta": 1024.0}
    run(tmp_path / "r", sdxl, pairs, objective=objective, steps=1, evaluate_every=1)
    (line,) = map(json.loads, (tmp_path / "r" / "alarms.jsonl").read_text().splitlines())
    assert (line["step"], line["name"]) == (0, "only_sft") and "mapo_aaai with beta 1024 is all but SFT" in line["says"]
    assert [r.message for r in caplog.records if "Alarm at step 0" in r.message] == [f"Alarm at step 0: {line['says']}"]
    caplog.clear()
    run(tmp_path / "r", sdxl, pairs, objective=objective, steps=2, evaluate_every=1)
    assert len((tmp_path / "r" / "alarms.jsonl").read_text().splitlines()) == 1 and "Alarm" not in caplog.text


def test_a_real_run_whose_held_out_pairs_are_told_by_their_light_says_so(tmp_path):
    """At a rate that drives the chosen and rejected apart its margin is soon out of reach too."""
    pairs = make_held_out(tmp_path / "pairs", 2, 12, light=250)
    train_verb(
        model="mini", pairs=pairs, out=tmp_path / "r", adapter="lora",
        settings={"train.steps": 3, "train.pairs_per_step": 2, "train.evaluate_every": 3, "optim.lr": 0.1},
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "r" / "alarms.jsonl").read_text().splitlines()]
    (leak,) = (line for line in lines if line["name"] == "leak")
    assert (
        [line["name"] for line in lines if line["step"] == 3] == ["out_of_reach"]
        and leak["step"] == 0
        and "brightness alone tells chosen from rejected in 100% of 12 held-out pairs" in leak["says"]
    )
