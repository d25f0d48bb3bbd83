"""Rank, alpha, dropout and targets of a LoRA."""

import json

import pytest
import torch
from click.testing import CliRunner
from test_train import assert_same, metrics

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.train.config import make_config
from mapo.train.sections import AdapterConfig
from mapo.train.train import train
from mapo.train.weights.adapters import add_adapter, told, trainable, without_adapter
from mapo.train.weights.dropout import PairDropout


@pytest.fixture(scope="module")
def model(sdxl):
    return open_model(find_model(str(sdxl)))


def adapted(model, seed=0, **settings):
    network = model.denoiser("cpu", torch.float32)
    add_adapter(network, model, AdapterConfig(kind="lora", **settings), seed)
    return network


def layers_of(network):
    return sorted({name.partition(".lora_")[0] for name in trainable(network)})


def settings(sdxl, pairs, cache, steps=2, adapter=None, **more):
    return make_config({
        "model": str(sdxl), "pairs": str(pairs), "cache": str(cache), "optim": {"lr": 1e-2},
        "adapter": {"kind": "lora", "rank": 4, **(adapter or {})},
        "train": {"steps": steps, "pairs_per_step": 4, "precision": "float64", **more},
    })  # fmt: skip


def test_without_alpha_it_is_the_rank_and_nothing_else_changes(model):
    plain, said = adapted(model, rank=4), adapted(model, rank=4, alpha=4.0)
    assert all(torch.equal(p, q) for p, q in zip(trainable(plain).values(), trainable(said).values(), strict=True))
    assert {m.scaling["default"] for m in plain.modules() if hasattr(m, "scaling")} == {1}


def test_alpha_is_kept_by_training_saving_loading_fusing_and_training_further(model, sdxl, pairs, cache, tmp_path):
    train(settings(sdxl, pairs, cache, adapter={"alpha": 1.0}), tmp_path / "a")
    run = open_model(find_model(str(tmp_path / "a")))
    assert {(one.rank, one.alpha) for one in run.lora_layers()[0]} == {(4, 1)}
    network = adapted(model, rank=4, alpha=1.0)
    from safetensors.torch import load_file

    weights = load_file(next((tmp_path / "a" / "checkpoints").iterdir()) / "weights.safetensors")
    for name, parameter in trainable(network).items():
        parameter.data = weights[name].float()
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 40)
    cond = {"prompt_embeds": states, "text_embeds": torch.randn(1, 24), "time_ids": torch.ones(1, 6)}
    outputs = []
    plain = model.pipeline("cpu")
    plain.load_lora_weights(tmp_path / "a" / "weights")
    with torch.no_grad():
        outputs = [model.predict(n, x, torch.tensor([500]), cond) for n in (network, run.denoiser("cpu"), plain.unet)]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5) and torch.allclose(outputs[0], outputs[2], atol=1e-5)
    train(settings(tmp_path / "a", pairs, cache, steps=1, adapter={"alpha": 8.0, "rank": 2}), tmp_path / "b")
    both = open_model(find_model(str(tmp_path / "b")))
    assert {(one.rank, one.alpha) for one in both.lora_layers()[0]} == {(6, 6)}
    with torch.no_grad():
        moved = model.predict(both.denoiser("cpu"), x, torch.tensor([500]), cond)
    assert not torch.allclose(moved, outputs[1], atol=1e-3)


def test_alpha_scales_what_is_trained(sdxl, pairs, cache, tmp_path):
    """The first gradient grows with alpha / rank, as the LoRA adds nothing yet."""
    for name, alpha in (("a", 4.0), ("b", 8.0)):
        train(settings(sdxl, pairs, cache, steps=1, adapter={"alpha": alpha}), tmp_path / name)
    one, two = (metrics(tmp_path / name)[0] for name in "ab")
    assert one["loss"] == two["loss"] and two["grad_norm"] == pytest.approx(2 * one["grad_norm"], rel=1e-9)


