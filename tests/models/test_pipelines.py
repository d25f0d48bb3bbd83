import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mapo.build.build import build
from mapo.build.recipe import read_recipe
from mapo.build.remake import remake
from mapo.errors import MapoError
from mapo.models import find_model
from mapo.models.pipelines import open_pipeline, pipeline_class, too_long
from mapo.pairs.pairs import PairSet, sha256
from mapo.sample.folder import read_images
from mapo.sample.sample import default_sampling, sample

PROMPTS = ["a red square", "a blue heart", "a green star"]


def make_vae(channels: int):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), latent_channels=channels, norm_num_groups=4, sample_size=16,
        shift_factor=0.1,
    )  # fmt: skip


def make_clip(folder):
    from transformers import CLIPTextConfig, CLIPTextModel

    from mapo.lab.mini.pretrain import make_tokenizer

    tokenizer = make_tokenizer(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, CLIPTextModel(config)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A FluxPipeline with random weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("models") / "flux"
    torch.manual_seed(0)
    tokenizer, text = make_clip(folder.parent / "tokenizer")
    t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), make_vae(4), text, tokenizer, t5, tokenizer, transformer
    ).save_pretrained(folder)
    (folder / "sampling.json").write_text(json.dumps({"steps": 2, "guidance": 0.0, "width": 16, "height": 16}))
    return folder


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """A StableDiffusionPipeline with random weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("models") / "sd15"
    torch.manual_seed(0)
    tokenizer, text = make_clip(folder.parent / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(16, 32), layers_per_block=1,
        attention_head_dim=2, cross_attention_dim=16,
    )  # fmt: skip
    StableDiffusionPipeline(
        make_vae(4), text, tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_pairs_come_from_any_text_to_image_pipeline_and_can_be_made_again(tmp_path, name, request):
    folder = request.getfixturevalue(name)
    counts = build(
        read_recipe("pick-style-cartoon"), str(folder), PROMPTS, 4, tmp_path / "p", steps=2, images_per_batch=2
    )
    assert counts["pairs"] == 4
    for pair in PairSet(tmp_path / "p"):
        assert (pair.meta["chosen"]["width"], pair.meta["chosen"]["height"]) == (16, 16)
        assert [sha256(png) for png in remake(pair)] == [pair.chosen, pair.rejected]


def test_pictures_of_the_sample_verb_equal_those_of_the_bare_pipeline(tmp_path, sd15):
    from diffusers import StableDiffusionPipeline

    from mapo.sample.sample import noise_seed

    sample(str(sd15), PROMPTS[:2], [3], tmp_path / "ours", steps=2, guidance=4.0)
    bare = StableDiffusionPipeline.from_pretrained(sd15)
    generators = [torch.Generator().manual_seed(noise_seed(p, 3)) for p in PROMPTS[:2]]
    want = bare(PROMPTS[:2], num_inference_steps=2, guidance_scale=4.0, generator=generators).images
    for row, picture in zip(read_images(tmp_path / "ours"), want, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "ours" / row.file)), np.asarray(picture))


def test_the_defaults_are_those_of_the_pipeline_s_class(sd15, flux):
    found = default_sampling(find_model(str(sd15)))
    assert (found.steps, found.guidance, found.width) == (50, 7.5, 16)
    (flux / "sampling.json").rename(flux / "kept.json")
    found = default_sampling(find_model(str(flux)))
    (flux / "kept.json").rename(flux / "sampling.json")
    assert (found.steps, found.guidance, found.width) == (28, 3.5, 256)


def test_latents_need_a_model_that_can_be_trained(tmp_path, flux):
    with pytest.raises(MapoError, match="is a FluxPipeline; known are"):
        build(
            read_recipe("pick-style-cartoon"),
            str(flux),
            PROMPTS,
            1,
            tmp_path / "p",
            steps=1,
            keep="rejected-as-latents",
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("StableDiffusionXLInpaintPipeline", "does not make pictures from text alone"),
        ("LTXPipeline", "does not make pictures from text alone"),
        ("DDPMPipeline", "does not make pictures from text alone"),
        ("NoSuchPipeline", "which this diffusers does not know"),
        ("AutoencoderKL", "which this diffusers does not know"),
    ],
)
def test_what_makes_no_pictures_from_text_is_refused(tmp_path, kind, message):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(MapoError, match=message):
        pipeline_class(find_model(str(tmp_path / "m")))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_pickled_weights_are_never_opened(tmp_path, name, request):
    folder = tmp_path / "m"
    shutil.copytree(request.getfixturevalue(name), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(MapoError, match="use_safetensors=False"):
        open_pipeline(find_model(str(folder)), "cpu", torch.float32)


def test_a_prompt_is_too_long_when_every_text_encoder_cuts_it(flux, sdxl):
    texts = ["a red square", "a " * 60]
    for folder in (flux, sdxl):
        pipeline = open_pipeline(find_model(str(folder)), "cpu", torch.float32)
        excess = too_long(pipeline, texts)
        assert list(excess) == [texts[1]]
        tokenizer = pipeline.tokenizer
        assert excess[texts[1]] == len(tokenizer(texts[1]).input_ids) - tokenizer.model_max_length
