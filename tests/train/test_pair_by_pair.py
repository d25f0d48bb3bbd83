"""One image of a pair in memory at a time: the same training, in two terms of the loss."""

import pytest
import torch
from diffusers import DDPMScheduler
from test_train import assert_same, metrics, run

from mapo.errors import MapoError
from mapo.models.noise.process import Ddpm
from mapo.train.config import make_config
from mapo.train.objectives import OBJECTIVES, Objective
from mapo.train.objectives.own import constants_of
from mapo.train.processes.processes import Place, Processes
from mapo.train.step import by_pair, pair_errors, pair_losses
from mapo.train.train import train
from mapo.train.types import Batch, PairErrors
from mapo.train.weights.levers import check_levers

PROCESS = Ddpm(DDPMScheduler().alphas_cumprod.double(), "epsilon")
PAIRS = 3


def batch():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(n, 4, 4, 4, generator=generator).double() for n in (2 * PAIRS, PAIRS))
    one = torch.ones(PAIRS, dtype=torch.float64)
    return Batch(latents, {"side": torch.arange(2 * PAIRS)}, one, one, noise, torch.tensor([1, 500, 998]))


def network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 1)).double()


def gradients(objective, name, preference, apart):
    """Loss and gradients of a batch, and what went through the network: whether with a graph, and how many images."""
    ours, theirs, seen = network(0), network(1), []
    constants = {}

    def predict(x_t, t, cond):
        assert len(x_t) == len(cond["side"])
        seen.append((torch.is_grad_enabled(), len(x_t)))
        return ours(x_t)

    def loss_of(errors):
        constants.update(constants_of(objective, errors, name))
        return pair_losses(objective, errors, {**objective.settings, **constants}, preference).mean()

    reference = (lambda x_t, t, cond: theirs(x_t)) if objective.needs_reference else None
    given = (predict, batch(), PROCESS, reference, objective.extras)
    terms = by_pair(*given, loss_of) if apart else iter([loss_of(pair_errors(*given))])
    for term in terms:
        term.backward()
    return torch.cat([p.grad.flatten() for p in ours.parameters()]), constants, seen


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_both_images_at_once(name):
    preference = torch.tensor([1.0, 0.5, 0.8], dtype=torch.float64) if name in ("mapo", "sft") else None
    objective = OBJECTIVES[name]
    one, constants, seen = gradients(objective, name, preference, apart=True)
    other, others_constants, _ = gradients(objective, name, preference, apart=False)
    assert one.abs().max() > 0 and torch.allclose(one, other, rtol=1e-10, atol=1e-14)
    assert constants == pytest.approx(others_constants, rel=1e-12)
    assert seen == [(False, PAIRS), (True, PAIRS), (True, PAIRS)]


def test_extras_may_carry_a_gradient_of_their_own():
    def loss(errors):
        return errors.chosen + 0.3 * errors.extras["together"].square() - 0.1 * errors.rejected

    extras = {"together": lambda both: (both.chosen * both.rejected).flatten(1).mean(1)}
    one, other = (gradients(Objective(loss, extras=extras), "own", None, apart)[0] for apart in (True, False))
    assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


def test_text_encoders_read_a_prompt_for_each_of_its_pictures(tmp_path, sdxl, pairs):
    adapter = {"kind": "lora", "rank": 2, "text_encoders": True}
    for apart in (False, True):
        values = {
            "model": str(sdxl), "pairs": str(pairs), "cache": str(tmp_path / "cache"), "adapter": adapter,
            "optim": {"lr": 1e-3, "eps": 1e-4},
            "train": {"steps": 3, "pairs_per_step": 2, "precision": "float64", "pair_by_pair": apart},
        }  # fmt: skip
        train(make_config(values), tmp_path / f"{apart}")
    assert_same(metrics(tmp_path / "True"), metrics(tmp_path / "False"), tolerance=1e-9)


def test_dropout_leaves_out_the_same_numbers(tmp_path, sdxl, pairs, cache):
    values = {
        "model": str(sdxl), "pairs": str(pairs), "cache": str(cache),
        "adapter": {"kind": "lora", "rank": 2, "dropout": 0.3}, "optim": {"lr": 1e-2, "eps": 1e-4},
    }  # fmt: skip
    for apart in (False, True):
        how = {"steps": 3, "pairs_per_step": 2, "precision": "float64", "pair_by_pair": apart}
        train(make_config({**values, "train": how}), tmp_path / f"{apart}")
    assert_same(metrics(tmp_path / "True"), metrics(tmp_path / "False"), tolerance=1e-9)


def test_a_run_may_go_on_pair_by_pair(tmp_path, sdxl, pairs, cache):
    whole = run(tmp_path / "whole", sdxl, pairs, cache, steps=3)
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, steps=3, pair_by_pair=True), whole)


def test_it_is_refused_where_weights_move_while_the_gradient_is_taken():
    config = make_config({"model": "mini", "pairs": "p", "train": {"pair_by_pair": True}})
    alone = Processes(Place(), torch.device("cpu"))
    check_levers(config, alone)
    object.__setattr__(config.optim, "in_backward", True)
    with pytest.raises(MapoError, match=r"optim\.in_backward: .*train\.pair_by_pair does not go together with it"):
        check_levers(config, alone)


def test_errors_of_chosen_pictures_alone_are_those_of_both():
    ours = network(0)
    whole, alone = (pair_errors(lambda x_t, t, cond: ours(x_t), batch(), PROCESS, whole=one) for one in (True, False))
    assert torch.allclose(whole.chosen, alone.chosen, rtol=1e-12) and alone.rejected.isnan().all()
    assert whole.whole and not alone.whole and isinstance(alone, PairErrors)