TARGETS = {
    "to_k": lambda name: name.endswith(".to_k"),
    "attn2.*": lambda name: ".attn2." in name,
    "mid_block.*": lambda name: name.startswith("mid_block."),
    "conv_in": lambda name: name == "conv_in",
    "down_blocks.*.to_[qv]": lambda name: name.startswith("down_blocks.") and name.endswith((".to_q", ".to_v")),
}


@pytest.mark.parametrize("pattern", TARGETS)
def test_targets_are_names_of_layers_or_their_ends_with_stars(model, pattern):
    from mapo.models.names.kohya import layer_shapes

    wanted = [name for name in layer_shapes(model.outline("unet")) if TARGETS[pattern](name)]
    assert wanted and layers_of(adapted(model, rank=2, targets=[pattern])) == sorted(wanted)


def test_several_targets_are_all_trained_each_layer_once(model):
    several = layers_of(adapted(model, rank=2, targets=["to_q", "attn1.to_*", "conv_out"]))
    assert len(several) == len(set(several)) and "conv_out" in several
    assert layers_of(adapted(model, targets=list(model.lora_targets))) == layers_of(adapted(model))


def test_a_target_that_is_no_layer_is_refused_with_names_before_anything_is_written(sdxl, pairs, tmp_path):
    config = settings(sdxl, pairs, tmp_path / "cache", adapter={"targets": ["to_q", "to_qq"]})
    with pytest.raises(
        MapoError, match=r"no layer of the model is called 'to_qq'.* names such as conv_in, .*, conv_out"
    ):
        train(config, tmp_path / "r")
    assert not list(tmp_path.iterdir())
    for bad in ([], [""]):
        with pytest.raises(MapoError, match="targets"):
            train(settings(sdxl, pairs, tmp_path / "cache", adapter={"targets": bad}), tmp_path / "r")


def test_train_says_how_many_layers_and_numbers_are_trained(model, sdxl, pairs, cache, tmp_path, heard):
    train(settings(sdxl, pairs, cache, steps=1, adapter={"alpha": 2.0, "targets": ["conv_in"]}), tmp_path / "r")
    assert "A LoRA of rank 4, alpha 2 beside 1 layer of the unet is trained: 208 numbers." in heard()  # 4 (36 + 16)
    network = model.denoiser("cpu", torch.float32)
    add_adapter(network, model, AdapterConfig(), 0)
    assert (
        told(network, "unet")
        == f"All {sum(p.numel() for p in network.parameters()):,} weights of the unet are trained."
    )


def test_dropout_leaves_out_other_numbers_at_each_step_and_goes_on_as_uninterrupted(sdxl, pairs, cache, tmp_path):
    made = {}
    for name, dropout in (("none", 0.0), ("some", 0.5)):
        config = settings(sdxl, pairs, cache, steps=3, adapter={"dropout": dropout}, pairs_per_device=2)
        torch.manual_seed(hash(name) % 1000)  # of what else draws nothing depends on
        train(config, tmp_path / name)
        made[name] = metrics(tmp_path / name)
    assert made["none"][0]["loss"] == made["some"][0]["loss"]  # the LoRA adds nothing yet
    assert made["none"][1]["loss"] != pytest.approx(made["some"][1]["loss"], rel=1e-6)
    for steps in (1, 3):
        train(
            settings(sdxl, pairs, cache, steps=steps, adapter={"dropout": 0.5}, pairs_per_device=2), tmp_path / "again"
        )
    assert_same(metrics(tmp_path / "again"), made["some"])
    run = open_model(find_model(str(tmp_path / "some")))
    assert {one.scale for one in run.lora_layers()[0]} == {1}


