import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mapo.train.objectives import OBJECTIVES, logit_and_scale, score, soft
from mapo.train.types import PairErrors

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())
NAMES = {"mapo_v1": "mapo", "mapo_v2": "mapo_aaai", "dpo": "dpo"}
KNOBS = {"snr": "snr", "beta": "beta", "alpha": "alpha", "T": "num_timesteps", "mu": "mu", "baseline": "baseline"}
CASES = [(NAMES[form], row) for form in NAMES for row in GOLDEN[form]]
MORE = json.loads((Path(__file__).parents[1] / "golden" / "more_objectives.json").read_text())
CASES += [(name, row) for name, found in MORE.items() for row in found]
LOGITS = {name: objective.logit for name, objective in OBJECTIVES.items() if objective.logit}
NEEDS_REFERENCE = {name for name, objective in OBJECTIVES.items() if objective.needs_reference}
errors = st.floats(0, 10, width=32)


def tensors(*values, dtype=torch.float32):
    return [torch.tensor([v], dtype=dtype, requires_grad=True) for v in values]


def constants(name):
    """What a step would have prepared, where the objective prepares something."""
    return {"baseline": 0.01} if OBJECTIVES[name].prepare else {}


def pair(name, chosen, rejected, ref=(0.3, 0.4), dtype=torch.float64, agreement=0.2):
    """The errors of one pair with all that the objective asks for; ``chosen`` and ``rejected`` are tensors."""
    reference = [torch.tensor([v], dtype=dtype) for v in ref] if name in NEEDS_REFERENCE else [None, None]
    extras = {key: torch.tensor([agreement], dtype=dtype) for key in OBJECTIVES[name].extras}
    return PairErrors(chosen, rejected, *reference, extras, extras)


def loss_and_gradients(name, chosen, rejected, settings, ref=(0.3, 0.4), dtype=torch.float64, agreement=0.2):
    w, losing = tensors(chosen, rejected, dtype=dtype)
    errors = pair(name, w, losing, ref, dtype, agreement)
    loss = OBJECTIVES[name].loss(errors, **{**constants(name), **settings})
    down, up = torch.autograd.grad(loss.sum(), (w, losing), allow_unused=True)
    return loss, torch.zeros(1) if down is None else down, torch.zeros(1) if up is None else up


@pytest.mark.parametrize(("name", "row"), CASES, ids=lambda v: v if isinstance(v, str) else f"{v['chosen']:.2g}")
@pytest.mark.parametrize("dtype", [torch.float64], ids=["float64"])
def test_losses_and_gradients_meet_the_golden_numbers(name, row, dtype):
    settings = {KNOBS[k]: row[k] for k in KNOBS if k in row}
    reference = (row.get("ref_chosen", 0.0), row.get("ref_rejected", 0.0))
    loss, down, up = loss_and_gradients(
        name, row["chosen"], row["rejected"], settings, reference, dtype, row.get("agreement", 0.2)
    )
    for got, want in ((loss, row["loss"]), (down, row["d_chosen"]), (up, row["d_rejected"])):
        assert abs(got.item() - want) <= 1e-6 * max(abs(want), 1e-6)


@pytest.mark.parametrize(("name", "row"), CASES, ids=lambda v: v if isinstance(v, str) else f"{v['chosen']:.2g}")
def test_float32_errors_get_float64_arithmetic(name, row):
    settings = {KNOBS[k]: row[k] for k in KNOBS if k in row}
    reference = (row.get("ref_chosen", 0.0), row.get("ref_rejected", 0.0))
    loss, down, _ = loss_and_gradients(
        name, row["chosen"], row["rejected"], settings, reference, torch.float32, row.get("agreement", 0.2)
    )
    assert loss.dtype is torch.float64
    assert abs(loss.item() - row["loss"]) <= 1e-6 * max(abs(row["loss"]), 1e-6)
    assert abs(down.item() - row["d_chosen"]) <= 2e-7 * max(abs(row["d_chosen"]), 1e-6) + 1e-37


@given(errors, errors, st.sampled_from(sorted(OBJECTIVES)))
def test_losses_and_gradients_are_finite_from_zero_to_ten(chosen, rejected, name):
    for value in loss_and_gradients(name, chosen, rejected, {}):
        assert torch.isfinite(value).all()


