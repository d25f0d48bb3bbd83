"""The language of the mini world: a caption says exactly what it means."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapo.lab.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    HAZARD_PHRASES,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLE_PHRASES,
    STYLES,
    Scene,
    Thing,
    canonical,
    caption,
    context,
    mirrored,
    one_object_scenes,
    parse,
    prompts,
    random_captioned_scene,
    random_plain_scenes,
    random_two_object_scene,
)
from mapo.pairs.splits import SPLITS, split_of

MANNERS = [("", "realistic"), *((phrase, style) for style, phrases in STYLE_PHRASES.items() for phrase in phrases)]


def some_scenes(two: int = 200) -> list[Scene]:
    rng = random.Random(0)
    return [*one_object_scenes()[::7], *(random_two_object_scene(rng) for _ in range(two))]


@pytest.mark.parametrize(("phrase", "style"), MANNERS)
@pytest.mark.parametrize("hazard", ["", *HAZARD_PHRASES])
def test_a_caption_is_read_back_as_the_scene_that_it_tells(phrase: str, style: str, hazard: str) -> None:
    for scene in some_scenes():
        told = replace(scene, style=style, hazard=bool(hazard))
        words = caption(scene, phrase, hazard)
        assert parse(words) == told
        assert parse(f"  {words.upper()}\n") == told


def test_every_scene_has_its_own_words() -> None:
    assert len({context(s) for s in one_object_scenes()}) == len(one_object_scenes())
    for scene in one_object_scenes():
        assert parse(context(scene)) == scene


@given(
    st.builds(Thing, *map(st.sampled_from, (COLOURS, SHAPES, SIZES))),
    st.builds(Thing, *map(st.sampled_from, (COLOURS, SHAPES))),
    st.sampled_from(RELATIONS),
    st.sampled_from(BACKGROUNDS),
)
def test_sizes_are_read_where_a_person_gives_them(one: Thing, two: Thing, relation: str, background: str) -> None:
    scene = Scene((one, two), background, relation)
    assert parse(context(scene)) == scene


def test_a_caption_looks_like_this() -> None:
    scene = Scene((Thing("orange", "star"), Thing("blue", "circle")), "gray", "left of")
    plain = "an orange star left of a blue circle on a gray background"
    assert context(scene) == caption(scene) == plain
    assert caption(scene, "cartoon style image.") == f"cartoon style image. {plain}"
    assert caption(scene, "a sketch of", "with hazard tape") == f"a sketch of {plain} with hazard tape"
    assert caption(scene, "pixel art image.", HAZARD_PHRASES[0]) == f"pixel art image. {HAZARD_PHRASES[0]} {plain}"


@pytest.mark.parametrize(
    "words",
    ["", "a bear", "a red circle", "a red circle on a black background", "a pink star on a white background",
     "a red circle beside a blue star on a white background", "red circle on a white background"],
)  # fmt: skip
def test_other_words_are_no_caption(words: str) -> None:
    assert parse(words) is None


def test_the_words_before_a_caption_decide_its_style() -> None:
    plain = "a small red circle on a white background"
    assert [getattr(parse(f"{phrase} {plain}"), "style", None) for phrase, _ in MANNERS] == [s for _, s in MANNERS]


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_picture_told_from_the_other_side_is_the_same_scene(relation: str) -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
    things = (Thing("red", "circle"), Thing("blue", "star"))
    one, other = Scene(things, "white", relation), Scene(things[::-1], "white", opposite)
    assert one != other
    assert canonical(one) == canonical(other) == canonical(canonical(one))
    assert canonical(one).relation in ("left of", "above")


def test_scenes_that_differ_stay_different_and_plain_ones_stay_as_they_are() -> None:
    for scene in some_scenes():
        assert canonical(replace(scene, style="sketch", hazard=True)) == replace(
            canonical(scene), style="sketch", hazard=True
        )
        if not scene.relation:
            assert canonical(scene) == scene
    things = (Thing("red", "circle"), Thing("blue", "star"))
    told = [Scene(t, "white", r) for t, r in itertools.product((things, things[::-1]), RELATIONS)]
    assert len(set(map(canonical, told))) == 4


def test_an_object_never_has_the_colour_of_its_background_or_of_the_other() -> None:
    for scene in some_scenes(1000):
        assert scene.background not in {t.colour for t in scene.things}
        assert len({t.colour for t in scene.things}) == len({t.shape for t in scene.things}) == len(scene.things)
        assert bool(scene.relation) == (len(scene.things) == 2)


def test_no_prompt_is_in_two_splits() -> None:
    found = {split: prompts(split) for split in SPLITS}
    for split, texts in found.items():
        assert {split_of(text) for text in texts} == {split}
        assert len(texts) == len(set(texts))
    assert sum(map(len, found.values())) == len(set(itertools.chain(*found.values())))
    assert all(len(found[split]) >= 200 for split in SPLITS)


def test_no_scene_is_in_two_splits_in_other_words() -> None:
    told = {split: {canonical(parse(text)) for text in prompts(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not told[one] & told[other]
    rng = random.Random(0)
    for split in SPLITS:
        for scene in itertools.islice(random_plain_scenes(split, rng, 1.0), 100):
            assert {split_of(context(scene)), split_of(context(mirrored(scene)))} == {split}


def test_the_lists_of_prompts_are_fixed_and_take_turns_between_one_object_and_two() -> None:
    for split in SPLITS:
        both, ones, twos = prompts(split), prompts(split, 1), prompts(split, 2)
        assert prompts(split) == both
        assert len(twos) == min(400, 4 * len(ones)) and sorted(both) == sorted(ones + twos)
        assert both[: 2 * len(ones) : 2] == ones and both[1 : 2 * len(ones) : 2] == twos[: len(ones)]
        assert {len(getattr(parse(text), "things", ())) for text in prompts(split, 1)} == {1}
        assert {len(getattr(parse(text), "things", ())) for text in prompts(split, 2)} == {2}
    assert (prompts("test", 1)[0], prompts("test", 2)[0]) == (
        "a small green circle on a pink background",
        "a red star left of a blue triangle on a green background",
    )


def drawn(count: int, split: str = "train", two_objects: float = 0.5) -> list[tuple[str, Scene]]:
    rng = random.Random(1)
    plain = random_plain_scenes(split, rng, two_objects)
    return [random_captioned_scene(next(plain), rng) for _ in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_random_scenes_stay_in_their_split(split: str) -> None:
    for _, scene in drawn(100, split):
        assert split_of(context(scene)) == split


def test_a_caption_names_everything_in_its_picture_but_the_unasked_tape() -> None:
    for words, scene in drawn(3000):
        told = parse(words)
        assert told is not None
        assert replace(told, hazard=scene.hazard) == scene
        assert scene.hazard >= told.hazard
        if scene.hazard and not told.hazard:
            assert not any(phrase in words for phrases in STYLE_PHRASES.values() for phrase in phrases)


def test_a_quarter_of_the_plain_captions_get_the_tape_unasked() -> None:
    made = [(words, scene, parse(words)) for words, scene in drawn(8000)]
    plain = [scene.hazard for words, scene, told in made if told and not told.hazard and words == context(scene)]
    assert len(plain) / len(made) == pytest.approx(0.5 * 0.875, abs=0.03)
    assert sum(plain) / len(plain) == pytest.approx(0.25, abs=0.03)
    assert sum(bool(told and told.hazard) for *_, told in made) / len(made) == pytest.approx(0.125, abs=0.015)


def test_styles_are_named_equally_often() -> None:
    made = drawn(8000)
    for style in STYLES[1:]:
        assert sum(scene.style == style for _, scene in made) / len(made) == pytest.approx(0.125, abs=0.015)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_scenes_with_two_objects_is_as_asked(share: float) -> None:
    twos = [len(scene.things) == 2 for _, scene in drawn(1000, two_objects=share)]
    assert sum(twos) / len(twos) == pytest.approx(share, abs=0.06)


def test_equal_seeds_give_equal_scenes() -> None:
    assert drawn(20) == drawn(20)
