"""Pictures checked on all cores, in order: Pillow lets other threads run while it decodes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mapo.files import sha256
from mapo.importers.types import BadRow, LeftOut, RawPair
from mapo.pairs.pairs import TIE
from mapo.pairs.pictures import Picture, check_picture

PAIRS_PER_CHUNK = 32
BYTES_PER_CHUNK = 4 * 2**20
Row = list[RawPair | BadRow | LeftOut]
Checked = BadRow | LeftOut | tuple[RawPair, tuple[Picture, Picture] | None]  # None: a tie that is not wanted


def checked_rows(rows: Iterator[Row], workers: int | None = None, check_ties: bool = True) -> Iterator[list[Checked]]:
    """The rows with their pictures decoded once, the bad ones told; a few chunks are in memory at a time."""
    workers = workers or cores()
    waiting: deque[Future[list[list[Checked]]]] = deque()
    chunks, broken = _chunks(rows), None
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            try:
                waiting.append(pool.submit(_check, next(chunks), check_ties))
            except StopIteration:
                break
            except Exception as error:  # what came before it counts, and may be worse
                broken = error
                break
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
        if broken:
            raise broken
    finally:
        pool.shutdown(cancel_futures=True)
        chunks.close()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(rows: Iterator[Row]) -> Generator[list[Row], None, None]:
    chunk: list[Row] = []
    pairs = size = 0
    broken = None
    try:
        for row in rows:
            chunk.append(row)
            pairs += len(row)
            size += sum(len(p.chosen) + len(p.rejected) for p in row if isinstance(p, RawPair))
            if pairs >= PAIRS_PER_CHUNK or size >= BYTES_PER_CHUNK:
                yield chunk
                chunk, pairs, size = [], 0, 0
    except Exception as error:
        broken = error
    if chunk:
        yield chunk
    if broken:
        raise broken


def _check(chunk: list[Row], check_ties: bool) -> list[list[Checked]]:
    seen: dict[str, Picture | ValueError] = {}

    def check(pair: RawPair | BadRow | LeftOut) -> Checked:
        if isinstance(pair, BadRow | LeftOut):
            return pair
        if pair.preference == TIE and not check_ties:
            return pair, None
        try:
            return pair, (look(pair.chosen, "chosen"), look(pair.rejected, "rejected"))
        except ValueError as error:
            return BadRow(pair.where, str(error))

    def look(data: bytes, side: str) -> Picture:
        name = sha256(data)
        if name not in seen:  # a picture of a ranking is in many pairs
            try:
                seen[name] = check_picture(data, name)
            except ValueError as error:
                seen[name] = error
        found = seen[name]
        if isinstance(found, ValueError):
            raise ValueError(f"the {side} picture: {found}")
        return found

    return [[check(pair) for pair in row] for row in chunk]
