import contextlib
import gc
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from apart import Apart
from mapo.encode import fill
from mapo.encode.cache import Cache, cache_key, means_and_sizes, prompt_key
from mapo.encode.encoding import to_pixels
from mapo.encode.fill import encode, holds_all, lacking
from mapo.encode.frame import square
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.files import ModelFiles
from mapo.pairs import PairSet
from tiny import make_flux, make_pairs


def parts(sdxl):
    return open_model(find_model(str(sdxl)))


def contents(folder):
    return {k: v for path in folder.glob("*-*.safetensors") for k, v in load_file(path).items()}


def test_each_picture_and_each_prompt_is_stored_once(sdxl, pairs, cache):
    opened, stored = PairSet(pairs), contents(cache)
    prompts = set(opened.table["prompt"].to_pylist())
    assert len(prompts) == 8 < len(opened) == 12
    assert {k.split("|")[0] for k in stored} == set(opened.image_names()) | {prompt_key(p) for p in prompts}


def test_the_cache_holds_what_the_encoders_say(sdxl, pairs, cache):
    model = parts(sdxl)
    opened = PairSet(pairs)
    read = Cache(cache, cache_key(model))
    name = opened.image_names()[3]
    mean, logvar = model.image_encoder("cpu")(to_pixels(opened.image(name), square(16))[0][None])
    assert torch.allclose(read.latents(name, False)[0], mean[0], atol=1e-5)
    assert torch.allclose(read.latents(name, False)[1], logvar[0], atol=1e-5)
    entries = {k: v for k, v in contents(cache).items() if k.partition("|")[2] in ("0", "size")}
    means, sizes = means_and_sizes({**entries, f"{name}|1": -entries[f"{name}|0"]})
    assert means.keys() == sizes.keys() == set(opened.image_names())
    assert torch.equal(means[name], read.latents(name, False)[0]) and torch.equal(sizes[name], read.size(name))
    prompt = opened[2].prompt
    text = model.text_encoder("cpu")([prompt])
    stored = read.text(prompt)
    assert stored.keys() == text.keys()
    for key, value in stored.items():
        assert torch.allclose(value, text[key][0], atol=1e-5)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def of_any(request, any_model, tmp_path_factory):
    """A model of any family, a set, and its cache in each precision."""
    folder, prompts = tmp_path_factory.mktemp("any"), ["a small red circle", "zebra, ünïcode " * 30]
    opened = PairSet(make_pairs(folder / "pairs", count=4, prompts=prompts))
    encode(parts(any_model), opened, folder / "cache", precision=request.param, holding="and the empty prompt")
    return parts(any_model), opened, folder / "cache", request.param


def test_each_prompt_of_every_family_is_stored_once_in_its_precision_and_with_no_more_than_it_says(of_any):
    model, opened, cache, precision = of_any
    prompts, stored = {"", *(pair.prompt for pair in opened)}, contents(cache)
    texts = {name: value for name, value in stored.items() if name.split("|")[0] in set(map(prompt_key, prompts))}
    assert len(prompts) == 3 and {name.split("|")[0] for name in texts} == set(map(prompt_key, prompts))
    assert {name.split("|")[0] for name in stored.keys() - texts.keys()} == set(opened.image_names())
    assert {name.split("|")[1] for name in texts} == set(model.prompt_shapes) and len(texts) == 3 * len(
        model.prompt_shapes
    )
    assert {value.dtype for value in texts.values()} == {getattr(torch, precision)}
    most = model.prompt_numbers * (4 if precision == "float32" else 2)
    each = [sum(v.nbytes for k, v in texts.items() if k.startswith(prompt_key(p))) for p in prompts]
    assert max(each) <= most and (max(each) == most or model.files.pipeline_class == "ZImagePipeline")


