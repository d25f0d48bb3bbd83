"""The heart: batch → pair errors → loss. Pure functions on one screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mapo.models.noise.process import Process
from mapo.train.objectives import Objective, logit_and_scale, soft
from mapo.train.types import Batch, Cond, Images, PairErrors, PerImage, PerPair, Residuals, mean_squares

Predict = Callable[[Images, PerImage, Cond], Images]  # x_t, t, cond → prediction


def residuals(predict: Predict, process: Process, x0: Images, noise: Images, t: PerImage, cond: Cond) -> Images:
    """Prediction minus target of b noisy images, in the precision of ``x0``."""
    target = process.target(x0, noise, t)
    return predict(process.add_noise(x0, noise, t), t, cond).to(target.dtype) - target


def pair_errors(
    predict: Predict,
    batch: Batch,
    process: Process,
    reference: Predict | None = None,
    extras: Mapping[str, Callable[[Residuals], PerPair]] | None = None,
) -> PairErrors:
    """Add the pair's noise to both of its images, predict, and measure the error of each image.

    The reference comes first: afterwards the graph of the policy would be held in memory beside its activations.
    """
    noise, t = batch.noise[batch.pair_of], batch.timesteps[batch.pair_of]
    theirs: list[Tensor | None] = [None, None]
    if reference is not None:
        with torch.no_grad():
            theirs = list(residuals(reference, process, batch.latents, noise, t, batch.cond).chunk(2))
    ours = residuals(predict, process, batch.latents, noise, t, batch.cond).chunk(2)
    both = Residuals(ours[0], ours[1], theirs[0], theirs[1])
    forth, back = ({name: f(side) for name, f in (extras or {}).items()} for side in (both, both.swapped()))
    reference_errors = [None if side is None else mean_squares(side) for side in theirs]
    return PairErrors(
        mean_squares(ours[0]), mean_squares(ours[1]), reference_errors[0], reference_errors[1], forth, back
    )


def pair_losses(
    objective: Objective, errors: PairErrors, settings: Mapping[str, float], preference: PerPair | None = None
) -> PerPair:
    """One loss per pair; ``preference`` is how sure each pair is (none: certain).

    ``settings`` are the objective's knobs, and the constants of the step where it prepares some.
    """
    if preference is None or bool((preference == 1).all()):
        return objective.loss(errors, **settings)
    return soft(objective, errors, preference, **settings)


@torch.no_grad()
def pair_metrics(
    objective: Objective, errors: PairErrors, losses: PerPair, settings: Mapping[str, float]
) -> dict[str, PerPair]:
    """What is logged for every pair; the means over all pairs of a step go into ``metrics.jsonl``."""
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
