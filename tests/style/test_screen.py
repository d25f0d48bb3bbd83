"""Pictures are looked at by a safety scorer that is at hand, and captions that could mean minors are refused with it."""

import json

import pytest

from data_fixtures import noise
from mapo.captions.ledger import Caption
from mapo.errors import MapoError
from mapo.score.scorers import choice, load_scorer
from mapo.style import screen
from mapo.style.screen import refuse_minors, screened_before, screener, screening, unsafe_in
from mapo.style.stages import StageLedger

SAID = {"a.png": "two cups", "b.png": "a girl with a kite"}


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(SAID):
        noise(number, (64, 48)).convert("RGB").save(tmp_path / name)
    return tmp_path


def captions(names=SAID):
    return [Caption(name, SAID[name]) for name in names]


def test_the_scorers_numbers_are_told_and_kept_and_no_picture_is_looked_at_twice(folder, tmp_path, monkeypatch):
    ledger, out = StageLedger(tmp_path / "out", {}), tmp_path / "out"
    stage = screening(folder, "nsfw", out, captions, lambda: ["the pictures"])
    assert screened_before([stage], ledger, folder, captions()) == ["nsfw takes none of 2 pictures for unsafe"]
    pictures = [noise(k, (64, 48)).convert("RGB") for k in range(2)]
    values = load_scorer("nsfw")(pictures, ["", ""])["nsfw"]
    monkeypatch.setattr(screen, "load_scorer", None)  # which would fail
    assert ledger.run(stage) == "nsfw takes none of 2 pictures for unsafe"
    assert list(json.loads((out / "screen.json").read_text())["pictures"].values()) == pytest.approx(values)
    screen.LOOKED_AT.clear()
    assert screened_before([stage], ledger, folder, captions()) == ["nsfw takes none of 2 pictures for unsafe"]


def test_what_looks_unsafe_is_named_before_and_refused_with_words_for_minors(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(screen, "UNSAFE", -1.0)
    stage = screening(folder, "nsfw", tmp_path / "out", captions, list)
    said, warning = screened_before([stage], StageLedger(tmp_path / "out", {}), folder, captions(["a.png"]))
    assert said.startswith("nsfw takes 1 of 1 picture for unsafe: a.png (0.0")
    assert "1 picture looks unsafe to nsfw: a.png" in warning and "leaves a picture out" in warning
    with pytest.raises(
        MapoError, match="nsfw takes pictures for unsafe, and 1 caption could mean minors: b.png .“girl”"
    ):
        screened_before([stage], StageLedger(tmp_path / "out", {}), folder, captions())
    assert not (tmp_path / "out").exists()


def test_pictures_that_looked_unsafe_are_found_again_and_none_where_nobody_looked(tmp_path):
    assert unsafe_in(tmp_path) == set()
    (tmp_path / "screen.json").write_text(json.dumps({"by": "nsfw", "pictures": {"a.png": 0.2, "more/b.png": 0.9}}))
    assert unsafe_in(tmp_path) == {"more/b.png"}


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
