"""Pictures that a set does not keep: each is handed on once, in the order in which a set would store them.

They are handed on in portions, so some wait when the import commits, and are lost where it is killed. What was
committed says which these are and in which row the first of them came: an import that goes on reads from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mapo.importers.checking import Checked
from mapo.pairs.pictures import Picture


class Elsewhere:
    """Hands pictures to ``take``, ``size`` at a time; ``row`` is the one that is being read.

    ``identity`` (JSON) says where they go: an import that was interrupted goes on only if it is the same.
    ``bytes_read`` counts the encoded pictures of all rows, ``taken`` the pictures that were handed on.
    """

    def __init__(self, take: Callable[[Sequence[Picture]], None], size: int, identity: Any = None) -> None:
        self._take, self._size, self.identity = take, size, identity
        self._waiting: list[tuple[int, Picture]] = []
        self._lost: set[str] = set()
        self.row = self.bytes_read = self.taken = 0

    def add(self, picture: Picture) -> None:
        """One more picture, which was not there before."""
        self._waiting.append((self.row, picture))
        if len(self._waiting) == self._size:
            self.flush()

    def flush(self) -> None:
        """Hand on what waits, also where that is less than a portion."""
        if self._waiting:
            self._take([picture for _, picture in self._waiting])
            self.taken += len(self._waiting)
            self._waiting = []

    def state(self, done: int) -> dict[str, Any]:
        """What :meth:`resume` needs after ``done`` rows."""
        first = self._waiting[0][0] if self._waiting else done
        return {"first": first, "waiting": [picture.sha256 for _, picture in self._waiting]}

    def resume(self, state: dict[str, Any]) -> int:
        """The row from which to read again, after what :meth:`state` said."""
        self._lost = set(state["waiting"])
        return int(state["first"])

    def look(self, row: int, items: Iterable[Checked], again: bool) -> None:
        """A row comes in. ``again``: the set has it already, and pictures of it that waited wait once more."""
        self.row = row
        for raw, pictures in (item for item in items if isinstance(item, tuple)):
            self.bytes_read += len(raw.chosen) + len(raw.rejected)
            for picture in pictures or () if again else ():
                if picture.sha256 in self._lost:
                    self._lost.remove(picture.sha256)
                    self.add(picture)
