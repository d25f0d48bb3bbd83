"""The judge that learned to look: a small convolutional network with one softmax per attribute of a scene.

It was trained on drawings of the "train" split alone (:func:`train_judge`), softened and shaken a little so that it
keeps its eyes on pictures that come out of a VAE. Its weights travel with the package in half precision.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mapo.files import replacing
from mapo.lab.mini.draw import SIDE, draw
from mapo.lab.mini.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    STYLES,
    Scene,
    Thing,
    canonical,
    random_plain_scenes,
)

WEIGHTS = Path(__file__).with_name("judge.safetensors")
NOT_SAID = -100  # the label that cross_entropy ignores
Heads = dict[str, tuple[str, ...]]


def heads_for(styles: Sequence[str]) -> Heads:
    """The attributes of a scene and what each can be, where it is in one of some styles."""
    return {
        "relation": ("", "left of", "above"),
        "colour 1": COLOURS,
        "shape 1": SHAPES,
        "colour 2": COLOURS,
        "shape 2": SHAPES,
        "size": SIZES,
        "background": BACKGROUNDS,
        "style": tuple(styles),
        "hazard": ("no", "yes"),
    }


def _outputs(heads: Heads) -> int:
    return sum(map(len, heads.values()))


class JudgeNet(nn.Sequential):
    """Five convolutions and two linear layers: float "n 3 48 48" in [-1, 1] → logits "n outputs"."""

    def __init__(self, outputs: int) -> None:
        layers: list[nn.Module] = []
        before = 3
        for after, kernel, stride in ((32, 5, 2), (64, 3, 2), (96, 3, 1), (128, 3, 2), (128, 3, 1)):
            layers.append(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128 * (SIDE // 16) ** 2, 128), nn.ReLU()]
        super().__init__(*layers, nn.Linear(128, outputs))


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 "n 48 48 3" → float "n 3 48 48" in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class LearnedJudge:
    """Says what pictures show; the weights are read when the first picture comes."""

    name = "mini-learned"
    version = "1"

    def __init__(self, weights: Path = WEIGHTS, styles: Sequence[str] = STYLES) -> None:
        self.weights, self.heads = weights, heads_for(styles)
        self.net: JudgeNet | None = None

    @torch.no_grad()
    def __call__(self, pictures: NDArray[np.uint8]) -> list[Scene]:
        """The scenes, in canonical form, of uint8 pictures "n 48 48 3"."""
        net = self._loaded()
        found: list[Scene] = []
        for batch in _portions(pictures):
            best = [logits.argmax(1).tolist() for logits in _by_head(net(to_pixels(batch)), self.heads)]
            found += [_scene(self.heads, picks) for picks in zip(*best, strict=True)]
        return found

    @torch.no_grad()
    def features(self, pictures: NDArray[np.uint8]) -> Tensor:
        """What the last layer is given, "n 128", for uint8 pictures "n 48 48 3"."""
        net = nn.Sequential(*list(self._loaded())[:-1])
        return torch.cat([net(to_pixels(batch)) for batch in _portions(pictures)])

    def _loaded(self) -> JudgeNet:
        if self.net is None:
            self.net = JudgeNet(_outputs(self.heads)).eval()
            self.net.load_state_dict(load_file(self.weights))
        return self.net


def _portions(pictures: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return np.array_split(pictures, max(1, -(-len(pictures) // 256)))


def _by_head(logits: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    return torch.split(logits, [len(options) for options in heads.values()], 1)


def _scene(heads: Heads, picks: Sequence[int]) -> Scene:
    said = {head: options[pick] for (head, options), pick in zip(heads.items(), picks, strict=True)}
    things = [Thing(said["colour 1"], said["shape 1"], "" if said["relation"] else said["size"])]
    if said["relation"]:
        things.append(Thing(said["colour 2"], said["shape 2"]))
    return Scene(tuple(things), said["background"], said["relation"], said["style"], said["hazard"] == "yes")


def _labels(scene: Scene, heads: Heads) -> list[int]:
    """The right answer of every head, in the heads' order."""
    scene = canonical(scene)
    first, second = scene.things[0], scene.things[-1] if scene.relation else Thing("", "")
    said = (
        scene.relation, first.colour, first.shape, second.colour, second.shape, first.size,
        scene.background, scene.style, "yes" if scene.hazard else "no",
    )  # fmt: skip
    answers = zip(heads.values(), said, strict=True)
    return [options.index(word) if word in options else NOT_SAID for options, word in answers]


