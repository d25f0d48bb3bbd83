"""What lies in a file is told by its head, at the real names and shapes of published files; nothing is loaded."""

import json
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.names.original import open_clip_placing, originals, shapes_of, unet_placing
from mapo.models.noise.process import Ddpm
from mapo.models.parts.header import as_safetensors, read_header
from mapo.models.single.layout import class_of, outline
from mapo.models.single.prediction import prediction_of
from mapo.models.single.tables import clip_vocabulary, table, write_folder, write_tokenizer
from real import REAL, needs_real
from sparse import published, write_sparse

INSIDE = "model.diffusion_model."
MARKS = ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


def checkpoint(name, **changes):
    """Names and shapes of a published file without marks of v-prediction; None takes a tensor out."""
    shapes = {key: shape for key, shape in published(name).items() if key not in MARKS}
    return {key: shape for key, shape in {**shapes, **changes}.items() if shape is not None}


def refused(path):
    with pytest.raises(MapoError) as error:
        find_model(str(path))
    return str(error.value)


# ---------------------------------------------------------------------- what is a model


@pytest.mark.parametrize(
    ("name", "kind", "side"),
    [("sdxl", "StableDiffusionXLPipeline", 1024), ("sd15", "StableDiffusionPipeline", 512),
     ("sd3", "StableDiffusion3Pipeline", 1024), ("flux", "FluxPipeline", 1024)],
)  # fmt: skip
def test_a_published_file_is_known_at_its_real_size_without_reading_a_tensor(tmp_path, heard, name, kind, side):
    path = write_sparse(tmp_path / f"{name}.safetensors", checkpoint(name))
    model = open_model(find_model(str(path)))
    assert model.files.pipeline_class == kind and model.layout.side == side and not model.distilled
    assert model.files.is_local and model.files.stable_name == str(path.resolve())
    said = heard()
    assert ("does not say what it predicts, so it is taken for epsilon" in said) == (name in ("sdxl", "sd15"))
    assert "left out" not in said
    if name in ("sdxl", "sd15"):
        assert model.process.prediction_type == "epsilon"


def test_early_names_of_clip_averages_of_weights_and_flat_convolutions_are_known(tmp_path, heard):
    inner, text = "first_stage_model.encoder.mid.attn_1.q.weight", "cond_stage_model.transformer."
    shapes = checkpoint("sd15", **{inner: (512, 512)})
    shapes = {key.replace(f"{text}text_model.", text): shape for key, shape in shapes.items()}
    shapes |= {"model_ema.decay": (), "model_ema.diffusion_modelout0bias": (320,)}
    model = find_model(str(write_sparse(tmp_path / "m.safetensors", shapes)))
    assert f"{text}embeddings.token_embedding.weight" in model.single.parts["text_encoder"]
    assert "left out" not in heard()


def test_parts_of_flux_and_sd3_that_a_file_lacks_are_named(tmp_path):
    flux = {key: shape for key, shape in checkpoint("flux").items() if key.startswith(INSIDE)}
    bare = {key.removeprefix(INSIDE): shape for key, shape in flux.items()}
    for shapes in (flux, bare):
        said = refused(write_sparse(tmp_path / "flux1-dev.safetensors", shapes))
        assert "FLUX.1 dev without its VAE and its text encoder (CLIP-L) and its second text encoder (T5)" in said
        assert "Take a file that holds every part. Or: Give the model as a folder" in said
    sd3 = {key: shape for key, shape in checkpoint("sd3").items() if "clip_g" not in key}
    assert "without its second text encoder (CLIP-G)" in refused(write_sparse(tmp_path / "sd3.safetensors", sd3))


def test_a_file_that_is_refused_says_nothing_else_before(tmp_path, heard):
    unet = {key: shape for key, shape in checkpoint("sd15").items() if key.startswith(INSIDE)}
    assert "Stable Diffusion 1.5 without its" in refused(write_sparse(tmp_path / "unet.safetensors", unet))
    assert heard() == ""


