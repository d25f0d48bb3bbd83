"""Commands in processes of their own, each a copy of one that has loaded the libraries already.

A fresh python needs seconds of work to load torch and diffusers, more than most commands then take. What a test asks of
a process of its own is the rest: signals, exit codes, variables, locks, and what it writes to its two outputs.
"""

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOADED = [
    "mapo.build.build", "mapo.check.check", "mapo.cli", "mapo.encode.fill", "mapo.importers", "mapo.lab.mini.scorer",
    "mapo.lab.study.runs", "mapo.label.server", "mapo.models.families", "mapo.sample.sample", "mapo.score.score", "mapo.train.train", "mapo.watch.server",
    "pyarrow.parquet",
    "frozen",
]  # fmt: skip


def forkserver() -> ForkServerContext:
    """What begins processes as copies of one that has loaded the libraries."""
    context = ForkServerContext()
    context.set_forkserver_preload(PRELOADED)
    return context


class Apart:
    """``python -m MODULE …`` or ``python -c CODE …``, with what the tests use of :class:`subprocess.Popen`."""

    def __init__(self, *words: object, env: Mapping[str, str] | None = None) -> None:
        context = forkserver()
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        ends = [end for _, end in pipes]
        given = ([str(word) for word in words], dict(os.environ if env is None else env), str(Path.cwd()), ends)
        self.process = context.Process(target=_work, args=given)
        self.process.start()
        for end in ends:
            end.close()
        self.streams = [os.fdopen(os.dup(start.fileno()), encoding="utf-8") for start, _ in pipes]
        self.stdout = self.streams[0]

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a process of its own", timeout)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote to its outputs until its end; a process that takes longer is killed."""
        with ThreadPoolExecutor(len(self.streams)) as threads:
            said = [threads.submit(stream.read) for stream in self.streams]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        for stream in self.streams:
            stream.close()
        return said[0].result(), said[1].result()


def run_apart(*words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end; its exit code and what it wrote."""
    process = Apart(*words, env=env)
    out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(words: list[object], world: int, **values: object) -> list[Apart]:
    """Processes as torchrun starts them, without a GPU, on this machine."""
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common |= {"OMP_NUM_THREADS": 1, **values}
    places = [{"RANK": rank, "LOCAL_RANK": rank, **common} for rank in range(world)]
    return [Apart(*words, env={**os.environ, **{name: str(value) for name, value in all_.items()}}) for all_ in places]


def ended(running: list[Apart]) -> list[tuple[int | None, str, str]]:
    """Exit code and outputs of each, once all have ended."""
    try:
        said = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *words) for process, words in zip(running, said, strict=True)]


def _work(words: list[str], variables: dict[str, str], folder: str, outputs: list[Connection]) -> None:
    for number, end in enumerate(outputs, 1):
        os.dup2(end.fileno(), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    how, what, *rest = words
    sys.argv = [how, *rest]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
