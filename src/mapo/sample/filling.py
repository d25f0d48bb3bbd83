"""How an images folder is filled: by one process, or by several that share the work.

The pictures of ``jobs`` (prompt, seed) are drawn in batches that do not depend on how many processes there are, so the
folder does not either. A share writes its pictures into the folder itself. Their rows wait in the work folder
``.<out>.sample.partial`` beside it, until who is last writes the manifest:

0-of-2.jsonl    the rows of what this share has drawn
0-of-2.done     this share is made
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mapo import progress
from mapo.captions.beside import MANIFEST
from mapo.errors import MapoError
from mapo.files import PARTIAL, named, prepare_out, sweep
from mapo.sample.folder import (
    ImageRow,
    append_images,
    keep_whole,
    png_bytes,
    read_manifest,
    whole_rows,
    write_rows,
)
from mapo.shards import WHOLE, Shard, in_shares, locked, owned
from mapo.texts import read_object, write_json

FORMAT, VERSION = "mapo-images", 1
PACE = ("images_per_batch",)  # changes pictures by rounding alone, and each row has its batch_layout
Job = tuple[str, int]  # prompt and seed
Rows = dict[Job, ImageRow]


class DrawingBatch(NamedTuple):
    """What is drawn at once: its number, its jobs, and the places of those whose pictures are kept."""

    number: int
    jobs: Sequence[Job]
    wanted: list[int]


@dataclass(frozen=True)
class Filling:
    """The pictures of ``jobs`` that the images folder ``folder`` is to hold."""

    folder: Path
    open: Callable[[], None]  # makes the folder, or refuses one of other settings
    jobs: Sequence[Job]
    per_batch: int
    draw: Callable[[Sequence[Job]], Sequence[Any]]  # the pictures of a batch
    row: Callable[[Job, bytes, str], ImageRow]  # of a picture, from its job, its PNG and its place in the batch
    tell: Callable[[], None]  # says what has to be known before anything is drawn
    desc: str = "sample"
    drawn: list[Job] = field(default_factory=list)  # so far, by this process

    @property
    def work(self) -> Path:
        """The folder of what is not yet in the manifest."""
        folder = named(self.folder)
        return folder.with_name(f".{folder.name}.sample{PARTIAL}")

    def fill(self, shard: Shard = WHOLE) -> list[ImageRow] | None:
        """Draw what the folder lacks or has damaged of a shard; all rows in the order of ``jobs``.

        None where other shards are not done yet. A second process with the same shard is refused.
        """
        if not self.folder.exists():
            prepare_out(self.folder)
        if shard[1] == 1:
            with owned(self.folder), self._nothing_left():
                self.open()
                if self.work.exists():
                    return in_shares(self.work, shard, lambda: None, self._gather)
                sweep(self.folder)
                have = _by_job(keep_whole(self.folder)) if (self.folder / MANIFEST).exists() else {}
                self._draw(have, shard, self.folder / MANIFEST)
                return [have[job] for job in self.jobs]
        if (self.folder / "images.json").exists():
            self.open()
        there = _by_job(self._in_manifest())
        if there.keys() >= set(self.jobs):
            return [there[job] for job in self.jobs]
        prepare_out(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        return in_shares(self.work, shard, lambda: self._share(shard), self._gather_owned)

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Inside, a failure before the first picture leaves no folder that was not there before."""
        fresh = not self.folder.exists()
        try:
            yield
        except BaseException:
            if fresh and not (self.folder / MANIFEST).exists():
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _share(self, shard: Shard) -> None:
        with locked(self.work, ["begin"], wait=True), owned(self.folder):
            self.open()
        have = _by_job([*self._waiting(), *self._in_manifest()])
        self._draw(have, shard, self.work / f"{shard[0]}-of-{shard[1]}.jsonl")

    def _gather_owned(self) -> list[ImageRow]:
        with owned(self.folder, wait=True):
            return self._gather()

    def _gather(self) -> list[ImageRow]:
        """Put what was drawn into the manifest, in the order in which one process draws, and draw what still lacks."""
        sweep(self.folder)
        before = keep_whole(self.folder) if (self.folder / MANIFEST).exists() else []
        have = {**_by_job(self._waiting()), **_by_job(before)}
        self._draw(have, WHOLE, self.work / "0-of-1.jsonl")
        place = {job: number for number, job in reversed(list(enumerate(self.jobs)))}
        new = have.keys() - {(row.prompt, row.seed) for row in before}
        others = len(place)  # what was asked for when the shares began, and is not any more
        write_rows(self.folder, [*before, *(have[j] for j in sorted(new, key=lambda j: (place.get(j, others), j)))])
        shutil.rmtree(self.work)
        return [have[job] for job in self.jobs]

    def _waiting(self) -> list[ImageRow]:
        """The whole pictures that shares have drawn and the manifest does not have."""
        files = sorted(self.work.glob("*-of-*.jsonl"))
        return whole_rows(self.folder, [row for file in files for row in read_manifest(self.folder, False, file)])

    def _in_manifest(self) -> list[ImageRow]:
        """The whole pictures of the manifest, which only its owner may change."""
        if not (self.folder / MANIFEST).exists():
            return []
        return whole_rows(self.folder, read_manifest(self.folder, check_files=False))

    def _batches(self, have: Rows, shard: Shard) -> Iterator[DrawingBatch]:
        """A shard's batches of which something lacks: every n-th. A job that comes again is drawn once."""
        made = set(have)
        for number, start in enumerate(range(0, len(self.jobs), self.per_batch)):
            jobs = self.jobs[start : start + self.per_batch]
            wanted = [k for k, job in enumerate(jobs) if job not in made and job not in jobs[:k]]
            made.update(jobs)
            if wanted and number % shard[1] == shard[0]:
                yield DrawingBatch(number, jobs, wanted)

    def _draw(self, have: Rows, shard: Shard, manifest: Path) -> None:
        """Draw what lacks into ``have``. A batch is encoded and written while the next one is drawn."""
        (index, of), batches = shard, list(self._batches(have, shard))
        todo = sum(len(batch.wanted) for batch in batches)
        if batches:
            prepare_out(self.folder / MANIFEST)  # told before anything is drawn
        if batches and index == 0:
            self.tell()
        there = sum(job in have for job in self.jobs) if of == 1 else 0
        desc = self.desc if of == 1 else f"{self.desc} {index}/{of}"
        bar = progress.bar(total=there + todo, initial=there, desc=desc, unit="image", shown=index == 0)

        def keep(pictures: Sequence[Any], batch: DrawingBatch) -> None:
            data = [png_bytes(pictures[k]) for k in batch.wanted]
            layout = [f"{batch.number}/{k}/{len(batch.jobs)}" for k in batch.wanted]
            rows = [
                self.row(batch.jobs[k], png, at) for k, png, at in zip(batch.wanted, data, layout, strict=True)
            ]  # fmt: skip
            append_images(self.folder, rows, data, manifest)
            have.update(_by_job(rows))
            self.drawn.extend(_by_job(rows))
            bar.update(len(rows))

        with bar, ThreadPoolExecutor(1) as writer:
            kept: Future[None] | None = None
            for batch in batches:
                pictures = self.draw(batch.jobs)
                if kept:
                    kept.result()  # so that no more than one batch waits
                kept = writer.submit(keep, pictures, batch)
            if kept:
                kept.result()


def _by_job(rows: Sequence[ImageRow]) -> Rows:
    return {(row.prompt, row.seed): row for row in rows}


def open_folder(folder: Path, settings: dict[str, Any], sensitive: bool = False, revisions: Sequence[str] = ()) -> None:
    """Make an images folder, or check that an old one was made with the same settings.

    ``revisions`` are the forms of the model's revision that an older version may have written.
    """
    path = folder / "images.json"
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MapoError(f"{folder} exists and is not an images folder. Choose another --out.")
        prepare_out(folder)
        folder.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "version": VERSION, "sensitive": sensitive}
        write_json(path, {**head, "settings": settings})
        return
    before = read_object(path, "an images folder", "Choose another --out.").get("settings", {})
    if not isinstance(before, dict):
        raise MapoError(f"{path} is damaged. Choose another --out.")
    if before.get("revision") in revisions:
        settings = {**settings, "revision": before["revision"]}
    changed = [k for k in settings if k not in PACE and before.get(k) != settings[k]]
    if changed:
        raise MapoError(
            f"{folder} holds pictures that were made with other settings ({', '.join(changed)}). "
            f"Delete {folder}, or choose another --out."
        )
