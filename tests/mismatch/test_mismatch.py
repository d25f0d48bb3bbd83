"""Mismatch, on the built-in model and on small models of SDXL's classes."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from mismatch_sets import COUNT, STEPS, write_pairs
from PIL import Image

from data_fixtures import encoded as encoded_png
from data_fixtures import noise
from mapo.build.build import build
from mapo.build.recipe import read_recipe
from mapo.cli import cli
from mapo.encode.cache import cache_key
from mapo.encode.seen import frames_of
from mapo.errors import MapoError
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import draw as draw_scene
from mapo.mismatch.denoising import Encoded, denoise, draw, encode
from mapo.mismatch.distance import compare_embeddings, default_encoder, embed, load_encoder
from mapo.mismatch.material import choose_pairs, frames_of_pairs, gather, own_samples
from mapo.mismatch.mismatch import measure
from mapo.mismatch.words import sentences, table
from mapo.models import find_model, open_model
from mapo.pairs.pairs import PairSet, make_pair
from mapo.sample.folder import png_bytes, read_images
from mapo.sample.sample import default_sampling, sample
from mapo.score.scorers import load_scorer
from tiny import chosen_alone, make_pairs, make_sd, make_sdxl


@pytest.fixture(scope="module")
def material(sdxl, pairs, tmp_path_factory):
    """A small model's own samples beside a set of noise pictures, encoded."""
    opened, folder = PairSet(pairs), tmp_path_factory.mktemp("own") / "images"
    members, _ = choose_pairs(opened, "train", 7, 0)
    rows = own_samples(str(sdxl), members, [3, 4], folder, default_sampling(find_model(str(sdxl)), steps=2))
    return opened, gather(opened, members, folder, rows, 16)


def encoded(folder, opened, material, images_per_batch=4):
    model = open_model(find_model(str(folder)))
    return encode(model, opened, cache_key(model), material, images_per_batch)


def errors_of(folder, known, material, draws=4, images_per_batch=8, precision="float32", seed=0):
    return denoise(open_model(find_model(str(folder))), known, material, seed, draws, precision, images_per_batch)


# ------------------------------------------------------------------ what is measured


def test_own_samples_as_chosen_have_no_mismatch_at_all(style_set, tmp_path):
    prompts = [pair.prompt for pair in PairSet(style_set)][:20]
    for seed in (5, 6):
        sample("mini", prompts, [seed], tmp_path / str(seed), steps=STEPS)
    chosen, rejected = ({r.prompt: (tmp_path / f"{s}" / r.file).read_bytes() for r in read_images(tmp_path / f"{s}")}
                        for s in (5, 6))  # fmt: skip
    folder = write_pairs(tmp_path / "set", [(p, chosen[p], rejected[p]) for p in prompts])
    found = measure("mini", folder, tmp_path / "5", seeds=[5], steps=STEPS, draws=4)
    assert found.errors.chosen.gap.value == found.errors.chosen.relative.value == found.distances.chosen.value == 0
    assert all(b.chosen.gap.value == 0 for b in found.bins)
    assert found.errors.own == found.errors.chosen.error and found.errors.own.value > 0
    assert found.distances.rejected.value > 0 and found.errors.rejected.gap.value != 0
    assert found.distances.floor is None
    assert any("20 pictures of the set are the own samples" in note for note in found.notes)
    says = "\n".join(sentences(found, []))
    assert "one seed gives no yardstick" in says and "chosen pictures cannot be told from" in says


def test_a_style_that_the_model_does_not_draw_is_further_than_its_own_drawings(style):
    found, _ = style
    assert found.conclusive and found.built_in and found.distances.encoder == "mini-learned"
    assert found.distances.excess.conclusive and found.distances.excess.value > 0
    assert found.distances.chosen.value > found.distances.rejected.value
    assert found.errors.chosen.relative.conclusive and found.errors.chosen.relative.value > 0.5
    assert found.errors.chosen.gap.value > found.errors.rejected.gap.value
    assert found.errors.margin.conclusive and found.errors.margin.value < 0
    assert all(b.chosen.relative.low > 0 for b in found.bins)
    assert found.notes == ()


