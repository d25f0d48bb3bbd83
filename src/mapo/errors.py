"""The one exception that speaks to the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MapoError(Exception):
    """Something the user can mend: what is wrong with which value, then what to do. The CLI exits with 2."""


class DivergedError(MapoError):
    """A loss or gradient is not finite."""


def suggest(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    """``Did you mean 'x'?`` when something known is close to ``wrong``, else the list of what is known.

    ``prefix`` is shown before each name.
    """
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, 1, 0.6)
    return f"Did you mean {prefix + close[0]!r}?" if close else f"Known: {', '.join(prefix + n for n in names)}."


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey or could not show: names and prompts are data."""
    return "".join(c if c.isprintable() or c in "\n\t\u00a0\u3000" else ascii(c)[1:-1] for c in text)
