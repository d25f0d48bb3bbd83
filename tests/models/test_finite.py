"""A weight that is not finite is refused in a sentence that names the part, by every verb, before it writes."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import run

from data_fixtures import files_below
from mapo.build.verb import build
from mapo.encode.verb import encode
from mapo.errors import MapoError
from mapo.models.parts.tensors import check_finite, is_finite
from mapo.sample.sample import Sampler, Sampling, sample
from tiny import make_pairs, make_sd

PARTS = ("unet", "vae", "text_encoder")
BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return make_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module", params=PARTS)
def broken(request, sd, tmp_path_factory):
    """A model with one weight of one part that is not finite, and the part's name."""
    part = request.param
    folder = shutil.copytree(sd, tmp_path_factory.mktemp("broken") / "m")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    tensors[max(tensors, key=lambda name: tensors[name].numel())].view(-1)[7] = BAD[PARTS.index(part)]
    save_file(tensors, file, {"format": "pt"})
    return folder, part


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(dtype):
    for size in (1, 7, 64, 1001):
        for place in {0, size // 2, size - 1}:
            tensor = torch.randn(size, 3, generator=torch.Generator().manual_seed(0)).to(dtype).T
            assert is_finite(tensor)
            for bad in BAD:
                tensor[1, place] = bad
                assert not is_finite(tensor)
    assert is_finite(torch.zeros(0)) and is_finite(torch.ones(3, dtype=torch.int64))


def test_every_verb_refuses_the_part_by_its_name_and_writes_nothing(broken, tmp_path):
    folder, part = broken
    pairs = make_pairs(tmp_path / "pairs", 2)
    before = files_below(tmp_path)
    says = f"The {part} of {folder} has numbers that are not finite, such as in .*Take another copy of these weights"
    with pytest.raises(MapoError, match=says):
        sample(str(folder), ["a fox"], [0], tmp_path / "images", steps=1)
    with pytest.raises(MapoError, match=says):
        build("pick-style-cartoon", str(folder), ["a fox"], 1, tmp_path / "built", steps=1, context="none")
    if part != "unet":
        with pytest.raises(MapoError, match=says):
            encode(str(folder), pairs, tmp_path / "cache")
    assert files_below(tmp_path) == before
    with pytest.raises(MapoError, match=says):
        run(tmp_path / "run", folder, pairs, kind="lora", steps=1)
    assert not (tmp_path / "run").exists()


def test_weights_that_half_precision_cannot_hold_are_told_to_be_in_that_precision(sd, tmp_path):
    folder = shutil.copytree(sd, tmp_path / "m")
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = 1e5
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        MapoError, match=r"The unet of .* not finite in float16, such as in conv_in.weight. Take float32, or"
    ):
        Sampler(str(folder), "float16", "cpu")
    Sampler(str(folder), "bfloat16", "cpu")


@pytest.mark.parametrize(("part", "name"), [("unet", "denoiser"), ("vae", "VAE")])
def test_a_network_that_overflows_is_named_and_no_black_picture_is_made(sd, part, name):
    sampler = Sampler(str(sd), device="cpu")
    last = sampler.pipeline.unet.conv_out if part == "unet" else sampler.pipeline.vae.decoder.conv_out
    last.bias.data.fill_(3e38)  # a finite weight
    last.weight.data.fill_(3e38)
    with pytest.raises(MapoError, match=f"The {name} of {sd} gave numbers that are not finite in float32"):
        sampler.batch([("a fox", 0)], Sampling(steps=2, guidance=5.0, width=16, height=16))
    assert "decode" not in vars(sampler.pipeline.vae)


def test_a_weight_that_no_file_had_is_named():
    with torch.device("meta"):
        network = torch.nn.Linear(2, 2)
    with pytest.raises(MapoError, match="The weights of the transformer of m lack weight. Take another copy"):
        check_finite(network, "transformer", "m")
