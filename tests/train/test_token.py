"""A token that is learned in training: one row of each text encoder's table of words."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_train import assert_same, metrics
from together import train_together

from mapo.cli import main
from mapo.encode.fill import encode
from mapo.encode.frame import square
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.models.token import TOKEN_FILE
from mapo.pairs import PairSet
from mapo.train.batches import Members, assemble, draws
from mapo.train.config import make_config
from mapo.train.objectives import OBJECTIVES
from mapo.train.plan.subject import open_named, open_subject
from mapo.train.run.checkpoint import ALONE
from mapo.train.sections import OptimConfig
from mapo.train.step import pair_errors
from mapo.train.train import train
from mapo.train.weights.opening import open_trained
from mapo.train.weights.token import check_captions
from mapo.train.weights.updater import AtEnd
from tiny import MAKERS, make_pairs, make_sd, make_sdxl

LORA = "weights/pytorch_lora_weights.safetensors"
PROMPTS = ["a photo of <dog> on red", "a small red circle", "<dog>"]
TOKEN = {"kind": "lora", "rank": 2, "token": "<dog>", "token_from": "star"}
NONE = {"token": None, "token_from": None}
STILL = {"lr": 1e-30, "token_lr": 1e-30}


def config_of(model, pairs, cache, objective="mapo", adapter=None, data=None, optim=None, **train_settings):
    return make_config({
        "model": str(model), "pairs": str(pairs), "cache": str(cache), "objective": {"name": objective},
        "adapter": {**TOKEN, **(adapter or {})}, "data": data or {},
        "optim": {"lr": 1e-2, "token_lr": 1e-2, **(optim or {})},
        "train": {"steps": 2, "pairs_per_step": 4, "precision": "float64", **train_settings},
    })  # fmt: skip


def run(out: Path, *args, **settings):
    train(config_of(*args, **settings), out)
    return metrics(out)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    make_pairs(folder / "pairs", 6, prompts=PROMPTS)
    return folder


@pytest.fixture(scope="module", params=["sdxl", "sd"])
def base(request, tmp_path_factory) -> Path:
    if request.param == "sdxl":
        return request.getfixturevalue("sdxl")
    return make_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def learned(base, work):
    """A run that learned the token beside LoRAs on the denoiser and the text encoders."""
    out = work / base.name
    run(out, base, work / "pairs", work / f"c-{base.name}", adapter={"text_encoders": True})
    return out


def tables(name) -> list[torch.Tensor]:
    """The tables of words of a model's text encoders."""
    encoders = open_model(find_model(str(name))).load_text_encoders("cpu").values()
    return [encoder.get_input_embeddings().weight.detach() for encoder in encoders]


def states(name, prompts) -> list[torch.Tensor]:
    found = open_model(find_model(str(name))).text_encoder("cpu")(prompts)
    return [torch.as_tensor(value) if isinstance(value, torch.Tensor) else value[0] for value in found.values()]


def rows(folder: Path) -> list[torch.Tensor]:
    """Those of the file, clip_l before clip_g."""
    found = load_file(folder / "weights" / TOKEN_FILE)
    return [found[name] for name in sorted(found, reverse=True)]


def test_one_row_is_trained_and_every_other_stays_to_the_bit(base, learned):
    tokenizer = open_model(find_model(str(base))).tokenizers()[0]
    (star,) = tokenizer("star", add_special_tokens=False).input_ids
    for before, after, row in zip(tables(base), tables(learned), rows(learned), strict=True):
        assert torch.equal(after[:-1], before) and torch.equal(after[-1], row[0])
        assert 1e-3 < (row[0] - before[star]).abs().max() < 0.1  # two steps of 1e-2 from the class word
    with safe_open(learned / "weights" / TOKEN_FILE, "pt") as file:
        assert file.metadata()["token"] == "<dog>"
        assert set(file.keys()) == ({"clip_l", "clip_g"} if "sdxl" in base.name else {"emb_params"})
    names = load_file(learned / "checkpoints" / "step-00000002" / "weights.safetensors").keys()
    trained = [name for name in names if "lora" not in name]
    assert len(trained) == len(rows(learned)) and all(name.endswith("token_embedding.row") for name in trained)


