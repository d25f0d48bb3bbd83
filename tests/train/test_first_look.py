"""Training on a flow model begins with a look at the errors, which says how far the margin reaches and moves nothing."""

import re

import numpy as np
import pytest
import torch
from test_train import assert_same, run

import mapo.train.train as module
from mapo.encode.cache import Cache, cache_key
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.train.batches import assemble, draws, rows_at
from mapo.train.monitor.first_look import SEED, Look, look, sentences
from mapo.train.objectives import OBJECTIVES
from mapo.train.step import pair_errors
from mapo.train.weights import opening
from tiny import make_pairs, make_sd3

PAIRS = 6


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    return make_sd3(folder / "model", t5=False), make_pairs(folder / "pairs", PAIRS)


def by_hand(model, pairs, seed):
    """The errors of each pair, one alone at a time."""
    opened, members = open_model(find_model(str(model))), PairSet(pairs)
    cache = Cache(pairs.parent / "cache", cache_key(opened))
    denoiser = opened.denoiser(torch.device("cpu"), torch.float64).eval()
    drawn = draws(range(PAIRS), PAIRS, opened.process, opened.layout.latent(cache.resolution), seed=SEED)
    found = []
    for draw, row in zip(drawn, rows_at(range(PAIRS), PAIRS, seed), strict=True):
        batch = assemble([members[row]], [type(draw)(0, draw.time, draw.flip, draw.noise, draw.samples)], cache,
                         opened, torch.float64)  # fmt: skip
        with torch.no_grad():
            errors = pair_errors(lambda x, t, cond: opened.predict(denoiser, x, t, cond), batch, opened.process)
        found.append((float(draw.time), float(errors.chosen[0]), float(errors.rejected[0])))
    return np.array(found).T


def test_it_measures_the_runs_first_pairs_at_times_of_its_own(tmp_path, flow, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "look", lambda loop: seen.append(look(loop)) or seen[0])
    run(tmp_path / "run", *flow, steps=1, pairs_per_device=3, seed=5)
    t, chosen, rejected = by_hand(*flow, seed=5)
    assert seen[0].timesteps == pytest.approx(t)
    assert seen[0].chosen == pytest.approx(chosen, rel=1e-6)
    assert seen[0].rejected == pytest.approx(rejected, rel=1e-6)


def test_it_is_said_at_the_start_and_not_where_a_run_goes_on(tmp_path, flow, heard):
    run(tmp_path / "run", *flow, steps=1)
    said = heard()
    found = re.search(r"error is ([\d.]+) for chosen pictures and ([\d.]+) for rejected ones", said)
    t, chosen, rejected = by_hand(*flow, seed=0)
    assert float(found[1]) == pytest.approx(np.median(chosen), rel=0.05)
    assert float(found[2]) == pytest.approx(np.median(rejected), rel=0.05)
    assert f"medians of {PAIRS} pairs, looked at in " in said and f"up to t {max(t):.0f}." in said
    assert "mapo with beta 0.1: where both errors are" in said and "of these 6 pairs" in said
    run(tmp_path / "run", *flow, steps=2)
    assert "Before the first step" not in heard()


def test_the_run_is_the_same_with_it_and_without(tmp_path, flow, monkeypatch):
    add = opening.add_adapter

    def dropping(denoiser, *rest):
        add(denoiser, *rest)
        parts = [part for part in denoiser.modules() if isinstance(part, torch.nn.Dropout)]
        assert parts
        for part in parts:
            part.p = 0.3  # which draws from the global generator

    monkeypatch.setattr(opening, "add_adapter", dropping)
    torch.manual_seed(7)
    one = run(tmp_path / "one", *flow, steps=2)
    monkeypatch.setattr(module, "look", lambda loop: None)
    monkeypatch.setattr(module, "sentences", lambda *_: [])
    torch.manual_seed(7)
    assert_same(one, run(tmp_path / "two", *flow, steps=2), tolerance=0)


def test_models_that_predict_noise_are_not_looked_at(tmp_path, sdxl, pairs, cache, heard):
    run(tmp_path / "run", sdxl, pairs, cache, steps=1)
    assert "Before the first step" not in heard()


def seen(chosen, rejected):
    t = np.arange(1.0, len(chosen) + 1)
    return Look(t, np.array(chosen), np.array(rejected), 1.25)


def told(name, look, **settings):
    return sentences(look, name, OBJECTIVES[name], {**OBJECTIVES[name].settings, **settings})


def test_what_is_said_is_what_a_person_needs():
    first, second = told("mapo", seen([0.2, 0.3, 0.25, 0.3], [0.205, 0.5, 0.245, 0.31]))
    assert first == (
        "Before the first step the denoising error is 0.28 for chosen pictures and 0.28 for rejected ones; the two of "
        "a pair differ by 0.0075 (medians of 4 pairs, looked at in 1.2 s). Chosen by timestep: 0.2 up to t 1, 0.3 up "
        "to t 2, 0.25 up to t 3, 0.3 up to t 4."
    )
    assert second == (
        "mapo with beta 0.1: where both errors are 0.27, the margin pushes the rejected picture away 12 times as hard "
        "as SFT learns the chosen one. The push has fallen to a tenth once the rejected error is 0.012 (5%) above the "
        "chosen one. 1 of these 4 pairs is there already."
    )


def test_a_beta_of_which_nothing_is_felt_is_called_sft():
    assert told("mapo_aaai", seen([1.0, 1.1], [1.0, 1.2]), beta=64)[1].endswith("So this is all but SFT.")


def test_a_reference_moves_the_point_that_margins_are_counted_from():
    (_, second) = told("dpo", seen([0.3, 0.3], [0.3, 0.9]))
    assert "500 times as hard" in second and second.endswith("is 0.003 (1%) above where it began.")


def test_sft_has_no_margin_and_errors_that_are_not_finite_are_left_to_the_first_step():
    assert len(told("sft", seen([0.3], [0.4]))) == 1
    assert told("mapo", seen([0.3], [float("nan")])) == []
