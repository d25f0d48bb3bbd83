"""Prompts that are longer than the text encoders read, in chunks; and pairs that are seen without their prompt."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

from mapo.cli import cli
from mapo.encode.cache import Cache, cache_key
from mapo.encode.fill import encode
from mapo.encode.seen import chunks_needed, excess_tokens, view_of, with_chunks
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.sample.sample import Sampler, default_sampling
from mapo.train.batches import assemble, draws
from tiny import MAKERS, make_pairs, make_sd

SHORT, LONG, LONGEST = "a small red circle", "a red circle " * 14, "a small red circle " * 20
READ = 32  # tokens of the small models, of which two are begin and end


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    return make_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module", params=["sdxl", "sd"])
def folder(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def long_pairs(tmp_path_factory) -> Path:
    """Eight pairs whose prompts are one, two and three chunks long."""
    prompts = [f"{text} {k}" for k, text in enumerate((SHORT, LONG, LONGEST, SHORT) * 2)]
    return make_pairs(tmp_path_factory.mktemp("sets") / "long", 8, prompts=prompts)


def opened(folder, long_prompts="chunk"):
    return open_model(find_model(str(folder), long_prompts=long_prompts))


def mapo(*words, exit_code=0):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == exit_code, (done.output, done.exception)
    return done


# ------------------------------------------------------------------ what a long prompt becomes


def by_hand(model, prompt, chunks):
    """States and pooled output of a prompt, chunk by chunk, each as a text of its own."""
    states, pooled = [], None
    for tokenizer, encoder in zip(model.tokenizers(), model.load_text_encoders("cpu").values(), strict=True):
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        rows = []
        for k in range(chunks):
            own = ids[k * (READ - 2) : (k + 1) * (READ - 2)]
            row = [tokenizer.bos_token_id, *own, tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (READ - len(row)))
        with torch.no_grad():
            outputs = [encoder(torch.tensor([row]), output_hidden_states=True) for row in rows]
        own_states = [o.hidden_states[-2] if len(model.text_encoders) > 1 else o[0] for o in outputs]
        states.append(torch.cat(own_states, 1)[0])
        pooled = outputs[0][0][0]
    return torch.cat(states, -1), pooled


def test_a_long_prompt_is_its_chunks_behind_each_other_with_the_first_ones_pooled_output(folder):
    model = opened(folder)
    found = model.text_encoder("cpu")([LONG, LONGEST])
    for place, (prompt, chunks) in enumerate(((LONG, 2), (LONGEST, 3))):
        states, pooled = by_hand(model, prompt, chunks)
        assert found["prompt_embeds"][place].shape == states.shape
        assert torch.allclose(found["prompt_embeds"][place], states, atol=1e-6)
        if "text_embeds" in found:
            assert torch.allclose(found["text_embeds"][place], pooled, atol=1e-6)


def test_a_prompt_that_fits_is_what_it_is_where_long_ones_are_cut_to_the_bit(folder):
    prompts = [SHORT, LONG, "", LONGEST]
    cut, chunked = (opened(folder, how).text_encoder("cpu")(prompts) for how in ("cut", "chunk"))
    for name, values in cut.items():
        for place, value in enumerate(values):
            whole = chunked[name][place]
            assert torch.equal(whole[: len(value)], value)  # of a long one the first chunk
            assert len(whole) == len(value) or place in (1, 3)


def test_exactly_as_many_tokens_as_fit_are_one_chunk_and_one_more_are_two(folder):
    model = opened(folder)
    words = ["red " * n for n in (READ - 2, READ - 1, 2 * READ - 4, 2 * READ - 3)]
    assert [len(tokens["tokens"]) for tokens in model.tokens(words)] == [1, 2, 2, 3]
    view = view_of(model)
    assert [chunks_needed(view, pa.array([word])) for word in words] == [1, 2, 2, 3]
    odd = [LONG, "ünïcode 雪, " * 30, "", "a\nb\tc" * 40, "<|endoftext|> red " * 20]
    for prompt, tokens in zip(odd, model.tokens(odd), strict=True):
        assert chunks_needed(view, pa.array([prompt])) == len(tokens["tokens"])
    assert not excess_tokens(view, odd).any() and excess_tokens(view_of(opened(folder, "cut")), odd)[0] > 0


@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "FluxPipeline", "ZImagePipeline"])
def test_other_families_refuse_chunks_in_a_sentence(kind, tmp_path):
    folder = MAKERS[kind](tmp_path / "m")
    with pytest.raises(MapoError, match=f"is a {kind}; only Stable Diffusion 1 and 2 and SDXL read long prompts in"):
        opened(folder)


def test_another_word_is_refused(sd):
    with pytest.raises(MapoError, match="--long-prompts 'chunks' is not known. Did you mean 'chunk'"):
        opened(sd, "chunks")


# ------------------------------------------------------------------ training


def test_a_pair_is_told_the_same_whatever_else_is_in_its_batch(folder, long_pairs, tmp_path):
    pairs = PairSet(long_pairs)
    model = with_chunks(opened(folder), pairs)
    assert model.files.chunks == 3
    cache = encode(model, pairs, tmp_path / "cache")
    assert "" not in pairs.table["prompt"].to_pylist() and len(cache.text("")["prompt_embeds"]) == READ
    lengths = {len(cache.text(pair.prompt)["prompt_embeds"]) for pair in pairs}
    assert lengths == {READ, 2 * READ, 3 * READ}  # nothing is kept twice

    def batch(positions):
        return assemble(pairs, draws(positions, 8, model.process, (4, 8, 8), seed=0), cache, model)

    whole, alone = batch(range(8)), [batch([k]) for k in range(8)]
    assert whole.cond["prompt_embeds"].shape[:2] == (8, 3 * READ)
    for name in ("prompt_embeds", "text_embeds"):
        if name in whole.cond:
            assert torch.equal(whole.cond[name][:8], torch.cat([one.cond[name][:1] for one in alone]))
    empty = opened(folder, "cut").text_encoder("cpu")([""])["prompt_embeds"][0]
    first = next(
        k for k, one in enumerate(alone) if len(cache.text(pairs[draws_row(model, k)].prompt)["prompt_embeds"]) == READ
    )
    tail = whole.cond["prompt_embeds"][first][READ:]
    assert torch.allclose(tail, torch.cat([empty, empty]), atol=1e-6)


def draws_row(model, position):
    return draws([position], 8, model.process, (4, 8, 8), seed=0)[0].row


@pytest.fixture(scope="module")
def trained(sdxl, long_pairs, tmp_path_factory):
    """Runs of a LoRA in portions of four and of one pair, with prompts in chunks and some left out."""
    work = tmp_path_factory.mktemp("trained")
    for name, more in (("whole", []), ("portions", ["--set", "train.pairs_per_device=1"])):
        mapo(
            "train", "--model", sdxl, "--pairs", long_pairs, "--cache", work / "cache", "--out", work / name,
            "--adapter", "lora", "--long-prompts", "chunk", "--set", "train.steps=3", "--set", "train.pairs_per_step=4",
            "--set", "data.caption_dropout=0.3", "--set", "train.precision=float64", "--set", "optim.lr=1e-2", *more,
        )  # fmt: skip
    return work


def test_portions_of_one_pair_train_as_the_whole_step_does(trained):
    one, two = ([json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
                for name in ("whole", "portions"))  # fmt: skip
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "error_chosen", "error_rejected", "margin", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-9, abs=1e-12)


def test_a_run_keeps_how_it_reads_prompts_in_every_later_verb(trained, sdxl, long_pairs):
    run = trained / "whole"
    about = json.loads((run / "run.json").read_text())
    assert (about["long_prompts"], about["chunks"]) == ("chunk", 3)
    found = find_model(str(run))
    assert (found.long_prompts, found.chunks) == ("chunk", 3)
    said = find_model(str(run), long_prompts="cut")
    assert (said.long_prompts, said.chunks) == ("cut", 1)
    plain = mapo("check", long_pairs, "--model", sdxl, "--out", trained / "check.html", exit_code=0).output
    chunked = mapo("check", long_pairs, "--model", run, "--out", trained / "check.html", exit_code=0).output
    assert "Prompts longer than the 32 tokens" in plain and "longer than" not in chunked


def test_the_mismatch_of_long_prompts_is_measured_with_their_chunks(sd, long_pairs, tmp_path):
    words = ["--num-pairs", 3, "--encoder", "none", "--steps", 1, "--seeds", "5"]
    errors = {}
    for how in ("cut", "chunk"):
        mapo("mismatch", "--model", sd, "--pairs", long_pairs, "--long-prompts", how, *words, "--out", tmp_path / how)
        errors[how] = json.loads((tmp_path / how).read_text())["errors"]["chosen"]["error"]["value"]
    assert 0 < errors["cut"] != errors["chunk"] > 0


def test_a_cache_of_prompts_that_were_cut_is_refused(trained, sdxl, long_pairs):
    key = json.loads((trained / "cache" / "cache.json").read_text())["key"]
    assert key["long_prompts"] == "chunk" and "long_prompts" not in cache_key(opened(sdxl, "cut")).as_json()
    again = mapo("encode", "--model", sdxl, "--pairs", long_pairs, "--out", trained / "cache", exit_code=1)
    assert "was encoded with long_prompts chunk, this run asks for cut" in str(again.exception)


def test_a_run_that_stands_on_one_with_chunks_may_cut_again(trained, sdxl, long_pairs, tmp_path):
    shutil.copytree(trained / "whole", tmp_path / "below")
    about = json.loads((tmp_path / "below" / "run.json").read_text())
    (tmp_path / "above").mkdir()
    shutil.copytree(trained / "whole" / "weights", tmp_path / "above" / "weights")
    above = {
        **about,
        "base": str(tmp_path / "below"),
        "base_revision": None,
        "base_from_here": None,
        "long_prompts": "cut",
    }
    (tmp_path / "above" / "run.json").write_text(json.dumps(above))
    assert find_model(str(tmp_path / "above")).long_prompts == "cut"


# ------------------------------------------------------------------ sampling


def watched(sampler):
    """What the UNet is told of prompts, from now on."""
    seen = []
    sampler.pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("encoder_hidden_states", args[2:3])), with_kwargs=True
    )
    return seen


def test_pictures_are_made_with_as_many_chunks_as_the_run_was_trained_with(trained):
    sampler = Sampler(str(trained / "whole"))
    seen, how = watched(sampler), default_sampling(sampler.model, steps=1, guidance=2.0)
    sampler.batch([(SHORT, 0), (LONGEST * 2, 0)], how)
    assert [tuple(tensor.shape[:2]) for tensor in seen] == [(2, 3 * READ), (2, 6 * READ)]
    states = opened(trained / "whole").text_encoder("cpu")([SHORT, ""])["prompt_embeds"]
    negative, positive = seen[0]
    assert torch.allclose(positive, torch.cat([states[0], states[1], states[1]]), atol=1e-6)
    assert not negative.any()  # this model's pipeline has zeros where there is no negative prompt
    seen.clear()
    sampler.batch([(SHORT, 0)], default_sampling(sampler.model, steps=1, guidance=2.0, negative_prompt=SHORT))
    assert torch.equal(*seen[0])


def test_a_negative_prompt_may_be_the_longer_one(sd):
    sampler = Sampler(str(sd), long_prompts="chunk")
    seen = watched(sampler)
    sampler.batch([(SHORT, 0)], default_sampling(sampler.model, steps=1, guidance=2.0, negative_prompt=LONGEST))
    (both,) = {tuple(tensor.shape[:2]) for tensor in seen}
    assert both == (2, 3 * READ)


def test_pictures_of_short_prompts_are_those_of_prompts_that_are_cut_and_do_not_depend_on_others(folder):
    made = {}
    for how in ("cut", "chunk"):
        sampler = Sampler(str(folder), long_prompts=how)
        asked = default_sampling(sampler.model, steps=2, guidance=2.0)
        made[how] = [picture.tobytes() for picture in sampler.batch([(SHORT, 0), (SHORT, 1)], asked)]
        mixed = [picture.tobytes() for picture in sampler.batch([(SHORT, 0), (LONG, 0), (SHORT, 1)], asked)]
        if how == "chunk":
            assert [mixed[0], mixed[2]] == made[how]
            long = mixed[1]
        else:
            cut = mixed[1]
    assert made["cut"] == made["chunk"] and long != cut


# ------------------------------------------------------------------ caption dropout


def test_nothing_else_is_drawn_otherwise_where_prompts_are_left_out(sdxl):
    process = opened(sdxl, "cut").process
    plain, some, all_of_them = (
        draws(range(2000), 50, process, (1, 2, 2), seed=3, caption_dropout=share) for share in (0.0, 0.1, 1.0)
    )
    assert not any(d.without_prompt for d in plain) and all(d.without_prompt for d in all_of_them)
    assert 150 < sum(d.without_prompt for d in some) < 250
    for a, b in zip(plain, some, strict=True):
        assert a.row == b.row and torch.equal(a.time, b.time) and torch.equal(a.noise, b.noise)
        assert all(torch.equal(x, y) for x, y in zip(a.samples, b.samples, strict=True))
    alone = draws([1234], 50, process, (1, 2, 2), seed=3, caption_dropout=0.1)
    assert alone[0].without_prompt == some[1234].without_prompt
    others = draws(range(2000), 50, process, (1, 2, 2), seed=4, caption_dropout=0.1)
    assert [d.without_prompt for d in others] != [d.without_prompt for d in some]


@pytest.mark.parametrize("zeros", [True, False])
def test_both_pictures_are_without_their_prompt_as_the_pipeline_is_in_guidance(any_model, zeros, tmp_path):
    index = json.loads((any_model / "model_index.json").read_text())
    if "XL" not in index["_class_name"] and zeros:
        pytest.skip("no other pipeline knows of zeros")
    shutil.copytree(any_model, tmp_path / "m")
    index["force_zeros_for_empty_prompt"] = zeros
    (tmp_path / "m" / "model_index.json").write_text(json.dumps(index))
    model, opened_pairs = opened(tmp_path / "m", "cut"), PairSet(make_pairs(tmp_path / "pairs", 3))
    cache = encode(model, opened_pairs, tmp_path / "cache", holding="and the empty prompt")
    model.zero_without_prompt  # noqa: B018 (asked for each pair without its prompt, read once)
    (tmp_path / "m" / "model_index.json").rename(tmp_path / "index.json")
    drawn = draws(range(3), 3, model.process, (4, 8, 8), seed=0, caption_dropout=1.0)
    cond = assemble(opened_pairs, drawn, cache, model).told("both")
    (tmp_path / "index.json").rename(tmp_path / "m" / "model_index.json")
    pipeline = model.pipeline("cpu", torch.float32)
    given = {"prompt": "a red circle", "device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    known = pipeline.encode_prompt.__code__.co_varnames
    given |= {name: given["prompt"] for name in ("prompt_2", "prompt_3") if name in known}
    if index["_class_name"] == "FluxPipeline":  # which has no negative prompt by itself: it is the empty one
        given |= {"prompt": "", "prompt_2": ""}
    with torch.no_grad():
        found = pipeline.encode_prompt(**{name: value for name, value in given.items() if name in known})
    states, pooled = (found[0], found[1]) if "Flux" in index["_class_name"] else (found[1], found[-1])
    wanted = states[0]
    assert len(cond["prompt_embeds"]) == 6
    for row in cond["prompt_embeds"]:
        assert torch.allclose(row[: len(wanted)], wanted, atol=1e-6)
    if "text_embeds" in cond:
        assert torch.allclose(cond["text_embeds"], pooled.expand(6, -1), atol=1e-6)


def test_a_cache_without_the_empty_prompt_is_given_it_and_nothing_else_is_encoded(sdxl, pairs, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    model = opened(sdxl, "cut")
    before = {path.name for path in (tmp_path / "cache").glob("*-*.safetensors")}
    with pytest.raises(MapoError, match="lacks the prompt ''"):
        Cache(tmp_path / "cache", cache_key(model)).text("")
    with_it = encode(model, PairSet(pairs), tmp_path / "cache", holding="and the empty prompt")
    added = {path.name for path in (tmp_path / "cache").glob("*-*.safetensors")} - before
    assert len(added) == 1 and added.pop().startswith("text-") and with_it.text("")
    touched = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*-*")}
    encode(model, PairSet(pairs), tmp_path / "cache", holding="and the empty prompt")
    assert touched == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*-*")}
