"""One way to fill a page's template: everything is escaped, a name that is missing is an exception."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

SHARED = Path(__file__).parent  # page.css.j2, the look of all pages


def environment(folder: Path, **filters: Callable[..., Any]) -> jinja2.Environment:
    """Templates of ``folder`` and those that all pages share, with filters of the page's own.

    Pages are shown to others, so whatever is filled in has ``~`` in place of the home folder of whoever makes them.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=without_home,
    )
    made.filters |= {"flags": flags, "place": place}
    made.filters.update(filters)
    return made


def without_home(value: Any) -> Any:
    """The same, where it is a text with ``~`` in place of the home folder; a picture within a page is as it is."""
    home = os.environ.get("HOME", "").rstrip("/")
    if not isinstance(value, str) or not home or value.startswith("data:"):
        return value
    return value.replace(f"{home}/", "~/")


def place(name: str) -> str:
    """A whole path left with its last two names, such as ``my-style/run``; any other name as it is."""
    return "/".join(Path(name).parts[-2:]) if Path(name).is_absolute() else name


def flags(text: str) -> markupsafe.Markup:
    """A sentence in which no flag such as ``--goal`` is broken over two lines."""
    escaped = str(markupsafe.escape(text))
    return markupsafe.Markup(re.sub(r"--[a-z][\w-]*(=\S*\w)?", r'<span class="flag">\g<0></span>', escaped))
