"""The token stands where the class word would, and the other way round."""

import pytest

from mapo.errors import MapoError
from mapo.personalize.words import Words, own_lines, read_templates

REX = Words("<rex>", "dog", ("a photo of a {}",))
OWL = Words("<my-owl>", "owl", ("a photo of a {}",))


@pytest.mark.parametrize(
    ("said", "of_subject", "of_class"),
    [
        ("a black dog on a dog bed", "a black <rex> on a dog bed", "a black dog on a dog bed"),
        ("My Dog sleeps", "My <rex> sleeps", "My dog sleeps"),
        ("a <rex> and a cat", "a <rex> and a cat", "a dog and a cat"),
        ("an old <REX>", "an old <REX>", "an old dog"),
        ("a dogged man", None, "a dogged man"),
    ],
)
def test_a_caption_of_the_class_becomes_one_of_the_subject_and_back(said, of_subject, of_class):
    assert REX.of_subject(said) == of_subject
    assert REX.of_class(of_subject or said) == of_class


def test_a_or_an_before_the_class_word_is_as_it_wants():
    assert OWL.of_class("a photo of a <my-owl> beside A <my-owl>") == "a photo of an owl beside an owl"
    assert REX.of_class("an <rex>") == "a dog"


def test_templates_are_lines_with_one_place_for_the_word(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}\n\n  the {} at home \n")
    assert read_templates(str(file)) == ("a photo of a {}", "the {} at home")
    assert len(read_templates(None)) == len(set(read_templates(None))) >= 5
    assert all(line.count("{}") == 1 for line in (*read_templates(None), *own_lines("shown.txt")))
    for text, said in (
        ("a photo\n", "line 1 must have {} once"), ("a {}\na {} and a {}\n", "line 2 must have"), ("\n", "is empty"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(MapoError, match=said):
            read_templates(str(file))
    with pytest.raises(MapoError, match="cannot be read"):
        read_templates(str(tmp_path / "nowhere.txt"))


def test_words_that_cannot_be_told_apart_are_refused():
    with pytest.raises(MapoError, match="--class is empty"):
        Words("<rex>", " ", ())
    with pytest.raises(MapoError, match="are both dog. Take another token, such as <dog>"):
        Words("dog", "dog", ())
