"""What passes between the parts of an import: pairs as a source tells them, other rows, and what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from mapo.errors import MapoError
from mapo.importers.sources import Source
from mapo.pairs.splits import SPLITS

BY_PROMPT = "by-prompt"


@dataclass(frozen=True)
class RawPair:
    """A pair as its source tells it; ``where`` names the row in messages. ``preference`` 0.5 is a tie.

    ``split`` is the source's own name of the split that it publishes the pair in. Else ``split_as`` decides, the first
    of several captions; None: the prompt.
    """

    where: str
    prompt: str
    chosen: bytes
    rejected: bytes
    preference: float = 1.0
    weight: float = 1.0
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    split_as: str | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot become a pair, and why; ``where`` is empty where ``why`` names the file."""

    where: str
    why: str


@dataclass(frozen=True)
class LeftOut:
    """A row that its source itself says is not a pair, and how it says so: nothing is wrong with it."""

    why: str


@dataclass(frozen=True)
class Options:
    """What a person may ask for; the flags of ``mapo import`` have these names."""

    ties: str = "drop"  # or keep
    rankings: str = "all"  # or best-worst
    least_gap: float = 0.0  # scores closer than this are a tie
    on_bad_row: str = "stop"  # or drop
    captions: str | None = None  # first, join or each, where a pair has several
    columns: Mapping[str, str] = field(default_factory=dict)  # our name → the source's
    split: str | None = None  # as the source publishes, else by prompt; or by prompt; or the one for every pair

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str | None, ...]] = {
            "ties": ("drop", "keep"),
            "rankings": ("all", "best-worst"),
            "on_bad_row": ("stop", "drop"),
            "captions": (None, "first", "join", "each"),
            "split": (None, BY_PROMPT, *SPLITS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                flag = "--" + name.replace("_", "-")
                words = [word for word in known if word]
                say = f"{', '.join(words[:-1])} or {words[-1]}"
                raise MapoError(f"{flag} is {getattr(self, name)!r}; it must be {say}.")
        if not 0 <= self.least_gap < float("inf"):
            raise MapoError(f"--least-gap is {self.least_gap}; it must be a number that is not negative.")

    def recorded(self) -> dict[str, Any]:
        """What decides how the set turns out, for its provenance."""
        late: dict[str, Any] = {"captions": None, "columns": {}, "split": None}  # recorded where they were asked for
        return {k: v for k, v in asdict(self).items() if k != "on_bad_row" and (k not in late or v != late[k])}


class Importer(Protocol):
    """What a format's module offers."""

    def detects(self, source: Source) -> bool:
        """Whether ``source`` looks like this format."""

    def read(self, source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
        """A list for each row of ``source`` from number ``start`` on; MapoError when it is not of this format."""
