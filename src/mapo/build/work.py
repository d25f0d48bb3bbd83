"""The work folder of a build: ordinary files, a part for each process, so that parts of several machines lie together.

build.json                  what decides the pictures; another build does not go on here
0-of-1/contexts.jsonl       prompts and their context prompts
0-of-1/chosen/ rejected/    an images folder for each side (or candidate-0/ …)
0-of-1/scores/              a table of scores for each portion and judge
0-of-1/latents/             in place of the rejected pictures, where they are not kept
0-of-2.done                 this shard has made its share
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapo.errors import MapoError
from mapo.files import PARTIAL, prepare_out
from mapo.pairs.pictures import decode_picture
from mapo.sample.folder import ImageRow, append_images, read_manifest
from mapo.score.table import read_scores, write_scores
from mapo.settings import differences
from mapo.shards import Shard, refuse_existing
from mapo.texts import read_json, write_json

HEAD = "build.json"
PACE = ("sampling.images_per_batch",)  # changes pictures by rounding alone, and each row has its batch_layout


def open_work(out: Path, settings: Mapping[str, Any], revisions: Sequence[str] = ()) -> Path:
    """The work folder of ``out``, made or found; refused in a sentence when it was begun with other settings.

    ``revisions`` are the forms of the model's revision that an older version may have written.
    """
    prepare_out(out)
    folder = out.with_name(f".{out.name}.build{PARTIAL}")
    head = folder / HEAD
    settings = json.loads(json.dumps(settings))
    if not head.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(head, settings)
        return folder
    before = read_json(head, "a build's work folder", f"Delete {folder}.")
    if isinstance(before, dict) and before.get("revision") in revisions:
        settings = {**settings, "revision": before["revision"]}
    differing = [key for key in differences(before, settings) if key not in PACE]
    changed = [f"{key} ({_at(before, key)}, now {_at(settings, key)})" for key in differing]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise MapoError(
            f"An unfinished build of {out} lies in {folder}, made with other settings: {', '.join(changed[:5])}{more}. "
            f"Go on with the old settings, delete {folder}, or choose another --out."
        )
    return folder


@contextmanager
def forgotten_if_nothing_is_made(folder: Path) -> Iterator[None]:
    """Inside, a failure before anything is made, as of a model that cannot be loaded, leaves no work folder behind."""
    try:
        yield
    except Exception:
        if {path.name for path in folder.glob("*")} <= {HEAD, "whole.lock"}:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def is_made(out: Path, folder: Path, alone: bool) -> bool:
    """Whether another process has made the whole meanwhile; what lies in the work folder is then of no use.

    MapoError where this process is ``alone``: the output was there before.
    """
    if not out.exists():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    if alone:
        refuse_existing(out)
    return True


def forget(folder: Path) -> None:
    """Remove the work folder at once, so that no other shard finds half of it."""
    gone = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    folder.rename(gone)
    shutil.rmtree(gone)


def _at(values: Any, key: str) -> str:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    text = json.dumps(values, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Work:
    """The files of a build: what any part has is found, what is new goes into this process's own part.

    ``batch`` is the number of pictures that are made at a time. What was made in larger batches, for which the memory
    may have run out, is found too.
    """

    def __init__(
        self, folder: Path, shard: Shard, sides: Sequence[str], unkept: Sequence[str] = (), batch: int | None = None
    ) -> None:
        self.folder, self.shard, self.unkept, self.batch = folder, shard, unkept, batch
        self.own = folder / f"{shard[0]}-of-{shard[1]}"
        self.parts = sorted({*(p for p in folder.glob("*-of-*") if p.is_dir()), self.own})
        self._rows: dict[tuple[str, int, int], dict[int, tuple[Path, ImageRow]]] = {}
        self._of_larger: dict[tuple[str, str, int], tuple[Path, ImageRow]] = {}
        for part in self.parts:
            for side in sides:
                if (part / side / "manifest.jsonl").exists():
                    self._index(part, side, read_manifest(part / side, check_files=False))

    def _index(self, part: Path, side: str, rows: Sequence[ImageRow]) -> None:
        for row in rows:
            start, place, size = map(int, row.batch_layout.split("/"))
            self._rows.setdefault((side, start, size), {})[place] = (part / side, row)
            if self.batch and size > self.batch:
                self._of_larger[side, row.prompt, row.seed] = (part / side, row)

    def rows(self, side: str, start: int, jobs: Sequence[tuple[str, int]]) -> list[tuple[Path, ImageRow]] | None:
        """The pictures of a batch with their folders, or None when they are not all there."""
        found = self._rows.get((side, start, len(jobs)), {})
        rows = [found[k] for k in range(len(jobs)) if k in found]
        rows = rows or [self._of_larger[side, *job] for job in jobs if (side, *job) in self._of_larger]
        if [(row.prompt, row.seed) for _, row in rows] != list(jobs):
            return None
        there = side in self.unkept or all((folder / row.file).is_file() for folder, row in rows)
        return rows if there else None

    def add(self, side: str, rows: list[ImageRow], data: list[bytes] | None) -> None:
        """Keep a batch of pictures; None: its rows alone."""
        append_images(self.own / side, rows, data)
        self._index(self.own, side, rows)

    def values(self, table: str, scorer: Any) -> dict[tuple[str, str, str], float | None]:
        """Value by picture, prompt and metric from the tables of that name, of this version of the scorer."""
        found: dict[tuple[str, str, str], float | None] = {}
        for part in self.parts:
            path = part / "scores" / f"{table}-{scorer.name}.parquet"
            for row in read_scores(path).to_pylist() if path.exists() else ():
                if (row["version"], row["revision"]) == (scorer.version, scorer.revision):
                    found[row["image"], row["prompt_id"], row["metric"]] = row["value"]
        return found

    def judged(
        self, table: str, scorer: Any, rows: Sequence[ImageRow], prompts: Sequence[str], pngs: Callable[[], list[bytes]]
    ) -> dict[tuple[str, str, str], float | None]:
        """As :meth:`values`, with those of ``rows``: what no part has, the scorer says now.

        ``prompts`` are what it is told, and ``pngs`` gives the pictures.
        """
        known = self.values(table, scorer)
        if any((row.sha256, row.prompt_id, metric) not in known for row in rows for metric in scorer.metrics):
            said = scorer([decode_picture(png) for png in pngs()], prompts)
            self.add_values(table, scorer, rows, said)
            known |= {
                (row.sha256, row.prompt_id, m): None if v is None else float(v)
                for m in scorer.metrics
                for row, v in zip(rows, said[m], strict=True)
            }
        return known

    def add_values(
        self, table: str, scorer: Any, rows: Sequence[ImageRow], values: Mapping[str, Sequence[float | None]]
    ) -> None:
        """Keep what a scorer said of some pictures as an ordinary table of scores."""
        shared = {"scorer": scorer.name, "version": scorer.version, "revision": scorer.revision, "reference": None}
        write_scores(
            self.own / "scores" / f"{table}-{scorer.name}.parquet",
            [
                {
                    "image": row.sha256,
                    "prompt_id": row.prompt_id,
                    "prompt": row.prompt,
                    "seed": row.seed,
                    "model": row.model,
                    "metric": metric,
                    "value": None if value is None else float(value),
                    **shared,
                }
                for metric in scorer.metrics
                for row, value in zip(rows, values[metric], strict=True)
            ],
        )
