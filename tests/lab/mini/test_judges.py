"""Both judges on drawings of unseen scenes, and what is made of their verdicts."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from mapo.lab.mini.draw import UNSEEN, draw
from mapo.lab.mini.judge_learned import LearnedJudge, heads_for, train_judge, training_drawings
from mapo.lab.mini.judge_search import SearchJudge
from mapo.lab.mini.judges import JUDGES, Judge, accuracy, compare, disagreements, drawings, follows
from mapo.lab.mini.scenes import STYLES, Scene, Thing, canonical, caption, parse

World = tuple[list[Scene], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def world() -> World:
    return drawings("test", 152)


@pytest.fixture(scope="module", params=list(JUDGES))
def judge(request: pytest.FixtureRequest) -> Judge:
    return JUDGES[request.param]()


def softened(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 6, pictures.shape)
    return np.clip(gaussian_filter(pictures.astype(float), (0, 0.7, 0.7, 0)) + noise, 0, 255).astype(np.uint8)


def asked(prompt: str) -> Scene:
    scene = parse(prompt)
    assert scene is not None
    return scene


def test_a_judge_reads_drawings_of_scenes_that_no_training_saw(judge: Judge, world: World) -> None:
    right = accuracy(judge, *world)
    assert right["all"]["everything"] >= 0.98, right
    assert right["all"]["style"] == right["all"]["hazard"] == 1


def test_a_judge_reads_soft_and_noisy_drawings(judge: Judge, world: World) -> None:
    scenes, pictures = world
    assert accuracy(judge, scenes, softened(pictures))["all"]["everything"] >= 0.95


def test_a_verdict_is_canonical_and_does_not_depend_on_the_other_pictures(judge: Judge, world: World) -> None:
    pictures = world[1][:40]
    together = judge(pictures)
    assert together == [canonical(scene) for scene in together]
    assert together[-3:] == judge(pictures[-3:])
    assert judge(pictures[:0]) == []


def test_a_judge_sees_what_no_caption_would_ask_for(judge: Judge) -> None:
    scenes = [
        Scene((Thing("red", "star"), Thing("red", "circle")), "pink", "left of"),
        Scene((Thing("green", "heart"), Thing("blue", "heart")), "gray", "above", "cartoon"),
        Scene((Thing("blue", "cross", "large"),), "blue", style="sketch", hazard=True),
    ]
    assert judge(np.stack([draw(scene) for scene in scenes])) == scenes


def test_judges_are_named_as_they_are_listed_and_only_the_learned_one_needs_torch() -> None:
    assert {name: make().name for name, make in JUDGES.items()} == {name: name for name in JUDGES}
    code = (
        "import sys; from mapo.lab.mini.judges import JUDGES; JUDGES['mini-search'](); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_judge_that_is_told_of_a_fifth_style_sees_it_and_takes_no_other_for_it() -> None:
    styles = (*STYLES, UNSEEN)
    scenes, pictures = drawings("test", 60, styles=styles)
    assert {scene.style for scene in scenes} == set(styles)
    told = SearchJudge(styles)(pictures)
    assert [scene.style for scene in told] == [scene.style for scene in scenes]
    assert np.mean([follows(a, s) for a, s in zip(scenes, told, strict=True)]) >= 0.98
    assert UNSEEN not in {scene.style for scene in SearchJudge()(pictures)}


def test_a_judge_learns_a_fifth_style(tmp_path: Path) -> None:
    styles = (*STYLES, UNSEEN)
    train_judge(tmp_path / "judge.safetensors", steps=2, batch=4, styles=styles)
    judge = LearnedJudge(tmp_path / "judge.safetensors", styles)
    assert {scene.style for scene in judge(drawings("test", 10, styles=styles)[1])} <= set(styles)
    picture, labels = next(training_drawings(random.Random(0), (UNSEEN,)))
    assert picture.shape == (48, 48, 3) and labels[list(heads_for(styles)).index("style")] == 0


ONE = "a small red circle on a white background"
TWO = "a red circle left of a blue square on a white background"


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        (ONE, ONE),
        ("a red circle on a white background", ONE),
        (TWO, TWO),
        (TWO, "a blue square right of a red circle on a white background"),
        ("a small red circle left of a large blue square on a white background", TWO),
    ],
)
def test_a_picture_that_shows_all_that_was_asked_follows(prompt: str, seen: str) -> None:
    assert follows(asked(prompt), asked(seen))


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        (ONE, "a large red circle on a white background"),
        (ONE, "a small orange circle on a white background"),
        (ONE, "a small red heart on a white background"),
        (ONE, "a small red circle on a gray background"),
        (ONE, TWO),
        (TWO, ONE),
        (TWO, "a red circle right of a blue square on a white background"),
        (TWO, "a red circle above a blue square on a white background"),
        (TWO, "a blue circle left of a red square on a white background"),
    ],
)
def test_a_picture_that_shows_anything_else_does_not_follow(prompt: str, seen: str) -> None:
    assert not follows(asked(prompt), asked(seen))


def test_style_and_tape_do_not_matter_for_following() -> None:
    assert follows(asked(f"pixel art of {ONE} with hazard tape"), replace(asked(ONE), style="sketch"))


def test_the_judges_agree_on_drawings_and_say_which_prompts_were_followed(world: World) -> None:
    scenes, pictures = world
    prompts = [caption(scene) for scene in scenes[:40]]
    shares = compare(pictures[:40], prompts[:20] + prompts[:20][::-1])
    assert shares["everything"] >= 0.95
    assert shares["follows"] >= 0.95
    assert 0.45 <= shares["follows by mini-search"] <= 0.65
    assert "follows" not in compare(pictures[:4])


def test_disagreements_are_counted_and_drawn(world: World, tmp_path: Path) -> None:
    half_and_half = np.concatenate([world[1][:12, :, :24], world[1][12:24, :, 24:]], 2)
    count = disagreements(half_and_half, tmp_path / "differ.png")
    assert 0 < count <= 12
    assert np.asarray(Image.open(tmp_path / "differ.png")).std() > 10
    assert list(tmp_path.iterdir()) == [tmp_path / "differ.png"]