def test_intervals_gaps_and_bins_fit_together(style):
    found, _ = style
    whole = found.errors
    assert whole.chosen.gap.value == pytest.approx(whole.chosen.error.value - whole.own.value, rel=1e-9)
    assert whole.chosen.relative.value == pytest.approx(whole.chosen.gap.value / whole.own.value, rel=1e-9)
    assert whole.margin.value == pytest.approx(whole.rejected.error.value - whole.chosen.error.value, rel=1e-9)
    assert found.distances.excess.value == pytest.approx(found.distances.chosen.value - found.distances.floor.value)
    assert [(b.first, b.last) for b in found.bins] == [(0, 249), (250, 499), (500, 749), (750, 999)]
    assert np.mean([b.own.value for b in found.bins]) == pytest.approx(whole.own.value, rel=1e-9)
    for value in (whole.own, whole.chosen.error, whole.chosen.relative, found.distances.chosen):
        assert value.low < value.value < value.high and (value.pairs, value.prompts) == (COUNT, COUNT)


def test_the_same_call_gives_the_same_and_another_seed_other_noise(style, style_set):
    found, images = style
    before = {path: path.stat().st_mtime_ns for path in images.iterdir()}
    assert measure("mini", style_set, images, steps=STEPS, draws=4) == found
    assert {path: path.stat().st_mtime_ns for path in images.iterdir()} == before  # no picture is made again
    other = measure("mini", style_set, images, steps=STEPS, draws=4, seed=1, encoder="none")
    assert other.distances is None
    assert other.errors.own.value != found.errors.own.value
    assert other.errors.chosen.relative.value == pytest.approx(found.errors.chosen.relative.value, rel=0.5)


