"""Objectives by name: the built-in ones, and a function in a file of the user's own (``file.py:name``)."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mapo.errors import MapoError, suggest
from mapo.files import sha256
from mapo.train.objectives import OBJECTIVES, Objective
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
    for key, value in given.items():
        if key not in known:
            raise MapoError(
                f"The objective {name} has no setting {key!r}. {suggest(key, known) if known else ''}".strip()
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MapoError(f"The setting objective.{key} = {value!r} is not a number.")
    return {**known, **given}


def objective_named(name: str, settings: Mapping[str, float]) -> Objective:
    """The objective of a name. One in a file is tried on some errors first: its losses have to be fit to train with."""
    objective = _find(name)
    if IN_A_FILE in name:
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
    _guarded(name, "cannot be read", path, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    found = getattr(module, function, None)
    if isinstance(found, Objective):
        return found
    if not callable(found):
        there = sorted(
            k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module_name
        )
        hint = f"It has: {', '.join(there)}." if there else "It has no functions."
        raise MapoError(f"The objective {name} cannot be read: {path} has no function {function!r}. {hint}")
    objective = Objective(found)
    _guarded(name, "cannot be used", path, lambda: objective.settings)
    return objective


def _try(name: str, objective: Objective, settings: Mapping[str, float]) -> None:
    """MapoError where the objective does not give a finite loss with a gradient for each of some pairs."""
    path = _path_of(name)
    errors = _probe(objective, name, path)
    how = dict(settings)
    if objective.prepare is not None:
        how |= _guarded(name, "cannot be used", path, lambda: dict(objective.prepare(errors)))  # type: ignore[misc]
    losses: Any = _guarded(name, "cannot be used", path, lambda: objective.loss(errors, **how))
    wanted = f"It has to give a tensor of {PROBED} losses for {PROBED} pairs"
    if not isinstance(losses, Tensor):
        raise MapoError(f"The objective {name} gave a {type(losses).__name__}. {wanted}.")
    if losses.shape != (PROBED,):
        raise MapoError(f"The objective {name} gave a tensor of shape {list(losses.shape)}. {wanted}, one for each.")
    if not losses.is_floating_point() or not torch.isfinite(losses).all():
        raise MapoError(
            f"The objective {name} gave {losses.detach().tolist()} for {PROBED} pairs with errors of 0.1 to 0.4. Its "
            "losses have to be finite numbers."
        )
    if not losses.requires_grad:
        raise MapoError(f"The objective {name} gave losses without a gradient, so there is nothing to train by.")
    gradient = torch.autograd.grad(losses.sum(), (errors.chosen, errors.rejected), allow_unused=True)
    if not all(torch.isfinite(g).all() for g in gradient if g is not None):
        raise MapoError(f"The objective {name} has a gradient that is not finite for errors between 0.1 and 0.4.")


def _probe(objective: Objective, name: str, path: Path) -> PairErrors:
    """Made-up errors of some pairs, with everything that the objective asks for."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(PROBED, 4, 8, 8, generator=generator) * scale for scale in (0.4, 0.5, 0.41, 0.48)]
    ours = [part.requires_grad_() for part in parts[:2]]
    theirs: list[Any] = parts[2:] if objective.needs_reference else [None, None]
    both = Residuals(ours[0], ours[1], theirs[0], theirs[1])

    def extras_of(side: Residuals) -> dict[str, Tensor]:
        return _guarded(name, "cannot be used", path, lambda: {key: f(side) for key, f in objective.extras.items()})

    ref_chosen, ref_rejected = (None if part is None else mean_squares(part) for part in theirs)
    chosen, rejected = (mean_squares(part.detach()).requires_grad_() for part in ours)
    return PairErrors(chosen, rejected, ref_chosen, ref_rejected, extras_of(both), extras_of(both.swapped()))


def _guarded(name: str, what: str, path: Path, work: Callable[[], T]) -> T:
    """What ``work`` gives; what a user's code raises becomes one sentence with its line."""
    try:
        return work()
    except MapoError:
        raise
    except Exception as error:
        frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else (frames[-1] if frames else None)
        where = f", line {line}" if line else ""
        reason = str(error).split("\n")[0][:200] or "nothing more is said"
        raise MapoError(f"The objective {name} {what} ({type(error).__name__}{where}: {reason}).") from None