def test_sd3_may_come_without_t5(tmp_path):
    shapes = {key: shape for key, shape in checkpoint("sd3").items() if "t5xxl" not in key}
    files = find_model(str(write_sparse(tmp_path / "sd3.safetensors", shapes)))
    lacking = ("text_encoder_3", "tokenizer_3")
    assert files.parts_left_out(("text_encoder_2", *lacking)) == lacking and "text_encoder_3" not in files.single.parts


def test_a_file_without_a_vae_is_opened_with_another_one(tmp_path):
    whole = checkpoint("sd15")
    vae = {key: shape for key, shape in whole.items() if key.startswith("first_stage_model.")}
    path = write_sparse(tmp_path / "model.safetensors", {k: v for k, v in whole.items() if k not in vae})
    alone = {key.removeprefix("first_stage_model."): shape for key, shape in vae.items()}
    other = write_sparse(tmp_path / "vae.safetensors", alone)
    assert refused(path).endswith("is Stable Diffusion 1.5 without its VAE. Name one with --vae.")
    wide = {key: shape for key, shape in checkpoint("sd3").items() if key.startswith("first_stage_model.")}
    with pytest.raises(MapoError, match=r"conv_out.weight has the shape 32 × 512 × 3 × 3.* 8 × 512 .*one of its kind"):
        find_model(str(path), vae=str(write_sparse(tmp_path / "wide.safetensors", wide)))
    files = find_model(str(path), vae=str(other))
    assert files.config("vae")["scaling_factor"] == 0.18215 and files.vae.name == str(other.resolve())


def test_flux_is_dev_or_schnell_by_its_guidance(tmp_path):
    shapes = {key: shape for key, shape in checkpoint("flux").items() if "guidance_in" not in key}
    files = find_model(str(write_sparse(tmp_path / "flux.safetensors", shapes)))
    assert files.config("transformer")["guidance_embeds"] is False
    assert not files.config("scheduler").get("use_dynamic_shifting")


