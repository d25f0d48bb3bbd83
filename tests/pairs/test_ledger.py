"""What an unfinished set holds already."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mapo.errors import MapoError
from mapo.pairs.ledger import Ledger


def test_a_ledger_keeps_what_was_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite3")
    with pytest.raises(MapoError, match="Another process is writing"):
        Ledger(tmp_path / "l.sqlite3")
    names = [bytes([k]) * 32 for k in (9, 3, 5)]
    ledger.add_pictures((name, 0, 1, k, k > 0) for k, name in enumerate(names))
    for pair in ("0" * 16, "f" * 16, "8" + "0" * 15):
        ledger.add_pair(pair)
    ledger.commit({"rows": 3})
    ledger.add_pair("1" * 16)
    ledger.close()
    again = Ledger(tmp_path / "l.sqlite3")
    assert again.state == {"rows": 3}
    assert [again.has_pair(p) for p in ("0" * 16, "f" * 16, "8" + "0" * 15, "1" * 16)] == [True, True, True, False]
    assert [place[0] for place in again.places()] == sorted(names)
    assert again.count_pictures() == (3, 2)
    again.close()
    assert sqlite3.connect(tmp_path / "l.sqlite3").execute("PRAGMA integrity_check").fetchone() == ("ok",)
