"""Every photo has a caption with the token: its own, or a template; what a person writes into the file stays."""

import json

import pytest
from PIL import Image

from mapo.captions.ledger import write_ledger
from mapo.errors import MapoError
from mapo.personalize.captions import captions_in
from mapo.personalize.words import Words

WORDS = Words("<rex>", "dog", ("a photo of a {}", "a {} at home"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("a dog in (the snow:1.2)")
    (folder / "2.txt").write_text("my pet on a sofa")
    return folder


def test_a_photo_without_the_class_word_gets_a_template_and_its_own_caption_is_named(photos, tmp_path):
    found = captions_in(photos, WORDS, tmp_path / "captions.jsonl")
    assert [one.caption for one in found.captions] == [
        "a photo of a <rex>", "a <rex> in the snow", "a photo of a <rex>", "a <rex> at home", "a photo of a <rex>",
    ]  # fmt: skip
    assert [one.source for one in found.captions] == ["template", "beside", "template", "template", "template"]
    assert found.silent == ["2.png"]


def test_a_line_that_a_person_changed_stays_and_one_without_the_token_is_refused(photos, tmp_path):
    ledger = tmp_path / "captions.jsonl"
    write_ledger(ledger, captions_in(photos, WORDS, ledger).captions)
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    lines[2]["caption"] = "<rex> on a sofa"
    lines[4]["keep"] = False
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = captions_in(photos, WORDS, ledger)
    assert found.captions[2].caption == "<rex> on a sofa" and not found.captions[4].keep and found.silent == []
    other = Words("<rex>", "dog", ("a picture of a {}",))
    assert captions_in(photos, other, ledger).captions[0].caption == "a picture of a <rex>"
    lines[3]["caption"] = "a dog at home"
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        MapoError, match="1 caption does not have <rex>: 3.png. Write it where the word dog would stand"
    ):
        captions_in(photos, WORDS, ledger)
