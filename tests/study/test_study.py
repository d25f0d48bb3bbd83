import json
from dataclasses import replace

import pytest

import mapo.study as module
from mapo.errors import MapoError
from mapo.study import QUICK, study
from mapo.study.cost import cost

TINY = replace(
    QUICK, domains=("safety",), methods=("sft", "dpo"), pairs=(8,), seeds=1, trials=2, tuned_at=8, looks=(1, 2), pool=8
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The smallest study that there is, by the real road; its folder."""
    out = tmp_path_factory.mktemp("study") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK", TINY)
        patch.setattr("mapo.study.cost.cost", lambda out, domain, methods: cost(out, domain, methods[:1], rounds=1))
        study(out, quick=True, workers=2)
        yield out


def lines(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def test_every_training_is_a_line(made):
    trials, runs, base = (lines(made, name) for name in ("trials", "runs", "base"))
    assert sorted(row["job"]["method"] for row in trials) == ["dpo", "dpo", "sft", "sft"]
    assert [[look["steps"] for look in row["looks"]] for row in trials] == [[1, 2]] * 4
    assert {row["job"]["split"] for row in trials} == {"validation"}
    assert {(row["job"]["method"], row["job"]["split"]) for row in runs} == {("sft", "test"), ("dpo", "test")}
    assert {row["job"]["split"] for row in base} == {"test", "validation"}
    look = runs[0]["looks"][0]
    assert len(look["reached mini-search"]) == 42 == len(look["followed mini-learned"])
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
    monkeypatch.setattr(module, "QUICK", replace(TINY, looks=(3,)))
    with pytest.raises(MapoError, match="is a study with another looks"):
        study(made, quick=True)
    with pytest.raises(MapoError, match="There is no domain 'saftey'.*safety"):
        study(made, domains=["saftey"])
    with pytest.raises(MapoError, match="There is no method 'ddpo'"):
        study(made, methods=["ddpo"])
