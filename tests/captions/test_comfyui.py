"""The prompt of a ComfyUI picture is found in the graph that was run, from what was saved upwards."""

import json
import time

import pytest
from written import comfy, graph, node, with_exif

from mapo.captions.metadata import read_metadata
from mapo.captions.programs.comfyui import read_comfyui
from mapo.captions.programs.told import OddMetadata, ProgramPrompt
from mapo.errors import MapoError

PLAIN = ProgramPrompt("ComfyUI", "a red fox", "blurry", 7, "base.safetensors")


def told(nodes):
    return read_comfyui(json.dumps(nodes))


def test_a_plain_graph_gives_prompt_seed_and_model(tmp_path):
    assert read_metadata(comfy(tmp_path / "a.png", graph())) == PLAIN


def test_webp_pictures_have_the_graph_in_exif(tmp_path):
    for end, word in (("webp", "prompt:"), ("jpg", "Prompt:")):
        tags = {0x0110: word + json.dumps(graph()), 0x010F: "workflow:{}"}
        assert read_metadata(with_exif(tmp_path / f"a.{end}", tags)) == PLAIN


WAYS = {
    "guider": {
        "n5": node("SamplerCustomAdvanced", noise=["20", 0], guider=["21", 0], sampler=["22", 0], sigmas=["23", 0], latent_image=["4", 0]),
        "n20": node("RandomNoise", noise_seed=7),
        "n21": node("BasicGuider", model=["1", 0], conditioning=["24", 0]),
        "n24": node("FluxGuidance", guidance=3.5, conditioning=["2", 0]),
    },
    "cfg guider": {
        "n5": node("SamplerCustomAdvanced", noise=["20", 0], guider=["21", 0], sampler=["22", 0], latent_image=["4", 0]),
        "n20": node("RandomNoise", noise_seed=7),
        "n21": node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=4.0),
    },
    "custom sampler": {
        "n5": node("SamplerCustom", noise_seed=7, model=["1", 0], positive=["2", 0], negative=["3", 0], sampler=["8", 0], sigmas=["9", 0], latent_image=["4", 0]),
    },
    "control net": {
        "n5": node("KSamplerAdvanced", noise_seed=7, model=["1", 0], positive=["20", 0], negative=["20", 1], latent_image=["4", 0]),
        "n20": node("ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], control_net=["8", 0], image=["9", 0]),
    },
    "reroutes": {
        "n5": node("KSampler", seed=["21", 0], model=["22", 0], positive=["20", 0], negative=["3", 0], latent_image=["4", 0]),
        "n20": {"class_type": "Reroute", "inputs": {"": ["2", 0]}},
        "n21": node("PrimitiveInt", value=7),
        "n22": node("LoraLoader", lora_name="x", model=["1", 0], clip=["1", 1]),
    },
    "sdxl text encoder": {"n2": node("CLIPTextEncodeSDXL", text_g="a red fox", text_l="a red fox", clip=["1", 1])},
    "flux text encoder": {"n2": node("CLIPTextEncodeFlux", clip_l="fox", t5xxl="a red fox", clip=["1", 1])},
    "string node": {"n2": node("CLIPTextEncode", text=["20", 0], clip=["1", 1]), "n20": node("PrimitiveStringMultiline", value="a red fox")},
    "joined strings": {
        "n2": node("CLIPTextEncode", text=["20", 0], clip=["1", 1]),
        "n20": node("StringConcatenate", string_a="a red", string_b=["21", 0], delimiter=" "),
        "n21": {"class_type": "Reroute", "inputs": {"": ["23", 0]}},
        "n23": node("String Literal", string="fox"),
    },
    "refiner": {
        "n5": node("KSamplerAdvanced", add_noise="disable", noise_seed=0, model=["30", 0], positive=["31", 0], negative=["3", 0], latent_image=["32", 0]),
        "n30": node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
        "n31": node("CLIPTextEncode", text="a red fox", clip=["30", 1]),
        "n32": node("KSamplerAdvanced", noise_seed=7, model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0]),
    },
    "second pass": {
        "n5": node("KSampler", seed=8, model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["40", 0]),
        "n40": node("LatentUpscale", samples=["41", 0]),
        "n41": node("KSampler", seed=7, model=["1", 0], positive=["42", 0], negative=["3", 0], latent_image=["4", 0]),
        "n42": node("CLIPTextEncode", text="a sketch of the first pass", clip=["1", 1]),
    },
    "upscaled": {"n7": node("SaveImage", images=["50", 0]), "n50": node("ImageUpscaleWithModel", upscale_model=["51", 0], image=["6", 0])},
    "previewed": {"n60": node("PreviewImage", images=["61", 0]), "n61": node("CannyEdge", image=["62", 0]), "n62": node("LoadImage", image="x.png")},
    "other saver": {"n7": node("Image Saver", images=["6", 0])},
    "only previewed": {"n7": node("PreviewImage", images=["6", 0])},
    "loader with texts": {
        "n5": node("KSampler (Efficient)", seed=7, model=["20", 0], positive=["20", 1], negative=["20", 2], latent_image=["20", 3]),
        "n20": node("Efficient Loader", ckpt_name="base.safetensors", positive="a red fox", negative="blurry"),
    },
    "pipes": {
        "n5": node("KSampler (pipe)", seed=7, basic_pipe=["20", 0], latent_image=["4", 0]),
        "n20": node("EditBasicPipe", basic_pipe=["21", 0]),
        "n21": node("ToBasicPipe", model=["1", 0], positive=["2", 0], negative=["3", 0]),
    },
    "pipe of texts": {
        "n5": node("easy kSampler", pipe=["20", 0], seed=7),
        "n20": node("easy preSampling", pipe=["21", 0], steps=20),
        "n21": node("easy fullLoader", ckpt_name="base.safetensors", positive="a red fox", negative="blurry"),
    },
    "context": {
        "n5": node("KSampler", seed=7, model=["20", 1], positive=["20", 4], negative=["20", 5], latent_image=["4", 0]),
        "n20": node("Context (rgthree)", base_ctx=["21", 0], model=["1", 0], positive=["2", 0], negative=["3", 0]),
    },
    "two savers": {"n70": node("SaveImage", images=["71", 0]), "n71": node("VAEDecode", samples=["72", 0]),
        "n72": node("KSampler", seed=9, model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0])},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_found_through(way):
    found = told(graph(**WAYS[way]))
    assert (found.prompt, found.model) == ("a red fox", "base.safetensors")
    if way != "two savers":
        assert found.seed == 7
    assert found.negative == (None if way == "guider" else "blurry")


