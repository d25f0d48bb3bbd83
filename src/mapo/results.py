"""What functions for Python return. Each stands for its file or folder wherever a path is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.sample.folder import ImageRow

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Images:
    """An images folder and the rows of the pictures that were asked for, in the order of prompts and seeds."""

    folder: Path
    rows: list[ImageRow]

    def __fspath__(self) -> str:
        return str(self.folder)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Scores:
    """A table of scores on disk, and what was counted.

    ``pictures`` it speaks of, ``scored`` now (each as often as scorers were asked), values ``missing``, pictures
    ``without_number``: one of the scorers gave them none.
    """

    file: Path
    pictures: int
    scored: int
    missing: int
    without_number: int

    def __fspath__(self) -> str:
        return str(self.file)

    def table(self) -> "pa.Table":
        """The table: a row for each picture, scorer and metric."""
        from mapo.score.table import read_scores

        return read_scores(self.file)


@dataclass(frozen=True)
class Page:
    """A page that was written, and the numbers in it."""

    file: Path
    numbers: Mapping[str, Any]

    def __fspath__(self) -> str:
        return str(self.file)

    @property
    def verdict(self) -> str:
        """What it says, in a sentence."""
        return str(self.numbers["verdict"])
