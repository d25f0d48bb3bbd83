"""Objectives by name: the built-in ones, and a function in a file of the user's own (``file.py:name``)."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from mapo.errors import MapoError, ObjectiveFailed, suggest
from mapo.files import sha256
from mapo.train.objectives import OBJECTIVES, Objective
from mapo.train.types import PairErrors

T = TypeVar("T")
IN_A_FILE = ".py:"


def stable_name(name: str) -> str:
    """The name to write into a run: with the whole path of a file, so that it is found from any folder."""
    if IN_A_FILE not in name:
        return name
    path, _, function = name.rpartition(":")
    return f"{Path(path).resolve()}:{function}"


def file_identity(name: str) -> dict[str, tuple[str, ...]]:
    """A hash of an objective's file and of those that it imports from its folder, as ``objective``.

    The second form is that of 0.1.0, of the file alone. Empty for the built-in ones.
    """
    if IN_A_FILE not in name:
        return {}
    files = _files_of(_path_of(name))
    return {"objective": (_digest(files)[:16], _digest(files[:1])[:16])}


def _files_of(path: Path) -> list[Path]:
    """A Python file, and those of its folder that it imports, one through another."""
    found = [path]
    for file in found:
        try:
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
        except (SyntaxError, ValueError):  # which is told when it is loaded
            continue
        for node in nodes:
            home, names = path.parent, list[str]()
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                home = file.parents[node.level - 1] if node.level else home
                names = [f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names]
            for parts in (name.split(".") for name in names if name.partition(".")[0] != "mapo"):
                places = [home.joinpath(*parts[: k + 1]) for k in range(len(parts))]
                there = [one for place in places for one in (place.with_suffix(".py"), place / "__init__.py")]
                found += [one for one in there if one not in found and one.is_file()]
    return found


def _digest(files: Sequence[Path]) -> str:
    return sha256(b"\0".join(file.read_bytes() for file in files))


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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def objective_named(name: str) -> Objective:
    """The objective of a name. What one in a file raises becomes an ObjectiveFailed, which names the file's line."""
    objective = _find(name)
    return _guarded(objective, name) if IN_A_FILE in name else objective


def _find(name: str) -> Objective:
    if IN_A_FILE in name:
        path = _path_of(name)
        files = tuple(_files_of(path))
        return _load(name, files, _digest(files))
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
def _load(name: str, files: tuple[Path, ...], digest: str) -> Objective:
    """What stands in the first file under the name; ``digest`` is of the content of all, which may have changed."""
    path, places = files[0], {str(file.resolve()) for file in files}
    for key in [k for k, module in sys.modules.items() if str(getattr(module, "__file__", None)) in places]:
        del sys.modules[key]
    function = name.rpartition(":")[2]
    module_name = f"mapo_objective_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise MapoError(f"The objective {name} cannot be read: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent.resolve()))  # so that it may import a file beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise MapoError(_why(name, "cannot be read", path, error)) from None
    finally:
        sys.path.remove(str(path.parent.resolve()))
    found = getattr(module, function, None)
    if isinstance(found, Objective):
        _refuse_parts(name, found)
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


def _refuse_parts(name: str, objective: Objective) -> None:
    """MapoError where a part of an Objective that a user wrote is not of the kind that it has to be."""
    functions: dict[str, Any] = {"loss": objective.loss, "logit": objective.logit, "prepare": objective.prepare}
    wrong = {key: one for key, one in functions.items() if not callable(one) and not (one is None and key != "loss")}
    for key, value in wrong.items():
        raise MapoError(f"The objective {name} has the {key} {value!r}. It has to be a function.")
    extras: Any = objective.extras
    if not isinstance(extras, Mapping) or not all(map(callable, extras.values())):
        raise MapoError(f"The objective {name} has the extras {extras!r}. They have to be a dictionary of functions.")


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
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    where = f", line {line}" if line else ""
    reason = str(error).split("\n")[0][:200] or "nothing more is said"
    return f"The objective {name} {what} ({type(error).__name__}{where}: {reason})."


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
