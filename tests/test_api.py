"""The functions for Python: what their page says is what they do."""

import contextlib
import inspect
import io
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mapo.api
from mapo.api import MapoError, PairSet, Run, build_chosen, sample, score, train
from mapo.progress import Bar, bar, on_terminal, show_with
from mapo.score.table import read_scores
from mapo.settings import nested

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
VERBS = [name for name in mapo.api.__all__ if name.islower()]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The names and the printed lines after the blocks of the page were run in order in an empty folder."""
    folder, names, printed = tmp_path_factory.mktemp("page"), {}, []
    before, level = Path.cwd(), logging.getLogger().level
    os.chdir(folder)
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                exec(compile(block, str(PAGE), "exec"), names)
            printed.append((out.getvalue(), err.getvalue()))
    finally:
        os.chdir(before)
        logging.getLogger().setLevel(level)
    return folder / "work", names, printed


@pytest.mark.long
def test_the_page_builds_trains_samples_scores_and_reports(played):
    work, names, printed = played
    assert len(PairSet(work / "pairs")) == len(names["pairs"]) == 16
    assert Run(work / "run").steps == 3
    assert [row["step"] for row in Run(work / "run").metrics()] == [1, 2, 3]
    assert [row.prompt for row in names["after"].rows] == names["prompts"]
    assert all((work / "after" / row.file).is_file() for row in names["after"].rows)
    assert {row["scorer"] for row in read_scores(work / "before-scores.parquet").to_pylist()} == {
        "mini-learned",
        "mini-search",
    }
    assert [found.pictures for found in names["scores"]] == [2, 2]
    assert (work / "report.html").read_text("utf-8").startswith("<!doctype html")
    assert printed[0] == (names["page"].verdict + "\n", "")  # and nothing else, on neither stream


def test_what_comes_back_can_be_looked_at(played):
    _, names, printed = played
    first, second, *_ = printed[1][0].splitlines()
    assert first == f"16 {names['pair'].prompt} (48, 48)"
    assert second.startswith("3 ") and len(second.split()) == 3
    assert names["page"].numbers["pairs"] == 2


def test_an_error_of_the_page_is_the_sentence_beside_it(played):
    said = played[2][2][0].strip()
    assert f"# {said}\n" in PAGE.read_text("utf-8")


def test_messages_and_bars_are_shown_to_who_asks(played):
    _, _, printed = played
    assert "sample: 100%" in printed[3][1].replace("\r", "\n")
    assert printed[4][0].splitlines() == ["sample: 2 of 2"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_names_every_argument_with_its_default(verb):
    sections = re.split(r"^### ", PAGE.read_text("utf-8"), flags=re.M)
    section = next(part for part in sections if part.startswith(f"{verb}("))
    told = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", section, re.M)
    known = inspect.signature(getattr(mapo.api, verb)).parameters
    assert told == [(n, "" if p.default is p.empty else repr(p.default)) for n, p in known.items()]
    unnamed = [n for n, p in known.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert section.startswith(f"{verb}({', '.join([*unnamed, '…'])})")


def test_the_page_names_the_commands_that_are_not_functions():
    from mapo.cli import cli

    told = PAGE.read_text("utf-8").partition("**What is only a command.**")[2].partition("\n\n")[0]
    names = [f"mini {name}" for name in cli.commands["mini"].commands]  # a group of commands
    for name in [*names, *(cli.commands.keys() - {*VERBS, "mini"})]:
        assert f"`{name}" in told or f"`mapo {name}`" in told, name
    assert not [name for name in VERBS if f"`{name}` " in told.replace("shares of `build` and `score` ", "")]


def test_importing_it_loads_no_network_library_and_prints_nothing():
    code = "import sys, mapo.api; from mapo.api import train, PairSet; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "diffusers", "transformers", "accelerate", "matplotlib", "tqdm", "pydantic.main"}
    assert done.stdout == ""
    assert {name.partition(".")[0] for name in done.stderr.split()} & heavy == set()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: train(model=3, pairs="p", out="o"), "train(): model is 3; it must be a path, as text or as a Path."),
        (lambda: train(model="m", pairs=["p"], out="o"), "train(): pairs is ['p']; it must be a path, as text or as a Path."),
        (lambda: train(modle="m", out="o"), "train() has no argument 'modle'. Did you mean 'model'?"),
        (lambda: train("m"), "train() was given 1 argument without a name. Give each by its name, as in train(out=…)."),
        (lambda: train(model="m", pairs="p"), "train() needs out."),
        (lambda: score("a", "b", out="o"), "score() was given 2 arguments without a name. Only images may stand without one, as in score(images, out=…)."),
        (lambda: score("a", images="b", out="o"), "score() was given images twice."),
        (lambda: train(model="m", pairs="p", out=True), "train(): out is True; it must be a path, as text or as a Path."),
        (lambda: train(model="mini", pairs="p", out="o", settings=["a"]), "train(): settings is ['a']; it must be a mapping of names to values, such as {\"train.steps\": 100}."),
        (lambda: train(model="mini", pairs="p", out="o", settings={"train.step": 3}), "There is no setting 'train.step'. Did you mean 'train.steps'?"),
        (lambda: train(model="mini", pairs="p", out="o", settings={"train": {"steps": "many"}}), "The setting train.steps = 'many' does not fit: "),
        (lambda: train(model="mini", pairs="p", out="o", settings={"train": 3}), "train is a section of settings"),
        (lambda: train(model="mini", pairs="p", out="o", adapter="lorra"), "The setting adapter.kind = 'lorra' does not fit"),
        (lambda: train(model="mini", out="o"), "Give --pairs, or pairs in the --config file."),
        (lambda: sample(model="mini", prompts=["p"], out="o", seeds=1.5), "sample(): seeds is 1.5; it must be a seed, a list of seeds, or text such as \"0-3\"."),
        (lambda: sample(model="mini", prompts=["p"], out="o", seeds=[]), "--seeds is empty; give at least one seed."),
        (lambda: sample(model="mini", prompts=["p"], out="o", seeds=-1), "--seeds: -1 is not a seed."),
        (lambda: sample(model="mini", prompts=[], out="o"), "--prompts: the list holds no prompts."),
        (lambda: sample(model="mini", prompts=["p", 3], out="o"), "sample(): prompts is ['p', 3]; it must be text, a path, or a list of texts."),
        (lambda: sample(model="mini", prompts=["p"], out="o", steps="4"), "sample(): steps is '4'; it must be a whole number."),
        (lambda: sample(model="mini", prompts=["p"], out="o", steps=True), "sample(): steps is True; it must be a whole number."),
        (lambda: sample(model="mini", prompts=["p"], out="o", guidance="high"), "sample(): guidance is 'high'; it must be a number."),
        (lambda: sample(model="mini", prompts=["p"], out="o", clip_skip=-1), "--clip-skip is -1; it must not be negative."),
        (lambda: mapo.api.encode(model="mini", pairs="p", out="o", flip=1), "encode(): flip is 1; it must be True or False."),
        (lambda: mapo.api.encode(model="mini", pairs="p", out="o", precision="float8"), "--precision 'float8' is not known."),
        (lambda: mapo.api.encode(model="mini", pairs="p", out="o"), "There is no pairs set at p."),
        (lambda: mapo.api.import_pairs("p", out="o", columns=3), "import_pairs(): columns is 3; it must be a mapping of texts to texts, such as"),
        (lambda: mapo.api.import_pairs("p", out="o", columns={3: "x"}), "import_pairs(): columns is {3: 'x'}; it must be a mapping of texts to texts, such as"),
        (lambda: mapo.api.import_pairs("p", out="o", columns={"prompt": 3}), "import_pairs(): columns is {'prompt': 3}; it must be a mapping of texts to texts, such as"),
        (lambda: mapo.api.try_objective("mapo", settings={3: 1}), "try_objective(): settings is {3: 1}; it must be a mapping of names to numbers, such as"),
        (lambda: mapo.api.try_objective("mapo", settings={"beta": "1"}), "try_objective(): settings is {'beta': '1'}; it must be a mapping of names to numbers, such as"),
        (lambda: mapo.api.encode(model="mini", pairs="p", out="o", source="s", imports={"columns": 3}), "encode(): imports['columns'] is 3; it must be a mapping of texts to texts, such as"),
        (lambda: mapo.api.encode(model="mini", pairs="p", out="o", source="s", imports={"ties": 3}), "encode(): imports['ties'] is 3; it must be text."),
        (lambda: mapo.api.encode(model="mini", pairs="p", out="o", source="s", imports={"least_gap": "1"}), "encode(): imports['least_gap'] is '1'; it must be a number."),
        (lambda: mapo.api.encode(model="mini", pairs="p", out="o", imports={"ties": "keep"}), "--ties says how SOURCE is read. Give SOURCE and --stream, or leave it out."),
        (lambda: mapo.api.plan(model="mini", pairs="p", memory="8"), "--memory '8' would be 8 bytes. Give a unit, as in 24GB or 22.5GiB."),
        (lambda: mapo.api.build("r", model="mini", prompts="mini:train", num_pairs="16", out="o"), "build(): num_pairs is '16'; it must be a whole number."),
        (lambda: mapo.api.build("r", model="mini", prompts="mini:train", num_pairs=16, out="o"), "There is no recipe 'r'."),
        (lambda: mapo.api.report(before="a", after="b", out="o", scores=[1]), "report(): scores is [1]; it must be a path or a list of paths."),
        (lambda: sample(model="mini", prompts=["a\ud800"], out="o"), "sample(): prompts is ['a\\ud800']; it must be text, a path"),
        (lambda: sample(model="mini", prompts=["p"], out="o", prefix="\ud800"), "sample(): prefix is '\\ud800'; it must be text."),
        (lambda: sample(model="mini", prompts=["p"], out="o", width=10**7), "--width is 10000000; it must be at most 65,536 pixels."),
        (lambda: sample(model="mini", prompts=["p"], out=""), "sample(): out is empty. Name the place to write to."),
        (lambda: sample(model="mini", prompts=["p"], out="/dev/full/o"), "Cannot write to /dev/full (File exists). Choose another"),
        (lambda: mapo.api.build("r", model="mini", prompts="p", num_pairs=1, out="o", prefixes="chosen=\ud800"), "build(): prefixes is"),
        (lambda: PairSet(None), "PairSet(): folder is None; it must be a path, as text or as a Path."),
        (lambda: Run(-1), "Run(): folder is -1; it must be a path, as text or as a Path."),
        (lambda: score("a", out="\0"), "score(): out is '\\x00'; it must be a path, as text or as a Path."),
        (lambda: score("\ud800", out="o"), "score(): images is '\\ud800'; it must be a path, as text or as a Path."),
        (lambda: mapo.api.check("p", out=None), "check(): out is None; it must be a path, as text or as a Path."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_sentence(call, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MapoError) as failure:
        call()
    said = str(failure.value)
    assert said.startswith(sentence)
    assert "\n" not in said
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_what_the_system_refuses_is_a_sentence_too(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MapoError) as failure:
        sample(model="mini", prompts=["a red square"], out=tmp_path / "file" / "images")
    assert "file" in str(failure.value) and "fault of mapo" not in str(failure.value)


def test_a_list_of_prompts_is_read_as_a_file_of_them_is(tmp_path, heard):
    images = sample(
        model="mini", prompts=["a red square ", "A red square", "", "a blue circle"], seeds=[np.int64(3), 3],
        steps=np.int64(1), guidance=np.float32(1), out=tmp_path / "images",
    )  # fmt: skip
    assert [(row.prompt, row.seed) for row in images.rows] == [("a red square", 3), ("a blue circle", 3)]
    assert "1 prompt occurs twice; it is used once." in heard()


def test_prompts_and_loras_may_be_paths_and_what_another_function_returned(tmp_path, sdxl, pairs, cache):
    (tmp_path / "prompts.txt").write_text("a red square\n")
    run = train(model=sdxl, pairs=pairs, cache=cache, adapter="lora", out=tmp_path / "run",
                settings={"train.steps": 1, "optim.lr": 1e-2, "train.pairs_per_step": 2})  # fmt: skip
    made = {}
    for name, loras in {"none": (), "run": [run], "path": Path(run), "file": f"{os.fspath(run)}:0.5"}.items():
        out = tmp_path / f"images-{name}"
        images = sample(model=sdxl, prompts=tmp_path / "prompts.txt", loras=loras, steps=1, guidance=1.0, out=out)
        assert [row.prompt for row in images.rows] == ["a red square"]
        made[name] = (out / "images.json").read_text()
    assert "loras" not in made["none"] and made["run"] == made["path"] != made["file"]


def test_a_folder_of_pictures_becomes_a_set_with_drawings_with_a_folder_of_rejected_ones_or_alone(tmp_path):
    for folder, shade in (("own", 0), ("other", 200)):
        (tmp_path / folder).mkdir()
        for number in range(2):
            Image.new("RGB", (48, 48), (shade, 40 * number, 0)).save(tmp_path / folder / f"{number}.png")
            (tmp_path / folder / f"{number}.txt").write_text(f"a red square, {number}")
    chosen = {"chosen": tmp_path / "own", "model": "mini"}
    alone = build_chosen(**chosen, out=tmp_path / "alone", drawings=0)
    beside = build_chosen(**chosen, out=tmp_path / "beside", rejected=tmp_path / "other")
    drawn = build_chosen(**chosen, out=tmp_path / "drawn", drawings=2, steps=1)
    assert [len(pairs) for pairs in (alone, beside, drawn)] == [2, 2, 4]
    assert not alone.has_rejected
    assert np.asarray(beside.image(beside[0].rejected))[0, 0].tolist() == [200, 0, 0]
    assert drawn[0].meta["rejected_model"] == "mini" and {pair.weight for pair in drawn} == {0.5}


def test_nothing_that_a_model_is_loaded_with_is_warned_of(sdxl):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        from mapo.models import find_model, open_model

        open_model(find_model(str(sdxl))).pipeline("cpu")
        open_model(find_model(str(sdxl))).denoiser("cpu")


def test_settings_may_be_written_with_dots_or_as_sections():
    assert nested({"train.steps": 3, "optim": {"lr": 1e-4}, "train": {"seed": 1}}) == {
        "train": {"steps": 3, "seed": 1}, "optim": {"lr": 1e-4},
    }  # fmt: skip


def test_a_hook_holds_for_its_block_and_without_one_nothing_is_shown(capsys):
    made = []

    class Kept(Bar):
        def __init__(self, **how):
            super().__init__(**how)
            made.append(how)

    with show_with(Kept), bar(total=3, desc="d", unit="u", initial=1) as one, bar(shown=False):
        one.update()
    with bar(total=3) as silent:
        silent.update(2)
        silent.set_postfix(loss="1")
    assert made == [{"total": 3, "desc": "d", "unit": "u", "initial": 1}]
    assert capsys.readouterr() == ("", "")


def test_bars_are_switched_off_by_the_variable_of_tqdm_whenever_it_is_set(capsys, monkeypatch):
    import tqdm  # noqa: F401 (it asks for the variable now and never again)

    monkeypatch.setenv("TQDM_DISABLE", "1")
    with on_terminal(), bar(total=3, desc="train") as one:
        one.update(2)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_messages_are_lines_and_warnings_go_to_the_other_stream(capsys):
    log = logging.getLogger("mapo.something")
    log.warning("unheard")
    with on_terminal(), on_terminal():
        log.info("a note, 100 %")
        log.warning("a warning")
    log.info("unheard")
    assert capsys.readouterr() == ("a note, 100 %\n", "a warning\n")
    assert logging.getLogger("mapo").propagate and logging.getLogger("mapo").level == logging.NOTSET
