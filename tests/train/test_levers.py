"""What lowers the memory of training: optimizers, weights in half, the update in the backward pass, running means."""

import math
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from held import make_held_out
from safetensors.torch import load_file
from test_train import assert_same, metrics, run
from together import train_together
from transformers import CLIPTextConfig, CLIPTextModel

from mapo.errors import DivergedError, MapoError
from mapo.train.config import make_config
from mapo.train.loop import exacter
from mapo.train.plan.subject import open_subject
from mapo.train.processes.processes import Place, Processes
from mapo.train.run.folder import settled
from mapo.train.weights import levers, opening
from mapo.train.weights.blocks import checkpoint_layers, number_of_blocks
from mapo.train.weights.levers import check_levers, saves_memory
from mapo.train.weights.updater import InBackward
from tiny import MAKERS, make_sd3

NOT_CLIPPED = {"clip_norm": 0, "in_backward": True}
EIGHT_BITS = pytest.param({"optim": {"name": "adamw8bit"}}, id="adamw8bit")
if find_spec("torchao") is None:
    EIGHT_BITS = pytest.param({}, marks=pytest.mark.skip(reason="torchao is not installed"), id="adamw8bit")
ADAFACTOR = {"optim": {"name": "adafactor"}}
EVERYWHERE = [
    pytest.param({}, id="adamw"),
    EIGHT_BITS,
    pytest.param(ADAFACTOR, id="adafactor"),
    pytest.param({"optim": NOT_CLIPPED}, id="in-backward"),
    pytest.param({"ema": 0.9}, id="ema"),
]
FULL_ONLY = [
    pytest.param({"weights": "bfloat16-master"}, id="master"),
    pytest.param({"weights": "bfloat16-stochastic"}, id="stochastic"),
    pytest.param({"weights": "bfloat16-master", **ADAFACTOR, "ema": 0.9}, id="master-adafactor-ema"),
    pytest.param(
        {"weights": "bfloat16-stochastic", "optim": {"name": "adafactor", **NOT_CLIPPED}}, id="stochastic-in-backward"
    ),
]


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A Stable Diffusion 3, and the cache of its pairs."""
    folder = tmp_path_factory.mktemp("flow")
    return make_sd3(folder / "sd3"), folder / "cache"


def go(out, model, pairs, cache, kind="full", **settings):
    optim = {"lr": 1e-3, **settings.pop("optim", {})}
    return run(out, model, pairs, cache, kind=kind, **{"precision": "float32", "steps": 6, **settings}, optim=optim)


def tensors_below(folder):
    """All tensors of a run that is done: its weights and its last checkpoint."""
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_goes_on(tmp_path, model, pairs, cache, kind, settings):
    """Two steps and two more are four, to the bit."""
    whole = go(tmp_path / "whole", model, pairs, cache, kind, **settings, steps=4)
    go(tmp_path / "two", model, pairs, cache, kind, **settings, steps=2)
    assert_same(go(tmp_path / "two", model, pairs, cache, kind, **settings, steps=4), whole, tolerance=0)
    one, two = tensors_below(tmp_path / "whole"), tensors_below(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)
    assert all(math.isfinite(line["loss"]) for line in whole)
    return one


@pytest.mark.parametrize("settings", EVERYWHERE + FULL_ONLY)
def test_full_training_that_goes_on_is_the_uninterrupted_one_to_the_bit(tmp_path, sdxl, pairs, cache, settings):
    assert_goes_on(tmp_path, sdxl, pairs, cache, "full", settings)


@pytest.mark.parametrize("settings", EVERYWHERE)
def test_a_lora_that_goes_on_is_the_uninterrupted_one_to_the_bit(tmp_path, sdxl, pairs, cache, settings):
    assert_goes_on(tmp_path, sdxl, pairs, cache, "lora", settings)


@pytest.mark.parametrize("settings", [{"ema": 0.9}, ADAFACTOR])
def test_a_run_may_be_allowed_to_go_on_in_another_precision(tmp_path, sdxl, pairs, cache, settings):
    out = tmp_path / "r"
    go(out, sdxl, pairs, cache, **settings, steps=1)
    go(out, sdxl, pairs, cache, **settings, steps=2, precision="float64", allow_change=True)
    (moments,) = (load_file(path) for path in out.glob("checkpoints/*/optimizer.safetensors"))
    assert {tensor.dtype for name, tensor in moments.items() if not name.endswith("/step")} == {torch.float64}
    lines = go(out, sdxl, pairs, cache, **settings, steps=3, precision="float32", allow_change=True)
    assert [line["step"] for line in lines] == [1, 2, 3] and all(math.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize("settings", FULL_ONLY[2:])  # between them: every kind of part that a checkpoint has
def test_a_flow_model_that_goes_on_is_the_uninterrupted_one_to_the_bit(tmp_path, flow, pairs, settings):
    assert_goes_on(tmp_path, flow[0], pairs, flow[1], "full", settings)


@pytest.mark.parametrize("settings", [EIGHT_BITS, ADAFACTOR, {"ema": 0.9}])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_one_batch_of_four_is_four_of_one_accumulated(tmp_path, sdxl, pairs, cache, settings, kind):
    train = partial(go, model=sdxl, pairs=pairs, cache=cache, kind=kind, precision="float64", steps=3, **settings)
    assert_same(train(tmp_path / "four", pairs_per_device=1), train(tmp_path / "one"))
    four, one = (load(tmp_path / name) for name in ("four", "one"))
    eight_bits = (
        settings.get("optim", {}).get("name") == "adamw8bit"
    )  # where rounding may take a moment to the next code
    close = [torch.isclose(four[k], one[k], rtol=1e-9, atol=1e-9).flatten() for k in one]
    assert torch.cat(close).double().mean() > 0.999 if eight_bits else all(same.all() for same in close)


def load(folder):
    return load_file(next((folder / "checkpoints").glob("*/weights.safetensors")))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_in_the_backward_pass_weights_move_as_at_the_end_to_the_bit(tmp_path, sdxl, pairs, cache, name):
    for weights in ("float32", "bfloat16-master", "bfloat16-stochastic"):
        for in_backward in (True, False):
            optim = {"name": name, "clip_norm": 0, "in_backward": in_backward}
            out = tmp_path / f"{weights}-{in_backward}"
            got = go(out, sdxl, pairs, cache, steps=2, weights=weights, optim=optim)
            assert got[0]["grad_norm"] > 0
        one, other = (load(tmp_path / f"{weights}-{in_backward}") for in_backward in (True, False))
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_whose_weights_were_spoilt_keeps_its_last_checkpoint_and_no_other(tmp_path, sdxl, pairs, cache):
    settings = {"optim": {**NOT_CLIPPED, "lr": 1e-3}, "save_every_steps": 2}
    go(tmp_path / "r", sdxl, pairs, cache, **settings, steps=2)
    end, calls = InBackward.end, []

    def bad(self, good):
        calls.append(self.step)
        if self.step == 3:
            self.squares[0] *= math.nan
        return end(self, good)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InBackward, "end", bad)
        with pytest.raises(DivergedError, match=r"Step 4: .*What was trained up to step 2 is kept") as stopped:
            go(tmp_path / "r", sdxl, pairs, cache, **settings)
    assert "the gradient is not finite, and with optim.in_backward weights have moved by it" in str(stopped.value)
    assert calls == [2, 3]
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000002"]


CANNOT = [
    ({"optim": {"in_backward": True}}, {}, r"optim.in_backward: .*Set optim.clip_norm=0"),
    ({"optim": NOT_CLIPPED}, {"pairs_per_device": 2}, r"optim.in_backward: .*Leave train.pairs_per_device out"),
    (
        {"optim": {"in_backward": True}},
        {"pairs_per_device": 2, "data": {"buckets": True}},
        r"^optim.in_backward: the norm .*Set optim.clip_norm=0. A gradient .*pairs_per_device out.*Leave data.buckets",
    ),
    ({"optim": NOT_CLIPPED}, {"data": {"buckets": True}}, r"optim.in_backward: .*Leave data.buckets out"),
    ({"optim": {"lr": 9e-7}}, {"weights": "bfloat16-stochastic"}, r"optim.lr is 9e-07: .*bfloat16-master"),
    ({}, {"weights": "bfloat16-master", "precision": "float64"}, r"does not go together with train.precision=float64"),
    ({}, {"gradient_checkpointing": 12}, r"has 11 blocks, so none would be computed twice. Take a number up to 11, or"),
    ({}, {"kind": "lora", "weights": "bfloat16-master"}, r"is for full training; a LoRA stays in float32"),
]


@pytest.mark.parametrize(("optim", "train", "sentence"), CANNOT)
def test_what_a_lever_cannot_have_is_refused_in_a_sentence(tmp_path, sdxl, pairs, cache, optim, train, sentence):
    with pytest.raises(MapoError, match=sentence):
        go(tmp_path / "r", sdxl, pairs, cache, **optim, **train)
    assert not (tmp_path / "r").exists()


def test_steps_whose_rate_is_too_low_to_be_rounded_at_random_are_told(tmp_path, sdxl, pairs, cache, heard):
    settings = {"weights": "bfloat16-stochastic", "steps": 2}
    go(tmp_path / "low", sdxl, pairs, cache, **settings, optim={"lr": 1e-6})  # the first of two steps of warm-up
    assert (
        "In 1 step of 2 the rate is below 1e-06, where rounding moves weights further than what is learned" in heard()
    )
    train = {"train": settings, "optim": {"lr": 3e-6, "schedule": "cosine"}, "model": "mini", "pairs": "none"}
    assert levers.steps_that_drown(make_config({**train, "train": {**settings, "steps": 100}})) == 39
    assert levers.steps_that_drown(make_config({**train, "train": {"steps": 100}})) == 0


@pytest.mark.parametrize(
    ("kind", "train", "says"),
    [
        ("full", {}, ""),
        ("full", {"precision": "bfloat16", "base_precision": "float16"}, ", or train.precision=float32"),
        ("full", {"weights": "bfloat16-master"}, ", or train.weights=float32"),
        ("lora", {"base_precision": "float16"}, ", or train.base_precision=float32"),
    ],
)
def test_where_numbers_are_not_finite_what_rounds_is_named_and_nothing_else(kind, train, says):
    assert exacter(make_config({"model": "mini", "pairs": "none", "adapter": {"kind": kind}, "train": train})) == says


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_the_blocks_that_may_be_computed_twice_are_counted_without_weights(tmp_path, pairs, monkeypatch, family):
    met = set()

    def noted(network, every):
        network.enable_gradient_checkpointing(lambda block, *args: met.add(block) or block(*args))

    monkeypatch.setattr(opening, "checkpoint_blocks", noted)
    data, how = {"split": "all"}, {"gradient_checkpointing": 2, "pairs_per_step": 1, "allow_distilled": True}
    values = {"model": str(MAKERS[family](tmp_path / "m")), "pairs": str(pairs), "adapter": {"kind": "lora"}}
    config = settled(make_config({**values, "data": data, "train": how}), None)
    subject = open_subject(config, "cpu")
    subject.needs(config)
    assert len(met) == number_of_blocks(subject.model.outline(subject.model.denoiser_part)) > 1


def config_of(**sections):
    from mapo.train.config import make_config

    return make_config({"model": "mini", "pairs": "p", **sections})


def test_the_backward_pass_of_several_processes_does_not_update():
    config = config_of(optim=NOT_CLIPPED)
    with pytest.raises(MapoError, match="the gradients of 2 processes are only added up after"):
        check_levers(config, Processes(Place(0, 2), torch.device("cpu")))


SHARDS_CANNOT = [
    ({"optim": {"name": "adafactor"}}, "optim.name=adafactor needs means over whole rows and columns"),
    ({"train": {"weights": "bfloat16-master"}}, "train.weights=bfloat16-master was not tried with it"),
    ({"train": {"channels_last": True}}, "does not go with train.channels_last"),
    ({"train": {"pictures_every": 5}}, "pictures are drawn by one process, which has a part of the model only"),
    ({"optim": NOT_CLIPPED}, "the gradients of 2 processes are only added up after"),
]


@pytest.mark.parametrize(("sections", "sentence"), SHARDS_CANNOT)
def test_what_processes_that_share_the_model_cannot_have_is_refused_and_one_process_may_have_it(sections, sentence):
    config = config_of(**{**sections, "train": {"shard": "fsdp2", **sections.get("train", {})}})
    with pytest.raises(MapoError, match=sentence):
        check_levers(config, Processes(Place(0, 2), torch.device("cpu")))
    check_levers(config, Processes(Place(), torch.device("cpu")))


def test_masters_begin_as_the_model_is_and_are_what_is_saved(tmp_path, sdxl, pairs, cache):
    still = {"optim": {"lr": 1e-30, "weight_decay": 0}, "steps": 1}
    go(tmp_path / "r", sdxl, pairs, cache, weights="bfloat16-master", **still)
    go(tmp_path / "s", sdxl, pairs, cache, **still)
    masters, plain = tensors_below(tmp_path / "r" / "weights"), tensors_below(tmp_path / "s" / "weights")
    assert masters.keys() == plain.keys()
    assert all(torch.allclose(masters[k], plain[k], rtol=0, atol=1e-29) for k in plain)


@pytest.mark.parametrize(
    ("sections", "frugal"),
    [
        ({}, False),
        ({"adapter": {"kind": "lora"}, "train": {"base_precision": "bfloat16"}}, False),
        ({"train": {"gradient_checkpointing": 2}}, True),
        ({"train": {"pair_by_pair": True}}, True),
        ({"train": {"weights": "bfloat16-master"}}, True),
        ({"optim": {"name": "adafactor"}}, True),
        ({"optim": NOT_CLIPPED}, True),
        ({"train": {"shard": "fsdp2"}}, False),  # of one process
    ],
)
def test_settings_that_take_less_memory_are_known(sections, frugal):
    assert saves_memory(config_of(**sections)) == frugal
    assert saves_memory(config_of(**sections), 2) == (frugal or "shard" in sections.get("train", {}))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_weights_of_a_run_with_a_running_mean_are_that_mean(tmp_path, sdxl, pairs, cache, kind, heard):
    from mapo.models import find_model, open_model

    go(tmp_path / "mean", sdxl, pairs, cache, kind, ema=0.9, steps=4)
    assert "The weights of this run are the running mean of those that are trained (train.ema=0.9)." in heard()
    go(tmp_path / "last", sdxl, pairs, cache, kind, steps=4)
    one, other = load(tmp_path / "mean"), load(tmp_path / "last")
    assert all(torch.equal(one[k], other[k]) for k in one)  # what is trained is the same
    (means,) = (tmp_path / "mean" / "checkpoints").glob("*/ema.safetensors")
    assert any(not torch.equal(value, one[name]) for name, value in load_file(means).items())
    run_, step, last = (
        open_model(find_model(str(name))).denoiser("cpu", torch.float32).state_dict()
        for name in (tmp_path / "mean", f"{tmp_path / 'mean'}@4", tmp_path / "last")
    )
    assert all(torch.equal(run_[k], step[k]) for k in run_)
    assert any(not torch.equal(run_[k], last[k]) for k in run_)
    if kind == "full":
        assert all(torch.equal(run_[k], value) for k, value in load_file(means).items())


def test_a_running_mean_soon_forgets_where_it_began(tmp_path, sdxl, pairs, cache):
    """In the first step 2/11 of the start is kept, however high the share is that was asked for."""
    go(tmp_path / "r", sdxl, pairs, cache, ema=0.999, steps=1)
    (folder,) = (tmp_path / "r" / "checkpoints").iterdir()
    last, means = (load_file(folder / f"{name}.safetensors") for name in ("weights", "ema"))
    begun = load_file(sdxl / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.allclose(means[k], (2 * begun[k] + 9 * last[k]) / 11, atol=1e-6) for k in last)
    assert any((means[k] - begun[k]).abs().max() > 1e-4 for k in last)


@pytest.mark.parametrize("model", ["sdxl", "flow"])
def test_checkpointing_every_second_block_changes_nothing_and_holds_between(
    tmp_path, request, monkeypatch, pairs, cache, model
):
    frugal: list[str] = []
    for name in ("give_back_at_once", "keep_freed_blocks"):
        monkeypatch.setattr(f"mapo.train.train.{name}", lambda name=name: frugal.append(name) or True)
    found = request.getfixturevalue(model)
    folder, cached = found if model == "flow" else (found, cache)
    train = partial(go, model=folder, pairs=pairs, cache=cached, precision="float64", steps=2)
    whole = train(tmp_path / "none")
    assert not frugal
    for every in (2, 3) if model == "sdxl" else (2,):  # of the blocks that it has
        assert_same(train(tmp_path / str(every), gradient_checkpointing=every), whole)
    assert frugal[:2] == ["give_back_at_once", "keep_freed_blocks"]
    with pytest.raises(MapoError, match="it has to be true, false or a whole number, at least 1"):
        train(tmp_path / "less", gradient_checkpointing=-1)


def test_the_blocks_that_compute_twice_are_every_nth_one(sdxl):
    from mapo.models import find_model, open_model
    from mapo.train.weights.blocks import checkpoint_blocks

    counts = {}
    for every in (1, 2, 3):
        model = open_model(find_model(str(sdxl)))
        network = model.denoiser("cpu", torch.float32).train()
        checkpoint_blocks(network, every)
        calls = []
        for block in network.modules():
            if type(block).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
                block.register_forward_pre_hook(lambda module, *rest, calls=calls: calls.append(id(module)))
        cond = {"text_embeds": torch.randn(1, 24), "time_ids": torch.ones(1, 6)}
        x = torch.randn(1, 4, 8, 8, requires_grad=True)
        network(x, torch.tensor([5]), torch.randn(1, 32, 40), added_cond_kwargs=cond).sample.sum().backward()
        counts[every] = len(calls) - len(set(calls))
    assert counts == {every: counts[1] // every for every in (1, 2, 3)} and counts[1] == len(set(calls)) - 1


@pytest.mark.parametrize("every", [1, 2])
def test_every_nth_layer_of_a_text_encoder_computes_twice(every):
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=1, bos_token_id=0,
        eos_token_id=7,
    )  # fmt: skip
    encoder, calls = CLIPTextModel(config).train(), list[int]()
    layers = [module for module in encoder.modules() if type(module).__name__ == "CLIPEncoderLayer"]
    for number, layer in enumerate(layers, 1):
        layer.self_attn.register_forward_pre_hook(lambda *given, number=number: calls.append(number))
    checkpoint_layers(encoder, every)
    encoder(torch.tensor([[0, 3, 7]])).last_hidden_state.sum().backward()
    twice = [number for number in range(1, 5) if calls.count(number) == 2]
    assert twice == [1, 2, 3, 4][every - 1 :: every] and len(set(calls)) == 4


@pytest.mark.long
def test_two_processes_add_up_the_portions_of_weights_in_half_as_one_does(tmp_path, sdxl, pairs, cache):
    """Portions of a number of pairs, of one picture of a pair, and of one shape."""
    wide = make_held_out(tmp_path / "wide", train=9, wide=24)
    half = {"steps": 3, "pairs_per_step": 3, "weights": "bfloat16-master"}
    cases = [
        (pairs, cache, {"pairs_per_device": 1}, {}),
        (pairs, cache, {"pair_by_pair": True}, {}),
        (wide, tmp_path / "cache", {"pairs_per_step": 6}, {"buckets": True}),
    ]
    jobs = [
        (
            {
                "model": str(sdxl), "pairs": str(of), "cache": str(kept), "optim": {"lr": 1e-3, "warmup_steps": 2},
                "data": data, "train": {**half, **train},
            },
            tmp_path / f"two-{number}",
        )
        for number, (of, kept, train, data) in enumerate(cases)
    ]  # fmt: skip
    train_together(tmp_path, jobs)
    for number, (of, kept, train, data) in enumerate(cases):
        one = go(tmp_path / f"one-{number}", sdxl, of, kept, **{**half, **train}, data=data)
        two = metrics(tmp_path / f"two-{number}")
        assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-3)  # then Adam's first step takes signs
        assert [m["loss"] for m in two] == pytest.approx([m["loss"] for m in one], rel=1e-2)
