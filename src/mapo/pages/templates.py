"""One way to fill a page's template: everything is escaped, a name that is missing is an exception."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

SHARED = Path(__file__).parent  # page.css.j2, the look of all pages


def environment(folder: Path, **filters: Callable[..., Any]) -> jinja2.Environment:
    """Templates of ``folder`` and those that all pages share, with filters of the page's own."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["flags"] = flags
    made.filters.update(filters)
    return made


def flags(text: str) -> markupsafe.Markup:
    """A sentence in which no flag such as ``--goal`` is broken over two lines."""
    escaped = str(markupsafe.escape(text))
    return markupsafe.Markup(re.sub(r"--[a-z][\w-]*(=\S*\w)?", r'<span class="flag">\g<0></span>', escaped))
