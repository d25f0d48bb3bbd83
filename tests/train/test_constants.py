"""What objectives ask of a whole step before its first backward pass, and of each pair besides its errors."""

import pytest
import torch
from test_train import assert_same, metrics, run

from apart import ended, started
from mapo.models.noise.process import Ddpm
from mapo.train.objectives import OBJECTIVES, agreement, kto_baseline
from mapo.train.step import pair_errors
from mapo.train.types import Batch, PairErrors, Residuals

OPEN_KTO = """
from mapo.train.objectives import Objective, kto

def baseline(errors):  # of kto, but it may be negative, as it is on the random model of these tests
    gains = errors.ref_chosen + errors.ref_rejected - errors.chosen - errors.rejected
    return {"baseline": float(gains.mean()) / 2}

open_kto = Objective(kto, needs_reference=True, prepare=baseline)
"""


@pytest.fixture(scope="module")
def step(tmp_path_factory, sdxl, pairs, cache):
    """An objective with a constant of the whole step, and a run with it that takes all pairs at once."""
    folder = tmp_path_factory.mktemp("step")
    (folder / "own.py").write_text(OPEN_KTO)
    name = f"{folder / 'own.py'}:open_kto"
    whole = run(folder / "whole", sdxl, pairs, cache, {"name": name, "beta": 3.0}, optim={"lr": 1e-2})
    assert abs(whole[0]["baseline"]) < 1e-12 and all(abs(line["baseline"]) > 1e-6 for line in whole[1:])
    return name, whole


def baselines(lines):
    return [line["baseline"] for line in lines]


@pytest.mark.parametrize("portion", [1, 3])
def test_a_constant_of_a_step_is_that_of_the_whole_step_in_any_portions(
    tmp_path, sdxl, pairs, cache, step, portion, heard
):
    name, whole = step
    objective = {"name": name, "beta": 3.0}
    got = run(tmp_path / "r", sdxl, pairs, cache, objective, optim={"lr": 1e-2}, pairs_per_device=portion)
    assert_same(got, whole)
    assert baselines(got) == pytest.approx(baselines(whole), rel=1e-9, abs=1e-12)
    assert "each pair goes through the model once more for that, without gradients" in heard()


@pytest.mark.long
@pytest.mark.parametrize("portion", [1, 2])
def test_a_constant_of_a_step_is_that_of_all_processes(tmp_path, sdxl, pairs, cache, step, portion):
    name, whole = step
    code = (
        "import sys; from pathlib import Path; from test_train import run\n"
        f"run(Path(sys.argv[4]), *sys.argv[1:4], {{'name': {name!r}, 'beta': 3.0}}, optim={{'lr': 1e-2}}, "
        f"pairs_per_device={portion})\n"
    )
    found = ended(started(["-c", code, sdxl, pairs, cache, tmp_path / "r"], 2, GLOO_SOCKET_IFNAME="lo"))
    assert [end for end, _, _ in found] == [0, 0], found
    assert_same(metrics(tmp_path / "r"), whole, tolerance=1e-6)
    assert baselines(metrics(tmp_path / "r")) == pytest.approx(baselines(whole), rel=1e-6, abs=1e-12)


def test_the_baseline_is_a_mean_over_both_images_and_never_negative():
    errors = PairErrors(*(torch.tensor(v) for v in ([0.1, 0.2], [0.3, 0.4], [0.2, 0.2], [0.5, 0.5])))
    assert kto_baseline(errors)["baseline"] == pytest.approx((0.1 + 0 + 0.2 + 0.1) / 4)
    worse = PairErrors(errors.ref_chosen, errors.ref_rejected, errors.chosen, errors.rejected)
    assert kto_baseline(worse) == {"baseline": 0.0}


def test_kto_judges_each_image_alone():
    def gradient(chosen, rejected):
        w, x = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (chosen, rejected))
        ref = torch.tensor([0.2], dtype=torch.float64)
        loss = OBJECTIVES["kto"].loss(PairErrors(w, x, ref, ref), baseline=0.0, beta=10.0)
        return [g.item() for g in torch.autograd.grad(loss.sum(), (w, x))]

    (down, up), (same, _) = gradient(0.2, 0.2), gradient(0.2, 0.9)
    assert down == pytest.approx(10 / 8) and up == pytest.approx(-10 / 8) and same == down


def test_the_agreement_of_sdpo_is_the_mean_product_of_both_residuals():
    g = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(4, 4, 2, 2, generator=g), torch.randn(2, 4, 2, 2, generator=g)
    one = torch.ones(2, dtype=torch.float64)
    batch = Batch(latents, {}, one, one, noise, torch.tensor([3, 700]))
    process = Ddpm(torch.linspace(0.99, 0.01, 1000), "epsilon")
    errors = pair_errors(lambda x, t, c: 0.5 * x, batch, process, None, {"agreement": agreement})
    x_t = process.add_noise(latents, noise.repeat(2, 1, 1, 1), torch.tensor([3, 700, 3, 700]))
    ew, el = (0.5 * x_t - noise.repeat(2, 1, 1, 1)).chunk(2)
    assert torch.allclose(errors.extras["agreement"], (ew * el).flatten(1).mean(1))
    assert torch.equal(errors.extras["agreement"], errors.extras_swapped["agreement"])
    assert errors.swapped().extras is errors.extras_swapped


def test_sdpo_holds_the_push_back_just_as_far_as_it_would_lift_the_chosen_error():
    def push(agree, mu):
        w, x = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.2, 0.3))
        ref = torch.tensor([0.25], dtype=torch.float64)
        errors = PairErrors(w, x, ref, ref, {"agreement": torch.tensor([agree], dtype=torch.float64)})
        loss = OBJECTIVES["sdpo"].loss(errors, beta=10.0, mu=mu)
        return torch.autograd.grad(loss.sum(), (w, x))[1].item()

    whole = push(-0.1, 0.6)
    assert push(0.0, 0.6) == whole and push(0.05, 0.6) == whole  # (1 − μ) 0.2 = 0.08 is more than c
    assert push(0.16, 0.6) == pytest.approx(0.5 * whole) and push(0.16, 1.0) == 0


def test_residuals_swap_with_their_references():
    r = Residuals(*(torch.full((1, 1, 1, 1), float(v)) for v in range(4)))
    assert [float(x) for x in vars(r.swapped()).values()] == [1, 0, 3, 2]
