"""What a person sees: help, one clear sentence for what is wrong, exit codes, and a road that goes on."""

import json
import re
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from apart import Apart, run_apart
from data_fixtures import encoded, noise
from mapo.cli import cli
from mapo.cli.shared import JOURNEY
from mapo.pairs import PairWriter
from mapo.sample.folder import read_images
from tiny import make_pairs

GROUPS = {name: command for name, command in cli.commands.items() if isinstance(command, click.Group)}
VERBS = sorted(cli.commands.keys() - GROUPS.keys())
COMMANDS = {verb: cli.commands[verb] for verb in VERBS} | {
    f"{group} {name}": command for group, made in GROUPS.items() for name, command in made.commands.items()
}


def mapo(*words):
    return run_apart("-m", "mapo", *words)


def refused(*words, code=2):
    """Run in this process; the one sentence that a refused call says, and that it ends with this exit code."""
    from mapo import cli as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mapo", *map(str, words)])
        runner = CliRunner()
        with runner.isolation() as streams, pytest.raises(SystemExit) as stopped:
            module.main()
        said = streams[1].getvalue().decode()
    assert stopped.value.code == code, said
    assert "Traceback" not in said
    return said.strip().split("\n")[-1]


def test_help_answers_without_loading_torch():
    code = (
        "import sys, mapo.cli as c\n"
        "for verb in [[], *[[v] for v in c.cli.commands]]:\n"
        "    try: c.cli.main([*verb, '--help'], standalone_mode=True)\n"
        "    except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'diffusers', 'transformers', 'pyarrow', 'matplotlib', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_option_and_argument_has_help_in_whole_sentences(verb):
    command = COMMANDS[verb]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            assert re.search(rf"\b{parameter.human_readable_name}\b", command.help), parameter.name
        else:
            said = parameter.help or ""
            assert re.fullmatch(r"[A-Z].*\.", said, re.S) and len(said.split()) >= 3, (parameter.opts, said)


def test_the_first_line_of_every_verb_stands_whole_in_the_list_of_verbs_once_and_by_what_it_is_for():
    listed = CliRunner().invoke(cli, ["--help"], terminal_width=78).output.partition("Options:")[2]
    for name, command in cli.commands.items():
        assert listed.count(f"\n  {name} ") == 1 and "..." not in listed
        assert re.fullmatch(r"[A-Z].*\.", command.help.split("\n")[0]), name
    assert sorted(name for names in JOURNEY.values() for name in names) == sorted(cli.commands)
    places = [listed.index(f"\n{title}:\n  {names[0]} ") for title, names in JOURNEY.items()]
    assert places == sorted(places)


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_in_the_help_is_a_command_that_parses(verb):
    command = cli.commands[verb]
    for line in command.example.splitlines():
        words = line.split()
        assert words[:2] == ["mapo", verb]
        command.make_context(verb, words[2:], **cli.context_settings)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], r"^mapo: No such command 'trian'. Did you mean 'train'\? See mapo --help\.$"),
        (["train", "--stps", "1"], r"^mapo: No such option '--stps'\. .*See mapo train --help\.$"),
        (["style", "p", "--modl", "x"], r"^mapo: No such option '--modl'\. Did you mean '--model'\? See mapo style --help\.$"),
        (["style", "p", "q", "--model", "x", "--out", "y"], r"argument \(q\)\. See mapo style --help\.$"),
        (["sample", "--model", "mini"], r"^mapo: Missing option '--out'\. See mapo sample --help\.$"),
        (["encode", "--resolution", "big"], r"^mapo: Invalid value for '--resolution': .* See mapo encode --help\.$"),
        (["train", "--lr", "1"], r"--lr is not a flag of `mapo train` but a setting: --set optim.lr=VALUE\.$"),
        (["plan", "--warmup-steps=1"], r"--warmup-steps is not a flag of `mapo plan` but a setting: --set optim.warmup_steps="),
        (["train", "--optim.lr", "1"], "--set optim.lr=VALUE"),
        (["train", "--beta", "1"], r"a setting: --set objective.beta=VALUE\.$"),
        (["train", "--nonsense", "1"], r"No such option: --nonsense|No such option '--nonsense'"),
        (["train", "--out", "x"], "Give --model, or model in the --config file"),
        (["train", "--model", "mini", "--pairs", "nowhere", "--out", "x"], "There is no pairs set at nowhere"),
        (["train", "--model", "m", "--pairs", "p", "--out", "x", "--set", "optim.warmup=1"], "Did you mean 'optim.warmup_steps'"),
        (["train", "--model", "m", "--pairs", "p", "--out", "x", "--set", "optim.lr=fast"], "optim.lr = 'fast'"),
        (["train", "--model", "m", "--pairs", "p", "--out", "x", "--set", "optim.lr"], "does not look like"),
        (["train", "--model", "m", "--pairs", "p", "--out", "x", "--objective", "mappo"], "Did you mean 'mapo'"),
        (["train", "--config", "no.toml", "--out", "x"], "there is no file no.toml"),
        (["sample", "--model", "./nowhere", "--prompts", "mini:test", "--out", "x"], "there is no folder or file ./nowhere"),
        (["sample", "--model", "mini", "--prompts", "no.txt", "--out", "x"], "there is no file no.txt"),
        (["sample", "--model", "mini", "--prompts", "a red fox", "--out", "x"],
         "--prompts names a file or a set of prompts, and there is none called 'a red fox'. .* `mapo sample` with --prompt;"),
        (["build", "pick-style-cartoon", "--model", "mini", "--prompts", "a fox: red", "--num-pairs", "1", "--out", "x"],
         "none called 'a fox: red'. .* for other verbs write it into a .txt file"),
        (["sample", "--model", "mini", "--out", "x"], "Give either --prompts, .* or --prompt TEXT"),
        (["sample", "--model", "mini", "--prompts", "p.txt", "--prompt", "a fox", "--out", "x"], "Give either --prompts"),
        (["sample", "--model", "mini", "--prompts", "mini:tset", "--out", "x"], "no built-in list 'mini:tset'"),
        (["sample", "--model", "mini", "--prompts", "mini:test", "--seeds", "a", "--out", "x"], "not a list of seeds"),
        (["sample", "--model", "mini", "--prompt", "a fox", "--out", ""], "Invalid value for '--out': it is empty. Name a file"),
        (["sample", "--model", "mini", "--prompt", "a \udcff", "--out", "x"], "prompt 1 is not UTF-8: byte 0xff at place 2"),
        (["build", "pick-style-cartoon", "--model", "mini", "--prompts", "mini:train", "--num-pairs", "1", "--out", "x",
          "--prefix", "chosen=\udcff"], "--prefix .* is not a text in UTF-8"),
        (["score", "nowhere", "--scorer", "mini", "--out", "x"], "nowhere is not an images folder"),
        (["import", "nowhere", "--out", "x"], "There is no file or folder nowhere"),
        (["label", "nowhere"], "There is no pairs set at nowhere"),
        (["label"], "Give PAIRS, which is .* with --before and --after, and with --out the file"),
        (["label", "--before", "a", "--after", "b"], "Give PAIRS"),
        (["label", "nowhere", "--keep-ties"], "say what --apply keeps"),
        (["label", "nowhere", "--out", "x"], "votes on a set lie in it, so label nowhere without --out"),
        (["label", "--before", "nowhere", "--after", "b", "--out", "x"], "nowhere is not an images folder"),
        (["export", "nowhere", "--to", "preference", "--out", "x"], "There is no pairs set at nowhere"),
        (["build", "pick-style-kartoon", "--model", "mini", "--prompts", "mini:train", "--num-pairs", "1", "--out", "x"],
         "Did you mean 'pick-style-cartoon'"),
        (["mini", "pretrain", "--out", "x", "--set", "stpes=3"], "Did you mean 'steps'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(sentence, refused(*words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "caption nowhere", "check nowhere", "remake nowhere --pair 1", "mismatch --model mini --pairs nowhere",
        "encode nowhere --stream --model mini --pairs {}/pairs", "train --model mini --pairs nowhere",
        "report --before nowhere --after nothing", "label --before nowhere --after nothing",
    ],
)  # fmt: skip
def test_a_refusal_leaves_no_folder_that_was_made_for_an_output(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nowhere" in refused(*words.format("a/b").split(), "--out", "c/d/e.html")
    assert list(tmp_path.iterdir()) == []


def test_prompts_are_given_as_they_are_one_by_one(tmp_path, sdxl):
    words = ["sample", "--model", sdxl, "--prompt", "a red fox", "--prompt", "a blue, round: thing", "--steps", 1]
    done = CliRunner().invoke(cli, [str(word) for word in (*words, "--out", tmp_path / "images")])
    assert done.exit_code == 0, done.output
    assert [row.prompt for row in read_images(tmp_path / "images")] == ["a red fox", "a blue, round: thing"]


def test_a_misspelt_scorer_is_told_before_a_table_that_is_there(tmp_path, sdxl):
    from mapo.score.table import write_scores

    write_scores(tmp_path / "t.parquet", [{
        "image": "0", "prompt_id": "p", "prompt": "p", "seed": 0, "model": "m", "scorer": "clip", "metric": "clip_score",
        "version": "1", "revision": "", "reference": "", "value": 1.0,
    }])  # fmt: skip
    done = CliRunner().invoke(
        cli, ["sample", "--model", str(sdxl), "--prompt", "p", "--steps", "1", "--out", str(tmp_path / "i")]
    )
    assert done.exit_code == 0
    words = ["score", tmp_path / "i", "--out", tmp_path / "t.parquet", "--scorer"]
    assert "There is no scorer 'clpi'. Did you mean 'clip'" in refused(*words, "clpi")
    assert "holds scores of other pictures" in refused(*words, "mini")


def test_folders_that_are_no_model_are_told_from_missing_ones(tmp_path, pairs):
    (tmp_path / "empty").mkdir()
    sentence = refused("train", "--model", tmp_path / "empty", "--pairs", pairs, "--out", tmp_path / "run")
    assert "neither a diffusers pipeline" in sentence and "nor a finished run" in sentence


def test_a_model_folder_with_a_part_missing_is_named(tmp_path, sdxl, pairs):
    import shutil

    shutil.copytree(sdxl, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "vae")
    assert "vae" in refused("train", "--model", tmp_path / "m", "--pairs", pairs, "--out", tmp_path / "run")
    shutil.copytree(sdxl / "vae", tmp_path / "m" / "vae")
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "unet cannot be loaded" in refused(
        "train", "--model", tmp_path / "m", "--pairs", pairs, "--out", tmp_path / "r2", "--cache", tmp_path / "c"
    )


def test_an_output_that_exists_is_not_written_over(tmp_path, sdxl, pairs):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for words in (
        ["export", pairs, "--to", "preference"],
        ["encode", "--model", sdxl, "--pairs", pairs],
        ["train", "--model", sdxl, "--pairs", pairs],
        ["sample", "--model", sdxl, "--prompts", "mini:test"],
    ):
        assert "mine exists" in refused(*words, "--out", tmp_path / "mine").replace("already ", "")
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_a_stopped_run_saves_and_exits_with_130_and_the_same_command_goes_on(tmp_path, sdxl, pairs, cache, number):
    out = tmp_path / "run"
    command = ["train", "--model", sdxl, "--pairs", pairs, "--cache", cache, "--out", out]
    command += ["--set", "train.steps=100000", "--set", "train.pairs_per_step=2"]
    process = Apart("-m", "mapo", *command)
    until = time.monotonic() + 120
    while time.monotonic() < until and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "mapo: Stopped. Nothing half-written was left; the same command goes on."
    done = len((out / "metrics.jsonl").read_text().splitlines())
    assert done >= 1 and [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    more = mapo(*command[:-4], "--set", f"train.steps={done + 2}", "--set", "train.pairs_per_step=2")
    assert more.returncode == 0, more.stderr
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, done + 3))
    assert (out / "run.json").exists()


