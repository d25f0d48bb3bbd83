"""Pictures that other programs made, grouped by their prompts: of each group people or judges say which is better.

All pictures of a group are brought to one frame, the largest that none of them has to be enlarged for, and become PNG
files without texts. So neither size nor shape nor the kind of file tells which is the better one.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from mapo.build import minors
from mapo.build.framed import as_it_is, in_frame
from mapo.captions.beside import named, some
from mapo.captions.fit import look
from mapo.captions.folder import METADATA, look_in, of_file
from mapo.captions.ledger import Caption
from mapo.captions.metadata import told_in
from mapo.captions.programs.told import OddMetadata
from mapo.encode.frame import Frame
from mapo.errors import MapoError, count
from mapo.files import inside, sha256
from mapo.pairs.splits import prompt_id

LOG = logging.getLogger(__name__)

LOSSY = (".jpg", ".jpeg", ".webp", ".avif")


@dataclass(frozen=True)
class Candidate:
    """A picture of a group: where it lies, what was said of it, and its size before it is framed."""

    path: Path
    said: Caption
    width: int
    height: int

    @cached_property
    def told(self) -> dict[str, Any]:
        """What a pair's row keeps of it: the file, its size, and what its program says of how it was made."""
        told: dict[str, Any] = {
            "file": self.said.file,
            "file_sha256": sha256(self.path.read_bytes()),
            "width": self.width,
            "height": self.height,
            "caption_from": self.said.source,
            "given_prompt": self.said.raw,
        }
        if self.said.source.startswith(METADATA):
            with contextlib.suppress(OddMetadata):
                if found := told_in(self.path):
                    told |= {"model": found.model, "seed": found.seed, "negative_prompt": found.negative}
        return {name: value for name, value in told.items() if value not in (None, "")}


@dataclass(frozen=True)
class Group:
    """Two or more pictures of a prompt, and the frame that they share."""

    prompt: str
    pictures: tuple[Candidate, ...]
    frame: Frame

    def framed(self, pool: ThreadPoolExecutor, some: Sequence[Candidate]) -> list[bytes]:
        """Some of its pictures in the frame."""
        found = list(pool.map(lambda one: as_it_is(one.path), some)) if self.needs_no_change else []
        if None not in found and found:
            return [one for one in found if one is not None]
        return list(pool.map(lambda one: in_frame(one.path, self.frame), some))

    @cached_property
    def needs_no_change(self) -> bool:
        """Whether all its pictures are PNG files of the frame.

        Only then are files left as they are, so that the way in which one is packed does not tell it from others.
        """
        sizes = {(one.width, one.height) for one in self.pictures}
        whole = sizes == {(self.frame.width, self.frame.height)}
        return whole and all(as_it_is(one.path) is not None for one in self.pictures)


@dataclass(frozen=True)
class Groups:
    """The groups of a folder in the order of its files, and what was left out."""

    folder: Path
    groups: tuple[Group, ...]
    counts: Mapping[str, int]
    fingerprint: str  # of the files and of what is said of them
    sensitive: bool = False

    def provenance(self, made: str) -> dict[str, Any]:
        """What a set of them says of itself."""
        pictures = [one for group in self.groups for one in group.pictures]
        told: dict[str, Any] = {
            "made": made,
            "folder": self.folder.resolve().name,
            "captions_from": dict(Counter(one.said.source for one in pictures).most_common()),
            "captions_sha256": self.fingerprint,
        }
        return told | ({"minors_list": minors.VERSION} if self.sensitive else {})


def read_prompts(folder: Path, captions: Path | None = None) -> list[Caption]:
    """What is said of each picture of a folder; no picture is decoded. MapoError where nothing is."""
    return of_file(folder, captions) if captions else _found(folder)


def fingerprint(folder: Path, said: Sequence[Caption]) -> str:
    """A hash of the files of a folder, by name and size, and of their prompts."""
    files = [[one.file, inside(folder, one.file, str(folder)).stat().st_size, one.caption] for one in said]
    return sha256(json.dumps(files, ensure_ascii=False).encode())


