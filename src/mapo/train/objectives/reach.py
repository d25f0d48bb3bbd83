"""How far the margin of an objective reaches: how hard it pushes at equal errors, and where the push has ended.

Errors of another size (a flow model's, a v-prediction model's) make another objective of the same β. Here that is told
in numbers, from the formula alone; ``first_look.py`` measures the errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mapo.train.objectives import Objective
from mapo.train.objectives.own import constants_of
from mapo.train.types import PairErrors, PerPair, Residuals

ENDED = 0.1  # of the push at equal errors: below this share it is called gone
POINTS = torch.logspace(-4, 2, 601, dtype=torch.float64)  # margins that are looked at, in units of the error


@dataclass(frozen=True)
class Reach:
    """The margin term of an objective at one error ℓ of the chosen image.

    ``push``: −∂L/∂ℓ_l at equal errors; SFT's pull on the chosen image is 1. ``margin``: the ℓ_l − ℓ_w above 0 at
    which the push has fallen to a tenth; None where it does not in what was looked at, a hundred times ℓ.
    """

    error: float
    push: float
    margin: float | None


def pushes(objective: Objective, settings: Mapping[str, float], chosen: PerPair, rejected: PerPair) -> PerPair:
    """−∂L/∂ℓ_l of pairs with these errors, "p" in float64.

    A reference has the error of the chosen image for both, so that a margin is one over the reference's.
    """
    images = [errors.double().sqrt().view(-1, 1, 1, 1) for errors in (chosen, rejected)]  # of one element each
    both = Residuals(images[0], images[1], images[0], images[0])
    extras = {name: extra(both) for name, extra in objective.extras.items()}
    swapped = {name: extra(both.swapped()) for name, extra in objective.extras.items()}
    moving = rejected.double().requires_grad_()
    errors = PairErrors(chosen.double(), moving, chosen.double(), chosen.double(), extras, swapped)
    constants = {}
    if objective.prepare:  # of a step whose pairs have not moved yet
        still = PairErrors(chosen.double(), chosen.double(), chosen.double(), chosen.double(), extras, swapped)
        constants = constants_of(objective, still, "this objective")
    with torch.enable_grad():
        losses = objective.loss(errors, **settings, **constants)
        if not losses.requires_grad:
            return torch.zeros_like(moving)
        (gradient,) = torch.autograd.grad(losses.sum(), moving, allow_unused=True)
    found: Tensor = torch.zeros_like(moving) if gradient is None else -gradient
    return found.detach()


def reach(objective: Objective, settings: Mapping[str, float], error: float) -> Reach:
    """How hard the margin pushes where the chosen image has this error, and how far."""
    margins = torch.cat([torch.zeros(1, dtype=torch.float64), POINTS * error])
    found = pushes(objective, settings, torch.full_like(margins, error), error + margins)
    push = float(found[0])
    gone = (found <= ENDED * push).nonzero().flatten().tolist() if push > 0 else []
    return Reach(error, push, float(margins[gone[0]]) if gone else None)