@given(errors, errors, st.sampled_from(sorted(LOGITS)))
def test_swapping_the_pair_negates_the_margin(chosen, rejected, name):
    one, two = tensors(chosen, rejected, dtype=torch.float64)
    ref = [torch.tensor([0.3]), torch.tensor([0.5])] if name in NEEDS_REFERENCE else []
    forth = LOGITS[name](PairErrors(one, two, *ref))
    back = LOGITS[name](PairErrors(two, one, *ref[::-1]))
    assert torch.allclose(forth, -back, rtol=0, atol=0)


@given(errors, errors)
def test_sft_ignores_the_rejected_picture(chosen, rejected):
    loss, down, up = loss_and_gradients("sft", chosen, rejected, {})
    assert (loss.item(), down.item(), up.item()) == (chosen, 1.0, 0.0)


def test_the_score_is_one_at_zero_with_slope_minus_half():
    x = torch.tensor([0.0, 1e-9, 1e-5, 1e-3, 1e-2], dtype=torch.float64, requires_grad=True)
    y = score(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y[0] == 1 and slope[0] == -0.5
    for value, got, d in zip(x.tolist()[1:], y.tolist()[1:], slope.tolist()[1:], strict=True):
        series = 1 - value / 2 + value**2 / 12 - value**4 / 720
        assert got == pytest.approx(series, rel=1e-13)
        assert d == pytest.approx(-0.5 + value / 6 - value**3 / 180, rel=1e-11)


@given(st.floats(1e-6, 10))
def test_the_score_falls_and_stays_between_zero_and_one(value):
    near, far = score(torch.tensor([value, value * 1.01], dtype=torch.float64)).tolist()
    assert 0 < far < near <= 1


def test_dpo_at_the_reference_is_log_two():
    e = [torch.tensor([v]) for v in (0.2, 0.7, 0.2, 0.7)]
    assert OBJECTIVES["dpo"].loss(PairErrors(*e)).item() == pytest.approx(math.log(2), rel=1e-12)


def test_the_logit_scale_of_mapo_at_small_errors_is_about_245_per_unit_of_error():
    e = PairErrors(torch.tensor([0.02]), torch.tensor([0.02]))
    _, scale = logit_and_scale(OBJECTIVES["mapo"], e, OBJECTIVES["mapo"].settings)
    assert scale.item() == pytest.approx(250 - 1000 * 0.25 * 0.02 / 6, rel=1e-3)
    _, scale = logit_and_scale(OBJECTIVES["dpo"], PairErrors(*[torch.tensor([0.1])] * 4), {"beta": 2000})
    assert scale.item() == pytest.approx(1000)


def test_the_margin_pulls_twelve_times_as_hard_as_the_sft_term_at_zero_margin():
    _, down, up = loss_and_gradients("mapo", 0.1, 0.1, {})
    assert -up.item() == pytest.approx(12.3, abs=0.1)
    assert down.item() == pytest.approx(1 - up.item(), rel=1e-9)


def test_every_objective_takes_its_knobs_as_keywords_and_gives_one_loss_per_pair():
    e = PairErrors(*[torch.rand(5) for _ in range(4)], extras={"agreement": torch.rand(5)})
    for name, objective in OBJECTIVES.items():
        assert objective.loss(e, **constants(name), **objective.settings).shape == (5,)
        assert objective.loss(e, **constants(name)).dtype is torch.float64


def relative_pulls(chosen, rejected, **settings):
    """The derivatives of the relative form by chosen and by rejected error."""
    w, losing = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (chosen, rejected))
    loss = OBJECTIVES["mapo_relative"].loss(PairErrors(w, losing), **settings)
    return [g.item() for g in torch.autograd.grad(loss.sum(), (w, losing))]


@given(st.floats(0.05, 5), st.floats(0.05, 5), st.floats(0.01, 100))
def test_the_relative_form_pulls_alike_at_every_size_of_the_errors(chosen, rejected, times):
    pulls = relative_pulls(chosen, rejected, floor=0.0)
    assert relative_pulls(times * chosen, times * rejected, floor=0.0) == pytest.approx(pulls, rel=1e-9)


@given(errors, errors, st.floats(0.1, 20), st.floats(0.1, 20))
def test_the_relative_form_pulls_on_chosen_by_one_more_than_it_pushes_rejected(chosen, rejected, beta, sharpness):
    down, up = relative_pulls(chosen, rejected, beta=beta, sharpness=sharpness)
    logit = sharpness * (rejected - chosen) / ((chosen + rejected) / 2 + 1e-3)
    gate = 1 / (1 + math.exp(logit))
    assert down == pytest.approx(1 + beta * gate, rel=1e-9) and up == pytest.approx(-beta * gate, rel=1e-9, abs=1e-300)


