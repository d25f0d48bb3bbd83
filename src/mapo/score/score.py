"""Scores: numbers from scorers for every picture of an images folder, in one table.

What was said before is found by its content: scorer, version and revision, the picture's hash, its prompt, and what it
was compared with. So the same command goes on where it was stopped, finds nothing to do when all is done, and scores
anew only what has changed. Until the table is whole, ``.<out>.score.partial`` beside it holds

5f1c0e…-0-of-1.jsonl   a line per picture: what one scorer (the hash of its name) said in one process
0-of-2.done            this share has been scored
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mapo import progress
from mapo.devices import use_own_device
from mapo.errors import MapoError, count, printable
from mapo.files import PARTIAL, append_lines, prepare_out, read_lines, sha256
from mapo.sample.folder import ImageRow, check_pictures, open_picture, read_images
from mapo.score.references import References
from mapo.score.scorers import Scorer, Unfinished, load_scorer, scorer_names
from mapo.score.scorers.choice import NEUTRAL, choose_scorers, warn_of_toys
from mapo.score.table import SCHEMA, check_value, read_scores, write_scores
from mapo.shards import WHOLE, Shard, locked, mark, owned

LOG = logging.getLogger(__name__)

IMAGES_PER_BATCH = 64
THREADS = min(16, os.cpu_count() or 1)  # that read and prepare pictures
AHEAD = 64  # pictures, or one call's if that has more, that are read while the scorer works

Key = tuple[str, str, str]  # the picture's hash, its prompt, what it is compared with
Said = dict[str, float | None]  # by metric
T = TypeVar("T")


def score(
    folder: Path,
    names: str | None,
    out: Path,
    *,
    references: Path | None = None,
    shard: Shard = WHOLE,
    images_per_batch: int = IMAGES_PER_BATCH,
) -> dict[str, int] | None:
    """Score the pictures of ``folder`` with each of ``names`` into ``out`` (None: those of ``scorers.choice``).

    The result counts ``pictures``, those ``scored`` now, values that are ``missing`` because a scorer gave none, and
    pictures ``without_number``, to which one of the scorers gave none at all; it is None where other shards are not
    done yet. A picture to which a scorer gave no number at all is asked about again.
    Rows of other scorers stay in the table for prompts whose pictures are still the same.
    """
    return _do(_open_task(folder, names, out, references, images_per_batch, set()), shard)


def _do(task: Task, shard: Shard = WHOLE) -> dict[str, int] | None:
    out = task.out
    if task.is_done():
        check_pictures(task.folder, task.images)  # that the manifest and so the table still speak of them
        return task.counts()
    use_own_device()
    if shard[1] == 1:
        with owned(out):
            task.work.mkdir(exist_ok=True)
            return _collect(task, wait=False)
    task.work.mkdir(exist_ok=True)
    return _collect(task, wait=True) if _share(task, shard) else None


def score_images(folder: Path, names: str, out: Path, images_per_batch: int = IMAGES_PER_BATCH) -> Path:
    """The same in this process alone; the table's path."""
    score(folder, names, out, images_per_batch=images_per_batch)
    return out


def score_sides(
    before: Path, after: Path, names: str | None, out: Path, has_votes: bool
) -> tuple[list[Path], set[str]]:
    """Score both folders of a report into tables beside its page ``out``; the tables' paths, the scorers in question.

    The same report again finds its tables, which may hold what other scorers said for other reports; one that holds
    scores of other pictures is never written over.
    """
    said, scorers, why = set[str](), set[str](), f"--scorer: {NEUTRAL} alone"
    if names is None:
        names, told = choose_scorers({folder: read_images(folder) for folder in (before, after)})
        _note(told)
        why = f"Only {NEUTRAL} can score these pictures on this machine, and they"
    if scorer_names(names) == [NEUTRAL] and not has_votes:
        raise MapoError(
            f"{why} know no better or worse. Name a scorer, such as --scorer pickscore, which is fetched once, or let "
            f"people judge: mapo label --before {before} --after {after} --out VOTES, then give --votes VOTES."
        )
    alike = before.resolve().name == after.resolve().name
    tables = []
    for folder, side in ((before, "before"), (after, "after")):
        table = _own_table(folder, out.parent, side if alike else folder.resolve().name)
        task = _open_task(folder, names, table, None, IMAGES_PER_BATCH, said)
        _do(task)
        tables.append(table)
        scorers |= {asked.name for asked in task.asked}
    return tables, scorers


def _own_table(folder: Path, where: Path, name: str) -> Path:
    """``NAME-scores.parquet``, or ``NAME-2-scores.parquet`` … where that is something else's."""
    own = {row.sha256 for row in read_images(folder)}
    for number in itertools.count(1):
        table = where / f"{name}{f'-{number}' if number > 1 else ''}-scores.parquet"
        with suppress(MapoError):
            if all(row["image"] in own for row in _read_table(table)):
                break
    if number > 1:
        _note([f"{where / name}-scores.parquet holds scores of other pictures and is kept; these are in {table}"])
    return table


