"""The one exception that speaks to the person at the keyboard."""

from __future__ import annotations

import difflib
import errno
import os
import tempfile
import traceback
from collections.abc import Iterable


class MapoError(Exception):
    """Something the user can mend: what is wrong with which value, then what to do. The CLI exits with 2."""


class DivergedError(MapoError):
    """A loss or gradient is not finite."""


class SaidElsewhere(MapoError):
    """The reason why all processes of a job stop, which another one of them says."""


def suggest(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    """``Did you mean 'x'?`` when something known is close to ``wrong``, else the list of what is known.

    ``prefix`` is shown before each name.
    """
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, 1, 0.6)
    return f"Did you mean {prefix + close[0]!r}?" if close else f"Known: {', '.join(prefix + n for n in names)}."


def spoken(error: Exception) -> str:
    """A sentence for whatever exception reaches the person at the keyboard: what is wrong, then what to do.

    An exception that nobody has foreseen leaves its traceback in a file that the sentence names.
    """
    if isinstance(error, MapoError):
        return str(error)
    kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if is_out_of_memory(error):
        return f"There is not enough memory ({why}). {LESS_MEMORY}"
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or "A file"
        if error.errno in NO_SPACE:
            return f"{where}: {os.strerror(error.errno)}. Make room, then run the same command again."
        return f"{where}: {error.strerror or why}. Nothing half-written was left."
    if "safetensors.SafetensorError" in kinds or "safetensors_rust.SafetensorError" in kinds:
        return f"A file of weights is damaged, or could not be written ({why}). Fetch or make it again."
    if "pyarrow.ArrowException" in kinds:
        return f"A Parquet file is damaged or of an unexpected kind ({why}). Make it again."
    if kinds & {"httpx.HTTPError", "requests.RequestException", "huggingface_hub.HfHubHTTPError"}:
        return f"The hub could not be reached ({why}). Check the connection, then run the same command again."
    return f"This is a fault of mapo: {type(error).__name__}: {why}. Please report it with {_traceback_file(error)}."


LESS_MEMORY = (
    "Do less at a time: --images-per-batch, or for training --set train.pairs_per_device=1, "
    "train.gradient_checkpointing=true and data.images_per_batch=1."
)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    text = str(error).lower()
    ran_out = "out of memory" in text or "can't allocate memory" in text or "defaultcpuallocator" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and ran_out)


def _traceback_file(error: Exception) -> str:
    try:
        number, name = tempfile.mkstemp(prefix="mapo-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return "what was printed before"
    return f"the file {name}, which says where it happened"


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey or could not show: names and prompts are data."""
    return "".join(c if c.isprintable() or c in "\n\t\u00a0\u3000" else ascii(c)[1:-1] for c in text)
