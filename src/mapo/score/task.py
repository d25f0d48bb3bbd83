"""The work of one scoring: which scorers, which pictures, and what is known of them already."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mapo.errors import MapoError, count, printable
from mapo.files import PARTIAL, prepare_out, sha256
from mapo.sample.folder import ImageRow, read_images
from mapo.score.references import References
from mapo.score.scorers import Scorer, load_scorer, scorer_names
from mapo.score.scorers.choice import choose_scorers, warn_of_toys
from mapo.score.table import SCHEMA, read_scores
from mapo.shards import WHOLE, Shard
from mapo.texts import read_lines

LOG = logging.getLogger(__name__)

Key = tuple[str, str, str]  # the picture's hash, its prompt, what it is compared with
Said = dict[str, float | None]  # by metric
T = TypeVar("T")


@dataclass(frozen=True)
class AskedScorer:
    """A scorer as the table knows it, without its weights."""

    text: str  # as the user wrote it
    name: str
    version: str
    revision: str
    metrics: tuple[str, ...]
    needs_reference: bool
    whole_prompts: bool
    why_none: Mapping[str, str]  # by metric


@dataclass
class ScoringTask:
    """What is to be scored with what, all of it checked, and what is known."""

    folder: Path
    images: list[ImageRow]
    asked: list[AskedScorer]
    out: Path
    references: References | None
    images_per_batch: int
    ready: dict[str, Scorer]  # not yet used; weights are loaded when they are first called
    table: list[dict[str, Any]]  # what lies at ``out``
    told: set[str]  # sentences that the user has read
    scored: int = 0  # pictures, each as often as scorers were asked about it here

    @property
    def work(self) -> Path:
        """The folder of what is not yet in the table."""
        return self.out.with_name(f".{self.out.name}.score{PARTIAL}")

    def ledger(self, asked: AskedScorer, part: str = "*") -> str:
        """The name of a scorer's file in the work folder, or the pattern of all."""
        return f"{sha256(asked.name.encode())[:16]}-{part}.jsonl"

    def scorer(self, asked: AskedScorer) -> Scorer:
        """Handed out once, so that no two hold their weights at a time."""
        return self.ready.pop(asked.text, None) or load_scorer(asked.text)

    def reference(self, asked: AskedScorer, row: ImageRow) -> str | None:
        """The hash of what a picture is compared with."""
        return self.references.name(row) if self.references and asked.needs_reference else None

    def keys(self, asked: AskedScorer) -> list[Key]:
        """What decides a scorer's numbers, for each picture."""
        if asked.whole_prompts:
            together = _together((row.prompt_id, row.sha256) for row in self.images)
            return [(row.sha256, row.prompt, together[row.prompt_id]) for row in self.images]
        return [(row.sha256, row.prompt, self.reference(asked, row) or "") for row in self.images]

    def known(self, asked: AskedScorer) -> dict[Key, Said]:
        """What this version of a scorer said: in the table, and since."""
        found: dict[Key, Said] = {}
        rows = [row for row in self.table if row["scorer"] == asked.name]
        together = _together((row["prompt_id"], row["image"]) for row in rows) if asked.whole_prompts else {}
        for row in rows:
            if (row["version"], row["revision"]) == (asked.version, asked.revision):
                about = together[row["prompt_id"]] if asked.whole_prompts else row["reference"] or ""
                found.setdefault((row["image"], row["prompt"], about), {})[row["metric"]] = row["value"]
        for path in sorted(self.work.glob(self.ledger(asked))):
            for said in read_lines(path):
                if (said["version"], said["revision"]) == (asked.version, asked.revision):
                    found[said["image"], said["prompt"], said["about"]] = said["values"]
        return {key: said for key, said in found.items() if said.keys() == set(asked.metrics)}

    def calls(self, asked: AskedScorer, shard: Shard = WHOLE, again: bool = True) -> list[list[int]]:
        """The places of the pictures of each call of a scorer that has to be made for a shard.

        ``again``: pictures that were given no number at all are asked about once more.
        """
        keys, known = self.keys(asked), self.known(asked)

        def lacks(place: int) -> bool:
            said = known.get(keys[place])
            return said is None or (again and not any(value is not None for value in said.values()))

        groups = self._groups(asked)
        (index, of), size = shard, self.images_per_batch
        mine = groups[len(groups) * index // of : len(groups) * (index + 1) // of]
        todo = [group for group in mine if any(map(lacks, group))]
        if asked.whole_prompts:
            return todo
        return [[place for group in todo[k : k + size] for place in group] for k in range(0, len(todo), size)]

    def _groups(self, asked: AskedScorer) -> list[list[int]]:
        """The places of the pictures that have to be scored in one call."""
        groups: dict[Any, list[int]] = {}
        for place, row in enumerate(self.images):
            groups.setdefault(row.prompt_id if asked.whole_prompts else place, []).append(place)
        return list(groups.values())

    def rows(self) -> list[dict[str, Any]]:
        """The table as it has to be: what other scorers said of these pictures, then what those asked say."""
        rows = list(self._others())
        for asked in self.asked:
            known = self.known(asked)
            for row, key in zip(self.images, self.keys(asked), strict=True):
                shared = {
                    "image": row.sha256,
                    "prompt_id": row.prompt_id,
                    "prompt": row.prompt,
                    "seed": row.seed,
                    "model": row.model,
                    "scorer": asked.name,
                    "version": asked.version,
                    "revision": asked.revision,
                    "reference": self.reference(asked, row),
                }
                said = known.get(key, {})
                rows += [{**shared, "metric": metric, "value": said[metric]} for metric in asked.metrics if said]
        return rows

    def _others(self) -> Iterator[dict[str, Any]]:
        asked, now = {a.name for a in self.asked}, _together((row.prompt_id, row.sha256) for row in self.images)
        others = [row for row in self.table if row["scorer"] not in asked]
        before = _together(((row["scorer"], row["prompt_id"]), row["image"]) for row in others)
        return (row for row in others if before[row["scorer"], row["prompt_id"]] == now.get(row["prompt_id"]))

    def is_done(self) -> bool:
        """Whether the table holds all of it and nothing else."""
        contents = [{tuple(row[name] for name in SCHEMA.names) for row in rows} for rows in (self.table, self.rows())]
        return contents[0] == contents[1] and not any(self.calls(asked) for asked in self.asked)

    def counts(self) -> dict[str, int]:
        """What the caller is told of the table."""
        names = {asked.name for asked in self.asked}
        asked = [row for row in self.table if row["scorer"] in names]
        keys = [(row["scorer"], row["prompt_id"], row["seed"]) for row in asked]
        said = {key for key, row in zip(keys, asked, strict=True) if row["value"] is not None}
        without = {key[1:] for key in keys if key not in said}
        missing = sum(row["value"] is None for row in asked)
        return {"pictures": len(self.images), "scored": self.scored, "missing": missing, "without_number": len(without)}


def _together(pairs: Iterable[tuple[T, str]]) -> dict[T, str]:
    """A hash of the pictures that stand under each name."""
    found: dict[T, set[str]] = {}
    for name, image in pairs:
        found.setdefault(name, set()).add(image)
    return {name: sha256(" ".join(sorted(images)).encode())[:16] for name, images in found.items()}


def line_of(asked: AskedScorer, key: Key, said: Said) -> dict[str, Any]:
    """What a scorer said of a picture, for the work folder."""
    named = dict(zip(("image", "prompt", "about"), key, strict=True))
    return {"version": asked.version, "revision": asked.revision, **named, "values": said}


def open_task(
    folder: Path, names: str | None, out: Path, references: Path | None, images_per_batch: int, told: set[str]
) -> ScoringTask:
    """The work that is asked for; MapoError where it cannot be done. ``told`` are sentences that were said before."""
    if images_per_batch < 1:
        raise MapoError(f"--images-per-batch is {images_per_batch}; it must be at least 1.")
    images = read_images(folder)
    if not images:
        raise MapoError(f"{folder} holds no pictures.")
    if names is None:
        names, choice = choose_scorers({folder: images}, references is not None)
        note(choice)
    ready = {name: load_scorer(name) for name in scorer_names(names)}
    asked = [
        AskedScorer(
            *(text, s.name, s.version, s.revision, tuple(s.metrics), s.needs_reference),
            *(bool(getattr(s, "whole_prompts", False)), getattr(s, "why_none", {})),
        )
        for text, s in ready.items()
    ]
    if twice := [name for name, number in Counter(a.name for a in asked).items() if number > 1]:
        raise MapoError(f"--scorer: two scorers would be called {twice[0]} in the table. Score with one at a time.")
    comparing = [a.name for a in asked if a.needs_reference]
    if comparing and references is None:
        raise MapoError(
            f"{comparing[0]} compares each picture with a reference picture. Give --references FOLDER, an images "
            "folder or a pairs set with the same prompts."
        )
    if references is not None and not comparing:
        raise MapoError(f"--references: no scorer of {', '.join(a.name for a in asked)} compares. Leave it out.")
    found = References(references, {row.prompt_id for row in images}) if references is not None else None
    if found and (lonely := [row for row in images if found.name(row) is None]):
        raise MapoError(
            f"--references: {references} has no reference for {len(lonely)} of {count(len(images), 'picture')}, "
            "the first of "
            f"which shows {lonely[0].prompt!r}. Give references of every prompt."
        )
    prepare_out(out)
    note(warn_of_toys([a.name for a in asked], folder, images), told)
    return ScoringTask(folder, images, asked, out, found, images_per_batch, ready, read_table(out), told)


def read_table(out: Path) -> list[dict[str, Any]]:
    """The rows that lie at ``out``."""
    if not out.exists():
        return []
    try:
        return list(read_scores(out).to_pylist())
    except MapoError:
        raise MapoError(f"--out: {out} exists and is not a table of scores. Choose another, or delete it.") from None


def note(sentences: Iterable[str], told: set[str] | None = None) -> None:
    """Say what has not been ``told`` yet."""
    for sentence in sentences:
        if told is None or sentence not in told:
            LOG.info(f"note: {printable(sentence)}")
        if told is not None:
            told.add(sentence)
