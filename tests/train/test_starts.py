"""LoRAs that lie on the model before training: merged in, trained further, or left as they are beside the new one."""

import json
import tomllib

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import assert_same, metrics

from mapo.encode.cache import Cache, cache_key
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.loras.sources import LORA_FILE
from mapo.pairs import PairSet
from mapo.train.batches import Members
from mapo.train.config import make_config
from mapo.train.loop import Loop
from mapo.train.objectives import OBJECTIVES
from mapo.train.processes.processes import joined
from mapo.train.train import train
from mapo.train.verb import train as of_recipe
from mapo.train.weights.opening import open_trained
from tiny import make_pairs

ATTENTION = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_{}"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
STARTS = ("fused", "frozen", "continued")


def kohya(name, out, into, rank, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator) / 5
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Pairs, and two LoRAs of strangers: one of two layers of different ranks and of a text encoder, one of the UNet."""
    folder = tmp_path_factory.mktemp("work")
    make_pairs(folder / "pairs", 4)
    first = kohya(ATTENTION.format("q"), 32, 32, 3, 1.5, 1) | kohya(ATTENTION.format("k"), 32, 32, 2, 2.0, 2)
    save_file(first | kohya(TEXT, 32, 16, 2, 1.0, 3), folder / "a.safetensors")
    save_file(kohya("lora_unet_input_blocks_1_0_in_layers_2", 16, 16, 1, 1.0, 4) | {
        "lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight": torch.randn(1, 16, 3, 3),
        "lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight": torch.randn(16, 1, 1, 1),
    }, folder / "b.safetensors")  # fmt: skip
    return folder


def settings(
    work, sdxl, start, loras=("a.safetensors:0.5",), kind="lora", objective="dpo", steps=2, cache="cache", **more
):
    return make_config({
        "model": str(sdxl), "pairs": str(work / "pairs"), "cache": str(work / cache),
        "loras": [str(work / lora) for lora in loras], "objective": {"name": objective},
        "adapter": {"kind": kind, "rank": None if start == "continued" else 2, "start": start, **more},
        "optim": {"lr": 1e-2},
        "train": {"steps": steps, "pairs_per_step": 4, "precision": "float64"},
    })  # fmt: skip


@pytest.fixture(scope="module")
def runs(work, sdxl):
    """A run of each way, and the lines of its metrics."""
    for start in STARTS:
        train(settings(work, sdxl, start), work / start)
    return {start: metrics(work / start) for start in STARTS}


def test_training_begins_at_the_reference_which_is_base_and_lora_in_all_three_ways(work, sdxl, runs):
    first = [runs[start][0] for start in STARTS]
    assert [line["margin_over_reference"] for line in first] == [0, 0, 0]
    for key in ("error_chosen", "error_rejected"):
        assert [line[key] for line in first] == pytest.approx([first[0][key]] * 3, rel=1e-6)
    train(settings(work, sdxl, "fused", loras=(), cache="plain", steps=1), work / "plain-run")
    assert metrics(work / "plain-run")[0]["error_chosen"] != pytest.approx(first[0]["error_chosen"], rel=1e-5)


def test_merged_or_frozen_the_new_lora_learns_the_same_and_continued_something_else(runs):
    second = {start: runs[start][1] for start in STARTS}
    assert second["fused"]["loss"] == pytest.approx(second["frozen"]["loss"], rel=1e-5)
    assert second["fused"]["error_chosen"] == pytest.approx(second["frozen"]["error_chosen"], rel=1e-5)
    assert second["continued"]["error_chosen"] != pytest.approx(second["fused"]["error_chosen"], rel=1e-5)
    assert all(line["margin_over_reference"] != 0 for line in second.values())


@pytest.mark.parametrize("start", STARTS)
def test_what_is_saved_holds_the_lora_as_well_and_says_so(work, sdxl, runs, start):
    about = json.loads((work / start / "run.json").read_text())
    (said,) = about["loras"]
    assert said["file"] == str(work / "a.safetensors") and said["weight"] == 0.5 and len(said["sha256"]) == 64
    assert about["start"] == start
    saved = {one.key: one for one in open_model(find_model(str(work / start))).lora_layers()[0]}
    before = open_model(find_model(str(sdxl), loras=[f"{work}/a.safetensors:0.5"])).lora_layers()[0]
    trained = load_file(next((work / start / "checkpoints").iterdir()) / "weights.safetensors")
    assert len(saved) == (3 if start == "continued" else 33)
    for one in before:
        new, name = saved[one.key], f"{one.module}.lora_{{}}.default.weight"
        if one.part != "unet":
            assert torch.allclose(new.delta(), one.delta(), atol=1e-6)
            continue
        down, up = trained[name.format("A")].double(), trained[name.format("B")].double()
        if start == "continued":
            assert (new.rank, new.alpha) == (one.rank, one.alpha)
            assert torch.allclose(new.delta(), (up @ down) * one.scale, atol=1e-6)
            assert not torch.allclose(new.delta(), one.delta().double(), atol=1e-4)
        else:
            assert new.rank == one.rank + 2
            assert torch.allclose(new.delta(), one.delta() + up @ down, atol=1e-6)


def test_the_run_is_a_model_without_the_file_of_the_lora(work, sdxl, runs, tmp_path):
    model = open_model(find_model(str(work / "fused")))
    encoder = model.files.load("text_encoder", model.networks["text_encoder"])
    both = open_model(find_model(str(sdxl), loras=[f"{work}/a.safetensors:0.5"]))
    other = both.files.load("text_encoder", both.networks["text_encoder"])
    left, right = (e.state_dict()["encoder.layers.0.mlp.fc1.weight"] for e in (encoder, other))
    assert torch.allclose(left, right, atol=1e-6)
    assert [lora.path for lora in model.files.loras] == [work / "fused" / "weights" / LORA_FILE]


def test_train_says_what_becomes_of_the_lora(work, sdxl, runs, tmp_path, heard):
    train(settings(work, sdxl, "continued", steps=1), tmp_path / "r")
    said = heard()
    assert (
        f"{work}/a.safetensors at 0.5: 3 layers of ranks 2 to 3 in text_encoder and unet, trained further. Those of text "
        "encoders are merged." in said
    )
    assert "A LoRA of ranks 2 to 3 beside 2 layers of the unet is trained: 320 numbers." in said  # 5 · (32 + 32)


@pytest.mark.parametrize("start", ["frozen", "continued"])
def test_saving_memory_changes_nothing_nor_does_stopping_and_going_on(work, sdxl, runs, start, tmp_path):
    for steps in (1, 2):
        config = settings(work, sdxl, start, steps=steps)
        less = {"gradient_checkpointing": True, "pairs_per_device": 3}
        train(config.model_copy(update={"train": config.train.model_copy(update=less)}), tmp_path / "r")
    assert_same(metrics(tmp_path / "r"), runs[start])


@pytest.mark.parametrize("start", ["frozen", "continued"])
def test_beside_a_base_in_half_precision_the_lora_stays_in_float32(work, sdxl, start, tmp_path):
    config = settings(work, sdxl, start, steps=1)
    halved = {"precision": "float32", "base_precision": "bfloat16"}
    train(config.model_copy(update={"train": config.train.model_copy(update=halved)}), tmp_path / "r")
    assert metrics(tmp_path / "r")[0]["margin_over_reference"] == 0
    layers = open_model(find_model(str(tmp_path / "r"))).lora_layers()[0]
    assert {layer.down.dtype for layer in layers} == {torch.float32}


def test_frozen_loras_are_unchanged_to_the_bit_and_only_the_new_one_is_trained(work, sdxl, runs):
    config = settings(work, sdxl, "frozen", loras=("a.safetensors", "b.safetensors:-0.3"), steps=3)
    model = open_model(find_model(config.model, loras=config.loras))
    pairs, objective = PairSet(work / "pairs"), OBJECTIVES["dpo"]
    from mapo.encode.fill import encode

    encode(model, pairs, work / "two")
    cache = Cache(work / "two", cache_key(model))
    with joined() as processes:
        trained = open_trained(config, model, objective, processes, None)
        names = [name for name, _ in trained.denoiser.named_parameters()]
        assert {n.split(".")[-2] for n in names if ".lora_A." in n} == {"default", "start0", "start1"}
        assert all(".default." in name for name in trained.parameters) and len(trained.parameters) == 64
        frozen = {n: p.clone() for n, p in trained.denoiser.named_parameters() if n not in trained.parameters}
        found = list(Loop(config, objective, processes, Members(pairs, torch.arange(4).numpy()), cache, trained).run(0))
    assert found[0]["margin_over_reference"] == 0 != found[-1]["margin_over_reference"]
    after = dict(trained.denoiser.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    assert all(p.requires_grad == (name in trained.parameters) for name, p in after.items())


def test_with_every_weight_trained_the_lora_is_in_the_weights_and_its_text_layers_lie_beside_them(
    work, sdxl, runs, tmp_path
):
    train(settings(work, sdxl, "fused", kind="full", objective="mapo", steps=1), tmp_path / "r")
    assert sorted(path.name for path in (tmp_path / "r" / "weights").iterdir()) == [LORA_FILE, "unet"]
    run, both = (
        open_model(files)
        for files in (find_model(str(tmp_path / "r")), find_model(str(sdxl), loras=[f"{work}/a.safetensors:0.5"]))
    )
    ours, theirs = (m.text_encoder("cpu")(["a cat"])["prompt_embeds"] for m in (run, both))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert {layer.part for layer in run.lora_layers()[0]} == {"text_encoder"}
    assert run.files.loras and run.files.denoiser == tmp_path / "r" / "weights" / "unet"
    train(settings(work, tmp_path / "r", "fused", loras=(), objective="mapo", steps=1, cache="of-r"), tmp_path / "s")
    assert {one.part for one in open_model(find_model(str(tmp_path / "s"))).lora_layers()[0]} == {
        "unet",
        "text_encoder",
    }


def test_the_lora_of_a_run_is_continued_with_its_own_rank_and_lies_on_another_model(work, sdxl, tmp_path):
    train(settings(work, sdxl, "fused", loras=(), cache="plain", steps=1, alpha=1.0), tmp_path / "a")
    train(settings(work, tmp_path / "a", "continued", loras=(), cache="plain", steps=1), tmp_path / "b")
    first, second = (open_model(find_model(str(tmp_path / name))).lora_layers()[0] for name in "ab")
    assert {(one.rank, one.alpha) for one in first} == {(one.rank, one.alpha) for one in second} == {(2, 1)}
    assert tomllib.loads((tmp_path / "b" / "config.toml").read_text())["adapter"].get("rank") is None
    again = {"recipe": "sdxl-mapo-lora", "model": str(tmp_path / "a"), "pairs": str(work / "pairs")}
    again["cache"] = str(work / "plain")
    told = {"adapter": {"start": "continued"}, "data": {"cache_precision": "float32"}, "train": {"steps": 1}}
    told["data"]["resolution"], told["train"]["pairs_per_step"] = 16, 4
    assert of_recipe(tmp_path / "c", told, **again)  # whose rank of 8 is that of a new LoRA
    named = open_model(find_model(str(sdxl), loras=[str(tmp_path / "a")])).denoiser("cpu")
    as_model = open_model(find_model(str(tmp_path / "a"))).denoiser("cpu")
    assert all(torch.equal(value, as_model.state_dict()[name]) for name, value in named.state_dict().items())


def test_a_checkpoint_of_a_run_is_a_lora_as_it_is_a_model(work, sdxl, tmp_path):
    train(settings(work, sdxl, "fused", loras=(), cache="plain", steps=1), tmp_path / "a")
    train(settings(work, sdxl, "fused", loras=(), cache="plain", steps=2), tmp_path / "a")  # the last one alone is kept
    as_model = open_model(find_model(f"{tmp_path}/a@2")).lora_layers()[0]
    (named,) = open_model(find_model(str(sdxl), loras=[f"{tmp_path}/a@2:0.5"])).lora_layers()
    for one, half in zip(as_model, named, strict=True):
        assert torch.equal(one.delta() / 2, half.delta())
    train(settings(work, sdxl, "fused", (f"{tmp_path}/a@2",), cache="plain", steps=1), tmp_path / "b")
    (told,) = json.loads((tmp_path / "b" / "run.json").read_text())["loras"]
    assert told["file"] == str(tmp_path / "a" / "checkpoints" / "step-00000002" / LORA_FILE) and told["weight"] == 1
    train(settings(work, sdxl, "fused", loras=(), kind="full", cache="plain", steps=1), tmp_path / "full")
    for name, says in (
        ("a@1", r"--lora: .*/a has no checkpoint of step 1. There is .*/a@2"),
        ("full@1", "--lora: .*/full@1 is of a run in which every weight is trained. Give it as --model"),
        ("b@7:0.5", "--lora: .*/b has no checkpoint of step 7"),
        ("none@1", "--lora: there is no file .*none@1"),
    ):
        with pytest.raises(MapoError, match=says):
            find_model(str(sdxl), loras=[f"{tmp_path}/{name}"])


REFUSED = {
    "no lora": ({"start": "continued", "loras": ()}, "adapter.start=continued: no LoRA lies on the model's unet"),
    "two to continue": ({"start": "continued", "loras": ("a.safetensors", "b.safetensors")}, "takes one LoRA, and 2 lie"),
    "two, one of text alone": ({"start": "continued", "loras": ("a.safetensors", "t.safetensors")}, "takes one LoRA, and 2 lie"),
    "all weights": ({"start": "frozen", "kind": "full"}, "start = 'frozen' is for a LoRA"),
    "targets of its own": ({"start": "continued", "targets": ["to_q"]}, "keeps its own alpha and targets"),
    "a rank of its own": ({"start": "continued", "rank": 2}, r"rank is 2, but the LoRA .* has 2 layers of ranks 2 to 3"),
    "targets of all weights": ({"start": "fused", "kind": "full", "targets": ["to_q"]}, "targets is for a LoRA"),
    "at no strength": ({"start": "continued", "loras": ("a.safetensors:0",)}, "at weight 0, so nothing .* could be trained"),
    "not finite": ({"start": "fused", "loras": ("d.safetensors",)}, "d.safetensors is damaged: .*k.lora_up.weight has"),
    "another model's": ({"start": "fused", "loras": ("c.safetensors",)}, "seems to be a LoRA of FLUX.1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_written(work, sdxl, tmp_path, kind):
    how, says = REFUSED[kind]
    save_file(kohya("lora_unet_double_blocks_0_img_attn_proj", 4, 4, 1, 1.0, 0), work / "c.safetensors")
    save_file(kohya(TEXT, 32, 16, 2, 1.0, 3), work / "t.safetensors")
    bad = load_file(work / "a.safetensors")
    bad[f"{ATTENTION.format('k')}.lora_up.weight"][3, 1] = float("nan")
    save_file(bad, work / "d.safetensors")
    with pytest.raises(MapoError, match=says):
        train(settings(work, sdxl, **{"cache": "never", **how}), tmp_path / "r")
    assert not (tmp_path / "r").exists() and not (work / "never").exists()


def test_a_cache_of_the_model_without_the_loras_text_layers_is_refused_by_name(work, sdxl, runs, tmp_path):
    train(settings(work, sdxl, "fused", loras=(), cache="plain-2", steps=1), tmp_path / "r")
    with pytest.raises(MapoError, match="plain-2"):
        train(settings(work, sdxl, "fused", cache="plain-2", steps=1), tmp_path / "s")


def test_a_lora_that_has_changed_since_is_refused_where_a_run_goes_on(work, sdxl, runs, tmp_path):
    (tmp_path / "pairs").symlink_to(work / "pairs")
    save_file(load_file(work / "b.safetensors"), tmp_path / "b.safetensors")
    train(settings(tmp_path, sdxl, "fused", ("b.safetensors",), steps=1), tmp_path / "r")
    tensors = load_file(tmp_path / "b.safetensors")
    save_file({name: value * 1.5 for name, value in tensors.items()}, tmp_path / "b.safetensors")
    with pytest.raises(MapoError, match=r"made with other settings \(the content of model\)"):
        train(settings(tmp_path, sdxl, "fused", ("b.safetensors",), steps=2), tmp_path / "r")
