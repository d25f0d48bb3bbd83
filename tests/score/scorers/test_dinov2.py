"""DINOv2 similarity on a small Dinov2Model, against its class token in float64, one picture at a time."""

import pytest
import torch
from transformers import Dinov2Model

from mapo.errors import MapoError
from mapo.score.scorers import load_scorer
from mapo.score.scorers.dinov2 import DINOV2
from small_scorers import (
    SIZES,
    by_hand,
    check_order,
    cosine,
    noise,
    place_in_hub,
    save_dinov2,
)

RESIZE, CROP = 36, 28  # the model itself was made for larger ones, as the published are
PICTURES = [noise(size, k) for k, size in enumerate(SIZES)]
REFERENCES = [noise((40, 50), 50 + k % 3) for k in range(len(SIZES))]
PROMPTS = ["zebra"] * len(SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_dinov2(tmp_path_factory.mktemp("dinov2") / "small")


def seen(folder, picture):
    """The class token behind the last layer norm, taken apart."""
    model = Dinov2Model.from_pretrained(folder).double().eval()
    with torch.no_grad():
        inner = model.encoder(model.embeddings(by_hand(picture, RESIZE, CROP))).last_hidden_state[0, 0]
        inner = (inner - inner.mean()) / (inner.var(unbiased=False) + model.config.layer_norm_eps).sqrt()
        return inner * model.layernorm.weight + model.layernorm.bias


def test_the_number_is_a_hundred_cosines_of_picture_and_reference(folder):
    wanted = [100 * cosine(seen(folder, a), seen(folder, b)) for a, b in zip(PICTURES, REFERENCES, strict=True)]
    assert max(wanted) - min(wanted) > 1
    scorer = load_scorer(f"dinov2@{folder}")
    assert scorer(PICTURES, PROMPTS, REFERENCES)["dinov2_score"] == pytest.approx(wanted, abs=1e-3)
    assert scorer(PICTURES, PROMPTS, PICTURES)["dinov2_score"] == pytest.approx([100] * len(SIZES), abs=1e-3)
    assert (scorer.name, scorer.needs_reference, scorer.notes()) == ("dinov2@small", True, [])


def test_the_embeddings_are_the_class_tokens_of_unit_norm(folder):
    found = load_scorer(f"dinov2@{folder}").embed(PICTURES)
    wanted = torch.stack([torch.nn.functional.normalize(seen(folder, picture), dim=0) for picture in PICTURES])
    assert found.shape == (len(SIZES), 16) and torch.allclose(found.double(), wanted, atol=1e-5)


def test_batch_size_and_order_change_nothing_but_rounding(folder):
    check_order(load_scorer(f"dinov2@{folder}"), PICTURES, PROMPTS, REFERENCES)


def test_references_are_needed_one_for_each_and_nothing_is_swapped(folder):
    scorer, picture = load_scorer(f"dinov2@{folder}"), noise((8, 8))
    with pytest.raises(MapoError, match=r"and none was given\. Give one for each"):
        scorer([picture], ["zebra"])
    with pytest.raises(MapoError, match="1 came for 2 pictures"):
        scorer([picture] * 2, ["zebra"] * 2, [picture])
    with pytest.raises(TypeError, match="a picture and its prompt, in this order"):
        scorer(["zebra"], [picture], [picture])
    with pytest.raises(TypeError, match="dinov2 takes pictures; number 0 is str"):
        scorer([picture], ["zebra"], ["zebra"])
    assert scorer([], [], []) == {"dinov2_score": []}


def test_another_class_of_models_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    config = (folder / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(config.replace('"dinov2"', '"vit"'))
    with pytest.raises(MapoError, match=r"is not a DINOv2 model; its config\.json says vit"):
        load_scorer(f"dinov2@{tmp_path / 'm'}")


def test_what_is_not_downloaded_is_told_and_afterwards_found(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MapoError, match=f"hf download {DINOV2.name} --revision {DINOV2.commit}"):
        load_scorer("dinov2")
    place_in_hub(tmp_path, DINOV2, folder)
    scorer = load_scorer("dinov2")
    assert (scorer.name, scorer.revision) == ("dinov2", DINOV2.commit)
