"""A LoRA beside the text encoders too: prompts are encoded in every step, from their tokens."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import assert_same, metrics

from apart import ended, started
from mapo.encode.fill import encode
from mapo.encode.seen import with_chunks
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.train.batches import assemble, draws
from mapo.train.config import make_config
from mapo.train.sections import OptimConfig
from mapo.train.train import train
from mapo.train.weights.opening import WithText
from mapo.train.weights.updater import AtEnd
from tiny import MAKERS, make_pairs, make_sd

FILE = "weights/pytorch_lora_weights.safetensors"
PROMPTS = ["a small red circle", "red", "a red circle " * 14]
SETTINGS = {"kind": "lora", "rank": 4, "text_encoders": True}


def run(out: Path, model, pairs, cache, objective="mapo", adapter=None, data=None, optim=None, **train_settings):
    values = {
        "model": str(model), "pairs": str(pairs), "cache": str(cache), "objective": {"name": objective},
        "adapter": {**SETTINGS, **(adapter or {})}, "data": data or {}, "optim": {"lr": 1e-2, **(optim or {})},
        "train": {"steps": 3, "pairs_per_step": 4, "precision": "float64", **train_settings},
    }  # fmt: skip
    train(make_config(values), out)
    return metrics(out)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    make_pairs(folder / "pairs", 8, prompts=[f"{prompt} {k}" for k, prompt in enumerate([*PROMPTS, PROMPTS[0]] * 2)])
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    return make_sd(tmp_path_factory.mktemp("models") / "sd")


DROPOUT = {"caption_dropout": 0.3, "long_prompts": "chunk"}


@pytest.fixture(scope="module", params=["sdxl", "sd"])
def whole(request, work):
    """A model, and its run of whole steps; some pairs are without their prompt, which for SDXL here means zeros."""
    model = request.getfixturevalue(request.param)
    return model, work / request.param, run(work / request.param, model, work / "pairs", work / f"c-{request.param}",
                                            data=DROPOUT)  # fmt: skip


def again(whole, work, out, **changes):
    model, folder, _ = whole
    return run(out, model, work / "pairs", work / f"c-{folder.name}", **{"data": DROPOUT, **changes})


@pytest.mark.long
def test_portions_checkpointed_activations_and_a_run_that_goes_on_are_the_same_training(whole, work, tmp_path):
    assert_same(again(whole, work, tmp_path / "portions", pairs_per_device=1), whole[2])
    assert_same(again(whole, work, tmp_path / "checkpointed", gradient_checkpointing=True), whole[2])
    assert_same(again(whole, work, tmp_path / "goes-on", steps=2), whole[2][:2])
    assert_same(again(whole, work, tmp_path / "goes-on"), whole[2])


@pytest.mark.long
def test_two_processes_train_as_one(whole, work, tmp_path):
    model, folder, wanted = whole
    if folder.name != "sdxl":
        pytest.skip("one family is enough")
    words = ["-m", "mapo", "train", "--model", model, "--pairs", work / "pairs", "--cache", work / "c-sdxl", "--out",
             tmp_path / "r", "--adapter", "lora", "--text-encoders", "--long-prompts", "chunk"]  # fmt: skip
    settings = ("adapter.rank=4", "optim.lr=1e-2", "train.steps=3", "train.pairs_per_step=4", "train.precision=float64",
                "data.caption_dropout=0.3")  # fmt: skip
    found = ended(started([*map(str, words), *(w for s in settings for w in ("--set", s))], 2))
    assert [code for code, _, _ in found] == [0, 0], found
    assert_same(metrics(tmp_path / "r"), wanted, tolerance=1e-6)


def test_tokens_in_the_step_become_what_the_cache_would_have_held(whole, work, tmp_path):
    base, folder, _ = whole
    assert not list((work / f"c-{folder.name}").glob("text-*"))  # pictures alone
    pairs = PairSet(work / "pairs")
    model = with_chunks(open_model(find_model(str(base), long_prompts="chunk")), pairs)
    cache = encode(model, pairs, tmp_path / "cache", holding="and the empty prompt")
    drawn = draws(range(8), 8, model.process, (4, 8, 8), seed=0, caption_dropout=0.4)
    assert 0 < sum(draw.without_prompt for draw in drawn) < 8
    wanted, given = (assemble(pairs, drawn, cache, model, as_tokens=tokens).told("both") for tokens in (False, True))
    with torch.no_grad():
        found = WithText(model, torch.nn.Identity(), model.load_text_encoders("cpu")).told(given, 16)
    assert found.keys() == wanted.keys() and given["tokens"].shape == (8, 2, 32)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, atol=1e-6), name


def states(encoders_of, model):
    with torch.no_grad():
        return model.encode_prompts(encoders_of, model.tokens(PROMPTS))


def test_the_file_opens_in_the_plain_pipeline_and_is_what_every_later_verb_reads(whole):
    base, folder, _ = whole
    model, plain = open_model(find_model(str(folder))), open_model(find_model(str(base), long_prompts="chunk"))
    names = load_file(folder / FILE).keys()
    parts = {name.split(".")[0] for name in names}
    assert parts == {"unet", *plain.text_encoders}
    if "text_encoder_2" in parts:  # nothing is read of the last layer of the first encoder
        layers = {
            part: {n.split("layers.")[1][0] for n in names if n.startswith(f"{part}.")} for part in parts - {"unet"}
        }
        assert layers == {"text_encoder": {"0"}, "text_encoder_2": {"0", "1"}}
    pipeline = plain.pipeline("cpu", torch.float32)
    pipeline.load_lora_weights(folder / "weights")
    theirs = states([getattr(pipeline, part) for part in plain.text_encoders], plain)
    ours = model.text_encoder("cpu")(PROMPTS)
    sampled = model.pipeline("cpu", torch.float32)
    drawn = states([getattr(sampled, part) for part in plain.text_encoders], model)
    before = plain.text_encoder("cpu")(PROMPTS)
    for name, values in ours.items():
        for mine, one, two, old in zip(values, theirs[name], drawn[name], before[name], strict=True):
            assert torch.allclose(mine, one, atol=1e-5) and torch.allclose(mine, two, atol=1e-6)
            assert not torch.allclose(mine, old, atol=1e-3)


def test_alpha_scales_the_text_encoders_too_and_a_run_that_stands_on_it_keeps_them(work, sd, tmp_path):
    adapter = {"alpha": 1.0, "rank": 2}
    run(tmp_path / "a", sd, work / "pairs", work / "c-sd", adapter=adapter, steps=2, data=DROPOUT)
    first = open_model(find_model(str(tmp_path / "a")))
    pipeline = open_model(find_model(str(sd))).pipeline("cpu", torch.float32)
    pipeline.load_lora_weights(tmp_path / "a" / "weights")
    wanted = states([pipeline.text_encoder], first)["prompt_embeds"][0]
    assert torch.allclose(first.text_encoder("cpu")(PROMPTS)["prompt_embeds"][0], wanted, atol=1e-5)
    for start in ("fused", "frozen", "continued"):
        changes = {"start": start, "rank": None} if start == "continued" else {**adapter, "start": start}
        got = run(tmp_path / start, tmp_path / "a", work / "pairs", tmp_path / "cache", "dpo", adapter=changes, steps=1)
        assert got[0]["margin_over_reference"] == pytest.approx(0, abs=1e-9)
        found = load_file(tmp_path / start / FILE)
        rank = len(next(value for name, value in found.items() if name.startswith("text_encoder") and "_A." in name))
        assert rank == (2 if start == "continued" else 4)
        states_after = open_model(find_model(str(tmp_path / start))).text_encoder("cpu")(PROMPTS)["prompt_embeds"][0]
        assert 1e-4 < (states_after - wanted).abs().max() < 1


def test_the_reference_reads_prompts_with_the_encoders_as_they_were(work, sdxl, tmp_path):
    got = run(tmp_path / "r", sdxl, work / "pairs", work / "c-dpo", "dpo", optim={"text_lr": 1e-2})
    plain = run(tmp_path / "p", sdxl, work / "pairs", work / "c-dpo", "mapo", adapter={"text_encoders": False}, steps=3,
                optim={"lr": 1e-30})  # fmt: skip
    assert got[0]["margin_over_reference"] == pytest.approx(0, abs=1e-12)
    assert got[0]["loss"] == pytest.approx(math.log(2)) and got[2]["margin_over_reference"] != 0
    for ours, still in zip(got, plain, strict=True):  # the reference has the margins of a model that stands still
        assert ours["margin"] - ours["margin_over_reference"] == pytest.approx(still["margin"], rel=1e-5, abs=1e-8)


def test_text_encoders_have_a_rate_of_their_own():
    weights = {name: torch.nn.Parameter(torch.ones(3)) for name in ("unet", "text_encoder.q")}
    for text_lr, share in ((None, 0.1), (5e-2, 0.5), (0.2, 2.0)):
        updater = AtEnd(weights, OptimConfig(lr=0.1, text_lr=text_lr, weight_decay=0), 10, of_text=("text_encoder.q",))
        before = {name: p.detach().clone() for name, p in weights.items()}
        updater.begin(0)
        updater.backward(sum(p.sum() for p in weights.values()))
        updater.end(torch.tensor(True))
        moved = {name: float((before[name] - p.detach()).mean()) for name, p in weights.items()}
        assert moved["unet"] == pytest.approx(0.1, rel=1e-4) and updater.rate == 0.1
        assert moved["text_encoder.q"] == pytest.approx(0.1 * share, rel=1e-4)


@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "FluxPipeline", "ZImagePipeline"])
def test_other_families_refuse_it_in_a_sentence(kind, work, tmp_path):
    folder = MAKERS[kind](tmp_path / "m")
    with pytest.raises(MapoError, match=f"is a {kind}; only the text encoders of SDXL and Stable Diffusion 1 and 2"):
        run(tmp_path / "r", folder, work / "pairs", tmp_path / "cache", precision="float32")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "r").exists()


def test_with_all_weights_it_is_refused(work, sd, tmp_path):
    with pytest.raises(MapoError, match="text_encoders is for a LoRA"):
        run(tmp_path / "r", sd, work / "pairs", tmp_path / "cache", adapter={"kind": "full"})


def test_layers_that_clip_skip_leaves_out_are_not_trained(work, sd, tmp_path):
    run(tmp_path / "r", sd, work / "pairs", tmp_path / "cache", data={"clip_skip": 1}, steps=1)
    names = [name for name in load_file(tmp_path / "r" / FILE) if name.startswith("text_encoder.")]
    assert {name.split("layers.")[1][0] for name in names} == {"0", "1"}
    assert json.loads((tmp_path / "r" / "run.json").read_text())["clip_skip"] == 1
    model = open_model(find_model(str(tmp_path / "r")))
    plain = open_model(find_model(str(sd), clip_skip=1))
    ours, before = (m.text_encoder("cpu")(PROMPTS)["prompt_embeds"] for m in (model, plain))
    assert not torch.allclose(ours, before, atol=1e-4)
    drawn_with = model.pipeline("cpu", torch.float32).text_encoder  # pictures are drawn without them too
    assert torch.equal(states([drawn_with], model)["prompt_embeds"], ours)
