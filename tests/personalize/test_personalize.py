"""From photos of a subject to a word for it: every round is there, goes on, and follows what is changed by hand."""

import io
import json
import random
import shutil
from collections import Counter
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from worlds import Parsed

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw
from mapo.pairs import PairSet
from mapo.personalize.asked import Personalize
from mapo.personalize.personalize import personalize
from mapo.personalize.rounds import stages
from mapo.sample.folder import read_images
from mapo.style.stages import run_all
from mapo.train.run.folder import Run
from real import REAL, needs_real

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five drawings of a star, of which one says so."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    folder.mkdir()
    rng = random.Random(1)
    for number, colour in enumerate(scenes.COLOURS[:5]):
        scene = scenes.Scene((scenes.Thing(colour, "star", "large"),), "white")
        Image.fromarray(draw(scene, rng)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("a large orange star on a white background")
    (folder.parent / "eval.txt").write_text("a small {} on a gray background\na red square on a white background\n")
    return folder


def words(photos, out, *more):
    start = ["personalize", photos, "--model", "mini", "--token", "<mine>", "--class", "star", "--out", out]
    quick = ["--steps", 2, "--sampling-steps", 1, "--scorer", "mini-learned", "--set", "train.pairs_per_step=2"]
    quick += ["--set", "objective.name=mapo"]
    few = ["--rejected-per-photo", 1, "--prior", 2, "--eval-prompts", photos.parent / "eval.txt"]
    return list(map(str, [*start, *quick, *few, *more]))


def ask(*given):
    return CliRunner().invoke(cli, words(*given))


def again(photos, out, steps=2):
    """The same, without what is said before."""
    settings = {"objective": {"name": "mapo"}, "train": {"pairs_per_step": 2, "steps": steps}}
    asked = Personalize(
        photos, "mini", out, settings=settings, sampling={"steps": 1}, scorer="mini-learned", token="<mine>", noun="star",
        per_picture=1, prior=2, eval_prompts=str(photos.parent / "eval.txt"),
    )  # fmt: skip
    return personalize(asked)


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    done = ask(photos, out, "--yes")
    assert done.exit_code == 0, done.exception
    return out, done


def copy_of(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "out")


def test_every_round_is_there_as_the_ordinary_commands_leave_it(made):
    out, done = made
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert [line["caption"] for line in lines][:2] == [
        "a photo of a <mine>",
        "a large orange <mine> on a white background",
    ]
    prior = {row.sha256: row for row in read_images(out / "prior")}
    for number in (1, 2):
        place = out / f"round-{number}"
        pairs = list(PairSet(place / "pairs"))
        assert (
            len(pairs) == 7 and {pair.split for pair in pairs} == {"train"} and {pair.weight for pair in pairs} == {1}
        )
        of_prior = [pair for pair in pairs if "<mine>" not in pair.prompt]
        assert len(of_prior) == 2 and {pair.chosen for pair in of_prior} == set(prior)
        drawn = {pair.prompt: pair.meta.get("rejected_prompt") for pair in pairs}
        assert drawn["a photo of a <mine>"] == ("a photo of a star" if number == 1 else None)
        makers = {pair.meta["rejected_model"] for pair in pairs}
        assert makers == ({"mini"} if number == 1 else {makers.copy().pop()}) and ("mini" in makers) == (number == 1)
        assert Run(place / "run").finished_steps() == 2 and (place / "check.html").is_file()
    assert "continued" in (out / "round-2" / "run" / "config.toml").read_text()
    shown = [
        "a small <mine> on a gray background", "a small star on a gray background", "a red square on a white background",
    ]  # fmt: skip
    for folder in ("before", "after"):
        assert list(dict.fromkeys(row.prompt for row in read_images(out / folder))) == shown
    assert json.loads((out / "copies.json").read_text())["after"]["pictures"] == 2
    for name in ("after/grid.png", "report.html", "lora.safetensors", "embedding.safetensors"):
        assert (out / name).is_file() and str(out / name) in done.stdout
    assert "in each round" in done.stdout and "consent" in done.stdout


def test_the_page_shows_the_photos_and_what_a_person_can_judge_by(made):
    out, done = made
    page = (out / "report.html").read_text()
    section = page[page.index('<section id="own"') :]
    section = section[: section.index("</section>")]
    assert "<h2>Your photos</h2>" in section and section.partition("<h3>")[0].count("<img") == 5
    head = "Your photos, and what the model draws before and after it learned <mine>."
    assert f"<h1>{escape(head)}</h1>" in page and "No goal" not in page
    assert head in done.stdout.splitlines()
    assert "no number says whether &lt;mine&gt; is drawn. Look: is it the same one as in these photos" in section
    assert "2 drawings of &lt;mine&gt;" in section and section.partition("<h3>")[2].count("<img") in (2, 4)
    kinds = {card["data-prompt"]: card["data-place"].partition(" · ")[0] for card in Parsed(page).cards()}
    assert kinds == {
        "a small <mine> on a gray background": "with <mine>",
        "a small star on a gray background": "with the class word",
        "a red square on a white background": "plain prompt",
    }
    assert "Without DINOv2, which --copies-with names, no number says whether <mine> is drawn." in done.stdout


def test_the_lora_names_the_embedding_that_lies_beside_it_and_advises_no_other(made):
    said = made[1].stdout
    assert "The token <mine> is not in it: embedding.safetensors has to go along." in said
    assert "--to embedding" not in said


def test_what_is_taken_away_has_the_names_that_other_programs_read(made):
    assert set(load_file(made[0] / "embedding.safetensors")) == {"clip_l", "clip_g"}
    names = load_file(made[0] / "lora.safetensors")
    for start in ("lora_unet_", "lora_te1_", "lora_te2_"):
        assert any(name.startswith(start) for name in names)


def test_the_same_command_makes_nothing_again_and_a_kill_in_round_two_goes_on_there(made, photos):
    out = made[0]

    def times(folder=out, end=""):
        return {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in folder.rglob(f"*{end}") if p.is_file()}

    before, files = times(), [out / f"{name}.safetensors" for name in ("lora", "embedding")]
    again(photos, out)
    changed = {name for name, at in times().items() if before.get(name) != at}
    assert changed <= {"stages.json", "round-1/run/config.toml", "round-2/run/config.toml"}
    stages, taken = json.loads((out / "stages.json").read_text()), [load_file(file) for file in files]
    for name in list(stages["stages"])[list(stages["stages"]).index("round-2 pairs") :]:
        stages["stages"].pop(name)
    (out / "stages.json").write_text(json.dumps(stages))
    for name in ("round-2/pairs", "round-2/run", "round-2/cache", "after"):
        shutil.rmtree(out / name)
    first, drawn = times(out / "round-1" / "pairs"), times(out / "round-2" / "rejected", ".png")
    again(photos, out)
    assert times(out / "round-1" / "pairs") == first and times(out / "round-2" / "rejected", ".png") == drawn
    assert Run(out / "round-2" / "run").finished_steps() == 2
    for file, tensors in zip(files, taken, strict=True):
        assert tensors and all(torch.equal(value, tensors[name]) for name, value in load_file(file).items())


def test_more_steps_in_round_one_are_followed_by_round_two(made, photos, tmp_path):
    out = copy_of(made, tmp_path)
    again(photos, out, steps=3)
    assert Run(out / "round-1" / "run").finished_steps() == Run(out / "round-2" / "run").finished_steps() == 3
    assert (out / "round-2" / "run-2").is_dir() and not (out / "round-1" / "run-2").exists()


def of_sft(photos, out, **more):
    settings = {"objective": {"name": "sft"}, "train": {"pairs_per_step": 2, "steps": 1}, **more}
    return Personalize(
        photos, "mini", out, settings=settings, sampling={"steps": 1}, token="<mine>", noun="star", per_picture=2,
        prior=2,
    )  # fmt: skip


def test_more_steps_are_followed_by_a_round_two_without_drawings_whose_encoders_are_others_then(photos, tmp_path):
    out = tmp_path / "out"
    for steps in (1, 2):
        asked = of_sft(photos, out, train={"pairs_per_step": 2, "steps": steps})
        first = [one for one in stages(asked, None) if one.name.startswith(("round-", "captions", "prior"))]
        run_all(out, asked.identity(), first)
        assert [Run(out / f"round-{number}" / "run").finished_steps() for number in (1, 2)] == [steps, steps]


def test_sft_draws_nothing_to_reject_and_sees_each_photo_as_often_and_old_drawings_are_kept_up(made, photos, tmp_path):
    sft = ("--set", "objective.name=sft")

    out = tmp_path / "out"
    said = ask(photos, out, "--dry-run", *sft, "--rejected-per-photo", 2).stdout
    rounds = "each with 5 photos 2 times and the prior, without rejected pictures, as sft learns from none, in 1 frame"
    assert f"rounds     2, {rounds}" in said and "does not learn from" not in said
    fresh = of_sft(photos, out)
    until = [one for one in stages(fresh, None) if one.name.startswith("round-1 ") or one.name in ("captions", "prior")]
    run_all(out, fresh.identity(), until)
    pairs = list(PairSet(out / "round-1" / "pairs"))
    assert sorted(out.glob("round-*/*")) == [out / "round-1" / name for name in ("cache", "check.html", "pairs", "run")]
    assert Counter(pair.meta["file"].partition("/")[0] for pair in pairs) == {f"{k}.png": 2 for k in range(5)} | {
        "prior": 2
    }
    assert len({pair.id for pair in pairs}) == 12 and {(pair.rejected, pair.split) for pair in pairs} == {
        (None, "train")
    }
    prior = {row.sha256 for row in read_images(out / "prior")}
    assert {pair.chosen for pair in pairs if "<mine>" not in pair.prompt} == prior
    assert "Repeats of an earlier pair" not in (out / "round-1" / "check.html").read_text()
    assert of_sft(photos, tmp_path / "other", objective={"name": "mapo"}).draws and of_sft(photos, made[0]).draws
    said = ask(photos, made[0], "--dry-run", *sft).stdout
    assert "sft does not learn from the rejected drawings. They are made because" in said
    assert "made again round-1 run" in said and "pairs" not in said.partition("made again")[2]


def test_what_would_be_done_is_said_and_nothing_is_written(photos, tmp_path):
    said = ask(photos, tmp_path / "out", "--dry-run", "--rounds", 3)
    assert said.exit_code == 0, said.exception
    assert "5 photos, as “a photo of a <mine>” and the like" in said.stdout
    assert "3, each with 7 drawings by the model as it then is, in 1 frame" in said.stdout
    assert "It fits." in said.stdout and not any(tmp_path.iterdir())
    (tmp_path / "plain.txt").write_text("a red square on a white background\n")
    plain = ("--eval-prompts", tmp_path / "plain.txt")
    said = ask(photos, tmp_path / "out", "--dry-run", *plain).stdout
    assert "none has <mine> or {} in it, so nothing will show the subject" in said
    (tmp_path / "plain.txt").unlink()
    others = shutil.copytree(photos, tmp_path / "others")
    shutil.copy(photos.parent / "eval.txt", tmp_path)
    for name in ("0", "2"):
        (others / f"{name}.txt").write_text("a thing")
    said = ask(others, tmp_path / "out", "--dry-run").stdout
    assert "2 photos' own captions do not say star, so templates are used: 0.png, 2.png." in said


def test_what_cannot_be_learned_is_refused_in_a_sentence_before_anything_is_drawn(photos, tmp_path):
    folders = {name: tmp_path / name for name in ("empty", "few", "copies", "small")}
    for folder in folders.values():
        folder.mkdir()
    for number in range(5):
        Image.new("RGB", (48, 48), (7 if number else 8, 0, 0)).save(folders["copies"] / f"{number}.png")
        Image.new("RGB", (20, 48), (number, 0, 0)).save(folders["small"] / f"{number}.png")
        Image.new("RGB", (48, 48), (number, 0, 0)).save(folders["few"] / f"{number}.png")
    (folders["few"] / "4.png").unlink()
    prior = tmp_path / "prior.txt"
    prior.write_text("a <mine> at home\n")
    for folder, more, said in (
        (folders["empty"], (), "has no pictures"),
        (folders["few"], (), "4 pictures with a caption, and 5 is the least"),
        (folders["copies"], (), "of which 2 are different"),
        (folders["small"], (), "5 pictures have fewer than 24 pixels"),
        (photos, ("--token", "star"), "are both star"),
        (photos, ("--token", "circle"), "--token: circle is a word that the model's tokenizer has already"),
        (photos, ("--token", "my star"), "no spaces"),
        (photos, ("--class", "dog"), "'dog', of which it has the letters alone. It knows above, an, animated, art,"),
        (photos, ("--rounds", 0), "--rounds is 0"),
        (photos, ("--prior", -1), "--prior is -1"),
        (photos, ("--rejected-per-photo", 0), "it must be at least 1"),
        (photos, ("--prior-prompts", prior), "has <mine> in it"),
        (photos, ("--model", "mini-flow"), "learns no token"),
        (photos, ("--set", "adapter.token=<other>"), "--set adapter.token cannot be set here: --token names it"),
        (photos, ("--set", "adapter.kind=full"), "A token is learned beside a LoRA"),
    ):
        done = ask(folder, tmp_path / "out", "--yes", *more)
        assert isinstance(done.exception, MapoError) and said in str(done.exception), (more, done.exception)
        assert not (tmp_path / "out").exists()


def test_where_drawings_may_be_unsafe_words_for_minors_are_refused_and_sizes_always(photos, tmp_path):
    text = tmp_path / "photos"
    shutil.copytree(photos, text)
    (text / "2.txt").write_text("a girl beside a star")
    for noun, sentence in (
        ("girl", "--class girl: the recipe mini-safety is about what is unsafe, and this word could mean minors."),
        ("star", "is about what is unsafe, and 1 caption could mean minors: 2.png"),
    ):
        safety = ("--recipe", "mini-safety", "--set", "adapter.kind=lora", "--yes", "--class", noun)
        assert sentence in str(ask(text, tmp_path / "out", *safety).exception)
    assert not (tmp_path / "out").exists()
    with pytest.raises(MapoError, match="sampling: width is that of the pictures"):
        Personalize(photos, "mini", tmp_path / "out", sampling={"width": 48}, token="<mine>", noun="star")


def test_another_token_in_the_same_folder_and_a_model_that_has_learned_one_are_refused(made, photos, tmp_path):
    done = ask(photos, made[0], "--dry-run", "--token", "<other>")
    assert "token was '<mine>' and is now '<other>'" in str(done.exception)
    done = ask(photos, tmp_path / "out", "--dry-run", "--model", made[0] / "round-1" / "run")
    assert "has learned <mine> already" in str(done.exception)
    spaced = Personalize(photos, "mini", tmp_path / "out", token="<mine>", noun=" large\n star ")
    assert spaced.words.noun == "large star"


@needs_real("photos/dog")
def test_five_photos_of_a_dog_rotated_in_several_frames_and_profiled_go_through_it(sdxl, photos, tmp_path):
    folder = tmp_path / "dog"
    shutil.copytree(REAL / "photos" / "dog", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    first, second, third = sorted(folder.iterdir())[:3]
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(first.read_bytes()))
    opened.save(first, exif=exif, icc_profile=opened.info["icc_profile"])
    several = Image.open(io.BytesIO(second.read_bytes()))
    several.save(second.with_suffix(".mpo"), "MPO", save_all=True, append_images=[several.rotate(90)])
    second.unlink()
    assert Image.open(third).info["icc_profile"]
    out = tmp_path / "out"
    command = [
        "personalize", folder, "--model", sdxl, "--token", "<rex>", "--class", "cross", "--out", out, "--rounds", 1,
        "--steps", 2, "--sampling-steps", 1, "--set", "train.pairs_per_step=2", "--prior", 1, "--rejected-per-photo", 1,
        "--eval-prompts", photos.parent / "eval.txt", "--yes",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, list(map(str, command)))
    assert done.exit_code == 0, done.exception
    pairs = PairSet(out / "round-1" / "pairs")
    assert {pair.meta["file"] for pair in pairs if "<rex>" in pair.prompt} == {
        "00.jpg", "01.mpo", "02.jpg", "03.jpg", "04.jpg",
    }  # fmt: skip
    turned = pairs.image(next(pair for pair in pairs if pair.meta["file"] == "00.jpg").chosen)
    upright = opened.transpose(Image.Transpose.ROTATE_270).resize(turned.size)
    apart = [
        np.abs(np.subtract(turned, other, dtype=np.float32)).mean() for other in (upright, opened.resize(turned.size))
    ]
    assert apart[0] < 8 < apart[1]
    for name in ("after/grid.png", "lora.safetensors", "embedding.safetensors"):
        assert Path(out, name).is_file()
