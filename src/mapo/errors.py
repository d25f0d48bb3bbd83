"""The one exception that speaks to the person at the keyboard."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import shlex
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

MEMORY = (  # CUDA and MPS, the CPU, mapping a file, cuDNN
    "out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "alloc_failed",
)  # fmt: skip
WRITTEN_ASIDE = re.compile(r"(^|/)\.([^/]+)\.\d+\.partial$")  # a file, before it has its name
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MapoError(Exception):
    """Something the user can mend: what is wrong with which value, then what to do. The CLI exits with 2."""


class DivergedError(MapoError):
    """A loss or gradient is not finite."""


class SpoiledError(DivergedError):
    """A gradient is not finite, and weights have moved by it already."""


class StepFailed(MapoError):
    """A step of a training could not be computed. The weights are as the step before left them."""


class ObjectiveFailed(StepFailed):
    """A user's own objective failed in the middle of a training."""


class CacheDamaged(StepFailed):
    """What the cache holds is gone, or is not what was written."""


class MemoryFull(StepFailed):
    """The memory ran out in a step, before weights were moved by it. :func:`memory_told` says the rest."""


class SaidElsewhere(MapoError):
    """The reason why all processes of a job stop, which another one of them says."""


def suggest(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    """``Did you mean 'x'?`` when something known is close to ``wrong``, else the list of what is known.

    ``prefix`` is shown before each name.
    """
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, 1, 0.6)
    return f"Did you mean {prefix + close[0]!r}?" if close else f"Known: {', '.join(prefix + n for n in names)}."


CHANGES_LIBRARIES = ("TQDM_", "TORCH_", "PYTHONOPTIMIZE", "PYTORCH_")
NOT_THE_USERS = ("TORCH_CPP_LOG_LEVEL", "TORCH_NCCL_ASYNC_ERROR_HANDLING")  # are set by us, and by torchrun


def spoken(error: Exception) -> str:
    """A sentence for whatever exception reaches the person at the keyboard: what is wrong, then what to do.

    An exception that nobody has foreseen leaves its traceback in a file that the sentence names.
    """
    if said := foreseen(error):
        return said
    why = f"{type(error).__name__}: {_first_line(error)}"
    changing = (name for name in sorted(os.environ) if name.startswith(CHANGES_LIBRARIES))
    if names := [name for name in changing if name not in NOT_THE_USERS]:
        return (
            f"This is perhaps a fault of mapo: {why}. But there are environment variables that change libraries: "
            f"{', '.join(names)}. Unset them and try again. If it still fails, report it with {_traceback_file(error)}."
        )
    return f"This is a fault of mapo: {why}. Please report it with {_traceback_file(error)}."


def reason(error: BaseException, most: int = 200) -> str:
    """The first line of what a library said, cut at a word; with the kind of error where it is but one word."""
    said = str(getattr(error, "strerror", None) or error)
    line = next((line for line in said.splitlines() if line.strip()), "")
    short = textwrap.shorten(line, most, placeholder=" …").rstrip(".")
    return short if " " in short else f"{type(error).__name__}: {short}".removesuffix(": ")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def foreseen(error: Exception) -> str | None:
    """A sentence for an exception that can happen without a fault of ours; None for another one."""
    if isinstance(error, MapoError):
        return str(error)
    kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    why = _first_line(error)
    error = _of_the_system(error)
    if is_out_of_memory(error):
        return f"The memory ran out ({why}). Do less at a time, or use a machine with more memory."
    if isinstance(error, RuntimeError) and "start new thread" in why:
        return f"The system gives this process no more threads ({why}). Raise its limits of processes or of memory."
    if isinstance(error, OSError) and error.errno is not None:
        where = WRITTEN_ASIDE.sub(r"\1\2", str(error.filename or "A file"))
        if no_space(error):
            return f"{where}: {os.strerror(error.errno)}. Make room, then run the same command again."
        return f"{where}: {error.strerror or why}."
    if "safetensors.SafetensorError" in kinds:
        return f"A file of weights is damaged, or could not be written ({why}). Fetch or make it again."
    if "pyarrow.ArrowException" in kinds:
        return f"A Parquet file is damaged or of an unexpected kind ({why}). Make it again."
    if kinds & {"httpx.HTTPError", "requests.RequestException", "huggingface_hub.HfHubHTTPError"}:
        return f"The hub could not be reached ({why}). Check the connection, then run the same command again."
    return None


def no_space(error: Exception) -> OSError | None:
    """The error itself where it says that a disk is full, out of a library's too; else None."""
    error = _of_the_system(error)
    return error if isinstance(error, OSError) and error.errno in NO_SPACE else None


def _of_the_system(error: Exception) -> Exception:
    """What the operating system said, where safetensors only quotes it."""
    quotes = type(error).__name__ == "SafetensorError" and "os error" in str(error)
    return as_os_error(error) if quotes else error


def as_os_error(error: Exception, path: str | None = None) -> OSError:
    """What the operating system said, out of an exception of a library that only quotes it."""
    number = re.search(r"os error (\d+)", str(error))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code) if number else str(error), path)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    said = str(error).lower()
    return (
        isinstance(error, MemoryError | MemoryFull)
        or (isinstance(error, RuntimeError) and any(w in said for w in MEMORY))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


def _traceback_file(error: Exception) -> str:
    try:
        number, name = tempfile.mkstemp(prefix="mapo-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return "what was printed before"
    return f"the file {name}, which says where it happened"


def to_install(extra: str) -> str:
    """The command that adds a part of ours to the environment that runs this: in any other it fetches a stranger's."""
    return f'{shlex.quote(sys.executable)} -m pip install "mapo[{extra}]"'


def count(number: int, noun: str) -> str:
    """``1 pair``, ``1,000 pairs``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey or could not show: names and prompts are data."""
    return "".join(c if c.isprintable() or c in "\n\t\u00a0\u3000" else ascii(c)[1:-1] for c in text)


@contextlib.contextmanager
def memory_told(
    at_once: int, *, noun: str = "picture", flag: str = "--images-per-batch {}", rest: str = "--precision bfloat16",
    advice: Callable[[str], str] = str,
) -> Iterator[None]:  # fmt: skip
    """Inside, running out of memory becomes a sentence that says which flag asks for less.

    ``at_once`` is how many things of the kind ``noun`` are in memory together; 0: the model is only being loaded.
    Where several are, the sentence names ``flag`` with half as many; where one is, it names ``rest``. ``advice`` is
    given that sentence, and may answer with a better one.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, MemoryFull) as error:
        if not is_out_of_memory(error):
            raise
        kept = f" {error}" if isinstance(error, MemoryFull) else ""
        when = f"with {at_once} {noun}{'s' * (at_once > 1)} at a time" if at_once else "while the model was loaded"
        remedy = f"Repeat the command with {flag.format(at_once // 2)}, or use" if at_once > 1 else "Use"
        other = f"{rest}, or " if rest and at_once < 2 else ""
        what = advice(f"{remedy} {other}a machine with more memory.")
        raise MapoError(f"The memory ran out {when}. {what}{kept}") from None


def several(given: str | Sequence[str]) -> list[str]:
    """A list of texts; one text alone is a list of one and not of its letters."""
    return [given] if isinstance(given, str) else list(given)
