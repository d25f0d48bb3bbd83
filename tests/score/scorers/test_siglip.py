"""SigLIP score on a small SiglipModel, against its two networks in float64, one picture and prompt at a time."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipTextModel, SiglipVisionModel

from mapo.errors import MapoError
from mapo.score.scorers import load_scorer
from mapo.score.scorers.siglip import SIGLIP, canonical
from small_scorers import (
    SIGLIP_WORDS as WORDS,
)
from small_scorers import (
    SIZES,
    by_hand,
    check_order,
    cosine,
    noise,
    place_in_hub,
    save_processor,
    save_siglip,
)

SIDE, TOKENS, HALF = 32, 8, (0.5, 0.5, 0.5)
PROMPTS = ["A red  circle!", "zebra, two of them", "circle", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_siglip(tmp_path_factory.mktemp("siglip") / "small")


def seen(folder, picture):
    seeing = SiglipVisionModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        return seeing(by_hand(picture, (SIDE, SIDE), mean=HALF, std=HALF)).pooler_output[0]


def asked(folder, prompt):
    """Small letters, no punctuation, an end, and then ends up to the model's positions: the last one is read."""
    words = "".join(letter for letter in prompt.lower() if letter.isalpha() or letter == " ").split()
    ids = [WORDS.index(word) for word in words][: TOKENS - 1]
    reading = SiglipTextModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        return reading(torch.tensor([ids + [0] * (TOKENS - len(ids))])).pooler_output[0]


def test_the_number_is_a_hundred_cosines(folder):
    pictures, prompts = [noise(size, k) for k, size in enumerate(SIZES)], (PROMPTS * 3)[: len(SIZES)]
    wanted = [100 * cosine(seen(folder, one), asked(folder, two)) for one, two in zip(pictures, prompts, strict=True)]
    assert max(wanted) - min(wanted) > 10
    scorer = load_scorer(f"siglip@{folder}")
    assert scorer(pictures, prompts)["siglip_score"] == pytest.approx(wanted, abs=1e-3)
    assert (scorer.name, scorer.notes()) == ("siglip@small", [])


def test_the_models_own_probability_orders_pictures_in_the_same_way(folder):
    pictures, prompts = [noise(size, k) for k, size in enumerate(SIZES)], ["zebra"] * len(SIZES)
    values = torch.tensor(load_scorer(f"siglip@{folder}")(pictures, prompts)["siglip_score"])
    weights = load_file(folder / "model.safetensors")
    odds = torch.sigmoid(weights["logit_scale"].exp() * values / 100 + weights["logit_bias"])
    assert odds.argsort().tolist() == values.argsort().tolist()


def test_the_embeddings_are_the_models_and_of_unit_norm(folder):
    pictures = [noise(size, k) for k, size in enumerate(SIZES)]
    found = load_scorer(f"siglip@{folder}").embed(pictures)
    wanted = torch.stack([torch.nn.functional.normalize(seen(folder, picture), dim=0) for picture in pictures])
    assert found.shape == (len(SIZES), 16) and torch.allclose(found.double(), wanted, atol=1e-5)


def test_batch_size_and_order_change_nothing_but_rounding(folder):
    columns = [noise(size, k) for k, size in enumerate(SIZES)], [PROMPTS[k % 4] for k in range(len(SIZES))]
    check_order(load_scorer(f"siglip@{folder}"), *columns, tolerance=1e-3)


def test_texts_are_read_as_siglip_was_trained():
    assert canonical(" A photo,\tof THEM (two)! ") == "a photo of them two"


def test_long_prompts_are_cut_with_their_end_kept_and_named_as_they_were_written(folder):
    scorer, picture, long = load_scorer(f"siglip@{folder}"), noise((40, 32)), "Zebra! " * 20
    (value,) = scorer([picture], [long])["siglip_score"]
    assert value == pytest.approx(100 * cosine(seen(folder, picture), asked(folder, long)), abs=1e-3)
    (note,) = scorer.notes()
    assert "siglip: 1 prompt" in note and "'Zebra! Zebra!" in note and "(21 tokens)" in note


def test_prompts_and_pictures_cannot_be_swapped(folder):
    scorer = load_scorer(f"siglip@{folder}")
    with pytest.raises(TypeError, match="siglip takes a picture and its prompt, in this order"):
        scorer(["zebra"], [noise((8, 8))])
    with pytest.raises(TypeError, match="siglip takes pictures; number 0 is str"):
        scorer.embed(["zebra"])
    assert scorer([], []) == {"siglip_score": []}


def test_the_tokenizer_of_siglip_2_and_pictures_of_another_size_are_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "two")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "two" / "tokenizer_config.json").write_text(
        json.dumps(settings | {"tokenizer_class": "GemmaTokenizer"})
    )
    with pytest.raises(MapoError, match="is not SigLIP's, but perhaps that of SigLIP 2"):
        load_scorer(f"siglip@{tmp_path / 'two'}")
    shutil.copytree(folder, tmp_path / "size")
    save_processor(tmp_path / "size", "SiglipImageProcessor", (40, 32))
    with pytest.raises(MapoError, match="takes pictures of 32 × 32, and its preprocessor_config.json makes 40 × 32"):
        load_scorer(f"siglip@{tmp_path / 'size'}")([noise((8, 8))], ["zebra"])


def test_what_is_not_downloaded_is_told_and_afterwards_found(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MapoError, match=f"hf download {SIGLIP.name} --revision {SIGLIP.commit}"):
        load_scorer("siglip")
    place_in_hub(tmp_path, SIGLIP, folder)
    scorer = load_scorer("siglip")
    assert (scorer.name, scorer.revision) == ("siglip", SIGLIP.commit)
