import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL
from PIL import Image

from mapo.cli import cli
from mapo.errors import MapoError, memory_told
from mapo.models import find_model, open_model
from mapo.sample.filling import open_folder
from mapo.sample.folder import read_images
from mapo.sample.sample import default_sampling, noise_seed, parse_seeds, sample

PROMPTS = ["a small red circle", "a large blue star", "a green heart"]


def pixels(folder):
    return {(r.prompt, r.seed): np.asarray(Image.open(folder / r.file)).astype(int) for r in read_images(folder)}


def test_a_picture_is_the_same_whatever_the_batch_size(tmp_path, sdxl):
    for size in (1, 4):
        sample(str(sdxl), PROMPTS, [0, 1], tmp_path / str(size), steps=3, images_per_batch=size)
    one, four = pixels(tmp_path / "1"), pixels(tmp_path / "4")
    assert len(one) == 6 and one.keys() == four.keys()
    assert max(abs(one[k] - four[k]).max() for k in one) <= 1


@pytest.mark.parametrize(
    ("device", "knows_bfloat16", "model", "precision"),
    [
        ("cpu", True, "sdxl", "float32"), ("cuda", True, "sdxl", "bfloat16"), ("cuda", False, "sdxl", "float16"),
        ("cuda", True, "mini", "float32"),
    ],
)  # fmt: skip
def test_pictures_are_drawn_in_16_bits_on_a_gpu(sdxl, monkeypatch, device, knows_bfloat16, model, precision):
    monkeypatch.setattr("mapo.sample.sample.best_device", lambda: device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: knows_bfloat16)
    files = find_model(str(sdxl) if model == "sdxl" else model)
    assert default_sampling(files).precision == precision
    assert default_sampling(files, precision="float32").precision == "float32"


def test_large_pictures_go_through_the_vae_one_at_a_time(tmp_path, sdxl, monkeypatch):
    decoded, decode = [], AutoencoderKL._decode
    monkeypatch.setattr(AutoencoderKL, "_decode", lambda vae, z, **how: decoded.append(len(z)) or decode(vae, z, **how))
    config = shutil.copytree(sdxl, tmp_path / "large") / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 128}))
    how = {"steps": 1, "images_per_batch": 2}
    sample(str(tmp_path / "large"), PROMPTS[:2], [0], tmp_path / "a", width=16, height=16, **how)
    assert decoded == [1, 1]
    sample(str(sdxl), PROMPTS[:2], [0], tmp_path / "b", **how)
    assert decoded == [1, 1, 2]
    encoded, encode = [], AutoencoderKL._encode
    monkeypatch.setattr(AutoencoderKL, "_encode", lambda vae, x: encoded.append(len(x)) or encode(vae, x))
    for folder in (config.parent.parent, sdxl):
        open_model(find_model(str(folder))).image_encoder("cpu")(torch.zeros(2, 3, 16, 16))
    assert encoded == [1, 1, 2]


def test_the_same_call_gives_the_same_bytes_and_goes_on_where_it_stopped(tmp_path, sdxl, monkeypatch, heard):
    import mapo.sample.filling

    whole = sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "a", steps=3, images_per_batch=2)
    real, calls = mapo.sample.filling.append_images, []

    def cut(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(mapo.sample.filling, "append_images", cut)
    with pytest.raises(KeyboardInterrupt):
        sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "b", steps=3, images_per_batch=2)
    assert len(read_images(tmp_path / "b")) == 2
    monkeypatch.setattr(mapo.sample.filling, "append_images", real)
    again = sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "b", steps=3, images_per_batch=2)
    assert [r.sha256 for r in again] == [r.sha256 for r in whole]
    assert [(r.prompt, r.seed) for r in again] == [(p, s) for p in PROMPTS for s in (0, 1)]
    assert "nothing was left" not in heard()
    assert sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "b", steps=3, images_per_batch=2) == again
    assert f"{tmp_path / 'b'} has all of these pictures, so nothing was left to draw." in heard()


def test_pictures_equal_those_of_the_bare_pipeline_to_the_bit(tmp_path, sdxl):
    from diffusers import StableDiffusionXLPipeline

    sample(str(sdxl), PROMPTS[:2], [7], tmp_path / "ours", steps=3, guidance=4.0, images_per_batch=2)
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    generators = [torch.Generator().manual_seed(noise_seed(p, 7)) for p in PROMPTS[:2]]
    bare = pipeline(PROMPTS[:2], num_inference_steps=3, guidance_scale=4.0, height=16, width=16, generator=generators)
    for prompt, want in zip(PROMPTS, bare.images, strict=False):
        assert np.array_equal(pixels(tmp_path / "ours")[prompt, 7], np.asarray(want))


