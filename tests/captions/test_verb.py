"""`mapo caption` makes one file of captions, keeps what was changed in it, and says what it found where."""

import json

import pytest
from click.testing import CliRunner
from written import comfy, graph, png

from mapo import api
from mapo.cli import cli
from mapo.errors import MapoError


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    comfy(pictures / "a.png", graph())
    for name in "bc":
        png(pictures / f"{name}.png", {"parameters": f"masterpiece, ({name}:1.2)\nSteps: 2, Seed: 1, Size: 4x4"})
    png(pictures / "d.png")
    (pictures / "d.txt").write_text("two cups")
    return pictures


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def change(path, file, **values):
    path.write_text("".join(json.dumps(row | (values if row["file"] == file else {})) + "\n" for row in lines(path)))


def test_the_command_writes_the_file_and_counts_the_sources(tmp_path, folder):
    out = tmp_path / "work/captions.jsonl"
    done = CliRunner().invoke(cli, ["caption", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output == (
        f"4 captions in {out}: 2 of the metadata of A1111, 1 of the metadata of ComfyUI, "
        "1 of texts beside the pictures\n"
    )
    assert lines(out)[1] == {
        "file": "b.png", "caption": "b", "source": "metadata: A1111", "raw": "masterpiece, (b:1.2)", "keep": True
    }  # fmt: skip


def test_the_same_command_again_keeps_what_was_changed_and_tells_what_is_new_or_gone(tmp_path, folder, heard):
    out = tmp_path / "captions.jsonl"
    api.caption(folder, out=out)
    before = out.read_bytes()
    api.caption(folder, out=out)
    assert out.read_bytes() == before and not heard()
    change(out, "b.png", caption="a bee", keep=False)
    (folder / "c.png").unlink()
    (folder / "d.txt").write_text("three cups")
    png(folder / "e.png", {"parameters": "an owl"})
    found = api.caption(folder, out=out)
    assert [(one.file, one.caption, one.source, one.keep) for one in found] == [
        ("a.png", "a red fox", "metadata: ComfyUI", True), ("b.png", "a bee", "by hand", False),
        ("d.png", "three cups", "beside", True), ("e.png", "an owl", "metadata: A1111", True),
    ]  # fmt: skip
    assert heard() == (
        f"1 picture is new since {out} was written: e.png\n1 caption was read again: d.png\n"
        f"1 picture of {out} is gone: c.png. Its line stays.\n"
    )
    assert [row["file"] for row in lines(out)] == ["a.png", "b.png", "d.png", "e.png", "c.png"]
    from mapo.captions.verb import counted

    assert "1 by hand, 1 of texts beside the pictures, " in counted(found) and counted(found).endswith("; 1 left out")


def test_a_line_by_hand_is_enough_for_a_picture_that_says_nothing(tmp_path, folder):
    png(folder / "e.png")
    out = tmp_path / "captions.jsonl"
    with pytest.raises(MapoError, match="1 picture has no caption: e.png. Write it into"):
        api.caption(folder, out=out)
    assert not out.exists()
    out.write_text('\ufeff{"file": "e.png", "caption": "an owl"}\n', "utf-8")
    assert [one.caption for one in api.caption(folder, out=out)] == ["a red fox", "b", "c", "two cups", "an owl"]


def test_the_file_may_lie_among_the_pictures(folder):
    out = folder / "captions.jsonl"
    assert api.caption(folder, out=out) == api.caption(folder, out=out)
    change(out, "a.png", caption="a wolf")
    assert api.caption(folder, out=out)[0].caption == "a wolf"


def test_raw_captions_stay_as_they_were_written(tmp_path, folder):
    found = api.caption(folder, out=tmp_path / "captions.jsonl", raw=True)
    assert [one.caption for one in found] == ["a red fox", "masterpiece, (b:1.2)", "masterpiece, (c:1.2)", "two cups"]


def test_a_broken_line_is_named_and_the_file_stays(tmp_path, folder):
    out = tmp_path / "captions.jsonl"
    out.write_text('{"file": "a.png", "caption": "x"}\n{"file": "b.png", "caption": ')
    before = out.read_bytes()
    with pytest.raises(MapoError, match="captions.jsonl line 2 is not JSON"):
        api.caption(folder, out=out)
    assert out.read_bytes() == before
    with pytest.raises(MapoError, match="is a folder. Name the file to write"):
        api.caption(folder, out=folder)
