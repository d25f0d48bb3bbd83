"""Who has judged what, and what comes next: the state behind the page. All of it can be read back from the votes."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

from mapo.errors import MapoError
from mapo.label.blind import BlindTask, Material, order, sides, spread
from mapo.label.votes import CHOICES, UNDO, Vote, VoteLog, now, standing

AHEAD = 4  # tasks that the page is told at once: the one to judge, and those to load
NAME_LENGTH = 40
PICKED = "picked"  # the vote on a grid of which the best and the worst are named


class Refused(Exception):
    """A vote that does not fit what this annotator is being shown (pressed twice, or an old page); nothing is kept."""


class Ballot:
    """The tasks of all annotators and the log of their votes. Calls must come one after another."""

    def __init__(self, material: Material, log: VoteLog) -> None:
        self.material, self.log = material, log
        self._orders: dict[str, list[str]] = {}
        self._votes: dict[str, dict[str, Vote]] = {}  # by annotator and pair, the latest last
        for vote in standing(log.lines):
            if vote.pair in material.tasks:
                self._of(vote.annotator)[vote.pair] = vote

    def _of(self, annotator: str) -> dict[str, Vote]:
        return self._votes.setdefault(annotator, {})

    def state(self, annotator: str) -> dict[str, Any]:
        """What the page shows: the next tasks (none when all are judged), how many are done, what `undo` takes back."""
        votes = self._of(annotator)
        ahead = self._ahead(annotator, AHEAD)
        last = next(reversed(votes.values()), None)
        return {
            "annotator": annotator,
            "grid": self.material.grid,
            "tasks": [self._shown(task, annotator) for task in ahead],
            "done": len(votes),
            "total": len(self.material.tasks),
            "last": {"pair": last.pair, "vote": last.vote} if last else None,
            "sensitive": self.material.sensitive,
        }

    def _ahead(self, annotator: str, count: int) -> list[BlindTask]:
        votes, tasks = self._of(annotator), self.material.tasks
        if annotator not in self._orders:
            self._orders[annotator] = order(tasks, annotator)
        ahead: list[BlindTask] = []
        for pair in self._orders[annotator]:
            if len(ahead) == count:
                break
            if pair not in votes:
                ahead.append(tasks[pair])
        return ahead

    def _shown(self, task: BlindTask, annotator: str) -> dict[str, Any]:
        shown = {"pair": task.pair, "prompt": task.prompt}
        if self.material.grid:
            return {**shown, "pictures": spread(task, annotator)}
        left, right = sides(task, annotator)
        return {**shown, "left": left, "right": right}

    def vote(self, annotator: str, pair: str, choice: str, best: str = "", worst: str = "") -> dict[str, Any]:
        """Keep a vote on the pair that this annotator is being shown; the new state. Raises Refused for any other.

        Of a grid ``best`` and ``worst`` are hashes, and are asked for where the choice is ``picked``.
        """
        task = next(iter(self._ahead(annotator, 1)), None)
        if task is None or task.pair != pair:
            raise Refused(f"That {self.material.noun} is not the one to be judged now.")
        make = self._on_grid if self.material.grid else self._on_pair
        vote = make(task, annotator, choice, best, worst)
        self.log.append(vote)
        self._of(annotator)[pair] = vote
        return self.state(annotator)

    @staticmethod
    def _on_pair(task: BlindTask, annotator: str, choice: str, best: str, worst: str) -> Vote:
        if choice not in CHOICES or best or worst:
            raise Refused(f"There is no vote {choice!r}.")
        return Vote(now(), annotator, task.pair, *sides(task, annotator), choice, **task.record)

    @staticmethod
    def _on_grid(task: BlindTask, annotator: str, choice: str, best: str, worst: str) -> Vote:
        shown = spread(task, annotator)
        if choice not in (PICKED, "tie", "bad", "skip"):
            raise Refused(f"There is no vote {choice!r}.")
        if choice == PICKED and (best == worst or not {best, worst} <= {*shown}):
            raise Refused("The best and the worst must be two pictures of this grid.")
        left, right = (best, worst) if choice == PICKED else (shown[0], shown[-1])
        said = "left" if choice == PICKED else choice
        return Vote(now(), annotator, task.pair, left, right, said, prompt=task.prompt, pictures=tuple(shown))

    def undo(self, annotator: str, pair: str) -> dict[str, Any]:
        """Take back this annotator's latest vote, which must be the one on ``pair``; the new state."""
        votes = self._of(annotator)
        if next(reversed(votes), None) != pair:
            raise Refused("That vote is not the latest one.")
        old = votes[pair]
        self.log.append(replace(old, time=now(), vote=UNDO))
        del votes[pair]
        return self.state(annotator)


def clean_name(text: str) -> str:
    """An annotator's name as it is kept: one line, one coding of accents, no more than 40 characters."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name or len(name) > NAME_LENGTH or any(unicodedata.category(c)[0] == "C" for c in name):
        raise MapoError(f"{text[:60]!r} cannot be an annotator's name. Use 1 to {NAME_LENGTH} visible characters.")
    return name
