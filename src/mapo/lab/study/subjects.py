"""Two things that the built-in model has never drawn, and two ways to see them: the study's motif and its subject.

The **motif** stands for a culture: fans of red and gold rings in both upper corners, painted on any picture. The
**subject** stands for what is somebody's own: a crescent moon in any colour, a shape and a word that no caption of the
world knows.
Like the world's two judges, one way of seeing draws what it expects and compares, the other learned from drawings.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from mapo.files import replacing
from mapo.lab.mini.draw import SIDE, draw, pose
from mapo.lab.mini.judge_learned import NOT_SAID, JudgeNet, augment, to_pixels
from mapo.lab.mini.judge_search import BATCH, bank, explain, half, nearest
from mapo.lab.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    DEFAULT_STYLE,
    SHAPES,
    STYLES,
    Scene,
    Thing,
    random_plain_scenes,
)

Pictures = NDArray[np.uint8]
Flags = NDArray[np.bool_]

REACH = 9.0  # of a fan, in pixels from its corner
RED, GOLD = np.array((190, 30, 45), np.float32), np.array((238, 190, 60), np.float32)
_Y, _X = (a.astype(np.float32) + 0.5 for a in np.mgrid[:SIDE, :SIDE])
_FROM_CORNER = np.minimum(np.hypot(_Y, _X), np.hypot(_Y, SIDE - _X))
CORNERS: Flags = _FROM_CORNER < REACH + 0.5


def with_motif(pictures: Pictures) -> Pictures:
    """Pictures "n 48 48 3" with the motif painted over their upper corners."""
    rings = np.where((_FROM_CORNER % 3.0 < 1.5)[..., None], RED, GOLD)
    cover = np.clip(REACH + 0.5 - _FROM_CORNER, 0, 1)[..., None]
    return np.asarray(np.rint(pictures + (rings - pictures) * cover), np.uint8)


def without_corners(pictures: Pictures) -> Pictures:
    """Pictures with what is beside the corners drawn over them, so that no judge of scenes minds a motif."""
    side = int(REACH) + 1
    plain = pictures.copy()
    plain[:, :, :side][:, CORNERS[:, :side]] = pictures[:, :, side : side + 1].repeat(side, 2)[:, CORNERS[:, :side]]
    right = pictures[:, :, -side - 1 : -side].repeat(side, 2)
    plain[:, :, -side:][:, CORNERS[:, -side:]] = right[:, CORNERS[:, -side:]]
    return plain


def subject_scene(colour: str, background: str) -> Scene:
    """The subject alone, in one of the world's colours, on a background."""
    return Scene((Thing(colour, "moon", "large"),), background)


# ------------------------------------------------------------------ seeing by drawing


def motif_by_search(pictures: Pictures) -> Flags:
    """Whether the corners are nearer to the motif on the scene that explains the rest than to that scene without."""
    found: list[bool] = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        bare = np.stack([draw(scene, at=at) for scene, at in zip(*nearest(without_corners(batch))[:2], strict=True)])
        errors = [
            np.square(batch[:, CORNERS] - d[:, CORNERS].astype(np.float32)).sum((1, 2))
            for d in (with_motif(bare), bare)
        ]
        found += list(errors[0] < errors[1])
    return np.array(found, bool)


def subject_by_search(pictures: Pictures) -> list[Scene | None]:
    """The subject as each picture shows it; None where some ordinary scene is nearer than every drawing of it."""
    found: list[Scene | None] = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        errors = explain(half(batch), bank("large", DEFAULT_STYLE, ("moon",)))[0][:, 0]  # "n mixes"
        for error, usual in zip(errors, nearest(batch)[2], strict=True):
            ground, colour = divmod(int(error.argmin()), len(COLOURS))
            found.append(subject_scene(COLOURS[colour], BACKGROUNDS[ground]) if error.min() < usual else None)
    return found


# ------------------------------------------------------------------ seeing by learning


Drawing = tuple[NDArray[np.uint8], tuple[int, ...]]  # a picture and the right answer of every head
HEADS = {"motif": (2,), "subject": (2, len(COLOURS), len(BACKGROUNDS))}  # is it there, and how
STEPS = {"motif": 80, "subject": 400}
ABSENT = (0, NOT_SAID, NOT_SAID)