def test_projecting_the_prompts_once_changes_no_bit_and_leaves_the_layers_as_they_were(sdxl, monkeypatch):
    import contextlib

    import mapo.sample.sample
    from mapo.sample.sample import Sampler

    sampler, how = Sampler(str(sdxl)), default_sampling(find_model(str(sdxl)), steps=4, guidance=3.0)
    calls, unet = [], sampler.pipeline.unet
    layers = [m for n, m in unet.named_modules() if n.endswith("attn2.to_k")]
    layers[0].register_forward_hook(lambda *given: calls.append(given[2]))
    jobs = [(prompt, 3) for prompt in PROMPTS]
    once = [np.asarray(picture) for picture in sampler.batch(jobs, how)]
    assert len(calls) == 4 and all(given is calls[0] for given in calls)
    assert not any("forward" in vars(layer) for layer in layers)
    monkeypatch.setattr(mapo.sample.sample, "prompts_projected_once", lambda pipeline: contextlib.nullcontext())
    often = [np.asarray(picture) for picture in sampler.batch(jobs, how)]
    assert len({id(given) for given in calls}) == 1 + 4
    assert all(np.array_equal(a, b) for a, b in zip(once, often, strict=True))
    monkeypatch.undo()
    other = [np.asarray(picture) for picture in sampler.batch([(f"{p}!", 3) for p in PROMPTS], how)]
    assert not np.array_equal(other[0], once[0])  # nothing is remembered beyond a batch


def test_the_negative_prompt_is_encoded_once_and_changes_no_bit(sdxl, monkeypatch):
    import contextlib

    import mapo.sample.sample
    from mapo.sample.sample import Sampler

    sampler, how = (
        Sampler(str(sdxl)),
        default_sampling(find_model(str(sdxl)), steps=2, guidance=3.0, negative_prompt="blurry"),
    )
    calls, encoder = [], sampler.pipeline.text_encoder
    deep = next(m for n, m in encoder.named_modules() if n.endswith("final_layer_norm"))
    deep.register_forward_hook(lambda *given: calls.append(1))
    batches = [[(prompt, seed) for prompt in PROMPTS] for seed in (3, 4)]
    once = [np.asarray(picture) for jobs in batches for picture in sampler.batch(jobs, how)]
    assert len(calls) == 3  # the prompts of each batch, and the negative one
    assert "forward" not in vars(encoder)
    monkeypatch.setattr(mapo.sample.sample, "equal_prompts_encoded_once", lambda *given: contextlib.nullcontext())
    often = [np.asarray(picture) for jobs in batches for picture in sampler.batch(jobs, how)]
    assert len(calls) == 3 + 4
    assert all(np.array_equal(a, b) for a, b in zip(once, often, strict=True))


def test_a_picture_asked_for_twice_is_made_once(tmp_path, sdxl):
    rows = sample(str(sdxl), [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [0], tmp_path / "a", steps=2, images_per_batch=1)
    assert len(rows) == 3 and rows[0] == rows[2]
    assert len(read_images(tmp_path / "a")) == 2


def test_what_cannot_be_written_is_told_and_no_row_is_left_without_its_picture(tmp_path, sdxl, monkeypatch):
    import mapo.sample.filling

    def full(*given):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mapo.sample.filling, "append_images", full)
        with pytest.raises(OSError, match="No space left"):
            sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "a", steps=2, images_per_batch=2)
    assert len(sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "a", steps=2, images_per_batch=2)) == 6


def test_prompts_and_seeds_start_from_different_noise():
    seeds = {noise_seed(p, s) for p in PROMPTS for s in range(10)}
    assert len(seeds) == 30 and min(seeds) >= 0
    assert noise_seed("A small  red circle", 3) == noise_seed("a small red circle", 3)


def test_other_settings_do_not_mix_in_one_folder(tmp_path, sdxl):
    sample(str(sdxl), PROMPTS[:1], [0], tmp_path / "a", steps=2)
    with pytest.raises(MapoError, match=r"made with other settings \(steps\)"):
        sample(str(sdxl), PROMPTS[:1], [0], tmp_path / "a", steps=3)