@pytest.mark.parametrize(
    ("name", "title", "distilled", "dynamic", "says"),
    [
        ("flux1-schnell", "", True, False, ""), ("merge", "FLUX.1-schnell", True, False, ""),
        ("merge", "", True, False, "so it is taken for FLUX.1 schnell, whose times are not shifted. If they are, say it"),
        ("merge", "Flux Dev De-Distilled", False, True, "so it is taken for FLUX.1 dev whose distillation was undone"),
        ("LibreFLUX", "", False, False, "so it is taken for FLUX.1 schnell, whose times are not shifted. If they are, say"),
    ],
)  # fmt: skip
def test_a_flux_without_guidance_is_schnell_or_one_whose_distillation_was_undone_by_its_names(
    tmp_path, heard, name, title, distilled, dynamic, says
):
    shapes = {key: shape for key, shape in checkpoint("flux").items() if "guidance_in" not in key}
    path = write_sparse(tmp_path / f"{name}.safetensors", shapes, metadata={"modelspec.title": title})
    model, said = open_model(find_model(str(path))), heard()
    assert bool(model.distilled) == distilled
    assert model.files.config("scheduler")["use_dynamic_shifting"] == dynamic
    assert (says in said) if says else not said
    scheduler = {**model.files.config("scheduler"), "shift": 2.5, "use_dynamic_shifting": False}
    (place := path.with_suffix(".config") / "scheduler").mkdir(parents=True)
    (place / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert open_model(find_model(str(path))).process.shift == 2.5 and not heard()


# ---------------------------------------------------------------------- files that do not fit


def test_pieces_of_a_model_and_its_descriptions_are_not_taken_for_a_model(tmp_path, sdxl):
    shapes = {f"{INSIDE}double_blocks.0.x.weight": (2, 2)}
    for name in ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"):
        write_sparse(tmp_path / name, {f"{name}.{key}": shape for key, shape in shapes.items()})
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    for name, what in (
        ("m-00002-of-00002.safetensors", "is one of several pieces"),
        ("m.safetensors.index.json", "only says"),
    ):
        said = refused(tmp_path / name)
        assert what in said and "Join them to one file, and give that: python -c " in said
    subprocess.run([sys.executable, "-c", said.partition(' -c "')[2].removesuffix('"')], check=True)
    assert len(load_file(tmp_path / "m.safetensors")) == 2
    assert refused(sdxl / "model_index.json").endswith(f"describes a model folder. Give the folder: {sdxl}.")
    shutil.copytree(sdxl, tmp_path / "model")
    piece = (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "model" / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    )
    assert refused(piece) == f"{piece} is only a piece of the model in {tmp_path / 'model'}. Give that folder."


@pytest.mark.parametrize("places", [[8, 0], [-8, 0]])
def test_a_head_that_contradicts_itself_is_called_damaged(tmp_path, places):
    head = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": places}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    assert refused(tmp_path / "m.safetensors").endswith("is damaged: its head cannot be read. Download it again.")


def test_lacking_strange_and_misshapen_tensors_are_named(tmp_path, heard):
    name = f"{INSIDE}middle_block.1.norm.weight"
    path = tmp_path / "m.safetensors"
    said = refused(write_sparse(path, checkpoint("sd15", **{name: None})))
    assert f"is not a file of Stable Diffusion 1.5: it lacks 1 tensor, such as {name}. It is not cut off" in said
    assert "of another kind, such as a smaller model (SSD-1B …)" in said and "Download" not in said
    said = refused(write_sparse(path, checkpoint("sd15", **{name: (640,)})))
    assert f"{name} has the shape 640, there it has 1280" in said
    said = refused(write_sparse(path, checkpoint("sd15", **{f"{INSIDE}adapter.weight": (4, 4)})))
    assert "has 1 tensor that Stable Diffusion 1.5 does not have, such as model.diffusion_model.adapter" in said
    heard()
    find_model(str(write_sparse(path, checkpoint("sd15", **{"bundle_emb.cat.string_to_param": (2, 768)}))))
    assert "1 tensor belongs to no part of the model and is left out (bundle_emb.cat" in heard()


OTHERS = {
    "is the refiner of SDXL": {f"{INSIDE}input_blocks.0.0.weight": (384, 4, 3, 3), f"{INSIDE}label_emb.0.0.weight": (1536, 2560)},
    "takes 9 channels: a model for inpainting": {f"{INSIDE}input_blocks.0.0.weight": (320, 9, 3, 3)},
    "takes 8 channels: a model for editing": {"input_blocks.0.0.weight": (320, 8, 3, 3)},
    "an EDM model (Playground 2.5)": {f"{INSIDE}input_blocks.0.0.weight": (320, 4, 3, 3), f"{INSIDE}label_emb.0.0.weight": (1280, 2816), "edm_mean": (4,), "edm_std": (4,)},
    "is an EDM model (edm_vpred": {f"{INSIDE}input_blocks.0.0.weight": (320, 4, 3, 3), f"{INSIDE}label_emb.0.0.weight": (1280, 2816), "edm_vpred.sigma_max": ()},
    "is FLUX.1 Fill": {"double_blocks.0.img_attn.qkv.weight": (3, 3), "img_in.weight": (3072, 384)},
    "is FLUX.1 Depth or Canny": {"double_blocks.0.img_attn.qkv.weight": (3, 3), "img_in.weight": (3072, 128)},
    "Stable Diffusion 3 of an unknown size": {f"{INSIDE}joint_blocks.0.x_block.attn.qkv.weight": (3, 3), f"{INSIDE}pos_embed": (1, 100, 64)},
    "is a model of Chroma": {"double_blocks.0.img_attn.qkv.weight": (3, 3), "distilled_guidance_layer.in_proj.weight": (3, 3)},
    "is a model of FLUX.2": {"double_blocks.0.img_attn.qkv.weight": (3, 3), "double_stream_modulation_img.lin.weight": (3, 3)},
    "is a model of Z-Image or Lumina": {f"{INSIDE}noise_refiner.0.attention.qkv.weight": (3, 3), f"{INSIDE}x.weight": (3,)},
    "holds the parts of a model by diffusers' names": {"unet.down_blocks.0.x.weight": (3, 3), "vae.decoder.conv_in.weight": (3, 3)},
    "holds only a denoiser, by diffusers' names": {"down_blocks.0.resnets.0.conv1.weight": (3, 3), "conv_in.weight": (3, 3)},
    "only as the running mean of a training (model_ema)": {"model_ema.diffusion_modelout0bias": (320,), "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3), "cond_stage_model.transformer.x.weight": (3, 3)},
    "is a motion module of AnimateDiff": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,), "down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": (320,)},
    "is Stable Diffusion 2.1 unCLIP": {f"{INSIDE}input_blocks.0.0.weight": (320, 4, 3, 3), f"{INSIDE}label_emb.0.0.weight": (1280, 2048)},
    "is a VAE, not a model. Give it with --vae": {"decoder.conv_in.weight": (512, 4, 3, 3), "quant_conv.weight": (8, 8, 1, 1)},
    "has a VAE and a text encoder but no denoiser": {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3), "cond_stage_model.transformer.x.weight": (3, 3)},
    "is a text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (3, 3), "text_model.x.weight": (2, 2)},
    "is a LoRA, not a model": {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 640), "lora_unet_input_blocks_4_1_proj_in.alpha": ()},
    "is a LoRA, not": {"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 4), "a.lora_B.weight": (4, 4)},
    "is an embedding (textual inversion)": {"clip_l": (2, 768), "clip_g": (2, 1280)},
    "is an embedding": {"<cat-toy>": (1, 768)},
    "is a ControlNet": {"control_model.input_blocks.0.0.weight": (3, 3), "control_model.x.weight": (3, 3)},
    "list of tensors without names": {"0": (3, 3), "1": (4, 4)},
    "is a list of tensors without names": {"tensor_0": (3, 3), "tensor_1": (4, 4)},
    "a list of tensors without names": {"arr_0": (3, 3), "arr_1": (4, 4)},
    "holds no tensors": {},
    "scaled 8-bit weights": {f"{INSIDE}double_blocks.0.img_attn.qkv.weight": ("F8_E4M3", (3, 3)), "scaled_fp8": ("F8_E4M3", (0,))},
    "holds quantized weights": {f"{INSIDE}double_blocks.0.img_attn.qkv.weight": ("U8", (3, 3)), "img_in.weight": (3, 64)},
    "is not a model that is known": {"something.else.weight": (3, 3), "b.weight": (3, 3)},
}  # fmt: skip


