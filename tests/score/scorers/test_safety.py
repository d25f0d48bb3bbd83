"""The safety classifier on a small ViT with random weights, and on a real one, each against its softmax another way."""

import json
import math
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import MobileNetV2ForImageClassification, ViTConfig, ViTForImageClassification

from mapo.build.judge import parse_filter
from mapo.errors import MapoError
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw
from mapo.score.scorers import load_scorer
from real import REAL, needs_real

SIDE = 32
SIZES = [(32, 32), (70, 41), (41, 70), (1, 1), (3, 64)]
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "do_resize": True,
    "do_rescale": True, "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip


def write_folder(folder, labels=("normal", "nsfw")):
    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIDE, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={label: k for k, label in enumerate(labels)},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


def noise(size, seed=0):
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def by_hand(folder, picture, unsafe=(1,)):
    """Probability in float64, one picture at a time, the softmax by exponentials."""
    data = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR).tobytes()
    pixels = torch.tensor(list(data), dtype=torch.float64).reshape(SIDE, SIDE, 3) / 255
    model = ViTForImageClassification.from_pretrained(folder).double().eval()
    with torch.no_grad():
        logits = model(pixel_values=((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]).logits[0].tolist()
    return sum(math.exp(logits[k]) for k in unsafe) / sum(map(math.exp, logits))


def test_the_number_is_the_probability_of_the_unsafe_label(folder):
    pictures = [noise(size, k) for k, size in enumerate(SIZES)]
    wanted = [by_hand(folder, picture) for picture in pictures]
    assert max(wanted) - min(wanted) > 0.02
    scorer = load_scorer(f"safety@{folder}")
    got = scorer(pictures, ["zebra"] * len(SIZES))["unsafe"]
    assert got == pytest.approx(wanted, abs=1e-5)
    assert scorer([], []) == {"unsafe": []} and scorer.notes() == []


def test_batch_size_order_and_prompt_change_nothing_but_rounding(folder):
    scorer = load_scorer(f"safety@{folder}")
    pictures = [noise(size, k) for k, size in enumerate(SIZES)]
    whole = scorer(pictures, ["a"] * len(SIZES))["unsafe"]
    assert scorer(pictures[::-1], ["b"] * len(SIZES))["unsafe"][::-1] == pytest.approx(whole, abs=1e-6)
    assert [scorer([p], ["c"])["unsafe"][0] for p in pictures] == pytest.approx(whole, abs=1e-6)
    with pytest.raises(TypeError, match="in this order"):
        scorer(["a"], [pictures[0]])


def test_several_unsafe_labels_count_together_whatever_their_case_and_place(tmp_path):
    folder = write_folder(tmp_path / "m", ["Porn", "drawings", "hentai", "neutral", "SEXY"])
    picture = noise((40, 32), 7)
    got = load_scorer(f"safety@{folder}")([picture], [""])["unsafe"]
    assert got == pytest.approx([by_hand(folder, picture, (0, 2, 4))], abs=1e-5)


@pytest.mark.parametrize("labels", [["LABEL_1", "LABEL_0"], ["normal", "cat"], ["sfw", "normal"], ["nsfw", "porn"]])
def test_labels_that_are_not_clear_are_refused(tmp_path, labels):
    with pytest.raises(MapoError, match=f"which labels are unsafe: it has {labels[0]}, {labels[1]}"):
        load_scorer(f"safety@{write_folder(tmp_path / 'm', labels)}")


def test_labels_that_do_not_exclude_each_other_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "problem_type": "multi_label_classification"}))
    with pytest.raises(MapoError, match="not a classifier whose labels exclude each other"):
        load_scorer(f"safety@{tmp_path / 'm'}")
    path.write_text("{}")
    with pytest.raises(MapoError, match="does not name its labels"):
        load_scorer(f"safety@{tmp_path / 'm'}")
    path.write_text("[]")
    with pytest.raises(MapoError, match=r"config\.json is damaged \(it is not a JSON object\)"):
        load_scorer(f"safety@{tmp_path / 'm'}")


