"""Held-out pairs: measured with the same noise each time, by every process its share, and changing nothing."""

import json
import shutil

import numpy as np
import pytest
import torch
from held import make_held_out
from test_train import assert_same, metrics, power_cut, run

from apart import ended, started
from mapo.encode.cache import Cache, cache_key
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.noise.flow import RectifiedFlow
from mapo.pairs import PairSet, PairWriter
from mapo.train.batches import assemble
from mapo.train.monitor.evaluation import DRAWS, held_out_draw, told
from mapo.train.run.folder import Run
from mapo.train.step import pair_errors
from tiny import make_pairs

HELD = 6


def held_out_draws(row, pair, process, shape, seed):
    return [held_out_draw(row, pair, number, process, shape, seed) for number in range(DRAWS)]


TIMED = ("seconds",)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("held") / "pairs", held=HELD)


def evaluations(out):
    return [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]


def untimed(rows):
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def assert_equal_rows(one, two, tolerance):
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(untimed(one), untimed(two), strict=True):
        for name, value in a.items():
            close = (isinstance(value, str) and value == b[name]) or value == pytest.approx(
                b[name], tolerance, tolerance
            )
            assert close, (a["step"], name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sdxl, held):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, sdxl, held, evaluate_every=2, seed=3)
    return out


def by_hand(model, pairs, seed):
    """Errors "pairs draws" of the held-out pairs under a model, one image at a time."""
    opened, members = open_model(find_model(str(model))), PairSet(pairs)
    cache = Cache(pairs.parent / "cache", cache_key(opened))
    denoiser = opened.denoiser(torch.device("cpu"), torch.float64).eval()
    found = []
    for pair in (p for p in map(members.__getitem__, range(len(members))) if p.split == "validation"):
        drawn = held_out_draws(0, pair.id, opened.process, opened.layout.latent(cache.resolution), seed)
        for draw in drawn:
            batch = assemble([pair], [draw], cache, opened, torch.float64)
            with torch.no_grad():
                errors = pair_errors(lambda x, t, cond: opened.predict(denoiser, x, t, cond), batch, opened.process)
            found.append((float(errors.chosen), float(errors.rejected)))
    return np.array(found).reshape(-1, DRAWS, 2)


def test_the_numbers_are_those_of_each_pair_measured_alone(whole, sdxl, held):
    first, *_, last = evaluations(whole)
    before, after = by_hand(sdxl, held, 3), by_hand(whole, held, 3)
    margin = after[..., 1] - after[..., 0]
    assert first["error_chosen"] == pytest.approx(before[..., 0].mean(), rel=1e-6)
    assert last["error_chosen"] == pytest.approx(after[..., 0].mean(), rel=1e-5)
    assert last["error_rejected"] == pytest.approx(after[..., 1].mean(), rel=1e-5)
    assert last["accuracy"] == pytest.approx((margin > 0).mean())
    assert last["margin_by_time"] == pytest.approx(margin.mean(0), rel=1e-4, abs=1e-7)
    assert last["error_chosen_change"] == pytest.approx(after[..., 0].mean() / before[..., 0].mean() - 1, abs=1e-5)
    assert (first["pairs"], first["error_chosen_change"], first["margin_over_base"]) == (HELD, 0, 0)


def test_they_come_before_the_first_step_every_so_many_and_after_the_last(tmp_path, sdxl, held, whole):
    assert [row["step"] for row in evaluations(whole)] == [0, 2, 4]
    run(tmp_path / "r", sdxl, held, evaluate_every=3)
    assert [(row["step"], row["pairs_seen"]) for row in evaluations(tmp_path / "r")] == [(0, 0), (3, 12), (4, 16)]


def test_training_is_the_same_to_the_bit_with_and_without(tmp_path, sdxl, held, whole):
    run(tmp_path / "r", sdxl, held, seed=3)
    assert not (tmp_path / "r" / "evaluations.jsonl").exists()
    assert_same(metrics(tmp_path / "r"), metrics(whole), tolerance=0)
    for ours in (whole / "weights").rglob("*.safetensors"):
        assert ours.read_bytes() == (tmp_path / "r" / ours.relative_to(whole)).read_bytes()


