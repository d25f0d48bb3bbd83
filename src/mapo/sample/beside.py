"""What belongs beside a model's pictures: those that it was to learn from, and what kinds of prompts there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST = 10  # pictures that are shown of those that a model was to learn from


@dataclass(frozen=True)
class Beside:
    """``pictures`` are those to learn from, under the ``title``. ``kinds`` says what prompts are, by their ids.

    ``says`` is what was found of pictures and drawings, in sentences. ``nearest`` are some of the pictures, each with
    the file of the drawing after the training that is most like it. ``shows`` is what there is to see, in a sentence
    that heads the page where nobody named a goal.
    """

    title: str = ""
    pictures: Sequence[Path] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    says: Sequence[str] = ()
    nearest: Sequence[tuple[Path, str]] = ()
    shows: str = ""

    def some(self, most: int = MOST) -> list[Path]:
        """At most so many of the pictures, spread evenly."""
        number = min(most, len(self.pictures))
        return [self.pictures[k * len(self.pictures) // number] for k in range(number)]


NOTHING = Beside()
