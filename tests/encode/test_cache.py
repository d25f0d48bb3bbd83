import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mapo.encode import fill
from mapo.encode.cache import Cache, cache_key, prompt_key
from mapo.encode.fill import encode, to_pixels
from mapo.errors import MapoError
from mapo.families import family_of, find_model
from mapo.pairs import PairSet


def parts(sdxl):
    model = find_model(str(sdxl))
    return family_of(model), model


def contents(folder):
    return {k: v for path in folder.glob("*-*.safetensors") for k, v in load_file(path).items()}


def test_each_picture_and_each_prompt_is_stored_once(sdxl, pairs, cache):
    opened, stored = PairSet(pairs), contents(cache)
    prompts = set(opened.table["prompt"].to_pylist())
    assert len(prompts) == 8 < len(opened) == 12
    assert {k.split("|")[0] for k in stored} == set(opened.image_names()) | {prompt_key(p) for p in prompts}


def test_the_cache_holds_what_the_encoders_say(sdxl, pairs, cache):
    family, model = parts(sdxl)
    opened, encoders = PairSet(pairs), family.load_text_encoders(model, "cpu")
    read = Cache(cache, cache_key(family, model, None, False))
    name = opened.image_names()[3]
    mean, logvar = family.encode_images(family.load_vae(model, "cpu"), to_pixels(opened.image(name), 16)[0][None])
    assert torch.allclose(read.latents(name, False)[0], mean[0], atol=1e-5)
    assert torch.allclose(read.latents(name, False)[1], logvar[0], atol=1e-5)
    prompt = opened[2].prompt
    text = family.encode_prompts(encoders, [prompt])
    stored = read.text(prompt)
    assert stored.keys() == text.keys()
    for key, value in stored.items():
        assert torch.allclose(value, text[key][0], atol=1e-5)


def test_the_text_conditioning_is_that_of_the_diffusers_pipeline(sdxl):
    family, model = parts(sdxl)
    prompts = ["a small red circle on a gray background", "zebra, ünïcode"]
    ours = family.encode_prompts(family.load_text_encoders(model, "cpu"), prompts)
    states, _, pooled, _ = family.pipeline(model, "cpu").encode_prompt(prompts, do_classifier_free_guidance=False)
    assert torch.allclose(ours["prompt_embeds"], states, atol=1e-6)
    assert torch.allclose(ours["text_embeds"], pooled, atol=1e-6)


def test_an_interrupted_encoding_goes_on_and_equals_the_uninterrupted(tmp_path, sdxl, pairs, cache, monkeypatch):
    family, model = parts(sdxl)
    monkeypatch.setattr(fill, "PER_SHARD", 8)
    real, calls = fill.write_shard, []

    def cut(folder, kind, tensors):
        calls.append(kind)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(folder, kind, tensors)

    monkeypatch.setattr(fill, "write_shard", cut)
    with pytest.raises(KeyboardInterrupt):
        encode(family, model, PairSet(pairs), tmp_path / "c")
    monkeypatch.setattr(fill, "write_shard", real)
    half = contents(tmp_path / "c")
    encode(family, model, PairSet(pairs), tmp_path / "c")
    whole, want = contents(tmp_path / "c"), contents(cache)
    assert 0 < len(half) < len(whole) and whole.keys() == want.keys()
    assert all(torch.allclose(whole[k].double(), want[k].double(), atol=1e-5) for k in want)


def test_pictures_are_resized_to_the_shorter_side_and_cropped_in_the_middle():
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (10, 0, 30, 20))
    pixels, size = to_pixels(picture, 10)
    assert pixels.shape == (3, 10, 10) and size == (20, 40, 0, 5)
    assert pixels[:, :, 1:-1].min() > 0.9
    assert to_pixels(Image.new("RGB", (7, 7)), 16)[0].shape == (3, 16, 16)


def test_a_damaged_shard_is_named(tmp_path, sdxl, pairs):
    family, model = parts(sdxl)
    encode(family, model, PairSet(pairs), tmp_path / "c")
    shard = next((tmp_path / "c").glob("latents-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(
        MapoError, match=r"latents-[0-9a-f]{16}.safetensors is damaged .*Delete this file and run the command again"
    ):
        Cache(tmp_path / "c", cache_key(family, model, None, False))


def test_a_cache_of_another_model_is_refused(tmp_path, sdxl_v, cache):
    family, model = parts(sdxl_v)
    with pytest.raises(MapoError, match=r"was encoded with encoders [0-9a-f]{16}, this run asks for [0-9a-f]{16}"):
        Cache(cache, cache_key(family, model, None, False))


def test_a_folder_with_other_things_is_no_cache(tmp_path, sdxl, pairs):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("dear")
    with pytest.raises(MapoError, match="exists and is not a cache"):
        encode(*parts(sdxl), PairSet(pairs), tmp_path / "c")