def test_the_cache_of_every_family_holds_what_the_encoders_say_in_its_precision(of_any):
    model, opened, cache, precision = of_any
    kind = getattr(torch, precision)
    read = Cache(cache, cache_key(model, precision=precision))
    encoder = model.text_encoder("cpu", torch.float32 if precision == "float32" else torch.bfloat16)
    for prompt in ("", *(pair.prompt for pair in opened)):
        text, stored = encoder([prompt]), read.text(prompt)
        assert stored.keys() == text.keys()
        for key, value in stored.items():
            wanted = text[key][0].to(kind)
            assert value.shape == wanted.shape, (prompt, key)
            assert torch.allclose(value.float(), wanted.float(), atol=1e-5 if precision == "float32" else 0.06), key
    name = opened.image_names()[0]
    mean, _ = model.image_encoder("cpu")(to_pixels(opened.image(name), square(16))[0][None])
    assert torch.allclose(read.latents(name, False)[0].float(), mean[0], atol=1e-5 if precision == "float32" else 0.02)


def test_how_much_prompts_take_is_said_before_they_are_encoded_where_each_takes_megabytes(tmp_path, pairs, heard):
    """512 tokens of T5 with 512 numbers each are a MiB, as those of FLUX.1 are 8."""
    said = []
    for width, precision in ((512, "float32"), (512, "bfloat16"), (32, "float32")):
        model = parts(make_flux(tmp_path / f"{width}", width=width))

        def encoder(*given, real=model.text_encoder):
            said.append(heard())
            return real(*given)

        heard()
        model.text_encoder = encoder
        encode(model, PairSet(pairs), tmp_path / f"cache-{width}-{precision}", precision=precision)
    first = (
        "8 prompts: each takes up to 1.0 MiB in float32, all of them 0.0 GiB. --precision bfloat16 (in `train` "
        "data.cache_precision=bfloat16) takes half."
    )
    assert said == [first + "\n", "", ""]


def test_the_text_conditioning_is_that_of_the_diffusers_pipeline(sdxl):
    model = parts(sdxl)
    prompts = ["a small red circle on a gray background", "zebra, ünïcode"]
    ours = model.text_encoder("cpu")(prompts)
    states, _, pooled, _ = model.pipeline("cpu").encode_prompt(prompts, do_classifier_free_guidance=False)
    assert torch.allclose(ours["prompt_embeds"], states, atol=1e-6)
    assert torch.allclose(ours["text_embeds"], pooled, atol=1e-6)


def test_an_interrupted_encoding_goes_on_and_equals_the_uninterrupted(tmp_path, sdxl, pairs, cache, monkeypatch):
    model = parts(sdxl)
    monkeypatch.setattr(fill, "PER_SHARD", 8)
    real, calls = fill.write_shard, []

    def cut(folder, kind, tensors):
        calls.append(kind)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(folder, kind, tensors)

    monkeypatch.setattr(fill, "write_shard", cut)
    with pytest.raises(KeyboardInterrupt):
        encode(model, PairSet(pairs), tmp_path / "c")
    monkeypatch.setattr(fill, "write_shard", real)
    half = contents(tmp_path / "c")
    encode(model, PairSet(pairs), tmp_path / "c")
    whole, want = contents(tmp_path / "c"), contents(cache)
    assert 0 < len(half) < len(whole) and whole.keys() == want.keys()
    assert all(torch.allclose(whole[k].double(), want[k].double(), atol=1e-5) for k in want)


def test_pictures_are_resized_to_the_shorter_side_and_cropped_in_the_middle():
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (10, 0, 30, 20))
    pixels, size = to_pixels(picture, square(10))
    assert pixels.shape == (3, 10, 10) and size == (20, 40, 0, 5)
    assert pixels[:, :, 1:-1].min() > 0.9
    assert to_pixels(Image.new("RGB", (7, 7)), square(16))[0].shape == (3, 16, 16)


