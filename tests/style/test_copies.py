"""Copies are found by what pictures look like from afar, and by how often pictures of one folder do anyhow."""

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from mapo.score.scorers import load_scorer
from mapo.style.copies import HASH, NEAR, LazyPictures, bits_of, compared, likeness, look_by, nearest, seen, told
from small_scorers import save_dinov2


def scenes(number, first=0):
    """Pictures of large shapes, each different."""
    found = {}
    for k in range(first, first + number):
        rng = np.random.default_rng(k)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        found[f"{k}.png"] = small.resize((96, 64), Image.Resampling.BICUBIC)
    return found


def flipped(picture):
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def altered(picture):
    """The same picture, smaller, softer and darker, as a model might draw it again."""
    picture = picture.resize((48, 32)).filter(ImageFilter.GaussianBlur(1))
    return ImageEnhance.Brightness(picture).enhance(0.8)


def test_a_picture_that_is_drawn_again_is_near_and_another_is_not():
    own = scenes(12)
    assert all(np.count_nonzero(bits_of(p) != bits_of(altered(p))) <= NEAR for p in own.values())
    again = nearest({f"drawn {name}": altered(p) for name, p in own.items()}, own)
    assert [(one.drawing, one.own) for one in again] == [(f"drawn {name}", name) for name in own]
    turned = {"turned": altered(own["3.png"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    assert nearest(turned, own)[0].own == "3.png"
    others = nearest(scenes(12, 100), own)
    assert min(one.apart for one in others) > NEAR


def test_a_model_that_copies_is_told_and_pictures_that_are_alike_anyhow_are_not():
    own, others = scenes(12), scenes(12, 100)
    among, before = nearest(own, own), nearest(others, own)
    copied = compared(among, before, nearest({f"drawn {n}": altered(p) for n, p in own.items()}, own))
    assert copied["copies"] and copied["after"]["near"] == 12 and copied["before"]["near"] == 0
    assert told(copied) == (
        "By perceptual hash, 12 of 12 drawings look like a picture that was trained on. Before the training none did. Of these 12 pictures "
        "none look like another one. So the model copies: train fewer steps, or give it more pictures."
    )
    others_again = compared(among, before, nearest(scenes(12, 200), own))
    assert not others_again["copies"] and told(others_again).lower().endswith("so no copying is found.")
    alike = {name: altered(own["0.png"]) for name in own}
    everywhere = compared(nearest(alike, alike), before, nearest({"drawn": altered(own["0.png"])}, alike))
    assert not everywhere["copies"]
    own, some, many = ({"pictures": 40, "near": near} for near in (10, 12, 38))
    shares = {"by": "perceptual hash", "copies": False, "own": own, "before": own}
    assert told({**shares, "after": some}).endswith(
        "your own pictures are about as much alike, so no copying is found."
    )
    untrained = {**shares, "before": some | {"near": 35}, "after": many}
    assert told(untrained).endswith("the untrained model's were about as much alike, so no copying is found.")


def test_by_dinov2_distances_are_of_its_embeddings_and_the_folder_says_how_far_near_is(tmp_path):
    folder = tmp_path / "dino"
    folder.mkdir()
    torch.manual_seed(0)
    look = look_by(str(save_dinov2(folder)))
    assert look.name == "dinov2@dino" and look.near is None
    own, others = scenes(20), scenes(20, 100)
    among, before = nearest(own, own, look), nearest(others, own, look)
    vectors = load_scorer(f"dinov2@{folder}").embed([*own.values()]).double().numpy()
    turned = load_scorer(f"dinov2@{folder}").embed([flipped(picture) for picture in own.values()]).double().numpy()
    alike = np.maximum(vectors @ vectors.T, turned @ vectors.T)
    np.fill_diagonal(alike, -1)
    assert np.allclose([one.apart for one in among], 1 - alike.max(1), atol=1e-5)
    again = nearest({f"drawn {name}": flipped(picture) for name, picture in own.items()}, own, look)
    assert [one.own for one in again] == list(own) and max(one.apart for one in again) < 1e-5
    found = compared(among, before, again, look)
    assert found["copies"] and found["own"]["near"] == 1 and found["after"]["near"] == 20
    assert found["near_is_at_most"] == np.quantile([one.apart for one in among], 0.05)
    half = compared(among, before, [*again[:10], *before[:10]], look)
    assert likeness(half, "<rex>").startswith(
        f"By dinov2@dino, {half['after']['as_near_as_own']} of 20 drawings of <rex> are as near to a photo as photos are "
        f"to each other (before the training {half['before']['as_near_as_own']})."
    )
    middle = np.median([one.apart for one in among])
    assert half["after"]["as_near_as_own"] == 10 + sum(one.apart <= middle for one in before[:10])
    assert told(found).startswith("By dinov2@dino, 20 of 20 drawings look like a picture that was trained on.")


def test_pictures_are_read_when_they_are_looked_at_and_each_once():
    read = []
    pictures = scenes(40)
    lazy = LazyPictures(list(pictures), lambda name: read.append(name) or pictures[name])
    assert np.array_equal(seen(lazy, HASH).vectors, seen(pictures, HASH).vectors) and read == list(pictures)
    assert seen({}, HASH).names == [] and nearest({}, pictures) == []