@pytest.mark.parametrize("why", OTHERS)
def test_another_kind_of_file_is_called_by_its_name(tmp_path, why):
    assert why in refused(write_sparse(tmp_path / "x.safetensors", OTHERS[why]))


def test_kontext_is_told_by_a_name_where_nothing_else_tells(tmp_path):
    shapes = {"double_blocks.0.img_attn.qkv.weight": (3, 3), "img_in.weight": (3072, 64)}
    assert "the word 'kontext'" in refused(write_sparse(tmp_path / "flux1-kontext-dev.safetensors", shapes))
    titled = write_sparse(tmp_path / "m.safetensors", shapes, metadata={"modelspec.title": "FLUX.1 Kontext [dev]"})
    assert "the word 'Kontext'" in refused(titled)
    write_sparse(tmp_path / "0a1b2c", shapes)
    (tmp_path / "kontext.safetensors").symlink_to("0a1b2c")  # as the hub's cache keeps it
    assert "kontext.safetensors has the word 'kontext'" in refused(tmp_path / "kontext.safetensors")


def test_damaged_and_half_downloaded_files_are_said_to_be_so(tmp_path):
    shapes = {"decoder.conv_in.weight": (512, 4, 3, 3), "b": (1,)}
    said = refused(write_sparse(tmp_path / "m.safetensors", shapes, cut=100))
    assert re.search(r"is cut off: it has [\d,]+ of [\d,]+ bytes. Download it again", said)
    cases = {
        b"": "is empty", b"\x10\x27\0\0\0\0\0\0{": "is cut off", b"\x08\0\0\0\0\0\0\0{broken}": "is damaged",
        b"<!DOCTYPE html><html>": "is a web page", b"version https://git-lfs.github.com/spec": "git lfs pull",
        b"GGUF\x03\0\0\0": "is a GGUF file", b"\x89PNG\r\n\x1a\n": "is a picture, not a file of weights",
        b"Dear Sir or Madam": "is not a safetensors file",
    }  # fmt: skip
    for content, why in cases.items():
        (tmp_path / "x.safetensors").write_bytes(content)
        assert why in refused(tmp_path / "x.safetensors")


