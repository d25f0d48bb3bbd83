"""Objectives by name: the built-in ones, and a function in a file of the user's own (``file.py:name``)."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mapo.errors import MapoError, ObjectiveFailed, suggest
from mapo.files import sha256
from mapo.train.objectives import OBJECTIVES, Objective, logit_and_scale
from mapo.train.types import PairErrors, Residuals, mean_squares

T = TypeVar("T")
IN_A_FILE = ".py:"
PROBED = 3  # pairs on which a user's function is tried before anything is loaded


def stable_name(name: str) -> str:
    """The name to write into a run: with the whole path of a file, so that it is found from any folder."""
    if IN_A_FILE not in name:
        return name
    path, _, function = name.rpartition(":")
    return f"{Path(path).resolve()}:{function}"


def file_identity(name: str) -> dict[str, str]:
    """A hash of the file in which an objective stands, as ``objective``; empty for the built-in ones."""
    return {"objective": sha256(_path_of(name).read_bytes())[:16]} if IN_A_FILE in name else {}


def all_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of an objective, those that were given on top of its defaults; MapoError where it has not these."""
    known = _find(name).settings
    for key, value in known.items():
        if key == "name" or not _is_number(value):
            raise MapoError(
                f"The objective {name} has the setting {key} = {value!r}. Settings are finite numbers with a name of "
                "their own. Write what is not one into the function."
            )
    for key, value in given.items():
        if key not in known:
            raise MapoError(
                f"The objective {name} has no setting {key!r}. {suggest(key, known) if known else ''}".strip()
            )
        if not _is_number(value):
            raise MapoError(f"The setting objective.{key} = {value!r} is not a number.")
    return {**known, **given}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def objective_named(name: str, settings: Mapping[str, float]) -> Objective:
    """The objective of a name, tried on some errors first: its losses have to be fit to train with.

    What one in a file raises later becomes an ObjectiveFailed, which names the file's line.
    """
    objective = _find(name)
    if IN_A_FILE in name:
        objective = _guarded(objective, name)
    _try(name, objective, settings)
    return objective


def _find(name: str) -> Objective:
    if IN_A_FILE in name:
        path = _path_of(name)
        return _load(name, path, sha256(path.read_bytes()))
    if name not in OBJECTIVES:
        raise MapoError(
            f"There is no objective {name!r}. {suggest(name, OBJECTIVES)} One of your own is written as file.py:name."
        )
    return OBJECTIVES[name]


def _path_of(name: str) -> Path:
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise MapoError(f"The objective {name} cannot be read: there is no file {path}.")
    return path


@lru_cache(maxsize=8)
def _load(name: str, path: Path, digest: str) -> Objective:
    """What stands in the file under the name; ``digest`` is of its content."""
    function = name.rpartition(":")[2]
    module_name = f"mapo_objective_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise MapoError(f"The objective {name} cannot be read: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))  # so that it may import a file beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise MapoError(_why(name, "cannot be read", path, error)) from None
    finally:
        sys.path.remove(str(path.parent))
    found = getattr(module, function, None)
    if isinstance(found, Objective):
        return found
    if not callable(found):
        mine = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == module_name}
        there = sorted(k for k, v in mine.items() if callable(v))
        hint = f"It has: {', '.join(there)}." if there else "It has no functions."
        raise MapoError(f"The objective {name} cannot be read: {path} has no function {function!r}. {hint}")
    try:
        inspect.signature(found)
        return Objective(found)
    except (TypeError, ValueError) as error:
        raise MapoError(_why(name, "cannot be used", path, error)) from None


def _guarded(objective: Objective, name: str) -> Objective:
    """The objective, whose functions raise ObjectiveFailed where they fail."""
    path = _path_of(name)

    def guard(function: Callable[..., T]) -> Callable[..., T]:
        @wraps(function)
        def call(*args: Any, **named: Any) -> T:
            try:
                return function(*args, **named)
            except (Exception, SystemExit) as error:
                raise ObjectiveFailed(_why(name, "cannot be used", path, error)) from None

        return call

    return replace(
        objective,
        loss=guard(objective.loss),
        logit=None if objective.logit is None else guard(objective.logit),
        extras={key: guard(function) for key, function in objective.extras.items()},
        prepare=None if objective.prepare is None else guard(objective.prepare),
    )


