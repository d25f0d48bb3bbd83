"""Folders that nothing can be learned from are refused in a sentence."""

from dataclasses import replace

import pytest

from data_fixtures import encoded, make_picture, noise
from mapo.captions.fit import refuse_unfit, told_of_style
from mapo.captions.ledger import Caption
from mapo.errors import MapoError

WORDS = ["a fox", "two cups", "a gate", "an owl", "a boat", "a wall"]


def fill(folder, pictures):
    for number, data in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(data)
    return [Caption(f"{n}.png", WORDS[n % len(WORDS)], "beside", "") for n in range(len(pictures))]


def different(count, size=(24, 16)):
    return [encoded(noise(number, size)) for number in range(count)]


def test_a_folder_of_different_whole_pictures_is_fit(tmp_path, heard):
    refuse_unfit(tmp_path, fill(tmp_path, different(5)), side=16)
    assert not heard()


def test_a_style_word_in_one_caption_of_many_is_told():
    captions = [
        *(Caption(f"{n}.png", word, "beside", "") for n, word in enumerate(WORDS)),
        Caption("h.png", "a hill, watercolor"),
    ]
    assert told_of_style(captions[:-1]) == [] == told_of_style([replace(captions[-1], keep=False)])
    (said,) = told_of_style(captions)
    assert said.startswith("1 caption says how the picture is drawn: h.png (“watercolor”).")
    several = [replace(one, caption=f"a sketch of {one.caption}") for one in captions]
    assert told_of_style(several)[0].startswith("7 captions say how the picture is drawn: 0.png (“sketch”), ")


def test_few_pictures_are_refused(tmp_path):
    captions = fill(tmp_path, different(6))
    refuse_unfit(tmp_path, captions[:2], fewest=2)
    with pytest.raises(MapoError, match="has 4 pictures with a caption, and 5 is the least to learn from. Add more."):
        refuse_unfit(tmp_path, captions[:4])
    left_out = [*captions[:4], Caption("4.png", "x", keep=False), Caption("5.png", "x", keep=False)]
    with pytest.raises(MapoError, match="has 4 pictures"):
        refuse_unfit(tmp_path, left_out)


def test_one_picture_in_many_copies_is_refused_whatever_its_file(tmp_path, heard):
    one = noise(1)
    copies = [encoded(one), encoded(one, compress_level=0), encoded(one, "BMP"), encoded(one, "WEBP", lossless=True)]
    captions = fill(tmp_path, [*copies, *different(1)])
    with pytest.raises(
        MapoError, match="5 pictures, of which 2 are different: 0.png is there 4 times .1.png, 2.png, 3.png"
    ):
        refuse_unfit(tmp_path, captions)
    refuse_unfit(tmp_path, captions, fewest=2)
    assert "0.png, 1.png, 2.png, 3.png are the same picture, which then counts 4 times" in heard()


def test_damaged_and_small_pictures_are_named(tmp_path):
    captions = fill(tmp_path, [*different(5), make_picture(size=(8, 40))])
    with pytest.raises(MapoError, match="1 picture has fewer than 16 pixels on a side: 5.png .8 × 40.. Put larger"):
        refuse_unfit(tmp_path, captions, side=16)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(
        MapoError, match="2 pictures are damaged: 1.png .it cannot be decoded.*, 2.png .it is empty.. Put"
    ):
        refuse_unfit(tmp_path, captions)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("watercolor of ", "“watercolor”"),
        ("an oil painting of ", "“oil painting”"),
        ("masterpiece, 8k, ", "“8k”, “masterpiece”"),
        ("in the style of Monet, ", "“in the style of monet”"),
    ],
)
def test_captions_that_all_say_the_style_are_refused(tmp_path, start, words):
    captions = fill(tmp_path, different(5))
    styled = [Caption(one.file, start + one.caption) for one in captions]
    with pytest.raises(MapoError, match=f"all 5 captions say {words}. .* nothing to learn from plain prompts"):
        refuse_unfit(tmp_path, styled)
    refuse_unfit(tmp_path, [*styled[:4], captions[4]])
