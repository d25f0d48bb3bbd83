"""A prompt has one name and stands on one side for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapo.pairs.splits import SPLITS, normalise, prompt_id, split_of

WORDS = st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1), min_size=1)
SPACES = st.sampled_from([" ", "  ", "\t", "\n", "\u00a0", " \r\n "])


@given(WORDS, SPACES, SPACES, SPACES)
def test_white_space_does_not_change_a_prompt(words: list[str], before: str, between: str, after: str) -> None:
    spaced = before + between.join(words) + after
    assert normalise(spaced) == normalise(" ".join(words))
    assert prompt_id(spaced) == prompt_id(" ".join(words))
    assert split_of(spaced) == split_of(" ".join(words))


@given(st.text(st.characters(codec="ascii")))
def test_case_does_not_change_a_prompt(prompt: str) -> None:
    assert normalise(prompt.upper()) == normalise(prompt.lower()) == normalise(prompt)


@pytest.mark.parametrize(("one", "two"), [("straße", "STRASSE"), ("ΟΔΟΣ", "οδος"), ("cafe\u0301", "CAFÉ")])
def test_case_and_accents_do_not_change_a_prompt_in_other_languages(one: str, two: str) -> None:
    assert prompt_id(one) == prompt_id(two)
    assert split_of(one) == split_of(two)


@given(st.text(st.characters(codec="utf-8")))
def test_a_prompt_never_changes_sides(prompt: str) -> None:
    assert split_of(prompt) == split_of(prompt) in SPLITS
    assert len(prompt_id(prompt)) == 16
    assert set(prompt_id(prompt)) <= set("0123456789abcdef")


def test_the_names_and_sides_of_known_prompts_stay_as_they_were_published() -> None:
    known = {
        "a small red circle on a white background": ("b84c6e7b394df1a2", "train"),
        "A painting of an ocean": ("0b100b5291240057", "train"),
        "雪の中の熊": ("71f9a49c2c90e3fd", "train"),
        "prompt 5": ("94056d935c04d494", "train"),
    }
    assert {prompt: (prompt_id(prompt), split_of(prompt)) for prompt in known} == known


def test_the_sides_hold_80_10_and_10_percent() -> None:
    counts = Counter(split_of(f"prompt {k}") for k in range(10_000))
    assert counts["train"] == pytest.approx(8000, abs=160)  # four standard deviations
    assert counts["validation"] == pytest.approx(1000, abs=120)
    assert counts["test"] == pytest.approx(1000, abs=120)


def test_the_side_is_independent_of_the_name() -> None:
    prompts = [f"prompt {k}" for k in range(4000)]
    low = [p for p in prompts if int(prompt_id(p), 16) < 2**63]
    share = sum(split_of(p) == "train" for p in low) / len(low)
    assert share == pytest.approx(0.8, abs=0.04)
