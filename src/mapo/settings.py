"""Settings: frozen sections, TOML files, and ``--set`` flags on top of each other."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails

from mapo.errors import MapoError, reason
from mapo.files import at_home
from mapo.texts import read_text


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("it has to be a number")
    return value


Number = Annotated[float, BeforeValidator(_no_truth)]  # pydantic would take true for 1
Positive = Annotated[int, BeforeValidator(_no_truth), Field(gt=0)]
NotNegative = Annotated[int, BeforeValidator(_no_truth), Field(ge=0)]


def told(default: Any, about: str) -> Any:
    """A setting: what it is without being set, and what it does, for whoever reads docs/settings.md."""
    return Field(default, description=about)


WHY = {  # of pydantic's errors by their type, where "it has to be …" needs other words than its own
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": 'a list, such as ["NAME"]',
}


def why_not(error: ErrorDetails) -> str:
    """What a value has to be, of one of pydantic's ``errors()``."""
    if (plain := WHY.get(error["type"])) is not None:
        return f"it has to be {plain}"
    told = str(error["msg"]).removeprefix("Value error, ")
    return told.replace("Input should be ", "it has to be ").replace("greater than or equal to", "at least")


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def keys_called(settings: type[BaseModel], name: str) -> list[str]:
    """The settings with this name or with it as their last word, such as ``optim.lr`` for ``lr``."""
    keys: list[str] = []
    for key, field in settings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += [f"{key}.{own}" for own in inner.model_fields]
        else:
            keys.append(key)
    return [key for key in keys if name in (key, key.rpartition(".")[2])]


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file."""
    try:
        values: dict[str, Any] = at_home(tomllib.loads(read_text(path)))
        return values
    except FileNotFoundError:
        raise MapoError(f"--config: there is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise MapoError(f"--config: {path} cannot be read ({reason(error)}).") from None


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """``["optim.lr=1e-5"]`` → nested values; the right side is TOML, or else a string."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise MapoError(f"--set {assignment!r} does not look like section.key=value, for example optim.lr=1e-5.")
        try:
            parsed = tomllib.loads(f"v = {text}")
        except tomllib.TOMLDecodeError:
            parsed = {}
        value = parsed["v"] if parsed.keys() == {"v"} else text
        if isinstance(value, date | time):  # pairs=2026-11-22 means a folder
            value = text
        merge(values, _nest(key.strip().split("."), at_home(value)))
    return values


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"optim.lr": 1e-5}`` → nested values; sections may also be nested already."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        merge(found, _nest(str(key).split("."), nested(value) if isinstance(value, Mapping) else value))
    return found


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``under``, in place, section by section."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            merge(under[key], value)
        else:
            under[key] = merge({}, value) if isinstance(value, Mapping) else value
    return under


def differences(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of the settings in which two configurations differ."""
    found: list[str] = []
    for key in sorted(one.keys() | two.keys()):
        a, b = one.get(key), two.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
