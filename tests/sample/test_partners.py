"""Good pictures of one folder, and their partners in another."""

import json

import pytest
from click.testing import CliRunner

from data_fixtures import encoded, noise
from mapo.api import import_pairs
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs import PairSet
from mapo.sample.folder import read_images


def picture(number):
    return encoded(noise(number, (24, 16)))


def good_pictures(folder, prompts):
    """NAME.png and NAME.txt."""
    folder.mkdir()
    for number, prompt in enumerate(prompts):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"{prompt}\n")
    return folder


def listed(folder, rows):
    """A list of (prompt, seed); the picture of a row is that of its place behind 100."""
    folder.mkdir()
    for number, _ in enumerate(rows):
        (folder / f"{number}.png").write_bytes(picture(100 + number))
    lines = [{"file_name": f"{n}.png", "prompt": prompt, "seed": seed} for n, (prompt, seed) in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def ask(*words):
    return CliRunner().invoke(cli, ["import", *map(str, words)])


def test_pictures_that_a_model_drew_of_the_prompts_of_a_folder_become_its_rejected_ones(tmp_path):
    good = good_pictures(tmp_path / "good", ["a red square", "a blue circle", "a green star"])
    words = ["sample", "--model", "mini", "--prompts", good, "--steps", 1, "--out", tmp_path / "own"]
    assert CliRunner().invoke(cli, list(map(str, words))).exit_code == 0
    done = ask(good, "--rejected-from", tmp_path / "own", "--out", tmp_path / "pairs", "--split", "train")
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines()[-1] == f"3 pairs in {tmp_path / 'pairs'} (0 ties dropped, 0 repeats, 0 bad)"
    own = {row.prompt: row.sha256 for row in read_images(tmp_path / "own")}
    pairs = PairSet(tmp_path / "pairs")
    assert [(p.prompt, p.chosen, p.rejected, p.split, p.source) for p in pairs] == [
        (prompt, sha256(picture(n)), own[prompt], "train", "partners")
        for n, prompt in enumerate(["a red square", "a blue circle", "a green star"])
    ]
    assert pairs.info["provenance"]["rejected_from"] == "own" and not pairs.info["sensitive"]


def test_pictures_of_a_prompt_are_paired_by_seed_and_the_others_are_counted_and_named(tmp_path):
    good = good_pictures(tmp_path / "good", ["A  red fox", "a red FOX", *(f"lonely {n}" for n in range(7))])
    own = listed(tmp_path / "own", [("a red fox", 9), ("a red fox", 2), ("a red fox", 11), ("another", 0)])
    done = ask(good, "--rejected-from", own, "--out", tmp_path / "pairs")
    assert done.exit_code == 0, done.exception
    assert [(p.prompt, p.chosen, p.rejected) for p in PairSet(tmp_path / "pairs")] == [
        ("A  red fox", sha256(picture(0)), sha256(picture(101))),
        ("a red FOX", sha256(picture(1)), sha256(picture(100))),
    ]
    said = done.stdout.splitlines()
    assert f"7 pictures of {good} have no partner in {own}: 2.png, 3.png, 4.png, 5.png, 6.png and 2 more" in said
    assert f"2 pictures of {own} have no partner in {good}: 3.png, 2.png" in said
    assert "have one prompt" not in done.stdout


def test_several_pictures_of_one_prompt_are_told_how_each_comes_to_a_partner(tmp_path):
    good = good_pictures(tmp_path / "good", ["a red fox"] * 5)
    own = listed(tmp_path / "own", [("a red fox", 0)])
    done = ask(good, "--rejected-from", own, "--out", tmp_path / "pairs")
    assert done.exit_code == 0 and len(PairSet(tmp_path / "pairs")) == 1
    told = f"up to 5 pictures of {good} have one prompt: each needs a rejected picture of its own; draw as many with"
    assert f"{told} `mapo sample --seeds 0-4`" in done.stdout.splitlines()


def test_a_set_whose_rejected_pictures_come_from_a_sensitive_folder_is_sensitive(tmp_path):
    good = good_pictures(tmp_path / "good", ["a red square"])
    words = ["sample", "--model", "mini", "--prompts", good, "--steps", 1, "--out", tmp_path / "own"]
    assert CliRunner().invoke(cli, list(map(str, words))).exit_code == 0
    head = json.loads((tmp_path / "own" / "images.json").read_text())
    (tmp_path / "own" / "images.json").write_text(json.dumps({**head, "sensitive": True}))
    pairs = import_pairs(good, rejected_from=tmp_path / "own", out=tmp_path / "pairs")
    assert pairs.info["sensitive"]


def test_what_cannot_be_paired_is_told_and_nothing_is_written(tmp_path):
    good = good_pictures(tmp_path / "good", ["a red fox", "a blue fox"])
    own = listed(tmp_path / "own", [("a green fox", 0)])
    same = listed(tmp_path / "same", [("a red fox", 0)])
    (same / "0.png").write_bytes(picture(0))
    for how, why in (
        ({"rejected_from": own}, "have no prompt in common. Draw pictures of the same prompts with `mapo sample`"),
        ({"rejected_from": good}, "is the source itself"),
        ({"rejected_from": tmp_path / "nowhere"}, "nowhere is not an images folder: it is not there"),
        ({"rejected_from": own, "format": "jsonl"}, "--format is for one source. Leave it out with --rejected-from."),
        ({"rejected_from": same}, "0.png and 0.png: .*Mend the row"),
    ):
        with pytest.raises(MapoError, match=why):
            import_pairs(good, out=tmp_path / "pairs", **how)
    assert not (tmp_path / "pairs").exists() and not list(tmp_path.glob(".pairs*"))