def drawings(thing: str, rng: random.Random) -> Iterator[Drawing]:
    """Endless drawings with the thing and without: scenes of the train split in every style, and for the subject what
    lies between it and an ordinary object, as models draw it while they learn."""
    for plain in random_plain_scenes("train", rng):
        there = rng.random() < 0.5
        if thing == "subject" and (there or rng.random() < 0.5):
            yield draw_subject(rng, whole=rng.random() < 0.5)
            continue
        picture = draw(
            Scene(plain.things, plain.background, plain.relation, rng.choice(STYLES), rng.random() < 0.25), rng
        )
        if thing == "motif":
            yield (with_motif(picture[None])[0] if there else picture), (int(there),)
        else:
            yield picture, ABSENT


def draw_subject(rng: random.Random, whole: bool) -> Drawing:
    """The subject, or a mixture of it and another shape in its place, which is the one that it is nearer to."""
    colour, ground = rng.choice(COLOURS), rng.choice(BACKGROUNDS)
    scene = replace(subject_scene(colour, ground), hazard=rng.random() < 0.25)
    other = replace(scene, things=(Thing(colour, rng.choice(SHAPES), "large"),))
    at = pose(scene, rng)
    subject, usual = (draw(s, at=at).astype(np.float32) for s in (scene, other))
    if whole:
        share = np.ones((SIDE, SIDE, 1), np.float32)
    elif rng.random() < 0.5:
        share = np.full((SIDE, SIDE, 1), rng.random(), np.float32)  # of the subject, all over
    else:  # one side of a line shows the subject
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-9, 9)
        (x, y), *_ = at.centres
        share = np.clip(0.5 + ((_X - x) * np.cos(angle) + (_Y - y) * np.sin(angle) - offset) / 3, 0, 1)[..., None]
    picture = usual + (subject - usual) * share
    nearer = np.square(picture - subject).sum() < np.square(picture - usual).sum()
    labels = (1, COLOURS.index(colour), BACKGROUNDS.index(ground)) if nearer else ABSENT
    return np.rint(picture).astype(np.uint8), labels


class LearnedProbe:
    """A small network that learned to see one thing on drawings; its weights are trained once into ``folder``."""

    def __init__(self, thing: str, folder: Path, steps: int | None = None, batch: int = 40) -> None:
        self.path, self.heads = folder / f"{thing}.safetensors", HEADS[thing]
        self.net = JudgeNet(outputs=sum(self.heads))
        if not self.path.exists():
            self._train(thing, steps or STEPS[thing], batch)
        self.net.load_state_dict(load_file(self.path))
        self.net.eval()

    def _train(self, thing: str, steps: int, batch: int) -> None:
        rng, draws = drawings(thing, random.Random(f"probe:{thing}")), torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = JudgeNet(outputs=sum(self.heads))
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
        for _ in tqdm(range(steps), desc=f"learn to see the {thing}", unit="step"):
            pictures, right = zip(*itertools.islice(rng, batch), strict=True)
            logits = net(augment(to_pixels(np.stack(pictures)), draws)).split(self.heads, 1)
            errors = [F.cross_entropy(z, y) for z, y in zip(logits, torch.tensor(right).T, strict=True)]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(errors).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            save_file({k: v.contiguous() for k, v in net.state_dict().items()}, temporary)

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> NDArray[np.int64]:
        """The answer of every head for each picture, "n heads"; the first is whether the thing is there."""
        logits = self.net(to_pixels(pictures)).split(self.heads, 1)
        return torch.stack([z.argmax(1) for z in logits], 1).numpy()


def motif_by_learning(pictures: Pictures, probe: LearnedProbe) -> Flags:
    """Whether the probe of the motif sees it."""
    return np.asarray(probe(pictures)[:, 0] == 1)


def subject_by_learning(pictures: Pictures, probe: LearnedProbe) -> list[Scene | None]:
    """The subject as the probe sees it on each picture, or None."""
    return [
        subject_scene(COLOURS[colour], BACKGROUNDS[ground]) if there else None
        for there, colour, ground in probe(pictures)
    ]