def test_its_gradient_is_the_slope_of_the_loss(base, work):
    config = config_of(base, work / "pairs", work / f"c-{base.name}")
    model, pairs = open_named(config, weights=True)
    cache = encode(model, pairs, work / f"c-{base.name}", holding="pictures alone")
    trained = open_trained(config, model, OBJECTIVES["mapo"], ALONE, None)
    members = Members(pairs, torch.arange(6).numpy())
    drawn = draws(range(6), 6, model.process, model.layout.latent(*square(cache.resolution)), seed=0)
    batch = assemble(members, drawn, cache, model, torch.float64, as_tokens=True)

    def loss() -> torch.Tensor:
        errors = pair_errors(trained.predictor(trained.network), batch, model.process)
        return (errors.chosen - 0.7 * errors.rejected).sum()

    loss().backward()
    for name, row in trained.parameters.items():
        if not name.endswith("token_embedding.row"):
            continue
        way = torch.randn(row.shape, dtype=row.dtype, generator=torch.Generator().manual_seed(1)) * 1e-4
        with torch.no_grad():
            sides = [(row.add_(step), loss())[1] for step in (way, -2 * way)]
            row.add_(way)
        assert float(sides[0] - sides[1]) / 2 == pytest.approx(float((row.grad * way).sum()), rel=1e-5)


def test_a_run_that_goes_on_is_the_uninterrupted_one_to_the_bit(sdxl, work, tmp_path):
    how = {"ema": 0.9, "precision": "float32"}
    place = (sdxl, work / "pairs", work / "c-sdxl")
    whole = run(tmp_path / "whole", *place, steps=3, **how)
    run(tmp_path / "r", *place, steps=1, **how)
    assert_same(run(tmp_path / "r", *place, steps=3, **how), whole, tolerance=0)
    for name in (LORA, f"weights/{TOKEN_FILE}", f"checkpoints/step-00000003/{TOKEN_FILE}"):
        one, two = (load_file(tmp_path / folder / name) for folder in ("r", "whole"))
        assert all(torch.equal(one[key], two[key]) for key in two)
    means = load_file(tmp_path / "r" / "checkpoints" / "step-00000003" / "ema.safetensors")
    (own,) = (value for name, value in means.items() if name.startswith("text_encoder.") and name.endswith(".row"))
    assert torch.equal(own, rows(tmp_path / "r")[0][0])  # the run has the running mean
    with pytest.raises(MapoError, match=r'adapter\.token_from was "star" and is now "red"'):
        run(tmp_path / "r", *place, steps=4, adapter={"token_from": "red"}, **how)


def test_a_run_is_its_base_but_for_prompts_with_the_token(base, work, tmp_path):
    run(tmp_path / "r", base, work / "pairs", work / f"c-{base.name}", optim={"lr": 1e-30})
    plain, given = open_model(find_model(str(base))), open_model(find_model(str(tmp_path / "r@2")))
    how = {"num_inference_steps": 1, "output_type": "latent", "width": 16, "height": 16}

    def drawn(model, prompt):
        pipeline = model.pipeline("cpu", torch.float32)
        with torch.inference_mode():
            return pipeline(prompt, generator=torch.Generator().manual_seed(0), **how)[0]

    assert torch.equal(drawn(plain, "a small red circle"), drawn(given, "a small red circle"))
    assert not torch.allclose(drawn(plain, "a photo of <dog>"), drawn(given, "a photo of <dog>"), atol=1e-4)
    began = states(base, ["a photo of star"]), states(tmp_path / "r", ["a photo of <dog>"])
    assert all((one - two).abs().max() > 0 for one, two in zip(*began, strict=True))


@pytest.mark.parametrize("with_text", [True, False])
def test_training_goes_on_from_the_token_and_the_lora_of_a_run(learned, work, tmp_path, with_text):
    """One that learns nothing more has the same weights; text encoders that are not trained keep their LoRA."""
    adapter = {"start": "continued", "rank": None, "token_from": None, "text_encoders": with_text}
    got = run(tmp_path / "r", learned, work / "pairs", tmp_path / "c", "dpo", adapter=adapter, optim=STILL, steps=1)
    assert got[0]["margin_over_reference"] == 0
    for before, after in zip(rows(learned), rows(tmp_path / "r"), strict=True):
        assert torch.equal(before, after)
    before, after = load_file(learned / LORA), load_file(tmp_path / "r" / LORA)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for one, two in zip(states(learned, PROMPTS), states(tmp_path / "r", PROMPTS), strict=True):
        assert torch.equal(one, two)


