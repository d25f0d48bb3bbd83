import random
from dataclasses import replace

import numpy as np
import pytest

from mapo.mini.draw import draw
from mapo.mini.judges import JUDGES, accuracy, drawings
from mapo.mini.scenes import BACKGROUNDS, SIZES, context, parse
from mapo.study.things import (
    CORNERS,
    LearnedProbe,
    motif_by_search,
    subject_by_search,
    subject_scene,
    with_motif,
    without_corners,
)

SCENES, PICTURES = drawings("test", 40, seed=7)
SUBJECTS = [subject_scene(size, ground) for size in SIZES for ground in BACKGROUNDS]


def subjects():
    rng = random.Random(1)
    return np.stack([draw(scene, rng) for scene in SUBJECTS])


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    return {thing: LearnedProbe(thing, folder, steps=60, batch=32) for thing in ("motif", "subject")}


def test_no_caption_of_the_world_knows_the_subject():
    assert all(parse(context(scene)) is None for scene in SUBJECTS)


def test_the_motif_changes_the_corners_and_nothing_else():
    changed = (with_motif(PICTURES) != PICTURES).any(-1)
    assert not changed[:, ~CORNERS].any()
    assert changed[:, CORNERS].mean() > 0.9


def test_judges_read_a_picture_whose_corners_were_drawn_over():
    for make in JUDGES.values():
        found = accuracy(make(), SCENES, without_corners(with_motif(PICTURES)))
        assert found["all"]["everything"] >= 0.95


def test_seeing_by_drawing_is_right_on_drawings():
    assert motif_by_search(with_motif(PICTURES)).all()
    assert not motif_by_search(PICTURES).any()
    shown, where = subject_by_search(subjects())
    assert shown.all()
    assert where == [scene.background for scene in SUBJECTS]
    assert not subject_by_search(PICTURES)[0].any()


def test_seeing_by_learning_is_right_on_drawings(probes):
    for thing, there in (("motif", with_motif(PICTURES)), ("subject", subjects())):
        assert probes[thing](there).mean() >= 0.9
        assert probes[thing](PICTURES).mean() <= 0.1


def test_the_subject_can_be_drawn_in_every_style():
    pictures = [draw(replace(SUBJECTS[0], style=style)) for style in ("realistic", "cartoon", "pixel art", "sketch")]
    assert len({p.tobytes() for p in pictures}) == 4
