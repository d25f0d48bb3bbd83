"""What an unfinished set holds already, in an SQLite file: pictures, pairs, and how far the work has come.

All of it is committed together, so a process that is killed leaves the ledger as it was at its last commit. Memory
does not grow with the set: the tables stay on disk.
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapo.errors import MapoError
from mapo.pairs.splits import SPLITS

CACHE_KIB = 4096
TABLES = (
    "pictures (sha BLOB PRIMARY KEY, shard INT, row_group INT, row INT, kept INT) WITHOUT ROWID",
    "pairs (id INTEGER PRIMARY KEY)",
    "prompts (id INT, split TEXT, PRIMARY KEY (id, split)) WITHOUT ROWID",
    "published (id INTEGER PRIMARY KEY, split TEXT)",
    "captioned (id INT, prompt INT, pictures INT, split INT, several INT)",
    "state (one INTEGER PRIMARY KEY, value TEXT)",
)
Place = tuple[bytes, int, int, int, bool]  # sha, shard, row group, row, whether its bytes are kept


class Ledger:
    """Open for one process at a time; ``state`` is what the last commit said.

    Raises OSError when the disk is full, as writing any other file does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            self._run(f"PRAGMA {setting}")
        self._run(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._run("BEGIN IMMEDIATE")
        for table in TABLES:
            self._run(f"CREATE TABLE IF NOT EXISTS {table}")
        found = self._run("SELECT value FROM state").fetchone()
        self.state: dict[str, Any] = json.loads(found[0]) if found else {}

    def _run(self, sql: str, values: tuple[Any, ...] = (), rows: Iterable[tuple[Any, ...]] | None = None) -> Any:
        try:
            return self._db.execute(sql, values) if rows is None else self._db.executemany(sql, rows)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                folder = self._path.parent
                raise MapoError(f"Another process is writing {folder}. Wait for it, or choose another --out.") from None
            raise OSError(errno.ENOSPC if "full" in str(error) else errno.EIO, str(error), str(self._path)) from None

    def has_picture(self, sha: bytes) -> bool:
        """Whether the picture of this hash has its place."""
        return self._run("SELECT 1 FROM pictures WHERE sha = ?", (sha,)).fetchone() is not None

    def add_pictures(self, places: Iterable[Place]) -> None:
        """Note where pictures lie."""
        self._run("INSERT INTO pictures VALUES (?, ?, ?, ?, ?)", rows=places)

    def has_pair(self, name: str) -> bool:
        """Whether the pair of this name (16 hexadecimal digits) is there."""
        return self._run("SELECT 1 FROM pairs WHERE id = ?", (number_of(name),)).fetchone() is not None

    def add_pair(self, name: str) -> None:
        """Note a pair."""
        self._run("INSERT INTO pairs VALUES (?)", (number_of(name),))

    def add_prompt(self, name: str, split: str) -> None:
        """Note that the prompt of this name (16 hexadecimal digits) stands in a split."""
        self._run("INSERT OR IGNORE INTO prompts VALUES (?, ?)", (number_of(name), split))

    def first_split(self, name: str, split: str) -> str:
        """Note that a source has the pair of this name in a split; the split in which it had it first."""
        self._run("INSERT OR IGNORE INTO published VALUES (?, ?)", (number_of(name), split))
        return str(self._run("SELECT split FROM published WHERE id = ?", (number_of(name),)).fetchone()[0])

    def count_shared_prompts(self) -> int:
        """How many prompts were noted in more than one split."""
        several = "SELECT id FROM prompts GROUP BY id HAVING count(*) > 1"
        return int(self._run(f"SELECT count(*) FROM ({several})").fetchone()[0])

    def add_captioned(self, name: str, prompt: str, pictures: str, split: str, several: bool) -> None:
        """Note a pair that is split by prompt, with names of its prompt and its pictures."""
        row = (*map(number_of, (name, prompt, pictures)), SPLITS.index(split), several)
        self._run("INSERT INTO captioned VALUES (?, ?, ?, ?, ?)", row)

    def captioned(self) -> NDArray[np.void]:
        """What was noted by :meth:`add_captioned`, in its order, without pairs whose split is published."""
        columns = [("id", "i8"), ("prompt", "i8"), ("pictures", "i8"), ("split", "i1"), ("several", "?")]
        rows = "SELECT * FROM captioned WHERE id NOT IN (SELECT id FROM published) ORDER BY rowid"
        return np.fromiter(self._run(rows), np.dtype(columns))

    def commit(self, state: dict[str, Any]) -> None:
        """From now on a killed process comes back to here."""
        self._run("INSERT OR REPLACE INTO state VALUES (0, ?)", (json.dumps(state),))
        self._run("COMMIT")
        self._run("BEGIN IMMEDIATE")
        self.state = state

    def go_back(self) -> None:
        """Be where the last commit was, also where this process was stopped between it and its end."""
        if self._db.in_transaction:
            self._run("ROLLBACK")  # with the tables, where nothing was ever committed
        there = self._run("SELECT count(*) FROM sqlite_master WHERE name = 'state'").fetchone()[0]
        found = self._run("SELECT value FROM state").fetchone() if there else None
        self.state = json.loads(found[0]) if found else {}

    def count_pictures(self) -> tuple[int, int]:
        """How many pictures there are, and of how many the bytes are kept."""
        pictures, kept = self._run("SELECT count(*), total(kept) FROM pictures").fetchone()
        return int(pictures), int(kept)

    def places(self) -> Iterator[Place]:
        """Where all pictures lie, in the order of their hashes."""
        yield from self._run("SELECT * FROM pictures ORDER BY sha")

    def close(self) -> None:
        """Throw away what was not committed."""
        self._db.close()


def number_of(name: str) -> int:
    """A name of 16 hexadecimal digits as SQLite and NumPy keep it."""
    return int(name, 16) - 2**63
