"""Two commands at once on one output: one does it, the other is refused in a sentence. For every verb that writes."""

import json
import threading

import pytest
from PIL import Image

from mapo.errors import MapoError
from mapo.shards import locked, owned
from test_cli import refused
from tiny import make_pairs


def test_what_is_owned_has_one_owner_and_leaves_no_lock(tmp_path):
    out = tmp_path / "deep" / "set"
    with owned(out):
        with (
            pytest.raises(MapoError, match="Another process is writing .*set. Wait for it, or stop it first"),
            owned(out),
        ):
            pass
        with owned(tmp_path / "deep" / "other"):
            pass
    with owned(out):
        pass
    assert not (tmp_path / "deep").exists()


def test_what_is_refused_because_it_exists_leaves_unfinished_work_alone(tmp_path):
    from mapo.shards import refuse_existing

    out = tmp_path / "out"
    out.mkdir()
    unfinished = [tmp_path / ".out.partial", tmp_path / ".out.build.partial"]
    for work in unfinished:
        (work / "set").mkdir(parents=True)
    (unfinished[0] / "ledger.sqlite3").write_bytes(b"")
    with pytest.raises(MapoError, match="already exists"):
        refuse_existing(out)
    assert all(work.exists() for work in unfinished)
    (unfinished[0] / "set").rmdir()  # it was renamed and has become the output
    (unfinished[1] / "finishing").touch()
    (out / "set.json").write_text("{}")
    with pytest.raises(MapoError, match="already exists"):
        refuse_existing(out)
    assert not any(work.exists() for work in unfinished)


def test_a_link_and_its_folder_are_one_output(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    with owned(tmp_path / "set"), pytest.raises(MapoError, match="Another process"), owned(tmp_path / "link"):
        pass


def test_owners_that_come_and_go_never_share(tmp_path):
    """Removing the lock's file leaves no moment in which two have it."""
    inside, worst, done = [], [], []

    def work():
        while len(done) < 200:
            try:
                with owned(tmp_path / "out"):
                    inside.append(1)
                    worst.append(len(inside))
                    inside.pop()
                    done.append(1)
            except MapoError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) == 1


@pytest.fixture(scope="module")
def material(tmp_path_factory, sdxl):
    from mapo.sample.sample import sample

    folder = tmp_path_factory.mktemp("owners")
    make_pairs(folder / "pairs")
    for name in ("before", "after"):
        sample(str(sdxl), ["a red square", "a blue heart"], [0, 1], folder / name, steps=1)
    (folder / "pictures").mkdir()
    for number in range(5):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text(f"a square, number {number}")
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "x", "chosen": "a.png", "rejected": "b.png"}) + "\n")
    (folder / "recipe.toml").write_text('about = "a"\n[chosen]\nprefix = "a"\n[rejected]\nprefix = "b"\n')
    return folder


COMMANDS = {
    "build": "build {}/recipe.toml --model {model} --prompts mini:test --num-pairs 2 --steps 1 --out {out}",
    "remake": "remake {}/pairs --pair 0123456789abcdef --out {out}",
    "import": "import {}/rows.jsonl --out {out}",
    "caption": "caption {}/pictures --out {out}",
    "style": "style {}/pictures --model {model} --yes --out {out}",
    "personalize": "personalize {}/pictures --model {model} --token <it> --class square --yes --out {out}",
    "check": "check {}/pairs --out {out}",
    "encode": "encode --model {model} --pairs {}/pairs --out {out}",
    "train": "train --model {model} --pairs {}/pairs --out {out}",
    "sample": "sample --model {model} --prompts mini:test --steps 1 --out {out}",
    "score": "score {}/before --scorer guards --out {out}",
    "mismatch": "mismatch --model {model} --pairs {}/pairs --encoder none --out {out}",
    "report": "report --before {}/before --after {}/after --scorer guards --out {out}",
    "export": "export {}/pairs --to preference --out {out}",
    "demo": "demo --out {out}",
    "study": "study --quick --out {out}",
    "mini pretrain": "mini pretrain --out {out}",
}


def test_every_verb_that_writes_is_tried():
    from mapo.cli import cli

    others = {"label", "plan", "watch"}  # the first is tried in test_votes.py, the others write nothing
    assert {name.split()[0] for name in COMMANDS} == set(cli.commands) - others


def test_a_set_is_written_by_one_process(tmp_path):
    from mapo.pairs import PairWriter

    first = PairWriter(tmp_path / "set", {"made": "by a test"})
    with pytest.raises(MapoError, match="Another process is writing"):
        PairWriter(tmp_path / "set", {"made": "by a test"})
    with pytest.raises(MapoError, match="the source gave none"), first:
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_second_command_on_the_same_output_is_refused_in_a_sentence(tmp_path, material, sdxl, verb):
    out = tmp_path / "out"
    words = [w.replace("{}", str(material)).format(model=sdxl, out=out) for w in COMMANDS[verb].split()]
    work = tmp_path / ".out.build.partial"
    if verb == "build":  # its owner holds the folder that it works in
        work.mkdir()
    with locked(work, ["whole"]) if verb == "build" else owned(out):
        said = refused(*words)
    assert "Another process is" in said and "Wait for it, or stop it first" in said
    assert not out.exists()
    assert [path for path in tmp_path.iterdir() if path != work] == []