def read_groups(folder: Path, captions: Path | None = None, *, sensitive: bool = False) -> Groups:
    """The pictures of a folder that share a prompt with another one.

    Prompts are those that `mapo caption` finds, or those of the file ``captions`` that it wrote. For a ``sensitive``
    set no prompt is used that could mean minors. MapoError where no prompt has two pictures, or a picture is damaged.
    """
    said = read_prompts(folder, captions)
    by_prompt: dict[str, list[Caption]] = {}
    for one in said:
        by_prompt.setdefault(prompt_id(one.caption), []).append(one)
    named_minors = [name for name, ones in by_prompt.items() if sensitive and minors.names_minor(_all_said(ones))]
    for name in named_minors:
        del by_prompt[name]
    several = [ones for ones in by_prompt.values() if len(ones) > 1]
    looked = look(folder, [one.file for ones in several for one in ones])
    groups, copies = [], 0
    for ones in several:
        group, number = _group(folder, ones, looked)
        copies += number
        if group is not None:
            groups.append(group)
    counts = {
        "pictures": sum(len(group.pictures) for group in groups),
        "prompts": len(groups),
        "alone": len(by_prompt) - len(groups),
        "copies": copies,
        "minors": len(named_minors),
    }
    if not groups:
        raise MapoError(_why_none(folder, counts))
    _warn(groups)
    return Groups(folder, tuple(groups), counts, fingerprint(folder, said), sensitive)


def left_out(counts: Mapping[str, int]) -> list[str]:
    """What of a folder is not in its groups, in words."""
    said = {
        "alone": f"{count(counts['alone'], 'prompt')} with one picture only",
        "copies": count(counts["copies"], "repeated picture"),
        "minors": f"{count(counts['minors'], 'prompt')} that could mean minors",
    }
    return [words for name, words in said.items() if counts[name]]


def _found(folder: Path) -> list[Caption]:
    """What the folder says; pictures of which it says nothing are named and left out."""
    found = look_in(folder)
    for said in found.absent:
        LOG.warning(f"{said}. Nothing is made of them.")
    silent = [f"{name} ({why})" if why else name for name, why in found.without.items()]
    silent += [f"{one.file} (style words alone)" for one in found.captions.values() if not one.caption]
    kept = [found.captions[name] for name in found.pictures if name in found.captions]
    kept = [one for one in kept if one.caption]
    if not kept:
        example = str(PurePosixPath(found.pictures[0]).with_suffix(".txt"))
        raise MapoError(
            f"{folder}: {count(len(found.pictures), 'picture')}, and none has a prompt: {named(silent)}. Write it into "
            f"a text of the same name beside the picture, such as {example}, or let a model write all of them with "
            "`mapo caption --caption-with` and give that file with --captions."
        )
    if silent:
        lacking = some(silent, "picture without a prompt is", "pictures without a prompt are")
        LOG.info(f"{folder}: {lacking} left out: {named(silent)}")
    return kept


def _all_said(ones: Sequence[Caption]) -> str:
    """All that is said of these pictures, for the list of words."""
    return "\n".join(dict.fromkeys(text for one in ones for text in (one.caption, one.raw)))


def _group(
    folder: Path, ones: Sequence[Caption], looked: Mapping[str, tuple[tuple[int, int], str]]
) -> tuple[Group | None, int]:
    """The different pictures of a prompt, None where there are fewer than two, and how many copies there are."""
    different: dict[str, Candidate] = {}
    for one in ones:
        (width, height), pixels = looked[one.file]
        different.setdefault(pixels, Candidate(inside(folder, one.file, str(folder)), one, width, height))
    pictures, copies = tuple(different.values()), len(ones) - len(different)
    if len(pictures) < 2:
        return None, copies
    frame = Frame(min(one.height for one in pictures), min(one.width for one in pictures))
    return Group(ones[0].caption, pictures, frame), copies


def _warn(groups: Sequence[Group]) -> None:
    """What can still be seen of how a picture was kept, and what is cut off."""
    cut = [group for group in groups if len({(one.width, one.height) for one in group.pictures}) > 1]
    if cut:
        example = cut[0]
        LOG.info(
            f"The pictures of {count(len(cut), 'prompt')} differ in size and are cut to one frame, such as "
            f"{example.frame} for {example.prompt[:60]!r}."
        )
    mixed = [
        group for group in groups if len({one.path.suffix.lower() in LOSSY for one in group.pictures}) > 1
    ]  # fmt: skip
    if mixed:
        LOG.info(
            f"The pictures of {count(len(mixed), 'prompt')} are partly JPEG, WebP or AVIF and partly not, such as "
            f"{mixed[0].prompt[:60]!r}. What compression has done to them can be seen, and may be learned."
        )


def _why_none(folder: Path, counts: Mapping[str, int]) -> str:
    left = left_out(counts)
    return (
        f"{folder}: no prompt has two different pictures ({', '.join(left)}), so nothing can be compared. Draw "
        "more of the same prompts with other seeds, or make a pair of each picture and a drawing of a model: mapo "
        f"build --chosen {folder} --rejected-from MODEL"
    )