def refuse_table_of_others(folder: Path, out: Path) -> None:
    """A table without one picture of the folder is that of another one, whose scores would be lost."""
    theirs = _read_table(out)
    if theirs and not {row["image"] for row in theirs} & {row.sha256 for row in read_images(folder)}:
        raise MapoError(
            f"--out: {out} holds scores of other pictures ({theirs[0]['model']}, {theirs[0]['prompt']!r}) and of none "
            f"in {folder}. Choose another --out, or delete it."
        )


@dataclass(frozen=True)
class Asked:
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
class Task:
    """What is to be scored with what, all of it checked, and what is known."""

    folder: Path
    images: list[ImageRow]
    asked: list[Asked]
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

    def ledger(self, asked: Asked, part: str = "*") -> str:
        """The name of a scorer's file in the work folder, or the pattern of all."""
        return f"{sha256(asked.name.encode())[:16]}-{part}.jsonl"

    def scorer(self, asked: Asked) -> Scorer:
        """Handed out once, so that no two hold their weights at a time."""
        return self.ready.pop(asked.text, None) or load_scorer(asked.text)

    def reference(self, asked: Asked, row: ImageRow) -> str | None:
        """The hash of what a picture is compared with."""
        return self.references.name(row) if self.references and asked.needs_reference else None

    def keys(self, asked: Asked) -> list[Key]:
        """What decides a scorer's numbers, for each picture."""
        if asked.whole_prompts:
            together = _together((row.prompt_id, row.sha256) for row in self.images)
            return [(row.sha256, row.prompt, together[row.prompt_id]) for row in self.images]
        return [(row.sha256, row.prompt, self.reference(asked, row) or "") for row in self.images]

    def known(self, asked: Asked) -> dict[Key, Said]:
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

    def calls(self, asked: Asked, shard: Shard = WHOLE, again: bool = True) -> list[list[int]]:
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

    def _groups(self, asked: Asked) -> list[list[int]]:
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


