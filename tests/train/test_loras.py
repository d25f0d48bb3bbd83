"""Training and sampling on top of a run's LoRA that is not what it should be."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_train import run

from data_fixtures import files_below
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from tiny import make_pairs

FILE = "weights/pytorch_lora_weights.safetensors"
LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.lora"
FEED_FORWARD = "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2.lora"


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder with a set, its cache, and a run of a LoRA on the built-in model."""
    folder = tmp_path_factory.mktemp("begun")
    run(folder / "a", "mini", make_pairs(folder / "pairs", 4), kind="lora", steps=1)
    return folder


@pytest.fixture
def work(begun, tmp_path) -> Path:
    """The same, without the cache."""
    shutil.copytree(begun, tmp_path / "work", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "work"


def change(work: Path, how, metadata=None) -> None:
    save_file(how(load_file(work / "a" / FILE)), work / "a" / FILE, metadata)


def only_queries(tensors):
    return {name: value for name, value in tensors.items() if ".to_q." in name}


def more_layers(tensors):
    down, up = tensors[f"{LAYER}.down.weight"], tensors[f"{LAYER}.up.weight"]
    width = 4 * down.shape[1]
    added = {f"{FEED_FORWARD}.down.weight": torch.zeros(len(down), width), f"{FEED_FORWARD}.up.weight": up.clone()}
    return {**tensors, **added}


def two_ranks(tensors):
    down, up = tensors[f"{LAYER}.down.weight"], tensors[f"{LAYER}.up.weight"]
    return {**tensors, f"{LAYER}.down.weight": down[:2].clone(), f"{LAYER}.up.weight": up[:, :2].clone()}


OTHERS = {
    "fewer layers": (only_queries, None),
    "more layers, two ranks, an alpha": (
        lambda tensors: two_ranks(more_layers(tensors)),
        {"lora_adapter_metadata": '{"unet.lora_alpha": 1}'},
    ),
}


def exactly(layer):
    return layer.scale * layer.up.double() @ layer.down.double()


@pytest.mark.parametrize("kind", OTHERS)
def test_a_lora_trained_on_top_of_any_other_is_one_file_with_it(work, kind):
    how, metadata = OTHERS[kind]
    change(work, how, metadata)
    run(work / "b", work / "a", work / "pairs", kind="lora", steps=1, optim={"lr": 1e-2})
    below, both = ({one.key: one for one in open_model(find_model(str(work / name))).lora_layers()[0]} for name in "ab")
    trained = load_file(next((work / "b" / "checkpoints").iterdir()) / "weights.safetensors")
    wanted = {name.partition(".lora_")[0] for name in trained} | {module for _, module in below}
    assert {module for _, module in both} == wanted
    for (part, module), one in both.items():
        delta = exactly(below[part, module]) if (part, module) in below else torch.zeros((), dtype=torch.float64)
        if f"{module}.lora_A.default.weight" in trained:
            up, down = (trained[f"{module}.lora_{x}.default.weight"] for x in "BA")
            delta = delta + up @ down
        assert torch.allclose(exactly(one), delta, atol=1e-6), module


def renamed(old: str, new: str):
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


NOT_ITS_OWN = {
    "no such layer": (renamed("down_blocks.1", "down_blocks.9"), r"has the layer unet\.down_blocks\.9.*, which its model lacks"),
    "no layer but a list": (renamed("attentions.0.transformer_blocks.0.attn1.to_k", "attentions"), "which its model"),
    "another size": (lambda t: {**t, f"{LAYER}.down.weight": torch.zeros(4, 77)}, "to_k has another size"),
    "two ranks in a layer": (lambda t: {**t, f"{LAYER}.down.weight": torch.zeros(3, 80)}, "to_k is of rank 3 by its down matrix"),
    "half a layer": (lambda t: {n: v for n, v in t.items() if n != f"{LAYER}.up.weight"}, "only half of the layer"),
    "an encoder's": (renamed("unet.down_blocks.1", "text_encoder.layers"), "has the layer text_encoder.*, which its model"),
    "no part named": (renamed("unet.", ""), "which does not say of which part of a model it is"),
    "nothing": (lambda t: {}, "holds no layers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_ITS_OWN)
def test_a_lora_that_does_not_fit_its_model_is_refused_before_anything_is_written(work, kind):
    how, says = NOT_ITS_OWN[kind]
    change(work, how)
    before = files_below(work)
    for adapter in ("full", "lora"):
        with pytest.raises(MapoError, match=f"{FILE} .*{says}.*train that run again"):
            run(work / "b", work / "a", work / "pairs", kind=adapter, steps=1)
    assert files_below(work) == before


def test_sampling_with_a_lora_that_does_not_fit_says_so_and_leaves_nothing(work):
    change(work, NOT_ITS_OWN["another size"][0])
    before = files_below(work)
    words = ["sample", "--model", work / "a", "--prompts", "mini:test", "--out", work / "images"]
    done = CliRunner().invoke(cli, [*map(str, words)])
    assert isinstance(done.exception, MapoError) and "to_k has another size" in str(done.exception)
    assert files_below(work) == before


def test_a_lora_with_the_names_of_peft_becomes_the_same_file(work):
    made = []
    for names in ("lora.down", "lora_A"):
        if names == "lora_A":
            change(work, lambda t: renamed(".lora.up.", ".lora_B.")(renamed(".lora.down.", ".lora_A.")(t)))
        model = open_model(find_model(str(work / "a")))
        denoiser = open_model(find_model("mini")).denoiser("cpu", torch.float32)
        from mapo.train.sections import AdapterConfig
        from mapo.train.weights.adapters import add_adapter

        add_adapter(denoiser, model, AdapterConfig(kind="lora", rank=2), 0)
        model.save_lora({"unet": denoiser}, work / names)
        made.append(load_file(work / names / "pytorch_lora_weights.safetensors"))
    assert made[0].keys() == made[1].keys() and made[0][f"{LAYER}.down.weight"].shape == (6, 80)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
