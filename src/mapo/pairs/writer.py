"""Writing a set of pairs, row by row, in memory that does not grow.

While it is written a set lies in a hidden folder beside its place::

    .NAME.partial/ledger.sqlite3         what is there already (see ledger.py)
    .NAME.partial/pairs-00000.parquet …  pairs, a part per commit
    .NAME.partial/set/                   the set itself; renamed to NAME when it is complete

A writer with a ``job`` can be killed at any moment: the next one with the same job goes on from the last commit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mapo.errors import MapoError
from mapo.files import PARTIAL, prepare_out, sha256
from mapo.pairs.ledger import Ledger, number_of
from mapo.pairs.pictures import Picture, check_picture
from mapo.pairs.places import NAME as PLACES
from mapo.pairs.places import write_places
from mapo.pairs.schema import FORMAT, IMAGE_SCHEMA, PAIR_SCHEMA, TIE, VERSION, Pair, make_pair, pair_id, to_row
from mapo.pairs.splits import SPLITS, joined, prompt_id
from mapo.shards import owned, refuse_existing
from mapo.texts import write_json

LOG = logging.getLogger(__name__)

IMAGES_PER_ROW_GROUP = 256
BYTES_PER_ROW_GROUP = 4 * 2**20  # what is read to get at one picture
BYTES_PER_SHARD = 256 * 2**20
PAIRS_AT_ONCE = 2048
PAIRS_PER_ROW_GROUP = 4_096
NOT_KEPT = "not kept"  # what a set says of its pictures that were handed on
TEXTS_THAT_REPEAT = ["group", "split", "source"]


class PairWriter:
    """Writes a set row by row; nothing appears at ``folder`` before the ``with`` block ends well.

    ``job`` (JSON) says what is written from what. With it, work up to the last :meth:`commit` outlives everything but a
    MapoError, and ``progress`` is what that commit was given. ``content`` is the folder that becomes the set.
    With ``hand_on`` the set keeps no picture: each is given to it once, in the order in which they are stored.
    """

    def __init__(
        self, folder: Path, provenance: Mapping[str, Any], sensitive: bool = False,
        job: Mapping[str, Any] | None = None, hand_on: Callable[[Picture], None] | None = None,
    ) -> None:  # fmt: skip
        refuse_existing(folder)
        prepare_out(folder)
        self.folder, self.provenance, self.sensitive, self.job = folder, dict(provenance), sensitive, job
        self._hand_on = hand_on
        self.work = folder.with_name(f".{folder.name}{PARTIAL}")
        self.content = self.work / "set"
        self._owner = contextlib.ExitStack()
        self._owner.enter_context(owned(folder))
        self._ledger = self._open_ledger()
        state = self._ledger.state
        self._shards, self._parts = state.get("shards", 0), state.get("parts", 0)
        self.count, self._ties = state.get("pairs", 0), state.get("ties", 0)
        self._without = state.get("without_rejected", 0)  # pairs: all of them or none
        self._conversions: Counter[str] = Counter(state.get("conversions", {}))
        self.progress: Any = state.get("progress")
        self.wants_commit = False  # a shard is full: a good moment
        self._remove_uncommitted()
        self._shard: pq.ParquetWriter | None = None
        self._part: pq.ParquetWriter | None = None
        self._groups = self._shard_bytes = self._waiting_bytes = 0
        self._waiting: dict[bytes, Picture] = {}
        self._pairs: list[dict[str, Any]] = []

    def _open_ledger(self) -> Ledger:
        path = self.work / "ledger.sqlite3"
        if self.job is None:
            shutil.rmtree(self.work, ignore_errors=True)
        self.content.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(path)
        if ledger.state and ledger.state["job"] != self.job:
            LOG.info(f"{self.work} held unfinished work from another source or other settings; it begins afresh.")
            ledger.close()
            shutil.rmtree(self.work)
            self.content.mkdir(parents=True)
            ledger = Ledger(path)
        return ledger

    def _remove_uncommitted(self) -> None:
        state = self._ledger.state
        keep = {f"images-{k:05d}.parquet" for k in range(state.get("shards", 0))} | {"set", "ledger.sqlite3"}
        keep |= {f"pairs-{k:05d}.parquet" for k in range(state.get("parts", 0))}
        for path in (*self.work.iterdir(), *self.content.iterdir()):
            if path.name not in keep and not path.name.startswith("ledger.sqlite3-"):
                path.unlink()

    # ------------------------------------------------------------------ pictures

    def add_image(self, data: bytes) -> str:
        """Store an encoded picture once and return its hash; ValueError when it cannot be decoded."""
        picture = self._checked(data)
        self._store(picture)
        return picture.sha256

    def add_latent_only(self, sha256: str, width: int, height: int) -> None:
        """A picture that the set knows by its hash and upright size, and whose bytes it does not keep."""
        if len(bytes.fromhex(sha256)) != 32:
            raise ValueError(f"{sha256!r} is not a hash of a picture")
        self._store(Picture(sha256, None, width, height))

    def _checked(self, data: bytes) -> Picture:
        name = sha256(data)
        return Picture(name, data, 0, 0) if self._has(name) else check_picture(data, name)

    def _has(self, name: str) -> bool:
        key = bytes.fromhex(name)
        return key in self._waiting or self._ledger.has_picture(key)

    def _store(self, *pictures: Picture) -> None:
        for picture in pictures:
            if self._has(picture.sha256):
                continue
            if self._hand_on:
                self._hand_on(picture)
            self._waiting[bytes.fromhex(picture.sha256)] = picture
            self._waiting_bytes += len(picture.data or b"")
            self._conversions.update(picture.conversions)
            if len(self._waiting) >= IMAGES_PER_ROW_GROUP or self._waiting_bytes >= BYTES_PER_ROW_GROUP:
                self._flush_images()
        if self._shard_bytes >= BYTES_PER_SHARD:
            self._flush_images()
            self._close_shard()
            self.wants_commit = True

    def _flush_images(self) -> None:
        if not self._waiting:
            return
        if self._shard is None:
            path = self.content / f"images-{self._shards:05d}.parquet"
            how = {"compression": "none", "use_dictionary": False, "write_statistics": False}  # no copies of pictures
            self._shard = pq.ParquetWriter(path, IMAGE_SCHEMA, **how)
            self._shards, self._groups = self._shards + 1, 0
        pictures = list(self._waiting.values())
        data = [None if self._hand_on else p.data for p in pictures]
        columns = [[p.sha256 for p in pictures], data]
        sizes = [[p.width for p in pictures], [p.height for p in pictures]]
        self._shard.write_table(pa.table([*columns, *sizes], schema=IMAGE_SCHEMA))
        shard, group = self._shards - 1, self._groups
        self._ledger.add_pictures(
            (key, shard, group, row, data[row] is not None) for row, key in enumerate(self._waiting)
        )
        self._groups, self._shard_bytes = self._groups + 1, self._shard_bytes + self._waiting_bytes
        self._waiting.clear()
        self._waiting_bytes = 0

    def _close_shard(self) -> None:
        if self._shard:
            self._shard.close()
            _sync(self.content / f"images-{self._shards - 1:05d}.parquet")
            self._shard, self._shard_bytes = None, 0

    # ------------------------------------------------------------------ pairs

    def add_pair(self, prompt: str, chosen: bytes, rejected: bytes | None, **rest: Any) -> Pair | None:
        """Store a pair and its pictures; None when the very same pair is already there.

        ``rejected`` is None in all pairs of a set or in none. ``rest`` is any of preference, weight, group, split,
        source, meta, and ``repeat``, a number by which the very same pair is stored again. ValueError when something is
        wrong with it.
        """
        pair = make_pair(prompt, sha256(chosen), None if rejected is None else sha256(rejected), **rest)
        if self._ledger.has_pair(pair.id):
            return None
        pictures = []
        for side, data in (("chosen", chosen), ("rejected", rejected)):
            try:
                pictures += [] if data is None else [self._checked(data)]
            except ValueError as error:
                raise ValueError(f"the {side} picture: {error}") from None
        return self._add(pair, *pictures)

    def add_checked_pair(self, prompt: str, chosen: Picture, rejected: Picture, **rest: Any) -> Pair | None:
        """:meth:`add_pair` for pictures that :func:`mapo.pairs.pictures.check_picture` has seen."""
        pair = make_pair(prompt, chosen.sha256, rejected.sha256, **rest)
        return None if self._ledger.has_pair(pair.id) else self._add(pair, chosen, rejected)

    def note_split(self, prompt: str, chosen_sha: str, rejected_sha: str, split: str) -> str:
        """Note the split in which a source has a pair; the one in which it had this very pair first."""
        self._ledger.add_prompt(prompt_id(prompt), split)
        return self._ledger.first_split(pair_id(prompt, chosen_sha, rejected_sha), split)

    def note_captions(self, prompt: str, chosen_sha: str, rejected_sha: str, split: str, several: bool) -> None:
        """Note a pair that is split by its prompt; ``several``: by the first of its captions.

        When all pairs are known, those that share a prompt or both pictures get one split (see splits.py).
        """
        pictures = pair_id("", *sorted((chosen_sha, rejected_sha)))
        self._ledger.add_captioned(
            pair_id(prompt, chosen_sha, rejected_sha), prompt_id(prompt), pictures, split, several
        )

    def shared_prompts(self) -> int:
        """How many prompts the source has in more than one split."""
        return self._ledger.count_shared_prompts()

    def add_pair_by_hash(self, prompt: str, chosen_sha: str, rejected_sha: str | None, **rest: Any) -> Pair | None:
        """:meth:`add_pair` for pictures that were added before."""
        for side, name in (("chosen", chosen_sha), ("rejected", rejected_sha)):
            if name is not None and not self._has(name):
                raise ValueError(f"the {side} picture {name} was not added to the set")
        pair = make_pair(prompt, chosen_sha, rejected_sha, **rest)
        return None if self._ledger.has_pair(pair.id) else self._add(pair)

    def _add(self, pair: Pair, *pictures: Picture) -> Pair:
        row = to_row(pair)
        without = pair.rejected is None
        if self.count and without != bool(self._without):
            raise ValueError("a set has a rejected picture in every pair or in none")
        self._store(*pictures)  # only now, or a bad pair would leave its good picture behind
        self._ledger.add_pair(pair.id)
        self._pairs.append(row)
        self.count += 1
        self._ties += pair.preference == TIE
        self._without += without
        if len(self._pairs) >= PAIRS_AT_ONCE:
            self._flush_pairs()
        return pair

    def _flush_pairs(self) -> None:
        if not self._pairs:
            return
        if self._part is None:
            self._part = _pairs_file(self.work / f"pairs-{self._parts:05d}.parquet")
            self._parts += 1
        self._part.write_table(pa.Table.from_pylist(self._pairs, PAIR_SCHEMA))
        self._pairs.clear()

    # ------------------------------------------------------------------ whole or not at all

    def commit(self, progress: Any = None) -> None:
        """Close the files that are open; from now on a killed writer of this job comes back to here."""
        self._close_files()
        counts = {"pairs": self.count, "ties": self._ties, "without_rejected": self._without}
        files = {"shards": self._shards, "parts": self._parts}
        state = {"job": self.job, **files, **counts, "conversions": dict(self._conversions), "progress": progress}
        self._ledger.commit(state)
        self.progress, self.wants_commit = progress, False

    def _close_files(self) -> None:
        self._flush_images()
        self._close_shard()
        self._flush_pairs()
        if self._part:
            self._part.close()
            _sync(self.work / f"pairs-{self._parts - 1:05d}.parquet")
            self._part = None

    def _finish(self) -> None:
        if self.count == 0:
            raise MapoError(f"No pair to write to {self.folder}: the source gave none.")
        self._close_files()  # without a commit: only who adds rows knows how far they go
        captioned = self._ledger.captioned()
        moved = joined(captioned) if captioned["several"].any() else None
        with _pairs_file(self.content / "pairs.parquet") as whole:
            for number in range(self._parts):
                with pq.ParquetFile(self.work / f"pairs-{number:05d}.parquet") as part:
                    for batch in part.iter_batches(PAIRS_PER_ROW_GROUP, use_threads=False):
                        whole.write_batch(_moved(batch, *moved) if moved else batch)
                pa.default_memory_pool().release_unused()
        pictures, kept = self._ledger.count_pictures()
        write_places(self.content / PLACES, pictures, self._ledger.places())
        counts = {"pairs": self.count, "ties": self._ties, "images": pictures, "images_not_kept": pictures - kept}
        head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "sensitive": self.sensitive, **counts}
        conversions = {name: self._conversions[name] for name in sorted(self._conversions)}
        if self._hand_on:
            head["pictures"] = NOT_KEPT
        write_json(self.content / "set.json", {**head, "conversions": conversions, "provenance": self.provenance})
        for path in self.content.rglob("*"):
            if path.is_file():
                _sync(path)
        self.content.rename(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        keep = kind is not None and self.job is not None and not issubclass(kind, MapoError)
        try:
            if kind is None:
                self._finish()
        except BaseException as error:
            keep = self.job is not None and not isinstance(error, MapoError)
            raise
        finally:
            for file in (self._shard, self._part):
                if file:  # what is half written is thrown away: it does not matter whether it can be closed
                    with contextlib.suppress(pa.ArrowException, OSError):
                        file.close()
            if keep:
                self._ledger.go_back()
            keep = keep and bool(self._ledger.state)  # nothing committed, nothing to go on from
            if keep:
                self._remove_uncommitted()
            self._ledger.close()
            if not keep:
                shutil.rmtree(self.work, ignore_errors=True)
            self._owner.close()


def _pairs_file(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, PAIR_SCHEMA, compression="zstd", use_dictionary=TEXTS_THAT_REPEAT)


def _moved(batch: pa.RecordBatch, ids: np.ndarray, splits: np.ndarray) -> pa.RecordBatch:
    """The batch, where pairs of these (sorted) ids have these splits."""
    names = np.array([number_of(name) for name in batch["id"].to_pylist()])
    place = np.searchsorted(ids, names).clip(max=len(ids) - 1)
    there = ids[place] == names
    old = batch["split"].to_numpy(zero_copy_only=False)
    new = pa.array(np.where(there, np.array(SPLITS, object)[splits[place]], old), pa.string())
    columns = [new if name == "split" else batch[name] for name in PAIR_SCHEMA.names]
    return pa.RecordBatch.from_arrays(columns, schema=PAIR_SCHEMA)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
