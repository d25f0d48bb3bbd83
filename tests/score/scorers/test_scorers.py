import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mapo.errors import MapoError
from mapo.files import sha256
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images, png_bytes
from mapo.score.score import score_images
from mapo.score.scorers import GROUPS, check_inputs, load_scorer, scorer_names, split_judge
from mapo.score.table import read_scores


def drawn(folder, count=12, styles=scenes.STYLES):
    rng = random.Random(4)
    plain = scenes.random_plain_scenes("test", rng)
    rows, data = [], []
    for k in range(count):
        scene = replace(next(plain), style=styles[k % len(styles)], hazard=k % 3 == 0)
        png = png_bytes(Image.fromarray(draw(scene, rng)))
        prompt = scenes.context(scene)
        rows.append(ImageRow(f"{k}.png", prompt_id(prompt), prompt, k, k, sha256(png), "drawn"))
        data.append(png)
    append_images(folder, rows, data)
    return folder


def test_both_judges_score_drawings_as_they_were_drawn(tmp_path):
    table = read_scores(score_images(drawn(tmp_path / "i"), "mini", tmp_path / "s.parquet", images_per_batch=5))
    rows = table.to_pylist()
    assert len(rows) == 12 * 2 * 6
    for row in rows:
        k = row["seed"]
        want = {"prompt_following": 1, "hazard": float(k % 3 == 0)}
        want |= {s.replace(" ", "_"): float(scenes.STYLES[k % 4] == s) for s in scenes.STYLES}
        assert row["value"] == want[row["metric"]], row
    assert {row["scorer"] for row in rows} == set(GROUPS["mini"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", GROUPS["mini"])
def test_batch_size_and_order_change_nothing(name, tmp_path):
    one = read_scores(score_images(drawn(tmp_path / "i"), name, tmp_path / "a.parquet", images_per_batch=1))
    many = read_scores(score_images(tmp_path / "i", name, tmp_path / "b.parquet", images_per_batch=64))
    key = [("metric", "ascending"), ("seed", "ascending")]
    assert one.sort_by(key).equals(many.sort_by(key))


def test_a_wrong_prompt_is_not_followed():
    scorer = load_scorer("mini-search")
    picture = Image.fromarray(draw(scenes.parse("a small red circle on a gray background")))
    prompts = ["a small red circle on a gray background", "a small red star on a gray background", "zebra"]
    assert list(scorer([picture] * 3, prompts)["prompt_following"]) == [1, 0, None]
    larger = picture.resize((480, 480), Image.Resampling.NEAREST)
    assert list(scorer([larger], prompts[:1])["prompt_following"]) == [1]


def test_a_scorer_that_cannot_be_had_is_told_before_any_other_has_scored(tmp_path, monkeypatch):
    from mapo.lab.mini.scorer import Learned

    def never(self, *given):
        raise AssertionError

    monkeypatch.setattr(Learned, "__call__", never)
    with pytest.raises(MapoError, match="there is no folder /nowhere"):
        score_images(drawn(tmp_path / "i"), "mini-learned,clip@/nowhere", tmp_path / "s.parquet")


def test_the_help_names_every_scorer():
    from click.testing import CliRunner

    from mapo.cli import cli
    from mapo.score.scorers import SCORERS

    said = CliRunner().invoke(cli, ["score", "--help"]).output
    listed = said.partition("Scorers:\n")[2].split("\n\n")[0].splitlines()
    assert {line.strip().partition(":")[0] for line in listed} == {*SCORERS, *GROUPS}


def test_groups_and_names_are_resolved():
    assert scorer_names("mini,mini-search") == ["mini-learned", "mini-search"]
    with pytest.raises(MapoError, match="Did you mean 'mini-learned'"):
        scorer_names("mini-lerned")


def test_a_comma_begins_another_scorer_only_before_the_name_of_one():
    assert scorer_names("clip@/a, b/c:d,mini-search, pickscore@o/n") == [
        "clip@/a, b/c:d",
        "mini-search",
        "pickscore@o/n",
    ]
    assert scorer_names("clip@a,clip@b") == ["clip@a", "clip@b"]
    assert scorer_names("clip@/x@y,z") == ["clip@/x@y,z"]


SOURCE = st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1).filter(lambda s: s == s.strip())


@given(SOURCE, SOURCE, st.sampled_from(["clip_score", "-clip_score"]), st.none() | st.floats(-9, 9))
def test_a_judge_is_read_rightly_whatever_its_path(one, two, metric, threshold):
    name = f"clip@{one}:{two}"
    text = f"{name}:{metric}" + ("" if threshold is None else f":{threshold}")
    assert split_judge(text) == (name, metric, None if threshold is None else str(threshold))


def test_a_judge_without_a_source_is_read_from_the_left():
    assert split_judge("mini-search:-hazard") == ("mini-search", "-hazard", None)
    assert split_judge("mini-search:hazard:x") == ("mini-search", "hazard", "x")
    assert split_judge("clip@/a/b") == ("clip@/a/b", "", None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mini@/x", "mini is several scorers and takes no source"),
        ("mini-search@/x", "has no weights to choose"),
        ("clip@", "has no source behind its @"),
        ("clip@/nowhere/at-all", "there is no folder /nowhere/at-all"),
        ("klip@/x", "Did you mean 'clip'"),
    ],
)
def test_a_source_that_leads_nowhere_is_one_sentence(name, sentence):
    with pytest.raises(MapoError, match=sentence):
        load_scorer(name)


def test_one_text_is_not_taken_for_the_prompts_of_many_pictures():
    pictures = [Image.new("RGB", (4, 4))] * 5
    with pytest.raises(TypeError, match="mini takes a list of prompts, one for each picture; it was given one text"):
        check_inputs("mini", pictures, "a fox")
