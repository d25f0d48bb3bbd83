"""LoRAs of anybody: every layer of a file is found and used, or the file is refused in a sentence."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mapo.models.single
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.families import FAMILIES
from mapo.models.loras.layers import Layer, as_one, fuse
from mapo.models.loras.read import Kind, Tensors, read_layers
from mapo.models.loras.write import write_layers
from mapo.models.names.kohya import PREFIXES, kohya_layers, layer_shapes
from mapo.models.names.original import Change
from mapo.models.parts.header import read_header
from tiny import MAKERS, make_flux, make_sd, make_sd3, make_sdxl

TABLES = Path(mapo.models.single.__file__).parent / "tables"
LISTED = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "lora_names.json.gz").read_bytes()))


# ------------------------------------------------------------------ published names, at their real size


def outlines(table):
    """The denoiser and the text encoders of a published model, without their weights."""
    configs = json.loads((TABLES / f"{table}.json").read_text())
    family = FAMILIES[configs["model_index"]["_class_name"]]
    kinds = {family.denoiser_part: family.denoiser_kind, **family.encoder_kinds}
    with torch.device("meta"):
        return {
            part: kind.from_config(configs[part]) if hasattr(kind, "from_config") else kind(kind.config_class(**configs[part]))
            for part, kind in kinds.items()
            if configs["model_index"]["_class_name"] != "FluxPipeline" or part != "text_encoder_2"
        }  # fmt: skip


@pytest.fixture(scope="module")
def flux():
    return outlines("flux-dev")


@pytest.fixture(scope="module")
def sdxl_outlines():
    return outlines("sdxl")


def empty(shapes):
    """The tensors of a file by their published shapes; alphas are 8."""

    def get(name):
        return (
            torch.tensor(8.0)
            if not shapes[name]
            else torch.empty([int(n) for n in shapes[name].split("x")], device="meta")
        )

    return Tensors(tuple(shapes), get, {})


def read(shapes, networks, pipeline):
    return read_layers(Path("a.safetensors"), empty(shapes), networks, Kind(pipeline, "the model", "Give another."))


FLUX_FILES = {  # layers of ours, and the scale of each
    "flux_kohya": (19 * 2 * 7 + 38 * 6, 8 / 16), "flux_kohya_with_te1": (19 * 2 * 7 + 38 * 6 + 72, 8 / 4),
    "flux_diffusers": (494, 1), "flux_aitoolkit": (19 * 2 * 6 + 38 * 5, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FLUX_FILES)
def test_every_layer_of_published_loras_of_flux_is_found(flux, name):
    layers = read(LISTED[name], flux, "FluxPipeline")
    number, scale = FLUX_FILES[name]
    assert len(layers) == number and {layer.scale for layer in layers} == {scale}
    for layer in layers:
        weight = flux[layer.part].get_submodule(layer.module).weight
        assert layer.up.shape == (weight.shape[0], layer.rank) and layer.down.shape == (layer.rank, weight.shape[1])
    single = [layer.module for layer in layers if layer.module.startswith("single_transformer_blocks.7.")]
    if "diffusers" not in name:
        assert single[:4] == [
            f"single_transformer_blocks.7.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        ]


def test_every_layer_of_kohyas_loras_of_sdxl_is_found(sdxl_outlines):
    shapes = {}
    for name, weight in LISTED["sdxl_modules"].items():
        out, into = weight.split("x")
        shapes |= {f"{name}.lora_up.weight": f"{out}x4", f"{name}.lora_down.weight": f"4x{into}", f"{name}.alpha": ""}
    layers = read(shapes, sdxl_outlines, "StableDiffusionXLPipeline")
    assert [sum(layer.part == part for layer in layers) for part in sdxl_outlines] == [722, 72, 192]
    assert len({layer.key for layer in layers}) == 986 and {layer.alpha for layer in layers} == {8}


def test_kohyas_names_of_sdxl_are_written_as_published(sdxl_outlines):
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    found = {
        prefixes[part] + name: "x".join(map(str, layer.shape))
        for part, network in sdxl_outlines.items()
        for name, layer in kohya_layers("StableDiffusionXLPipeline", part, network).items()
    }
    assert LISTED["sdxl_modules"].items() <= found.items()
    in_attention = {name for name in found if "proj_in" in name or "proj_out" in name or "transformer_blocks" in name}
    assert {name for name in LISTED["sdxl_modules"] if name.startswith("lora_unet_")} == in_attention


def test_kohyas_names_of_stable_diffusion_1_are_those_of_diffusers():
    found = {
        f"{part.replace('text_encoder', 'te')}.{name}": layer.shape
        for part, network in outlines("sd15").items()
        for name, layer in kohya_layers("StableDiffusionPipeline", part, network).items()
    }
    wanted = {
        name.removesuffix(".weight").replace(".", "_").replace("_", ".", 1): tuple(map(int, shape.split("x")))
        for name, shape in LISTED["sd15"].items()
    }
    assert found == wanted and len(found) == 354


def test_kohyas_names_of_flux_are_those_of_published_files(flux):
    found = kohya_layers("FluxPipeline", "transformer", flux["transformer"])
    listed = {name.removesuffix(".alpha") for name in LISTED["flux_kohya"] if name.endswith(".alpha")}
    assert listed == {f"lora_unet_{name}" for name in found if "_blocks_" in name}
    for name in listed:
        out, into = found[name.removeprefix("lora_unet_")].shape
        assert LISTED["flux_kohya"][f"{name}.lora_up.weight"] == f"{out}x16"
        assert LISTED["flux_kohya"][f"{name}.lora_down.weight"] == f"16x{into}"


# ------------------------------------------------------------------ arithmetic


def layer(out, into, rank, alpha, seed=0, module="a", kernel=()):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, into, *kernel, generator=generator)
    return Layer("unet", module, down, torch.randn(out, rank, *(1 for _ in kernel), generator=generator), alpha)


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_a_fused_layer_computes_what_weight_and_lora_compute_side_by_side(kernel):
    lora = layer(6, 5, 3, alpha=1.5, kernel=kernel)
    network = torch.nn.ModuleDict(
        {"a": torch.nn.Conv2d(5, 6, kernel, padding="same") if kernel else torch.nn.Linear(5, 6)}
    )
    x = torch.randn(2, 5, *(7 for _ in kernel))
    beside = torch.nn.functional.linear if not kernel else torch.nn.functional.conv2d
    inner = beside(x, lora.down, **({"padding": "same"} if kernel else {}))
    wanted = network["a"](x) + 0.5 * beside(inner, lora.up)
    fuse(network, [lora])
    assert torch.allclose(network["a"](x), wanted, atol=1e-4)


def test_in_half_precision_a_lora_is_added_exactly_and_rounded_once():
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(5, 6).bfloat16()})
    lora, before = layer(6, 5, 3, 3), network["a"].weight.detach().float()
    fuse(network, [lora])
    assert torch.equal(network["a"].weight, (before + lora.up @ lora.down).bfloat16())


def test_several_loras_are_one_whatever_their_ranks_alphas_and_layers_are():
    first = [layer(6, 5, 3, 1.5, 1), layer(4, 4, 2, 2, 2, "b")]
    second = [layer(6, 5, 4, 8, 3), layer(4, 4, 1, 0.5, 4, "c")]
    found = {one.module: one for one in as_one([*first, *second])}
    assert [one.rank for one in found.values()] == [7, 2, 1] and found["a"].alpha == 7
    assert torch.allclose(found["a"].delta(), first[0].delta() + second[0].delta(), atol=1e-5)
    assert found["b"] is first[1] and found["c"] is second[1]


# ------------------------------------------------------------------ files of small models


def every_layer(model, seed=0):
    """A LoRA of another rank and alpha beside every layer of every part of a model."""
    generator, found = torch.Generator().manual_seed(seed), []
    for part in (part for part in model.networks if part != "vae"):
        for number, (name, shape) in enumerate(layer_shapes(model.outline(part)).items()):
            rank, ones = 1 + number % 3, [1] * (len(shape) - 2)
            down = torch.randn(rank, *shape[1:], generator=generator)
            up = torch.randn(shape[0], rank, *ones, generator=generator) / 10
            found.append(Layer(part, name, down, up, rank / 2 if number % 2 else float(rank)))
    return found


def assert_same(left, right):
    left, right = ({one.key: one for one in side} for side in (left, right))
    assert left.keys() == right.keys()
    for key, one in left.items():
        assert one.alpha == pytest.approx(right[key].alpha), key
        assert torch.equal(one.down, right[key].down) and torch.equal(one.up, right[key].up), key


def opened(folder, *loras):
    return open_model(find_model(str(folder), loras=[str(lora) for lora in loras]))


def test_a_lora_of_every_layer_is_written_and_read_again(any_model, tmp_path):
    layers = every_layer(opened(any_model))
    write_layers(tmp_path / "a.safetensors", layers)
    assert_same(opened(any_model, tmp_path / "a.safetensors").lora_layers()[0], layers)
    half = opened(any_model, f"{tmp_path / 'a.safetensors'}:0.5").lora_layers()[0]
    assert {one.key: one.alpha for one in half} == {one.key: one.alpha / 2 for one in layers}


@pytest.mark.parametrize("ranks", [(4, 4), (4, 2)])
def test_ranks_that_differ_are_said_in_the_head_as_older_diffusers_takes_one_alpha_for_all(tmp_path, ranks):
    layers = [layer(6, 5, rank, float(rank), module=f"m{k}") for k, rank in enumerate(ranks)]
    write_layers(tmp_path / "a.safetensors", layers)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        head = file.metadata()
    assert ("lora_adapter_metadata" in head) == (ranks[0] != ranks[1])
    if ranks[0] != ranks[1]:
        told = json.loads(head["lora_adapter_metadata"])
        assert (told["unet.r"], told["unet.lora_alpha"]) == (4, 4)
        assert told["unet.rank_pattern"] == told["unet.alpha_pattern"] == {"m1": 2}


def test_diffusers_opens_what_we_write_at_the_same_strength_text_encoders_too(tmp_path):
    """Also where alpha is not the rank, which its own writer forgets."""
    make_sdxl(tmp_path / "m")
    model = opened(tmp_path / "m")
    attention = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "conv1")
    layers = [one for one in every_layer(model) if one.module.endswith(attention)]
    write_layers(tmp_path / "l" / "pytorch_lora_weights.safetensors", layers)
    pipeline = model.pipeline("cpu")
    pipeline.load_lora_weights(tmp_path / "l")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    ours = opened(tmp_path / "m", tmp_path / "l").pipeline("cpu")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        left, right = (getattr(p, part).state_dict() for p in (pipeline, ours))
        assert all(torch.allclose(left[name], right[name], atol=1e-6) for name in right), part
        plain = getattr(model.pipeline("cpu"), part).state_dict()
        assert any(not torch.allclose(right[name], plain[name], atol=1e-3) for name in right), part


def test_layers_of_text_encoders_change_the_prompts_and_what_the_cache_is_called_by(any_model, tmp_path):
    model = opened(any_model)
    layers = every_layer(model)
    own, text = ([x for x in layers if x.part.startswith("text") == is_text] for is_text in (False, True))
    for name, some in (("own", own), ("text", text)):
        write_layers(tmp_path / f"{name}.safetensors", some)
    of_own, of_text = (opened(any_model, tmp_path / f"{name}.safetensors") for name in ("own", "text"))
    plain, same, other = (m.files.fingerprint(m.encoder_parts) for m in (model, of_own, of_text))
    assert plain == same != other
    assert len({m.files.revision() for m in (model, of_own, of_text)}) == 3
    weaker = opened(any_model, f"{tmp_path / 'text.safetensors'}:0.5")
    assert weaker.files.fingerprint(model.encoder_parts) not in (plain, other)
    before, after, unmoved = (m.text_encoder("cpu")(["a cat"]) for m in (model, of_text, of_own))
    for name in before:
        first, second, third = (side[name][0] for side in (before, after, unmoved))
        assert torch.equal(first, third) and not torch.allclose(first, second, atol=1e-3), name


# ------------------------------------------------------------------ what else people give


OLD = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_sdxl(tmp_path_factory.mktemp("models") / "m")


def layers_of(model, path, tensors, metadata=None):
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return opened(model, path).lora_layers()[0]


def kohya(name, out=32, into=32, rank=4, **more):
    tensors = {"lora_down.weight": torch.randn(rank, into), "lora_up.weight": torch.randn(out, rank), **more}
    return {f"{name}.{key}": value for key, value in tensors.items() if value is not None}


QUERY = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("alpha", "scale"), [(None, 1), (torch.tensor(0.0), 1), (torch.tensor(1.0), 0.25), (torch.tensor(8), 2)]
)
def test_alpha_is_divided_by_the_rank_and_none_or_0_means_the_rank(model, tmp_path, alpha, scale):
    (found,) = layers_of(model, tmp_path / "a.safetensors", kohya(QUERY, alpha=alpha))
    assert found.key == ("unet", f"{OLD}.to_q") and found.scale == scale


def test_matrices_in_8_bits_are_read_as_the_numbers_that_they_hold(model, tmp_path):
    tensors = {name: value.to(torch.float8_e4m3fn) for name, value in kohya(QUERY).items()}
    (found,) = layers_of(model, tmp_path / "a.safetensors", tensors)
    assert torch.equal(found.down, tensors[f"{QUERY}.lora_down.weight"].float())
    assert torch.isfinite(found.delta()).all() and found.delta().any()


@pytest.mark.parametrize("adapter", ["default", "default_0", "myStyle"])
def test_peft_may_name_its_adapter(model, tmp_path, adapter):
    tensors = {
        f"unet.{OLD}.to_q.lora_{x}.{adapter}.weight": t for x, t in (("A", torch.ones(4, 32)), ("B", torch.ones(32, 4)))
    }
    (found,) = layers_of(model, tmp_path / "a.safetensors", tensors)
    assert found.key == ("unet", f"{OLD}.to_q") and found.rank == 4


OTHER_NAMES = {
    "kohya with diffusers' paths": QUERY.replace("input_blocks_3_1", "down_blocks_1_attentions_0"),
    "text encoder": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "text encoder of transformers 5": "lora_te1_encoder_layers_0_self_attn_q_proj",
    "second text encoder": "lora_te2_text_model_encoder_layers_1_mlp_fc1",
}


@pytest.mark.parametrize("kind", OTHER_NAMES)
def test_other_names_of_kohya_are_read(model, tmp_path, kind):
    size = {"text encoder": (16, 16), "text encoder of transformers 5": (16, 16), "second text encoder": (48, 24)}
    (found,) = layers_of(model, tmp_path / "a.safetensors", kohya(OTHER_NAMES[kind], *size.get(kind, (32, 32))))
    assert found.module.endswith(("attn1.to_q", "layers.0.self_attn.q_proj", "layers.1.mlp.fc1"))


@pytest.mark.parametrize(
    "name", [f"unet.{OLD}.processor.to_q_lora.{{}}.weight", f"unet.{OLD}.to_q.lora_linear_layer.{{}}.weight",
             f"unet.{OLD}.to_q.lora.{{}}.weight"]
)  # fmt: skip
def test_older_names_of_diffusers_are_read(model, tmp_path, name):
    tensors = {name.format("down"): torch.randn(4, 32), name.format("up"): torch.randn(32, 4)}
    (found,) = layers_of(model, tmp_path / "a.safetensors", tensors)
    assert found.key == ("unet", f"{OLD}.to_q") and found.scale == 1


@pytest.mark.parametrize("name", ["sdxl", "sd", "sd3", "flux"])
def test_what_onetrainer_and_simpletuner_put_before_the_paths_of_diffusers_is_read(tmp_path, name):
    model = opened({"sdxl": make_sdxl, "sd": make_sd, "sd3": make_sd3, "flux": make_flux}[name](tmp_path / "m"))
    part = model.denoiser_part
    queries = {m: s for m, s in layer_shapes(model.outline(part)).items() if m.endswith(".to_q")}
    for prefix in ("lycoris", "lora_transformer") if part == "transformer" else ("lycoris",):
        tensors = {}
        for module, (out, into) in queries.items():
            tensors |= kohya(f"{prefix}_{module.replace('.', '_')}", out, into, alpha=torch.tensor(1.0).half())
        found = layers_of(tmp_path / "m", tmp_path / "a.safetensors", tensors)
        assert {(one.part, one.module, one.scale) for one in found} == {(part, module, 0.25) for module in queries}


def test_a_lora_that_peft_wrote_alone_is_refused_as_its_alpha_lies_in_another_file(model, tmp_path):
    tensors = {name.replace("unet.", "base_model.model."): value for name, value in PEFT.items()}
    says = r"was written by peft alone, .* alpha in another file, adapter_config.json. .* save_lora_weights"
    (tmp_path / "p").mkdir()
    with pytest.raises(MapoError, match=f"adapter_model.safetensors {says}"):
        layers_of(model, tmp_path / "p" / "adapter_model.safetensors", tensors)
    with pytest.raises(MapoError, match="nor a folder with .* Name the LoRA's file, such as .*p/adapter_model.safe"):
        opened(model, tmp_path / "p")
    (tmp_path / "p" / "adapter_config.json").write_text("{}")
    with pytest.raises(MapoError, match=f"--lora: .*p {says}"):
        opened(model, tmp_path / "p")
    wrapped = {name.replace("unet.", "unet.base_model.model."): value for name, value in PEFT.items()}
    (found,) = layers_of(model, tmp_path / "a.safetensors", wrapped)
    assert found.key == ("unet", f"{OLD}.to_k")


def test_alphas_beside_the_names_of_peft_are_honoured(model, tmp_path):
    tensors = {f"unet.{OLD}.to_q.{key}": value for key, value in kohya("x").items()}
    tensors = {key.replace("x.lora_down", "lora_A").replace("x.lora_up", "lora_B"): v for key, v in tensors.items()}
    (found,) = layers_of(model, tmp_path / "a.safetensors", {**tensors, f"unet.{OLD}.to_q.alpha": torch.tensor(2.0)})
    assert found.scale == 0.5
    for settings, scale in (
        ({"unet.lora_alpha": 2}, 0.5), ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 1.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 1}}, 0.25), ({}, 1.0),
    ):  # fmt: skip
        (found,) = layers_of(
            model, tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)}
        )
        assert found.scale == scale


TWO = {**kohya(QUERY), **kohya(QUERY.replace("to_q", "to_k").replace("input_blocks_3_1", "down_blocks_1_attentions_0"))}
PEFT = {f"unet.{OLD}.to_k.lora_A.weight": torch.zeros(4, 32), f"unet.{OLD}.to_k.lora_B.weight": torch.zeros(32, 4)}
REFUSED = {
    "DoRA": ({**kohya(QUERY), f"{QUERY}.dora_scale": torch.ones(32)}, None, "dora_scale: it is a DoRA"),
    "peft's DoRA": (PEFT, {"lora_adapter_metadata": '{"unet.use_dora": true}'}, "it is a DoRA"),
    "LoHa": ({f"{QUERY}.hada_w1_a": torch.ones(4, 4)}, None, "hada_w1_a: it is a LoHa"),
    "LoKr": ({f"{QUERY}.lokr_w1": torch.ones(4, 4), f"{QUERY}.alpha": torch.tensor(1.0)}, None, "it is a LoKr"),
    "three pieces": (kohya(QUERY, **{"lora_mid.weight": torch.ones(4, 4, 3, 3)}), None, "in three pieces"),
    "norms": ({**kohya(QUERY), "lora_unet_out_0.w_norm": torch.ones(4)}, None, "w_norm: it is a LoRA with differences"),
    "biases": ({**kohya(QUERY), "lora_unet_out_0.diff_b": torch.ones(4)}, None, "with differences of whole weights"),
    "mixed names": (TWO, None, f"mixes two ways of naming layers .lora_unet_down.* and {QUERY}"),
    "mixed programs": ({**kohya(QUERY), **PEFT}, None, "mixes two ways of naming layers"),
    "twice": ({**kohya(QUERY), **kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", 32, 16),
               **kohya("lora_te1_encoder_layers_0_mlp_fc1", 32, 16)}, None, "layers.0.mlp.fc1 of text_encoder twice"),
    "IA3": ({f"{QUERY}.weight": torch.ones(32), f"{QUERY}.on_input": torch.tensor(False)}, None, "on_input: it is an IA3"),
    "GLoRA": ({f"{QUERY}.{key}.weight": torch.ones(4, 4) for key in ("a1", "a2", "b1", "b2")}, None, "it is a GLoRA"),
    "whole differences": ({f"{QUERY}.diff": torch.ones(32, 32)}, None, "differences of whole weights, which is not read"),
    "XLabs": ({f"double_blocks.0.processor.qkv_lora1.{key}.weight": torch.ones(4, 4) for key in ("down", "up")}, None,
              "it is a LoRA of XLabs"),
    "BFL's with biases": ({"img_in.lora_A.weight": torch.ones(4, 4), "img_in.lora_B.weight": torch.ones(4, 4),
                           "img_in.lora_B.bias": torch.ones(4)}, None, "it is a LoRA with biases"),
    "LLLite": ({"lllite_unet_conditioning1.0.weight": torch.ones(4, 4)}, None, "it is a ControlNet-LLLite"),
    "IP-Adapter": ({"image_proj.proj.weight": torch.ones(4, 4)}, None, "it is an IP-Adapter"),
    "two alphas": ({**PEFT, f"unet.{OLD}.to_k.alpha": torch.tensor(1.0)},
                   {"lora_adapter_metadata": '{"unet.lora_alpha": 1}'}, "says its alpha twice"),
    "half": (kohya(QUERY, **{"lora_up.weight": None}), None, "only half of the layer"),
    "FLUX": (kohya("lora_unet_double_blocks_0_img_attn_proj"), None, "which .*m lacks. It seems to be a LoRA of FLUX.1"),
    "SD 1.5": (kohya("lora_te_text_model_encoder_layers_0_mlp_fc1"), None, "It seems to be a LoRA of Stable Diffusion 1"),
    "other widths": (kohya(QUERY, 320, 320), None, "to_q has another size .320 by 320, not 32 × 32"),
    "two ranks": ({**kohya(QUERY), f"{QUERY}.lora_up.weight": torch.ones(32, 3)}, None,
                  "to_q is of rank 4 by its down matrix, and of rank 3 by its up matrix"),
    "not finite": (kohya(QUERY, alpha=torch.tensor(float("nan"))), None, "alpha of .* is not a finite number"),
    "not a number": (kohya(QUERY, **{"lora_up.weight": torch.full((32, 4), float("nan"))}), None, "lora_up.* not finite"),
    "infinite": (kohya(QUERY, **{"lora_down.weight": torch.full((4, 32), float("inf"))}), None, "lora_down.* not finite"),
    "whole numbers": (kohya(QUERY, **{"lora_up.weight": torch.ones(32, 4, dtype=torch.int32)}), None, "in whole numbers"),
    "no rank": (kohya(QUERY, rank=0), None, r"matrices of the shapes \[0, 32\] and \[32, 0\], of which no layer can be"),
    "a number for a matrix": ({**kohya(QUERY), f"{QUERY}.lora_down.weight": torch.tensor(1.0)}, None,
                              r"matrices of the shapes \[\] and \[32, 4\]"),
    "an endless alpha": (PEFT, {"lora_adapter_metadata": '{"unet.lora_alpha": 1e999}'}, "the alpha of .* is not finite"),
    "numbers behind the names": ({f"{QUERY}.lora_down.0.weight": torch.ones(4, 32)}, None, "a LoRA whose tensors have names"),
    "alpha is a word": (PEFT, {"lora_adapter_metadata": '{"unet.lora_alpha": "much"}'}, "metadata that cannot be read"),
    "no JSON": (PEFT, {"lora_adapter_metadata": "{"}, "metadata that cannot be read"),
    "a list": ({"0": torch.ones(4, 4), "1": torch.ones(4, 4), "2": torch.ones(4)}, None, "is a list of tensors"),
    "a list as numpy writes it": ({"arr_0": torch.ones(4, 4), "arr_1": torch.ones(4, 4)}, None, "is a list of tensors"),
    "an embedding": ({"clip_l": torch.ones(2, 16), "clip_g": torch.ones(2, 24)}, None, "is an embedding"),
    "an old embedding": ({"emb_params": torch.ones(2, 16)}, None, "is an embedding"),
    "a VAE": ({"decoder.conv_in.weight": torch.ones(4, 4, 3, 3)}, None, "is a VAE and not a LoRA"),
    "a whole VAE": ({"decoder.conv_in.bias": torch.ones(4), "encoder.down_blocks.0.resnets.0.conv1.weight": torch.ones(4)},
                    None, "is a VAE and not a LoRA"),
    "a model": ({"model.diffusion_model.out.2.weight": torch.ones(4)}, None, "is a whole model"),
    "diffusers' denoiser": ({"down_blocks.0.resnets.0.conv1.weight": torch.ones(4)}, None, "is a whole model or its"),
    "no part": ({name.removeprefix("unet."): value for name, value in PEFT.items()}, None, "does not say of which part"),
    "nothing": ({}, None, "holds no layers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_of_which_not_everything_could_be_used_is_refused_by_name(model, tmp_path, kind):
    tensors, metadata, says = REFUSED[kind]
    with pytest.raises(MapoError, match=rf"a\.safetensors:? .*{says}.*Give another --lora, or leave it out"):
        layers_of(model, tmp_path / "a.safetensors", tensors, metadata)


def test_files_that_are_no_safetensors_are_refused(model, tmp_path):
    whole = save_bytes(kohya(QUERY))
    contents = {
        "half": whole[:-100], "head": whole[:20], "empty": b"", "page": b"<!DOCTYPE html>", "gguf": b"GGUF\3\0\0\0",
        "pointer": b"version https://git-lfs.github.com/spec/v1", "picture": b"\x89PNG\r\n\x1a\n", "text": b"a letter to you",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    (tmp_path / "long.safetensors").write_bytes(whole + b"more")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    (tmp_path / "a.pt").write_bytes(b"PK")
    torch.save(kohya(QUERY), tmp_path / "saved.safetensors")
    (tmp_path / "folder").mkdir()
    for name, says in {
        "half.safetensors": r"is cut off: it has [\d,]+ of [\d,]+ bytes. Download it again",
        "long.safetensors": "is damaged: 4 bytes behind its tensors belong to none. Download it again",
        "link.safetensors": r"is a link to .*nowhere.safetensors, which is not there",
        "head.safetensors": "is cut off: it has only 20 bytes. Download it again",
        "empty.safetensors": "is empty. Download it again", "page.safetensors": "is a web page",
        "pointer.safetensors": "git lfs pull", "picture.safetensors": "is a picture, not a file of weights",
        "gguf.safetensors": "is a GGUF file", "text.safetensors": "does not begin as one. Download it again",
        "a.pt": "is a pickle. Such a file can run code", "saved.safetensors": "is a pickle. Such a file can run code",
        "folder": "neither a run of `mapo train` nor a folder with pytorch_lora_weights", "none.safetensors": "there is no file",
    }.items():  # fmt: skip
        with pytest.raises(MapoError, match=says):
            opened(model, tmp_path / name).lora_layers()


def test_a_head_whose_length_begins_with_the_bytes_of_a_pickle_is_read(model, tmp_path):
    path, wanted = tmp_path / "a.safetensors", 0x280
    without = int.from_bytes(save_bytes(kohya(QUERY), {"a": ""})[:8], "little")
    save_file(kohya(QUERY), path, {"a": "x" * (wanted - without)})
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert opened(model, path).lora_layers()[0]
    assert read_header(path).tensors


def save_bytes(tensors, metadata=None):
    from safetensors.torch import save

    return save(tensors, metadata)


def test_a_weight_stands_behind_a_colon_unless_the_file_is_called_so(model, tmp_path):
    for name in ("a.safetensors", "b:0.5"):
        save_file(kohya(QUERY), tmp_path / name)
    files = find_model(
        str(model), loras=[f"{tmp_path}/a.safetensors:-1.5e0", f"{tmp_path}/b:0.5", f"{tmp_path}/b:0.5:2"]
    )
    assert [(lora.path.name, lora.weight) for lora in files.loras] == [
        ("a.safetensors", -1.5),
        ("b:0.5", 1),
        ("b:0.5", 2),
    ]
    with pytest.raises(MapoError, match="there is no file .*a.safetensors:heavy"):
        find_model(str(model), loras=[f"{tmp_path}/a.safetensors:heavy"])


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_folder(model, tmp_path, monkeypatch, name):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    save_file(kohya(QUERY), tmp_path / "pytorch_lora_weights.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find_model(".", loras=["."]).loras
    for flag, how in {
        "lora": {"name": ".", "loras": [name]}, "model": {"name": name}, "vae": {"name": ".", "vae": name}
    }.items():  # fmt: skip
        with pytest.raises(MapoError, match=f"^--{flag} is empty. Give "):
            find_model(**how)


# ------------------------------------------------------------------ layers that are one in a file


def test_q_k_and_v_in_one_are_taken_apart_each_with_its_own_rows_and_the_same_scale(tmp_path):
    make_sd3(tmp_path / "m")
    down, up = torch.randn(4, 16), torch.randn(48, 4)
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    found = layers_of(tmp_path / "m", tmp_path / "a.safetensors", kohya(name) | {
        f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)
    })  # fmt: skip
    assert [one.module for one in found] == [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    for one, rows in zip(found, up.chunk(3), strict=True):
        assert torch.allclose(one.delta(), rows @ down / 2) and one.rank == 4


def test_a_lora_put_together_of_three_is_three_of_a_third_of_its_rank(tmp_path):
    make_sd3(tmp_path / "m")
    down, blocks = torch.randn(6, 16), [torch.randn(16, 2) for _ in range(3)]
    name = "lora_unet_joint_blocks_0_context_block_attn_qkv"
    found = layers_of(tmp_path / "m", tmp_path / "a.safetensors", {
        f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": torch.block_diag(*blocks),
        f"{name}.alpha": torch.tensor(3.0),
    })  # fmt: skip
    assert [one.module.rpartition(".")[2] for one in found] == ["add_q_proj", "add_k_proj", "add_v_proj"]
    for one, up, part in zip(found, blocks, down.chunk(3), strict=True):
        assert (one.rank, one.alpha) == (2, 1) and torch.equal(one.up, up) and torch.equal(one.down, part)


def test_layers_of_t5_in_kohyas_files_are_read(tmp_path):
    make_sd3(tmp_path / "m")
    name = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    (found,) = layers_of(tmp_path / "m", tmp_path / "a.safetensors", kohya(name, 16, 48))
    assert found.key == ("text_encoder_3", "encoder.block.0.layer.0.SelfAttention.q")
    make_sd3(tmp_path / "n", t5=False)
    with pytest.raises(MapoError, match="a.safetensors has layers of text_encoder_3, without which .*n was opened"):
        opened(tmp_path / "n", tmp_path / "a.safetensors").lora_layers()


def test_there_is_a_small_model_for_every_pipeline_with_names_of_kohya():
    from mapo.models.names.kohya import PREFIXES

    assert PREFIXES.keys() == MAKERS.keys()


def test_a_kohya_file_with_another_rank_and_alpha_in_every_layer_is_the_plain_arithmetic(any_model, tmp_path):
    """W + α/r · up · down for each layer. Diffusers 0.42.1 gives attention layers the alpha that most layers have."""
    model = opened(any_model)
    part, pipeline = model.denoiser_part, model.files.pipeline_class
    layers, generator = kohya_layers(pipeline, part, model.outline(part)), torch.Generator().manual_seed(0)
    if not layers:
        pytest.skip("Kohya has no names for this model")
    tensors, wanted = {}, {}
    for number, (name, layer) in enumerate(layers.items()):
        rank, alpha, ones = 1 + 7 * number % 5, float(1 + 3 * number % 4), [1] * (len(layer.shape) - 2)
        down = torch.randn(rank, *layer.shape[1:], generator=generator)
        up = torch.randn(layer.shape[0], rank, *ones, generator=generator)
        full = f"{PREFIXES[pipeline][part][0]}_{name}"
        tensors |= {
            f"{full}.lora_down.weight": down,
            f"{full}.lora_up.weight": up,
            f"{full}.alpha": torch.tensor(alpha),
        }
        delta = (up.flatten(1).double() @ down.flatten(1).double()).reshape(layer.shape) * alpha / rank
        if layer.change is Change.SWAPPED:
            delta = torch.cat(delta.chunk(2)[::-1])
        pieces = delta.split([shape[0] for _, shape in layer.parts])
        wanted |= {weight: piece for (weight, _), piece in zip(layer.parts, pieces, strict=True)}
    save_file(tensors, tmp_path / "a.safetensors")
    before = model.denoiser("cpu").state_dict()
    for name, after in opened(any_model, tmp_path / "a.safetensors").denoiser("cpu").state_dict().items():
        assert torch.allclose(after.double(), before[name].double() + wanted.get(name, 0), atol=2e-5), name
    assert len(wanted) > 20