def _why(name: str, what: str, path: Path, error: BaseException) -> str:
    """What a user's code raised, as a sentence with its line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    where = f", line {line}" if line else ""
    reason = str(error).split("\n")[0][:200] or "nothing more is said"
    return f"The objective {name} {what} ({type(error).__name__}{where}: {reason})."


def _try(name: str, objective: Objective, settings: Mapping[str, float]) -> None:
    """MapoError where the objective does not give a finite loss with a gradient for each of some pairs."""
    told = ", ".join(f"{key} = {value:g}" for key, value in settings.items())
    this = f"The objective {name}" + (f" with {told}" if told else "")
    wanted = f"It has to give a tensor of {PROBED} losses for {PROBED} pairs"
    try:
        errors = _probe(objective, this)
        constants = constants_of(objective, errors, name)
        losses: Any = objective.loss(errors, **{**settings, **constants})
        if not isinstance(losses, Tensor):
            raise MapoError(f"{this} gave a {type(losses).__name__}. {wanted}.")
        if losses.shape != (PROBED,):
            raise MapoError(f"{this} gave a tensor of shape {list(losses.shape)}. {wanted}, one for each.")
        if not losses.is_floating_point() or not torch.isfinite(losses).all():
            raise MapoError(
                f"{this} gave {losses.detach().tolist()} for {PROBED} pairs with errors of 0.1 to 0.4. Its losses have "
                "to be finite numbers."
            )
        if not losses.requires_grad:
            raise MapoError(f"{this} gave losses without a gradient, so there is nothing to train by.")
        found = torch.autograd.grad(losses.sum(), (errors.chosen, errors.rejected), allow_unused=True)
        gradient = torch.cat([part for part in found if part is not None] or [torch.zeros(1)])
        if not torch.isfinite(gradient).all():
            raise MapoError(f"{this} has a gradient that is not finite for errors of 0.1 to 0.4.")
        if not gradient.any():
            raise MapoError(f"{this} has a gradient of nothing but zeros, so there is nothing to train by.")
        logit_and_scale(objective, errors, {**settings, **constants})
    except MapoError:
        raise
    except Exception as error:  # of a built-in objective, whose settings are at fault
        raise MapoError(f"{this} cannot be used ({type(error).__name__}: {error}). Take other settings.") from None


def constants_of(objective: Objective, errors: PairErrors, name: str) -> dict[str, float]:
    """What an objective prepares from the errors of a step; MapoError where that is not numbers by name."""
    if objective.prepare is None:
        return {}
    found: Any = objective.prepare(errors)
    if not isinstance(found, Mapping) or not all(isinstance(value, int | float) for value in found.values()):
        raise ObjectiveFailed(
            f"The objective {name} prepares {found!r}. It has to be a dictionary of numbers by name. float(…) makes "
            "one of a tensor."
        )
    return {key: float(value) for key, value in found.items()}


def _probe(objective: Objective, this: str) -> PairErrors:
    """Made-up errors of some pairs, with everything that the objective asks for."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(PROBED, 4, 8, 8, generator=generator) * scale for scale in (0.4, 0.5, 0.41, 0.48)]
    ours = [part.requires_grad_() for part in parts[:2]]
    theirs: list[Any] = parts[2:] if objective.needs_reference else [None, None]
    both = Residuals(ours[0], ours[1], theirs[0], theirs[1])
    forth, back = ({key: f(side) for key, f in objective.extras.items()} for side in (both, both.swapped()))
    for key, value in forth.items():
        if not isinstance(value, Tensor) or value.shape != (PROBED,):
            shown = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise MapoError(f"{this}: the extra {key} is of {shown}. It has to be a tensor of one number a pair.")
    ref_chosen, ref_rejected = (None if part is None else mean_squares(part) for part in theirs)
    chosen, rejected = (mean_squares(part.detach()).requires_grad_() for part in ours)
    return PairErrors(chosen, rejected, ref_chosen, ref_rejected, forth, back)
