"""LoRAs as other tools read them: laid on the file that a model was first published in, by names alone."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mapo.errors import MapoError
from mapo.export.runs.kohya import write_kohya
from mapo.export.runs.lora import write_lora
from mapo.models import Frames, find_model, open_model, together
from mapo.models.loras.layers import Layer
from mapo.models.loras.write import write_layers
from mapo.models.names.original import clip_placing, denoiser_placing, originals, shapes_of
from tiny import make_flux, make_lora, make_sd, make_sd3, make_sdxl, make_z_image

KNOWN = {"sdxl": make_sdxl, "sd": make_sd, "sd3": make_sd3, "flux": make_flux}
TEXT = {"sdxl": ("lora_te1", "lora_te2"), "sd": ("lora_te",), "sd3": ("lora_te1", "lora_te2"), "flux": ("lora_te1",)}


def opened(folder, *loras):
    return open_model(find_model(str(folder), loras=[str(lora) for lora in loras]))


def random_layers(model, keep, ranks=(4,), scale=0.5):
    """A LoRA with weights beside the layers that ``keep`` says."""
    generator, found = torch.Generator().manual_seed(0), []
    for part in (part for part in model.networks if part != "vae"):
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        modules = [(n, m) for n, m in model.outline(part).named_modules() if isinstance(m, kinds) and keep(part, n)]
        for number, (name, module) in enumerate(modules):
            shape, rank = module.weight.shape, ranks[number % len(ranks)]
            down = torch.randn(rank, *shape[1:], generator=generator)
            up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) / 10
            found.append(Layer(part, name, down, up, rank * scale))
    return found


@pytest.fixture(scope="module", params=KNOWN)
def made(request, tmp_path_factory):
    """A model, and a LoRA of every layer of its denoiser and its CLIPs in both formats."""
    folder = tmp_path_factory.mktemp(request.param)
    model = opened(KNOWN[request.param](folder / "m"))
    clips = list(model.text_encoders)[: len(TEXT[request.param])]
    write_layers(
        folder / "own.safetensors", random_layers(model, lambda part, _: part in (model.denoiser_part, *clips))
    )
    model = opened(folder / "m", folder / "own.safetensors")
    write_kohya(model, folder / "kohya.safetensors")
    return request.param, folder, model


def as_published(network, family):
    """The denoiser's tensors by the names of the file that it was published in; those of diffusers for SD 1.5."""
    tensors = network.state_dict()
    if family == "sd":
        return tensors, {}
    found = originals(denoiser_placing(type(network).__name__, network.config), shapes_of(tensors.items()))
    return {name: one.join([tensors[ours] for ours, _ in one.parts]) for name, one in found.items()}, found


def laid_on(tensors, lora, prefix):
    """What ComfyUI does: every weight has the name of a LoRA's layer, with underscores for dots."""
    names = {
        f"{prefix}_" + name.removesuffix(".weight").replace(".", "_"): name
        for name in tensors
        if name.endswith(".weight")
    }
    layers = {name.split(".")[0] for name in lora if name.startswith(f"{prefix}_")}
    assert layers <= names.keys()
    patched = {name: tensor.clone() for name, tensor in tensors.items()}
    for layer in layers:
        down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
        strength = float(lora[f"{layer}.alpha"]) / down.shape[0]
        weight = patched[names[layer]]
        assert weight.ndim == down.ndim == up.ndim
        if down.ndim == 4 and down.shape[2:] != (1, 1):
            delta = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
        else:
            delta = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        weight += strength * delta
    return patched


def output(model, network):
    """The denoiser's output for one made-up picture."""
    torch.manual_seed(3)
    plain = open_model(find_model(str(model.files.base)))
    found = plain.text_encoder("cpu")(["a cat"])
    text = together([{name: value[0] for name, value in found.items()}])
    cond = model.condition(text, Frames.square(torch.tensor([[16, 16, 0, 0]]), 16))
    with torch.no_grad():
        return model.predict(network, torch.randn(1, 4, 8, 8), model.process.time(torch.tensor([500])), cond)


def test_the_file_laid_on_the_published_one_gives_the_denoisers_output(made):
    family, folder, model = made
    plain = opened(folder / "m").denoiser("cpu")
    before, lora = output(model, plain), load_file(folder / "kohya.safetensors")
    tensors, found = as_published(plain, family)
    patched = laid_on(tensors, lora, "lora_unet")
    for name, one in found.items():
        for ours, value in one.split(patched[name]).items():
            plain.state_dict()[ours].copy_(value)
    if not found:
        plain.load_state_dict(patched)
    ours, theirs = output(model, model.denoiser("cpu")), output(model, plain)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, before, atol=1e-2)