def test_the_errors_are_those_of_the_denoiser_called_by_hand(sdxl, material):
    opened, stuff = material
    known = encoded(sdxl, opened, stuff)
    errors = errors_of(sdxl, known, stuff)
    pipeline = open_model(find_model(str(sdxl))).pipeline("cpu", torch.float32)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    for row, k, side in [(0, 0, "own"), (0, 1, "own"), (3, 2, "chosen"), (6, 3, "rejected")]:
        pair, place = stuff.pairs[row], k % 2 if side == "own" else 0
        picture = stuff.pictures[stuff.sides[side][row][place]]()
        width, height = picture.size
        short = min(width, height)
        picture = picture.resize((width * 16 // short, height * 16 // short), Image.Resampling.BILINEAR)
        left, top = (picture.width - 16) // 2, (picture.height - 16) // 2
        pixels = torch.tensor(np.asarray(picture.crop((left, top, left + 16, top + 16)))).permute(2, 0, 1)[None]
        t, noise = draw(pair, k, 4, 1000, 0, (4, 8, 8))
        with torch.no_grad():
            latent = pipeline.vae.encode(pixels / 127.5 - 1).latent_dist.mean * 0.7
            states, _, pooled, _ = pipeline.encode_prompt(pair.prompt, do_classifier_free_guidance=False)
            ids = torch.tensor([[height, width, top, left, 16, 16]], dtype=torch.float32)
            x_t = scheduler.add_noise(latent, noise[None], torch.tensor([t]))
            out = pipeline.unet(x_t, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
        assert errors[side][row, k] == pytest.approx(float((out - noise).square().mean()), rel=1e-4)


def test_with_buckets_wide_pictures_are_measured_in_the_frames_in_which_they_are_trained(sdxl, tmp_path):
    sizes = [(16, 16), (32, 8), (16, 16), (32, 8), (8, 32)]
    rows = [
        (f"a circle {k}", encoded_png(noise(k, size)), encoded_png(noise(90 + k, size))) for k, size in enumerate(sizes)
    ]
    folder, images = write_pairs(tmp_path / "pairs", rows), tmp_path / "own"
    opened, model, plan = (
        PairSet(folder),
        open_model(find_model(str(sdxl))),
        default_sampling(find_model(str(sdxl)), steps=2),
    )
    members, _ = choose_pairs(opened, "train", 5, 0)
    frames = frames_of_pairs(opened, members, frames_of(model, None, buckets=True))
    by_prompt = {pair.prompt: frame for pair, frame in zip(members, frames, strict=True)}
    assert [by_prompt[f"a circle {k}"][::-1] for k in range(5)] == sizes
    stuff = gather(opened, members, images, own_samples(str(sdxl), members, [3], images, plan, frames), 16, frames)
    assert {path.name for path in images.iterdir()} == {"16x16", "32x8", "8x32"}
    errors = errors_of(sdxl, encode(model, opened, cache_key(model), stuff, 4), stuff)
    pipeline = model.pipeline("cpu", torch.float32)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    for row, pair in enumerate(members):
        width, height = frames[row].width, frames[row].height
        for side, read in (
            ("chosen", stuff.pictures[stuff.sides["chosen"][row][0]]),
            ("own", stuff.pictures[stuff.sides["own"][row][0]]),
        ):
            picture = read()
            assert picture.size == (width, height)  # nothing is cut away
            pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None]
            t, noisy = draw(pair, 1, 4, 1000, 0, (4, height // 2, width // 2))
            with torch.no_grad():
                latent = pipeline.vae.encode(pixels / 127.5 - 1).latent_dist.mean * 0.7
                states, _, pooled, _ = pipeline.encode_prompt(pair.prompt, do_classifier_free_guidance=False)
                ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
                x_t = scheduler.add_noise(latent, noisy[None], torch.tensor([t]))
                out = pipeline.unet(x_t, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
            assert errors[side][row, 1] == pytest.approx(float((out - noisy).square().mean()), rel=1e-4)
    found = measure(str(sdxl), folder, images, steps=2, draws=4, seeds=[3], encoder="none", buckets=True)
    assert "Seen in 3 frames, as data.buckets trains them." in found.notes
    assert not any("cropped" in note for note in found.notes) and not found.usual
    cut = measure(str(sdxl), folder, tmp_path / "squares", steps=2, draws=4, seeds=[3], encoder="none")
    assert any("3 pictures cropped" in note or "6 pictures cropped" in note for note in cut.notes)


def test_at_another_resolution_the_own_samples_are_drawn_and_all_is_encoded_in_it(sdxl, tmp_path):
    rows = [(f"a circle {k}", encoded_png(noise(k, (32, 32))), encoded_png(noise(90 + k, (32, 32)))) for k in range(2)]
    folder = write_pairs(tmp_path / "pairs", rows)
    how = {"steps": 2, "draws": 4, "seeds": [3], "encoder": "none", "num_pairs": 2}
    found = measure(str(sdxl), folder, tmp_path / "large", resolution=32, **how)
    drawn = [*(tmp_path / "large").rglob("*.png")]
    assert {Image.open(path).size for path in drawn} == {(32, 32)} and len(drawn) == 2
    assert "Measured at 32 pixels; the model's own are 16." in found.notes and not found.usual
    own = measure(str(sdxl), folder, tmp_path / "own", **how)
    assert own.errors.own.value != found.errors.own.value
    with pytest.raises(MapoError, match="resolution"):
        measure(str(sdxl), folder, tmp_path / "odd", resolution=7, **how)


def test_the_distance_is_one_minus_the_cosine_of_every_pair_of_pictures(material):
    _, stuff = material
    scorer = load_encoder("mini-learned")
    found = compare_embeddings(scorer, embed(scorer, stuff, 5), stuff)
    direct = {name: scorer.embed([read()])[0].double() for name, read in stuff.pictures.items()}
    cosine = torch.nn.functional.cosine_similarity

    def mean_distance(side):
        return np.mean([1 - float(cosine(direct[a], direct[stuff.sides[side][row][0]], 0))
                        for row in range(7) for a in stuff.sides["own"][row]])  # fmt: skip

    assert found.chosen.value == pytest.approx(mean_distance("chosen"), abs=1e-6)
    assert found.rejected.value == pytest.approx(mean_distance("rejected"), abs=1e-6)
    floor = np.mean([1 - float(cosine(direct[a], direct[b], 0)) for a, b in stuff.sides["own"]])
    assert found.floor.value == pytest.approx(floor, abs=1e-6)


def test_the_size_of_batches_changes_rounding_only(sdxl, material):
    opened, stuff = material
    one, many = (encoded(sdxl, opened, stuff, size) for size in (1, 16))
    for name, latent in one.latents.items():
        torch.testing.assert_close(many.latents[name], latent, rtol=1e-4, atol=1e-5)
    few, lots = (errors_of(sdxl, known, stuff, images_per_batch=n) for known, n in ((one, 1), (many, 28)))
    for side, values in few.items():
        np.testing.assert_allclose(lots[side], values, rtol=1e-4)
    scorer = load_encoder("mini-learned")
    for name, vector in embed(scorer, stuff, 1).items():
        torch.testing.assert_close(embed(scorer, stuff, 16)[name], vector, rtol=0, atol=1e-5)


def test_the_order_of_the_set_and_its_other_pairs_do_not_matter(sdxl, pairs, material, tmp_path):
    opened, stuff = material
    turned = write_pairs(
        tmp_path / "turned",
        [(p.prompt, opened.image_bytes(p.chosen), opened.image_bytes(p.rejected)) for p in reversed(list(opened))],
    )
    members, count = choose_pairs(PairSet(turned), "train", 7, 0)
    assert [p.id for p in members] == [p.id for p in stuff.pairs] and count == 12
    assert [p.id for p in choose_pairs(opened, "train", 3, 0)[0]] == [p.id for p in members[:3]]
    assert [p.id for p in choose_pairs(opened, "train", 7, 1)[0]] != [p.id for p in members]
    known = encoded(sdxl, opened, stuff)
    forward, backward = errors_of(sdxl, known, stuff), errors_of(
        sdxl, known, replace(stuff, pairs=stuff.pairs[::-1], sides={k: v[::-1] for k, v in stuff.sides.items()})
    )  # fmt: skip
    for side, values in forward.items():
        np.testing.assert_allclose(backward[side][::-1], values, rtol=1e-4)


@given(st.integers(1, 40), st.integers(40, 1000), st.integers(0, 2**40), st.data())
def test_every_draw_lies_in_its_stratum_and_depends_on_nothing_else(draws, timesteps, seed, data):
    pair, other = (make_pair(prompt, "a" * 64, "b" * 64) for prompt in ("a red circle", "a blue circle"))
    k = data.draw(st.integers(0, draws - 1))
    t, noise = draw(pair, k, draws, timesteps, seed, (4, 2, 2))
    assert timesteps * k // draws <= t < timesteps * (k + 1) // draws
    assert noise.shape == (4, 2, 2) and noise.dtype == torch.float32
    again, same = draw(pair, k, draws, timesteps, seed, (4, 2, 2))
    assert again == t and torch.equal(same, noise)
    for differs in (
        draw(other, k, draws, timesteps, seed, (4, 2, 2)),
        draw(pair, k, draws, timesteps, seed + 1, (4, 2, 2)),
    ):
        assert not torch.equal(differs[1], noise)


def test_two_prompts_that_differ_in_case_share_own_samples(sdxl, tmp_path):
    pictures = [png_bytes(Image.new("RGB", (16, 16), (k, 0, 0))) for k in range(4)]
    folder = write_pairs(tmp_path / "set", [("A red circle", *pictures[:2]), ("a RED circle", *pictures[2:])])
    found = measure(str(sdxl), folder, tmp_path / "own", encoder="none", steps=1, draws=4)
    assert (found.num_pairs, found.num_prompts) == (2, 1)
    assert len(read_images(tmp_path / "own")) == 2


def test_a_model_that_predicts_v_and_half_precision_are_measured_too(sdxl_v, pairs, tmp_path):
    full, half = (
        measure(str(sdxl_v), pairs, tmp_path / precision, encoder="none", steps=1, draws=4, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert half.errors.chosen.error.value == pytest.approx(full.errors.chosen.error.value, rel=0.05)
    assert half.errors != full.errors and not full.built_in


def test_rejected_pictures_that_are_kept_as_latents_have_their_error_measured(sdxl, tmp_path):
    recipe = read_recipe("pick-style-cartoon")
    prompts = [f"a red circle number {k}" for k in range(3)]
    for keep in ("pictures", "rejected-as-latents"):
        build(recipe, str(sdxl), prompts, 3, tmp_path / keep, keep=keep, steps=1)
    whole, kept = (
        measure(str(sdxl), tmp_path / keep, tmp_path / "own", encoder="mini-learned", split="all", steps=1, draws=4)
        for keep in ("pictures", "rejected-as-latents")
    )
    assert kept.errors.rejected.error.value == pytest.approx(whole.errors.rejected.error.value, rel=1e-3)
    assert kept.distances.rejected is None and whole.distances.rejected is not None
    assert kept.distances.chosen.value == pytest.approx(whole.distances.chosen.value, abs=1e-5)
    assert any("their latents were used" in note for note in kept.notes)
    other = make_sdxl(tmp_path / "other", seed=9)
    left = measure(str(other), tmp_path / keep, tmp_path / "own2", encoder="none", split="all", steps=1, draws=4)
    assert left.errors.rejected is None and left.errors.margin is None
    assert any("they were left out" in note for note in left.notes)
    assert any(line.startswith("denoising error") and " - " in line for line in table(left))


# ------------------------------------------------------------------ encoders


def test_a_set_without_rejected_pictures_is_measured_by_its_chosen_ones(style, style_set, tmp_path):
    whole, images = style
    alone = chosen_alone(style_set, tmp_path / "alone")
    found = measure("mini", alone, images, steps=STEPS, draws=4)
    assert found.distances.rejected is None and found.errors.rejected is None and found.errors.margin is None
    assert found.distances.chosen.value == pytest.approx(whole.distances.chosen.value, rel=1e-6)
    assert found.errors.chosen.relative.conclusive and found.notes == ()
    said = "\n".join([*table(found), *sentences(found, [])])
    assert "higher for the chosen pictures" in said and "rejected pictures" not in said


def test_the_judge_embeds_pictures_of_any_size_at_unit_norm_by_what_they_show():
    scorer = load_scorer("mini-learned")
    red, blue = (
        scenes.parse(text)
        for text in ("a small red circle on a gray background", "a small blue star on a gray background")
    )
    pictures = [Image.fromarray(draw_scene(scene, random.Random(k))) for k, scene in enumerate([red, red, blue])]
    vectors = scorer.embed([*pictures, pictures[0].resize((96, 96), Image.Resampling.NEAREST)])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    torch.testing.assert_close(vectors[3], vectors[0], rtol=0, atol=1e-5)
    assert scorer.embed([]).shape == (0, 128)


def test_the_encoder_is_the_judge_for_the_built_in_world_and_dinov2_elsewhere(sdxl):
    assert default_encoder(find_model("mini")) == "mini-learned"
    assert default_encoder(find_model(str(sdxl))) == "dinov2"


def test_a_scorer_that_does_not_embed_is_refused_with_those_that_do(pairs, tmp_path):
    with pytest.raises(MapoError, match=r"mini-search does not embed pictures.*clip.*mini-learned"):
        measure("mini", pairs, tmp_path / "own", encoder="mini-search")
    with pytest.raises(MapoError, match="There is no scorer 'clop'"):
        measure("mini", pairs, tmp_path / "own", encoder="clop")
    assert not (tmp_path / "own").exists()


def test_an_encoder_that_is_not_downloaded_says_so_before_any_picture_is_made(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MapoError, match=r"hf download.*Or measure without one: --encoder none\."):
        measure("mini", pairs, tmp_path / "own", encoder="clip")
    assert not (tmp_path / "own").exists()


# ------------------------------------------------------------------ bad input


def test_a_split_without_pairs_and_numbers_that_make_no_sense_are_refused(pairs, tmp_path):
    for words, match in [({"split": "test"}, "has no pairs in the split 'test'; try --split all"), ({"split": "tset"}, "tset"),
                         ({"num_pairs": 0}, "--num-pairs is 0")]:  # fmt: skip
        with pytest.raises(MapoError, match=match):
            measure("mini", pairs, tmp_path / "own", **words)
    ties = make_pairs(tmp_path / "ties", 3, preference=0.5)
    with pytest.raises(MapoError, match="has no pairs but 3 ties in the split 'train'; try --split all"):
        measure("mini", ties, tmp_path / "own")


def test_own_samples_that_were_made_with_other_settings_are_not_used(style, style_set):
    with pytest.raises(MapoError, match=r"other settings \(steps\)"):
        measure("mini", style_set, style[1], steps=STEPS + 1)


def test_own_samples_go_on_with_fewer_pictures_at_a_time(sdxl, pairs, tmp_path):
    how = {"encoder": "none", "steps": 1, "num_pairs": 4, "seeds": (7,), "draws": 4}
    first = measure(str(sdxl), pairs, tmp_path / "own", images_per_batch=4, **how)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "own").glob("*.png")}
    again = measure(str(sdxl), pairs, tmp_path / "own", images_per_batch=1, **how)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "own").glob("*.png")} == before
    assert again.errors.own.value == pytest.approx(first.errors.own.value, rel=1e-3)


def test_an_error_that_is_not_finite_names_its_pairs(sdxl, material):
    opened, stuff = material
    known = encoded(sdxl, opened, stuff)
    name = stuff.pairs[2].chosen
    broken = Encoded({**known.latents, name: known.latents[name] * torch.nan}, known.sizes, known.texts)
    with pytest.raises(MapoError, match=f"chosen picture is not finite.*{stuff.pairs[2].id}"):
        errors_of(sdxl, broken, stuff)


def test_what_cannot_be_measured_or_written_is_told_before_any_work(style_set, tmp_path):
    with pytest.raises(MapoError, match="--seed is -1; it must not be negative"):
        measure("mini", style_set, tmp_path / "own", seed=-1)
    notes = tmp_path / "notes.txt"
    notes.write_text("prompts of mine")
    for out, why in ((notes, "exists and is not a file of `mapo mismatch`"), (tmp_path, "is a folder. Name the file")):
        told = ["mismatch", "--model", "mini", "--pairs", str(style_set), "--out", str(out)]
        with pytest.raises(MapoError, match=why):
            CliRunner().invoke(cli, told, catch_exceptions=False)
    assert notes.read_text() == "prompts of mine" and not (tmp_path / "own").exists()


def test_own_samples_and_errors_are_those_of_the_layers_that_are_left_in(tmp_path):
    sd, pairs = make_sd(tmp_path / "sd"), make_pairs(tmp_path / "pairs", 4)
    found = {
        skip: measure(
            str(sd), pairs, tmp_path / f"images-{skip}", encoder="none", seeds=(5,), draws=4, steps=2, clip_skip=skip
        )
        for skip in (None, 0, 1)
    }  # fmt: skip
    assert found[None] == found[0]
    assert found[1].revision != found[0].revision and found[1].errors != found[0].errors
    own = {s: [row.sha256 for row in read_images(tmp_path / f"images-{s}")] for s in found}
    assert own[None] == own[0] and not set(own[0]) & set(own[1])
