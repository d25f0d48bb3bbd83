"""The one exception that speaks to the person at the keyboard."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence

MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")  # CUDA and MPS, the CPU, cuDNN


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


@contextlib.contextmanager
def memory_told(
    at_once: int, *, noun: str = "picture", flag: str = "--images-per-batch {}", rest: str = "--precision bfloat16"
) -> Iterator[None]:
    """Inside, running out of memory becomes a sentence that says which flag asks for less.

    ``at_once`` is how many things of the kind ``noun`` are in memory together; 0: the model is only being loaded.
    ``flag`` is told with half of them, ``rest`` where there is no half.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in MEMORY):
            raise
        when = f"with {at_once} {noun}{'s' * (at_once > 1)} at a time" if at_once else "while the model was loaded"
        remedy = f"Repeat the command with {flag.format(at_once // 2)}, or use" if at_once > 1 else "Use"
        other = f"{rest}, or " if rest and at_once < 2 else ""
        raise MapoError(f"The memory ran out {when}. {remedy} {other}a machine with more memory.") from None


def several(given: str | Sequence[str]) -> list[str]:
    """A list of texts; one text alone is a list of one and not of its letters."""
    return [given] if isinstance(given, str) else list(given)