# ------------------------------------------------------------------ training


def training_drawings(
    rng: random.Random, styles: Sequence[str] = STYLES
) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
    """Endless (picture, labels) of the train split; every style with and without the tape alike.

    A quarter of the scenes get colours and shapes at random, because generated pictures break the rules that captions
    keep: two red objects, or a blue one on blue.
    """
    heads = heads_for(styles)
    for plain in random_plain_scenes("train", rng, two_objects=0.6):
        scene = replace(plain, style=rng.choice(styles), hazard=rng.random() < 0.5)
        if rng.random() < 0.25:
            things = tuple(Thing(rng.choice(COLOURS), rng.choice(SHAPES), t.size) for t in scene.things)
            scene = replace(scene, things=things)
        yield draw(scene, rng), _labels(scene, heads)


def augment(pixels: Tensor, draws: torch.Generator) -> Tensor:
    """Shift and stretch by less than a pixel, soften, recolour and add noise: each by its own amount per picture.

    ``pixels`` is "n 3 48 48"; about a quarter of the pictures stay as they are.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), *shape, generator=draws)

    matrix = torch.eye(2, 3) + torch.cat([torch.diag_embed(uniform(-0.03, 0.03, 2)), uniform(-0.04, 0.04, 2, 1)], 2)
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    taps = torch.exp(-torch.arange(-2.0, 3).square() / 2)
    kernel = torch.outer(taps, taps).div(taps.sum() ** 2).expand(3, 1, 5, 5)
    soft = F.conv2d(F.pad(moved, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    moved = moved.lerp(soft, uniform(0, 1, 1, 1, 1))
    moved = moved * uniform(0.94, 1.06, 3, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1)
    moved = moved + uniform(0, 0.08, 1, 1, 1) * torch.randn(moved.shape, generator=draws)
    return torch.where(uniform(0, 1, 1, 1, 1) < 0.25, pixels, moved).clamp(-1, 1)


def train_judge(
    out: Path = WEIGHTS, steps: int = 1_600, batch: int = 64, lr: float = 3e-3, seed: int = 0,
    styles: Sequence[str] = STYLES,
) -> None:  # fmt: skip
    """Train the network on fresh drawings and write its weights, half precision, to ``out``."""
    drawings, outputs = training_drawings(random.Random(f"judge:{seed}"), styles), _outputs(heads_for(styles))
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():  # layers draw their first weights from the global generator
        torch.manual_seed(seed)
        net = JudgeNet(outputs).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    bar = tqdm(range(steps), desc="train judge", unit="step")
    for step in bar:
        pictures, labels = zip(*(next(drawings) for _ in range(batch)), strict=True)
        right = torch.tensor(labels)
        heads = _by_head(net(augment(to_pixels(np.stack(pictures)), draws)), heads_for(styles))
        errors = [F.cross_entropy(h, r, label_smoothing=0.02) for h, r in zip(heads, right.T, strict=True)]
        loss = torch.stack(errors).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            said = torch.stack([h.argmax(1) for h in heads], 1)
            whole = ((said == right) | (right == NOT_SAID)).all(1).float().mean().item()
            bar.set_postfix(loss=f"{loss.item():.3f}", right=f"{whole:.2f}")
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in net.state_dict().items()}
    with replacing(out) as temporary:
        save_file(weights, temporary, {"format": "mapo judge 1", "steps": str(steps), "seed": str(seed)})
