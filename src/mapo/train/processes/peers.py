"""What a process of several knows of the others besides what they compute together: that one has stopped, and why.

Each says every few seconds that it lives, and in the end that it leaves, or why it failed. What waits for another one
would wait for hours otherwise: a GPU's connection does not notice that the other end is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from typing import Any

LOG = logging.getLogger(__name__)

BEAT = 2.0  # seconds between two signs of life
SILENCE = 60.0  # of a process that is then taken to be gone
GRACE = 10.0  # for this process to end by itself, once another one has stopped
HEARD = 3.0  # to wait for the reason of a process that has broken the connection
FAILED, LEFT = "failed", "left"
ON = "The same command goes on from the last checkpoint."


class Peers:
    """The other processes, as the ``store`` that all share tells of them. Used as a context around the common work."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.over = threading.Event()
        self.gone: str | None = None  # what is said of the one that stopped
        self.thread = threading.Thread(target=self._watch, args=(store.clone(),), daemon=True, name="peers")

    def __enter__(self) -> Peers:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join(BEAT)
        if error[0] is None:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"{LEFT}-{self.rank}", "")

    def tell(self, reason: str) -> None:
        """Let the others know that this process fails, the first reason alone."""
        with contextlib.suppress(RuntimeError):
            if self.store.add(f"{FAILED}-number", 1) == 1:
                self.store.set(FAILED, f"Process {self.rank} of {self.world} has stopped: {reason.rstrip('.')}.")

    def why(self) -> str:
        """A sentence about the process that broke the connection. It may need a moment to give its reason.

        A launcher that then ends this one too by a signal does not change what is said.
        """
        until = time.monotonic() + HEARD
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < until and self.gone is None:
                with contextlib.suppress(RuntimeError):
                    if self.store.check([FAILED]):
                        self.gone = self.store.get(FAILED).decode(errors="replace")
                time.sleep(0.1)
        found = self.gone or "Another process of this training has stopped without a word, as one does that is killed."
        return f"{found} So this one stops too. {ON}"

    def _watch(self, store: Any) -> None:
        """Say that this process lives, and end it where another one does not and it does not end by itself."""
        heard = {rank: (b"", time.monotonic()) for rank in range(self.world) if rank != self.rank}
        number = 0
        while not self.over.wait(BEAT):
            number += 1
            try:
                store.set(f"beat-{self.rank}", str(number))
                self.gone = self._gone(store, heard)
            except RuntimeError:
                self.gone = f"Process 0 of {self.world}, which joins the others, is gone."
            if self.gone:
                break
        if self.gone and not self.over.wait(GRACE):
            LOG.error(f"mapo: {self.gone} So this one stops too. {ON}")
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(2)

    def _gone(self, store: Any, heard: dict[int, tuple[bytes, float]]) -> str | None:
        if store.check([FAILED]):
            return str(store.get(FAILED).decode(errors="replace"))
        now = time.monotonic()
        for rank, (last, since) in heard.items():
            beat = store.get(f"beat-{rank}") if store.check([f"beat-{rank}"]) else b""
            if beat != last or store.check([f"{LEFT}-{rank}"]):
                heard[rank] = beat, now
            elif now - since > SILENCE:
                return f"Process {rank} of {self.world} has not been heard of for {SILENCE:.0f} seconds."
        return None