def test_a_token_stays_where_training_goes_on_without_naming_it(sdxl, work, tmp_path):
    run(tmp_path / "first", sdxl, work / "pairs", work / "c-sdxl", steps=1)
    run(tmp_path / "r", tmp_path / "first", work / "pairs", tmp_path / "c", adapter=NONE, steps=1)
    assert not (tmp_path / "r" / "weights" / TOKEN_FILE).exists()
    assert all(torch.equal(a, b) for a, b in zip(tables(tmp_path / "first"), tables(tmp_path / "r"), strict=True))
    assert find_model(str(tmp_path / "r")).revision() != find_model(str(tmp_path / "first")).revision()
    moved = {"start": "fused", "token_from": None}
    run(tmp_path / "m", tmp_path / "r", work / "pairs", tmp_path / "c", adapter=moved, steps=1)
    for one, two in zip(tables(tmp_path / "r"), tables(tmp_path / "m"), strict=True):
        assert torch.equal(one[:-1], two[:-1]) and not torch.equal(one[-1], two[-1])
    with pytest.raises(MapoError, match=r"has learned <dog> already, and a model has one such token\. Train <dog> fur"):
        run(tmp_path / "x", tmp_path / "m", work / "pairs", tmp_path / "c", adapter={"token": "<cat>"})
    (tmp_path / "first" / "weights" / TOKEN_FILE).unlink()
    with pytest.raises(MapoError, match=r"first has lost its weights/learned_embeds\.safetensors\. Put the file"):
        find_model(str(tmp_path / "first"))


def test_the_reference_reads_the_token_as_it_was_where_training_began(sdxl, work, tmp_path):
    place = (sdxl, work / "pairs", work / "c-sdxl")
    got = run(tmp_path / "r", *place, "dpo", optim={"lr": 1e-30})
    still = run(tmp_path / "s", *place, "mapo", optim=STILL)
    assert got[0]["margin_over_reference"] == 0 != got[1]["margin_over_reference"]
    for ours, theirs in zip(got, still, strict=True):
        assert ours["margin"] - ours["margin_over_reference"] == pytest.approx(theirs["margin"], rel=1e-9)
    before = run(tmp_path / "b", *place, "dpo", optim={"lr": 1e-30}, reference="before")
    assert_same(before, got)


@pytest.mark.long
def test_two_processes_learn_it_as_one(sdxl, work, tmp_path):
    place = (sdxl, work / "pairs", work / "c-sdxl")
    ways = {"whole": {}, "parts": {"shard": "fsdp2"}}
    jobs = [(config_of(*place, **how).model_dump(exclude_none=True), tmp_path / name) for name, how in ways.items()]
    train_together(tmp_path, jobs)
    wanted = run(tmp_path / "one", *place)
    for way in ways:
        assert_same(metrics(tmp_path / way), wanted, tolerance=1e-6)
        for one, two in zip(rows(tmp_path / way), rows(tmp_path / "one"), strict=True):
            assert torch.allclose(one, two, atol=1e-7)


def test_the_pooled_state_is_taken_at_the_end_where_files_name_another(work, tmp_path):
    """As the files of SDXL do: the end is then where the highest number of a prompt is, and the token's is higher."""
    right = make_sdxl(tmp_path / "right")
    wrong = make_sdxl(tmp_path / "wrong", text={"eos_token_id": 2})
    for base in (right, wrong):
        run(tmp_path / f"r-{base.name}", base, work / "pairs", tmp_path / f"c-{base.name}", steps=1)
    for prompts in (["a photo of <dog> on red"], ["a small red circle"]):
        one, two = (states(tmp_path / f"r-{base.name}", prompts) for base in (right, wrong))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_long_prompts_are_read_in_chunks_with_it(learned, tmp_path):
    model = open_model(find_model(str(learned), long_prompts="chunk"))
    tokens = model.tokens(["red " * 40 + "<dog>", "<dog>"])
    number = len(open_model(find_model(str(learned))).tokenizers()[0]) - 1
    assert tokens[0]["tokens"].shape[0] > 1 and int((tokens[0]["tokens"] == number).sum()) == 1
    assert tokens[1]["tokens"][0, 1] == number


def test_it_has_a_rate_of_its_own_and_does_not_decay():
    weights = {name: torch.nn.Parameter(torch.ones(3)) for name in ("unet", "token_embedding.row")}
    config = OptimConfig(lr=0.1, token_lr=0.02, weight_decay=0.5)
    updater = AtEnd(weights, config, 10, of_token=("token_embedding.row",))
    updater.begin(0)
    updater.backward(sum(p.sum() for p in weights.values()))
    updater.end(torch.tensor(True))
    moved = {name: float((1 - p.detach()).mean()) for name, p in weights.items()}
    assert moved == {"unet": pytest.approx(0.15, rel=1e-4), "token_embedding.row": pytest.approx(0.02, rel=1e-4)}