@pytest.mark.parametrize("save_every", [1, 100])  # 100: it begins again, and measures the base again
def test_a_run_that_was_cut_off_has_the_measurements_of_the_uninterrupted_one(tmp_path, sdxl, held, whole, save_every):
    with power_cut(after=4):
        run(tmp_path / "r", sdxl, held, evaluate_every=2, save_every_steps=save_every, seed=3)
    assert [row["step"] for row in evaluations(tmp_path / "r")] == [0, 2]
    run(tmp_path / "r", sdxl, held, evaluate_every=2, save_every_steps=save_every, seed=3)
    assert_equal_rows(evaluations(tmp_path / "r"), evaluations(whole), 1e-9)


def test_measurements_after_the_checkpoint_that_a_run_goes_on_from_are_made_again(tmp_path, sdxl, held, whole):
    shutil.copytree(whole, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "weights")
    (tmp_path / "r" / "checkpoints" / "step-00000004").rename(tmp_path / "r" / "checkpoints" / "step-00000001")
    Run(tmp_path / "r").bind(_config(whole), 1)
    assert [row["step"] for row in evaluations(tmp_path / "r")] == [0]


def _config(out):
    import tomllib

    from mapo.train.config import make_config

    return make_config(tomllib.loads((out / "config.toml").read_text()))


def test_a_measurement_is_told_with_minus_signs_of_one_kind():
    row = {"step": 5, "pairs": 2, "accuracy": 0.25, "error_chosen_change": -0.177, "margin": -0.18131}
    assert told(row) == (
        "Step 5: on 2 held-out pairs the accuracy is 25.0%, the error of chosen pictures −17.7% against the model before "
        "training, the margin −0.1813."
    )


@pytest.mark.long
def test_two_processes_measure_what_one_does(tmp_path, sdxl, held, whole):
    words = ["-m", "mapo", "train", "--model", sdxl, "--pairs", held, "--out", tmp_path / "r"]
    settings = {
        "optim.lr": 1e-3, "optim.warmup_steps": 2, "train.pairs_per_step": 4, "train.precision": "float64",
        "train.steps": 4, "train.evaluate_every": 2, "train.seed": 3,
    }  # fmt: skip
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    found = ended(started([str(word) for word in words], 2))
    assert [code for code, _, _ in found] == [0, 0], found
    assert_equal_rows(evaluations(tmp_path / "r"), evaluations(whole), 1e-6)
    assert "held-out pairs the accuracy is" in found[0][1] and "held-out" not in found[1][1]


def test_every_family_is_measured(tmp_path, any_model):
    pairs = make_held_out(tmp_path / "pairs", 4, 3)
    kind = "lora" if "Flux" in (any_model / "model_index.json").read_text() else "full"
    run(tmp_path / "r", any_model, pairs, kind=kind, steps=1, evaluate_every=1, optim={"lr": 1e-2})
    first, last = evaluations(tmp_path / "r")
    assert first["error_chosen_change"] == 0 != last["error_chosen_change"]
    assert np.all(np.diff(first["timesteps"]) > 0) and np.isfinite(last["margin_by_time"]).all()


def test_a_pair_is_measured_once_in_each_quarter_of_the_times_that_training_draws(sdxl):
    process = open_model(find_model(str(sdxl))).process
    for drawing in (process, RectifiedFlow(1000, 3.0)):
        shape = (1, 2, 2)
        times = np.array(
            [[float(d.time) for d in held_out_draws(0, f"pair {k}", drawing, shape, 0)] for k in range(1000)]
        )
        usual = drawing.draw_time(20_000, torch.Generator().manual_seed(1), shape).double().numpy()
        assert np.quantile(times, [0.25, 0.5, 0.75]) == pytest.approx(np.quantile(usual, [0.25, 0.5, 0.75]), rel=0.08)
        quarters = np.quantile(usual, [0, 0.25, 0.5, 0.75, 1])
        inside = [(times[:, k] >= quarters[k]) & (times[:, k] <= quarters[k + 1]) for k in range(DRAWS)]
        assert np.mean(inside) > 0.85


def test_draws_are_of_the_pair_and_the_seed_alone(sdxl):
    process, shape = open_model(find_model(str(sdxl))).process, (4, 8, 8)
    one, same = (held_out_draws(row, "a", process, shape, 0) for row in (0, 7))
    others = [held_out_draws(0, "b", process, shape, 0), held_out_draws(0, "a", process, shape, 1)]
    assert all(torch.equal(x.noise, y.noise) and x.time == y.time for x, y in zip(one, same, strict=True))
    assert not any(torch.equal(one[0].noise, other[0].noise) for other in others)
    assert not torch.equal(one[0].noise, one[1].noise)


