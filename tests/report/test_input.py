"""What `mapo report` is given, and what it makes of it before anything is written."""

import json
import re

import pytest
from click.testing import CliRunner
from worlds import World, make_images, picture

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.report.report import write_report
from mapo.sample.folder import png_bytes
from mapo.score.table import read_scores


def ask(world, *words):
    folders = ("--before", str(world.root / "before"), "--after", str(world.root / "after"))
    out = ("--out", str(world.root / "page.html"))
    return CliRunner().invoke(cli, ["report", *folders, *out, *map(str, words)])


def test_a_picture_that_has_changed_is_seen_though_the_page_does_not_show_it(tmp_path, monkeypatch):
    monkeypatch.setattr("mapo.report.report.SHOWN_PAIRS", 5)
    world = World(tmp_path)
    world.report(None)
    hidden = tmp_path / "after" / world.after[-1].file
    hidden.write_bytes(png_bytes(picture("another")))
    with pytest.raises(MapoError, match=f"{hidden.name} is not the picture that the manifest names"):
        world.report(None)


def test_a_page_is_not_written_over_a_folder_nor_over_what_it_is_made_from(world):
    world.report()
    votes = world.vote("votes.jsonl", ["after"] * 20)
    kept = votes.read_bytes(), (world.root / "scores.parquet").read_bytes()
    for name in ("votes.jsonl", "scores.parquet"):
        result = ask(world, "--scores", world.root / "scores.parquet", "--votes", votes, "--out", world.root / name)
        assert isinstance(result.exception, MapoError)
        assert f"{name} is also given as --scores or --votes" in str(result.exception)
    assert kept == (votes.read_bytes(), (world.root / "scores.parquet").read_bytes())
    with pytest.raises(MapoError, match="is a folder. Name the file to write"):
        write_report(world.root / "before", world.root / "after", [], world.root / "before")


def test_folders_of_one_name_have_a_table_each(world):
    for side in ("before", "after"):
        (world.root / f"model-{side}").mkdir()
        (world.root / side).rename(world.root / f"model-{side}" / "images")
    folders = [w for side in ("before", "after") for w in (f"--{side}", world.root / f"model-{side}" / "images")]
    result = ask(world, *folders, "--scorer", "mini-learned", "--goal", "cartoon")
    assert result.exit_code == 0, result.exception
    assert {p.name for p in world.root.glob("*.parquet")} == {"before-scores.parquet", "after-scores.parquet"}


def test_the_verdict_is_printed(world):
    sentence = world.report()["verdict"].replace("\u202f", " ")
    result = ask(world, "--scores", world.root / "scores.parquet", "--goal", "cartoon")
    assert result.stdout.splitlines() == [sentence, f"the report is {world.root / 'page.html'}"]


def test_judges_of_pairs_are_known_by_name_and_a_group_stands_for_all_in_it(world):
    world.report()
    given = ("--scores", world.root / "scores.parquet", "--goal", "cartoon")
    assert "Did you mean 'mini-search'" in str(ask(world, *given, "--judge-of-pairs", "mini-serch").exception)
    assert ask(world, *given, "--judge-of-pairs", "mini").exit_code == 0
    assert "mini-search also made or filtered the training pairs" in (world.root / "page.html").read_text()


def test_scorers_are_not_named_beside_tables_that_are_there(world):
    world.report()
    result = ask(world, "--scores", world.root / "scores.parquet", "--scorer", "mini")
    assert "--scorer is for a report that makes the scores itself" in str(result.exception)


def test_folders_that_cannot_be_compared_are_refused_before_anything_is_scored(world, monkeypatch):
    monkeypatch.setattr("mapo.score.score.score_sides", lambda *_: pytest.fail("it scored"))
    manifest = world.root / "after" / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[1:]))
    result = ask(world)
    assert isinstance(result.exception, MapoError) and "lacks 1 picture" in str(result.exception)


def test_a_page_replaces_a_page_and_no_other_file(world):
    world.report()
    page, notes = world.root / "page.html", world.root / "notes.txt"
    notes.write_text("prompts of mine")
    for _ in range(2):
        assert not ask(world, "--scores", world.root / "scores.parquet", "--out", page).exception
    result = ask(world, "--scores", world.root / "scores.parquet", "--out", notes)
    assert isinstance(result.exception, MapoError) and "notes.txt exists and is not an HTML page" in str(
        result.exception
    )
    assert notes.read_text() == "prompts of mine"