def test_the_plan_counts_it(sdxl, work):
    place = (sdxl, work / "pairs", work / "c-sdxl")
    with_it, without = (config_of(*place, adapter=adapter) for adapter in ({}, {"token": None}))
    trained = [open_subject(one, "cpu").needs(one)[2] for one in (with_it, without)]
    assert trained[0] - trained[1] == 16 + 24


def test_what_is_not_in_the_vocabulary_is_read_as_several_tokens_of_which_the_mean_is_taken(
    sdxl, work, tmp_path, heard
):
    config = config_of(sdxl, work / "pairs", tmp_path / "c", adapter={"token_from": "small red"})
    model, pairs = open_named(config, weights=True)
    said = check_captions(config.adapter, model, pairs, torch.arange(6).numpy())
    assert said == [
        "<dog> stands in the captions of 4 of 6 pairs.",
        "'small red' is 2 tokens to the model; <dog> begins at their mean.",
    ]
    tokens = model.tokenizers()[0]("small red", add_special_tokens=False).input_ids
    for before, encoder in zip(tables(sdxl), model.load_text_encoders("cpu").values(), strict=True):
        assert torch.equal(encoder.get_input_embeddings().weight[-1].detach(), before[tokens].mean(0))


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"token": "red"}, r"adapter\.token: red is a word that the model's tokenizer has already\. Take another, such as"),
        ({"token": "triang"}, r"adapter\.token: triang is a (part of the|word that).*Take another, such as <my-dog>"),
        ({"token": "my dog"}, r"adapter\.token 'my dog': a token has no spaces and is not empty"),
        ({"token": ""}, r"adapter\.token '': a token has no spaces"),
        ({"token_from": "zebra"}, r"adapter\.token_from: the model's tokenizer does not know the word 'zebra'"),
        ({"token_from": None}, r"nothing says where <dog> begins\. Name a word of its kind, such as --set adapter\.token_f"),
        ({"token": "<cat>"}, r"no caption that is trained on in .* has <cat> in it"),
        ({"kind": "full", "rank": None}, r"token is trained beside a LoRA \(adapter\.kind = 'lora'\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(sdxl, work, tmp_path, adapter, words):
    with pytest.raises(MapoError, match=words):
        run(tmp_path / "r", sdxl, work / "pairs", tmp_path / "c", adapter=adapter)
    assert not (tmp_path / "r").exists() and not (tmp_path / "c").exists()


def test_other_families_refuse_it(work, tmp_path):
    folder = MAKERS["StableDiffusion3Pipeline"](tmp_path / "m")
    with pytest.raises(
        MapoError, match=r"adapter\.token: .* is a StableDiffusion3Pipeline; only the text encoders of SD"
    ):
        run(tmp_path / "r", folder, work / "pairs", tmp_path / "c", precision="float32")


def test_the_commands_refuse_with_exit_code_2(sdxl, work, tmp_path, capsys, monkeypatch):
    named = ["--model", str(sdxl), "--pairs", str(work / "pairs"), "--adapter", "lora"]
    settings = [w for s in ("adapter.token=<cat>", "adapter.token_from=star") for w in ("--set", s)]
    for verb in (["train", "--out", str(tmp_path / "r")], ["plan"]):
        monkeypatch.setattr("sys.argv", ["mapo", *verb, *named, *settings])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2 and "has <cat> in it" in capsys.readouterr().err


def test_settings_of_older_runs_know_no_token(sdxl, work, tmp_path):
    run(tmp_path / "r", sdxl, work / "pairs", work / "c-sdxl", adapter=NONE, optim={"token_lr": 5e-4}, steps=1)
    text = (tmp_path / "r" / "config.toml").read_text()
    assert "token_lr" in text
    (tmp_path / "r" / "config.toml").write_text("".join(x for x in text.splitlines(True) if "token_lr" not in x))
    again = run(tmp_path / "r", sdxl, work / "pairs", work / "c-sdxl", adapter=NONE, optim={"token_lr": 5e-4})
    assert len(again) == 2 and "token" not in json.loads((tmp_path / "r" / "run.json").read_text())


def test_check_and_the_cache_read_it(learned, work, tmp_path):
    pairs = PairSet(work / "pairs")
    model = open_model(find_model(str(learned)))
    cache = encode(model, pairs, tmp_path / "cache")
    wanted = model.text_encoder("cpu")(["<dog>"])
    for name, value in cache.text("<dog>").items():
        assert torch.allclose(value, wanted[name][0], atol=1e-6)
