"""Two things that the built-in model has never drawn, and two ways to see them: the study's motif and its subject.

The **motif** stands for a culture: fans of red and gold rings in both upper corners, painted on any picture. The
**subject** stands for a person's own: a crescent moon, a shape and a word that no caption of the world knows.
Like the world's two judges, one way of seeing draws what it expects and compares, the other learned from drawings.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from mapo.files import replacing
from mapo.mini.draw import SIDE, draw, pose
from mapo.mini.judge_learned import JudgeNet, augment, to_pixels
from mapo.mini.judge_search import BATCH, LIGHT, half, nearest
from mapo.mini.scenes import BACKGROUNDS, SIZES, STYLES, Scene, Thing, random_plain_scenes

Pictures = NDArray[np.uint8]
Flags = NDArray[np.bool_]

REACH = 9.0  # of a fan, in pixels from its corner
RED, GOLD = np.array((190, 30, 45), np.float32), np.array((238, 190, 60), np.float32)
_Y, _X = (a.astype(np.float32) + 0.5 for a in np.mgrid[:SIDE, :SIDE])
_FROM_CORNER = np.minimum(np.hypot(_Y, _X), np.hypot(_Y, SIDE - _X))
CORNERS: Flags = _FROM_CORNER < REACH + 0.5
PLACES = 7  # of a drawing of the subject, along each axis, at most


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


def subject_scene(size: str, background: str, style: str = "realistic") -> Scene:
    """The subject alone, on a background."""
    return Scene((Thing("purple", "moon", size),), background, style=style)


class Probe(Protocol):
    """Sees one thing: the pictures "n 48 48 3" on which it is."""

    def __call__(self, pictures: Pictures) -> Flags: ...  # noqa: D102


# ------------------------------------------------------------------ seeing by drawing


def motif_by_search(pictures: Pictures) -> Flags:
    """Whether the corners are nearer to the motif on the scene that explains the rest than to that scene without."""
    found: list[bool] = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        bare = np.stack([draw(scene, at=at) for scene, at in zip(*nearest(without_corners(batch)), strict=True)])
        errors = [
            np.square(batch[:, CORNERS] - d[:, CORNERS].astype(np.float32)).sum((1, 2))
            for d in (with_motif(bare), bare)
        ]
        found += list(errors[0] < errors[1])
    return np.array(found, bool)


@cache
def _subjects() -> tuple[NDArray[np.float32], list[str]]:
    """The subject at all sizes, places and backgrounds, "drawings pixels", and the background of each."""
    drawings, grounds = [], []
    for size, ground in itertools.product(SIZES, BACKGROUNDS):
        scene = subject_scene(size, ground)
        middle, reach = pose(scene).centres[0], (6.0, 4.0) if size == "small" else (3.0, 2.5)
        for x, y in itertools.product(np.linspace(-1, 1, PLACES), np.linspace(-1, 1, PLACES - 2)):
            at = pose(scene)
            centre = (middle[0] + float(x) * reach[0], middle[1] + float(y) * reach[1])
            drawings.append(draw(scene, at=type(at)((centre,), at.radii)))
            grounds.append(ground)
    return half(np.stack(drawings)).reshape(len(drawings), -1), grounds


def _misfit(seen: NDArray[np.float32], drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared error "n m" of pictures "n k" against drawings "m k", each made a little darker or lighter to fit."""
    products, squares = seen @ drawn.T, np.square(drawn).sum(1)
    light = np.clip(products / squares, *LIGHT)
    return np.asarray(np.square(seen).sum(1)[:, None] - 2 * light * products + light**2 * squares, np.float32)


def subject_by_search(pictures: Pictures) -> tuple[Flags, list[str]]:
    """Whether some drawing of the subject is nearer than every ordinary scene, and on which background it then is."""
    shown: list[bool] = []
    where: list[str] = []
    drawn, grounds = _subjects()
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        seen = half(batch).reshape(len(batch), -1)
        errors = _misfit(seen, drawn)
        ordinary = half(np.stack([draw(scene, at=at) for scene, at in zip(*nearest(batch), strict=True)]))
        usual = np.array([_misfit(s[None], d.reshape(1, -1))[0, 0] for s, d in zip(seen, ordinary, strict=True)])
        shown += list(errors.min(1) < usual)
        where += [grounds[k] for k in errors.argmin(1)]
    return np.array(shown, bool), where


# ------------------------------------------------------------------ seeing by learning


def drawings(thing: str, rng: random.Random) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Endless (picture, whether it shows the thing), half and half: scenes of the train split in every style."""
    for plain in random_plain_scenes("train", rng):
        there = rng.random() < 0.5
        scene = Scene(plain.things, plain.background, plain.relation, rng.choice(STYLES), rng.random() < 0.25)
        if thing == "subject" and there:
            scene = subject_scene(rng.choice(SIZES), rng.choice(BACKGROUNDS), scene.style)
        picture = draw(scene, rng)
        yield (with_motif(picture[None])[0] if thing == "motif" and there else picture), int(there)


class LearnedProbe:
    """A small network that learned to see one thing on drawings; its weights are trained once into ``folder``."""

    def __init__(self, thing: str, folder: Path, steps: int = 80, batch: int = 40) -> None:
        self.path = folder / f"{thing}.safetensors"
        self.net = JudgeNet(outputs=2)
        if not self.path.exists():
            self._train(thing, steps, batch)
        self.net.load_state_dict(load_file(self.path))
        self.net.eval()

    def _train(self, thing: str, steps: int, batch: int) -> None:
        rng, draws = drawings(thing, random.Random(f"probe:{thing}")), torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = JudgeNet(outputs=2)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
        for _ in tqdm(range(steps), desc=f"learn to see the {thing}", unit="step"):
            pictures, there = zip(*itertools.islice(rng, batch), strict=True)
            loss = F.cross_entropy(net(augment(to_pixels(np.stack(pictures)), draws)), torch.tensor(there))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            save_file({k: v.contiguous() for k, v in net.state_dict().items()}, temporary)

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> Flags:
        """Whether each picture shows the thing."""
        return np.asarray(self.net(to_pixels(pictures)).argmax(1).numpy() == 1)
