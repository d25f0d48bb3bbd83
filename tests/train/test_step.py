from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from jaxtyping import TypeCheckError

from mapo.models.noise.process import Ddpm
from mapo.train.objectives import OBJECTIVES
from mapo.train.step import pair_errors, pair_losses, pair_metrics
from mapo.train.types import Batch, PairErrors

SCHEDULE = Ddpm(DDPMScheduler().alphas_cumprod, "epsilon")


def batch(p=3):
    g = torch.Generator().manual_seed(0)
    one = torch.ones(p, dtype=torch.float64)
    latents = torch.randn(2 * p, 4, 2, 2, generator=g)
    noise = torch.randn(p, 4, 2, 2, generator=g)
    return Batch(latents, {"k": torch.arange(2 * p)}, one, one, noise, torch.tensor([1, 500, 998])[:p])


@pytest.mark.parametrize("change", [{"noise": torch.zeros(2, 4, 2, 2)}, {"latents": torch.zeros(6, 4, 4)}])
def test_tensors_of_another_shape_than_their_annotation_are_refused_in_the_tests(change):
    with pytest.raises(TypeCheckError):
        replace(batch(), **change)


def test_both_pictures_of_a_pair_get_the_same_noise_and_timestep():
    seen = {}

    def predict(x_t, t, cond):
        seen.update(x_t=x_t, t=t, cond=cond)
        return torch.zeros_like(x_t)

    b = batch()
    pair_errors(predict, b, SCHEDULE)
    assert seen["t"].tolist() == [1, 500, 998, 1, 500, 998]
    a = SCHEDULE.alphas_cumprod[seen["t"]].view(-1, 1, 1, 1)
    noise = (seen["x_t"] - a.sqrt() * b.latents) / (1 - a).sqrt()
    assert torch.allclose(noise[:3], noise[3:], atol=1e-4) and torch.allclose(noise[:3], b.noise, atol=1e-4)


def test_a_perfect_prediction_has_no_error_and_zero_has_that_of_the_noise():
    b = batch()
    perfect = pair_errors(lambda x, t, c: b.noise.repeat(2, 1, 1, 1), b, SCHEDULE)
    assert perfect.chosen.tolist() == perfect.rejected.tolist() == [0, 0, 0]
    none = pair_errors(lambda x, t, c: torch.zeros_like(x), b, SCHEDULE)
    assert torch.allclose(none.chosen, b.noise.pow(2).flatten(1).mean(1))


def test_the_reference_sees_the_same_noisy_latents_and_gets_no_gradient():
    scale = torch.ones((), requires_grad=True)
    inputs = []

    def predict(x, t, c):
        inputs.append(x)
        return x * scale

    errors = pair_errors(predict, batch(), SCHEDULE, predict)
    assert torch.equal(*inputs) and torch.equal(errors.chosen, errors.ref_chosen)
    assert errors.chosen.requires_grad and not errors.ref_chosen.requires_grad


def test_metrics_are_per_pair_numbers():
    errors = PairErrors(torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.2, 0.1, 0.2]))
    losses = pair_losses(OBJECTIVES["mapo"], errors, {})
    metrics = pair_metrics(OBJECTIVES["mapo"], errors, losses, {})
    assert metrics["margin"].tolist() == pytest.approx([0.1, -0.2, 0.0])
    assert metrics["accuracy"].tolist() == [1, 0, 0.5]
    assert metrics["logit"].tolist()[2] == 0 and metrics["logit"][0] > 0 > metrics["logit"][1]
    assert metrics["logit_scale"].min() > 200
    assert pair_metrics(OBJECTIVES["sft"], errors, losses, {})["logit_scale"].tolist() == [0, 0, 0]


def test_half_precision_predictions_are_measured_in_float32():
    errors = pair_errors(lambda x, t, c: torch.full_like(x, 0.1, dtype=torch.bfloat16), batch(), SCHEDULE)
    assert errors.chosen.dtype is torch.float32
