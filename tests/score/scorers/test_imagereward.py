"""ImageReward on a small checkpoint in the authors' own layout, against a forward pass written here a second time."""

import itertools
import json
import math
import os
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizerFast

from mapo.errors import MapoError
from mapo.score.scorers import load_scorer
from mapo.score.scorers.checkpoint import check_shapes
from mapo.score.scorers.imagereward import network, renamed

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "square", "blue", "heart", "zebra", ".", ","]
PROMPTS = ["a red square", "zebra", "a blue heart, a red heart.", "Zebra Zebra zebra"]
SIZES = [(32, 32), (70, 41), (41, 70), (33, 96), (20, 11), (1, 1), (3, 64)]
TINY = {
    "width": 128, "depth": 2, "patch": 8, "side": 32,
    "hidden": 32, "layers": 2, "heads": 4, "inner": 48, "vocab": len(WORDS) + 2, "places": 64,
}  # fmt: skip
REAL = {
    "width": 1024, "depth": 24, "patch": 16, "side": 224,
    "hidden": 768, "layers": 12, "heads": 12, "inner": 3072, "vocab": 30524, "places": 512,
}  # fmt: skip


def layout(width, depth, patch, side, hidden, layers, heads, inner, vocab, places):
    """Every tensor of the authors' checkpoint and its shape: BLIP's ViT, its BERT with cross attention, the head."""

    def line(name, out, into):
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name, size):
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    see, read = "blip.visual_encoder", "blip.text_encoder"
    found = {
        f"{see}.cls_token": (1, 1, width),
        f"{see}.pos_embed": (1, (side // patch) ** 2 + 1, width),
        f"{see}.patch_embed.proj.weight": (width, 3, patch, patch),
        f"{see}.patch_embed.proj.bias": (width,),
        **norm(f"{see}.norm", width),
        f"{read}.embeddings.position_ids": (1, places),
        f"{read}.embeddings.word_embeddings.weight": (vocab, hidden),
        f"{read}.embeddings.position_embeddings.weight": (places, hidden),
        **norm(f"{read}.embeddings.LayerNorm", hidden),
        **line("blip.vision_proj", 256, width),
        **line("blip.text_proj", 256, hidden),
    }
    for k in range(depth):
        at = f"{see}.blocks.{k}"
        found |= {
            **norm(f"{at}.norm1", width),
            **norm(f"{at}.norm2", width),
            **line(f"{at}.attn.qkv", 3 * width, width),
        }
        found |= line(f"{at}.attn.proj", width, width)
        found |= {**line(f"{at}.mlp.fc1", 4 * width, width), **line(f"{at}.mlp.fc2", width, 4 * width)}
    for k in range(layers):
        at = f"{read}.encoder.layer.{k}"
        for kind, source in (("attention", hidden), ("crossattention", width)):
            found |= line(f"{at}.{kind}.self.query", hidden, hidden)
            found |= {
                **line(f"{at}.{kind}.self.key", hidden, source),
                **line(f"{at}.{kind}.self.value", hidden, source),
            }
            found |= {
                **line(f"{at}.{kind}.output.dense", hidden, hidden),
                **norm(f"{at}.{kind}.output.LayerNorm", hidden),
            }
        found |= {**line(f"{at}.intermediate.dense", inner, hidden), **line(f"{at}.output.dense", hidden, inner)}
        found |= norm(f"{at}.output.LayerNorm", hidden)
    ends = (hidden, 1024, 128, 64, 16, 1)
    for place, (into, out) in zip((0, 2, 4, 6, 7), itertools.pairwise(ends), strict=True):
        found |= line(f"mlp.layers.{place}", out, into)
    return found


def med_config(sizes):
    """The fields of BLIP's med_config.json, with those that nothing reads."""
    return {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": sizes["hidden"], "initializer_range": 0.02,
        "intermediate_size": sizes["inner"], "layer_norm_eps": 1e-12, "max_position_embeddings": sizes["places"],
        "model_type": "bert", "num_attention_heads": sizes["heads"], "num_hidden_layers": sizes["layers"],
        "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": sizes["vocab"], "encoder_width": 768,
        "add_cross_attention": True,
    }  # fmt: skip


def random_weights():
    """Far from small beginnings, so that pictures and prompts matter."""
    made = torch.Generator().manual_seed(5)
    found = {}
    for name, shape in layout(**TINY).items():
        if name.endswith("position_ids"):
            found[name] = torch.arange(shape[1])[None]
        elif "norm" in name.lower():
            found[name] = torch.randn(shape, generator=made) * 0.2 + float(name.endswith("weight"))
        else:
            found[name] = torch.randn(shape, generator=made) / math.sqrt(max(1, shape[-1] if len(shape) == 2 else 8))
    return found


def write_folder(folder, weights, config=None, words=WORDS):
    folder.mkdir(parents=True)
    (folder / "med_config.json").write_text(json.dumps(config or med_config(TINY)))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    torch.save(weights, folder / "ImageReward.pt")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Hashes are remembered in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", weights)


def noise(size, seed=0):
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def attention(w, name, asking, answering, heads, mask=None):
    """One head at a time."""
    width = w[f"{name}.query.weight"].shape[0] // heads
    q, k, v = (
        x @ w[f"{name}.{part}.weight"].T + w[f"{name}.{part}.bias"]
        for part, x in (("query", asking), ("key", answering), ("value", answering))
    )
    made = []
    for h in range(heads):
        at = slice(h * width, (h + 1) * width)
        scores = q[:, at] @ k[:, at].T / math.sqrt(width)
        scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
        made.append(scores.softmax(-1) @ v[:, at])
    return torch.cat(made, -1)


def normed(w, name, x, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def line(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def by_hand(weights, picture, prompt):
    """ImageReward in float64 as its authors compute it: padded to 35 tokens, the padding masked."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    side, patch, width = TINY["side"], TINY["patch"], TINY["width"]
    short = min(picture.size)
    resized = picture.resize([int(side * length / short) for length in picture.size], Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in resized.size)
    data = resized.crop((left, top, left + side, top + side)).tobytes()
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor(list(data), dtype=torch.float64).reshape(side, side, 3) / 255
    pixels = (pixels - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
    see, read = "blip.visual_encoder", "blip.text_encoder"
    kernel = w[f"{see}.patch_embed.proj.weight"].reshape(width, -1)
    x = [w[f"{see}.cls_token"][0, 0]]
    for row in range(0, side, patch):
        for column in range(0, side, patch):
            tile = pixels[row : row + patch, column : column + patch].permute(2, 0, 1).reshape(-1)
            x.append(kernel @ tile + w[f"{see}.patch_embed.proj.bias"])
    x = torch.stack(x) + w[f"{see}.pos_embed"][0]
    for k in range(TINY["depth"]):
        at = f"{see}.blocks.{k}"
        qkv = dict(zip(("query", "key", "value"), w[f"{at}.attn.qkv.weight"].split(width), strict=True))
        bias = dict(zip(("query", "key", "value"), w[f"{at}.attn.qkv.bias"].split(width), strict=True))
        parts = {f"s.{n}.weight": t for n, t in qkv.items()} | {f"s.{n}.bias": t for n, t in bias.items()}
        h = normed(w, f"{at}.norm1", x, 1e-6)
        x = x + line(w, f"{at}.attn.proj", attention(parts, "s", h, h, width // 64))
        x = x + line(w, f"{at}.mlp.fc2", gelu(line(w, f"{at}.mlp.fc1", normed(w, f"{at}.norm2", x, 1e-6))))
    seen = normed(w, f"{see}.norm", x, 1e-6)
    words = prompt.lower().replace(",", " ,").replace(".", " .").split()
    ids = [2, *[WORDS.index(word) for word in words][:33], 3]
    mask = torch.tensor([place < len(ids) for place in range(35)])
    ids = ids + [0] * (35 - len(ids))
    x = w[f"{read}.embeddings.word_embeddings.weight"][ids] + w[f"{read}.embeddings.position_embeddings.weight"][:35]
    x = normed(w, f"{read}.embeddings.LayerNorm", x, 1e-12)
    for k in range(TINY["layers"]):
        at = f"{read}.encoder.layer.{k}"
        for kind, other, hidden in (("attention", None, mask), ("crossattention", seen, None)):
            a = attention(w, f"{at}.{kind}.self", x, x if other is None else other, TINY["heads"], hidden)
            x = normed(w, f"{at}.{kind}.output.LayerNorm", line(w, f"{at}.{kind}.output.dense", a) + x, 1e-12)
        h = line(w, f"{at}.output.dense", gelu(line(w, f"{at}.intermediate.dense", x)))
        x = normed(w, f"{at}.output.LayerNorm", h + x, 1e-12)
    x = x[0]
    for place in (0, 2, 4, 6, 7):
        x = line(w, f"mlp.layers.{place}", x)
    return (float(x) - 0.16717362830052426) / 1.0333394966054072


def test_the_score_is_the_formula_at_every_shape_of_picture(folder, weights):
    pictures, prompts = [noise(size, k) for k, size in enumerate(SIZES)], (PROMPTS * 2)[: len(SIZES)]
    wanted = [by_hand(weights, picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    assert max(wanted) - min(wanted) > 0.1
    assert load_scorer(f"imagereward@{folder}")(pictures, prompts)["imagereward"] == pytest.approx(wanted, abs=2e-4)


def test_picture_and_prompt_both_count(folder):
    scorer = load_scorer(f"imagereward@{folder}")
    one, other = noise((32, 32), 1), noise((32, 32), 2)
    values = scorer([one, one, other], [PROMPTS[0], PROMPTS[1], PROMPTS[0]])["imagereward"]
    assert abs(values[0] - values[1]) > 1e-2 and abs(values[0] - values[2]) > 1e-3
    with pytest.raises(TypeError, match="a picture and its prompt, in this order"):
        scorer([PROMPTS[0]], [one])
    assert scorer([], []) == {"imagereward": []}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SIZES) - 1), st.integers(0, 3)), min_size=1, max_size=8), st.randoms())
def test_batch_size_and_order_change_nothing_but_rounding(folder, asked, rng):
    scorer = load_scorer(f"imagereward@{folder}")
    pictures, prompts = [noise(SIZES[k], k) for k, _ in asked], [PROMPTS[k] for _, k in asked]
    whole = scorer(pictures, prompts)["imagereward"]
    single = [scorer([picture], [prompt])["imagereward"][0] for picture, prompt in zip(pictures, prompts, strict=True)]
    order = rng.sample(range(len(asked)), len(asked))
    turned = scorer([pictures[k] for k in order], [prompts[k] for k in order])["imagereward"]
    assert whole == pytest.approx(single, abs=1e-4)
    assert [whole[k] for k in order] == pytest.approx(turned, abs=1e-4)


def test_every_tensor_of_the_published_layout_has_its_place_in_the_classes_of_transformers():
    with torch.device("meta"):
        published = {name: torch.empty(shape) for name, shape in layout(**REAL).items()}
        weights = renamed(published)
        model = network(weights, med_config(REAL))
    check_shapes("imagereward", "the published file", weights, model.state_dict(), "ImageReward")
    assert len(weights) == len(published) - 5  # two projections and the numbers of the places take no part
    assert sum(p.numel() for p in model.parameters()) == sum(tensor.numel() for tensor in weights.values())
    assert model["vision"].config.num_attention_heads == 16 and model["vision"].config.image_size == 224
    assert model["text"].config.encoder_hidden_size == 1024


def test_the_published_layout_is_as_large_as_the_published_file():
    """The file on the hub has 1,786,8xx,xxx bytes: float32 tensors, and some hundred bytes of pickle for each."""
    sizes = layout(**REAL)
    tensors = sum(math.prod(shape) * (8 if name.endswith("position_ids") else 4) for name, shape in sizes.items())
    assert 0 < 1_786_880_927 - tensors < 600 * len(sizes)


def test_safetensors_are_read_in_place_of_the_pickle(folder, weights, tmp_path):
    copy = write_folder(tmp_path / "m", weights)
    save_file(weights, copy / "ImageReward.safetensors")
    (copy / "ImageReward.pt").unlink()
    picture = noise((40, 33), 3)
    places = (folder, folder / "ImageReward.pt", copy)
    values = [load_scorer(f"imagereward@{place}")([picture], [PROMPTS[2]])["imagereward"] for place in places]
    assert values[0] == values[1] == values[2]


def test_a_pickle_that_would_run_code_is_refused(folder, weights, tmp_path):
    class Bad:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    copy = write_folder(tmp_path / "m", {**weights, "blip.extra": Bad()})
    with pytest.raises(MapoError, match=r"ImageReward\.pt cannot be read as tensors"):
        load_scorer(f"imagereward@{copy}")([noise((8, 8))], ["zebra"])
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_changed_since_its_first_use_is_refused(weights, tmp_path):
    copy, picture = write_folder(tmp_path / "m", weights), noise((8, 8))
    first = load_scorer(f"imagereward@{copy}")([picture], ["zebra"])
    assert load_scorer(f"imagereward@{copy}")([picture], ["zebra"]) == first
    torch.save({**weights, "mlp.layers.7.bias": torch.ones(1)}, copy / "ImageReward.pt")
    with pytest.raises(MapoError, match="not the file that was used first: its sha256 was"):
        load_scorer(f"imagereward@{copy}")([picture], ["zebra"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("mlp.layers.4.bias"), r"is not an ImageReward model: it lacks head\.4\.bias"),
        (lambda w: w.pop("blip.visual_encoder.pos_embed"), "are not an ImageReward"),
        (lambda w: w.update({"mlp.layers.9.bias": torch.ones(1)}), r"it has head\.9\.bias"),
        (lambda w: w.update({"mlp.layers.7.bias": torch.ones(2)}), r"head\.7\.bias is \(2,\), not \(1,\)"),
        (lambda w: w.update({"steps": 3}), "holds other things than named tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_never_random(weights, tmp_path, change, sentence):
    changed = dict(weights)
    change(changed)
    with pytest.raises(MapoError, match=sentence):
        load_scorer(f"imagereward@{write_folder(tmp_path / 'm', changed)}")([noise((8, 8))], ["zebra"])


def test_a_config_or_tokenizer_that_does_not_fit_is_told(weights, tmp_path):
    broken = write_folder(tmp_path / "a", weights)
    (broken / "med_config.json").write_text("{")
    with pytest.raises(MapoError, match=r"med_config\.json is damaged"):
        load_scorer(f"imagereward@{broken}")
    with pytest.raises(MapoError, match="has 16 tokens and the model reads 15"):
        load_scorer(f"imagereward@{write_folder(tmp_path / 'b', weights, words=[*WORDS, 'more'])}")
    lacking = write_folder(tmp_path / "c", weights)
    (lacking / "ImageReward.pt").unlink()
    with pytest.raises(MapoError, match=r"holds no checkpoint such as ImageReward\.pt"):
        load_scorer(f"imagereward@{lacking}")
    (broken / "med_config.json").unlink()
    with pytest.raises(MapoError, match=r"lacks med_config\.json"):
        load_scorer(f"imagereward@{broken / 'ImageReward.pt'}")


def test_long_prompts_are_cut_at_35_tokens_as_by_the_authors_and_named(folder, weights):
    scorer, picture = load_scorer(f"imagereward@{folder}"), noise((40, 32))
    long = "zebra, " * 30
    value = scorer([picture, picture], [long, "zebra"])["imagereward"][0]
    assert value == pytest.approx(by_hand(weights, picture, long), abs=2e-4)
    (note,) = scorer.notes()
    assert note.startswith("imagereward: 1 prompt has more than the 35 tokens") and "(62 tokens)" in note


def test_the_words_that_blip_adds_are_no_words_of_a_prompt(folder):
    tokenizer = load_scorer(f"imagereward@{folder}").tokenizer
    assert tokenizer("[DEC] zebra")["input_ids"] == [2, len(WORDS), WORDS.index("zebra"), 3]
    assert tokenizer.convert_tokens_to_ids("[ENC]") == len(WORDS) + 1


def test_weights_that_are_not_there_are_one_sentence_that_says_what_to_type(tmp_path):
    code = "from mapo.score.scorers import load_scorer; load_scorer('imagereward')"
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    last = done.stderr.strip().splitlines()[-1]
    assert "imagereward: THUDM/ImageReward is not on this machine" in last
    assert '--revision 5736be03b2652728fb87788c9797b0570450ab72 --include "ImageReward.pt"`' in last
