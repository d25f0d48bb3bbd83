"""Pictures are looked at by a safety scorer that is at hand, and captions that could mean minors are refused with it."""

import json

import pytest

from data_fixtures import noise
from mapo.captions.ledger import Caption
from mapo.errors import MapoError
from mapo.score.scorers import choice, load_scorer
from mapo.style import screen
from mapo.style.screen import refuse_minors, screener

SAID = {"a.png": "two cups", "b.png": "a girl with a kite"}


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(SAID):
        noise(number, (64, 48)).convert("RGB").save(tmp_path / name)
    return tmp_path


def captions(names=SAID):
    return [Caption(name, SAID[name]) for name in names]


def test_the_scorers_numbers_are_kept_and_what_looks_unsafe_is_named(folder, monkeypatch, heard):
    said = screen.screen(folder, captions(), "nsfw", folder / "screen.json")
    assert said == "nsfw takes none of 2 pictures for unsafe" and heard() == ""
    pictures = [noise(k, (64, 48)).convert("RGB") for k in range(2)]
    values = load_scorer("nsfw")(pictures, ["", ""])["nsfw"]
    assert list(json.loads((folder / "screen.json").read_text())["pictures"].values()) == pytest.approx(values)
    monkeypatch.setattr(screen, "UNSAFE", -1.0)
    said = screen.screen(folder, captions(["a.png"]), "nsfw", folder / "screen.json")
    assert said.startswith("nsfw takes 1 of 1 picture for unsafe: a.png (0.0")
    assert "1 picture looks unsafe to nsfw: a.png" in heard()
    (folder / "screen.json").unlink()
    with pytest.raises(
        MapoError, match="nsfw takes pictures for unsafe, and 1 caption could mean minors: b.png .“girl”"
    ):
        screen.screen(folder, captions(), "nsfw", folder / "screen.json")
    assert not (folder / "screen.json").exists()


def test_what_a_program_wrote_counts_as_the_caption_does_and_what_is_left_out_does_not(folder):
    raw = Caption("a.png", "a person", raw="a girl, masterpiece")
    with pytest.raises(MapoError, match="a.png .“girl”"):
        refuse_minors(folder, [raw], "why")
    refuse_minors(folder, [Caption("b.png", "a girl", keep=False), Caption("a.png", "two cups")], "why")


def test_the_first_safety_scorer_at_hand_looks_and_none_where_there_is_none(monkeypatch):
    for here, named in (({"nsfw", "safety"}, "nsfw"), ({"safety"}, "safety"), (set(), None)):
        monkeypatch.setattr(screen, "lacks", lambda name, here=here: None if name in here else "")
        assert screener() == named
    assert choice.lacks("guards") is None