def test_a_head_may_say_that_it_has_no_metadata_but_not_that_they_are_a_list(tmp_path):
    path = write_sparse(tmp_path / "m.safetensors", {"a": (2,)}, metadata={"x": "y"})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'{"x": "y"}', b"null      "))
    assert read_header(path).metadata == {} and "a" in read_header(path).tensors
    path.write_bytes(whole.replace(b'{"x": "y"}', b"[1]       "))
    assert "is damaged: its head cannot be read" in refused(path)


def test_a_pickle_is_refused_and_the_command_that_is_told_writes_it_anew(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "global_step": 3}, path)
    said = refused(path)
    assert "is a pickle" in said and as_safetensors(path) in said
    exec(as_safetensors(path).removeprefix('python -c "').removesuffix('"'), {})
    assert torch.equal(load_file(tmp_path / "old.safetensors")["a"], torch.ones(2))
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    assert "is a pickle" in refused(renamed)


def test_the_command_that_writes_a_pickle_anew_writes_over_no_file(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    for name in ("x-2", "x-3"):
        said = refused(path)
        exec(said.partition('python -c "')[2].removesuffix('"'), {})
        assert torch.equal(load_file(tmp_path / f"{name}.safetensors")["a"], torch.ones(2))
    assert path.read_bytes() == before


# ---------------------------------------------------------------------- what is predicted


def process(path, **told):
    scheduler = Ddpm.from_scheduler(find_model(str(path), **told).config("scheduler"), path)
    return scheduler.prediction_type, bool(scheduler.alphas_cumprod[-1] < 1e-6)


@pytest.mark.parametrize(
    ("added", "metadata", "wanted"),
    [
        (("v_pred",), {}, ("v", False)),
        (("v_pred", "ztsnr"), {}, ("v", True)),
        ((), {"modelspec.prediction_type": "v"}, ("v", False)),
        ((), {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}, ("v", True)),
        ((), {"modelspec.prediction_type": "epsilon"}, ("epsilon", False)),
    ],
)  # fmt: skip
def test_marks_in_a_file_say_what_it_predicts(tmp_path, added, metadata, wanted):
    shapes = {"a": (2,), **dict.fromkeys(added, ("I64", (0,)))}
    found = prediction_of(read_header(write_sparse(tmp_path / "m.safetensors", shapes, metadata=metadata)))
    assert (found.name, found.zero_snr) == wanted and not found.unsaid


def test_an_sdxl_file_with_marks_is_trained_as_they_say(tmp_path, heard):
    shapes = checkpoint("sdxl", v_pred=("I64", (0,)), ztsnr=("I64", (0,)))
    assert process(write_sparse(tmp_path / "m.safetensors", shapes)) == ("v_prediction", True)
    assert "does not say" not in heard()


@pytest.mark.parametrize("name", ["someMix_vPred10", "x-v-pred", "v_prediction"])
def test_where_only_the_name_of_a_file_says_v_a_word_is_needed(tmp_path, name):
    path = write_sparse(tmp_path / f"{name}.safetensors", {"a": (2,)})
    with pytest.raises(
        MapoError, match="has the word '[vV].*' in its name, but no mark of what it predicts. Say it with"
    ):
        prediction_of(read_header(path))
    assert prediction_of(read_header(path), asked="v").name == "v"
    marked = write_sparse(path, {"v_pred": ("I64", (0,))})
    assert prediction_of(read_header(marked)).name == "v"
    other = write_sparse(tmp_path / "vpredator.safetensors", {"a": (2,)})
    assert prediction_of(read_header(other)).unsaid


def test_marks_that_contradict_each_other_need_a_word(tmp_path):
    shapes = checkpoint("sd15", v_pred=("I64", (0,)), ztsnr=("I64", (0,)))
    path = write_sparse(tmp_path / "m.safetensors", shapes, metadata={"modelspec.prediction_type": "epsilon"})
    said = refused(path)
    assert "the tensor v_pred says v, modelspec.prediction_type in its metadata says epsilon" in said
    assert process(path, prediction="v") == ("v_prediction", True)
    assert process(path, prediction="epsilon") == ("epsilon", False)
    alone = write_sparse(tmp_path / "z.safetensors", checkpoint("sd15", ztsnr=("I64", (0,))))
    assert "noise ends at zero SNR (ztsnr), but not that it predicts v" in refused(alone)


def test_a_prediction_that_training_does_not_know_is_named(tmp_path):
    path = write_sparse(tmp_path / "m.safetensors", {"a": (2,)}, metadata={"modelspec.prediction_type": "x0"})
    with pytest.raises(MapoError, match="predicts 'x0' .*Training knows epsilon and v. If the metadata is wrong"):
        prediction_of(read_header(path))
    assert prediction_of(read_header(path), asked="epsilon").name == "epsilon"


def test_stable_diffusion_2_is_told_by_the_spread_of_one_tensor(tmp_path):
    """Of random numbers: 0.05 is what models that predict ε have, 0.2 what those that predict v have."""
    name = f"{INSIDE}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    whole, values = checkpoint("sd15"), table("sd2")
    unet = outline(class_of(["diffusers", "UNet2DConditionModel"]), values["unet"])
    text = outline(class_of(["transformers", "CLIPTextModel"]), values["text_encoder"])
    shapes = {key: shape for key, shape in whole.items() if key.startswith("first_stage_model.")}
    parts = ((unet, unet_placing(unet.config), INSIDE), (text, open_clip_placing, "cond_stage_model.model."))
    for network, placing, prefix in parts:
        found = originals(placing, shapes_of(network.state_dict().items()), prefix)
        shapes |= {key: entry.shape for key, entry in found.items()}
    shapes["cond_stage_model.model.transformer.resblocks.23.ln_1.weight"] = (1024,)  # which nobody uses
    for spread, wanted, side in ((0.05, "epsilon", 512), (0.2, "v_prediction", 768)):
        path = write_sparse(tmp_path / f"{wanted}.safetensors", shapes)
        write_tensor(path, name, torch.randn(320, generator=torch.Generator().manual_seed(0)) * spread)
        found = find_model(str(path))
        assert found.config("scheduler")["prediction_type"] == wanted
        assert found.config("unet")["sample_size"] * 8 == side


def write_tensor(path, name, values):
    """Put numbers into a sparse file."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        begin = json.loads(file.read(length))[name]["data_offsets"][0]
        file.seek(8 + length + begin)
        file.write(values.half().numpy().tobytes())


def test_the_word_on_prediction_is_for_models_that_have_one(tmp_path, sdxl):
    path = write_sparse(tmp_path / "m.safetensors", checkpoint("flux"))
    with pytest.raises(MapoError, match="--prediction is for Stable Diffusion 1, 2 and XL; .* is a FluxPipeline"):
        find_model(str(path), prediction="v")
    with pytest.raises(MapoError, match="--prediction is 'w'; it is epsilon or v"):
        find_model(str(sdxl), prediction="w")
    model = open_model(find_model(str(sdxl), prediction="v"))
    assert model.process.prediction_type == "v_prediction"
    assert model.pipeline("cpu").scheduler.config.prediction_type == "v_prediction"
    assert model.files.revision() != find_model(str(sdxl)).revision()


# ---------------------------------------------------------------------- what the package carries


@needs_real("configs")
@pytest.mark.parametrize(
    ("name", "folder"),
    [("sdxl", "stable-diffusion-xl-base-1.0"), ("sd15", "stable-diffusion-v1-5"), ("sd2", "stable-diffusion-2-1"),
     ("sd3-medium", "stable-diffusion-3-medium-diffusers"), ("sd35-large", "stable-diffusion-3.5-large"),
     ("flux-dev", "FLUX.1-dev"), ("flux-schnell", "FLUX.1-schnell")],
)  # fmt: skip
def test_the_tables_say_what_the_published_files_say(name, folder):
    for part, values in table(name).items():
        path = REAL / "configs" / folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if isinstance(values, dict) and path.exists():
            theirs = json.loads(path.read_text())
            assert {key: theirs.get(key, value) for key, value in values.items()} == values


@needs_real("clip_tokenizer")
@pytest.mark.parametrize(("part", "kind"), [("tokenizer", "clip"), ("tokenizer_2", "clip-g")])
def test_clips_tokenizers_read_as_the_published_ones_do(tmp_path, part, kind):
    from transformers import CLIPTokenizer

    merges = (REAL / "clip_tokenizer" / "merges.txt").read_text("utf-8")
    assert clip_vocabulary(merges) == json.loads((REAL / "clip_tokenizer" / "vocab.json").read_text("utf-8"))
    write_tokenizer(tmp_path / "ours", kind)
    ours = CLIPTokenizer.from_pretrained(tmp_path / "ours")
    for model in ("stable-diffusion-xl-base-1.0", "stable-diffusion-3-medium-diffusers"):
        shutil.copytree(REAL / "configs" / model / part, tmp_path / model)
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(REAL / "clip_tokenizer" / file, tmp_path / model)
        assert_reads_alike(ours, CLIPTokenizer.from_pretrained(tmp_path / model))


@needs_real("t5_tokenizer")
def test_t5s_tokenizer_reads_as_the_published_one_does(tmp_path):
    from transformers import T5TokenizerFast

    write_tokenizer(tmp_path / "ours", "t5")
    assert_reads_alike(
        T5TokenizerFast.from_pretrained(tmp_path / "ours"), T5TokenizerFast.from_pretrained(REAL / "t5_tokenizer")
    )


TEXTS = [
    "a photo of a cat", "", "Ünïcode — 猫, émoji 🐈 and  two  spaces", "!!! (masterpiece:1.2), <lora:x:1>", "word " * 200,
    "<|startoftext|> begin <|endoftext|> end ! </s> <extra_id_0> <pad>", "it's 12,345.67\n\tnew line",
]  # fmt: skip


def assert_reads_alike(ours, theirs):
    assert (ours.model_max_length, ours.pad_token_id, len(ours)) == (
        theirs.model_max_length,
        theirs.pad_token_id,
        len(theirs),
    )
    how = {"padding": "max_length", "max_length": 77, "truncation": True}
    for text in TEXTS:
        assert ours(text, **how).input_ids == theirs(text, **how).input_ids, text


def test_a_folder_of_a_table_is_a_model_folder_without_weights(tmp_path):
    write_folder(tmp_path, "sd3-medium")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {
        "model_index.json", "scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
        "tokenizer_3", "transformer", "vae",
    }  # fmt: skip
    assert not list(tmp_path.rglob("*.safetensors"))
