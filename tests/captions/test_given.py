"""A file of captions that somebody names comes first: one that `mapo caption` wrote, or any list."""

import json

import pytest
from written import png

from mapo.captions.folder import look_in, of_file
from mapo.captions.ledger import read_ledger
from mapo.captions.verb import caption
from mapo.errors import MapoError


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    for name in ("a", "b", "deep/c"):
        png(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"beside {name}")
    return pictures


def rows(path, *given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def said(folder, file, **how):
    found = look_in(folder, given=file, **how)
    return {name: (one.caption, one.source, one.keep) for name, one in found.captions.items()}, found.absent


def test_captions_of_a_file_stay_as_they_are_and_others_are_of_the_folder(folder, tmp_path):
    file = rows(tmp_path / "mine.jsonl", {"file": "a.png", "caption": "an oil painting of a cup"},
                {"file": "deep/c.png", "caption": "x", "keep": False}, {"file": "z.png", "caption": "y"})  # fmt: skip
    assert said(folder, file) == (
        {
            "a.png": ("an oil painting of a cup", "given: mine.jsonl", True),
            "deep/c.png": ("x", "given: mine.jsonl", False),
            "b.png": ("beside b", "beside", True),
        },
        [f"{file} names 1 picture that is not there: z.png"],
    )


def test_a_list_is_read_as_lists_beside_pictures_are(folder, tmp_path):
    (tmp_path / "list.csv").write_text('image,text\na.png,"an oil painting of a cup, no 3"\ndeep/c.png,two cups\n')
    found, absent = said(folder, tmp_path / "list.csv")
    assert found["a.png"] == ("a cup, no 3", "list", True) and found["deep/c.png"] == ("two cups", "list", True)
    assert absent == [] and said(folder, tmp_path / "list.csv", raw=True)[0]["a.png"][0].startswith("an oil")
    inside = rows(folder / "deep" / "list.jsonl", {"file_name": "c.png", "prompt": "a cup inside"})
    assert said(folder, inside)[0]["deep/c.png"] == ("a cup inside", "list", True)
    assert [one.caption for one in of_file(folder, tmp_path / "list.csv")] == ["a cup, no 3", "two cups"]


def test_the_file_is_followed_where_it_changes_and_a_line_changed_by_hand_stays(folder, tmp_path):
    mine, out = tmp_path / "mine.jsonl", tmp_path / "captions.jsonl"
    rows(mine, {"file": "a.png", "caption": "one"}, {"file": "b.png", "caption": "two"})
    caption(folder, out, captions=mine)
    out.write_text(out.read_text().replace('"two"', '"two by hand"', 1))
    rows(mine, {"file": "a.png", "caption": "one more"}, {"file": "b.png", "caption": "two more", "keep": False})
    caption(folder, out, captions=mine)
    assert [(one.caption, one.keep) for one in read_ledger(out).values()] == [
        ("one more", True), ("two by hand", True), ("beside deep/c", True),
    ]  # fmt: skip
    rows(mine, {"file": "a.png", "caption": "one more", "keep": False})
    caption(folder, out, captions=mine)
    assert not read_ledger(out)["a.png"].keep


def test_what_is_not_a_file_of_captions_is_named(folder, tmp_path):
    for name, text, why in (
        ("none.jsonl", None, "--captions: there is no file"),
        ("odd.csv", "a,b\n1,2\n", "has no column of pictures .file_name. and one of prompts"),
        ("bad.jsonl", '{"file": "a.png", "captoin": "x"}\n', "Did you mean 'caption'"),
        ("text.txt", "a cup\n", "line 1 is not JSON"),
        ("gone.jsonl", '{"file": "z.png", "caption": "x"}\n', "names 1 picture that is not there: z.png"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(MapoError, match=why):
            of_file(folder, tmp_path / name)


def test_a_list_in_the_folder_that_names_pictures_which_are_gone_is_told_and_the_others_are_used(
    folder, tmp_path, heard
):
    rows(folder / "metadata.jsonl", *({"file_name": f"{name}.png", "text": f"list {name}"} for name in "abz"))
    captions = caption(folder, tmp_path / "captions.jsonl")
    assert [one.caption for one in captions] == ["list a", "list b", "beside deep/c"]
    gone = "names 1 picture that is not there: z.png (line 3). Nothing is made of them."
    assert f"{folder / 'metadata.jsonl'} {gone}" in heard()
