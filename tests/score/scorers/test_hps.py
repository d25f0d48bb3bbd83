"""HPS v2 on a small open_clip checkpoint, against open_clip's own way of computing it, written anew here."""

import hashlib
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate, normalize, pad
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from mapo.errors import MapoError
from mapo.lab.mini.parts import make_tokenizer
from mapo.score.scorers import load_scorer
from mapo.score.scorers.clip import PICKSCORE_PROCESSOR
from mapo.score.scorers.hps import HPS, MEAN, PUBLISHED, STD, from_open_clip, prepare, vit_h_14
from small_scorers import PROMPTS, check_order, lively, noise, place_in_hub

TOKENS = 24
# none that becomes one pixel wide: there torch's own resize, with which we compare, differs from that of the turned picture
SIZES = [(28, 28), (70, 41), (41, 70), (33, 96), (20, 11), (1, 1), (3, 3), (5, 1), (64, 3)]
# open_clip's model_configs/ViT-H-14.json, and a small model of the same layout
VIT_H_14 = {"embed": 1024, "side": 224, "patch": 14, "see": (1280, 32, 16), "read": (1024, 24, 16), "words": 49408}
SMALL = {"embed": 12, "side": 28, "patch": 7, "see": (20, 3, 2), "read": (16, 2, 4), "words": 0}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self, width, layers, heads):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Seeing(nn.Module):
    def __init__(self, size):
        super().__init__()
        width = size["see"][0]
        self.conv1 = nn.Conv2d(3, width, size["patch"], size["patch"], bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size["side"] // size["patch"]) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(*size["see"])
        self.proj = nn.Parameter(torch.empty(width, size["embed"]))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """Names and computation as in open_clip; texts are filled up with 0 and read at their largest token."""

    def __init__(self, size, positions):
        super().__init__()
        width = size["read"][0]
        self.visual = Seeing(size)
        self.transformer = Tower(*size["read"])
        self.token_embedding = nn.Embedding(size["words"], width)
        self.positional_embedding = nn.Parameter(torch.empty(positions, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, size["embed"]))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def read(self, ids):
        length = len(self.positional_embedding)
        ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        ids = torch.tensor([ids + [0] * (length - len(ids))])
        mask = torch.full((length, length), float("-inf"), dtype=self.text_projection.dtype).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding, mask))
        return x[0, ids.argmax()] @ self.text_projection


