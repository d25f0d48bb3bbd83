"""Which scorers score where nobody names any: the toy judges for the toy model's pictures, else those at hand."""

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from data_fixtures import encoded, noise
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images, read_images
from mapo.score.scorers import GROUPS, SCORERS
from mapo.score.scorers.choice import check_goal, choose_scorers, lacks, maker_of
from mapo.score.scorers.clip import CLIP, ClipScore
from mapo.score.table import read_scores
from mapo.worlds import WORLDS
from small_scorers import place_in_hub, save_clip, save_processor

CAPTION = "a small red circle on a gray background"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, nothing that can be asked over a network, and no scorer that came with a package."""
    monkeypatch.delitem(SCORERS, "nsfw", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, prompt in enumerate(("a fox", "a fox", CAPTION)):
        (folder / f"{number}.jpg").write_bytes(encoded(noise(number, (48, 48)), "JPEG"))
        (folder / f"{number}.txt").write_text(prompt)
    return folder


def sampled(folder, prompts=(CAPTION,), **changes):
    rows, data = [], []
    for number, prompt in enumerate(prompts):
        png = encoded(noise(number, (48, 48)))
        row = ImageRow(f"{number}.png", prompt_id(prompt), prompt, number, 7, sha256(png), "mini", width=48, height=48)
        rows.append(replace(row, **changes))
        data.append(png)
    append_images(folder, rows, data)
    return folder


def make_run(folder, base):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"base": str(base), "denoiser": "weights", "adapter": "lora"}))
    return folder


def is_mini(folder):
    return maker_of(folder, read_images(folder)) is WORLDS["mini"]


def test_pictures_of_the_built_in_model_and_of_runs_on_it_are_known(tmp_path):
    run = make_run(tmp_path / "second", make_run(tmp_path / "first", "mini"))
    for name, model in (("a", "mini"), ("b", str(tmp_path / "first")), ("c", str(run))):
        assert is_mini(sampled(tmp_path / name, ["a fox"], model=model))
    other = make_run(tmp_path / "third", "owner/name")
    assert not is_mini(sampled(tmp_path / "d", ["a fox"], model=str(other)))
    assert not is_mini(sampled(tmp_path / "e", ["a fox"], model="owner/name"))


def test_a_run_that_names_itself_ends(tmp_path):
    run = make_run(tmp_path / "run", tmp_path / "run")
    assert not is_mini(sampled(tmp_path / "a", ["a fox"], model=str(run)))


def test_a_run_on_the_built_in_model_that_was_moved_away_is_still_known(tmp_path):
    make_run(tmp_path / "now" / "run", "mini")
    assert is_mini(sampled(tmp_path / "now" / "after", ["a fox"], model="/before/run"))  # moved with its pictures
    assert is_mini(sampled(tmp_path / "captions", [CAPTION], model="/gone/run"))
    assert not is_mini(sampled(tmp_path / "size", ["a fox"], model="/gone/run"))  # 48 × 48 is a hint and no proof
    assert not is_mini(sampled(tmp_path / "now" / "large", ["a fox"], model="/before/run", width=1024, height=1024))


def test_anybodys_pictures_are_not_the_built_in_models_whatever_their_folder_is_called(tmp_path, photos):
    for name in ("0", "1"):
        (photos / f"{name}.jpg").unlink()
        (photos / f"{name}.txt").unlink()
    photos.rename(tmp_path / "mini")
    assert not is_mini(tmp_path / "mini")


def test_without_a_scorer_photos_are_scored_by_what_is_at_hand(tmp_path, photos, hub):
    save_processor(save_clip(tmp_path / "clip"), "CLIPImageProcessor", 32, 32)
    place_in_hub(hub, CLIP, tmp_path / "clip")
    done = CliRunner().invoke(cli, ["score", str(photos), "--out", str(tmp_path / "s.parquet")])
    assert done.exit_code == 0, done.exception
    assert {row["scorer"] for row in read_scores(tmp_path / "s.parquet").to_pylist()} == {"clip", "guards"}
    said = done.output.replace("\n", " ")
    assert "no --scorer was named, so these score: clip, guards." in said
    assert "not on this machine: pickscore, hps-v2.0, hps-v2.1, aesthetic, siglip, imagereward, safety, vlm." in said
    assert "fetched once: --scorer clip,guards,pickscore" in said and "mini" not in said and "dinov2" not in said


@pytest.mark.parametrize(
    ("goal", "scorers", "model", "why"),
    [
        ("-hazard", None, "mini", ""),
        ("prompt_following", None, "mini-flow", ""),
        ("pixel_art", "mini-search", "owner/name", ""),
        ("pickscore", "clip,pickscore@folder", "owner/name", ""),
        ("cartoons", None, "mini", "'cartoons' is not a metric of any scorer. Did you mean 'cartoon'?"),
        (
            "saturation",
            None,
            "mini",
            "'saturation' is not a metric of any scorer.",
        ),  # a guard's, which has no better or worse
        ("pickscore", "clip", "owner/name", "pickscore comes from pickscore, and --scorer names others."),
        (
            "pickscore",
            None,
            "owner/name",
            "pickscore comes from pickscore, which would not be asked here. Name it with",
        ),
        ("pickscore", None, "mini", "pickscore comes from pickscore, which would not be asked here. Name it with"),
        ("cartoon", None, "owner/name", "cartoon comes from mini-learned and mini-search, which would not be asked"),
    ],
)
def test_whether_a_goal_will_be_measured_is_known_before(hub, goal, scorers, model, why):
    if not why:
        check_goal(goal, scorers, model)
        return
    with pytest.raises(MapoError) as refused:
        check_goal(goal, scorers, model)
    assert str(refused.value).startswith(f"--goal: {why}")


def test_a_repository_that_is_there_in_part_is_not_at_hand(tmp_path, hub):
    save_processor(save_clip(tmp_path / "clip"), "CLIPImageProcessor", 32, 32)
    place_in_hub(hub, CLIP, tmp_path / "clip", "config.json", "model.safetensors")
    assert lacks("clip") == ""
    place = hub / "models--openai--clip-vit-large-patch14" / "snapshots" / CLIP.commit
    shutil.copytree(tmp_path / "clip", place, dirs_exist_ok=True)
    assert lacks("clip") is None


def test_every_scorer_says_what_it_needs(hub):
    here = {name for name in SCORERS if lacks(name) is None}
    assert {"guards", *GROUPS["mini"]} <= here
    assert {"clip", "pickscore", "hps-v2.0", "hps-v2.1", "aesthetic", "siglip", "dinov2"} & here == set()
    assert {"imagereward", "safety", "vlm"} & here == set()


def test_a_scorer_whose_weights_are_elsewhere_says_what_to_type(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(ClipScore, "lacks", staticmethod(lambda: "clip needs a package: pip install it"), raising=False)
    names, told = choose_scorers({photos: read_images(photos)})
    assert names == "guards" and "clip needs a package: pip install it" in told
    monkeypatch.setattr(ClipScore, "lacks", staticmethod(lambda: None))
    assert choose_scorers({photos: read_images(photos)})[0] == "clip,guards"


def test_scorers_that_compare_are_at_hand_only_with_references(photos, monkeypatch):
    monkeypatch.setattr("mapo.score.scorers.choice.lacks", lambda name: None)
    rows = {photos: read_images(photos)}
    assert "dinov2" not in choose_scorers(rows)[0] and "dinov2" in choose_scorers(rows, references=True)[0]


def test_without_a_scorer_the_toy_models_pictures_are_scored_by_the_toy_judges(tmp_path):
    folder = sampled(tmp_path / "images")
    done = CliRunner().invoke(cli, ["score", str(folder), "--out", str(tmp_path / "s.parquet")])
    assert done.exit_code == 0 and "--scorer" not in done.output
    assert {r["scorer"] for r in read_scores(tmp_path / "s.parquet").to_pylist()} == {*GROUPS["mini"], "guards"}
    assert "Diversity needs two seeds per prompt." in done.output and "guards gave no" not in done.output


def test_toy_judges_that_are_named_for_photos_say_what_their_numbers_mean(tmp_path, photos):
    words = ["score", str(photos), "--scorer", "mini-search", "--out", str(tmp_path / "s.parquet")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0
    assert "of photos their numbers mean nothing" in done.output
    rows = read_scores(tmp_path / "s.parquet").to_pylist()
    followed = {row["prompt"]: row["value"] for row in rows if row["metric"] == "prompt_following"}
    assert followed["a fox"] is None and followed[CAPTION] in (0, 1)
    assert "whether they are followed: 2 of 3 pictures have no prompt_following." in done.output


def test_a_report_that_only_guards_could_score_says_what_to_do(tmp_path, photos):
    after = shutil.copytree(photos, tmp_path / "after")
    words = ["report", "--before", photos, "--after", after, "--out", tmp_path / "r.html"]
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert isinstance(done.exception, MapoError)
    assert "Only guards can score these pictures on this machine" in str(done.exception)
    assert "--scorer pickscore" in str(done.exception) and "mapo label --before" in str(done.exception)
    assert not list(tmp_path.glob("*.parquet"))
