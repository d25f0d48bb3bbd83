"""AUTOMATIC1111, Forge and all that write as they do: the prompt, a line ``Negative prompt:``, a line of settings."""

from __future__ import annotations

import re

from mapo.captions.programs.told import ProgramPrompt, as_seed, as_text

PROGRAM = "A1111"
NEGATIVE = "Negative prompt:"
LEAST_SETTINGS = 3
SETTING = re.compile(r'\s*([A-Za-z][\w \-/.]{0,60}?)\s*:\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')  # a value may be quoted


def read_a1111(text: str) -> ProgramPrompt | None:
    """The prompt and settings of a text of this form; None for a text that has neither settings nor a negative prompt.

    The last line holds settings where it has three or more of them. A text of one line must name the steps among them,
    as a prompt can have colons too.
    """
    lines = text.strip().split("\n")
    settings = settings_in(lines[-1])
    if len(settings) < LEAST_SETTINGS or (len(lines) == 1 and "steps" not in settings):
        settings = {}
    else:
        lines.pop()
    place = next((n for n, line in enumerate(lines) if line.lstrip().startswith(NEGATIVE)), None)
    if not settings and place is None:
        return None
    prompt, rest = lines[:place], lines[place:] if place is not None else []
    negative = "\n".join(rest).strip().removeprefix(NEGATIVE)
    return ProgramPrompt(
        PROGRAM,
        "\n".join(prompt).strip(),
        as_text(negative),
        as_seed(settings.get("seed")),
        as_text(settings.get("model")),
    )


def settings_in(line: str) -> dict[str, str]:
    """``Steps: 20, Sampler: "a, b"`` → the values by their names in small letters, the first of each name."""
    found: dict[str, str] = {}
    for match in SETTING.finditer(line):
        found.setdefault(match[1].lower(), match[2].strip().strip('"'))
    return found
