import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mapo.build.build import build
from mapo.build.recipe import read_recipe
from mapo.build.remake import remake
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.pipelines import open_pipeline, pipeline_class, too_long
from mapo.pairs.pairs import PairSet, sha256
from mapo.sample.folder import read_images
from mapo.sample.sample import default_sampling, sample
from tiny import make_sd3, make_t5

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

    from mapo.lab.mini.parts import make_tokenizer

    tokenizer = make_tokenizer(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, CLIPTextModel(config)


@pytest.fixture(scope="module")
def aura(tmp_path_factory):
    """An AuraFlowPipeline with random weights, which is of no family."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    folder = tmp_path_factory.mktemp("models") / "aura"
    torch.manual_seed(0)
    tokenizer, encoder = make_t5(width=32)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16,
        pos_embed_max_size=64,
    )  # fmt: skip
    for parameter in transformer.parameters():
        parameter.data.normal_(0, 0.3)  # so that prompts matter
    AuraFlowPipeline(
        tokenizer, encoder, make_vae(4), transformer, FlowMatchEulerDiscreteScheduler()
    ).save_pretrained(folder)  # fmt: skip
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


@pytest.mark.parametrize("name", ["aura", "sd15"])
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


def test_the_defaults_are_those_of_the_pipeline_s_class(sd15, aura):
    found = default_sampling(find_model(str(sd15)))
    assert (found.steps, found.guidance, found.width) == (50, 7.5, 16)
    (aura / "sampling.json").rename(aura / "kept.json")
    found = default_sampling(find_model(str(aura)))
    (aura / "kept.json").rename(aura / "sampling.json")
    assert (found.steps, found.guidance, found.width) == (50, 3.5, 16)


def test_latents_need_a_model_that_can_be_trained(tmp_path, aura):
    with pytest.raises(MapoError, match="is a AuraFlowPipeline; known are"):
        build(
            read_recipe("pick-style-cartoon"),
            str(aura),
            PROMPTS,
            1,
            tmp_path / "p",
            steps=1,
            keep="rejected-as-latents",
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("StableDiffusionXLInpaintPipeline", "Pipeline, a model for inpainting. Give the model that it was made from"),
        ("FluxFillPipeline", "Pipeline, a model for inpainting. Give the model that it was made from"),
        ("StableDiffusionXLImg2ImgPipeline", "which begins with a picture and not with text. Give the model"),
        ("FluxControlNetPipeline", "which needs a ControlNet beside its model. Give the model alone"),
        ("StableDiffusionInstructPix2PixPipeline", "a model for editing pictures. Give the model"),
        ("FluxControlPipeline", "a model that copies a layout .FLUX.1 Depth or Canny"),
        ("LTXPipeline", "does not make pictures from text alone"),
        ("DDPMPipeline", "does not make pictures from text alone"),
        ("NoSuchPipeline", "which this diffusers does not know. Version .* is installed; install one that has it"),
        ("", "without a class, which this diffusers does not know. Its model_index.json has to name the class"),
        ("AutoencoderKL", "which this diffusers does not know"),
    ],
)
def test_what_makes_no_pictures_from_text_is_refused(tmp_path, kind, message):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(MapoError, match=message):
        pipeline_class(find_model(str(tmp_path / "m")))
    if "Give" in message:
        with pytest.raises(MapoError, match=message):
            open_model(find_model(str(tmp_path / "m")))


@pytest.mark.parametrize("kind", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPipeline"])
def test_the_refiner_is_called_by_its_name_by_whoever_trains_and_by_whoever_samples(tmp_path, kind):
    """As it is published: without a first text encoder, and told a score of beauty."""
    (tmp_path / "m").mkdir()
    index = {"_class_name": kind, "requires_aesthetics_score": True, "text_encoder": [None, None]}
    (tmp_path / "m" / "model_index.json").write_text(json.dumps(index))
    model = find_model(str(tmp_path / "m"))
    for use in (open_model, pipeline_class):
        with pytest.raises(MapoError, match=r"m is the refiner of SDXL, which only finishes .* Give the base model"):
            use(model)


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


def test_a_prompt_is_too_long_when_every_text_encoder_cuts_it(tmp_path, sdxl):
    texts = ["a red square", "a " * 60]
    for folder in (make_sd3(tmp_path / "sd3", t5=False), sdxl):
        pipeline = open_pipeline(find_model(str(folder)), "cpu", torch.float32)
        excess = too_long(pipeline, texts)
        assert list(excess) == [texts[1]]
        tokenizer = pipeline.tokenizer
        assert excess[texts[1]] == len(tokenizer(texts[1]).input_ids) - tokenizer.model_max_length


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_weights_that_a_part_of_a_pipeline_of_no_family_lacks_are_named(aura, tmp_path, part):
    folder = shutil.copytree(aura, tmp_path / "m")
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(MapoError, match=f"is not whole: the weights of {part} lack {name} .1 tensor is missing"):
        open_pipeline(find_model(str(folder)), "cpu", torch.float32)