def test_a_folder_of_0_1_0_is_filled_further_but_not_with_another_tokenizer(tmp_path, sdxl):
    model = shutil.copytree(sdxl, tmp_path / "model")
    sample(str(model), PROMPTS[:1], [0], tmp_path / "new", steps=1)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    head = json.loads((tmp_path / "old" / "images.json").read_text())
    head["settings"]["revision"] = find_model(str(model)).revisions()[1]
    (tmp_path / "old" / "images.json").write_text(json.dumps(head))
    assert len(sample(str(model), PROMPTS[:1], [0, 1], tmp_path / "old", steps=1)) == 2
    with (model / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(MapoError, match=r"made with other settings \(revision\)"):
        sample(str(model), PROMPTS[:1], [0, 1], tmp_path / "new", steps=1)


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("5", [5]), ("0,2-3,0", [0, 2, 3])])
def test_seeds_are_read_as_ranges_and_lists(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "3-1", "-1", "1-", "1.5"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(MapoError, match="not a list of seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("how", [{"guidance": float("nan")}, {"guidance": -1.0}, {"steps": 0}, {"images_per_batch": 0}])
def test_settings_that_make_no_sense_are_refused_before_anything_is_made(tmp_path, sdxl, how):
    with pytest.raises(MapoError, match=f"--{next(iter(how)).replace('_', '-')} is"):
        sample(str(sdxl), PROMPTS[:1], [0], tmp_path / "a", **how)
    assert not (tmp_path / "a").exists()


def test_half_precision_gives_nearly_the_same_pictures_and_is_written_down(tmp_path, sdxl):
    sample(str(sdxl), PROMPTS, [0], tmp_path / "full", steps=2)
    rows = sample(str(sdxl), PROMPTS, [0], tmp_path / "half", steps=2, precision="bfloat16")
    assert {r.precision for r in rows} == {"bfloat16"}
    full, half = pixels(tmp_path / "full"), pixels(tmp_path / "half")
    assert 0 < max(abs(full[k] - half[k]).mean() for k in full) < 12
    with pytest.raises(MapoError, match="other settings"):
        sample(str(sdxl), PROMPTS, [0], tmp_path / "full", steps=2, precision="bfloat16")
    with pytest.raises(MapoError, match="'float8' is not known"):
        sample(str(sdxl), PROMPTS, [0], tmp_path / "x", precision="float8")


@pytest.mark.parametrize("text", ["9223372036854775808", "0-99999999999"])
def test_seeds_too_large_or_too_many_are_refused(text):
    with pytest.raises(MapoError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["[]", '{"settings": 5}', "{"])
def test_a_folder_with_a_damaged_head_is_told(tmp_path, text):
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(MapoError, match=r"images\.json .*Choose another --out"):
        open_folder(tmp_path, {"steps": 2})


def test_a_picture_that_is_gone_or_damaged_is_made_again(tmp_path, sdxl):
    how = {"steps": 2, "images_per_batch": 1}
    rows = sample(str(sdxl), PROMPTS, [0], tmp_path / "a", **how)
    before = {row.file: (tmp_path / "a" / row.file).read_bytes() for row in rows}
    (tmp_path / "a" / rows[0].file).unlink()
    (tmp_path / "a" / rows[1].file).write_bytes(before[rows[1].file][:100])
    again = sample(str(sdxl), PROMPTS, [0], tmp_path / "a", **how)
    assert {row.file: (tmp_path / "a" / row.file).read_bytes() for row in again} == before
    assert [row.sha256 for row in again] == [row.sha256 for row in rows]
    assert len(read_images(tmp_path / "a")) == len(PROMPTS)


def test_after_a_lack_of_memory_fewer_pictures_at_a_time_go_on_in_the_same_folder(tmp_path, sdxl):
    first = sample(str(sdxl), PROMPTS, [0], tmp_path / "a", steps=2, images_per_batch=4)
    rows = sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "a", steps=2, images_per_batch=1)
    assert [r for r in rows if r.seed == 0] == first  # not made again
    assert {r.batch_layout.split("/")[2] for r in rows} == {"3", "1"}  # each row says how it was made
    whole = sample(str(sdxl), PROMPTS, [0, 1], tmp_path / "b", steps=2, images_per_batch=2)
    a, b = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert len(whole) == len(rows) == 6 and max(abs(a[k] - b[k]).max() for k in a) <= 1


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (PROMPTS, r"ran out with 3 pictures at a time. Repeat the command with --images-per-batch 1, or use a"),
        (PROMPTS[0], r"ran out with 1 picture at a time. Use --precision bfloat16, or a machine with more memory"),
    ],
)
def test_where_the_memory_runs_out_the_flag_is_named(tmp_path, sdxl, prompts, says, monkeypatch):
    monkeypatch.setattr("mapo.sample.sample.MOST_SIDE", 2**24)
    with pytest.raises(MapoError, match=says):
        sample(str(sdxl), prompts, [0], tmp_path / "a", steps=1, width=2**23, height=2**23)  # hundreds of terabytes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB). Tried to allocate 1 GB on private pool."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 4.00 TiB for an array"),
    ],
)
def test_every_device_s_lack_of_memory_is_understood(error):
    with (
        pytest.raises(MapoError, match="ran out with 8 pairs at a time. Repeat the command with --set a.b=4, or"),
        memory_told(8, noun="pair", flag="--set a.b={}"),
    ):
        raise error


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), memory_told(8):
        raise RuntimeError("shapes cannot be multiplied")


