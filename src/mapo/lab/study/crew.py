"""The processes that train side by side, and the ledgers of what they found."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from dataclasses import asdict
from pathlib import Path
from threading import Lock, RLock
from typing import Any

from tqdm import tqdm

from mapo.errors import MapoError
from mapo.progress import on_terminal


def _begin(threads: int, log: Path) -> None:
    import torch

    sys.stdout = sys.stderr = log.open("a", encoding="utf-8")  # their bars would write into ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and stops us
    on_terminal()  # which is that file
    tqdm.set_lock(RLock())  # its own choice is a semaphore of the system, which would outlive us
    torch.set_num_threads(threads)


class Crew:
    """Processes that train, and the ledgers of what they found."""

    def __init__(self, out: Path, workers: int) -> None:
        from mapo.lab.study.runs import ResultsFile

        self.out, self.workers = out, workers
        threads = max(1, (os.cpu_count() or 1) // workers)
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads, out / "log.txt"))
        self.ledgers = {name: ResultsFile(out / f"{name}.jsonl") for name in ("base", "trials", "runs")}
        self.lock = Lock()
        self.stopped = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.stop()
        self.pool.shutdown(cancel_futures=True)
        shutil.rmtree(self.out / "running", ignore_errors=True)

    def stop(self) -> None:
        """End all trainings at once; they are made again when the study goes on."""
        self.stopped = True
        for process in list((getattr(self.pool, "_processes", None) or {}).values()):
            process.kill()

    def do(self, ledger: str, job: Any, work: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """The result of a job, from its ledger or made now; waits."""
        found = self.ledgers[ledger].rows.get(job.key)
        if found is None:
            if self.stopped:
                raise CancelledError
            looks = self.pool.submit(work, *args).result()
            with self.lock:
                found = self.ledgers[ledger].add(job.key, {"job": asdict(job), "looks": looks})
        return found

    def together(self, tasks: Iterable[Callable[[], Any]]) -> list[Any]:
        """Tasks that mostly wait for :meth:`do`, as many at a time as there are processes; their results."""
        with ThreadPoolExecutor(self.workers) as threads:
            waiting: list[Future[Any]] = [threads.submit(task) for task in tasks]
            try:
                for done in as_completed(waiting):
                    done.result()  # the first error ends it all
            except BaseException as error:
                self.stop()
                for task in waiting:
                    task.cancel()
                if isinstance(error, BrokenExecutor):
                    raise MapoError(
                        "A training was killed, as happens when memory runs out. What was done is kept: the same "
                        "command goes on; --workers 1 needs less memory."
                    ) from None
                raise
            return [task.result() for task in waiting]
