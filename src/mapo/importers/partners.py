"""Pictures of two folders that are paired by their prompts: good ones as chosen, those of a model as rejected.

It is not one of ``IMPORTERS``, as it takes two sources: the caller reads both folders (:mod:`mapo.sample.partners`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mapo.errors import MapoError, count
from mapo.files import sha256
from mapo.importers.sources import Source
from mapo.importers.types import BadRow, LeftOut, Options, RawPair
from mapo.pairs.splits import prompt_id

NAMED = 5


@dataclass(frozen=True)
class Picture:
    """A picture whose prompt is known: its name in its folder, its hash, and the way to its bytes."""

    name: str
    prompt: str
    sha256: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder, those of one prompt in the order in which they find their partners."""

    name: str
    pictures: Sequence[Picture]
    sensitive: bool = False


class Partners:
    """An importer of two folders; the first picture of a prompt in one is the partner of the first in the other."""

    def __init__(self, good: Folder, others: Folder) -> None:
        self.good, self.others = good, others
        waiting: dict[str, list[Picture]] = {}
        for picture in others.pictures:
            waiting.setdefault(prompt_id(picture.prompt), []).append(picture)
        self.pairs: list[tuple[Picture, Picture]] = []
        alone: list[Picture] = []
        for picture in good.pictures:
            if partners := waiting.get(prompt_id(picture.prompt)):
                self.pairs.append((picture, partners.pop(0)))
            else:
                alone.append(picture)
        if not self.pairs:
            raise MapoError(
                f"{good.name} and --rejected-from {others.name} have no prompt in common. Draw pictures of the same "
                "prompts with `mapo sample`."
            )
        left = {picture.name for partners in waiting.values() for picture in partners}
        self.notes = [
            *_alone(alone, good, others),
            *_how_to_pair(alone, good),
            *_alone([picture for picture in others.pictures if picture.name in left], others, good),
        ]

    @property
    def identity(self) -> str:
        """Changes when a pair does."""
        said = [f"{one.sha256} {other.sha256} {one.prompt}" for one, other in self.pairs]
        return sha256("\n".join(said).encode())

    def detects(self, source: Source) -> bool:
        """Never by itself: it has to be asked for."""
        return False

    def read(self, source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair | BadRow | LeftOut]]:
        """The pairs from number ``start`` on, with the prompts as the good pictures have them."""
        for one, other in self.pairs[start:]:
            meta = {"file": one.name, "rejected_file": other.name}
            yield [RawPair(f"{one.name} and {other.name}", one.prompt, one.read(), other.read(), meta=meta)]


def _how_to_pair(alone: Sequence[Picture], good: Folder) -> list[str]:
    """How good pictures of a prompt that has others too come to partners of their own; nothing where none has."""
    without, all_of = (Counter(prompt_id(one.prompt) for one in some) for some in (alone, good.pictures))
    most = max((all_of[prompt] for prompt in without if all_of[prompt] > 1), default=0)
    if not most:
        return []
    return [
        f"up to {most} pictures of {good.name} have one prompt: each needs a rejected picture of its own; draw as many "
        f"with `mapo sample --seeds 0-{most - 1}`"
    ]


def _alone(pictures: Sequence[Picture], folder: Folder, other: Folder) -> list[str]:
    """A sentence on the pictures of ``folder`` that found no partner in ``other``."""
    if not pictures:
        return []
    names = ", ".join(picture.name for picture in pictures[:NAMED])
    more = f" and {len(pictures) - NAMED} more" if len(pictures) > NAMED else ""
    have = "has" if len(pictures) == 1 else "have"
    return [f"{count(len(pictures), 'picture')} of {folder.name} {have} no partner in {other.name}: {names}{more}"]
