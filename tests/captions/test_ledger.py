"""The one file of captions is read back line by line, and what a person changed in it wins."""

import json

import pytest

from mapo.captions.folder import made
from mapo.captions.ledger import BY_HAND, Caption, merge, read_ledger, write_ledger
from mapo.errors import MapoError

ROWS = [
    Caption("a.png", "a fox", "beside", "a fox, 8k"),
    Caption("b.png", "a dog", "metadata: A1111", "(a dog:1.2)"),
    Caption("c.png", "a boat", "model: blip", "a boat", keep=False),
]


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "captions.jsonl"
    write_ledger(path, ROWS)
    assert list(read_ledger(path).values()) == ROWS
    before = path.stat().st_mtime_ns
    write_ledger(path, ROWS)
    assert path.stat().st_mtime_ns == before


def test_a_line_by_hand_needs_a_picture_and_a_caption_alone(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a.png", "caption": " a fox "}\n\n{"file": "b.png", "keep": false}')
    assert list(read_ledger(path).values()) == [Caption("a.png", "a fox"), Caption("b.png", "", keep=False)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file": "a.png", "caption": "x"', "line 2 is not JSON"),
        ("[1]", "line 2: it must be such as"),
        ('{"file": "a.png", "captoin": "x"}', "line 2: it has 'captoin', .* Did you mean 'caption'"),
        ('{"file": "a.png", "caption": 3}', "line 2: caption must be a text in quotes, and is 3"),
        ('{"file": "a.png", "caption": "x", "keep": "no"}', 'line 2: keep must be true or false, and is "no"'),
        ('{"caption": "x"}', "line 2: it names no picture"),
        ('{"file": "a.png", "caption": " "}', 'line 2: the caption of a.png is empty; write one, or .* "keep": false'),
        ('{"file": "a.png", "caption": "x\\ny"}', "line 2: its caption has several lines"),
        ('{"file": "0.png", "caption": "y"}', "line 2: it names 0.png a second time"),
        ('{"file": "a.png", "caption": "x", "caption": "y"}', "line 2: it has two columns caption"),
        ('{"file": "a.png", "caption": "\\ud83d"}', "line 2: caption has half a character"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, said):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "0.png", "caption": "x"}\n' + line)
    with pytest.raises(MapoError, match=f"^{path} {said}"):
        read_ledger(path)


def test_what_a_person_changed_wins_and_what_nobody_changed_is_read_again():
    before = {
        "a.png": Caption("a.png", "a red fox", "beside", "a fox, 8k"),  # changed by hand
        "b.png": ROWS[1],
        "c.png": ROWS[2],
        "d.png": Caption("d.png", "a cup, 8k", "beside", "a cup, 8k"),  # changed by hand into how it was written
        "old.png": Caption("old.png", "gone", "beside", "gone"),
    }
    found = {
        "a.png": Caption("a.png", "a wolf", "beside", "a wolf"),
        "b.png": Caption("b.png", "a cat", "metadata: A1111", "a cat"),
        "d.png": Caption("d.png", "a cup", "beside", "a cup, 8k"),
        "new.png": Caption("new.png", "new", "list", "new"),
    }
    merged = merge(["a.png", "b.png", "c.png", "d.png", "new.png", "silent.png"], found, before, made)
    assert merged.captions == [
        Caption("a.png", "a red fox", BY_HAND, "a fox, 8k"), found["b.png"], ROWS[2],
        Caption("d.png", "a cup, 8k", BY_HAND, "a cup, 8k"), found["new.png"],
    ]  # fmt: skip
    assert (merged.new, merged.changed, merged.gone) == (["new.png", "silent.png"], ["b.png"], [before["old.png"]])
    again = merge(["a.png", "d.png"], found, {one.file: one for one in merged.captions}, made)
    assert again.captions == [merged.captions[0], merged.captions[3]]


def test_a_picture_left_out_stays_left_out_when_its_text_changes():
    before = {"a.png": Caption("a.png", "a fox", "beside", "a fox", keep=False)}
    found = {"a.png": Caption("a.png", "a wolf", "beside", "a wolf")}
    assert merge(["a.png"], found, before, made).captions == [
        Caption("a.png", "a wolf", "beside", "a wolf", keep=False)
    ]


def test_accents_written_in_two_ways_are_one_picture(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"file": "cafe\u0301.png", "caption": "x"}))
    merged = merge(["cafe\u0301.png"], {}, read_ledger(path), made)
    assert merged.captions == [Caption("cafe\u0301.png", "x")] and not merged.new and not merged.gone