def test_one_prompt_and_one_seed_need_no_list(tmp_path, sdxl):
    rows = sample(str(sdxl), "a fox", 3, tmp_path / "a", steps=1)
    assert [(r.prompt, r.seed) for r in rows] == [("a fox", 3)]


def test_prompts_that_are_too_long_are_told_in_one_line_and_by_nobody_else(tmp_path, sdxl, capfd, heard):
    import logging

    long = [f"a red square {'and a blue heart ' * n}" for n in (10, 30)]
    stream = logging.StreamHandler()
    libraries = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [(logger, logger.level) for logger in libraries]
    for logger in libraries:  # as loud as from Python
        logger.addHandler(stream)
        logger.setLevel(logging.WARNING)
    try:
        sample(str(sdxl), [*PROMPTS, *long], [0, 1], tmp_path / "a", steps=1, guidance=3.0, negative_prompt=long[0])
    finally:
        for logger, level in before:
            logger.removeHandler(stream)
            logger.setLevel(level)
    said = capfd.readouterr()
    most = find_model(str(sdxl)).base / "tokenizer" / "tokenizer_config.json"
    most = json.loads(most.read_text())["model_max_length"]
    assert said.out == "" and heard().splitlines() == [
        f"2 of 5 prompts are longer than the model's {most} tokens; what stands behind is not seen. "
        f"The longest: {long[1][:59].rstrip() + '…'!r}.",
        f"The negative prompt is longer than the model's {most} tokens; what stands behind is not seen.",
    ]
    assert "truncated" not in said.err and "longer than" not in said.err
    sample(str(sdxl), [*PROMPTS, *long], [0, 1], tmp_path / "a", steps=1, guidance=3.0, negative_prompt=long[0])
    assert "longer than" not in heard() and capfd.readouterr().out == ""  # nothing is made, so nothing is said of it


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"steps": 12,', "sampling.json cannot be read"),
        ("[12]", "sampling.json is damaged"),
        ('{"stepz": 12}', "sampling.json: stepz is not known. Did you mean 'steps'"),
        ('{"steps": "12"}', "sampling.json: steps is '12'; it must be a whole number, at least 1"),
        ('{"steps": 0}', "sampling.json: steps is 0"),
        ('{"guidance": null}', "sampling.json: guidance is None; it must be a number"),
        ('{"precision": "half"}', "sampling.json: precision 'half' is not known"),
        ('{"prefix": 3}', "sampling.json: prefix is 3; it must be a text"),
    ],
)
def test_a_damaged_or_odd_advice_of_a_model_folder_is_told_in_a_sentence(tmp_path, sdxl, text, says):
    (tmp_path / "m").mkdir()
    for part in sdxl.iterdir():
        (tmp_path / "m" / part.name).symlink_to(part)
    (tmp_path / "m" / "sampling.json").write_text(text)
    with pytest.raises(MapoError, match=says):
        default_sampling(find_model(str(tmp_path / "m")))


def test_a_setting_that_does_not_exist_is_refused(sdxl):
    with pytest.raises(MapoError, match="--step is not known. Did you mean 'steps'"):
        default_sampling(find_model(str(sdxl)), step=3)


def test_pictures_have_the_size_that_is_asked_for(tmp_path, sdxl):
    words = ["sample", "--model", str(sdxl), "--prompts", "mini:test-one", "--out", str(tmp_path / "a"), "--steps", "1"]
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red circle\n")
    words[4] = str(prompts)
    done = CliRunner().invoke(cli, [*words, "--width", "24", "--height", "16", "--negative-prompt", "blurry"])
    assert done.exit_code == 0, done.output
    (row,) = read_images(tmp_path / "a")
    assert Image.open(tmp_path / "a" / row.file).size == (24, 16) == (row.width, row.height)
    assert json.loads((tmp_path / "a" / "images.json").read_text())["settings"]["negative_prompt"] == "blurry"
    done = CliRunner().invoke(cli, [*words, "--width", "25"])
    assert "--width is 25; it has to be a multiple of 2 for this model" in str(done.exception)