def test_the_file_laid_on_the_text_encoders_gives_their_weights(made):
    family, folder, model = made
    lora, plain = load_file(folder / "kohya.safetensors"), opened(folder / "m")
    for prefix, part in zip(TEXT[family], model.text_encoders, strict=False):
        network, ours = (m.files.load(part, m.networks[part]) for m in (plain, model))
        found = originals(clip_placing, shapes_of(network.state_dict().items()))
        tensors = {name: network.state_dict()[one.parts[0][0]] for name, one in found.items()}
        assert any(name.startswith("text_model.encoder.layers.0.self_attn.q_proj") for name in tensors)
        patched = laid_on(tensors, lora, prefix)
        for name, one in found.items():
            assert torch.allclose(patched[name], ours.state_dict()[one.parts[0][0]], atol=1e-5), name


def test_the_file_is_read_again_with_the_same_ranks_and_alphas(made):
    _, folder, model = made
    found = opened(folder / "m", folder / "kohya.safetensors").lora_layers()[0]
    wanted = {one.key: one for one in model.lora_layers()[0]}
    assert {one.key for one in found} == wanted.keys()
    for one in found:
        ours = wanted[one.key]
        assert (one.rank, one.alpha) == (ours.rank, ours.alpha), one.key
        assert torch.equal(one.up, ours.up) and torch.equal(one.down, ours.down), one.key
    write_kohya(opened(folder / "m", folder / "kohya.safetensors"), folder / "again.safetensors")
    first, again = (load_file(folder / f"{name}.safetensors") for name in ("kohya", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_what_a_tool_reads_in_the_head_is_there(made):
    family, folder, _ = made
    with safe_open(folder / "kohya.safetensors", "pt") as file:
        head = file.metadata()
    architecture, version = {
        "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"), "sd": ("stable-diffusion-v1", "sd_v1"),
        "sd3": ("stable-diffusion-3", "sd3"), "flux": ("flux-1-dev", "flux1"),
    }[family]  # fmt: skip
    assert head["modelspec.architecture"] == f"{architecture}/lora" and head["ss_base_model_version"] == version
    assert (head["ss_network_dim"], head["ss_network_alpha"], head["ss_output_name"]) == ("4", "2", "kohya")
    assert head["modelspec.resolution"] == "16x16" and head["modelspec.sai_model_spec"] == "1.0.1"
    assert head.get("modelspec.prediction_type") == ("epsilon" if family in ("sdxl", "sd") else None)
    assert json.loads(head["ss_network_args"]) == {} and head["ss_v2"] == "False"


def test_the_head_says_that_the_model_predicts_v_and_how_its_noise_ends(sdxl_v, tmp_path):
    lora = make_lora(find_model(str(sdxl_v)), tmp_path / "lora.safetensors")
    write_kohya(opened(sdxl_v, lora), tmp_path / "kohya.safetensors")
    with safe_open(tmp_path / "kohya.safetensors", "pt") as file:
        head = file.metadata()
    assert (head["modelspec.prediction_type"], head["ss_zero_terminal_snr"]) == ("v", "True")


def test_a_fused_layer_has_the_ranks_and_alphas_of_its_parts_together(made):
    family, folder, _ = made
    if family not in ("sd3", "flux"):
        pytest.skip("its layers are not fused")
    lora = load_file(folder / "kohya.safetensors")
    name = {"sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv", "flux": "lora_unet_single_blocks_0_linear1"}[family]
    splits = {"sd3": 3, "flux": 4}[family]
    assert lora[f"{name}.lora_down.weight"].shape == (4 * splits, 16) and float(lora[f"{name}.alpha"]) == 2 * splits


@pytest.mark.parametrize("ranks", [(4,), (1, 3)])
def test_some_of_the_layers_that_are_one_there_are_enough(tmp_path, ranks):
    """Queries and values only, of one rank or of several: the keys' rows stay empty."""
    model = opened(make_flux(tmp_path / "m"))
    layers = random_layers(model, lambda _, name: name.endswith(("attn.to_q", "attn.to_v")), ranks)
    layers[1] = Layer(*layers[1].key, layers[1].down, layers[1].up, 7.0)
    write_layers(tmp_path / "own.safetensors", layers)
    write_kohya(opened(tmp_path / "m", tmp_path / "own.safetensors"), tmp_path / "k.safetensors")
    found = opened(tmp_path / "m", tmp_path / "k.safetensors").lora_layers()[0]
    assert {one.key: one.rank for one in found} == {one.key: one.rank for one in layers}
    again = opened(tmp_path / "m", tmp_path / "k.safetensors").denoiser("cpu").state_dict()
    wanted = opened(tmp_path / "m", tmp_path / "own.safetensors").denoiser("cpu").state_dict()
    assert all(torch.allclose(again[name], wanted[name], atol=1e-5) for name in wanted)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_run_s_lora_on_named_ones_of_other_ranks_alphas_and_weights_leaves_as_all_of_them(tmp_path, name):
    """Readers know one rank and one alpha of a layer: α/r · up · down has to be the sum of the three."""
    model = opened(KNOWN[name](tmp_path / "m"))
    below = (("a", (2, 3), 0.5, 0.7), ("b", (1,), 3.0, -1.0), ("own", (4,), 0.25, 1.0))
    wanted, loras = model.denoiser("cpu").state_dict(), []
    for number, (file, ranks, scale, weight) in enumerate(below):
        ends = (".to_q", ".to_k", ".to_v")[: 1 + number]  # so some layers are of one LoRA, others of two or three
        layers = random_layers(model, lambda _, module, ends=ends: module.endswith(ends), ranks, scale)
        write_layers(tmp_path / f"{file}.safetensors", layers)
        loras.append(f"{tmp_path}/{file}.safetensors:{weight}")
        for one in layers:
            key = f"{one.module}.weight"
            wanted[key] = wanted[key] + weight * scale * (one.up @ one.down)
    write_kohya(opened(tmp_path / "m", *loras), tmp_path / "k.safetensors")
    (found,) = opened(tmp_path / "m", tmp_path / "k.safetensors").lora_layers()
    assert {4, 1 + 4} < {one.rank for one in found} <= {4, 1 + 4, 2 + 1 + 4, 3 + 1 + 4}
    again = opened(tmp_path / "m", tmp_path / "k.safetensors").denoiser("cpu").state_dict()
    assert all(torch.allclose(again[key], wanted[key], atol=1e-5) for key in wanted)
    plain = opened(tmp_path / "m").denoiser("cpu")
    tensors, _ = as_published(plain, name)
    patched = laid_on(tensors, load_file(tmp_path / "k.safetensors"), "lora_unet")
    plain.load_state_dict(wanted)
    assert all(torch.allclose(patched[key], value, atol=1e-5) for key, value in as_published(plain, name)[0].items())


def test_what_lies_at_no_strength_has_none_in_the_file_although_an_alpha_of_0_means_the_rank(tmp_path):
    layers = random_layers(opened(make_sd3(tmp_path / "m")), lambda _, name: name.endswith((".to_q", "ff.net.2")))
    write_layers(tmp_path / "own.safetensors", layers)
    write_kohya(opened(tmp_path / "m", f"{tmp_path}/own.safetensors:0"), tmp_path / "k.safetensors")
    again = opened(tmp_path / "m", tmp_path / "k.safetensors").denoiser("cpu").state_dict()
    plain = opened(tmp_path / "m").denoiser("cpu").state_dict()
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_diffusers_opens_kohyas_file_of_sdxl(made):
    family, folder, model = made
    if family != "sdxl":
        pytest.skip("its loader knows no names of convolutions of the others")
    pipeline = opened(folder / "m").pipeline("cpu")
    pipeline.load_lora_weights(folder, weight_name="kohya.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    ours, theirs = model.denoiser("cpu").state_dict(), pipeline.unet.state_dict()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


def test_what_diffusers_would_pass_over_is_said(tmp_path, heard):
    model = opened(make_sd3(tmp_path / "m"))
    write_layers(
        tmp_path / "own.safetensors", random_layers(model, lambda part, name: name.endswith((".q", "attn.to_q")))
    )
    write_lora(opened(tmp_path / "m", tmp_path / "own.safetensors"), tmp_path / "l.safetensors")
    said = heard()
    assert said.count("Note: diffusers lays no LoRA on the text_encoder_3 of a StableDiffusion3Pipeline") == 1
    assert said.count("Note:") == 1


def test_a_model_without_known_names_or_without_a_lora_is_refused_and_nothing_is_written(tmp_path):
    model = opened(make_z_image(tmp_path / "m"))
    with pytest.raises(MapoError, match="No LoRA lies on .*m. Name a run of"):
        write_kohya(model, tmp_path / "k.safetensors")
    write_layers(tmp_path / "own.safetensors", random_layers(model, lambda _, name: name.endswith("attention.to_q")))
    model = opened(tmp_path / "m", tmp_path / "own.safetensors")
    with pytest.raises(MapoError, match="ZImagePipeline. Files for ComfyUI and A1111 have no known name .* --to lora"):
        write_kohya(model, tmp_path / "k.safetensors")
    write_lora(model, tmp_path / "l" / "pytorch_lora_weights.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l", "m", "own.safetensors"]
    one, two = (load_file(path) for path in (tmp_path / "own.safetensors", next((tmp_path / "l").iterdir())))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