def test_the_push_of_the_relative_form_ends_where_rejected_is_far_enough():
    behind, even, ahead = (relative_pulls(0.1, v, beta=2.0, sharpness=4.0, floor=0.0)[1] for v in (0.01, 0.1, 0.3))
    assert behind == pytest.approx(-2, abs=5e-3) and even == pytest.approx(-1) and ahead > -0.04


@given(errors, errors, st.floats(0.5, 1), st.sampled_from(("mapo", "mapo_aaai", "mapo_relative", "sft", "dpo", "orpo")))
def test_a_soft_label_mixes_both_ways_of_reading_the_pair(chosen, rejected, sure, name):
    e = PairErrors(*(torch.tensor([v], dtype=torch.float64) for v in (chosen, rejected, 0.3, 0.4)))
    got = soft(OBJECTIVES[name], e, torch.tensor([sure]))
    sure = float(torch.tensor([sure]))
    supervised = 0 if name == "dpo" else sure * chosen + (1 - sure) * rejected
    size = (chosen + rejected) / 2 + 1e-3
    strength = {"sft": 0.0, "dpo": 1.0, "mapo": 0.1, "orpo": 0.1, "mapo_aaai": 1 / 8, "mapo_relative": size * 2 / 4}[
        name
    ]
    m = LOGITS[name](e) if name in LOGITS else torch.zeros(1, dtype=torch.float64)
    comparison = sure * F.logsigmoid(m) + (1 - sure) * F.logsigmoid(-m)
    assert got.item() == pytest.approx((supervised - strength * comparison).item(), rel=1e-9, abs=1e-12)


@given(errors, errors, st.sampled_from(sorted(OBJECTIVES)))
def test_a_certain_pair_is_the_objective_itself_and_a_tie_is_the_same_either_way(chosen, rejected, name):
    e = pair(name, *(torch.tensor([v], dtype=torch.float64) for v in (chosen, rejected)))
    one, half, given = torch.ones(1), torch.full((1,), 0.5), constants(name)
    assert torch.equal(soft(OBJECTIVES[name], e, one, **given), OBJECTIVES[name].loss(e, **given))
    tie = soft(OBJECTIVES[name], e, half, **given)
    assert torch.allclose(tie, soft(OBJECTIVES[name], e.swapped(), half, **given), rtol=1e-14, atol=0)


def test_a_tie_pulls_the_errors_of_both_pictures_together():
    for name in ("mapo", "dpo"):
        w, losing = tensors(0.1, 0.11, dtype=torch.float64)
        ref = [torch.tensor([0.1], dtype=torch.float64)] * 2 if name == "dpo" else []
        loss = soft(OBJECTIVES[name], PairErrors(w, losing, *ref), torch.tensor([0.5]))
        down, up = torch.autograd.grad(loss.sum(), (w, losing))
        assert up > down and up > 0  # the larger error is pulled down harder


def test_orpo_lowers_the_chosen_error_and_lifts_the_rejected_one():
    _, down, up = loss_and_gradients("orpo", 0.1, 0.1, {"beta": 1.0})
    assert down.item() == pytest.approx(1.5) and up.item() == pytest.approx(-0.5)


def test_ipo_is_content_once_the_margin_has_grown_by_half_of_one_over_beta():
    loss, down, up = loss_and_gradients("ipo", 0.2, 0.31, {"beta": 50.0}, ref=(0.2, 0.3))
    assert (loss.item(), down.item(), up.item()) == pytest.approx((0, 0, 0), abs=1e-15)


@given(errors, errors)
def test_poly_dpo_without_its_polynomial_is_dpo(chosen, rejected):
    ours = loss_and_gradients("poly_dpo", chosen, rejected, {"beta": 500.0, "alpha": 0.0})
    for one, other in zip(ours, loss_and_gradients("dpo", chosen, rejected, {"beta": 500.0}), strict=True):
        assert torch.equal(one, other)


def test_poly_dpo_attends_less_to_pairs_that_are_far_from_learned():
    weights = []
    for rejected in (0.0, 0.4):  # far behind the reference, and well ahead of it
        (_, poly, _), (_, plain, _) = (
            loss_and_gradients(n, 0.2, rejected, {"beta": 20.0}, ref=(0.2, 0.2)) for n in ("poly_dpo", "dpo")
        )
        weights.append(poly.item() / plain.item())
    assert weights[0] < weights[1] < 9
