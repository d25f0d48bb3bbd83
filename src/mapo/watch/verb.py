"""The verb as the command line and Python give it, and what they hand to a training so that it can be watched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.errors import MapoError, to_install

if TYPE_CHECKING:
    from mapo.train.monitor.monitor import Hands


def hands() -> Hands:
    """What other rooms do for a training while it goes on."""
    from mapo.watch.hands import hands

    return hands()


def watch(run: Path, **how: Any) -> None:
    """Show a run on a local page until Ctrl-C; ``how`` is as :func:`mapo.watch.server.serve` takes it."""
    try:
        from mapo.watch.server import serve
    except ModuleNotFoundError as error:
        raise MapoError(f"The page needs {error.name}. Install it with: {to_install('watch')}") from None
    serve(run, **how)
