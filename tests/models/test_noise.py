import pytest
import torch
from diffusers import DDPMScheduler

from mapo.errors import MapoError
from mapo.models.noise.process import Ddpm
from mapo.train.types import mean_squares

SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_those_of_diffusers(kind):
    scheduler = DDPMScheduler(prediction_type=kind, **SETTINGS)
    schedule = Ddpm(scheduler.alphas_cumprod, kind)
    x, noise = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    t = torch.tensor([0, 1, 10, 500, 998, 999])
    assert torch.allclose(schedule.add_noise(x, noise, t), scheduler.add_noise(x, noise, t), atol=1e-6)
    want = noise if kind == "epsilon" else scheduler.get_velocity(x, noise, t)
    assert torch.allclose(schedule.target(x, noise, t), want, atol=1e-6)


def test_the_error_is_a_mean_per_image_not_per_batch():
    prediction = torch.zeros(3, 4, 5, 5)
    target = torch.stack([torch.full((4, 5, 5), v) for v in (0.0, 1.0, 3.0)])
    assert mean_squares(prediction - target).tolist() == [0.0, 1.0, 9.0]


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(MapoError, match="prediction_type is 'sample'"):
        Ddpm(torch.ones(3), "sample")
