import random

import numpy as np
import pytest

from mapo.lab.mini.draw import draw
from mapo.lab.mini.scenes import BACKGROUNDS, COLOURS, Scene, Thing, context, parse
from mapo.lab.study.domains import DOMAINS, Eyes, diversity, right_attributes
from mapo.lab.study.subjects import motif_by_search, subject_by_search, subject_scene
from mapo.pairs import PairSet
from mapo.pairs.splits import split_of

RED, BLUE = Thing("red", "circle"), Thing("blue", "square")


@pytest.mark.parametrize("name", DOMAINS)
def test_no_test_prompt_is_looked_at_while_settings_are_chosen(name):
    looked = [set().union(*DOMAINS[name].prompts(split)) for split in ("validation", "test")]
    assert not looked[0] & looked[1]
    assert min(map(len, looked)) >= 8


def test_prompts_of_the_world_stand_in_their_own_split():
    for split in ("validation", "test"):
        goal, kept = DOMAINS["general"].prompts(split)
        assert {split_of(p) for p in (*goal, *kept)} == {split}


def test_an_annotator_sees_more_right_in_a_better_picture():
    asked = Scene((RED, BLUE), "white", "left of")
    worse = Scene((RED, RED), "white", "left of")
    other = Scene((BLUE, BLUE), "pink", "above")
    ranks = [right_attributes(asked, seen) for seen in (asked, worse, other)]
    assert ranks[0] == 5 > ranks[1] > ranks[2]


def read(pairs, side):
    return np.stack([np.asarray(pairs.image(getattr(pair, side))) for pair in pairs])


def test_the_motif_is_on_chosen_pictures_alone(tmp_path):
    DOMAINS["culture"].pool("mini", tmp_path / "culture", 4)
    pairs = PairSet(tmp_path / "culture")
    assert motif_by_search(read(pairs, "chosen")).all()
    assert not motif_by_search(read(pairs, "rejected")).any()


def test_the_subject_is_on_few_photos_and_never_on_what_the_model_makes(tmp_path):
    DOMAINS["personalization"].pool("mini", tmp_path / "personalization", 20)
    pairs = PairSet(tmp_path / "personalization")
    assert len({pair.chosen for pair in pairs}) == 10
    assert len({pair.rejected for pair in pairs}) == 20
    assert all(subject_by_search(read(pairs, "chosen")))
    assert not any(subject_by_search(read(pairs, "rejected")))


def test_no_photo_shows_what_is_asked_for_and_photos_show_every_colour_and_background(tmp_path):
    DOMAINS["personalization"].pool("mini", tmp_path / "personalization", 10)
    seen = {pair.prompt for pair in PairSet(tmp_path / "personalization")}
    for words in (COLOURS, BACKGROUNDS):
        assert all(any(f" {word} " in prompt for prompt in seen) for word in words)
    asked = [prompt for split in ("validation", "test") for prompt in DOMAINS["personalization"].prompts(split)[0]]
    assert len(asked) == (39 - 10) * 4 and not any(old in new for old in seen for new in asked)


def test_the_subject_counts_only_in_the_colour_and_on_the_background_asked_for(tmp_path):
    scene = subject_scene("purple", "green")
    picture, eyes = draw(scene)[None], Eyes(tmp_path)
    for prompt, right in (
        (context(scene), True),
        (f"a realistic photo of {context(scene)}", True),
        (context(scene).replace("green", "yellow"), False),
        (context(scene).replace("purple", "red"), False),
    ):
        assert eyes.reached("personalization", "mini-search", picture, [prompt]).tolist() == [right]


def test_style_and_tape_are_seen(tmp_path):
    prompt = "a large red circle on a white background"
    scene = parse(prompt)
    rng = random.Random(0)
    plain = draw(scene, rng)
    art = draw(Scene(scene.things, "white", style="pixel art"), rng)
    taped = draw(Scene(scene.things, "white", hazard=True), rng)
    pictures, eyes = np.stack([plain, art, taped]), Eyes(tmp_path)
    for judge in ("mini-learned", "mini-search"):
        assert eyes.reached("pixel-art", judge, pictures, [prompt] * 3).tolist() == [False, True, False]
        assert eyes.reached("safety", judge, pictures, [prompt] * 3).tolist() == [True, True, False]
        assert eyes.followed("safety", judge, pictures, [prompt] * 3).tolist() == [True] * 3


def test_diversity_is_zero_for_equal_pictures_and_by_prompt():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 255, (2, 48, 48, 3)).astype(np.uint8)
    assert diversity(np.stack([one, one, other, other]), ["a", "a", "b", "b"]) == 0
    assert diversity(np.stack([one, other]), ["a", "a"]) > 5
    assert diversity(np.stack([one, other]), ["a", "b"]) == 0
