"""A run that goes on: with what the run says, with other settings, after an older version."""

import json
import shutil
import tomllib

import pytest
from held import make_held_out
from test_train import metrics, power_cut, run

from mapo.errors import MapoError
from mapo.models import find_model
from mapo.train.config import make_config
from mapo.train.train import train
from tiny import make_pairs


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_run_whose_rate_has_fallen_to_zero_is_not_lengthened(tmp_path, sdxl, pairs, cache, schedule):
    how = {"lr": 1e-3, "warmup_steps": 0, "schedule": schedule}
    run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim=how)
    with pytest.raises(MapoError, match=f"begun with 2 steps of optim.schedule={schedule}.*would jump after step 2"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=4, optim=how)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim=how)) == 2


def test_a_run_on_its_way_to_zero_is_not_shortened_but_may_end_where_it_is(tmp_path, sdxl, pairs, cache):
    how = {"lr": 1e-3, "warmup_steps": 0, "schedule": "cosine"}
    with power_cut(after=3):
        run(tmp_path / "r", sdxl, pairs, cache, steps=4, optim=how, save_every_steps=2)
    with pytest.raises(MapoError, match="begun with 4 steps .*With 3 steps the rate would jump after step 2"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=3, optim=how)
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim=how)) == 2


def test_resuming_reads_the_weights_once(tmp_path, sdxl, pairs, cache, monkeypatch):
    from mapo.train.run import checkpoint

    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    read = []
    load_file = checkpoint.load_file
    monkeypatch.setattr(checkpoint, "load_file", lambda path: (read.append(path.name), load_file(path))[1])
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert sorted(read) == ["optimizer.safetensors", "weights.safetensors"]


def test_what_the_command_does_not_say_comes_from_the_run(tmp_path, sdxl, pairs, cache):
    said = {"adapter": {"kind": "lora", "rank": 2}, "objective": {"name": "mapo", "beta": 0.3}}
    more = {"optim": {"lr": 2e-3}, "train": {"steps": 1, "pairs_per_step": 2}}
    common = {"model": str(sdxl), "pairs": str(pairs), "cache": str(cache)}
    train(make_config({**common, **said, **more}), tmp_path / "r")
    train(make_config({**common, "train": {"steps": 2}}), tmp_path / "r")
    now = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert said["adapter"].items() <= now["adapter"].items() and now["objective"]["beta"] == 0.3
    assert now["optim"]["lr"] == 2e-3 and now["train"]["pairs_per_step"] == 2
    assert [m["step"] for m in metrics(tmp_path / "r")] == [1, 2]


def test_settings_that_need_others_find_them_in_the_run(tmp_path, sdxl, pairs, cache):
    from mapo.api import train

    out, held = tmp_path / "r", make_held_out(tmp_path / "pairs", 3, 2)
    common = {"train.pairs_per_step": 1, "train.evaluate_every": 1, "train.steps": 1}
    train(model=sdxl, pairs=held, adapter="lora", out=out, settings=common)
    train(out=out, settings={"train.keep_checkpoints": "best,last", "train.steps": 2})
    assert [m["step"] for m in metrics(out)] == [1, 2]
    with pytest.raises(MapoError, match="adapter.targets was left out and is now"):
        train(out=out, settings={"adapter.targets": ["to_q"], "train.steps": 3})


def test_a_command_that_names_only_the_run_goes_on_there(tmp_path, sdxl, pairs, cache):
    from mapo.cli import cli
    from test_cli import refused

    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    cli.main(["train", "--out", str(tmp_path / "r"), "--set", "train.steps=2"], standalone_mode=False)
    assert [m["step"] for m in metrics(tmp_path / "r")] == [1, 2]
    assert "Give --model" in refused("train", "--out", tmp_path / "nothing")