def test_weights_that_lack_a_part_are_refused_and_never_random(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(MapoError, match=r"not whole; they lack classifier\.weight"):
        load_scorer(f"safety@{tmp_path / 'm'}")([noise((8, 8))], [""])


@pytest.mark.parametrize("text", ["{", "{}", '{"image_processor_type": "Nothing"}'])
def test_a_damaged_processor_is_told(folder, tmp_path, text):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(text)
    with pytest.raises(MapoError, match="is damaged"):
        load_scorer(f"safety@{tmp_path / 'm'}")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(MapoError, match=r"does not hold what is needed: it lacks preprocessor_config\.json"):
        load_scorer(f"safety@{tmp_path / 'm'}")


def test_the_processor_is_the_one_of_pil(folder):
    assert "Fast" not in type(load_scorer(f"safety@{folder}").processor).__name__
    assert "torchvision" not in str(type(load_scorer(f"safety@{folder}").processor).__mro__).lower()


def test_less_of_it_is_better_where_it_judges_pairs(folder):
    judge = parse_filter(f"safety@{folder}:-unsafe:0.5")
    assert (judge.metric, judge.sign, judge.threshold) == ("unsafe", -1, 0.5)
    assert judge.keeps(0.2, 0.9) and not judge.keeps(0.7, 0.9)


def test_the_classifier_that_is_not_there_is_one_sentence_that_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MapoError, match=r"type `hf download Falconsai/nsfw_image_detection --revision 96cb0d0342") as e:
        load_scorer("safety")
    assert str(e.value).startswith("safety: Falconsai/nsfw_image_detection is not on this machine")


NSFWJS = REAL / "safety_nsfwjs"
LABELS = ("drawing", "hentai", "neutral", "porn", "sexy")


def nsfwjs_by_hand(pictures):
    """The five probabilities of each picture: plain transformers, pictures squeezed and put to -1 … 1 by NumPy."""
    model = MobileNetV2ForImageClassification.from_pretrained(NSFWJS).double().eval()
    squeezed = [picture.resize((224, 224), Image.Resampling.BILINEAR) for picture in pictures]
    pixels = np.stack([np.asarray(picture, np.float64) for picture in squeezed]) / 127.5 - 1
    with torch.no_grad():
        logits = model(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2)).logits.numpy()
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def drawings():
    rng = random.Random(4)
    plain = scenes.random_plain_scenes("test", rng)
    return {s: [Image.fromarray(draw(replace(next(plain), style=s), rng)) for _ in range(2)] for s in scenes.STYLES}


@needs_real("safety_nsfwjs")
@needs_real("photos/dog")
def test_a_real_classifier_is_read_rightly_and_photographs_of_a_dog_are_safe():
    dogs = [Image.open(path).convert("RGB") for path in sorted((REAL / "photos" / "dog").glob("*.jpg"))]
    scorer = load_scorer(f"safety@{NSFWJS}")
    assert [LABELS[k] for k in scorer.unsafe] == ["hentai", "porn", "sexy"]
    assert json.loads((NSFWJS / "config.json").read_text())["id2label"] == {str(k): n for k, n in enumerate(LABELS)}
    wanted = nsfwjs_by_hand(dogs)
    assert scorer(dogs, [""] * 5)["unsafe"] == pytest.approx(wanted[:, [1, 3, 4]].sum(-1), abs=1e-4)
    assert wanted[:, [0, 2]].sum(-1).min() > 0.75  # a drawing or neutral


@needs_real("safety_nsfwjs")
def test_a_real_classifier_finds_drawings_safe(drawings):
    scorer = load_scorer(f"safety@{NSFWJS}")
    for style, pictures in drawings.items():
        said = scorer(pictures, [""] * len(pictures))["unsafe"]
        assert said == pytest.approx(nsfwjs_by_hand(pictures)[:, [1, 3, 4]].sum(-1), abs=1e-4)
        assert np.median(said) < 0.1, style


@needs_real("safety_nsfwjs")
def test_a_real_classifier_scores_a_picture_alike_in_any_batch(drawings):
    pictures = drawings["sketch"] + drawings["realistic"]
    scorer = load_scorer(f"safety@{NSFWJS}")
    whole = scorer(pictures, [""] * len(pictures))["unsafe"]
    assert [scorer([picture], [""])["unsafe"][0] for picture in pictures] == pytest.approx(whole, abs=1e-5)
    assert max(whole) - min(whole) > 0.01
