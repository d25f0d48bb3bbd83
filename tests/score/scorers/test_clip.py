"""CLIP score and PickScore on a small CLIPModel with random weights, against the formula computed another way."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from apart import run_apart
from mapo.build.judge import parse_filter
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.lab.mini.parts import make_tokenizer
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images, png_bytes
from mapo.score.score import score_images
from mapo.score.scorers import load_scorer
from mapo.score.scorers.clip import CLIP, PICKSCORE, PICKSCORE_PROCESSOR
from mapo.score.table import read_scores
from small_scorers import MEAN, PROMPTS, SIZES, STD, noise

SIDE, TOKENS = 32, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model of CLIP's class, in a folder that is hard to name on a command line."""
    folder = tmp_path_factory.mktemp("models") / "tiny: clip, mine"
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(3)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers |= {"projection_dim": 12}
    text = {
        **layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**layers, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = CLIPModel(config)
    for parameter in model.parameters():  # far from their small beginnings, so that pictures and prompts matter
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.logit_scale.data.fill_(2.5)
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def by_hand(folder, picture, prompt):
    """The cosine in float64, one picture and one prompt at a time, by two separate networks."""
    width, height = picture.size
    short = min(width, height)
    size = (SIDE if width == short else SIDE * width // short, SIDE if height == short else SIDE * height // short)
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    cropped = resized.crop((left, top, left + SIDE, top + SIDE))
    pixels = torch.tensor(list(cropped.tobytes()), dtype=torch.float64).reshape(SIDE, SIDE, 3) / 255
    pixels = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    ids = CLIPTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    ids = ids if len(ids) <= TOKENS else [*ids[: TOKENS - 1], ids[-1]]
    seeing = CLIPVisionModelWithProjection.from_pretrained(folder).double().eval()
    reading = CLIPTextModelWithProjection.from_pretrained(folder).double().eval()
    with torch.no_grad():
        image, text = seeing(pixels).image_embeds[0], reading(torch.tensor([ids])).text_embeds[0]
    return float(image @ text / image.norm() / text.norm())


def test_both_scores_are_their_formula_at_every_shape_of_picture(folder):
    both = [(noise(size, k), prompt) for k, size in enumerate(SIZES) for prompt in PROMPTS]
    pictures, prompts = [picture for picture, _ in both], [prompt for _, prompt in both]
    cosines = [by_hand(folder, picture, prompt) for picture, prompt in both]
    assert max(cosines) > 0.01 and min(cosines) < -0.01
    clip = load_scorer(f"clip@{folder}")(pictures, prompts)["clip_score"]
    assert clip == pytest.approx([100 * max(cosine, 0) for cosine in cosines], abs=1e-3)
    scale = float(load_file(folder / "model.safetensors")["logit_scale"].exp())
    pick = load_scorer(f"pickscore@{folder}")(pictures, prompts)["pickscore"]
    assert pick == pytest.approx([scale * cosine for cosine in cosines], abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=12), st.randoms())
def test_batch_size_and_order_change_nothing_but_rounding(folder, asked, rng):
    scorer = load_scorer(f"pickscore@{folder}")
    pictures, prompts = [noise(SIZES[k], k) for k, _ in asked], [PROMPTS[k] for _, k in asked]
    whole = scorer(pictures, prompts)["pickscore"]
    single = [scorer([picture], [prompt])["pickscore"][0] for picture, prompt in zip(pictures, prompts, strict=True)]
    order = rng.sample(range(len(asked)), len(asked))
    turned = scorer([pictures[k] for k in order], [prompts[k] for k in order])["pickscore"]
    assert whole == pytest.approx(single, abs=1e-4)
    assert [whole[k] for k in order] == pytest.approx(turned, abs=1e-4)


def test_no_pictures_give_no_numbers(folder):
    assert load_scorer(f"clip@{folder}")([], []) == {"clip_score": []}


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_prepared_pictures_get_the_same_numbers_to_the_bit(folder, name):
    scorer, pictures = load_scorer(f"{name}@{folder}"), [noise(size, k) for k, size in enumerate(SIZES)]
    prompts = (PROMPTS * 3)[: len(SIZES)]
    assert scorer.score([scorer.prepare(p) for p in pictures], prompts) == scorer(pictures, prompts)


def test_swapped_arguments_and_wrong_modes_are_refused(folder):
    scorer, picture = load_scorer(f"clip@{folder}"), noise((8, 8))
    with pytest.raises(TypeError, match="a picture and its prompt, in this order; number 0 is str and Image"):
        scorer(["a cat"], [picture])
    with pytest.raises(TypeError, match="number 1 is Image and NoneType"):
        scorer([picture, picture], ["a cat"])
    with pytest.raises(TypeError, match="number 0 is RGBA"):
        scorer([picture.convert("RGBA")], ["a cat"])


def test_long_prompts_are_cut_as_clip_does_and_named(folder):
    long = [f"zebra {k} " + "zebra " * 20 for k in range(7)]
    scorer, picture = load_scorer(f"pickscore@{folder}"), noise((40, 32))
    got = scorer([picture] * 8, [*long, "a small red circle"])["pickscore"]
    scale = float(load_file(folder / "model.safetensors")["logit_scale"].exp())
    assert got[3] == pytest.approx(scale * by_hand(folder, picture, long[3]), abs=1e-4)
    scorer([picture], [long[0]])  # again, and counted once
    (note,) = scorer.notes()
    count = len(CLIPTokenizer.from_pretrained(folder)(long[0])["input_ids"])
    assert note.startswith("pickscore: 7 prompts have more tokens than the model reads and were cut: 'zebra 0 zebra")
    assert f"({count} tokens)" in note and note.count("tokens)") == 5 and note.endswith("; and 2 more")
    assert load_scorer(f"pickscore@{folder}").notes() == []


def write_images(folder, prompts):
    rows, data = [], []
    for k, prompt in enumerate(prompts):
        png = png_bytes(noise((40 + k, 32), k))
        rows.append(ImageRow(f"{k}.png", prompt_id(prompt), prompt, k, k, sha256(png), "noise"))
        data.append(png)
    append_images(folder, rows, data)
    return folder


def test_the_command_scores_with_a_folder_and_lets_no_library_speak(folder, tmp_path):
    images = write_images(tmp_path / "images", [*PROMPTS, "zebra " * 40])
    done = run_apart(
        "-m", "mapo", "score", images, "--scorer", f"clip@{folder},pickscore@{folder}", "--out", tmp_path / "s.parquet"
    )
    assert done.returncode == 0, done.stderr
    bars = [line for line in done.stderr.replace("\r", "\n").split("\n") if line.strip()]
    assert bars and all(line.startswith(("score clip@tiny: clip, mine: ", "score pickscore@tiny: ")) for line in bars)
    said = done.stdout.splitlines()
    assert [line[:20] for line in said[:-1]] == ["note: clip: 1 prompt", "note: pickscore: 1 p"]
    rows = read_scores(tmp_path / "s.parquet").to_pylist()
    assert {(row["scorer"], row["metric"]) for row in rows} == {
        ("clip@tiny: clip, mine", "clip_score"),
        ("pickscore@tiny: clip, mine", "pickscore"),
    }
    for row in rows:
        cosine = by_hand(folder, noise((40 + row["seed"], 32), row["seed"]), row["prompt"])
        value = 100 * max(cosine, 0) if row["metric"] == "clip_score" else 2.718281828**2.5 * cosine
        assert row["value"] == pytest.approx(value, abs=1e-3)


def test_a_judge_of_pairs_takes_a_folder_with_colons_and_commas(folder):
    judge = parse_filter(f"clip@{folder}:clip_score:12.5")
    assert (judge.scorer.name, judge.metric, judge.threshold) == ("clip@tiny: clip, mine", "clip_score", 12.5)
    assert parse_filter(f"pickscore@{folder}:-pickscore").sign == -1
    with pytest.raises(MapoError, match="write .*:METRIC or"):
        parse_filter(f"clip@{folder}:klip_score")


def test_two_scorers_of_one_name_are_not_mixed_in_a_table(folder, tmp_path):
    shutil.copytree(folder, tmp_path / folder.name)
    with pytest.raises(MapoError, match="two scorers would be called clip@tiny: clip, mine"):
        score_images(
            write_images(tmp_path / "i", PROMPTS),
            f"clip@{folder},clip@{tmp_path / folder.name}",
            tmp_path / "s.parquet",
        )


def test_the_revision_of_a_folder_is_its_content(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = load_scorer(f"clip@{folder}").revision
    assert load_scorer(f"clip@{copy}").revision == first
    weights = load_file(copy / "model.safetensors")
    weights["logit_scale"] += 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    changed = load_scorer(f"clip@{copy}").revision
    assert changed != first
    (copy / "preprocessor_config.json").write_text((copy / "preprocessor_config.json").read_text() + " ")
    assert load_scorer(f"clip@{copy}").revision not in (first, changed)


def snapshot(home, repository, folder, leave_out=()):
    """Puts a folder into the hub's cache as its downloads do."""
    cache = home / "hub" / f"models--{repository.name.replace('/', '--')}"
    place = cache / "snapshots" / repository.commit
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns(*leave_out))
    (cache / "refs").mkdir(exist_ok=True)
    (cache / "refs" / "main").write_text(repository.commit)
    return place


TELL = """
import sys
from mapo.score.scorers import load_scorer
for name in sys.argv[1:]:
    scorer = load_scorer(name)
    print(scorer.name, scorer.revision, sep="|")
"""


@pytest.mark.long
def test_downloaded_models_are_found_without_a_network_and_named_by_their_commits(folder, tmp_path):
    snapshot(tmp_path, CLIP, folder)
    snapshot(tmp_path, PICKSCORE, folder, ["*.txt", "vocab.json", "preprocessor*", "tokenizer*"])
    snapshot(tmp_path, PICKSCORE_PROCESSOR, folder, ["*.safetensors"])
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    names = ["clip", "pickscore", f"clip@{CLIP.name}", f"pickscore@{PICKSCORE.name}"]
    done = subprocess.run([sys.executable, "-c", TELL, *names], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    both = f"{PICKSCORE.commit}+{PICKSCORE_PROCESSOR.commit}"
    assert [line.split("|") for line in done.stdout.splitlines()] == [
        ["clip", CLIP.commit],
        ["pickscore", both],
        [f"clip@{CLIP.name}", CLIP.commit],
        [f"pickscore@{PICKSCORE.name}", both],
    ]


ELSEWHERE = """
import sys
from huggingface_hub import constants
constants.HF_HUB_CACHE, sys.argv = sys.argv[1], ["mapo", *sys.argv[2:]]
from mapo.cli import main
main()
"""


@pytest.mark.parametrize(("name", "repository"), [("clip", CLIP), ("pickscore", PICKSCORE), ("clip@some/one", None)])
def test_a_model_that_is_not_there_is_one_sentence_that_says_what_to_type(name, repository, tmp_path):
    images = write_images(tmp_path / "images", PROMPTS)
    words = ("score", images, "--scorer", name, "--out", tmp_path / "s.parquet")
    done = run_apart("-c", ELSEWHERE, tmp_path / "home" / "hub", *words)
    kind, repo = name.partition("@")[0], repository.name if repository else "some/one"
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"mapo: {kind}: {repo} is not on this machine and could not be fetched (")
    commit = f" --revision {repository.commit}" if repository else ""
    assert f'type `hf download {repo}{commit} --include "*.json" --include "model*.safetensors"`' in done.stderr
    assert done.stderr.endswith(f"or give a folder with {kind}@FOLDER.\n")


def damaged(folder, copy, name, change):
    shutil.copytree(folder, copy)
    path = copy / name
    data = change(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    return copy


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model.safetensors", lambda data: None, "does not hold a model in safetensors: it lacks model.safetensors"),
        ("model.safetensors", lambda data: data[:2000], "cannot be loaded"),
        ("config.json", lambda data: data.replace(b'"clip"', b'"siglip"'), r"is not a CLIP model; its config.json says siglip"),
        ("config.json", lambda data: b"{", "its config.json says damaged"),
        ("preprocessor_config.json", lambda data: None, "lacks preprocessor_config.json"),
        ("preprocessor_config.json", lambda data: b"[", "is damaged"),
        ("preprocessor_config.json", lambda data: data.replace(b'"height": 32', b'"height": 40'), "makes 40 × 32"),
        ("vocab.json", lambda data: None, "lacks tokenizer.json"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_told(folder, tmp_path, name, change, sentence):
    with pytest.raises(MapoError, match=sentence):
        load_scorer(f"clip@{damaged(folder, tmp_path / 'm', name, change)}")([noise((8, 8))], ["zebra"])


def test_weights_that_lack_a_part_are_refused_and_never_random(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(MapoError, match=r"not whole; they lack visual_projection\.weight"):
        load_scorer(f"clip@{tmp_path / 'm'}")([noise((8, 8))], ["zebra"])


def test_a_pickle_beside_is_never_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(MapoError, match=r"it lacks model\.safetensors"):
        load_scorer(f"clip@{tmp_path / 'm'}")


def test_half_precision_weights_are_computed_in_float32(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    scorer = load_scorer(f"clip@{tmp_path / 'm'}")
    assert {p.dtype for p in scorer.similarity.model.parameters()} == {torch.float32}


def test_pictures_are_embedded_at_unit_norm_where_their_cosine_with_a_text_is_that_of_the_formula(folder):
    scorer, pictures = load_scorer(f"clip@{folder}"), [noise(size, k) for k, size in enumerate(SIZES)]
    vectors = scorer.embed(pictures).double()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(SIZES), dtype=torch.float64))
    reading = CLIPTextModelWithProjection.from_pretrained(folder).double().eval()
    for prompt in PROMPTS[:2]:
        ids = torch.tensor([CLIPTokenizer.from_pretrained(folder)(prompt)["input_ids"]])
        with torch.no_grad():
            text = torch.nn.functional.normalize(reading(ids).text_embeds[0], dim=0)
        expected = [by_hand(folder, picture, prompt) for picture in pictures]
        assert (vectors @ text).tolist() == pytest.approx(expected, abs=1e-5)
    single = torch.cat([load_scorer(f"pickscore@{folder}").embed([picture]) for picture in pictures])
    torch.testing.assert_close(single.double(), vectors, rtol=0, atol=1e-5)
