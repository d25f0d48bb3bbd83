"""What is shown while something is done: messages and bars. Nothing, until somebody asks for it.

Messages go to the logger ``mapo``, and bars to the hook that :func:`show_with` sets. The command line asks for both
with :func:`on_terminal`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Self

LOGGER = "mapo"


class Bar:
    """The progress of one thing. This one shows nothing; a hook gives one of its own, with the same methods.

    ``total`` is how many there will be (None: nobody knows) and ``initial`` how many were there before. Both may grow.
    """

    def __init__(self, *, total: int | None = None, desc: str = "", unit: str = "it", initial: int = 0) -> None:
        self.total, self.desc, self.unit, self.initial = total, desc, unit, initial

    def update(self, n: int = 1) -> Any:
        """So many more are done."""

    def set_postfix(self, **values: str) -> Any:
        """Numbers to be shown beside the bar."""

    def close(self) -> Any:
        """It is over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_hook: Callable[..., Any] = Bar


def bar(
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    initial: int = 0,
    shown: bool = True,
    terminal_only: bool = False,
) -> Any:  # a Bar, or what has its methods
    """A bar of the hook. It shows nothing without a hook, where ``shown`` is false, and where nothing is left to do.

    ``terminal_only``: the command line draws it on a terminal and not into a file.
    """
    if terminal_only and _hook is _tqdm and not sys.stderr.isatty():
        shown = False
    return (_hook if shown and total != 0 else Bar)(total=total, desc=desc, unit=unit, initial=initial)


def show_with(hook: Callable[..., Any]) -> ExitStack:
    """Show bars with ``hook``, which is called as :class:`Bar` is and returns something with its methods, as tqdm does.

    It holds for good, or for a block: ``with show_with(tqdm): …``.
    """
    undo = ExitStack()
    undo.callback(_set, _hook)
    _set(hook)
    return undo


def _set(hook: Callable[..., Any]) -> None:
    global _hook
    _hook = hook


def on_terminal() -> ExitStack:
    """Show everything as the command line does: bars by tqdm, messages as plain lines. For good, or for a block."""
    logger, lines = logging.getLogger(LOGGER), _Lines()
    undo = show_with(_tqdm)
    if any(isinstance(handler, _Lines) for handler in logger.handlers):
        return undo  # who asks twice reads each message once
    undo.callback(setattr, logger, "propagate", logger.propagate)
    undo.callback(logger.setLevel, logger.level)
    undo.callback(logger.removeHandler, lines)
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # or a library that sets up logging would show them twice
    return undo


def _tqdm(**how: Any) -> Any:
    """A bar of tqdm. ``TQDM_DISABLE`` is asked now: tqdm itself asks when it is first imported, and never again."""
    if os.environ.get("TQDM_DISABLE"):
        return Bar(**how)
    from tqdm import tqdm

    return tqdm(**how)


class _Lines(logging.Handler):
    """Messages as plain lines: to the standard output, warnings to the standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message; a stream that nobody reads any more is an error, as with print."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with _above_bars(stream):
            print(record.getMessage(), file=stream, flush=True)


def _above_bars(stream: Any) -> AbstractContextManager[None]:
    """Inside, bars of tqdm are off the screen, so that a line does not end up behind one."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if bars is None or not getattr(bars, "_instances", None):
        return nullcontext()
    found: AbstractContextManager[None] = bars.external_write_mode(file=stream)
    return found
