"""An objective is tried on made-up errors before anything is loaded.

It is refused for what training cannot bear, and for what would make a run depend on how it is cut up: on batches,
processes or stops. What may be meant as it is, is only doubted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mapo.errors import MapoError
from mapo.train.objectives import Objective, logit_and_scale
from mapo.train.objectives.own import all_settings, constants_of, objective_named
from mapo.train.types import PairErrors, Residuals, mean_squares

Levels = Sequence[tuple[float, ...]]
TYPICAL: Levels = ((0.16, 0.25), (0.11, 0.14), (0.22, 0.31))  # errors of chosen and rejected
GRID: Levels = tuple(product((0.001, 0.01, 0.1, 1.0), repeat=2))  # as timesteps of high and of low noise give them
SMALLEST = torch.finfo(torch.float32).tiny  # below it errors in float32 have no gradient to lose


def try_objective(name: str, given: Mapping[str, float]) -> list[str]:
    """What is doubtful about the objective of a name, a sentence each; MapoError where it cannot be trained with.

    ``given`` are settings in place of its defaults.
    """
    return doubts(name, objective_named(name), all_settings(name, given))


def doubts(name: str, objective: Objective, settings: Mapping[str, float]) -> list[str]:
    """What is doubtful about an objective with all its ``settings``, a sentence each; MapoError as above."""
    told = ", ".join(f"{key} = {value:g}" for key, value in settings.items())
    this = f"The objective {name}" + (f" with {told}" if told else "")
    try:
        typical, grid = (_made_up(objective, levels, this) for levels in (TYPICAL, GRID))

        def trial(errors: PairErrors) -> _Trial:
            return _Trial(this, objective, {**settings, **constants_of(objective, errors, name)}, errors)

        first = trial(typical)
        _refuse(first)
        # a strong beta has nothing to say of typical pairs any more; then it counts where a training begins
        if not (first.has_gradient() or trial(_all_equal(typical)).has_gradient()):
            raise MapoError(f"{this} has a gradient of nothing but zeros, so there is nothing to train by.")
        return [*_directions(this, trial(_all_equal(typical))), *_doubts(trial(grid))]
    except MapoError:
        raise
    except Exception as error:  # of a built-in objective, whose settings are at fault
        raise MapoError(f"{this} cannot be used ({type(error).__name__}: {error}). Take other settings.") from None


@dataclass(frozen=True)
class _Trial:
    """An objective, all that it takes as keywords, and the errors that it is tried on; ``this`` is its name."""

    this: str
    objective: Objective
    known: Mapping[str, float]
    errors: PairErrors

    def ask(self, errors: PairErrors) -> Tensor:
        """The loss of each pair and its derivatives by the errors of chosen and rejected, "3 p" in float64."""
        chosen, rejected = (side.clone().requires_grad_() for side in (errors.chosen, errors.rejected))
        losses: Any = self.objective.loss(replace(errors, chosen=chosen, rejected=rejected), **self.known)
        wanted = f"It has to give a tensor of one loss for each pair, here of shape [{len(chosen)}]."
        if not isinstance(losses, Tensor):
            raise MapoError(f"{self.this} gave a {type(losses).__name__}. {wanted}")
        if losses.shape != chosen.shape:
            raise MapoError(f"{self.this} gave a tensor of shape {list(losses.shape)}. {wanted}")
        if not losses.is_floating_point():
            raise MapoError(f"{self.this} gave {losses.tolist()}. Its losses have to be finite numbers.")
        if not losses.requires_grad:
            raise MapoError(f"{self.this} gave losses without a gradient, so there is nothing to train by.")
        found = torch.autograd.grad(losses.sum(), (chosen, rejected), allow_unused=True)
        gradients = [torch.zeros_like(chosen) if part is None else part for part in found]
        return torch.stack([losses.detach().double(), *(part.double() for part in gradients)])

    def has_gradient(self) -> bool:
        """Whether the loss depends on the errors of any pair."""
        return bool(self.ask(self.errors)[1:].nan_to_num().any())

    def logit(self, errors: PairErrors) -> Tensor:
        """The logit of each pair."""
        return logit_and_scale(self.objective, errors, self.known)[0]


def _refuse(trial: _Trial) -> None:
    """MapoError where there is not a finite loss with a gradient for each pair, the same in every batch."""
    this, objective, errors = trial.this, trial.objective, trial.errors
    found, pairs = trial.ask(errors), len(errors.chosen)
    if not found[0].isfinite().all():
        raise MapoError(
            f"{this} gave {found[0].tolist()} for {pairs} pairs with errors of 0.1 to 0.4. Its losses have to be "
            "finite numbers."
        )
    if not found.isfinite().all():
        raise MapoError(f"{this} has a gradient that is not finite for errors of 0.1 to 0.4.")
    if not _alike(trial.ask(errors), found):
        raise MapoError(
            f"{this} gave another loss when it was asked again about the same errors. A loss may depend on nothing "
            "else, or a run that was stopped could not go on as if it had not been."
        )
    for k in range(pairs):
        alone = trial.ask(_made_up(objective, TYPICAL, this, slice(k, k + 1)))
        if not _alike(alone[:, 0], found[:, k]):
            raise MapoError(
                f"{this} gave a pair the loss {alone[0, 0]:g} alone and {found[0, k]:g} among {pairs} pairs, or other "
                "gradients. A loss may not depend on the other pairs of its batch, or the size of batches and the "
                "number of processes would change what is trained. Let prepare make what it needs of the others."
            )
    if not objective.needs_rejected:
        _refuse_needs(trial, found)
    if objective.needs_reference:
        same = replace(errors, ref_chosen=errors.chosen, ref_rejected=errors.rejected)
        if not trial.ask(same).isfinite().all():
            raise MapoError(
                f"{this} has a loss or a gradient that is not finite where the errors equal those of the "
                "reference. In the first step of a run they do."
            )
    if trial.logit(errors).shape != (pairs,):
        shape = list(trial.logit(errors).shape)
        raise MapoError(f"{this} has a logit of shape {shape}. It has to be one number for each pair.")


def _refuse_needs(trial: _Trial, found: Tensor) -> None:
    """MapoError where an objective that says it does not need the rejected image's error does."""
    errors, objective = trial.errors, trial.objective
    unknown = trial.ask(replace(errors, rejected=torch.full_like(errors.rejected, torch.nan)))
    if objective.extras or objective.prepare or found[2].any() or not _alike(unknown[:2], found[:2]):
        raise MapoError(
            f"{trial.this} says needs_rejected=False, so the rejected images would not be run. But its loss "
            "depends on their errors, or it has extras or prepare, which may use them. Leave needs_rejected out."
        )