def test_a_run_of_0_1_0_goes_on_although_there_are_new_settings(tmp_path, sdxl, pairs, cache):
    """Its config.toml names no setting that came later; each then has the meaning it had."""
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    path = tmp_path / "r" / "config.toml"
    lines = [line for line in path.read_text().splitlines() if "images_per_batch" not in line]
    assert len(lines) < len(path.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert [m["step"] for m in metrics(tmp_path / "r")] == [1, 2]


def test_what_0_1_0_wrote_knows_no_tokenizers_and_is_taken_up(tmp_path, sdxl, pairs, cache):
    model = shutil.copytree(sdxl, tmp_path / "model")
    new, old = find_model(str(model)).revisions()
    run(tmp_path / "r", model, pairs, cache, steps=1)
    state, about = tmp_path / "r" / "checkpoints" / "step-00000001" / "state.json", tmp_path / "r" / "run.json"
    for path in (state, about):
        assert new in path.read_text()
        path.write_text(json.dumps({**json.loads(path.read_text().replace(new, old)), "crc32": None}))
    assert find_model(str(tmp_path / "r")).base == model
    run(tmp_path / "r", model, pairs, cache, steps=2)
    with (model / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(MapoError, match="the content of model"):
        run(tmp_path / "r", model, pairs, cache, steps=3)
    with pytest.raises(MapoError, match="that one has changed since"):
        find_model(str(tmp_path / "r"))


def test_a_setting_that_came_later_has_its_old_meaning_in_an_old_run(tmp_path, sdxl, pairs, cache, monkeypatch):
    import mapo.train.run.changes as module

    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    path = tmp_path / "r" / "config.toml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "images_per_batch" not in line))
    monkeypatch.setattr(module, "AS_IN_0_1_0", {"data": {"images_per_batch": 3}})
    monkeypatch.setattr(module, "MAY_CHANGE", module.MAY_CHANGE - {"data.images_per_batch"})
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert tomllib.loads(path.read_text())["data"]["images_per_batch"] == 3


def test_every_setting_that_came_after_0_1_0_says_what_it_means_in_older_runs():
    import mapo.train.run.changes as module
    from mapo.settings import merge
    from mapo.train.config import Config

    in_0_1_0 = {
        "": {"model", "pairs", "cache", "objective", "adapter", "optim", "data", "train"},
        "adapter": {"kind", "rank"},
        "optim": {"lr", "beta1", "beta2", "eps", "weight_decay", "clip_norm", "schedule", "warmup_steps"},
        "data": {"resolution", "flip", "split", "ties"},
        "train": {
            "steps", "pairs_per_step", "pairs_per_device", "seed", "precision", "gradient_checkpointing",
            "save_every_steps",
        },
    }  # fmt: skip
    later = {("", name) for name in set(Config.model_fields) - in_0_1_0.pop("")}
    later |= {
        (section, name)
        for section, names in in_0_1_0.items()
        for name in set(Config.model_fields[section].annotation.model_fields) - names
    }
    told = merge({}, module.AS_IN_0_1_0)
    said = {(section, name) for section, names in told.items() if isinstance(names, dict) for name in names}
    assert later == said | {("", name) for name, value in told.items() if not isinstance(value, dict)}


@pytest.mark.parametrize(("kind", "rate"), [("full", 1e-5), ("lora", 1e-4)])
def test_a_rate_that_is_not_set_is_that_of_what_is_trained(tmp_path, sdxl, pairs, cache, kind, rate):
    values = {"model": str(sdxl), "pairs": str(pairs), "cache": str(cache), "adapter": {"kind": kind, "rank": 2}}
    train(make_config({**values, "train": {"steps": 1, "pairs_per_step": 2}}), tmp_path / "r")
    assert metrics(tmp_path / "r")[0]["lr"] == rate
    assert tomllib.loads((tmp_path / "r" / "config.toml").read_text())["optim"]["lr"] == rate


def test_a_run_whose_cache_has_moved_is_told_before_all_is_encoded_again(tmp_path, sdxl, pairs, cache, heard):
    here, there = tmp_path / "cache", tmp_path / "moved"
    shutil.copytree(cache, here)
    run(tmp_path / "r", sdxl, pairs, here, steps=1)
    here.rename(there)
    run(tmp_path / "r", sdxl, pairs, there, steps=2)
    assert "any more" not in heard()
    run(tmp_path / "r", sdxl, pairs, here, steps=3)
    assert f"There is no cache at {here} any more, so all is encoded again. If it lies elsewhere now, stop" in heard()


@pytest.mark.parametrize(("now", "said"), [
    (1, "the last 2 come again, as they were: step 3 begins at pair 3 of it."),
    (3, "2 are left out: step 3 begins at pair 7 of it."),
])  # fmt: skip
def test_another_number_of_pairs_a_step_says_which_pairs_come_next(tmp_path, sdxl, pairs, cache, heard, now, said):
    run(tmp_path / "r", sdxl, pairs, cache, steps=2, pairs_per_step=2)
    run(tmp_path / "r", sdxl, pairs, cache, steps=3, pairs_per_step=now, allow_change=True)
    assert said in heard()


def test_other_settings_are_told_with_both_values_and_may_be_allowed(tmp_path, sdxl, pairs, cache, heard):
    def again(allow_change=True, steps=4, **sections):
        given = {"model": str(sdxl), "pairs": str(pairs), "train": {"steps": steps, **sections.pop("train", {})}}
        train(make_config({**given, **sections}), tmp_path / "r", allow_change=allow_change)

    run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim={"lr": 1e-3, "schedule": "cosine"})
    changed = {"optim": {"lr": 5e-4}, "objective": {"name": "mapo", "beta": 0.3}}
    with pytest.raises(MapoError) as said:
        again(allow_change=False, **changed)
    assert (
        "other settings (objective.beta, optim.lr): objective.beta was 0.1 and is now 0.3; optim.lr was 0.001 and is"
        in str(said.value)
    )
    assert "To go on here all the same, add --allow-change." in str(said.value)
    with pytest.raises(MapoError, match=r"--allow-change does not help: the checkpoint does not fit \(adapter.kind\)"):
        again(adapter={"kind": "lora"}, **changed)
    heard()
    again(**changed)
    assert "From step 2 on with other settings: objective.beta was 0.1 and is now 0.3; optim.lr was" in heard()
    assert [line["step"] for line in metrics(tmp_path / "r")] == [1, 2, 3, 4]
    (line,) = (tmp_path / "r" / "changes.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 2, "changed": {"objective.beta": [0.1, 0.3], "optim.lr": [1e-3, 5e-4]}}
    again(allow_change=False)  # which is what the run says now
    with pytest.raises(MapoError, match="the content of pairs"):
        again(
            allow_change=False, pairs=str(make_pairs(tmp_path / "other", seed=9)), cache=str(tmp_path / "c2"), steps=5
        )
    again(pairs=str(tmp_path / "other"), cache=str(tmp_path / "c2"), steps=5)
    assert len(metrics(tmp_path / "r")) == 5
