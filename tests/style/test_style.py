"""From a folder of pictures to a style: every stage is there, goes on, and follows what is changed by hand."""

import json
import random
import re
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from worlds import Parsed

from data_fixtures import noise
from mapo import api
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw
from mapo.pairs import PairSet
from mapo.sample.folder import read_images
from mapo.sample.grid import GAP, LINE
from mapo.score.scorers import choice
from mapo.style import screen, work
from mapo.style.stages import StageLedger
from mapo.style.style import Style, _stages, preview
from mapo.train.plan import at_hand, plan
from mapo.train.run.folder import Run

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six drawings in a style, in two folders, with a note beside them."""
    folder = tmp_path_factory.mktemp("own") / "pictures"
    (folder / "more").mkdir(parents=True)
    rng, found = random.Random(1), {}
    for scene in scenes.random_plain_scenes("train", rng):
        found.setdefault(scenes.context(scene), scene)
        if len(found) == 6:
            break
    for number, (caption, scene) in enumerate(found.items()):
        place = folder / ("more" if number > 3 else ".") / f"{number}.png"
        Image.fromarray(draw(replace(scene, style="cartoon"), rng)).save(place)
        place.with_suffix(".txt").write_text(caption)
    (folder / "notes.md").write_text("mine")
    (folder.parent / "eval.txt").write_text("a red square on a white background\n")
    return folder


def words(pictures, out, *more):
    start = ["style", pictures, "--model", "mini", "--out", out, "--eval-prompts", pictures.parent / "eval.txt"]
    quick = ["--steps", 2, "--sampling-steps", 1, "--scorer", "mini-search", "--set", "train.pairs_per_step=2"]
    drawn = ["--set", "objective.name=mapo"]  # for which rejected pictures are drawn, as with published models
    return list(map(str, [*start, *quick, *drawn, *more]))


def ask(*given):
    return CliRunner().invoke(cli, words(*given))


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    done = ask(pictures, out, "--yes")
    assert done.exit_code == 0, done.exception
    return out, done


def copy_of(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "out")


def times(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_every_stage_is_there_as_the_ordinary_commands_leave_it(made, pictures):
    out, done = made
    pairs = PairSet(out / "pairs")
    assert len(pairs) == 6 and sorted(p.split for p in pairs).count("test") == 1
    assert Run(out / "run").finished_steps() == 2
    held = {pair.prompt for pair in pairs if pair.split == "test"}
    for folder in ("before", "after"):
        shown = {row.prompt for row in read_images(out / folder)}
        assert shown == {*held, "a red square on a white background"}
    assert not {pair.prompt for pair in pairs if pair.split == "train"} & shown
    for name in (
        "check.html",
        "mismatch.json",
        "after/grid.png",
        "report.html",
        "copies.json",
        "lora.safetensors",
        "captions.jsonl",
    ):
        assert (out / name).is_file()
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["0.png", "1.png", "2.png", "3.png", "more/4.png", "more/5.png"]
    assert "6 pictures with captions" in done.stdout and "It fits." in done.stdout
    assert "Pictures of real people need their consent" in done.stdout
    assert str(out / "lora.safetensors") in done.stdout
    from safetensors import safe_open

    with safe_open(out / "lora.safetensors", "pt") as file:
        assert any(name.startswith("lora_unet_") for name in file.keys())  # noqa: SIM118


def test_of_the_mismatch_two_lines_are_said_and_where_the_rest_is(made):
    out, done = made
    said = done.stdout[done.stdout.index("mismatch: how far") : done.stdout.index("run: the training")]
    table = (out / "mismatch.txt").read_text()
    assert "denoising error" in table and "timesteps 0-249" in table
    assert "denoising error " not in said and "timesteps" not in said
    assert f"The table and the rest are in {out / 'mismatch.txt'}." in said
    assert "Nothing can be concluded from 5 pairs" in said and said.count("\n") < 10


def test_the_page_shows_the_pictures_what_was_found_of_copies_and_which_prompts_are_which(made):
    page = (made[0] / "report.html").read_text()
    held = next(pair.prompt for pair in PairSet(made[0] / "pairs") if pair.split == "test")
    kinds = {card["data-prompt"]: card["data-place"].partition(" · ")[0] for card in Parsed(page).cards()}
    assert kinds == {held: "caption, held out", "a red square on a white background": "plain prompt"}
    section = page[page.index('<section id="own"') :]
    section = section[: section.index("</section>")]
    assert "<h2>Your pictures</h2>" in section and "By perceptual hash, " in section
    assert "<h1>Your pictures, and what the model draws before and after it learned from them.</h1>" in page
    assert section.partition("<h3>")[0].count("<img") == 6
    grid = Image.open(made[0] / "after" / "grid.png")
    assert grid.height == (2 * (96 + GAP) + 2 * GAP) + (2 * LINE + 2 * GAP) + 2 * (96 + GAP)


def test_pictures_that_looked_unsafe_are_veiled_on_the_pages(made, pictures, tmp_path):
    out = copy_of(made, tmp_path)
    screened = json.loads((out / "screen.json").read_text())
    screened["pictures"]["more/4.png"] = 0.9
    (out / "screen.json").write_text(json.dumps(screened))
    asked = Style(pictures, "mini", out)
    assert asked.beside().veiled == {pictures / "more" / "4.png"}
    work.check_pairs(asked)
    assert (out / "check.html").read_text().count('<label class="veil') in (1, 2)  # at random, perhaps as suspicious
    assert '<label class="veil' not in (made[0] / "check.html").read_text()


def test_what_cannot_fit_is_refused_before_anything_is_drawn_and_a_finished_run_is_not(
    made, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(at_hand, "room_of", lambda device: 2**20)
    monkeypatch.setattr(plan, "smallest_change", lambda *given, **how: None)  # whose search takes a while
    said, before = ask(pictures, tmp_path / "out", "--dry-run"), times(made[0])
    assert said.exit_code == 1 and "It does not fit." in said.stdout and not any(tmp_path.iterdir())
    done = ask(pictures, made[0], "--yes", "--set", "optim.lr=0.01")  # which the run cannot go on with
    assert isinstance(done.exception, MapoError) and "does not fit, so nothing was begun." in str(done.exception)
    assert times(made[0]) == before
    assert ask(pictures, made[0], "--dry-run").exit_code == 0


def test_sft_draws_nothing_that_it_does_not_learn_from_and_a_folder_with_drawings_keeps_them(made, pictures, tmp_path):
    def asked(out, objective="sft", **more):
        train = {"steps": 2, "pairs_per_step": 2, **more.pop("train", {})}
        settings = {"objective": {"name": objective}, "train": train}
        return Style(pictures, "mini", out, settings=settings, sampling={"steps": 1}, **more)

    fresh = asked(tmp_path / "out")
    assert "pairs      6 pictures alone, as sft learns from no drawings, in 1 frame" in preview(fresh).lines
    assert "rejected" not in fresh.names()
    assert all(
        asked(tmp_path / "out", **more).draws for more in ({"train": {"measure_rejected": True}}, {"per_picture": 2})
    )
    unseen = [any("learns from your pictures alone" in said for said in preview(one).warnings) for one in (
        fresh, asked(tmp_path / "out", per_picture=2), asked(tmp_path / "out", "mapo", per_picture=2)
    )]  # fmt: skip
    assert unseen == [False, True, False]
    work.write_captions(fresh)
    assert work.make_pairs(fresh) == "6 pictures without rejected ones, for --objective sft, 1 caption held out"
    alone, both = PairSet(fresh.pairs), PairSet(made[0] / "pairs")
    assert not alone.has_rejected and not (tmp_path / "out" / "rejected").exists()
    assert [(p.prompt, p.chosen, p.split) for p in alone] == [(p.prompt, p.chosen, p.split) for p in both]
    before = asked(copy_of(made, tmp_path / "before"))
    again = StageLedger(before.out, before.identity()).stale(_stages(before, None))
    assert before.draws and not {"rejected", "pairs", "check", "run"} & set(again)
    assert asked(tmp_path / "out", "mapo").draws


def test_a_caption_changed_by_hand_is_not_called_one_whose_words_were_taken_out(made, pictures, tmp_path):
    file = copy_of(made, tmp_path) / "captions.jsonl"
    one, *rest = file.read_text().splitlines()
    changed = json.dumps({**json.loads(one), "caption": "a blue circle"})
    file.write_text("\n".join([changed, *rest]) + "\n")
    assert "captions   6 pictures with captions\n" in ask(pictures, file.parent, "--dry-run").stdout


def test_the_same_command_makes_nothing_again(made, pictures):
    out, _ = made
    before = times(out)
    again = ask(pictures, out, "--yes")
    assert again.exit_code == 0, again.exception
    changed = {p.relative_to(out).as_posix() for p, at in times(out).items() if before.get(p) != at}
    assert changed <= {"stages.json", "run/config.toml"}
    for said in (
        "pairs, done before: 6 pairs of 6 pictures, 1 caption held out",
        "check, done before: ",
        "trained for 2 steps; more --steps go on from there",
        "copies, done before: By perceptual hash, ",
        "done       all stages",
        "report, done before: Your pictures, and what the model draws before and after it learned from them.",
    ):
        assert said in again.stdout


def test_a_caption_changed_by_hand_is_drawn_and_learned_and_what_did_not_change_stays(made, pictures, tmp_path):
    out = copy_of(made, tmp_path)
    drawn = {row.prompt: row.sha256 for sub in (out / "rejected").iterdir() for row in read_images(sub)}
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    lines[2]["caption"] = "a green ring on a blue background"
    (out / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ask(pictures, out, "--yes").exit_code == 0
    pairs = PairSet(out / "pairs")
    assert [pair.prompt for pair in pairs][2] == "a green ring on a blue background"
    for pair in pairs:
        assert pair.rejected == drawn.get(pair.prompt, pair.rejected)
    assert Run(out / "run").finished_steps() == 2 and (out / "report.html").is_file()


def test_more_steps_go_on_with_the_run_and_its_pictures_follow(made, pictures, tmp_path):
    out = copy_of(made, tmp_path)
    before = {row.prompt: row.sha256 for row in read_images(out / "before")}
    after = {row.prompt: row.sha256 for row in read_images(out / "after")}
    said = ask(pictures, out, "--dry-run", "--steps", 3).stdout
    assert re.search(r"^goes on    run from step \d to 3; what is made from it follows$", said, re.MULTILINE)
    done = ask(pictures, out, "--yes", "--steps", 3)
    assert done.exit_code == 0, done.exception
    assert f"Open {out / 'report.html'} first." in done.stdout
    assert [line["step"] for line in Run(out / "run").metrics()] == [1, 2, 3]
    assert {row.prompt: row.sha256 for row in read_images(out / "before")} == before
    assert {row.prompt: row.sha256 for row in read_images(out / "after")} != after
    said = ask(pictures, out, "--dry-run", "--steps", 1)
    assert "made again run, and what follows from it: it has done 3 steps, and 1 are asked for" in said.stdout
    other = ("--steps", 3, "--set", "optim.lr=0.01", "--dry-run")
    assert (
        "optim.lr was 0.00178 and is now 0.01. The run that is there gets another name"
        in ask(pictures, out, *other).stdout
    )
    asked = Style(pictures, "mini", out, settings={"train": {"steps": 1, "pairs_per_step": 2}})
    assert work.train(asked, None) == "trained for 1 step; more --steps go on from there"
    assert Run(out / "run-2").finished_steps() == 3


def test_a_goal_that_nobody_will_measure_is_refused_before_anything_is_made(pictures, tmp_path):
    done = ask(pictures, tmp_path / "out", "--yes", "--goal", "cartoons")
    assert isinstance(done.exception, MapoError)
    assert str(done.exception) == "--goal: 'cartoons' is not a metric of any scorer. Did you mean 'cartoon'?"
    assert not any(tmp_path.iterdir())
    assert ask(pictures, tmp_path / "out", "--dry-run", "--goal", "-hazard").exit_code == 0


def test_what_would_be_done_is_said_and_nothing_is_written(pictures, tmp_path):
    done = ask(pictures, tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.exception
    assert "6 drawings by mini" in done.stdout and not any(tmp_path.iterdir())
    lines = preview(Style(pictures, "mini", tmp_path / "out")).lines
    assert "held out   1 caption and 16 plain prompts" in lines
    unasked = ask(pictures, tmp_path / "out")
    assert isinstance(unasked.exception, MapoError) and "Add --yes to begin" in str(unasked.exception)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_learned_from_is_refused_before_anything_is_drawn(pictures, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for number in range(4):
        Image.new("RGB", (48, 48), (number, 0, 0)).save(few / f"{number}.png")
        (few / f"{number}.txt").write_text(f"a square {number}")
    empty, bare, small, odd = (tmp_path / name for name in ("empty", "bare", "small", "odd"))
    for folder in (empty, bare, small, odd):
        folder.mkdir()
    texts = PngInfo()
    texts.add_text("prompt_of_another_program", "a cup")
    for number in range(5):
        Image.new("RGB", (48, 48), (number, 0, 0)).save(odd / f"{number}.png", pnginfo=texts)
        Image.new("RGB", (48, 48), (number, 0, 0)).save(bare / f"{number}.png")
        Image.new("RGB", (20, 48), (number, 0, 0)).save(small / f"{number}.png")
        (small / f"{number}.txt").write_text(f"a square {number}")
    for folder, said in (
        (few, "has 4 pictures with a caption, and 5 is the least"),
        (empty, "has no pictures"),
        (bare, "5 pictures have no caption"),
        (small, "5 pictures have fewer than 24 pixels"),
        (
            odd,
            "5 pictures have no caption: 0.png, 1.png, 2.png, 3.png, 4.png (its metadata are of a kind that is not known: ",
        ),
    ):
        done = ask(folder, tmp_path / "out", "--yes")
        assert isinstance(done.exception, MapoError) and said in str(done.exception)
        assert not (tmp_path / "out").exists()


def test_what_will_be_made_again_is_said_before_and_a_finished_run_is_set_aside(made, pictures, tmp_path):
    out = copy_of(made, tmp_path)
    (out / "pairs" / ".DS_Store").write_text("of another program")
    said = ask(pictures, out, "--dry-run")
    assert said.exit_code == 0 and "made again" not in said.stdout
    assert f"as {out / 'run'} on this device measured" in " ".join(said.stdout.split())
    assert f"as {out / 'run'} on this device measured" in " ".join(
        ask(pictures, tmp_path / "new", "--dry-run").stdout.split()
    )
    lines = (out / "captions.jsonl").read_text().splitlines()
    line = {**json.loads(lines[0]), "caption": "a pink heart on a white background, watercolor"}
    (out / "captions.jsonl").write_text("\n".join([json.dumps(line), *lines[1:]]) + "\n")
    said = ask(pictures, out, "--dry-run")
    assert "1 caption says how the picture is drawn: 0.png (“watercolor”)." in said.stdout
    assert "made again screen, pairs, check, mismatch, run, after, copies, lora, report: " in said.stdout
    assert ask(pictures, out, "--yes").exit_code == 0
    assert Run(out / "run-2").finished_steps() == 2 and Run(out / "run").finished_steps() == 2


def test_what_a_setting_says_of_the_model_holds_for_its_drawings_too(made, pictures, tmp_path):
    settings = {"prediction": "v", "train": {"steps": 2, "pairs_per_step": 2}}
    asked = Style(pictures, "mini", tmp_path / "out", settings=settings, sampling={"steps": 1})
    assert asked.config([]).prediction == asked.files.prediction == "v"
    work.write_captions(asked)
    work.make_pairs(asked)
    drawn = {row.prompt: row.sha256 for sub in (made[0] / "rejected").iterdir() for row in read_images(sub)}
    assert all(pair.rejected != drawn[pair.prompt] for pair in PairSet(asked.pairs))
    assert "prediction=v" in asked.drawn_by()


def test_a_new_picture_a_changed_text_and_a_set_that_is_gone_are_foreseen(made, pictures, tmp_path):
    out = copy_of(made, tmp_path)
    shutil.rmtree(out / "pairs")
    assert "made again pairs: gone, or " in ask(pictures, out, "--dry-run").stdout
    own = shutil.copytree(pictures.parent, tmp_path / "own") / "pictures"
    stages = json.loads((made[0] / "stages.json").read_text())
    stages["asked"]["pictures"] = str(own.resolve())
    out = shutil.copytree(made[0], tmp_path / "other")
    (out / "stages.json").write_text(json.dumps(stages))
    assert "made again" not in ask(own, out, "--dry-run").stdout
    text = (own / "0.txt").read_text()
    (own / "0.txt").write_text("a pink heart on a white background")
    assert "made again screen, pairs, " in ask(own, out, "--dry-run").stdout
    (own / "0.txt").write_text(text)
    noise(3, (48, 48)).save(own / "new.png")
    (own / "new.txt").write_text("a pink heart on a white background")
    assert "made again screen, pairs, " in ask(own, out, "--dry-run").stdout


def test_a_picture_that_is_gone_is_left_out_and_a_killed_stage_goes_on(made, pictures, tmp_path):
    out = copy_of(made, tmp_path)
    own = shutil.copytree(pictures.parent, tmp_path / "own") / "pictures"
    stages = json.loads((out / "stages.json").read_text())
    stages["asked"]["pictures"] = str(own.resolve())
    stages["stages"]["pairs"]["done"] = False  # killed when the set was there and nobody had written so
    (out / "stages.json").write_text(json.dumps(stages))
    assert ask(own, out, "--yes").exit_code == 0
    (own / "1.png").unlink()
    (own / "1.txt").unlink()
    done = ask(own, out, "--yes")
    assert done.exit_code == 0, done.exception
    assert len(PairSet(out / "pairs")) == 5


def test_what_can_only_fail_is_refused_before_the_work(pictures, tmp_path):
    few, minors = tmp_path / "few", tmp_path / "minors.jsonl"
    few.mkdir()
    Image.new("RGB", (48, 48)).save(few / "0.png")
    minors.write_text('{"file": "0.png", "caption": "a girl"}\n')
    for more, said in (
        (("--judge", "mini-search:cartoon"), "--judge chooses among several drawings"),
        (("--judge", "nobody:cartoon", "--rejected-per-picture", 2), "There is no scorer 'nobody'"),
        (("--scorer", "guards"), "know no better or worse"),
        (("--set", "train.steps=3"), "--steps and --set train.steps say the same"),
        (("--set", "model=other"), "--set model cannot be set here: --model names it"),
        (("--set", "cache=other"), "--set cache cannot be set here: it lies in --out"),
        (("--sampling-steps", 0), "--sampling-steps is 0; it must be a whole number, at least 1"),
        (("--guidance", "nan"), "--guidance is nan"),
        (("--recipe", "nothing"), "There is no recipe 'nothing'"),
        (("--rejected", pictures), "is the folder of the chosen pictures"),
        (("--rejected", tmp_path, "--judge", "mini-search:cartoon"), "--judge is for drawings"),
        (("--rejected", few), "5 pictures have no rejected one of the same name"),
        (("--copies-with", pictures), "does not hold a model in safetensors"),
        (("--captions", tmp_path / "nowhere"), "--captions: there is no file"),
        (("--eval-prompts", tmp_path / "nowhere.txt"), "--eval-prompts: there is no file"),
        (
            ("--recipe", "mini-safety", "--captions", minors),
            "is about what is unsafe, and 1 caption could mean minors: 0.png",
        ),
    ):
        done = ask(pictures, tmp_path / "out", "--dry-run", *more)
        assert isinstance(done.exception, MapoError) and said in str(done.exception)
    done = ask(pictures, pictures / "out", "--dry-run")
    assert isinstance(done.exception, MapoError) and "whose pictures are read" in str(done.exception)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = ask(pictures, tmp_path / "mine" / "letter.txt", "--dry-run")
    assert isinstance(done.exception, MapoError) and "letter.txt is a file. Name a folder" in str(done.exception)
    done = ask(pictures, tmp_path / "mine", "--dry-run")
    assert isinstance(done.exception, MapoError) and "was not made by this command" in str(done.exception)
    good = ask(pictures, tmp_path / "out", "--dry-run", "--judge", "mini-search:cartoon", "--rejected-per-picture", 2)
    assert good.exit_code == 0 and "12 drawings by mini" in good.stdout
    assert "recipe mini-style, 2 steps of 2 pairs" in good.stdout


def test_without_any_scorer_and_with_rejected_pictures_there_is_all_but_a_report(sdxl, tmp_path, monkeypatch, heard):
    for module in (choice, screen):
        monkeypatch.setattr(module, "lacks", lambda name: "")
    own, rejected = tmp_path / "own", tmp_path / "rejected"
    for k in range(6):
        for folder in (own, rejected):
            folder.mkdir(exist_ok=True)
            noise(k + 10 * (folder is own), (16, 16) if k else (32, 8)).save(folder / f"{k}.png")
    (own / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{k}.png", "text": "a red fox"}) + "\n" for k in range(7))
    )
    done = api.style(
        own, model=sdxl, out=tmp_path / "out", rejected=rejected, eval_prompts=["a blue cup"], sampling_steps=1,
        guidance=1.0, settings={"train.steps": 1, "train.pairs_per_step": 2},
    )  # fmt: skip
    said = heard()
    assert done.verdict is None and "report.html" not in done.files and not (tmp_path / "out" / "rejected").exists()
    assert done.run.finished_steps() == 1 and len(done.pairs) == 6 and done.files["lora.safetensors"].is_file()
    assert done.said["pairs"] == "6 pairs of 6 pictures, in 2 frames, 0 captions held out"
    assert {path.name for path in (tmp_path / "out" / "mismatch-images").iterdir()} == {"16x16", "32x8"}
    assert done.copies["by"] == "perceptual hash" and done.copies["own"]["pictures"] == 6
    assert {row.prompt for row in read_images(done.files["after"])} == {"a blue cup"}
    for words in (
        "screened   by nobody: no safety scorer is on this machine",
        f"pairs      6 rejected pictures of {rejected}, in 2 frames",
        "names 1 picture that is not there: 6.png (line 7). Nothing is made of them.",
        "All pictures have the same caption. So none is held out, and only plain prompts show what was learned.",
        "No scorer that knows better from worse is on this machine, so there is no report.",
        "One prompt alone gives no intervals.",
    ):
        assert words in said
    with pytest.raises(MapoError, match="--eval-prompts: all of them are captions that are trained on"):
        preview(Style(own, str(sdxl), tmp_path / "other", rejected=rejected, eval_prompts=["A red fox"]))