def test_a_flag_whose_path_the_shell_left_alone_means_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(cli, ["mini", "draw", "--pictures=1", "--out=~/drawn", "--style=sketch"])
    assert done.exit_code == 0 and [path.name for path in tmp_path.iterdir()] == ["drawn"]


@pytest.mark.parametrize(
    ("words", "works", "then"),
    [
        ("sample --model mini --prompt a --out OUT", "sample", "the same command goes on"),
        ("check PAIRS --out OUT", "check", "the same command begins again"),
        (
            "report --before a --after b --out OUT",
            "report",
            "the same command begins again, with the scores that are there",
        ),
        ("plan --model mini --pairs PAIRS", "train", "the same command begins again"),
    ],
)
def test_whoever_stops_a_verb_hears_what_the_same_command_will_do(tmp_path, monkeypatch, words, works, then):
    def stop(*given, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mapo.{works}.verb.{words.split()[0]}", stop)
    said = refused(*words.replace("OUT", str(tmp_path / "out")).split(), code=130)
    assert said == f"mapo: Stopped. Nothing half-written was left; {then}."


def test_a_verb_that_is_told_to_end_says_so_and_the_same_command_goes_on(tmp_path, sdxl):
    out = tmp_path / "images"
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle number {k}" for k in range(60)))
    command = ["sample", "--model", sdxl, "--prompts", tmp_path / "prompts.txt", "--out", out, "--steps", "2"]
    command += ["--images-per-batch", "1"]
    process = Apart("-m", "mapo", *command)
    until = time.monotonic() + 120
    while time.monotonic() < until and not list(tmp_path.rglob("*.png")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "mapo: Stopped. Nothing half-written was left; the same command goes on."
    again = mapo(*command)
    assert again.returncode == 0, again.stderr
    assert 60 == len(list(out.rglob("*.png"))) == len((out / "manifest.jsonl").read_text().splitlines())


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_foreign_model_with_v_prediction_goes_the_whole_road(tmp_path, sdxl_v, adapter):
    """Other sizes, another scheduler: build, train, sample, export, with files between the stages."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\na blue heart\nzebra\n")
    road = [
        ["build", "pick-style-cartoon", "--model", sdxl_v, "--prompts", prompts, "--num-pairs", 5,
         "--out", tmp_path / "pairs", "--steps", 2, "--images-per-batch", 4],
        ["train", "--model", sdxl_v, "--pairs", tmp_path / "pairs", "--out", tmp_path / "run", "--adapter", adapter,
         "--set", "train.steps=2", "--set", "data.split=all"],
        ["sample", "--model", tmp_path / "run", "--prompts", prompts, "--seeds", "0-1", "--out", tmp_path / "after",
         "--steps", 2],
    ]  # fmt: skip
    for words in road:
        done = mapo(*words)
        assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "after" / "manifest.jsonl").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "pairs" / "set.json").read_text())["pairs"] == 5
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_run_can_be_the_start_of_another_run(tmp_path, sdxl, pairs, cache):
    from test_train import run

    from mapo.models import find_model

    run(tmp_path / "a", sdxl, pairs, cache, kind="lora", steps=1)
    run(tmp_path / "b", tmp_path / "a", pairs, cache, kind="full", steps=1)
    run(tmp_path / "c", tmp_path / "b", pairs, cache, kind="lora", steps=1)
    model = find_model(str(tmp_path / "c"))
    assert model.base == sdxl and model.denoiser == tmp_path / "b" / "weights" / "unet"
    assert [lora.path.parent for lora in model.loras] == [tmp_path / "c" / "weights"]
    revisions = {find_model(str(p)).revision() for p in (sdxl, tmp_path / "a", tmp_path / "b", tmp_path / "c")}
    assert len(revisions) == 4


def test_a_set_whose_picture_is_cut_off_is_refused_before_training(tmp_path, sdxl):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = make_pairs(tmp_path / "pairs")
    path = folder / "images-00000.parquet"
    table = pq.read_table(path)
    data = [b[:40] for b in table["bytes"].to_pylist()]
    pq.write_table(table.set_column(1, "bytes", pa.array(data, pa.binary())), path)
    sentence = refused("train", "--model", sdxl, "--pairs", folder, "--out", tmp_path / "run")
    assert "does not have the content of its hash" in sentence


def test_the_built_in_world_offers_only_what_it_can_make():
    said = CliRunner().invoke(cli, ["mini", "--help"]).output
    assert "pretrain" in said and "judge" not in said


def test_where_a_scorer_needs_too_much_memory_the_flag_is_named(tmp_path, monkeypatch):
    import torch

    import mapo.score.score

    def full(*given, **how):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(mapo.score.score, "score", full)
    said = refused("score", tmp_path, "--scorer", "mini", "--out", tmp_path / "s.parquet", "--images-per-batch", "12")
    assert "ran out with 12 pictures at a time. Repeat the command with --images-per-batch 6" in said


def test_one_of_a_thing_is_said_as_one(tmp_path):
    """One pair, one prompt, one picture, one step, from a set to a report."""
    picture = [encoded(noise(seed, (48, 48))) for seed in (1, 2)]
    with PairWriter(tmp_path / "pairs", {}) as writer:
        writer.add_pair("a red circle", *picture, split="train")
    (tmp_path / "prompts.txt").write_text("a red circle\n")

    def say(*words):
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert done.exit_code == 0, done.exception
        return done.stdout

    at = {name: tmp_path / name for name in ("pairs", "cache", "run", "before", "after", "s.parquet", "r.html")}
    assert "1 pair is encoded in" in say("encode", "--model", "mini", "--pairs", at["pairs"], "--out", at["cache"])
    trained = say("train", "--model", "mini", "--pairs", at["pairs"], "--out", at["run"], "--set", "train.steps=1")
    assert "Training on 1 pair. In 1 step of" in trained
    for name, model in (("before", "mini"), ("after", at["run"])):
        made = say("sample", "--model", model, "--prompts", tmp_path / "prompts.txt", "--out", at[name], "--steps", 1)
        assert "1 picture in" in made
    assert "1 picture is scored in" in say("score", at["before"], "--scorer", "mini-search", "--out", at["s.parquet"])
    folders = ("--before", at["before"], "--after", at["after"], "--out", at["r.html"])
    told = say("report", *folders, "--scorer", "mini-search", "--goal", "cartoon")
    assert "1 pair from 1 prompt" in told
    assert not re.search(r"\b1 (pairs|prompts|pictures|steps)\b", told + at["r.html"].read_text("utf-8"))
