"""The heart: batch → pair errors → loss. Pure functions on one screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mapo.models.noise.process import Process
from mapo.train.objectives import Objective, logit_and_scale, soft
from mapo.train.types import (
    Batch,
    Cond,
    Images,
    PairErrors,
    PerImage,
    PerPair,
    Residuals,
    Sides,
    mean_squares,
)

Predict = Callable[[Images, PerImage, Cond], Images]  # x_t, t, cond → prediction
Extras = Mapping[str, Callable[[Residuals], PerPair]]
SIDES: tuple[Sides, Sides] = ("chosen", "rejected")


def residuals(predict: Predict, process: Process, x0: Images, noise: Images, t: PerImage, cond: Cond) -> Images:
    """Prediction minus target of b noisy images, in the precision of ``x0``."""
    target = process.target(x0, noise, t)
    return predict(process.add_noise(x0, noise, t), t, cond).to(target.dtype) - target


def residuals_of(sides: Sides, predict: Predict, batch: Batch, process: Process) -> Images:
    """Those of a batch's chosen images, its rejected ones, or both. Noise and time are those of the image's pair."""
    pair_of = batch.pair_of[batch.rows(sides)]
    noise, t = batch.noise[pair_of], batch.timesteps[pair_of]
    return residuals(predict, process, batch.latents[batch.rows(sides)], noise, t, batch.told(sides))


def both_residuals(
    predict: Predict, batch: Batch, process: Process, *, apart: bool = False, whole: bool = True
) -> list[Images | None]:
    """Those of the chosen and of the rejected images, in one forward; ``apart``: in two.

    The second is None where not the ``whole`` pair is asked for, or there are no rejected images.
    """
    if not (whole and batch.has_rejected):
        return [residuals_of("chosen", predict, batch, process), None]
    if apart:
        return [residuals_of(side, predict, batch, process) for side in SIDES]
    return list(residuals_of("both", predict, batch, process).chunk(2))


def pair_errors(
    predict: Predict,
    batch: Batch,
    process: Process,
    reference: Predict | None = None,
    extras: Extras | None = None,
    *,
    apart: bool = False,
    whole: bool = True,
) -> PairErrors:
    """Add the pair's noise to both of its images, predict, and measure the error of each image.

    The reference comes first: afterwards the graph of the policy would be held in memory beside its activations.
    """
    theirs: list[Images | None] = [None, None]
    if reference is not None:
        with torch.no_grad():
            theirs = both_residuals(reference, batch, process, apart=apart, whole=whole)
    return measured(both_residuals(predict, batch, process, apart=apart, whole=whole), theirs, batch, extras)


def measured(
    ours: Sequence[Images | None], theirs: Sequence[Images | None], batch: Batch, extras: Extras | None = None
) -> PairErrors:
    """The errors of pairs from their residuals, chosen and rejected, and from the reference's where there are some."""
    chosen, rejected = ours
    assert chosen is not None
    error = mean_squares(chosen)
    known = [
        before if side is None else mean_squares(side)
        for side, before in zip(theirs, (batch.ref_chosen, batch.ref_rejected), strict=True)
    ]
    if rejected is None:
        return PairErrors(error, torch.full_like(error, torch.nan), known[0], known[1], whole=False)
    both = Residuals(chosen, rejected, theirs[0], theirs[1])
    forth, back = ({name: f(side) for name, f in (extras or {}).items()} for side in (both, both.swapped()))
    return PairErrors(error, mean_squares(rejected), known[0], known[1], forth, back)


def by_pair(
    predict: Predict,
    batch: Batch,
    process: Process,
    reference: Predict | None,
    extras: Extras | None,
    loss_of: Callable[[PairErrors], Tensor],
) -> Iterator[Tensor]:
    """The loss of a batch in two terms, whose gradients add up to its own, with one image of a pair in memory.

    What reaches an image's forward is the gradient of the loss by its residual. So the rejected images go forward
    without a graph, the chosen ones with theirs, and once that has been gone back the rejected ones again with theirs.
    Whoever takes a term goes back through it before taking the next.
    """
    theirs: list[Images | None] = [None, None]
    with torch.no_grad():
        if reference is not None:
            theirs = both_residuals(reference, batch, process, apart=True)
        rejected = residuals_of("rejected", predict, batch, process)
    chosen = residuals_of("chosen", predict, batch, process)
    leaves = [side.detach().requires_grad_() for side in (chosen, rejected)]
    loss = loss_of(measured(leaves, theirs, batch, extras))
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    pulls = [torch.zeros_like(leaf) if pull is None else pull for leaf, pull in zip(leaves, found, strict=True)]
    yield (chosen * pulls[0]).sum()
    del chosen
    yield (residuals_of("rejected", predict, batch, process) * pulls[1]).sum()


def pair_losses(
    objective: Objective, errors: PairErrors, settings: Mapping[str, float], preference: PerPair | None = None
) -> PerPair:
    """One loss per pair; ``preference`` is how sure each pair is (none: certain).

    ``settings`` are the objective's knobs, and the constants of the step where it prepares some.
    """
    if preference is None:
        return objective.loss(errors, **settings)
    return soft(objective, errors, preference, **settings)


@torch.no_grad()
def pair_metrics(
    objective: Objective, errors: PairErrors, losses: PerPair, settings: Mapping[str, float]
) -> dict[str, PerPair]:
    """What is logged for every pair; the means over all pairs of a step go into ``metrics.jsonl``."""
    if not errors.whole:
        return {"loss": losses.detach(), "error_chosen": errors.chosen.detach().double()}
    margin = (errors.rejected - errors.chosen).double()
    metrics = {
        "loss": losses.detach(),
        "error_chosen": errors.chosen.detach().double(),
        "error_rejected": errors.rejected.detach().double(),
        "margin": margin.detach(),
    }
    if errors.ref_chosen is not None and errors.ref_rejected is not None:
        margin = margin - (errors.ref_rejected - errors.ref_chosen).double()
        metrics["margin_over_reference"] = margin.detach()
    logit, scale = logit_and_scale(objective, errors, settings)
    metrics["accuracy"] = (margin > 0).double() + 0.5 * (margin == 0).double()
    return {**metrics, "logit": logit.to(margin.device), "logit_scale": scale.to(margin.device)}
