import json

import pytest
from worlds import Parsed, make_images, score_rows

from data_fixtures import encoded, noise
from mapo.errors import MapoError
from mapo.pairs import PairWriter
from mapo.pairs.splits import prompt_id
from mapo.report.training import read_training

JUDGED = {"judges": [{"scorer": "mini-learned", "metric": "cartoon", "chosen": 1.0, "rejected": 0.0}]}
PROVENANCE = {
    "recipe": {"name": "pick-style-cartoon", "chosen": {"prefix": "Cartoon."}, "rejected": {"prefix": ""}},
    "model": "/home/somebody/models/base",
    "licences": {"base": "openrail++"},
    "judges": ["mini-learned:cartoon (version 1)", "clip@my:clip_score:25 (version 1, weights abc)"],
}


def make_set(folder, prompts, provenance=PROVENANCE, meta=JUDGED, **how):
    with PairWriter(folder, provenance) as writer:
        for k, prompt in enumerate(prompts):
            rest = {"split": "train", "meta": meta, **how}
            writer.add_pair(prompt, encoded(noise(2 * k)), encoded(noise(2 * k + 1)), **rest)
    return folder


def make_run(run, pairs, model="mini", **data):
    run.mkdir(exist_ok=True)
    text = f'model = "{model}"\npairs = "{pairs}"\n[data]\nsplit = "{data.get("split", "train")}"\n'
    (run / "config.toml").write_text(text)
    return run


def test_judges_that_made_or_filtered_the_pairs_are_marked_by_themselves(world, run):
    make_run(run, make_set(world.root / "pairs", ["something else"]))
    world.add(lambda i: 0, lambda i: 1, scorer="mini-learned")
    summary = world.report(run=run, judges_of_pairs=["hps-v2.1"])
    assert summary["judges_of_pairs"] == ["clip@my", "hps-v2.1", "mini-learned"]
    marked = {c["scorer"]: c["made_pairs"] for c in summary["comparisons"]}
    assert marked == {"mini-learned": True, "mini-search": False}
    assert summary["headline"]["scorer"] == "mini-search"
    assert any("mini-learned also made or filtered" in c for c in summary["cautions"])


def test_judges_are_read_from_the_rows_where_the_set_names_none(tmp_path, run):
    make_run(run, make_set(tmp_path / "pairs", ["a"], provenance={}))
    assert read_training(run).judges == {"mini-learned"}


def test_prompts_that_were_trained_on_are_left_out_of_everything(world, run):
    make_run(run, make_set(world.root / "pairs", ["Prompt  0", "prompt 3", "something else"]))
    world.add(lambda i: i, lambda i: i + 1, scorer="guards", metric="saturation")
    votes = world.vote("votes.jsonl", ["after"] * 30)
    summary = world.report(run=run, votes=[votes])
    assert (summary["pairs"], summary["prompts"]) == (26, 13)
    assert {c["win_rate"]["pairs"] for c in summary["comparisons"]} == {26}
    assert summary["guards"][0]["difference"]["pairs"] == 26
    assert not {"prompt 0", "prompt 3"} & {c["data-prompt"] for c in Parsed(world.page).cards()}
    assert any(
        c.startswith("2 prompts were trained on; their pictures and scores are left out") for c in summary["cautions"]
    )


def test_pictures_of_prompts_that_were_all_trained_on_are_refused(world, run):
    make_run(run, make_set(world.root / "pairs", world.prompts))
    with pytest.raises(MapoError, match="was trained on all 15 prompts of these pictures"):
        world.report(run=run)


def test_where_most_prompts_were_trained_on_the_verdict_says_so(world, run):
    make_run(run, make_set(world.root / "pairs", world.prompts[:11]))
    summary = world.report(run=run)
    assert summary["call"] == "undecided" and summary["verdict"].startswith(
        "11 of 15 prompts were trained on and are left out; 4 are too few to compare"
    )


@pytest.mark.parametrize(("split", "seen"), [("train", {"a"}), ("all", {"a", "b"}), ("test", {"b"})])
def test_only_the_split_that_was_trained_on_counts(tmp_path, run, split, seen):
    with PairWriter(tmp_path / "pairs", {}) as writer:
        for k, (prompt, side) in enumerate((("a", "train"), ("b", "test"))):
            writer.add_pair(prompt, encoded(noise(2 * k)), encoded(noise(2 * k + 1)), split=side)
    make_run(run, tmp_path / "pairs", split=split)
    assert read_training(run).prompts == {prompt_id(p) for p in seen}


def test_a_prompt_counts_as_trained_on_under_the_name_that_it_had_before_it_was_rewritten(tmp_path, run):
    make_run(run, make_set(tmp_path / "pairs", ["a fox"], meta={"given_prompt": "a fox, 8k, trending"}))
    assert read_training(run).prompts == {prompt_id("a fox"), prompt_id("a fox, 8k, trending")}