def _directions(this: str, trial: _Trial) -> list[str]:
    """A sentence where training begins in the wrong direction, at pairs whose two errors are equal."""
    _, by_chosen, by_rejected = trial.ask(_doubled(trial.errors))
    wrong = [("chosen", "away from")] if (by_chosen < 0).any() else []
    wrong += [("rejected", "nearer to")] if (by_rejected > 0).any() else []
    return [f"{this} begins by moving the model {way} the {side} pictures. Is a sign wrong?" for side, way in wrong]


def _doubts(trial: _Trial) -> list[str]:
    """A sentence where it is not finite for some errors, errs in float32, or does not turn its logit with the pair."""
    this, errors, exact = trial.this, trial.errors, _doubled(trial.errors)
    single, double = trial.ask(errors), trial.ask(exact)
    said = []

    def at(pairs: Tensor) -> str:
        k = int(pairs.nonzero()[0])
        return f"errors of {errors.chosen[k]:g} (chosen) and {errors.rejected[k]:g} (rejected)"

    finite = (single.isfinite() & double.isfinite()).all(0)
    if not finite.all():
        said.append(
            f"{this} has a loss or a gradient that is not finite for {at(~finite)}. A step with such a pair would end "
            "the training."
        )
    off = ((single - double).abs() > 0.01 * double.abs() + 1e-6 * _largest(double) + SMALLEST) & finite
    if off.any():
        row, k = off.nonzero()[0].tolist()
        what = ("a loss", "a gradient by the chosen error", "a gradient by the rejected error")[row]
        said.append(
            f"{this} has {what} of {single[row, k]:g} for {at(off[row])}, where exact arithmetic gives "
            f"{double[row, k]:g}. Compute in float64, with errors.chosen.double() and errors.rejected.double()."
        )
    forth, back = trial.logit(exact), trial.logit(exact.swapped())
    uneven = (forth + back).abs() > 1e-6 * _largest(forth)
    if uneven.any():
        k = int(uneven.nonzero()[0])
        said.append(
            f"{this} has a logit of {forth[k]:g} for {at(uneven)} and of {back[k]:g} with the two exchanged. One is "
            "not minus the other, so the sign of `logit` in metrics.jsonl does not say which picture is preferred."
        )
    return said


def _all_equal(errors: PairErrors) -> PairErrors:
    """The same pairs with one error each for both images, and for the reference where there is one."""
    reference = None if errors.ref_chosen is None else errors.chosen
    return replace(errors, rejected=errors.chosen, ref_chosen=reference, ref_rejected=reference)


def _largest(values: Tensor) -> Tensor:
    """The largest size among the finite numbers of each row."""
    return values.nan_to_num(0, 0, 0).abs().amax(-1, keepdim=True)


def _alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def _doubled(errors: PairErrors) -> PairErrors:
    """The same numbers in float64."""
    sides: dict[str, Any] = {key: side.double() for key, side in vars(errors).items() if isinstance(side, Tensor)}
    for name in ("extras", "extras_swapped"):
        sides[name] = {key: value.double() for key, value in getattr(errors, name).items()}
    return replace(errors, **sides)


def _made_up(objective: Objective, levels: Levels, this: str, taken: slice = slice(None)) -> PairErrors:
    """Errors of one pair for each of the ``levels`` in float32, with everything that the objective asks for.

    Of these the ones that are ``taken``: extras are made for these alone.
    """
    chosen, rejected = torch.tensor(levels).T
    sides = [chosen, rejected, 1.1 * chosen, 0.95 * rejected] if objective.needs_reference else [chosen, rejected]
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(len(levels), 4, 8, 8, generator=generator) for _ in sides]
    parts = [n * (side / mean_squares(n)).sqrt().view(-1, 1, 1, 1) for side, n in zip(sides, noises, strict=True)]
    both = Residuals(*(part[taken] for part in parts))
    forth, back = ({key: f(side) for key, f in objective.extras.items()} for side in (both, both.swapped()))
    errors = [side[taken] for side in sides]
    for key, value in (forth | back).items():
        if not isinstance(value, Tensor) or value.shape != errors[0].shape:
            shown = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise MapoError(f"{this}: the extra {key} is of {shown}. It has to be a tensor of one number a pair.")
    return replace(PairErrors(*errors), extras=forth, extras_swapped=back)
