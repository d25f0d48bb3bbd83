import random
from dataclasses import replace

import numpy as np
import pytest

from mapo.lab.mini.draw import draw
from mapo.lab.mini.judges import JUDGES, accuracy, drawings
from mapo.lab.mini.scenes import BACKGROUNDS, COLOURS, context, parse
from mapo.lab.study.subjects import (
    CORNERS,
    LearnedProbe,
    draw_subject,
    motif_by_learning,
    motif_by_search,
    subject_by_learning,
    subject_by_search,
    subject_scene,
    with_motif,
    without_corners,
)

pytestmark = pytest.mark.long

SUBJECTS = [subject_scene(colour, ground) for colour in COLOURS for ground in BACKGROUNDS if colour != ground]


@pytest.fixture(scope="module")
def drawn():
    """Scenes and their pictures."""
    return drawings("test", 40, seed=7)


@pytest.fixture(scope="module")
def ordinary(drawn):
    return drawn[1]


def subjects():
    rng = random.Random(1)
    return np.stack([draw(scene, rng) for scene in SUBJECTS])


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    return {thing: LearnedProbe(thing, folder, steps, batch=24) for thing, steps in (("motif", 40), ("subject", 120))}


def test_no_caption_of_the_world_knows_the_subject():
    assert all(parse(context(scene)) is None for scene in SUBJECTS)


def test_the_motif_changes_the_corners_and_nothing_else(ordinary):
    changed = (with_motif(ordinary) != ordinary).any(-1)
    assert not changed[:, ~CORNERS].any()
    assert changed[:, CORNERS].mean() > 0.9


def test_judges_read_a_picture_whose_corners_were_drawn_over(drawn):
    scenes, pictures = drawn
    for make in JUDGES.values():
        found = accuracy(make(), scenes, without_corners(with_motif(pictures)))
        assert found["all"]["everything"] >= 0.95


def test_seeing_by_drawing_is_right_on_drawings(ordinary):
    assert motif_by_search(with_motif(ordinary)).all()
    assert not motif_by_search(ordinary).any()
    assert subject_by_search(subjects()) == SUBJECTS
    assert subject_by_search(ordinary) == [None] * len(ordinary)


def test_seeing_by_learning_is_right_on_drawings(probes, ordinary):
    assert motif_by_learning(with_motif(ordinary), probes["motif"]).mean() >= 0.9
    assert motif_by_learning(ordinary, probes["motif"]).mean() <= 0.1
    found = subject_by_learning(subjects(), probes["subject"])
    assert np.mean([one == asked for one, asked in zip(found, SUBJECTS, strict=True)]) >= 0.9
    assert np.mean([one is None for one in subject_by_learning(ordinary, probes["subject"])]) >= 0.9


def test_both_ways_of_seeing_say_what_a_broken_subject_is_nearer_to(probes):
    rng = random.Random(5)
    broken = [draw_subject(rng, whole=False) for _ in range(80)]
    pictures, right = np.stack([p for p, _ in broken]), np.array([labels[0] == 1 for _, labels in broken])
    assert 0.2 < right.mean() < 0.8
    for seen in (subject_by_search(pictures), subject_by_learning(pictures, probes["subject"])):
        assert (np.array([one is not None for one in seen]) == right).mean() >= 0.8


def test_the_subject_can_be_drawn_in_every_style():
    pictures = [draw(replace(SUBJECTS[0], style=style)) for style in ("realistic", "cartoon", "pixel art", "sketch")]
    assert len({p.tobytes() for p in pictures}) == 4