def package_pixels(picture, side):
    """The package's preparation on tensors, as torchvision does it since 0.17, in float64: "1 3 side side"."""
    width, height = picture.size
    pixels = torch.tensor(list(picture.tobytes()), dtype=torch.float64).reshape(height, width, 3).permute(2, 0, 1) / 255
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if scale != 1:
        pixels = interpolate(pixels[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    tall, wide = side - size[0], side - size[1]
    pixels = pad(pixels, [wide // 2, wide - wide // 2, tall // 2, tall - tall // 2])
    mean, std = (torch.tensor(value, dtype=torch.float64).reshape(3, 1, 1) for value in (MEAN, STD))
    return ((pixels - mean) / std)[None]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a small checkpoint, its sizes and a tokenizer, and the model that it holds."""
    folder = tmp_path_factory.mktemp("hps") / "small"
    tokenizer = make_tokenizer(folder)
    size = SMALL | {"words": len(tokenizer)}
    model = lively(OpenClip(size, TOKENS)).eval()
    (see, see_layers, see_heads), (read, read_layers, read_heads) = size["see"], size["read"]
    both = {"hidden_act": "gelu", "projection_dim": size["embed"]}
    vision = {"hidden_size": see, "num_hidden_layers": see_layers, "num_attention_heads": see_heads}
    vision |= {"intermediate_size": 4 * see, "image_size": size["side"], "patch_size": size["patch"]}
    text = {"hidden_size": read, "num_hidden_layers": read_layers, "num_attention_heads": read_heads}
    text |= {"intermediate_size": 4 * read, "vocab_size": size["words"], "max_position_embeddings": TOKENS}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config=text | both, vision_config=vision | both, projection_dim=size["embed"])
    config.save_pretrained(folder)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "weights.pt")
    return folder, model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def by_hand(world, picture, prompt):
    folder, model = world
    ids = CLIPTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    with torch.no_grad():
        seen = normalize(model.double().visual(package_pixels(picture, SMALL["side"]))[0], dim=0)
        asked = normalize(model.read(ids), dim=0)
    return 100 * float(seen @ asked)


def test_the_published_model_is_mapped_key_by_key_and_shape_by_shape():
    with torch.device("meta"):
        theirs = OpenClip(VIT_H_14, 77).state_dict()
        wanted = CLIPModel(vit_h_14()).state_dict()
    found = from_open_clip(theirs)
    assert (len(theirs), len(found)) == (686, 910)
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in wanted.items()}


def test_the_published_model_is_computed_as_open_clip_does():
    config = vit_h_14()
    for tower, (width, layers, heads) in (
        (config.vision_config, VIT_H_14["see"]),
        (config.text_config, VIT_H_14["read"]),
    ):
        assert (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads) == (width, layers, heads)
        assert (tower.hidden_act, tower.layer_norm_eps) == ("gelu", nn.LayerNorm(1).eps)
    assert (config.text_config.vocab_size, config.text_config.max_position_embeddings) == (49408, 77)
    assert config.text_config.eos_token_id == 49407  # the largest of the vocabulary, where open_clip reads a text


def test_the_number_is_a_hundred_cosines_at_every_shape_of_picture(world):
    pictures, prompts = [noise(size, k) for k, size in enumerate(SIZES)], (PROMPTS * 3)[: len(SIZES)]
    prompts[3] = "zebra " * 40
    wanted = [by_hand(world, picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    assert max(wanted) - min(wanted) > 10
    for kind in ("hps-v2.0", "hps-v2.1"):
        scorer = load_scorer(f"{kind}@{world[0]}")
        assert scorer.metrics == (kind.replace("-", "_"),) and scorer.name == f"{kind}@small"
        assert scorer(pictures, prompts)[scorer.metrics[0]] == pytest.approx(wanted, abs=1e-3)
        cut, unknown = scorer.notes()
        assert cut.startswith(f"{kind}: 1 prompt has more tokens")
        assert unknown.startswith(f"{kind}: weights.pt is not the published file; unless it holds the same weights")


@pytest.mark.parametrize(
    "size", [(224, 224), (300, 200), (200, 301), (224, 100), (33, 500), (900, 1), (1, 1), (100, 100)]
)
def test_pictures_are_prepared_as_the_package_does(size):
    picture = noise(size)
    ours, theirs = prepare(224, [picture])[0].double(), package_pixels(picture, 224)[0]
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 2e-5


def test_what_is_filled_up_is_black_and_nothing_is_cut_off():
    pixels = prepare(8, [noise((16, 6))])[0] * torch.tensor(STD).reshape(3, 1, 1) + torch.tensor(MEAN).reshape(3, 1, 1)
    filled = pixels.abs().amax((0, 2)) < 1e-6
    assert filled.tolist() == [True, True, False, False, False, True, True, True]


def test_batch_size_and_order_change_nothing_but_rounding(world):
    columns = [noise(size, k) for k, size in enumerate(SIZES)], [PROMPTS[k % 4] for k in range(len(SIZES))]
    check_order(load_scorer(f"hps-v2.1@{world[0]}"), *columns, tolerance=1e-3)


def test_prompts_and_pictures_cannot_be_swapped(world):
    scorer = load_scorer(f"hps-v2.0@{world[0]}")
    with pytest.raises(TypeError, match=r"hps-v2\.0 takes a picture and its prompt, in this order"):
        scorer(["zebra"], [noise((8, 8))])
    assert scorer([], []) == {"hps_v2.0": []}


def test_the_same_weights_give_the_same_number_in_every_form(world, tmp_path):
    folder, model = world
    wanted = by_hand(world, noise((40, 30)), "zebra")
    state = {name: value.float().contiguous() for name, value in model.state_dict().items()}
    forms = {
        "bare": lambda place: torch.save(state, place / "x.pth"),
        "safe": lambda place: save_file(state, place / "x.safetensors"),
        "ours": lambda place: save_file(from_open_clip(state), place / "model.safetensors", {"format": "pt"}),
    }
    for form, write in forms.items():
        place = tmp_path / form
        make_tokenizer(place)
        (place / "config.json").write_text((folder / "config.json").read_text())
        write(place)
        got = load_scorer(f"hps-v2.1@{place}")([noise((40, 30))], ["zebra"])["hps_v2.1"]
        assert got == pytest.approx([wanted], abs=1e-3), form


def test_a_checkpoint_of_another_model_is_told_by_its_first_difference(world, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder, model = world
    place_in_hub(tmp_path / "hub", PICKSCORE_PROCESSOR, folder, "vocab.json", "merges.txt")
    scorer = load_scorer(f"hps-v2.0@{folder / 'weights.pt'}")  # a file alone is taken for a ViT-H-14
    with pytest.raises(MapoError, match=r"weights\.pt is not a CLIP model .* is \(24, 16\), not \(77, 1024\)"):
        scorer([noise((8, 8))], ["zebra"])
    make_tokenizer(tmp_path / "less")
    (tmp_path / "less" / "config.json").write_text((folder / "config.json").read_text())
    state = dict(model.state_dict())
    del state["visual.transformer.resblocks.2.attn.in_proj_weight"]
    torch.save(state, tmp_path / "less" / "w.pt")
    with pytest.raises(MapoError, match=r"lacks vision_model\.encoder\.layers\.2\.self_attn\.k_proj\.weight"):
        load_scorer(f"hps-v2.0@{tmp_path / 'less'}")([noise((8, 8))], ["zebra"])


def test_what_is_downloaded_is_known_by_its_commit_and_its_hash(world, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    with pytest.raises(MapoError) as told:
        load_scorer("hps-v2.1")
    assert f'type `hf download xswu/HPSv2 --revision {HPS.commit} --include "HPS_v2.1_compressed.pt"`' in str(
        told.value
    )
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes((world[0] / "weights.pt").read_bytes())
    place_in_hub(hub, HPS, tmp_path, "HPS_v2.1_compressed.pt")
    with pytest.raises(MapoError, match=r"hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        load_scorer("hps-v2.1")
    place_in_hub(hub, PICKSCORE_PROCESSOR, world[0], "vocab.json", "merges.txt")
    scorer = load_scorer("hps-v2.1")
    assert scorer.name == "hps-v2.1"
    assert scorer.revision.startswith(f"{HPS.commit}/") and scorer.revision.endswith(f"+{PICKSCORE_PROCESSOR.commit}")
    assert scorer.similarity.pixels([noise((9, 9))]).shape == (1, 3, 224, 224)


def test_the_file_of_the_other_version_is_refused_whatever_it_is_called(world, tmp_path, monkeypatch):
    digest = hashlib.sha256((world[0] / "weights.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, digest[:16], "hps-v2.0")
    assert load_scorer(f"hps-v2.0@{world[0]}").notes() == []
    shutil.copytree(world[0], tmp_path / "m")
    (tmp_path / "m" / "weights.pt").rename(tmp_path / "m" / "HPS_v2_1.pt")
    for source in (tmp_path / "m", tmp_path / "m" / "HPS_v2_1.pt"):
        with pytest.raises(MapoError, match=r"is the published file of hps-v2\.0, whatever it is called"):
            load_scorer(f"hps-v2.1@{source}")


def test_code_in_a_pickle_is_not_run(world, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    make_tokenizer(tmp_path / "trap")
    (tmp_path / "trap" / "config.json").write_text((world[0] / "config.json").read_text())
    (tmp_path / "trap" / "w.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    with pytest.raises(MapoError, match=r"w\.pt cannot be read as tensors"):
        load_scorer(f"hps-v2.0@{tmp_path / 'trap'}")([noise((8, 8))], ["zebra"])
    assert not (tmp_path / "sprung").exists()
