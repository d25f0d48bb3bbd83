import json

import pytest

import mapo.lab.demo as module
from mapo.errors import MapoError
from mapo.lab.demo import demo, table

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo with a handful of pairs, steps and prompts."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    real = module.read_prompts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAIRS", 6)
        patch.setattr(module, "STEPS", 2)
        patch.setattr(module, "SEEDS", range(2))
        patch.setattr(module, "SETTINGS", {**module.SETTINGS, "train": {"steps": 2, "pairs_per_step": 4}})
        patch.setattr(module, "read_prompts", lambda source: real(source)[:12])
        yield demo(out), out


def test_the_summary_holds_what_the_table_shows(made):
    summary, out = made
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {"style_rate", "prompt_following"} == summary["before"].keys() == summary["after"].keys()
    win = summary["win_rate"]
    assert 0 <= win["low"] <= win["value"] <= win["high"] <= 1
    assert (summary["pairs"], summary["steps"], summary["pictures"]) == (6, 2, 24)
    assert {"build", "encode", "train", "sample", "score", "report", "total"} == summary["seconds"].keys()
    here, wider = summary["change_on_these_prompts"], summary["prompt_following_change"]
    assert here["value"] == pytest.approx(wider["value"]) and here["low"] <= here["value"] <= here["high"]
    shown = table(summary)
    assert f"[{here['low']:+.1%}, {here['high']:+.1%}] on these prompts" in shown
    assert f"{summary['after']['style_rate']:.1%}" in shown and f"{win['value']:.1%}" in shown


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MapoError, match="holds other files. Choose another --out, or an empty folder"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_every_stage_left_its_files(made):
    _, out = made
    for name in ("pairs/set.json", "cache/cache.json", "run/run.json", "before/manifest.jsonl", "after/manifest.jsonl"):
        assert (out / name).is_file(), name
    page = (out / "report.html").read_text()
    assert "cartoon" in page and "<script src" not in page and "http://" not in page.replace("http://www.w3.org", "")


def test_the_judge_of_the_pairs_is_not_the_judge_of_the_result(made):
    summary, out = made
    provenance = json.loads((out / "pairs" / "set.json").read_text())["provenance"]
    assert all(judge.startswith(summary["judge_of_pairs"]["name"]) for judge in provenance["judges"])
    assert len(provenance["judges"]) == 2 and summary["judge"] not in str(provenance["judges"])


def test_the_interval_on_these_prompts_counts_pictures_and_not_prompts(tmp_path):
    from mapo.score.table import write_scores

    row = {
        "image": "x",
        "prompt": "p",
        "model": "m",
        "scorer": "mini-search",
        "metric": "prompt_following",
        "version": "1",
    }
    rows = [
        {**row, "revision": "", "reference": None, "prompt_id": f"p{k % 40}", "seed": k // 40, "value": 1.0}
        for k in range(400)
    ]
    for name in ("before", "after"):
        write_scores(tmp_path / name, rows)
    found = module.change_on_these(tmp_path / "before", tmp_path / "after")
    assert found["value"] == 0 and found["high"] == -found["low"]
    assert found["high"] == pytest.approx(1 - 0.025 ** (1 / 400), rel=1e-6)  # Clopper and Pearson, 0 of 400