def _open_task(
    folder: Path, names: str | None, out: Path, references: Path | None, images_per_batch: int, told: set[str]
) -> Task:
    if images_per_batch < 1:
        raise MapoError(f"--images-per-batch is {images_per_batch}; it must be at least 1.")
    images = read_images(folder)
    if not images:
        raise MapoError(f"{folder} holds no pictures.")
    if names is None:
        names, choice = choose_scorers({folder: images}, references is not None)
        _note(choice)
    ready = {name: load_scorer(name) for name in scorer_names(names)}
    asked = [
        Asked(
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
        raise MapoError(f"--references: {', '.join(a.name for a in asked)} compares with no references. Leave it out.")
    found = References(references, {row.prompt_id for row in images}) if references is not None else None
    if found and (lonely := [row for row in images if found.name(row) is None]):
        raise MapoError(
            f"--references: {references} has no reference for {len(lonely)} of {count(len(images), 'picture')}, "
            "the first of "
            f"which shows {lonely[0].prompt!r}. Give references of every prompt."
        )
    prepare_out(out)
    _note(warn_of_toys([a.name for a in asked], folder, images), told)
    return Task(folder, images, asked, out, found, images_per_batch, ready, _read_table(out), told)


def _read_table(out: Path) -> list[dict[str, Any]]:
    """The rows that lie at ``out``."""
    if not out.exists():
        return []
    try:
        return list(read_scores(out).to_pylist())
    except MapoError:
        raise MapoError(f"--out: {out} exists and is not a table of scores. Choose another, or delete it.") from None


def _share(task: Task, shard: Shard) -> bool:
    """Score this shard's pictures; whether all shards are done."""
    index, of = shard
    with locked(task.work, [f"{index}-of-{of}"]):
        mark(task.work, shard, done=False)
        for asked in task.asked:
            _run(task, asked, task.calls(asked, shard), shard)
        return mark(task.work, shard, done=True)


def _collect(task: Task, wait: bool) -> dict[str, int] | None:
    """Score what no process has, and write the table."""
    names = sorted({"whole", *(path.name.removesuffix(".lock") for path in task.work.glob("*.lock"))})
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(task.work, names, wait))
        except FileNotFoundError:
            return None
        if wait and not task.work.exists():
            return None  # another shard has put it together meanwhile
        task.table = _read_table(task.out)
        for asked in task.asked:
            _run(task, asked, task.calls(asked, again=not wait), WHOLE)
        before, rows = task.table, task.rows()
        write_scores(task.out, rows)
        task.table = rows
        _tell(task, before)
        for path in [*task.work.glob("*.done"), *(p for a in task.asked for p in task.work.glob(task.ledger(a)))]:
            path.unlink()
        if not any(task.work.glob("*.jsonl")):  # else another scorer has not come to its end
            shutil.rmtree(task.work)
    return task.counts()


def _tell(task: Task, before: Sequence[Mapping[str, Any]]) -> None:
    """What has to be known of the table, a sentence each."""
    kept, asked = Counter(row["scorer"] for row in task.table), {a.name: a for a in task.asked}
    for name, number in Counter(row["scorer"] for row in before).items():
        if name not in asked and number > kept[name]:
            gone = number - kept[name]
            are = "was of another picture and is" if gone == 1 else "were of other pictures and are"
            _note([f"{count(gone, 'score')} by {name} {are} left out of {task.out}"])
    for (name, metric), number in Counter(
        (row["scorer"], row["metric"]) for row in task.table if row["value"] is None and row["scorer"] in asked
    ).items():
        few = f"{number} of {count(len(task.images), 'picture')}"
        if why := asked[name].why_none.get(metric):
            sentence = (
                f"{why}."
                if number == len(task.images)
                else f"{why}: {few} {'has' if number == 1 else 'have'} no {metric}."
            )
            _note([sentence], task.told)
        else:
            _note([f"{name} gave no {metric} to {few}"])


def _note(sentences: Iterable[str], told: set[str] | None = None) -> None:
    """Say what has not been ``told`` yet."""
    for sentence in sentences:
        if told is None or sentence not in told:
            LOG.info(f"note: {printable(sentence)}")
        if told is not None:
            told.add(sentence)


def _run(task: Task, asked: Asked, calls: Sequence[list[int]], shard: Shard) -> None:
    """Make these calls of a scorer and keep what it says, call by call."""
    if not calls:
        return
    index, of = shard
    scorer: Any = task.scorer(asked)
    prepare = getattr(scorer, "prepare", None)
    give, keys = scorer.score if prepare else scorer, task.keys(asked)

    def load(place: int) -> list[Any]:
        pictures = [open_picture(task.folder, task.images[place])]
        if task.references and (name := task.reference(asked, task.images[place])):
            pictures.append(task.references.picture(name))
        return [prepare(picture) for picture in pictures] if prepare else pictures

    total = sum(map(len, calls))
    bar = progress.bar(total=total, desc=f"score {asked.name}", unit="image", shown=index == 0)
    ledger = task.work / task.ledger(asked, f"{index}-of-{of}")
    with bar:
        for call, loaded in _ahead(calls, load):
            rows, mine = [task.images[place] for place in call], [keys[place] for place in call]
            references = [one[1] for one in loaded] if asked.needs_reference else None
            try:
                said = give([one[0] for one in loaded], [row.prompt for row in rows], references)
            except Unfinished as error:  # what was said is paid for
                append_lines(ledger, _lines(asked, rows, mine, error.said, whole=False))
                raise
            append_lines(ledger, _lines(asked, rows, mine, said))
            bar.update(len(call))
    task.scored += total
    _note(scorer.notes(), task.told)


def _lines(
    asked: Asked,
    rows: Sequence[ImageRow],
    keys: Sequence[Key],
    said: Mapping[str, Sequence[float | None]],
    whole: bool = True,
) -> list[dict[str, Any]]:
    """What a call said, a line per picture; where it is not ``whole``, of as many as it came to."""
    columns = [
        [check_value(v, asked.name, r.sha256) for v, r in zip(said[m], rows, strict=whole)] for m in asked.metrics
    ]
    return [
        _line(asked, key, dict(zip(asked.metrics, values, strict=True)))
        for key, values in zip(keys, zip(*columns, strict=True), strict=whole)
    ]


def _line(asked: Asked, key: Key, said: Said) -> dict[str, Any]:
    """What a scorer said of a picture, for the work folder."""
    named = dict(zip(("image", "prompt", "about"), key, strict=True))
    return {"version": asked.version, "revision": asked.revision, **named, "values": said}


def _ahead(calls: Sequence[list[int]], load: Callable[[int], Any]) -> Iterator[tuple[list[int], list[Any]]]:
    """Each call and what was loaded for it, while the next ones are being loaded in other threads."""
    pool, waiting = ThreadPoolExecutor(THREADS), deque[tuple[list[int], list[Future[Any]]]]()

    def first() -> tuple[list[int], list[Any]]:
        call, loaded = waiting.popleft()
        return call, [one.result() for one in loaded]

    try:
        for call in calls:
            waiting.append((call, [pool.submit(load, place) for place in call]))
            if sum(len(call) for call, _ in waiting) - len(waiting[0][0]) >= AHEAD:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)