def test_with_a_reference_accuracy_counts_margins_over_the_bases(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, objective="dpo", kind="lora", steps=3, evaluate_every=3, optim={"lr": 3e-2})
    first, last = evaluations(tmp_path / "r")
    assert first["accuracy"] == 0.5 and last["accuracy"] != 0.5
    assert last["margin_over_base"] != 0


def test_only_as_many_pairs_as_are_asked_for_are_measured(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, steps=1, evaluate_every=1, evaluate_pairs=2)
    told = json.loads((tmp_path / "r" / "evaluation_base.json").read_text())
    assert len(told["pairs"]) == 2 and evaluations(tmp_path / "r")[0]["pairs"] == 2


def test_text_encoders_in_training_and_dropout_are_measured_as_they_are(tmp_path, sdxl, held):
    from mapo.train.config import make_config
    from mapo.train.train import train

    values = {
        "model": str(sdxl), "pairs": str(held), "adapter": {"kind": "lora", "rank": 2, "text_encoders": True, "dropout": 0.5},
        "optim": {"lr": 1e-2}, "train": {"steps": 2, "pairs_per_step": 2, "evaluate_every": 1, "save_every_steps": 1},
        "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    train(make_config(values), tmp_path / "r")
    rows = evaluations(tmp_path / "r")
    assert [row["step"] for row in rows] == [0, 1, 2] and len({row["error_chosen"] for row in rows}) == 3


def test_the_best_checkpoint_is_kept_and_is_a_model(tmp_path, sdxl, held, monkeypatch):
    from mapo.train.monitor import evaluation

    told = iter([0.2, 0.5, 0.9, 0.6, 0.7])
    real = evaluation.numbers
    monkeypatch.setattr(evaluation, "numbers", lambda *args: real(*args) | {"accuracy": next(told)})
    run(tmp_path / "r", sdxl, held, evaluate_every=1, keep_checkpoints="best,last")
    assert sorted(path.name for path in (tmp_path / "r" / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    found = find_model(f"{tmp_path}/r@best")
    assert found.name == f"{tmp_path}/r@2"
    assert found.revision() == find_model(f"{tmp_path}/r@2").revision() != find_model(str(tmp_path / "r")).revision()


def test_the_best_is_kept_where_the_base_is_better_and_where_what_is_measured_changes(
    tmp_path, sdxl, held, monkeypatch
):
    from mapo.train.monitor import evaluation

    told = iter([0.8, 0.7, 0.5, 0.4, 0.45, 0.3, 0.2])
    real = evaluation.numbers
    monkeypatch.setattr(evaluation, "numbers", lambda *args: real(*args) | {"accuracy": next(told)})
    how = {"kind": "lora", "evaluate_every": 1, "keep_checkpoints": "best,last", "save_every_steps": 9}
    run(tmp_path / "r", sdxl, held, **how)
    assert [*Run(tmp_path / "r").checkpoints()] == [Run(tmp_path / "r").checkpoint_at(k) for k in (1, 4)]
    run(tmp_path / "r", sdxl, held, steps=6, evaluate_pairs=2, allow_change=True, **how)
    assert [*Run(tmp_path / "r").checkpoints()] == [Run(tmp_path / "r").checkpoint_at(k) for k in (5, 6)]
    assert find_model(f"{tmp_path}/r@best").name == f"{tmp_path}/r@5"


def test_the_best_of_a_run_without_measurements_is_refused_in_a_sentence(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    with pytest.raises(
        MapoError, match=r"r@best: no checkpoint of this run was measured on held-out pairs\. Train with"
    ):
        find_model(f"{tmp_path}/r@best")


def test_checkpoints_come_at_the_multiples_that_are_to_be_kept(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, keep_checkpoints="every:3")
    assert sorted(path.name for path in (tmp_path / "r" / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]


def test_a_set_without_held_out_pairs_is_refused_before_anything_is_encoded(tmp_path, sdxl, held):
    pairs = make_pairs(tmp_path / "pairs", 4)
    with pytest.raises(MapoError, match="has no pairs in the split validation or test, so none is held out"):
        run(tmp_path / "r", sdxl, pairs, evaluate_every=1)
    with pytest.raises(MapoError, match="with data.split=all every pair is trained on"):
        run(tmp_path / "r", sdxl, held, evaluate_every=1, data={"split": "all"})
    assert not (tmp_path / "cache").exists() and not (tmp_path / "r").exists()


def test_a_set_that_holds_out_test_pairs_alone_is_measured_on_these_but_nothing_is_chosen_by_them(
    tmp_path, sdxl, held, whole, heard
):
    with PairWriter(tmp_path / "pairs", {"made": "by a test"}) as writer:
        for pair in (source := PairSet(held)):
            split = "test" if pair.split == "validation" else pair.split
            writer.add_pair(
                pair.prompt, source.image_bytes(pair.chosen), source.image_bytes(pair.rejected), split=split
            )
    run(tmp_path / "r", sdxl, tmp_path / "pairs", evaluate_every=2, seed=3)
    assert "has no pairs in the split validation: those of test are measured" in heard()
    assert_equal_rows(evaluations(tmp_path / "r"), evaluations(whole), 1e-9)
    with pytest.raises(MapoError, match="chosen by its test pairs, which then test nothing. Leave `best` out"):
        run(tmp_path / "best", sdxl, tmp_path / "pairs", evaluate_every=2, keep_checkpoints="best,last")


def test_measuring_may_begin_later_where_the_base_can_still_be_had(tmp_path, sdxl, held):
    for kind in ("lora", "full"):
        run(tmp_path / kind, sdxl, held, kind=kind, steps=2, evaluate_every=1, optim={"lr": 1e-2})
        run(tmp_path / f"{kind}-late", sdxl, held, kind=kind, steps=1, optim={"lr": 1e-2})
    run(tmp_path / "lora-late", sdxl, held, kind="lora", steps=2, evaluate_every=1, optim={"lr": 1e-2})
    (late,) = evaluations(tmp_path / "lora-late")
    assert_equal_rows([late], [evaluations(tmp_path / "lora")[-1]], 1e-9)
    with pytest.raises(
        MapoError, match=r"full-late was begun without it, and once all weights have been trained the base"
    ):
        run(tmp_path / "full-late", sdxl, held, steps=2, evaluate_every=1, optim={"lr": 1e-2})


def test_a_base_of_other_pairs_is_refused_and_a_missing_one_is_named(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, steps=1, evaluate_every=1)
    path = tmp_path / "r" / "evaluation_base.json"
    text = path.read_text()
    path.unlink()
    with pytest.raises(MapoError, match=r"evaluation_base.json is missing, and once all weights have been trained"):
        run(tmp_path / "r", sdxl, held, steps=2, evaluate_every=1)
    path.write_text(text)
    path.write_text(path.read_text().replace('"pairs": [\n  "', '"pairs": [\n  "x'))
    with pytest.raises(MapoError, match=r"evaluation_base.json is damaged \(it is of other pairs\)"):
        run(tmp_path / "r", sdxl, held, steps=2, evaluate_every=1)


def test_a_digit_of_the_base_that_changed_on_the_disk_is_noticed(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, steps=1, evaluate_every=1)
    path = tmp_path / "r" / "evaluation_base.json"
    whole = json.loads(path.read_text())
    for key, value in (("chosen", [[9.0, *whole["chosen"][0][1:]], *whole["chosen"][1:]]),
                       ("settings", {**whole["settings"], "train.seed": 7})):  # fmt: skip
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(MapoError, match=r"evaluation_base.json is damaged \(it is not as it was written\)"):
            run(tmp_path / "r", sdxl, held, steps=2, evaluate_every=1)
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "crc32"}))  # of an older version
    run(tmp_path / "r", sdxl, held, steps=2, evaluate_every=1)


def test_a_base_that_was_measured_with_other_settings_is_not_compared_with(tmp_path, sdxl, held):
    def trained(kind, steps, seed, pairs=64):
        out = tmp_path / f"{kind}-{pairs}"
        how = {"steps": steps, "seed": seed, "evaluate_every": 1, "evaluate_pairs": pairs, "optim": {"lr": 1e-3}}
        return run(out, sdxl, held, kind=kind, allow_change=True, **how) and out

    for kind in ("lora", "full"):
        trained(kind, 1, seed=0)
    before = (tmp_path / "full-64" / "config.toml").read_text()
    with pytest.raises(MapoError, match=r"the base of .*full-64 was measured .*train.seed was 0 and is now 4"):
        trained("full", 2, seed=4)
    assert (tmp_path / "full-64" / "config.toml").read_text() == before  # nothing is bound to settings that are refused
    trained("lora", 2, seed=4)  # whose base is measured again, with the new noise
    run(tmp_path / "new", sdxl, held, kind="lora", steps=1, seed=4, evaluate_every=1)
    bases = [json.loads((tmp_path / name / "evaluation_base.json").read_text()) for name in ("lora-64", "new")]
    assert bases[0] == bases[1]


def test_fewer_held_out_pairs_than_before_are_no_damage(tmp_path, sdxl, held):
    how = {"kind": "lora", "evaluate_every": 1}
    run(tmp_path / "r", sdxl, held, steps=1, **how)
    run(tmp_path / "r", sdxl, held, steps=2, evaluate_pairs=2, **how)
    assert [row["pairs"] for row in evaluations(tmp_path / "r")] == [HELD, HELD, 2]


def test_a_measurement_without_numbers_is_named_as_damaged(tmp_path):
    from mapo.models.checkpoints import best_step

    (tmp_path / "evaluations.jsonl").write_text('{"step": 1, "accuracy": null}\n')
    with pytest.raises(MapoError, match=r"evaluations.jsonl is damaged"):
        best_step(tmp_path)


def test_pairs_of_several_frames_are_measured_each_in_its_own(tmp_path, sdxl):
    pairs = make_held_out(tmp_path / "pairs", wide=16)
    data = {"buckets": True, "resolution": 16}
    for name, at_once in (("together", None), ("alone", 1)):
        run(tmp_path / name, sdxl, pairs, steps=1, evaluate_every=1, pairs_per_device=at_once, data=data)
    one, two = evaluations(tmp_path / "together"), evaluations(tmp_path / "alone")
    assert_equal_rows(one, two, 1e-9)
    square = make_held_out(tmp_path / "other" / "pairs", wide=16)
    run(tmp_path / "square", sdxl, square, steps=1, evaluate_every=1)
    assert evaluations(tmp_path / "square")[0]["error_chosen"] != one[0]["error_chosen"]


def test_training_on_chosen_pictures_alone_still_measures_whole_pairs(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, objective="sft", steps=1, evaluate_every=1, measure_rejected=False)
    assert "margin" not in metrics(tmp_path / "r")[0]
    assert all(row["margin"] != 0 and "push" not in row for row in evaluations(tmp_path / "r"))


def test_with_a_reference_that_ran_before_they_are_the_same(tmp_path, sdxl, held):
    for name in ("together", "before"):
        run(tmp_path / name, sdxl, held, objective="dpo", steps=2, evaluate_every=1, reference=name)
    assert_equal_rows(evaluations(tmp_path / "before"), evaluations(tmp_path / "together"), 1e-9)


def test_where_numbers_are_read_late_weights_are_measured_as_their_step_left_them(
    tmp_path, sdxl, held, whole, monkeypatch
):
    """As on a GPU, where the next step is under way when a step's numbers come."""
    from mapo.train.loop import Loop

    begin = Loop.__init__

    def late(self, *args, **rest):
        begin(self, *args, **rest)
        self.late = True

    monkeypatch.setattr(Loop, "__init__", late)
    run(tmp_path / "r", sdxl, held, evaluate_every=2, seed=3)
    assert_equal_rows(evaluations(tmp_path / "r"), evaluations(whole), 1e-9)


def test_where_the_runs_weights_are_running_means_those_are_measured_and_training_goes_on_unmoved(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, evaluate_every=1, ema=0.5, optim={"lr": 1e-2})
    run(tmp_path / "alone", sdxl, held, ema=0.5, optim={"lr": 1e-2})
    after = by_hand(tmp_path / "r", held, 0)
    assert evaluations(tmp_path / "r")[-1]["error_chosen"] == pytest.approx(after[..., 0].mean(), rel=1e-5)
    assert_same(metrics(tmp_path / "r"), metrics(tmp_path / "alone"), tolerance=0)
