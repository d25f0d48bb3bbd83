"""Which checkpoints of a run stay: the newest ones, the best one, every so many steps, or all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

FORMS = 'a whole number, at least 1, or "all", or a list such as "last:2,best,every:1000"'


@dataclass(frozen=True)
class Kept:
    """The newest ``last``, those at multiples of ``every`` steps (0: none for that), the ``best``, or ``all``.

    The newest one always stays, as training goes on from it.
    """

    last: int = 1
    every: int = 0
    best: bool = False
    all: bool = False

    def spent(self, steps: Sequence[int], best: int | None) -> list[int]:
        """Those of the checkpoints at ``steps``, oldest first, that may go."""
        if self.all:
            return []
        old = list(steps)[: -self.last]
        return [
            step for step in old if not (self.every and step % self.every == 0) and not (self.best and step == best)
        ]

    def to_add(self, made: int, to_come: int, steps: int) -> int:
        """How many more there will be at most, where ``made`` are there and ``to_come`` are saved up to ``steps``."""
        if self.all:
            return to_come
        return min(to_come, self.last + self.best + (steps // self.every if self.every else 0) - made)


def kept(value: object) -> Kept:
    """What a setting says: a number, ``all``, or words between commas; ValueError where it says nothing."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"it has to be {FORMS}")
    last = every = 0
    best = everything = False
    for word in str(value).replace(" ", "").split(","):
        found = re.fullmatch(r"(?:last:|(every):)?0*([1-9]\d*)", word)
        if word == "all":
            everything = True
        elif word == "best":
            best = True
        elif word == "last":
            last = max(last, 1)
        elif found and found[1]:
            every = int(found[2])
        elif found:
            last = max(last, int(found[2]))
        else:
            raise ValueError(f"it has to be {FORMS}")
    return Kept(max(last, 1), every, best, everything)
