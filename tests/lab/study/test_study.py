import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

import mapo.lab.study.study as module
from mapo.errors import MapoError
from mapo.lab.study.cost import cost
from mapo.lab.study.runs import Job, ResultsFile, run
from mapo.lab.study.study import QUICK, study
from small_study import PROMPTS, few

pytestmark = pytest.mark.long

TINY = replace(
    QUICK, domains=("safety",), methods=("sft", "dpo"), pairs=(8,), seeds=1, trials=1, tuned_at=8, looks=(1, 2), pool=8
)  # fmt: skip


def of_the_first(out, model, domain, methods, rounds):
    """What the first method costs, said of all."""
    found = cost(out, model, domain, methods[:1], rounds)
    return {**found, "methods": dict.fromkeys(methods, found["methods"][methods[0]])}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The smallest study that there is, by the real road; its folder."""
    out = tmp_path_factory.mktemp("study") / "study"
    with few() as patch:
        patch.setattr(module, "QUICK", TINY)
        patch.setattr("mapo.lab.study.cost.cost", of_the_first)
        study(out, quick=True, workers=2)
        yield out


def lines(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def test_every_training_is_a_line(made):
    trials, runs, base = (lines(made, name) for name in ("trials", "runs", "base"))
    assert sorted(row["job"]["method"] for row in trials) == ["dpo", "sft"]
    assert [[look["steps"] for look in row["looks"]] for row in trials] == [[1, 2]] * 2
    assert {row["job"]["split"] for row in trials} == {"validation"}
    assert {(row["job"]["method"], row["job"]["split"]) for row in runs} == {("sft", "test"), ("dpo", "test")}
    assert {row["job"]["split"] for row in base} == {"test", "validation"}
    look = runs[0]["looks"][0]
    assert len(look["reached mini-search"]) == PROMPTS == len(look["followed mini-learned"])
    assert not (made / "running").exists()


def test_tables_and_figures_say_what_was_found(made):
    tables = json.loads((made / "tables.json").read_text())
    assert [(row["method"], row["pairs"]) for row in tables["rows"]] == [("base", 0), ("sft", 8), ("dpo", 8)]
    for row in tables["rows"]:
        assert 0 <= row["score"]["low"] <= row["score"]["value"] <= row["score"]["high"] <= 1
    assert [(row["method"], row["pairs"]) for row in tables["leads"]] == [("sft", 8)]
    assert tables["mismatch"][0]["domain"] == "safety" and -0.5 < tables["mismatch"][0]["gap"]["value"] < 0.5
    assert tables["cost"]["methods"]["sft"]["ms_per_step"] > 0 and tables["cost"]["methods"]["sft"]["peak_mib"] > 10
    page = (made / "tables.md").read_text()
    assert "| safety | 8 | Diffusion-DPO | 1 |" in page and "| safety | SFT on chosen | lr " in page
    for name in ("score-by-pairs", "lead-by-mismatch", "beta"):
        assert (made / "figures" / f"{name}.png").stat().st_size > 5_000


def test_the_same_command_trains_nothing_again_and_half_a_line_is_made_again(made, monkeypatch):
    monkeypatch.setattr(module, "QUICK", TINY)
    before = {name: lines(made, name) for name in ("trials", "runs", "base")}
    study(made, quick=True, workers=2)
    assert {name: lines(made, name) for name in before} == before
    path = made / "runs.jsonl"
    text = path.read_text()
    path.write_text(text[: len(text) - 40])
    study(made, quick=True, workers=2)
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    digits = {row["key"]: row["looks"][0]["reached mini-search"] for row in before["runs"]}
    assert {row["key"]: row["looks"][0]["reached mini-search"] for row in whole} == digits


def test_another_plan_and_unknown_names_are_refused(made, monkeypatch):
    monkeypatch.setattr(module, "QUICK", TINY)
    with pytest.raises(MapoError, match="is a study with another looks"):
        study(made, quick=True, looks=[3])
    with pytest.raises(MapoError, match="has pools of 8 pairs"):
        study(made, quick=True, pairs=[9])
    with pytest.raises(MapoError, match="at most 3,900"):
        study(made, quick=True, pairs=[4_000])
    with pytest.raises(MapoError, match="There is no domain 'saftey'.*safety"):
        study(made, domains=["saftey"])
    with pytest.raises(MapoError, match="There is no method 'ddpo'"):
        study(made, methods=["ddpo"])
    with pytest.raises(MapoError, match="made on a built-in model, and 'mini-flo' is not one.*mini-flow"):
        study(made, model="mini-flo")
    with pytest.raises(MapoError, match="is a study with another model"):
        study(made, quick=True, model="mini-flow")


def test_a_training_that_diverges_is_a_result_and_the_worst_one(made):
    job = Job("safety", "sft", (("lr", 1e30),), 8, 0, (3,), "validation", 1, version=2)
    (look,) = run(made, job, "mini")
    assert look["steps"] == 3 and "not finite" in look["failed"] and module.merit(look) < 0
    (test,) = run(made, replace(job, split="test", picture_seeds=2), "mini")
    known = lines(made, "base")[0]["looks"]
    assert test["reached mini-search"] == "0" * 2 * PROMPTS == test["followed mini-learned"]
    assert test["prompts"] == known["prompts"] == [PROMPTS, PROMPTS] and test["same"] is known["same"]


def test_the_best_trial_goes_further_where_it_was_best_at_its_last_look(tmp_path):
    def train(work, job, model):
        share = {"sft": {1: 1, 2: 3, 6: 5, 18: 4}, "dpo": {1: 3, 2: 1}}[job.method]
        flags = {steps: "1" * share[steps] + "0" * (10 - share[steps]) for steps in job.steps}
        told = ("reached mini-learned", "followed mini-learned")
        return [{"steps": steps, "same": True, **dict.fromkeys(told, flags[steps])} for steps in job.steps]

    class Here(module.Crew):
        def do(self, ledger, job, work, *args):
            return {"looks": train(*args)}

    base = {"same": True, "reached mini-learned": "0", "followed mini-learned": "0"}
    bar = SimpleNamespace(total=0, update=lambda: None)
    with Here(tmp_path, 1) as crew:
        found = module._tune(crew, "safety", replace(TINY, longer=True), base, bar)
        assert {method: best.result["steps"] for method, best in found.items()} == {"sft": 6, "dpo": 1}
        assert bar.total == 2  # 6 and 18 steps
        found = module._tune(crew, "safety", TINY, base, bar)
        assert {method: best.result["steps"] for method, best in found.items()} == {"sft": 2, "dpo": 1}


def test_a_folder_of_before_there_was_another_model_is_one_of_mini(tmp_path):
    module._open(tmp_path / "s", TINY)
    told = json.loads((tmp_path / "s" / "study.json").read_text())
    assert told.pop("model") == "mini"
    (tmp_path / "s" / "study.json").write_text(json.dumps(told))
    assert module._open(tmp_path / "s", TINY) == TINY
    with pytest.raises(MapoError, match="is a study with another model"):
        module._open(tmp_path / "s", replace(TINY, model="mini-flow"))


def test_the_search_begins_elsewhere_on_a_flow_model(tmp_path):
    class Here(module.Crew):
        def do(self, ledger, job, work, out, training, model):
            tried.setdefault(job.method, dict(job.settings))
            models.add(model)
            told = ("reached mini-learned", "followed mini-learned")
            return {"looks": [{"steps": steps, "same": True, **dict.fromkeys(told, "1")} for steps in job.steps]}

    base = {"same": True, "reached mini-learned": "0", "followed mini-learned": "0"}
    plan = replace(TINY, methods=("sft", "dpo", "mapo_aaai"))
    for model, begins in (
        ("mini", {"sft": {"lr": 1e-4}, "dpo": {"lr": 3e-5, "beta": 10}, "mapo_aaai": {"lr": 1e-4, "beta": 8}}),
        ("mini-flow", {"sft": {"lr": 3e-4}, "dpo": {"lr": 3e-5, "beta": 3}, "mapo_aaai": {"lr": 3e-4, "beta": 2}}),
    ):
        tried, models = {}, set()
        with Here(tmp_path, 1) as crew:
            bar = SimpleNamespace(total=0, update=lambda: None)
            module._tune(crew, "safety", replace(plan, model=model), base, bar)
        assert tried == begins and models == {model}


def test_a_folder_with_larger_pools_goes_on_with_them(tmp_path):
    module._open(tmp_path / "s", replace(TINY, pool=100))
    assert module._open(tmp_path / "s", TINY) == replace(TINY, pool=100)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tuned", "{"), ("tuned", "[]"), ("tuned", '{"x": 1}'), ("cost", '{"x": 1}'), ("mismatch", '{"x": 1}'),
        ("mismatch", "[{}]"),
    ],
)  # fmt: skip
def test_a_damaged_part_is_told_before_anything_is_trained(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(module, "QUICK", TINY)
    monkeypatch.setattr(module, "_make_pool", lambda *_: pytest.fail("began"))
    module._open(tmp_path, TINY)
    (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(MapoError, match=rf"{name}\.json .*Delete it: the same command makes it again"):
        study(tmp_path, quick=True, workers=1)


def test_no_folder_of_a_study_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MapoError, match="is a file. Choose another --out"):
        study(tmp_path / "file")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.json").write_text("[]")
    with pytest.raises(MapoError, match=r"study\.json is damaged"):
        study(tmp_path / "s")


def test_lines_that_are_no_results_are_passed_over(tmp_path, made):
    good = (made / "runs.jsonl").read_bytes()
    strange = b'{}\n3\nnull\n[]\n{"key": "x"}\n{"key": "x", "job": {"domain": "?"}, "looks": []}\n'
    (tmp_path / "runs.jsonl").write_bytes(strange + good + b'{"key": "y", "job')
    assert ResultsFile(tmp_path / "runs.jsonl").rows == ResultsFile(made / "runs.jsonl").rows != {}


def test_a_model_that_the_last_step_ruined_has_failed(made):
    job = Job("safety", "sft", (("lr", 1e30),), 8, 0, (1,), "validation", 1, version=2)
    (look,) = run(made, job, "mini")
    assert "failed" in look and module.merit(look) < 0


def test_steps_that_are_named_are_the_last_ones():
    assert module._plan(module.StudyPlan(), (), (), (), None, None, ()).longer
    assert not module._plan(module.StudyPlan(), (), (), (), None, None, (16, 48)).longer
    assert not QUICK.longer


def test_diffusion_dpo_may_stop_at_more_places_but_not_later_than_the_others():
    assert module.looks_of("dpo", module.StudyPlan()) == (16, 24, 32, 48, 64, 96, 128)
    assert module.looks_of("dpo", QUICK) == (16, 24, 32, 48)
    assert module.looks_of("mapo", module.StudyPlan()) == (16, 48, 128)


def test_of_equal_scores_the_one_that_keeps_prompts_followed_is_chosen():
    look = {"same": True, "reached mini-learned": "0000", "followed mini-learned": "0000"}
    kept = {**look, "followed mini-learned": "1111"}
    better = {**look, "reached mini-learned": "1000", "followed mini-learned": "1000"}
    assert module.merit(look) < module.merit(kept) < module.merit(better)
    assert module.value(look) == module.value(kept) == 0


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    for wrong in ({"seeds": 0}, {"pairs": [0]}, {"looks": [0, 4]}, {"workers": 0}):
        with pytest.raises(MapoError, match="at least 1"):
            study(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
