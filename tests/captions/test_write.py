"""A captioning model writes the captions that are missing, each once, the same ones every time."""

import json
import shutil

import pytest
from describers import WORDS, make_blip, make_florence
from PIL import Image

from data_fixtures import encoded, noise
from mapo import api
from mapo.captions import write
from mapo.captions.ledger import Caption, read_ledger
from mapo.errors import MapoError
from mapo.progress import show_with

MAKERS = {"blip": make_blip, "florence2": make_florence}


@pytest.fixture(scope="module", params=MAKERS)
def model(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return make_blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        size = (40, 30) if number else (7, 90)
        (tmp_path / f"pictures/{number}.png").write_bytes(encoded(noise(number, size)))
    (tmp_path / "pictures/1.txt").write_text("a cup by hand")
    return tmp_path / "pictures"


def said(pictures, model, out, **how):
    return [one.raw for one in api.caption(pictures, out=out, caption_with=model, raw=True, **how)]


def test_pictures_without_a_caption_are_described_and_others_are_not(tmp_path, folder, model):
    out = tmp_path / "captions.jsonl"
    found = api.caption(folder, out=out, caption_with=model)
    assert found[1] == Caption("1.png", "a cup by hand", "beside", "a cup by hand")
    others = found[:1] + found[2:]
    assert all(one.source == f"model: {model}" and set(one.raw.split()) <= set(WORDS) for one in others)
    assert len({one.raw for one in others}) > 1  # it looks at the picture
    assert list(read_ledger(out).values()) == found
    assert [path.name for path in tmp_path.iterdir() if "captions" in path.name] == ["captions.jsonl"]


def test_batches_change_nothing(tmp_path, folder, model):
    batches = [said(folder, model, tmp_path / f"{n}.jsonl", images_per_batch=n) for n in (1, 2, 8)]
    assert batches[0] == batches[1] == batches[2]


def test_florence_is_asked_for_a_detailed_caption(tmp_path):
    folder = make_florence(tmp_path / "florence")
    prepare, tokenizer = write._preparing(folder, "florence2")
    asked = "Describe with a paragraph what is shown in the image."
    words = tokenizer(asked, add_special_tokens=False)["input_ids"]
    inputs = prepare([noise(1, (40, 30)), noise(2, (9, 90))])
    for row in inputs["input_ids"].tolist():
        assert row == [4] * 17 + [0, *words, 2]
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path, folder, blip, monkeypatch):
    whole = said(folder, blip, tmp_path / "whole.jsonl")
    out, asked, describe = tmp_path / "captions.jsonl", [], write._describe

    def counting(*given):
        asked.append(len(given[-1]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return describe(*given)

    monkeypatch.setattr(write, "_describe", counting)
    with pytest.raises(KeyboardInterrupt):
        said(folder, blip, out, images_per_batch=2)
    assert not out.exists()
    with (tmp_path / ".captions.jsonl.written").open("a") as file:
        file.write('{"picture": "half a li')
    bars = []

    class Bar:
        def __init__(self, **how):
            bars.append(how)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            bars.append(n)

    with show_with(Bar):
        assert said(folder, blip, out, images_per_batch=2) == whole
    assert asked == [2, 2, 2]
    assert (bars[0]["initial"], bars[0]["total"], bars[1:]) == (2, 4, [2])
    assert not (tmp_path / ".captions.jsonl.written").exists()
    assert said(folder, blip, out) == whole and asked == [2, 2, 2]


def test_another_model_or_another_picture_is_asked_again(tmp_path, folder, blip, monkeypatch):
    out, asked = tmp_path / "captions.jsonl", []
    monkeypatch.setattr(write, "_describe", lambda *given: asked.append(len(given[-1])) or ["a gate"] * len(given[-1]))
    (folder / "4.png").write_bytes(b"broken")
    with pytest.raises(MapoError, match="4.png is damaged: it is not in a known picture format. .* so far are kept"):
        said(folder, blip, out, images_per_batch=3)
    assert asked == [3]
    (folder / "4.png").write_bytes(encoded(noise(4)))
    (folder / "0.png").write_bytes(encoded(noise(9)))
    assert said(folder, blip, out, images_per_batch=3) == ["a gate", "a cup by hand", *["a gate"] * 3]
    assert asked == [3, 2]
    shutil.copytree(blip, tmp_path / "other")
    make_blip(tmp_path / "other", seed=1)
    out.unlink()
    said(folder, tmp_path / "other", out)
    assert asked == [3, 2, 4]


def test_what_a_model_says_is_cleaned_as_other_captions_are(tmp_path, folder, blip, monkeypatch):
    monkeypatch.setattr(write, "_describe", lambda *given: ["an oil painting of a gate"] * len(given[-1]))
    assert api.caption(folder, out=tmp_path / "captions.jsonl", caption_with=blip)[0].caption == "a gate"
    monkeypatch.setattr(write, "_describe", lambda *given: [""] * len(given[-1]))
    with pytest.raises(MapoError, match="4 pictures have no caption: 0.png, .* says nothing of it"):
        api.caption(folder, out=tmp_path / "other.jsonl", caption_with=blip)


def test_models_that_cannot_describe_are_refused_in_a_sentence(tmp_path, folder, blip):
    out = tmp_path / "captions.jsonl"
    with pytest.raises(
        MapoError, match="--caption-with nope: there is no folder nope. Give a folder, or a repository of the hub"
    ):
        api.caption(folder, out=out, caption_with="nope")
    with pytest.raises(
        MapoError,
        match="--caption-with: owner/nope is not on this machine and could not be fetched .* folder with --caption-with FOLDER",
    ):
        api.caption(folder, out=out, caption_with="owner/nope")
    for lacking in ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        shutil.copytree(blip, tmp_path / lacking)
        (tmp_path / lacking / lacking).unlink()
        with pytest.raises(
            MapoError, match=f"--caption-with: .* lacks {lacking}. Give another with --caption-with FOLDER"
        ):
            api.caption(folder, out=out, caption_with=tmp_path / lacking)
    other = shutil.copytree(blip, tmp_path / "clip")
    (other / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(MapoError, match="--caption-with: .*clip cannot be loaded .*"):
        api.caption(folder, out=out, caption_with=other)
    (other / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "x.X"}}))
    (other / "x.py").write_text("raise SystemExit('its code was run')")
    with pytest.raises(MapoError, match="--caption-with: .*clip cannot be loaded .*"):
        api.caption(folder, out=out, caption_with=other)
    with pytest.raises(MapoError, match="--images-per-batch 0: give 1 or more"):
        api.caption(folder, out=out, caption_with=blip, images_per_batch=0)
    assert not out.exists()


def test_torchvision_is_not_needed(blip):
    from transformers.utils import is_torchvision_available

    prepare, _ = write._preparing(blip, "blip")
    assert not is_torchvision_available() and prepare([Image.new("RGB", (3, 90))])["pixel_values"].shape == (
        1,
        3,
        16,
        16,
    )
