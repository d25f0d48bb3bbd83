"""Stages are made once, go on where they were stopped, and follow what they are made from."""

import json

import pytest

from mapo.errors import MapoError
from mapo.style.stages import Stage, StageLedger, digest_of

ASKED = {"model": "mini"}


def stage(folder, name, source, *, fails=False, again=False):
    def do():
        made.append(name)
        (folder / f"{name}.txt").write_text(f"made of {(folder / source).read_text()}")
        if fails:
            raise KeyboardInterrupt

    return Stage(name, "a file", (f"{name}.txt",), lambda: [digest_of(folder / source)], do, again=again)


made = []


def test_what_will_be_made_again_is_what_has_changed_or_is_gone_and_what_follows_from_it(folder):
    def of(name, source, **more):
        def do():
            (folder / name).write_text((folder / source).read_text())

        return Stage(name, "a file", (name,), lambda: [digest_of(folder / source)], do, **more)

    foreseen = {"foreseen": lambda: [digest_of(folder / "a")], "follows": ("a",)}
    nothing = Stage("nothing", "a report of nobody", ("report",), list, lambda: None)
    stages = [of("a", "source.txt"), of("b", "a", follows=("a",)), of("shown", "a", **foreseen), nothing]

    def stale():
        return StageLedger(folder, ASKED).stale(stages)

    for one in stages:
        StageLedger(folder, ASKED).run(one)
    assert stale() == []
    (folder / "a").rename(folder / "kept")
    assert stale() == ["a", "shown"]  # it comes back as it was, but what is foreseen counts
    (folder / "kept").rename(folder / "a")
    (folder / "source.txt").write_text("y")
    assert stale() == ["a", "b"]
    (folder / "source.txt").write_text("x")
    (folder / "b").unlink()
    assert stale() == ["b"]


@pytest.fixture
def folder(tmp_path):
    made.clear()
    out = tmp_path / "out"
    StageLedger(out, ASKED)._write("none", "", done=True)
    (out / "source.txt").write_text("x")
    return out


def test_what_is_done_is_not_done_again_and_what_changed_by_hand_is_followed(folder):
    def all_stages():
        ledger = StageLedger(folder, ASKED)
        for one in (stage(folder, "a", "source.txt"), stage(folder, "b", "a.txt")):
            ledger.run(one)

    all_stages()
    all_stages()
    assert made == ["a", "b"]
    (folder / "a.txt").write_text("by hand")
    all_stages()
    assert made == ["a", "b", "b"] and (folder / "b.txt").read_text() == "made of by hand"
    (folder / "source.txt").write_text("y")
    all_stages()
    assert made == ["a", "b", "b", "a", "b"] and (folder / "b.txt").read_text() == "made of made of y"
    (folder / "b.txt").unlink()
    all_stages()
    assert made[5:] == ["b"]


def test_a_stage_that_was_stopped_is_not_done_and_keeps_its_files(folder):
    with pytest.raises(KeyboardInterrupt):
        StageLedger(folder, ASKED).run(stage(folder, "a", "source.txt", fails=True))
    assert (folder / "a.txt").exists()
    StageLedger(folder, ASKED).run(stage(folder, "a", "source.txt"))
    StageLedger(folder, ASKED).run(stage(folder, "a", "source.txt"))
    assert made == ["a", "a"]


def test_a_stage_that_is_done_each_time_is_removed_only_where_its_source_has_changed(folder):
    kept = folder / "a.txt"
    one = Stage("a", "a file", ("a.txt",), lambda: [digest_of(folder / "source.txt")], lambda: kept.touch(), again=True)
    StageLedger(folder, ASKED).run(one)
    kept.write_text("more")
    StageLedger(folder, ASKED).run(one)
    assert kept.read_text() == "more"
    (folder / "source.txt").write_text("y")
    StageLedger(folder, ASKED).run(one)
    assert kept.read_text() == ""


def test_a_folder_of_other_things_is_refused_and_nothing_in_it_is_touched(folder, tmp_path):
    before = (folder / "stages.json").read_text()
    with pytest.raises(MapoError, match="begun with other things: model was 'mini' and is now 'sdxl'"):
        StageLedger(folder, {"model": "sdxl"})
    assert (folder / "stages.json").read_text() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(MapoError, match="was not made by this command"):
        StageLedger(tmp_path / "mine", ASKED)
    (folder / "stages.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(MapoError, match="is not a list of stages"):
        StageLedger(folder, ASKED)


def test_a_digest_tells_names_sizes_and_ends_of_large_files(tmp_path):
    (tmp_path / "a").mkdir()
    large = tmp_path / "a" / "large.bin"
    large.write_bytes(bytes(3 * 2**20))
    first = digest_of(tmp_path / "a")
    assert first == digest_of(tmp_path / "a") != digest_of(large) and digest_of(tmp_path / "b") == ""
    large.write_bytes(bytes(3 * 2**20 - 1) + b"x")
    assert digest_of(tmp_path / "a") != first
    large.write_bytes(bytes(3 * 2**20))
    assert digest_of(tmp_path / "a") == first
    large.rename(tmp_path / "a" / "other.bin")
    assert digest_of(tmp_path / "a") != first


def test_what_a_stage_said_is_said_again_when_it_is_not_done_again(folder, heard):
    one = Stage(
        "a", "a file", ("a.txt",), lambda: ["x"], lambda: ((folder / "a.txt").write_text("") and None) or "3 of 4"
    )
    assert StageLedger(folder, ASKED).run(one) == "3 of 4" and heard() == "a: a file\n3 of 4\n"
    assert StageLedger(folder, ASKED).run(one) == "3 of 4" and heard() == "a, done before: 3 of 4\n"


def test_files_that_a_person_has_changed_get_another_name_and_others_are_removed(folder, heard):
    def run():
        source = lambda: [digest_of(folder / "source.txt")]  # noqa: E731
        made = lambda: (folder / "a.txt").write_text((folder / "source.txt").read_text()) and None  # noqa: E731
        StageLedger(folder, ASKED).run(Stage("a", "a file", ("a.txt",), source, made, aside_if_changed=True))

    run()
    (folder / "source.txt").write_text("y")
    run()
    assert (folder / "a.txt").read_text() == "y" and not (folder / "a.txt-2").exists()
    (folder / "a.txt").write_text("votes of a day")
    run()
    assert (folder / "a.txt").read_text() == "votes of a day"
    (folder / "source.txt").write_text("z")
    run()
    assert (folder / "a.txt").read_text() == "z" and (folder / "a.txt-2").read_text() == "votes of a day"
    assert f"What was there of a.txt is now {folder / 'a.txt-2'}." in heard()