def test_the_runs_that_a_run_began_from_are_looked_at_too(tmp_path, run):
    first = make_run(tmp_path / "first", make_set(tmp_path / "old", ["a"]))
    make_run(run, make_set(tmp_path / "new", ["b"], provenance={}, meta={}), model=first)
    found = read_training(run)
    assert found.prompts == {prompt_id("a"), prompt_id("b")}
    assert [s.name for s in found.sets] == ["new", "old"] and "mini-learned" in found.judges


def test_a_run_that_names_itself_ends(tmp_path, run):
    make_run(run, make_set(tmp_path / "pairs", ["a"]), model=run)
    assert len(read_training(run).sets) == 1


def test_pairs_that_are_gone_leave_a_warning(world, run):
    make_run(run, world.root / "gone")
    summary = world.report(run=run)
    assert any("gone that the run was trained on cannot be opened" in c for c in summary["cautions"])
    assert "They could not be opened for this page." in Parsed(world.page).text


def test_a_configuration_that_is_no_toml_is_refused(world, run):
    (run / "config.toml").write_text("model = ")
    with pytest.raises(MapoError, match=r"config\.toml is not TOML"):
        world.report(run=run)


def test_without_a_run_it_is_said_that_nobody_looked(tmp_path, world):
    make_images(tmp_path / "local", "after", world.prompts, model="/home/somebody/run")
    from mapo.report.report import write_report

    world.report()
    summary = write_report(tmp_path / "before", tmp_path / "local", [tmp_path / "scores.parquet"], tmp_path / "r.html")
    assert any("without --run it was not looked up" in c for c in summary["cautions"])


def test_annotators_who_also_labelled_the_pairs_are_counted(world, run):
    pairs = make_set(world.root / "pairs", ["something else"], provenance={"labels": {"annotators": 1}})
    world.vote("pairs/votes.jsonl", ["after"], annotator="bob", before="", after="")
    votes = world.vote("votes.jsonl", ["after"] * 30)
    world.vote("votes.jsonl", ["after"] * 30, annotator="bob")
    summary = world.report(run=make_run(run, pairs), votes=[votes])
    assert "1 of 2 annotators also labelled training pairs." in summary["cautions"]


def test_the_page_tells_where_the_pairs_come_from(world, run):
    make_run(run, make_set(world.root / "pairs", ["something else", "and another"]))
    world.report(run=run)
    text = Parsed(world.page).text
    for name, value in (
        ("trained on", "2 pairs of 2 prompts"),
        ("recipe", "pick-style-cartoon"),
        ("made by", "base"),
        ("prefix of chosen", "'Cartoon.'"),
        ("licences", "base: openrail++"),
        ("judges", "mini-learned:cartoon (version 1); clip@my:clip_score:25 (version 1, weights abc)"),
        ("model", "base"),
    ):
        assert f"{name}{value}\n" in text, name
    assert "somebody" not in text


def test_rows_of_a_table_that_were_left_out_are_no_strangers(world, run):
    world.rows += score_rows(world.before[:2], lambda i: 1, metric="hazard")
    world.rows += score_rows(world.after[:2], lambda i: 1, metric="hazard")
    make_run(run, make_set(world.root / "pairs", ["prompt 0"]))
    assert [c["metric"] for c in world.report(run=run)["comparisons"]] == ["cartoon"]
    assert json.loads((world.root / "before" / "manifest.jsonl").read_text().split("\n")[0])["prompt"] == "prompt 0"


def strip_of(page):
    """The strips of a page: for each the alternative texts of its pictures, in order."""
    return [a["alt"] for tag, a in Parsed(page).elements if tag == "img" and a.get("alt", "").startswith("after step")]


def test_what_a_run_drew_meanwhile_is_shown_in_order_with_first_and_last(world, run):
    make_run(run, make_set(world.root / "pairs", ["something else"]))
    for step in range(0, 1100, 100):  # eleven, of which eight are shown
        make_images(run / "pictures" / f"step-{step:08d}", step, ["a cat", "a <dog>"], seeds=(0,))
    world.report(run=run)
    steps = [0, 100, 200, 400, 500, 700, 800, 1000]
    assert strip_of(world.page) == 2 * [f"after step {step}" for step in steps]
    assert "a &lt;dog&gt;" in world.page and world.page.count('<figure class="strip">') == 2


def test_a_step_whose_pictures_are_damaged_or_half_made_is_left_out_of_the_strip(world, run):
    make_run(run, make_set(world.root / "pairs", ["something else"]))
    make_images(run / "pictures" / "step-00000000", 0, ["a cat"], seeds=(0,))
    (run / "pictures" / "step-00000050").mkdir()
    (run / "pictures" / "step-00000100").mkdir()
    (run / "pictures" / "step-00000100" / "manifest.jsonl").write_text("no json\n")
    world.report(run=run)
    assert strip_of(world.page) == ["after step 0"]


def test_a_run_that_drew_nothing_has_no_strip(world, run):
    make_run(run, make_set(world.root / "pairs", ["something else"]))
    world.report(run=run)
    assert "while it was trained" not in world.page and strip_of(world.page) == []
