"""The aesthetic predictor on a small CLIP model, against one affine map in float64, and with the published head."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionModelWithProjection

from mapo.errors import MapoError
from mapo.score.scorers import load_scorer
from mapo.score.scorers.aesthetic import FILE, HEAD, PUBLISHED, Head
from mapo.score.scorers.clip import CLIP
from real import REAL, needs_real
from small_scorers import SIZES, by_hand, check_order, noise, place_in_hub, save_clip, save_processor

SIDE = 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def make_head(wide, seed=5):
    """The layers as the authors train them; dropouts and all, hence the numbers in the names."""
    torch.manual_seed(seed)
    layers = [nn.Linear(wide, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64)]
    return nn.ModuleDict({"layers": nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_clip(tmp_path_factory.mktemp("aesthetic") / "small", SIDE)
    save_processor(folder, "CLIPImageProcessor", SIDE, SIDE)
    head = make_head(12)
    head["layers"][-1].weight.data *= 200
    torch.save(head.state_dict(), folder / "head.pth")
    return folder


def rating(folder, picture):
    """All layers folded into one matrix and one offset: there is nothing between them."""
    state = {name: value.double() for name, value in torch.load(folder / "head.pth", weights_only=True).items()}
    matrix, offset = torch.eye(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for place in (0, 2, 4, 6, 7):
        weight, bias = state[f"layers.{place}.weight"], state[f"layers.{place}.bias"]
        matrix, offset = weight @ matrix, weight @ offset + bias
    seeing = CLIPVisionModelWithProjection.from_pretrained(folder).double().eval()
    with torch.no_grad():
        seen = seeing(by_hand(picture, SIDE, SIDE)).image_embeds[0]
    return float(matrix @ (seen / seen.norm()) + offset)


def test_the_number_is_the_heads_on_the_embedding_of_unit_norm(folder):
    pictures = [noise(size, k) for k, size in enumerate(SIZES)]
    wanted = [rating(folder, picture) for picture in pictures]
    assert max(wanted) - min(wanted) > 0.3
    scorer = load_scorer(f"aesthetic@{folder}")
    assert scorer(pictures, [""] * len(pictures))["aesthetic"] == pytest.approx(wanted, abs=1e-4)
    assert scorer.name == "aesthetic@small"


def test_batch_size_and_order_change_nothing_but_rounding(folder):
    pictures = [noise(size, k) for k, size in enumerate(SIZES)]
    check_order(load_scorer(f"aesthetic@{folder}"), pictures, ["zebra"] * len(pictures))


def test_prompts_and_pictures_cannot_be_swapped_and_modes_are_checked(folder):
    scorer = load_scorer(f"aesthetic@{folder}")
    with pytest.raises(TypeError, match="a picture and its prompt, in this order"):
        scorer(["zebra"], [noise((8, 8))])
    with pytest.raises(TypeError, match="RGB pictures; number 0 is L"):
        scorer([noise((8, 8)).convert("L")], ["zebra"])
    assert scorer([], []) == {"aesthetic": []}


def test_a_head_for_another_embedding_is_refused(folder, tmp_path):
    place_in_hub(tmp_path / "hub", CLIP, folder)
    torch.save(make_head(13).state_dict(), tmp_path / "other.pth")
    with pytest.raises(MapoError, match=r"layers\.0\.weight is \(1024, 13\), not \(1024, 12\)"):
        load_scorer(f"aesthetic@{tmp_path / 'other.pth'}")([noise((8, 8))], [""])


def test_a_head_alone_is_used_with_the_usual_clip_model(folder, tmp_path):
    with pytest.raises(MapoError, match=f"hf download {CLIP.name}"):
        load_scorer(f"aesthetic@{folder / 'head.pth'}")
    place_in_hub(tmp_path / "hub", CLIP, folder)
    scorer = load_scorer(f"aesthetic@{folder / 'head.pth'}")
    assert (scorer.name, scorer.revision.split("+")[1:]) == ("aesthetic@head.pth", [CLIP.commit])
    picture = noise((50, 40))
    assert scorer([picture], [""])["aesthetic"] == pytest.approx([rating(folder, picture)], abs=1e-4)


def test_what_is_not_downloaded_is_told_and_afterwards_found(folder, tmp_path):
    with pytest.raises(MapoError) as told:
        load_scorer("aesthetic")
    assert f'type `hf download {HEAD.name} --revision {HEAD.commit} --include "{FILE}"`' in str(told.value)
    (tmp_path / FILE).write_bytes((folder / "head.pth").read_bytes())
    place_in_hub(tmp_path / "hub", HEAD, tmp_path, FILE)
    place_in_hub(tmp_path / "hub", CLIP, folder)
    scorer = load_scorer("aesthetic")
    assert scorer.name == "aesthetic"
    assert scorer.revision.startswith(f"{HEAD.commit}/") and scorer.revision.endswith(f"+{CLIP.commit}")


LAION = REAL / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
PUBLISHED_RATINGS = [1.656, 2.359, 3.070, 3.673, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747]


@needs_real("aesthetic")
def test_the_published_head_gives_the_ten_published_embeddings_their_published_ratings():
    folder = REAL / "aesthetic" / "vit_l_14_embeddings"
    embeddings = torch.from_numpy(
        np.stack([np.load(folder / f"rating{k}.npy").reshape(768) for k in range(10)])
    ).float()
    assert Head(LAION, 768)(embeddings).tolist() == pytest.approx(PUBLISHED_RATINGS, abs=6e-4)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A CLIP model of the width that the published head takes."""
    folder = save_clip(tmp_path_factory.mktemp("aesthetic") / "wide", SIDE, width=768)
    save_processor(folder, "CLIPImageProcessor", SIDE, SIDE)
    return folder


