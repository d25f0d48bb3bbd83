"""Small models of the classes behind scorers, and what their tests share."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from mapo.score.scorers import load_scorer

MEAN, STD = (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757)
SIZES = [(32, 32), (70, 41), (41, 70), (33, 96), (20, 11), (1, 1), (3, 3), (5, 1), (3, 64), (64, 3)]
PROMPTS = ["a small red circle", "Zebra, two of them!", "a blue heart on a gray background", "Bär 🐻"]


def noise(size, seed=0):
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def lively(model, std=0.3, seed=3):
    """Weights far from their small beginnings, so that pictures and prompts matter."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def save_clip(folder, side=32, tokens=24, width=12):
    """A CLIPModel with tokenizer, in a folder without what prepares its pictures."""
    from transformers import CLIPConfig, CLIPModel

    from mapo.lab.mini.pretrain import make_tokenizer

    tokenizer = make_tokenizer(folder)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers["projection_dim"] = width
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokens}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=layers | words,
        vision_config=layers | {"image_size": side, "patch_size": 8},
        projection_dim=width,
    )
    lively(CLIPModel(config)).save_pretrained(folder)
    return folder


def save_processor(folder, kind, resize, crop=None, mean=MEAN, std=STD):
    """What prepares pictures: ``resize`` a side's length or (height, width), ``crop`` a side."""
    size = {"shortest_edge": resize} if isinstance(resize, int) else dict(zip(("height", "width"), resize, strict=True))
    settings = {
        "image_processor_type": kind, "size": size, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "resample": 3, "rescale_factor": 1 / 255, "image_mean": mean, "image_std": std,
    }  # fmt: skip
    settings |= {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}} if crop else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def by_hand(picture, resize, crop=None, mean=MEAN, std=STD):
    """The same in float64, "1 3 h w", with Pillow's resize alone."""
    if crop:
        short = min(picture.size)
        size = tuple(resize if length == short else resize * length // short for length in picture.size)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
        picture = picture.crop((left, top, left + crop, top + crop))
    else:
        picture = picture.resize(resize[::-1], Image.Resampling.BICUBIC)
    shape = (picture.height, picture.width, 3)
    pixels = torch.tensor(list(picture.tobytes()), dtype=torch.float64).reshape(shape) / 255
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]


def cosine(one, two):
    return float(one.flatten() @ two.flatten() / one.norm() / two.norm())


def check_order(scorer, *columns, tolerance=2e-4):
    """Batch size and order change nothing but rounding: all at once, one by one, and shuffled."""
    (metric,) = scorer.metrics
    whole = scorer(*columns)[metric]
    assert max(whole) - min(whole) > 100 * tolerance
    single = [scorer(*([value] for value in row))[metric][0] for row in zip(*columns, strict=True)]
    order = random.Random(1).sample(range(len(whole)), len(whole))
    turned = scorer(*([column[k] for k in order] for column in columns))[metric]
    assert whole == pytest.approx(single, abs=tolerance)
    assert [whole[k] for k in order] == pytest.approx(turned, abs=tolerance)


def place_in_hub(home, repository, folder, *names):
    """Puts files of a folder into the hub's cache ``home`` as its downloads do."""
    cache = home / f"models--{repository.name.replace('/', '--')}"
    place = cache / "snapshots" / repository.commit
    place.mkdir(parents=True)
    for name in names or [path.name for path in folder.iterdir()]:
        shutil.copy(folder / name, place / name)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(repository.commit)


RAISES = (
    "def __getattr__(name):\n"
    "    def asked(*given, **named):\n"
    "        raise RuntimeError('torchvision was asked')\n"
    "    return asked\n"
)
FAKE_TORCHVISION = {
    "torchvision/__init__.py": "__version__ = '0.99.0'\n",
    "torchvision/io/__init__.py": "",
    "torchvision/transforms/__init__.py": "from enum import Enum\n"
    "InterpolationMode = Enum('InterpolationMode', {n: n.lower() for n in "
    "'NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS'.split()})\n",
    "torchvision/transforms/functional.py": "from . import InterpolationMode\n" + RAISES,
    "torchvision/transforms/v2/__init__.py": "",
    "torchvision/transforms/v2/functional.py": RAISES,
    "torchvision-0.99.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n",
}

TELL_VALUE = """
import sys
from small_scorers import is_torchvision_available, tell_value
print(is_torchvision_available(), tell_value(sys.argv[1]))
"""


def tell_value(name):
    picture = Image.linear_gradient("L").resize((50, 40)).convert("RGB")
    scorer = load_scorer(name)
    value = scorer([picture], ["zebra"], [picture.rotate(90)] if scorer.needs_reference else None)
    return value[scorer.metrics[0]][0]


def values_without_and_with_torchvision(name, folder):
    """One picture's value here and in a fresh process, where a torchvision is installed that fails when it is used."""
    for file, text in FAKE_TORCHVISION.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    path = os.pathsep.join(p for p in (str(folder), *sys.path) if p)
    done = subprocess.run(
        [sys.executable, "-c", TELL_VALUE, name], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    there, beside = done.stdout.split()
    assert (is_torchvision_available(), there) == (False, "True")
    return str(tell_value(name)), beside
