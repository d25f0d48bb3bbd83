"""Names in original files against those of published checkpoints, and values against diffusers' own converters."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

import mapo.models.single
from mapo.models.names import original
from mapo.models.names.original import originals, shapes_of, unet_layer
from tiny import _unet, make_vae

TABLES = Path(mapo.models.single.__file__).parent / "tables"
LISTED = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "original_names.json.gz").read_bytes()))
CLIP, UNET = "transformer.", "model.diffusion_model."
LAYOUTS = {  # table, name list → each part: class, placing, prefix
    ("sdxl", "sdxl"): {
        "unet": (UNet2DConditionModel, original.unet_placing, UNET),
        "vae": (AutoencoderKL, original.vae_placing, "first_stage_model."),
        "text_encoder": (CLIPTextModel, original.clip_placing, "conditioner.embedders.0.transformer."),
        "text_encoder_2": (CLIPTextModelWithProjection, original.open_clip_placing, "conditioner.embedders.1.model."),
    },
    ("sd15", "sd15"): {
        "unet": (UNet2DConditionModel, original.unet_placing, UNET),
        "vae": (AutoencoderKL, original.vae_placing, "first_stage_model."),
        "text_encoder": (CLIPTextModel, original.clip_placing, "cond_stage_model.transformer."),
    },
    ("sd3-medium", "sd3"): {
        "transformer": (SD3Transformer2DModel, original.sd3_placing, UNET),
        "vae": (AutoencoderKL, original.vae_placing, "first_stage_model."),
        "text_encoder": (CLIPTextModelWithProjection, original.clip_placing, "text_encoders.clip_l.transformer."),
        "text_encoder_2": (CLIPTextModelWithProjection, original.clip_placing, "text_encoders.clip_g.transformer."),
        "text_encoder_3": (T5EncoderModel, original.t5_placing, "text_encoders.t5xxl.transformer."),
    },
    ("flux-dev", "flux"): {
        "transformer": (FluxTransformer2DModel, original.flux_placing, UNET),
        "vae": (AutoencoderKL, original.vae_placing, "vae."),
        "text_encoder": (CLIPTextModel, original.clip_placing, "text_encoders.clip_l.transformer."),
        "text_encoder_2": (T5EncoderModel, original.t5_placing, "text_encoders.t5xxl.transformer."),
    },
}
ALWAYS_THERE = {"logit_scale", "model.model_sampling.sigmas"}  # numbers that no network of diffusers has
TAKES_CONFIG = (original.unet_placing, original.vae_placing, original.sd3_placing)


def outline(kind, config):
    with torch.device("meta"):
        return kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class(**config))


def as_listed(shape):
    return "x".join(map(str, shape))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout[0])
def test_names_and_shapes_at_real_size_are_those_of_published_files(layout):
    table, listed = json.loads((TABLES / f"{layout[0]}.json").read_text()), LISTED[layout[1]]
    found = {}
    for part, (kind, placing, prefix) in LAYOUTS[layout].items():
        network = outline(kind, table[part])
        at = placing(network.config) if placing in TAKES_CONFIG else placing
        found |= originals(at, shapes_of(network.state_dict().items()), prefix)
        if layout[0] == "sdxl" and part == "unet":
            listed_here = LISTED["sdxl_unet_diffusers"]
            assert {name: as_listed(t.shape) for name, t in network.state_dict().items()} == listed_here
    assert {name: as_listed(entry.shape) for name, entry in found.items()}.items() <= listed["shapes"].items()
    rest = listed["shapes"].keys() - found.keys() - set(listed["optional"])
    assert all(name in ALWAYS_THERE or name.endswith(".logit_scale") for name in rest), sorted(rest)[:3]


def test_layers_of_the_unet_are_called_as_lora_files_call_them():
    network = outline(UNet2DConditionModel, json.loads((TABLES / "sdxl.json").read_text())["unet"])
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    inside = [path for path, layer in network.named_modules() if isinstance(layer, kinds) and ".attentions." in path]
    ours = {"lora_unet_" + unet_layer(path, network.config).replace(".", "_") for path in inside}
    assert ours == set(LISTED["sdxl_kohya_unet_modules"]) and len(ours) == 722


def written(network, placing, prefix=""):
    """The tensors of a network as an original file has them."""
    tensors = network.state_dict()
    found = originals(placing, shapes_of(tensors.items()), prefix)
    return found, {name: entry.join([tensors[ours] for ours, _ in entry.parts]) for name, entry in found.items()}


def read(found, tensors):
    parts = [found[name].split(tensor) for name, tensor in tensors.items()]
    return {name: tensor for part in parts for name, tensor in part.items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


SMALL_UNETS = {
    "two blocks": {"cross_attention_dim": 24},
    "three blocks of two layers": {
        "cross_attention_dim": 24, "use_linear_projection": True, "layers_per_block": 2,
        "block_out_channels": (16, 32, 32), "attention_head_dim": (2, 4, 4), "transformer_layers_per_block": (1, 1, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_UNETS)
def test_diffusers_reads_the_unet_that_we_write(name):
    network = _unet(**SMALL_UNETS[name])
    found, tensors = written(network, original.unet_placing(network.config), UNET)
    assert_same(read(found, tensors), network.state_dict())
    config = {**network.config, "class_embed_type": None, "layers_per_block": network.config.layers_per_block}
    assert_same(convert_ldm_unet_checkpoint(dict(tensors), config), network.state_dict())


def test_diffusers_reads_the_vae_that_we_write():
    network = make_vae(layers_per_block=2)
    found, tensors = written(network, original.vae_placing(network.config), "first_stage_model.")
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    assert_same(read(found, tensors), network.state_dict())
    made = convert_ldm_vae_checkpoint(dict(tensors), network.config)
    assert_same({name: made[name].reshape(t.shape) for name, t in network.state_dict().items()}, network.state_dict())


def test_diffusers_reads_the_transformer_of_sd3_that_we_write():
    network = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=48, pos_embed_max_size=8,
        qk_norm="rms_norm", dual_attention_layers=(0, 1),
    )  # fmt: skip
    found, tensors = written(network, original.sd3_placing(network.config))
    assert_same(read(found, tensors), network.state_dict())
    assert_same(convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors)), network.state_dict())


def test_flux_has_q_k_and_v_in_one_and_scale_and_shift_the_other_way_round():
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    ours = network.state_dict()
    found, tensors = written(network, original.flux_placing)
    double, single = "transformer_blocks.0.attn.", "single_transformer_blocks.0."
    image = torch.cat([ours[f"{double}to_{name}.weight"] for name in "qkv"])
    text = torch.cat([ours[f"{double}add_{name}_proj.bias"] for name in "qkv"])
    first = torch.cat([ours[f"{single}attn.to_{name}.weight"] for name in "qkv"] + [ours[f"{single}proj_mlp.weight"]])
    shift, scale = tensors["final_layer.adaLN_modulation.1.weight"].chunk(2)
    assert torch.equal(tensors["double_blocks.0.img_attn.qkv.weight"], image)
    assert torch.equal(tensors["double_blocks.0.txt_attn.qkv.bias"], text)
    assert torch.equal(tensors["single_blocks.0.linear1.weight"], first) and first.shape == (3 * 16 + 64, 16)
    assert torch.equal(ours["norm_out.linear.weight"], torch.cat([scale, shift]))
    assert torch.equal(tensors["single_blocks.0.norm.key_norm.scale"], ours[f"{single}attn.norm_k.weight"])
    assert_same(read(found, tensors), ours)


def test_open_clip_has_its_projection_transposed_and_q_k_and_v_in_one():
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=16, projection_dim=4, num_hidden_layers=2, num_attention_heads=2
    )
    network = CLIPTextModelWithProjection(config)
    ours = {name.removeprefix("text_model."): tensor for name, tensor in network.state_dict().items()}
    found, tensors = written(network, original.open_clip_placing)
    assert torch.equal(tensors["text_projection"], ours["text_projection.weight"].T) and tensors[
        "text_projection"
    ].shape == (8, 4)
    names = [f"encoder.layers.1.self_attn.{name}_proj.bias" for name in "qkv"]
    assert torch.equal(tensors["transformer.resblocks.1.attn.in_proj_bias"], torch.cat([ours[name] for name in names]))
    assert_same(read(found, tensors), network.state_dict())


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_clip_is_written_with_its_prefix_whatever_transformers_calls_its_layers(prefix):
    shapes = {f"{prefix}encoder.layers.0.mlp.fc1.weight": (4, 2), "text_projection.weight": (2, 2)}
    assert set(originals(original.clip_placing, shapes, "p.")) == {
        "p.text_model.encoder.layers.0.mlp.fc1.weight", "p.text_projection.weight",
    }  # fmt: skip
