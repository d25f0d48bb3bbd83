"""`mapo sample` on model folders that do not fit together: one sentence, and no images folder that was not there."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apart import run_apart
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.pipelines import open_pipeline
from mapo.sample.folder import read_images
from mapo.sample.sample import default_sampling, sample
from tiny import make_sd

VAE, TOKENIZER, INDEX = "vae/config.json", "tokenizer/tokenizer_config.json", "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    return make_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def model(request) -> Path:
    return request.getfixturevalue(request.param)


def changed(folder: Path, source: Path, file: str, **values) -> Path:
    shutil.copytree(source, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def mapo(*words):
    return run_apart("-m", "mapo", *words)


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        (SCHEDULER, {"prediction_type": True}, "prediction_type true; it has to be a text"),
        (SCHEDULER, {"prediction_type": {}}, "prediction_type"),
        (SCHEDULER, {"prediction_type": "x"}, "was loaded but makes no pictures .*prediction_type"),
        (SCHEDULER, {"trained_betas": [1]}, "trained_betas"),
        (VAE, {"scaling_factor": []}, "scaling_factor"),
        (TOKENIZER, {"model_max_length": -1}, "model_max_length"),
        (INDEX, {"unet": []}, "model_index.json has unet"),
        (INDEX, {"scheduler": True}, "model_index.json has scheduler"),
        (INDEX, {"feature_extractor": -1}, r"cannot be loaded .*\. Download the folder again"),
        (
            INDEX,
            {"unet": ["diffusers", "NoSuchModel"]},
            "its unet is a NoSuchModel, which this diffusers does not know",
        ),
        (INDEX, {"_class_name": "SanaPipeline"}, "names no transformer, which a SanaPipeline has: it is not the whole"),
    ],
)
def test_a_broken_folder_is_told_in_a_sentence_and_leaves_no_images_folder(tmp_path, model, file, values, says):
    folder = changed(tmp_path / "m", model, file, **values)
    with pytest.raises(MapoError, match=says) as told:
        sample(str(folder), ["a red circle"], [0], tmp_path / "out", steps=2)
    assert "\n" not in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_unet_of_the_other_family_is_told_in_a_sentence_and_leaves_no_images_folder(tmp_path, sd, sdxl):
    for name, base, other in (("a", sd, sdxl), ("b", sdxl, sd)):
        shutil.copytree(base, tmp_path / name)
        shutil.rmtree(tmp_path / name / "unet")
        shutil.copytree(other / "unet", tmp_path / name / "unet")
        with pytest.raises(MapoError, match=f"The model .*/{name} was loaded but makes no pictures"):
            sample(str(tmp_path / name), ["a red circle"], [0], tmp_path / "out", steps=2)
        assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_says_nothing_makes_the_same_pictures(tmp_path, model):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / TOKENIZER).write_text("{}")
    rows = [
        sample(str(folder), ["a red circle"], [0], tmp_path / name, steps=2)[0]
        for folder, name in ((model, "a"), (tmp_path / "m", "b"))
    ]
    assert rows[0].sha256 == rows[1].sha256


def test_a_folder_with_pictures_stays_when_a_later_batch_fails(tmp_path, sd, monkeypatch):
    from mapo.sample.sample import Sampler

    real, calls = Sampler.batch, []

    def cut(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Sampler, "batch", cut)
    with pytest.raises(KeyboardInterrupt):
        sample(str(sd), ["a red circle"], [0, 1, 2], tmp_path / "a", steps=1, images_per_batch=1)
    assert len(read_images(tmp_path / "a")) == 2


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("transformer", {"sample_size": {}}, "sample_size .*one number or a list"),
        ("transformer", {"sample_size": []}, "sample_size"),
        ("vae", {"block_out_channels": 5}, "block_out_channels 5"),
    ],
)
def test_the_side_of_a_pipeline_of_no_family_is_read_by_kind_too(tmp_path, part, values, says):
    (tmp_path / part).mkdir()
    (tmp_path / part / "config.json").write_text(json.dumps(values))
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    with pytest.raises(MapoError, match=f"{part}/config.json has {says}"):
        default_sampling(find_model(str(tmp_path)))


# ------------------------------------------------------------------ clip_skip


def test_clip_skip_that_the_model_does_not_have_is_refused_for_pictures_too(tmp_path, sd, sdxl):
    for folder, skip, says in ((sd, 3, "clip_skip is 3, but the text encoder of"), (sdxl, 1, "always leaves out")):
        with pytest.raises(MapoError, match=says):
            sample(str(folder), ["a red circle"], [0], tmp_path / "out", steps=1, clip_skip=skip)
        assert not (tmp_path / "out").exists()
    sample(str(sdxl), ["a red circle"], [0], tmp_path / "out", steps=1, clip_skip=0)


def test_clip_skip_of_a_pipeline_of_no_family_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    with pytest.raises(
        MapoError, match="clip_skip is 1, but .* is a PixArtSigmaPipeline; only Stable Diffusion 1 and 2"
    ):
        open_pipeline(find_model(str(tmp_path / "m"), clip_skip=1), "cpu", torch.float32)


# ------------------------------------------------------------------ weights

INDEXES = {
    '{"weight_map": {"a": "../../other.safetensors"}}': "names '../../other.safetensors', which is not a file beside it",
    '{"weight_map": {"a": 1}}': "names 1, which is not a file", "[]": "does not say which file each tensor is in",
    "{": "cannot be read (Expecting property name",
}  # fmt: skip


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("damage", ["lacks", "other shape", *INDEXES])
def test_weights_that_are_not_those_of_the_configuration_are_named(tmp_path, sd, part, damage):
    shutil.copytree(sd, tmp_path / "m")
    (path,) = (tmp_path / "m" / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if damage in INDEXES:
        path.rename(tmp_path / "other.safetensors")
        path.with_name(f"{path.name}.index.json").write_text(damage)
        says = f"is not whole: {part}/{path.name}.index.json {INDEXES[damage]}"
    elif damage == "lacks":
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path, {"format": "pt"})
        says = f"is not whole: the weights of {part} lack "
    else:
        save_file({**tensors, name: torch.zeros(3, 3)}, path, {"format": "pt"})
        says = f"is not whole: {name} of {part} has the shape [3, 3], and by its config.json it has ["
    with pytest.raises(MapoError) as told:
        open_pipeline(find_model(str(tmp_path / "m")), "cpu", torch.float32)
    assert says in str(told.value) and str(told.value).endswith("Download the folder again.")


def test_quantized_weights_are_called_so(tmp_path, sd):
    folder = changed(tmp_path / "m", sd, "unet/config.json", quantization_config={"quant_method": "none-such"})
    with pytest.raises(MapoError, match="The unet of .* is quantized and cannot be loaded .*Take the file in float16"):
        open_pipeline(find_model(str(folder)), "cpu", torch.float32)
    with pytest.raises(
        MapoError, match="unet/config.json has quantization_config: such weights cannot be trained. Take"
    ):
        open_model(find_model(str(folder)))


def rewritten(source, folder, part, change):
    """A copy of a model with other tensors in the file of a part, and that file."""
    shutil.copytree(source, folder)
    (file,) = (folder / part).glob("*.safetensors")
    save_file(change(load_file(file)), file, {"format": "pt"})
    return file


WEIGHTS = {"unet": "conv_in.weight", "text_encoder": "encoder.layers.0.mlp.fc1.weight"}


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_would_be_wrong_as_they_are_stored_are_refused_by_file_and_tensor(tmp_path, sd, part):
    name = WEIGHTS[part]

    def in_whole_numbers(dtype):
        return lambda tensors: {**tensors, name: (100 * tensors[name]).to(dtype)}

    def scaled(tensors):
        return {**tensors, name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(())}

    for told, change in (("I8", in_whole_numbers(torch.int8)), ("U8", in_whole_numbers(torch.uint8)), ("", scaled)):
        file = rewritten(sd, tmp_path / f"m{told}", part, change)
        says = f"{file} holds " + (f"quantized weights, as {name} ({told}) tells" if told else "scaled 8-bit weights")
        with pytest.raises(MapoError, match=f"{re.escape(says)}.* Take the file in float16, bfloat16 or float32.$"):
            open_pipeline(find_model(str(tmp_path / f"m{told}")), "cpu", torch.float32)
        with pytest.raises(MapoError, match=re.escape(says)):
            find_model(str(tmp_path / f"m{told}")).check_weights(part)


def test_other_variants_and_what_is_no_weight_may_be_in_whole_numbers(tmp_path, sd):
    shutil.copytree(sd, tmp_path / "m")
    (file,) = (tmp_path / "m" / "unet").glob("*.safetensors")
    other = file.with_name("diffusion_pytorch_model.int8.safetensors")
    save_file({"conv_in.weight": torch.zeros(2, dtype=torch.int8)}, other)
    rewritten(sd, tmp_path / "n", "text_encoder", lambda t: {**t, "embeddings.position_ids": torch.arange(4)})
    for name, part in (("m", "unet"), ("n", "text_encoder")):
        find_model(str(tmp_path / name)).check_weights(part)


def test_weights_of_8_bits_without_scales_are_read_as_they_are_and_that_is_said_once(tmp_path, sd, heard):
    for part in WEIGHTS:
        file = rewritten(sd, tmp_path / part, part, lambda t: {n: v.to(torch.float8_e4m3fn) for n, v in t.items()})
        files = find_model(str(tmp_path / part))
        kind = open_model(files).networks[part]
        read, whole = (one.load(part, kind).state_dict() for one in (files, find_model(str(sd))))
        assert all(torch.equal(read[name], v.to(torch.float8_e4m3fn).float()) for name, v in whole.items())
        files.check_weights(part)
        assert heard().count(f"{file} holds weights in 8 bits, which have lost digits") == 1


# ------------------------------------------------------------------ the sentence stands alone


def test_of_weights_that_are_missing_only_our_sentence_is_printed(tmp_path, sd):
    shutil.copytree(sd, tmp_path / "m")
    (tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "p.txt").write_text("a red circle\n")
    done = mapo("sample", "--model", tmp_path / "m", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr.startswith("mapo: The model folder") and done.stderr.count("\n") == 1, done.stderr


def test_of_a_model_that_cannot_be_fetched_only_our_sentence_is_printed_and_cut_at_a_word(tmp_path):
    (tmp_path / "p.txt").write_text("a red circle\n")
    done = mapo("sample", "--model", "nobody/no-such-model", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("mapo: --model: nobody/no-such-model is not") and done.stderr.count("\n") == 1


def test_in_half_precision_a_cpu_draws_without_a_word_of_the_libraries(tmp_path, sdxl):
    (tmp_path / "p.txt").write_text("a red circle\n")
    words = ["--prompts", tmp_path / "p.txt", "--out", tmp_path / "out", "--steps", "1", "--precision", "float16"]
    done = mapo("sample", "--model", sdxl, *words)
    assert done.returncode == 0 and len(read_images(tmp_path / "out")) == 1
    assert not [line for line in re.split(r"[\r\n]+", done.stderr) if line and not line.startswith("sample:")], (
        done.stderr
    )