def notes_with(head, tmp_path, wide):
    """What is noted when a head alone has scored with what lies in the place of the usual CLIP model."""
    place_in_hub(tmp_path / "hub", CLIP, wide)
    scorer = load_scorer(f"aesthetic@{head}")
    assert scorer.notes() == []  # nothing was scored
    assert len(scorer([noise((8, 8))], [""])["aesthetic"]) == 1
    return scorer.notes()


@needs_real("aesthetic")
def test_the_published_head_is_known_in_either_form(tmp_path, wide):
    copy = tmp_path / "renamed.safetensors"
    save_file(torch.load(LAION, map_location="cpu", weights_only=True), copy)
    assert notes_with(LAION, tmp_path, wide) == []
    scorer = load_scorer(f"aesthetic@{copy}")
    scorer([noise((8, 8))], [""])
    assert scorer.notes() == []


def test_a_head_that_is_not_a_published_one_is_said(tmp_path, wide):
    torch.save(make_head(768).state_dict(), tmp_path / "aesthetic-model.pth")
    (said,) = notes_with(tmp_path / "aesthetic-model.pth", tmp_path, wide)
    assert said == (
        "aesthetic: the head aesthetic-model.pth is not one of the published ones; its numbers cannot be compared with "
        "published ones"
    )


@needs_real("aesthetic")
def test_a_published_head_with_one_number_changed_is_said(tmp_path, wide):
    state = torch.load(LAION, map_location="cpu", weights_only=True)
    state["layers.7.bias"] += 0.25
    torch.save(state, tmp_path / LAION.name)
    (said,) = notes_with(tmp_path / LAION.name, tmp_path, wide)
    assert "is not one of the published ones" in said


def test_the_published_sibling_is_called_by_its_name(tmp_path, wide, monkeypatch):
    torch.save(make_head(768).state_dict(), tmp_path / "head.pth")
    known = Head(tmp_path / "head.pth", 768).fingerprint
    monkeypatch.setitem(PUBLISHED, known, "ava+logos-l14-linearMSE")
    (said,) = notes_with(tmp_path / "head.pth", tmp_path, wide)
    assert "the head head.pth is LAION's ava+logos-l14-linearMSE; its numbers cannot be compared" in said


def test_a_head_with_something_between_its_layers_is_refused(tmp_path):
    """LAION's reluMSE: as many weights, at other places among the layers."""
    places = dict(zip((0, 2, 4, 6, 7), (0, 3, 6, 9, 11), strict=True))
    state = {}
    for name, value in make_head(768).state_dict().items():
        _, place, part = name.split(".")
        state[f"layers.{places[int(place)]}.{part}"] = value
    torch.save(state, tmp_path / "relu.pth")
    with pytest.raises(MapoError, match=r"it has layers\.11\.bias, which is not in one"):
        Head(tmp_path / "relu.pth", 768)


def test_a_folder_with_its_own_clip_model_is_said(folder):
    scorer = load_scorer(f"aesthetic@{folder}")
    scorer([noise((8, 8))], [""])
    head, clip = scorer.notes()
    assert "head.pth is not one of the published ones" in head
    assert str(folder) in clip and f"only if that is {CLIP.name}" in clip
