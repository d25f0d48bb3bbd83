"""A folder of drawings with captions, as somebody's own pictures would lie."""

import pytest
from PIL import Image

from mapo.captions.folder import read_captions
from mapo.errors import MapoError
from mapo.lab.mini import scenes
from mapo.lab.mini.pictures import write_pictures


def test_every_drawing_has_a_caption_of_its_own_that_does_not_say_the_style(tmp_path):
    assert write_pictures(tmp_path / "a", "cartoon", 9) == 9
    found = read_captions(tmp_path / "a")
    assert len({one.caption for one in found}) == 9
    assert all(scenes.parse(one.caption) and "cartoon" not in one.caption for one in found)
    write_pictures(tmp_path / "b", "cartoon", 9)
    write_pictures(tmp_path / "c", "sketch", 9, seed=1)
    pixels = [(tmp_path / name / "001.png").read_bytes() for name in "abc"]
    assert pixels[0] == pixels[1] != pixels[2] and Image.open(tmp_path / "a" / "001.png").size == (48, 48)


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(tmp_path):
    for how, why in (
        (("kartoon", 9), "There is no style 'kartoon'. Did you mean 'cartoon'?"),
        (("cartoon", 0), "--pictures 0: give 1 to"),
        (("cartoon", 9999), "--pictures 9999: give 1 to"),
    ):
        with pytest.raises(MapoError, match=why.replace("?", "[?]")):
            write_pictures(tmp_path / "a", *how)
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with pytest.raises(MapoError, match="is there already"):
        write_pictures(tmp_path / "a", "cartoon", 9)
