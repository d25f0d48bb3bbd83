"""The heart: batch → pair errors → loss. Two pure functions on one screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mapo.models.noise import Schedule, image_errors
from mapo.train.objectives import OBJECTIVES, logit_and_scale, soft
from mapo.train.types import Batch, PairErrors

Predict = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]  # x_t "b c h w", t "b", cond → "b c h w"


def pair_errors(predict: Predict, batch: Batch, schedule: Schedule, reference: Predict | None = None) -> PairErrors:
    """Add the pair's noise to both of its images, predict, and measure the error of each image.

    The reference comes first: afterwards the graph of the policy would be held in memory beside its activations.
    """
    noise, t = batch.noise.repeat(2, 1, 1, 1), batch.timesteps.repeat(2)
    x_t = schedule.add_noise(batch.latents, noise, t)
    target = schedule.target(batch.latents, noise, t)
    ref_chosen = ref_rejected = None
    if reference is not None:
        with torch.no_grad():
            ref_chosen, ref_rejected = image_errors(reference(x_t, t, batch.cond), target).chunk(2)
    chosen, rejected = image_errors(predict(x_t, t, batch.cond), target).chunk(2)
    return PairErrors(chosen, rejected, ref_chosen, ref_rejected)


def pair_losses(
    objective: str, errors: PairErrors, settings: Mapping[str, float], preference: Tensor | None = None
) -> Tensor:
    """One loss per pair, "p"; ``preference`` "p" is how sure each pair is (none: certain)."""
    if preference is None or bool((preference == 1).all()):
        return OBJECTIVES[objective].loss(errors, **settings)
    return soft(OBJECTIVES[objective], errors, preference, **settings)


@torch.no_grad()
def pair_metrics(
    objective: str, errors: PairErrors, losses: Tensor, settings: Mapping[str, float]
) -> dict[str, Tensor]:
    """What is logged for every pair, "p" each; the means over all pairs of a step go into ``metrics.jsonl``."""
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
    logit, scale = logit_and_scale(OBJECTIVES[objective], errors, settings)
    metrics["accuracy"] = (margin > 0).double() + 0.5 * (margin == 0).double()
    return {**metrics, "logit": logit.to(margin.device), "logit_scale": scale.to(margin.device)}