def test_several_conditionings_are_told_together():
    more = {"n5": node("KSampler", seed=7, positive=["20", 0], negative=["3", 0], latent_image=["4", 0]),
            "n20": node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["21", 0]),
            "n21": node("ConditioningSetArea", conditioning=["22", 0], width=8),
            "n22": node("CLIPTextEncode", text="a gate", clip=["1", 1])}  # fmt: skip
    assert told(graph(**more)).prompt == "a red fox, a gate"


def test_a_conditioning_set_to_zero_has_no_text():
    more = {"n3": node("ConditioningZeroOut", conditioning=["2", 0])}
    assert told(graph(**more)).negative is None


def test_two_samplers_side_by_side_are_not_guessed_at(tmp_path):
    more = {"n70": node("SaveImage", images=["71", 0]), "n71": node("VAEDecode", samples=["72", 0]),
            "n72": node("KSampler", seed=9, positive=["3", 0], negative=["2", 0], latent_image=["4", 0])}  # fmt: skip
    picture = comfy(tmp_path / "a.png", graph(**more))
    with pytest.raises(MapoError, match=r"a.png: its ComfyUI graph has 2 samplers side by side with different prompts: "
                       "“a red fox” .node 5. and “blurry” .node 72.") as caught:  # fmt: skip
        read_metadata(picture)
    assert str(caught.value).endswith(". Write its caption into a.txt beside it.")


def test_a_graph_without_a_sampler_is_told_with_what_it_has():
    nodes = {"1": node("LoadImage", image="x.png"), "2": node("SaveImage", images=["1", 0])}
    with pytest.raises(OddMetadata, match=r"no sampler that leads to a saved picture .it has LoadImage, SaveImage"):
        told(nodes)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"n2": node("CLIPTextEncode", text="", clip=["1", 1])}, "the prompt of the last sampler .* .node 5. is empty"),
        ({"n2": node("CLIPTextEncode", text=["20", 0]), "n20": node("LLM", model="x")}, "is made by a node LLM"),
        ({"n2": node("CLIPTextEncode", text=["99", 0])}, None),
    ],
)
def test_a_text_that_is_not_in_the_graph_is_told(more, said):
    with pytest.raises(OddMetadata, match=said or "empty"):
        told(graph(**more))


def test_a_graph_in_a_circle_comes_to_an_end():
    for more in (
        {"n2": node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["2", 0])},
        {"n2": node("CLIPTextEncode", text=["20", 0]), "n20": node("Reroute", text=["20", 0])},
        {"n6": node("VAEDecode", samples=["7", 0]), "n7": node("SaveImage", images=["6", 0])},
        {"n5": node("KSampler", seed=["5", 0], model=["1", 0], positive=["2", 0], latent_image=["5", 0])},
        {"n1": node("LoraLoader", model=["1", 0])},
    ):
        try:
            assert told(graph(**more)).prompt == "a red fox"
        except OddMetadata as error:
            assert str(error)


def test_a_graph_made_to_take_long_or_to_be_deep_does_not():
    start = time.perf_counter()
    twice = {
        f"n{k}": node("StringConcatenate", string_a=[str(k + 1), 0], string_b=[str(k + 1), 0]) for k in range(100, 140)
    }
    deep = {f"n{k}": node("Reroute", conditioning=[str(k + 1), 0]) for k in range(100, 1000)}
    fan = {
        f"n{k}": node("ConditioningCombine", conditioning_1=[str(k + 1), 0], conditioning_2=[str(k + 1), 0])
        for k in range(100, 140)
    }
    for more in (
        twice | {"n2": node("CLIPTextEncode", text=["100", 0]), "n140": node("S", string="fox")},
        deep | {"n2": node("Reroute", conditioning=["100", 0])},
        fan | {"n2": node("Reroute", conditioning=["100", 0]), "n140": node("CLIPTextEncode", text="a red fox")},
    ):  # fmt: skip
        try:
            assert told(graph(**more)).prompt == "a red fox"
        except OddMetadata as error:
            assert "too long" in str(error) or "nodes behind each other" in str(error)
    assert time.perf_counter() - start < 5
