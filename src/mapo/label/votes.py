"""Votes on disk: one JSON line each, appended at once, so that a crash costs at most the vote that was being cast."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from mapo.errors import MapoError
from mapo.texts import append_synced, mend_last_line, numbered_lines, parse_json

CHOICES = ("left", "right", "tie", "bad", "skip")
UNDO = "undo"
COMPARISON = ("before", "after", "prompt_id", "seed")
GRID = ("prompt", "pictures")
REMEDY = "Mend or delete that line; each line is a vote by itself."


@dataclass(frozen=True)
class Vote:
    """What an annotator said about two pictures, and on which side each of them stood.

    ``pair`` is `mapo.label.blind.pair_key`, which does not depend on which picture was chosen before. ``left`` and
    ``right`` are hashes of pictures, ``time`` is UTC in ISO 8601. ``before`` to ``seed`` are there only in a comparison
    of two images folders. ``prompt`` and ``pictures`` are there only in a vote on a grid: all pictures as they stood,
    of which ``left`` is the best and ``right`` the worst; `mapo.label.grids` says what follows for its pairs.
    """

    time: str
    annotator: str
    pair: str
    left: str
    right: str
    vote: str
    before: str = ""  # the picture of the first folder
    after: str = ""
    prompt_id: str = ""
    seed: int = 0
    prompt: str = ""
    pictures: tuple[str, ...] = ()

    @property
    def better(self) -> str | None:
        """The hash of the picture that was found better; None for a tie, both bad, or a skipped pair."""
        return {"left": self.left, "right": self.right}.get(self.vote)

    @property
    def outcome(self) -> str | None:
        """Of a comparison: who won, ``before``, ``after`` or ``tie`` (both bad is a tie); None for a skipped pair.

        Two equal pictures are a tie whatever was pressed.
        """
        if self.vote == "skip":
            return None
        if self.better is None or self.before == self.after:
            return "tie"
        return "after" if self.better == self.after else "before"


def now() -> str:
    """The time of a vote: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_votes(path: Path) -> list[Vote]:
    """The votes that stand, in the order in which they were cast; none when the file is not there.

    A vote that was taken back is left out, as is a half-written last line (a crash). Where an annotator has voted twice
    on a pair (files put together), the later vote stands. Raises MapoError naming a line that is not a vote.
    """
    try:
        return standing(_lines(path))
    except FileNotFoundError:
        return []


def standing(lines: Iterable[Vote]) -> list[Vote]:
    """The votes that are left when every undo has taken its vote back."""
    votes: dict[tuple[str, str], Vote] = {}
    for vote in lines:
        votes.pop((vote.annotator, vote.pair), None)  # a later vote stands later
        if vote.vote != UNDO:
            votes[vote.annotator, vote.pair] = vote
    return list(votes.values())


def _lines(path: Path) -> list[Vote]:
    return [vote for _, vote in numbered_lines(path, _vote, "a vote", REMEDY)]


def _vote(line: bytes) -> Vote:
    values = parse_json(line)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if missing := [f.name for f in fields(Vote) if f.default is MISSING and f.name not in values]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    pictures = values.get("pictures", [])
    if not isinstance(pictures, list) or not all(isinstance(name, str) for name in pictures):
        raise ValueError(f"pictures is {pictures!r}")
    values["pictures"] = tuple(pictures)
    vote = Vote(**{f.name: values[f.name] for f in fields(Vote) if f.name in values})
    for field in fields(vote):
        kind = {"seed": int, "pictures": tuple}.get(field.name, str)
        if type(value := getattr(vote, field.name)) is not kind:
            raise ValueError(f"{field.name} is {value!r}")
    if vote.vote not in (*CHOICES, UNDO):
        raise ValueError(f"vote is {vote.vote!r}, it must be one of {', '.join(CHOICES)} or {UNDO}")
    return vote


class VoteLog:
    """The open ``votes.jsonl`` of one server, locked against a second one; use it in a ``with`` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        new = not path.exists()
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise MapoError(f"Votes cannot be written to {path} ({error.strerror}). Change its permissions.") from None
        try:
            self._lock()
            if new:
                _sync_folder(path.parent)
            self.lines = _lines(path)
            mend_last_line(self._file, _vote)  # half a line, which nobody was told had been kept
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except BlockingIOError:
            raise MapoError(
                f"Another `mapo label` is writing to {self.path}. Open its page (several people can label there at "
                "once), or stop it first."
            ) from None

    def append(self, vote: Vote) -> None:
        """Write a line and wait until it is on the disk; on an OSError the file is as it was before."""
        absent = (*(() if vote.before else COMPARISON), *(() if vote.pictures else GRID))
        values = {name: value for name, value in asdict(vote).items() if name not in absent}
        append_synced(self._file, values)
        self.lines.append(vote)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._file.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
