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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from mapo import progress
from mapo.devices import use_own_device
from mapo.errors import MapoError, count
from mapo.sample.folder import ImageRow, check_pictures, open_picture, read_images
from mapo.score.scorers import Unfinished, scorer_names
from mapo.score.scorers.choice import NEUTRAL, check_measured, choose_scorers
from mapo.score.table import check_value, write_scores
from mapo.score.task import AskedScorer, Key, ScoringTask, line_of, note, open_task, read_table
from mapo.shards import WHOLE, Shard, in_shares, owned
from mapo.texts import append_lines

LOG = logging.getLogger(__name__)

IMAGES_PER_BATCH = 64
THREADS = min(16, os.cpu_count() or 1)  # that read and prepare pictures
AHEAD = 64  # pictures, or one call's if that has more, that are read while the scorer works


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
    return _do(open_task(folder, names, out, references, images_per_batch, set()), shard)


def _do(task: ScoringTask, shard: Shard = WHOLE) -> dict[str, int] | None:
    out = task.out
    if task.is_done():
        check_pictures(task.folder, task.images)  # that the manifest and so the table still speak of them
        return task.counts()
    use_own_device()
    alone = shard[1] == 1
    with owned(out) if alone else nullcontext():
        task.work.mkdir(parents=True, exist_ok=True)
        return in_shares(task.work, shard, lambda: _share(task, shard), lambda: _collect(task, again=alone))


def score_images(folder: Path, names: str, out: Path, images_per_batch: int = IMAGES_PER_BATCH) -> Path:
    """The same in this process alone; the table's path."""
    score(folder, names, out, images_per_batch=images_per_batch)
    return out


def score_sides(
    before: Path, after: Path, names: str | None, out: Path, has_votes: bool, goal: str | None = None
) -> tuple[list[Path], set[str]]:
    """Score both folders of a report into tables beside its page ``out``; the tables' paths, the scorers in question.

    The same report again finds its tables, which may hold what other scorers said for other reports; one that holds
    scores of other pictures is never written over. A ``goal`` that none of the scorers gives is refused first.
    """
    said, scorers, why = set[str](), set[str](), f"--scorer: {NEUTRAL} alone"
    if names is None:
        names, told = choose_scorers({folder: read_images(folder) for folder in (before, after)})
        note(told)
        why = f"Only {NEUTRAL} can score these pictures on this machine, and they"
    if scorer_names(names) == [NEUTRAL] and not has_votes:
        raise MapoError(
            f"{why} know no better or worse. Name a scorer, such as --scorer pickscore, which is fetched once, or let "
            f"people judge: mapo label --before {before} --after {after} --out VOTES, then give --votes VOTES."
        )
    if goal is not None:
        check_measured(goal, names)
    alike = before.resolve().name == after.resolve().name
    tables = []
    for folder, side in ((before, "before"), (after, "after")):
        table = _own_table(folder, out.parent, side if alike else folder.resolve().name)
        task = open_task(folder, names, table, None, IMAGES_PER_BATCH, said)
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
            if all(row["image"] in own for row in read_table(table)):
                break
    if number > 1:
        note([f"{where / name}-scores.parquet holds scores of other pictures and is kept; these are in {table}"])
    return table


def refuse_table_of_others(folder: Path, out: Path) -> None:
    """A table without one picture of the folder is that of another one, whose scores would be lost."""
    theirs = read_table(out)
    if theirs and not {row["image"] for row in theirs} & {row.sha256 for row in read_images(folder)}:
        raise MapoError(
            f"--out: {out} holds scores of other pictures ({theirs[0]['model']}, {theirs[0]['prompt']!r}) and of none "
            f"in {folder}. Choose another --out, or delete it."
        )


def _share(task: ScoringTask, shard: Shard) -> None:
    """Score this shard's pictures."""
    for asked in task.asked:
        _run(task, asked, task.calls(asked, shard), shard)


def _collect(task: ScoringTask, again: bool) -> dict[str, int]:
    """Score what no process has, and write the table. ``again``: see :meth:`ScoringTask.calls`."""
    task.table = read_table(task.out)
    for asked in task.asked:
        _run(task, asked, task.calls(asked, again=again), WHOLE)
    before, rows = task.table, task.rows()
    write_scores(task.out, rows)
    task.table = rows
    _tell(task, before)
    for path in [*task.work.glob("*.done"), *(p for a in task.asked for p in task.work.glob(task.ledger(a)))]:
        path.unlink()
    if not any(task.work.glob("*.jsonl")):  # else another scorer has not come to its end
        shutil.rmtree(task.work)
    return task.counts()


def _tell(task: ScoringTask, before: Sequence[Mapping[str, Any]]) -> None:
    """What has to be known of the table, a sentence each."""
    kept, asked = Counter(row["scorer"] for row in task.table), {a.name: a for a in task.asked}
    for name, number in Counter(row["scorer"] for row in before).items():
        if name not in asked and number > kept[name]:
            gone = number - kept[name]
            are = "was of another picture and is" if gone == 1 else "were of other pictures and are"
            note([f"{count(gone, 'score')} by {name} {are} left out of {task.out}"])
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
            note([sentence], task.told)
        else:
            note([f"{name} gave no {metric} to {few}"])


def _run(task: ScoringTask, asked: AskedScorer, calls: Sequence[list[int]], shard: Shard) -> None:
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
    note(scorer.notes(), task.told)


def _lines(
    asked: AskedScorer,
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
        line_of(asked, key, dict(zip(asked.metrics, values, strict=True)))
        for key, values in zip(keys, zip(*columns, strict=True), strict=whole)
    ]


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
