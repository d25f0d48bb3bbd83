"""Every objective trains every family, with every adapter."""

from copy import deepcopy

import pytest
import torch

from mapo.models import Frames, TokenModel, find_model, open_model, together
from mapo.train.objectives import OBJECTIVES
from mapo.train.objectives.own import constants_of
from mapo.train.sections import AdapterConfig
from mapo.train.step import pair_errors, pair_losses
from mapo.train.types import Batch
from mapo.train.weights.adapters import add_adapter, add_text_adapters, trainable, without_adapter
from mapo.train.weights.opening import WithText

pytestmark = pytest.mark.long

PAIRS, STEPS = 2, 20
RATES = {"ipo": 1e-6}  # which asks for a margin of 1 / (2 beta): greater steps go beyond it


def small_batch(model, as_tokens=False):
    """Two pairs of latents that are easily told apart."""
    generator = torch.Generator().manual_seed(0)
    shape = model.layout.latent(16)
    latents = torch.randn(2 * PAIRS, *shape, generator=generator)
    prompts = ["a red circle", "a large blue square"] * 2
    if as_tokens:
        texts = [{**tokens, "zero": torch.tensor(False)} for tokens in model.tokens(prompts)]
    else:
        found = model.text_encoder("cpu")(prompts)
        texts = [{name: values[k] for name, values in found.items()} for k in range(2 * PAIRS)]
    cond = model.condition(together(texts), Frames.square(torch.tensor([[16, 16, 0, 0]] * 2 * PAIRS), 16))
    noise = torch.randn(PAIRS, *shape, generator=generator)
    t = model.process.draw_time(PAIRS, generator, shape)
    return Batch(latents, cond, torch.ones(PAIRS), torch.ones(PAIRS), noise, t)


@pytest.fixture(scope="module")
def family(any_model):
    model = open_model(find_model(str(any_model)))
    return model, small_batch(model), model.denoiser("cpu", torch.float32)


def fresh(family, adapter):
    model, batch, loaded = family
    network = deepcopy(loaded)
    add_adapter(network, model, AdapterConfig(kind=adapter, rank=4), seed=0)
    return model, batch, network


def descend(name, model, batch, predict, reference, parameters, steps=STEPS):
    """Take some steps; the loss is lower afterwards."""
    objective = OBJECTIVES[name]
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATES.get(name, 1e-3), fused=True)
    losses = []
    for _ in range(steps + 1):
        errors = pair_errors(
            predict, batch, model.process, reference if objective.needs_reference else None, objective.extras
        )
        settings = {**objective.settings, **constants_of(objective, errors, name)}
        loss = pair_losses(objective, errors, settings).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] and torch.isfinite(torch.tensor(losses)).all()
    if objective.needs_reference and name not in ("sdpo", "kto"):
        assert errors.ref_chosen is not None and not torch.equal(errors.ref_chosen, errors.chosen)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_twenty_steps_lower_the_loss(family, name, adapter):
    if adapter not in family[0].adapters:
        pytest.skip("this family is trained with a LoRA only")
    model, batch, network = fresh(family, adapter)
    frozen = fresh(family, "full")[2] if adapter == "full" else network

    def predict(x_t, t, cond):
        return model.predict(network, x_t, t, cond)

    def reference(x_t, t, cond):
        if adapter == "full":
            return model.predict(frozen, x_t, t, cond)
        with without_adapter(network):
            return model.predict(network, x_t, t, cond)

    descend(name, model, batch, predict, reference, trainable(network))


@pytest.fixture(scope="module")
def with_text(family):
    """The text encoders of a family with a LoRA beside a denoiser that stands still, and their first weights."""
    model = family[0]
    if not isinstance(model, TokenModel):
        pytest.skip("the text encoders of this family are not trained")
    denoiser, encoders = fresh(family, "lora")[2], model.load_text_encoders("cpu")
    config = AdapterConfig(kind="lora", rank=4, text_encoders=True)
    add_text_adapters(encoders, model, config, 0, dict.fromkeys(encoders, ()))
    network = WithText(model, denoiser.requires_grad_(False), encoders)
    weights = {name: parameter.detach().clone() for name, parameter in trainable(network).items()}
    return model, small_batch(model, as_tokens=True), network, weights


@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_of_the_text_encoders_alone_lower_the_loss(with_text, name):
    """What is learned comes through the prompts."""
    model, batch, network, weights = with_text
    network.load_state_dict(weights, strict=False)

    def reference(x_t, t, cond):
        with without_adapter(network):
            return network(x_t, t, cond)

    descend(name, model, batch, network, reference, trainable(network), steps=3)


def test_both_pictures_of_a_pair_share_noise_and_time(family):
    model, batch, network = fresh(family, "full")
    chosen = batch.latents[:PAIRS]
    same = Batch(torch.cat([chosen, chosen]), batch.cond, *list(vars(batch).values())[2:])
    errors = pair_errors(lambda x, t, cond: model.predict(network, x, t, cond), same, model.process)
    assert torch.equal(errors.chosen, errors.rejected) and (errors.chosen > 0).all()