def test_a_report_shows_only_the_scorers_that_it_asked_for(world):
    """A report on one folder, then on another with other scorers: their tables beside the pages are shared."""
    prompts = [row.prompt for row in world.before if row.seed == 0]
    make_images(world.root / "other", "other", prompts)
    assert not ask(world, "--scorer", "guards,mini", "--goal", "cartoon").exception
    result = ask(world, "--after", world.root / "other", "--scorer", "mini-search", "--out", world.root / "two.html")
    assert result.exit_code == 0, result.exception
    found = re.search(r'id="summary">(.*?)</script>', (world.root / "two.html").read_text("utf-8"), re.DOTALL)
    summary = json.loads(found[1])
    assert {row["scorer"] for row in summary["comparisons"]} == {"mini-search"} and not summary["guards"]
    again = ask(world, "--scorer", "mini-search", "--goal", "cartoon")
    assert again.exit_code == 0 and "mini-learned" not in (world.root / "page.html").read_text("utf-8")


def test_a_goal_that_no_scorer_gives_is_refused_before_anything_is_scored(world):
    for goal, says in (("cartoons", "Did you mean 'cartoon'?"), ("pickscore", "is not a metric of mini-learned.")):
        result = ask(world, "--scorer", "mini-learned", "--goal", goal)
        assert isinstance(result.exception, MapoError) and says in str(result.exception)
    assert not list(world.root.glob("*-scores.parquet"))


@pytest.mark.parametrize(
    ("more", "says"), [(("--run", "no"), "no is not a run: it is not"), (("--votes", "no"), "There are no votes in no")]
)
def test_a_run_or_votes_that_are_not_there_are_refused_before_anything_is_scored(world, more, says):
    result = ask(world, "--scorer", "mini-search", *more)
    assert isinstance(result.exception, MapoError) and says in str(result.exception)
    assert not list(world.root.glob("*-scores.parquet"))


def test_guards_alone_are_refused_before_anything_is_scored(world):
    result = ask(world, "--scorer", "guards")
    assert isinstance(result.exception, MapoError)
    assert "--scorer: guards alone know no better or worse. Name a scorer, such as" in str(result.exception)
    assert not list(world.root.glob("*.parquet"))


def test_tables_of_guards_alone_say_that_they_know_no_better_or_worse(world):
    world.rows = []
    world.add(lambda i: 0, lambda i: 1, scorer="guards", metric="sharpness")
    with pytest.raises(MapoError, match="Guards know no better or worse. Score both folders by another scorer too"):
        world.report(None)


def test_what_the_judges_cannot_say_is_told_once_in_a_report(world):
    said = ask(world, "--scorer", "mini").stdout
    assert said.count("made for the drawings of the built-in world") == 1
    assert said.count("The built-in world's judges read its own captions only") == 1


def test_a_picture_that_training_left_as_it_was_has_each_sides_own_diversity(tmp_path):
    def pictures(side, prompt, seed):
        return picture("same" if (prompt, seed) == ("prompt 3", 0) else side, prompt, seed)

    world = World(tmp_path, pictures=pictures)
    result = ask(world, "--scorer", "guards,mini-learned", "--goal", "cartoon")
    assert result.exit_code == 0, result.exception
    said = []
    for side in ("before", "after"):
        rows = read_scores(tmp_path / f"{side}-scores.parquet").to_pylist()
        said.append([row["value"] for row in rows if row["metric"] == "diversity"])
    assert said[0][6] != said[1][6]  # the sibling of one picture has changed
    summary = re.search(
        r'<script type="application/json"[^>]*>(.*?)</script>', (tmp_path / "page.html").read_text(), re.S
    )
    (guard,) = (g for g in json.loads(summary[1])["guards"] if g["metric"] == "diversity")
    for side, values in zip(("before", "after"), said, strict=True):
        assert guard[side]["value"] == pytest.approx(sum(values) / len(values))


def test_without_a_goal_those_that_the_tables_offer_are_told(world):
    world.add(lambda i: i % 2, lambda i: i % 3 > 0, metric="prompt_following")
    world.add(lambda i: i % 2, lambda i: 0, scorer="nsfw", metric="nsfw")
    world.report()
    scores = ("--scores", world.root / "scores.parquet")
    said = ask(world, *scores).stdout.splitlines()
    assert said[0] == "No goal was named, so no winner is called."
    assert said[1:] == [
        f"the report is {world.root / 'page.html'}",
        "Say what counts with --goal: prompt_following, cartoon, -nsfw",
    ]
    assert "--goal" not in ask(world, *scores, "--goal", "cartoon").stdout


def test_a_goal_of_a_scorer_that_has_not_scored_says_how_to_let_it(world):
    with pytest.raises(MapoError, match=r"pickscore has scored none of these pictures.*--scorer pickscore --out FILE"):
        world.report(goal="pickscore")
