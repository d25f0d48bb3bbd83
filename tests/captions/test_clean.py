"""Captions lose what only programs read, and the style words; what a person wrote in brackets stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapo.captions.clean import clean_caption, without_grammar


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("a (red:1.2) fox, ((snow)), [gate]", "a red fox, snow, gate"),
        ("((a (red:1.3) fox:0.8))", "a red fox"),
        (r"hatsune miku \(vocaloid\), (1girl)", "hatsune miku (vocaloid), 1girl"),
        (r"(miku \(vocaloid\):1.2)", "miku (vocaloid)"),
        ("a fox <lora:detail-tweaker_v2:0.7>, snow <lyco:x:1:lbw=a,b><hypernet:y:1>", "a fox , snow".replace(" ,", ",")),
        ("a fox BREAK a gate", "a fox, a gate"),
        ("a fox :1.2 AND a gate :0.8", "a fox, a gate"),
        ("A FOX AND A GATE", "A FOX AND A GATE"),
        ("a fox, embedding:EasyNegative, (embedding:x/y:1.2), snow", "a fox, snow"),
        ("a __colour__ fox", "a fox"),
        ("snake_case __init__", "snake_case"),
        ("[dog:fox:0.5] in snow", "fox in snow"),
        ("[fox:0.5] in snow", "fox in snow"),
        ("[fox::0.5] in snow", "fox in snow"),
        ("a [red|white] fox", "a red and white fox"),
        ("a {red|white} fox, {{snow}}", "a {red|white} fox, snow"),
        ("1.2::a fox::, -0.5::snow::", "a fox, snow"),
        ("a frame (16:9)", "a frame 16:9"),
        ("a fox :) in (snow", "a fox :) in (snow"),
        ("a fox\nin  snow,, , gate,", "a fox in snow, gate"),
    ],
)  # fmt: skip
def test_the_grammar_of_programs_goes(raw, plain):
    assert without_grammar(raw) == plain


@pytest.mark.parametrize(
    ("raw", "of_program", "caption"),
    [
        ("masterpiece, best quality, (a red fox:1.2), 8k", True, "a red fox"),
        ("an oil painting of a fox (left) and a dog", False, "a fox (left) and a dog"),
        ("a fox (left) and a dog", True, "a fox left and a dog"),
        ("a fox (left) and a (dog:1.1)", False, "a fox left and a dog"),
        ("a screen (16:9)", False, "a screen (16:9)"),
        ("masterpiece, (best quality:1.2), 8k", True, ""),
    ],
)
def test_a_caption_is_what_a_person_would_say(raw, of_program, caption):
    assert clean_caption(raw, of_program) == caption


@given(st.text(alphabet="ab(){}[]:\\,<>lor 0.15|_AND\n", max_size=80))
def test_any_text_is_cleaned(text):
    assert "\n" not in clean_caption(text, True)


def test_long_and_deep_texts_take_no_long_time():
    for text in (
        "(" * 20_000 + "a" + ")" * 20_000,
        "[a|" * 20_000,
        "(a:1.2)" * 20_000,
        "1::" * 20_000,
        "<lora:" * 20_000,
    ):
        without_grammar(text)