@pytest.mark.parametrize("text_encoders", [False, True])
def test_dropout_does_not_depend_on_how_a_step_is_cut_into_portions(sdxl, pairs, cache, tmp_path, text_encoders):
    made = []
    adapter = {"dropout": 0.5, "text_encoders": text_encoders}
    for each, checkpointing in ((4, False), (1, False), (3, True)):
        how = {"pairs_per_device": each, "pairs_per_step": 4, "precision": "float64"}
        config = settings(sdxl, pairs, cache, steps=2, adapter=adapter, gradient_checkpointing=checkpointing, **how)
        train(config, tmp_path / str(each))
        made.append(metrics(tmp_path / str(each)))
    assert_same(made[1], made[0])
    assert_same(made[2], made[0])


def test_each_pair_and_each_chunk_of_a_prompt_has_a_mask_that_its_pair_and_layer_decide():
    def mask(positions, rows, layer="a", prompts=False, seed=0):
        dropout = PairDropout(0.25, layer, prompts)
        dropout.seed, dropout.positions = seed, positions
        return dropout(torch.ones(rows, 40, 50))

    whole = mask((7, 8, 9), 6)
    assert whole.unique().tolist() == pytest.approx([0, 4 / 3])
    assert whole.mean() == pytest.approx(1, abs=0.03)
    for number, position in enumerate((7, 8, 9)):  # chosen images first
        assert torch.equal(mask((position,), 2), whole[[number, number + 3]])
    chunks = mask((7, 8), 4, prompts=True)  # the chunks of a prompt first
    assert torch.equal(torch.cat([mask((7,), 2, prompts=True), mask((8,), 2, prompts=True)]), chunks)
    rows = [*whole, *mask((7, 8, 9), 6, layer="b"), *mask((7, 8, 9), 6, seed=1)]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 9  # both images of a pair have one mask
    assert torch.equal(PairDropout(0.25, "a", False).eval()(torch.ones(2, 3)), torch.ones(2, 3))


def test_dpos_reference_has_no_dropout_and_no_adapter(model):
    network = adapted(model, rank=4, dropout=0.5).train()
    for parameter in trainable(network).values():
        parameter.data.normal_()
    x = torch.randn(1, 4, 8, 8)
    cond = {"prompt_embeds": torch.randn(1, 32, 40), "text_embeds": torch.randn(1, 24), "time_ids": torch.ones(1, 6)}
    plain = model.denoiser("cpu", torch.float32)
    with torch.no_grad():
        wanted = model.predict(plain, x, torch.tensor([500]), cond)
        with without_adapter(network):
            assert torch.equal(model.predict(network, x, torch.tensor([500]), cond), wanted)
        assert not torch.allclose(model.predict(network, x, torch.tensor([500]), cond), wanted, atol=1e-3)
    assert set(trainable(network)) == set(trainable(adapted(model, rank=4)))


def test_the_settings_of_the_command_line(sdxl, pairs, cache, tmp_path):
    words = ["train", "--model", sdxl, "--pairs", pairs, "--cache", cache, "--out", tmp_path / "r", "--adapter", "lora",
             "--targets", "to_q", "--targets", "attn2.to_k", "--set", "train.steps=1", "--set", "train.pairs_per_step=2",
             "--set", "adapter.rank=2", "--set", "adapter.alpha=1"]  # fmt: skip
    done = CliRunner().invoke(cli, [*map(str, words)])
    assert done.exit_code == 0, done.output
    layers = open_model(find_model(str(tmp_path / "r"))).lora_layers()[0]
    assert {layer.module.rpartition(".")[2] for layer in layers} == {"to_q", "to_k"}
    more = ["sample", "--model", sdxl, "--lora", f"{tmp_path / 'r'}:0.7", "--prompts", "mini:test", "--steps", "1",
            "--out", tmp_path / "i"]  # fmt: skip
    assert CliRunner().invoke(cli, [*map(str, more)]).exit_code == 0
    kept = json.loads((tmp_path / "i" / "images.json").read_text())["settings"]
    assert [(one["weight"], len(one["sha256"])) for one in kept["loras"]] == [(0.7, 64)]
    done = CliRunner().invoke(cli, [*map(str, more), "--lora", str(tmp_path / "r")])
    assert isinstance(done.exception, MapoError) and "made with other settings (revision, loras)" in str(done.exception)
