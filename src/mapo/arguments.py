"""What a function for Python may be given: the kinds of its arguments, in words and as questions."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_args

from mapo.errors import MapoError, count, foreseen, suggest
from mapo.texts import is_whole_text

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Argument:
    """What an argument may be, in words and as a question."""

    words: str
    fits: Callable[[Any], bool]


def _is_path(value: Any) -> bool:
    if not isinstance(value, str | os.PathLike):
        return False
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeError:  # half a letter, which no file system has in a name
        return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(fits, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_whole_text(value)


def _maps_to(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda given: isinstance(given, Mapping) and all(_is_text(k) and fits(v) for k, v in given.items())


Place = Annotated[str | os.PathLike[str], Argument("a path, as text or as a Path", _is_path)]
Places = Annotated[
    str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    Argument("a path or a list of paths", lambda v: _is_path(v) or _are(_is_path)(v)),
]
Text = Annotated[str, Argument("text", _is_text)]
Texts = Annotated[str | Sequence[str], Argument("text or a list of texts", lambda v: _is_text(v) or _are(_is_text)(v))]
Prompts = Annotated[
    str | os.PathLike[str] | Sequence[str],
    Argument("text, a path, or a list of texts", lambda v: _is_path(v) or _are(_is_text)(v)),
]
Whole = Annotated[int, Argument("a whole number", _is_whole)]
Number = Annotated[float, Argument("a number", _is_number)]
Switch = Annotated[bool, Argument("True or False", lambda v: isinstance(v, bool))]
Seeds = Annotated[
    str | int | Sequence[int],
    Argument(
        'a seed, a list of seeds, or text such as "0-3"', lambda v: _is_text(v) or _is_whole(v) or _are(_is_whole)(v)
    ),
]
Settings = Annotated[
    Mapping[str, Any],
    Argument('a mapping of names to values, such as {"train.steps": 100}', _maps_to(lambda value: True)),
]
Numbers = Annotated[
    Mapping[str, float],
    Argument('a mapping of names to numbers, such as {"beta": 0.5}', _maps_to(_is_number)),
]
Names = Annotated[
    str | Mapping[str, str],
    Argument('a mapping of texts to texts, such as {"prompt": "text"}', lambda v: _is_text(v) or _maps_to(_is_text)(v)),
]


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with arguments that do not fit and errors that can be foreseen as MapoError."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **named)
        except TypeError:
            raise MapoError(_misfit(function.__name__, signature, args, named)) from None
        for name, value in bound.arguments.items():
            bound.arguments[name] = _checked(function.__name__, signature.parameters[name], value)
        try:
            return function(*bound.args, **bound.kwargs)
        except MapoError:
            raise
        except Exception as error:
            if said := foreseen(error):
                raise MapoError(said) from error
            raise

    return call


def _misfit(verb: str, signature: inspect.Signature, args: Sequence[Any], named: Mapping[str, Any]) -> str:
    """Why arguments cannot be given to a function."""
    known = signature.parameters
    if unknown := [name for name in named if name not in known]:
        return f"{verb}() has no argument {unknown[0]!r}. {suggest(unknown[0], known)}"
    in_order = [name for name, one in known.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    if len(args) > len(in_order):
        first = f"Only {in_order[0]} may stand without one" if in_order else "Give each by its name"
        example = ", ".join([*in_order, "out=…"])
        return f"{verb}() was given {count(len(args), 'argument')} without a name. {first}, as in {verb}({example})."
    if twice := [name for name in in_order[: len(args)] if name in named]:
        return f"{verb}() was given {twice[0]} twice."
    needed = [name for name, one in known.items() if one.default is one.empty]
    lacking = [name for name in needed if name not in named and name not in in_order[: len(args)]]
    return f"{verb}() needs {lacking[0]}."


def _checked(verb: str, parameter: inspect.Parameter, value: Any) -> Any:
    """The value, where it is of the kind that the argument asks for; numbers of other libraries as Python's own."""
    if value is None and parameter.default is None:
        return None
    if parameter.name == "out" and isinstance(value, str) and not value.strip():
        raise MapoError(f"{verb}(): out is empty. Name the place to write to.")
    return of_kind(f"{verb}(): {parameter.name}", parameter.annotation, value)


def of_kind(what: str, annotation: Any, value: Any) -> Any:
    """The value, where it is of the kind that is asked for; MapoError that says ``what`` it is where it is not."""
    asked = next(one for part in (annotation, *get_args(annotation)) for one in _described(part))
    if not asked.fits(value):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
        raise MapoError(f"{what} is {shown}; it must be {asked.words}.")
    return int(value) if _is_whole(value) else float(value) if _is_number(value) else value


def _described(annotation: Any) -> list[Argument]:
    return [one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Argument)]


def as_folder(what: str, given: Any) -> Path:
    """A place as a Path; MapoError that says ``what`` it is where it is not one."""
    return Path(of_kind(what, Place, given))


def as_text(given: str | os.PathLike[str] | None) -> str | None:
    """A place as it was written; None stays."""
    return None if given is None else os.fspath(given)


def as_paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """One place or several, as a list."""
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(one) for one in given]


def as_texts(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """One place or several as they were written, as a list."""
    return [os.fspath(one) for one in ([given] if isinstance(given, str | os.PathLike) else given)]


def as_prompts(given: str | os.PathLike[str] | Sequence[str]) -> str | Sequence[str]:
    """A source of prompts as it was written, or a list of prompts."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given
