"""What belongs beside a model's pictures: those that it was to learn from, and what kinds of prompts there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST = 10  # pictures that are shown of those that a model was to learn from


@dataclass(frozen=True)
class Beside:
    """``pictures`` are those to learn from, under the ``title``. ``kinds`` says what prompts are, by their ids.

    ``says`` is what was found of pictures and drawings, in sentences. ``nearest`` are some of the pictures, each with
    the file of the drawing after the training that is most like it. ``shows`` is what there is to see, in a sentence
    that heads the page where nobody named a goal. Pictures that are ``veiled`` look unsafe: a page blurs them until
    they are clicked, and a picture of pictures leaves them out.
    """

    title: str = ""
    pictures: Sequence[Path] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    says: Sequence[str] = ()
    nearest: Sequence[tuple[Path, str]] = ()
    shows: str = ""
    veiled: Collection[Path] = ()

    def some(self, most: int = MOST, *, veiled: bool = True) -> list[Path]:
        """At most so many of the pictures, spread evenly; without ``veiled`` none of those."""
        pictures = [path for path in self.pictures if veiled or path not in self.veiled]
        number = min(most, len(pictures))
        return [pictures[k * len(pictures) // number] for k in range(number)]


NOTHING = Beside()
