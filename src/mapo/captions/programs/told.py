"""What a program tells about a picture that it made, and how it is said that nothing can be made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mapo.texts import parse_json

MOST_TEXT = 2**24  # bytes of one text of a picture; whole workflows with small pictures in them are far below
MOST_SEED = 2**64 - 1


class OddMetadata(ValueError):
    """Why a picture's metadata give no prompt: the rest of a sentence that begins with the picture's name."""


@dataclass(frozen=True)
class ProgramPrompt:
    """The prompt of a picture as it was written, and what else the program says; None where it says nothing."""

    program: str
    prompt: str
    negative: str | None = None
    seed: int | None = None
    model: str | None = None


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text; None where it is not one."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def as_text(value: object) -> str | None:
    """A text that says something."""
    return value.strip() or None if isinstance(value, str) else None


def as_seed(value: object) -> int | None:
    """A seed, which some programs write as digits in quotes."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal() and len(value) <= 30:
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_SEED else None


def first_text(row: Mapping[str, object], *names: str) -> str | None:
    """The first of these entries that is a text and says something."""
    return next((said for name in names if (said := as_text(row.get(name)))), None)


def needed(program: str, prompt: str | None) -> str:
    """The prompt; OddMetadata where it is empty."""
    if not prompt:
        raise OddMetadata(f"the prompt that {program} wrote into it is empty")
    return prompt