def test_a_damaged_shard_is_named(tmp_path, sdxl, pairs):
    model = parts(sdxl)
    encode(model, PairSet(pairs), tmp_path / "c")
    shard = next((tmp_path / "c").glob("latents-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(
        MapoError, match=r"latents-[0-9a-f]{16}.safetensors is damaged .*Delete this file and run the command again"
    ):
        Cache(tmp_path / "c", cache_key(model))


def test_a_cache_of_another_model_is_refused(tmp_path, sdxl_v, cache):
    model = parts(sdxl_v)
    with pytest.raises(
        MapoError, match=r"was encoded for the model .*/sdxl, this run trains .*/sdxl-v, whose encoders"
    ):
        Cache(cache, cache_key(model))


def test_a_cache_of_encoders_that_have_changed_since_is_refused_by_the_models_name(tmp_path, sdxl, pairs):
    shutil.copytree(sdxl, tmp_path / "m")
    encode(parts(tmp_path / "m"), PairSet(pairs), tmp_path / "c")
    path = tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(MapoError, match=r"was encoded for the model .*/m as it was then, whose encoders .* changed"):
        encode(parts(tmp_path / "m"), PairSet(pairs), tmp_path / "c")


def test_a_cache_is_not_to_be_deleted_where_it_is_the_model_that_is_not_whole(tmp_path, sdxl, pairs, cache):
    shutil.copytree(sdxl, tmp_path / "m")
    shutil.copytree(cache, tmp_path / "c")
    path = tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MapoError, match=r"m is not whole: vae cannot be loaded, as .* is cut off"):
        encode(parts(tmp_path / "m"), PairSet(pairs), tmp_path / "c")
    path.unlink()
    with pytest.raises(MapoError, match=r"m is not whole: vae/ has no weights\. Download"):
        encode(parts(tmp_path / "m"), PairSet(pairs), tmp_path / "c")
    with pytest.raises(MapoError, match=r"m is not whole: vae/ has no weights\. Download"):  # as several processes ask
        holds_all(parts(tmp_path / "m"), PairSet(pairs), tmp_path / "c", cache_key(parts(tmp_path / "m")))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_encoders_that_cannot_be_loaded_leave_no_cache_so_that_it_is_made_once_they_are_mended(
    tmp_path, sdxl, pairs, part
):
    shutil.copytree(sdxl, tmp_path / "m")
    path = next((tmp_path / "m" / part).glob("*.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(MapoError, match=f"{part} cannot be loaded"):
        encode(parts(tmp_path / "m"), PairSet(pairs), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    path.write_bytes(whole)
    assert not any(lacking(PairSet(pairs), encode(parts(tmp_path / "m"), PairSet(pairs), tmp_path / "c").index))


def test_the_folder_in_which_one_stands_may_be_the_cache(tmp_path, sdxl, pairs, cache, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    encode(parts(sdxl), PairSet(pairs), Path())
    assert sorted(contents(Path())) == sorted(contents(cache))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("side", [0, -8])
def test_a_resolution_of_nothing_is_refused(tmp_path, sdxl, pairs, side):
    with pytest.raises(MapoError, match=f"data.resolution is {side}; it has to be a multiple of"):
        encode(parts(sdxl), PairSet(pairs), tmp_path / "cache", resolution=side)


def test_a_folder_with_other_things_is_no_cache(tmp_path, sdxl, pairs):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("dear")
    with pytest.raises(MapoError, match="exists and is not a cache"):
        encode(parts(sdxl), PairSet(pairs), tmp_path / "c")


# ------------------------------------------------------------------ shards, their names and damage


def key_of(sdxl):
    return cache_key(parts(sdxl))


def as_the_first_version_wrote_it(cache: Path, folder: Path) -> Path:
    """The same cache in two numbered shards a kind, without an index, as version 0.1.0 wrote them."""
    folder.mkdir()
    shutil.copy(cache / "cache.json", folder)
    for kind in ("latents", "text"):
        tensors = {k: v for path in cache.glob(f"{kind}-*.safetensors") for k, v in load_file(path).items()}
        owners = sorted({name.split("|")[0] for name in tensors})
        for number, half in enumerate((owners[::2], owners[1::2])):
            mine = {k: v for k, v in tensors.items() if k.split("|")[0] in half}
            save_file(mine, folder / f"{kind}-{number:05d}.safetensors")
    return folder


def test_a_cache_of_the_first_version_opens_and_is_completed(tmp_path, sdxl, pairs, cache):
    old = as_the_first_version_wrote_it(cache, tmp_path / "old")
    read, new = Cache(old, key_of(sdxl)), Cache(cache, key_of(sdxl))
    for pair in PairSet(pairs):
        assert torch.equal(read.latents(pair.chosen, False)[1], new.latents(pair.chosen, False)[1])
        assert torch.equal(read.size(pair.rejected), new.size(pair.rejected))
        for name, value in new.text(pair.prompt).items():
            assert torch.equal(read.text(pair.prompt)[name], value)
    (old / "latents-00000.safetensors").unlink()
    encode(parts(sdxl), PairSet(pairs), old)
    assert contents(old).keys() == contents(cache).keys()
    assert (old / "latents-00001.safetensors").exists() and not (old / "latents-00000.safetensors").exists()


def test_a_damaged_shard_is_deleted_and_only_what_was_in_it_is_encoded_again(tmp_path, sdxl, pairs, cache):
    old = as_the_first_version_wrote_it(cache, tmp_path / "old")
    encode(parts(sdxl), PairSet(pairs), old)
    before = {k: v.clone() for k, v in contents(old).items()}  # else they are maps of the file that is damaged next
    kept = {p.name: p.read_bytes() for p in old.glob("*-0*.safetensors") if p.name != "latents-00000.safetensors"}
    damaged = old / "latents-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    with pytest.raises(MapoError, match=r"latents-00000.safetensors is damaged .*Delete this file and run the command"):
        encode(parts(sdxl), PairSet(pairs), old)
    damaged.unlink()
    encode(parts(sdxl), PairSet(pairs), old)
    after = contents(old)
    assert {name: (old / name).read_bytes() for name in kept} == kept
    assert after.keys() == before.keys() and all(
        torch.allclose(after[k].double(), before[k].double(), atol=1e-5) for k in before
    )


def test_a_shard_that_goes_missing_under_an_open_cache_is_named(tmp_path, sdxl, pairs, cache):
    shutil.copytree(cache, tmp_path / "c")
    read = Cache(tmp_path / "c", key_of(sdxl))
    for path in (tmp_path / "c").glob("latents-*"):
        path.unlink()
    with pytest.raises(MapoError, match=r"latents-[0-9a-f]+.safetensors is damaged \(No such file"):
        read.size(PairSet(pairs)[0].chosen)


@pytest.mark.parametrize("damage", ["gone", "empty", "other bytes"])
def test_the_index_is_a_short_cut_that_can_be_lost(tmp_path, sdxl, pairs, cache, damage):
    shutil.copytree(cache, tmp_path / "c")
    index = tmp_path / "c" / "index.safetensors"
    assert index.exists()
    index.unlink() if damage == "gone" else index.write_bytes(b"" if damage == "empty" else b"x" * 999)
    prompt = PairSet(pairs)[0].prompt
    text = Cache(tmp_path / "c", key_of(sdxl)).text(prompt)
    assert all(torch.equal(v, text[k]) for k, v in Cache(cache, key_of(sdxl)).text(prompt).items())


# ------------------------------------------------------------------ one writer at a time


HOLD = """
import sys, time
from pathlib import Path
from mapo.encode.cache import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def held_by_another(folder: Path, seconds: float) -> Iterator[Apart]:
    process = Apart("-c", HOLD, folder, seconds)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_cache_that_another_process_fills_is_refused_or_waited_for(tmp_path, sdxl, pairs, heard):
    with held_by_another(tmp_path / "c", 60) as process:
        with pytest.raises(MapoError, match="Another process is writing .*/c. Wait for it"):
            encode(parts(sdxl), PairSet(pairs), tmp_path / "c")
        threading.Timer(1.0, process.kill).start()  # the lock ends with its process
        encode(parts(sdxl), PairSet(pairs), tmp_path / "c", wait=True)
    assert "Waiting until it has finished" in heard()
    assert len(list((tmp_path / "c").glob("latents-*"))) == 1


def test_a_whole_cache_needs_no_lock(sdxl, pairs, cache):
    with held_by_another(cache, 60):
        encode(parts(sdxl), PairSet(pairs), cache)


def test_leftovers_of_a_killed_writer_are_swept_by_the_next(tmp_path, sdxl, pairs):
    (tmp_path / "c").mkdir()
    left = tmp_path / "c" / ".latents-00003.safetensors.4711.partial"
    left.write_bytes(b"half")
    encode(parts(sdxl), PairSet(pairs), tmp_path / "c")
    assert not left.exists() and not list((tmp_path / "c").glob("*.partial"))


# ------------------------------------------------------------------ memory, places that cannot be written


def test_each_encoder_is_loaded_once_and_text_encoders_are_gone_before_pictures_are_encoded(
    tmp_path, sdxl, pairs, monkeypatch
):
    model = parts(sdxl)
    alive, loaded = [], []
    real, load = model.image_encoder, ModelFiles.load

    def text_models():
        gc.collect()
        return [o for o in gc.get_objects() if type(o).__name__.startswith("CLIPTextModel")]

    def watched(device):
        encoder = real(device)

        def encode_pictures(pixels):
            alive.append([type(o).__name__ for o in text_models() if id(o) not in others])
            return encoder(pixels)

        return encode_pictures

    kept = text_models()  # of other tests, alive so that no new one gets their places
    others = {id(o) for o in kept}
    monkeypatch.setattr(model, "image_encoder", watched)
    monkeypatch.setattr(ModelFiles, "load", lambda files, part, *how: loaded.append(part) or load(files, part, *how))
    encode(model, PairSet(pairs), tmp_path / "c")
    assert alive == [[]] * 3 and sorted(loaded) == ["text_encoder", "text_encoder_2", "vae"]


def test_too_little_memory_is_told_with_the_option_that_helps(tmp_path, sdxl, pairs, monkeypatch):
    from diffusers import AutoencoderKL

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB")

    monkeypatch.setattr(AutoencoderKL, "encode", full)  # the device, not our code
    with pytest.raises(
        MapoError, match=r"encode 5 pictures of 16 × 16 pixels .*--images-per-batch 1, .*data.images_per_batch=1"
    ):
        encode(parts(sdxl), PairSet(pairs), tmp_path / "c", images_per_batch=5)


def test_how_many_pictures_are_encoded_at_a_time_is_told(tmp_path, sdxl, pairs, monkeypatch):
    model = parts(sdxl)
    sizes, real = [], model.image_encoder("cpu")
    monkeypatch.setattr(model, "image_encoder", lambda _: lambda pixels: sizes.append(len(pixels)) or real(pixels))
    encode(model, PairSet(pairs), tmp_path / "c", images_per_batch=5)
    assert set(sizes) == {5, 4} and sum(sizes) == 24
    with pytest.raises(MapoError, match="--images-per-batch is 0"):
        encode(model, PairSet(pairs), tmp_path / "c", images_per_batch=0)


def test_where_the_cache_cannot_be_written_the_options_for_another_place_are_named(sdxl, pairs):
    with pytest.raises(
        MapoError, match=r"/proc/cache cannot be written .*--out of `mapo encode`, --cache of `mapo train`"
    ):
        encode(parts(sdxl), PairSet(pairs), Path("/proc/cache"))


def test_a_byte_that_has_changed_on_the_disk_is_never_trained_on(tmp_path, sdxl, pairs, cache):
    """The run names the file and keeps what it has done; without that file it goes on as if nothing had been."""
    from test_train import assert_same, metrics, run

    from mapo.train.batches import rows_at

    whole = run(tmp_path / "whole", sdxl, pairs, cache, steps=4)
    shutil.copytree(cache, tmp_path / "cache")
    opened = PairSet(pairs)
    (row,) = rows_at([9], len(opened), seed=0)  # of the third step
    entry = Cache(tmp_path / "cache", key_of(sdxl)).index.find(bytes.fromhex(opened[row].chosen))["0"]
    data = bytearray(entry.path.read_bytes())
    data[entry.start + 17] ^= 4
    entry.path.write_bytes(data)
    with pytest.raises(MapoError) as said:
        run(tmp_path / "r", sdxl, pairs, tmp_path / "cache", steps=4)
    assert f"{entry.path} is damaged (it holds other bytes than were written). Delete this file" in str(said.value)
    assert "What was trained up to step 2 is kept." in str(said.value)
    assert [line["step"] for line in metrics(tmp_path / "r")] == [1, 2]
    assert [path.name for path in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000002"]
    entry.path.unlink()
    assert_same(run(tmp_path / "r", sdxl, pairs, tmp_path / "cache", steps=4), whole)
