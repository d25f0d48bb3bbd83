"""Who works on what: shares of a job, ranks that a launcher gives, and one owner for what is being written."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mapo.errors import MapoError
from mapo.files import WORK_LEDGER, make_folder, refuse_odd_place, remove_empty, sweep

LOG = logging.getLogger(__name__)

Shard = tuple[int, int]  # this one, of how many
WHOLE: Shard = (0, 1)
FINISHING = "finishing"  # a build's work folder has it from the moment on when its set is being written
LOCAL_PLACES = ("LOCAL_RANK", "SLURM_LOCALID")  # a process's place on its machine
T = TypeVar("T")


def parse_shard(text: str) -> Shard:
    """``0/4`` → the first of four."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or int(match[1]) >= int(match[2]):
        raise MapoError(f"--shard {text!r}: write I/N with I from 0 to N - 1, such as 0/4.")
    return int(match[1]), int(match[2])


def number_of(name: str, default: int | None = None) -> int | None:
    """A variable of the environment that has to be a whole number; ``default`` where it is not set."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise MapoError(f"The variable {name} is {text!r}, which is not a number. Unset it, or start with torchrun.")
    return int(text)


def shard_of_environment() -> Shard:
    """This process's place among those that torchrun or Slurm started; (0, 1) when neither did."""
    for name, count in (("RANK", number_of("WORLD_SIZE", 1) or 1), ("SLURM_PROCID", slurm_tasks())):
        index = number_of(name)
        if index is not None and count > 1:
            if index >= count:
                raise MapoError(f"{name} is {index} of {count}: there is no such process. Unset it.")
            return index, count
    return WHOLE


def slurm_tasks() -> int:
    """How many processes srun started; 1 in a batch script without srun, although it knows how many it may start."""
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return number_of("SLURM_STEP_NUM_TASKS", 1) or 1
    in_script = "SLURM_JOB_ID" in os.environ and not {"SLURM_STEP_ID", "SLURM_STEPID"} & os.environ.keys()
    return 1 if in_script else number_of("SLURM_NTASKS", 1) or 1


@contextlib.contextmanager
def locked(folder: Path, names: Sequence[str], wait: bool = False) -> Iterator[None]:
    """Hold the locks of those names; they end with the process. Without ``wait`` a held one is an error."""
    import fcntl

    with contextlib.ExitStack() as stack:
        for name in sorted(names):
            file = stack.enter_context((folder / f"{name}.lock").open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise MapoError(
                    f"Another process is at work in {folder} ({name}). Wait for it, or stop it first."
                ) from None
            except OSError:  # a file system without locks
                continue
        yield


@contextlib.contextmanager
def owned(out: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes ``out``, a file or a folder; a second one is refused in a sentence, or waits.

    The lock is a file beside ``out``, ``.NAME.lock``. It ends with the process, however that ends, and is removed with
    the block, as are the folders made for it in which nothing was written. Where nothing may be written beside ``out``,
    the folder itself is locked.
    """
    import fcntl

    refuse_odd_place(out)
    place = out.resolve()
    lock = place.with_name(f".{place.name}.lock")
    made: list[Path] = []
    while True:
        made = made or make_folder(place.parent)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            if not place.parent.is_dir():  # its owner, which made it, has just removed it
                made = []
                continue
            if not place.is_dir():
                try:
                    yield  # who cannot write here is told so by what comes next
                finally:
                    remove_empty(made)
                return
            lock, descriptor = place, os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                os.close(descriptor)
                raise MapoError(f"Another process is writing {out}. Wait for it, or stop it first.") from None
            LOG.warning(f"Another process is writing {out}. Waiting until it has finished.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            break
        if lock == place or _is_still(lock, descriptor):
            break
        os.close(descriptor)  # its owner has just removed it
    try:
        _sweep_beside(place)
        yield
    finally:
        if lock != place:
            with contextlib.suppress(OSError):
                lock.unlink()
        os.close(descriptor)
        remove_empty(made)


def is_owned(out: Path) -> bool:
    """Whether a process is writing ``out``, for who only looks: no lock is taken, so that nobody is disturbed.

    Where the system does not list its locks, a lock file that is there counts as held.
    """
    place = out.resolve()
    try:
        number = place.with_name(f".{place.name}.lock").stat().st_ino
    except OSError:
        return False
    try:
        lines = Path("/proc/locks").read_text("utf-8").splitlines()
    except OSError:
        return True
    return any(f":{number} " in line for line in lines if " FLOCK " in line)


def refuse_existing(out: Path, flag: str = "--out") -> None:
    """Refuse an output that is there. What a process left that was killed just after making it goes."""
    refuse_odd_place(out)
    if not out.exists():
        return
    with contextlib.suppress(MapoError), owned(out):
        for work in (f".{out.name}.partial", f".{out.name}.build.partial"):
            if _is_spent(out.resolve().with_name(work), out):
                shutil.rmtree(out.resolve().with_name(work), ignore_errors=True)
    raise MapoError(f"{out} already exists. Choose another {flag}, or delete it first.")


def _is_spent(work: Path, out: Path) -> bool:
    """Whether ``out`` came out of this work folder, so that nothing in it is unfinished."""
    if (work / WORK_LEDGER).exists():
        return not (work / "set").exists()  # it has become ``out``
    begun, made = work / FINISHING, out / "set.json"
    return begun.exists() and made.exists() and made.stat().st_mtime_ns >= begun.stat().st_mtime_ns


def _sweep_beside(place: Path) -> None:
    """Remove what killed processes left of ``place`` under their own number; the owner calls it."""
    ours = re.compile(rf"\.{re.escape(place.name)}(\.build\.partial)?\.\d+\.(partial|old|probe)")
    sweep(place.parent, ours)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that now stands at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------ one work, several processes


def in_shares(work: Path, shard: Shard, share: Callable[[], None], gather: Callable[[], T]) -> T | None:
    """Make one ``share`` of some work; who is last, or alone, makes the whole of them with ``gather``.

    ``work`` is the folder of what the shares have made, with their locks and their marks. None where other shares are
    not made yet, or another process has made the whole meanwhile. Who is alone (0 of 1) is refused while a share is at
    work; what no share has made, ``gather`` has to make.
    """
    index, of = shard
    if of > 1:
        with locked(work, [f"{index}-of-{of}"]):
            mark(work, shard, done=False)
            share()
            if not mark(work, shard, done=True):
                return None
    return _gathered(work, gather, wait=of > 1)


def _gathered(work: Path, gather: Callable[[], T], wait: bool) -> T | None:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(work, all_locks(work), wait))
        except FileNotFoundError:  # the locks have gone with the folder
            return None
        return None if wait and not work.exists() else gather()


def all_locks(work: Path) -> list[str]:
    """The names of the locks that keep every share of some work away."""
    return sorted({"whole", *(path.name.removesuffix(".lock") for path in work.glob("*.lock"))})


def mark(folder: Path, shard: Shard, done: bool) -> bool:
    """Say whether a shard has made its share; whether now all have."""
    index, count = shard
    path = folder / f"{index}-of-{count}.done"
    if not done:
        path.unlink(missing_ok=True)
        return False
    path.touch()
    return all((folder / f"{k}-of-{count}.done").exists() for k in range(count))
