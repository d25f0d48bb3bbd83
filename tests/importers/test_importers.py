"""What every format gets: counts, bad rows, and all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import BLUE, GREEN, RED, files_below, write_parquet
from mapo.errors import MapoError
from mapo.importers import IMPORTERS, BadRow, RawPair, import_pairs
from mapo.importers import pickapic as some_format
from mapo.pairs import PairSet

GOOD = RawPair("row 0", "a bear", RED, BLUE)
EMPTY = "the prompt is empty"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_parquet(tmp_path / "in" / "x.parquet", [{"x": 1}])


def given(monkeypatch: pytest.MonkeyPatch, rows: list[RawPair | BadRow]) -> None:
    monkeypatch.setattr(some_format, "read", lambda source: iter(rows))


def bad_rows(count: int) -> list[RawPair | BadRow]:
    return [BadRow(f"row {k}", f"reason {k}") for k in range(count)]


def test_pairs_ties_repeats_and_bad_rows_are_counted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tie = RawPair("row 1", "a bear", RED, GREEN, preference=0.5)
    graded = RawPair("row 2", "a bear", GREEN, RED, 0.8, 2.0, "g", {"model": "x"})
    given(monkeypatch, [GOOD, tie, graded, GOOD, BadRow("row 4", "why"), RawPair("row 5", " ", RED, BLUE)])
    counts = import_pairs(source, tmp_path / "set", on_bad_row="drop")
    assert counts == {"pairs": 2, "ties": 1, "repeats": 1, "bad": 2}
    opened = PairSet(tmp_path / "set")
    assert opened.info["provenance"] == {"imported": "x.parquet", "format": "pickapic", "counts": counts}
    assert [(p.preference, p.weight, p.group, p.source, p.meta) for p in opened] == [
        (1.0, 1.0, None, "pickapic", {}),
        (0.8, 2.0, "g", "pickapic", {"model": "x"}),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (BadRow("row 7", "why not"), "why not"),
        (RawPair("row 7", "", RED, BLUE), EMPTY),
        (RawPair("row 7", "a", RED, RED), "chosen and rejected are the same picture"),
        (RawPair("row 7", "a", RED, b"text"), "the rejected picture: it is in no format of pictures"),
        (RawPair("row 7", "a", b"", RED), "the chosen picture: it is empty"),
        (RawPair("row 7", "a", RED, BLUE, preference=0.3), "preference is 0.3"),
        (RawPair("row 7", "\ud83d", RED, BLUE), "surrogates"),
        (RawPair("row 7", "a", RED, BLUE, group="\ud83d"), "surrogates"),
    ],
)
def test_a_bad_row_stops_the_import_and_nothing_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: RawPair | BadRow, why: str
) -> None:
    given(monkeypatch, [GOOD, row])
    with pytest.raises(MapoError, match=f"^row 7: .*{why}.*--on-bad-row drop"):
        import_pairs(source, tmp_path / "set")
    assert files_below(tmp_path) == {"in", "in/x.parquet"}


def test_dropped_rows_are_counted_and_the_first_five_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, [*bad_rows(4), GOOD, RawPair("row 9", "", RED, BLUE), *bad_rows(3)])
    assert import_pairs(source, tmp_path / "set", on_bad_row="drop")["bad"] == 8
    assert capsys.readouterr().out.splitlines() == [
        *(f"left out: row {k}: reason {k}" for k in range(4)),
        f"left out: row 9: {EMPTY}",
        "left out: 3 more",
    ]


def test_a_dropped_row_leaves_none_of_its_pictures_in_the_set(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, [RawPair("row 0", "a", GREEN, b"text"), GOOD])
    import_pairs(source, tmp_path / "set", on_bad_row="drop")
    opened = PairSet(tmp_path / "set")
    assert set(opened.image_names()) == {opened[0].chosen, opened[0].rejected}


def test_a_source_that_gives_no_pairs_says_what_it_gave(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, [RawPair("row 0", "a", RED, BLUE, preference=0.5), *bad_rows(2)])
    with pytest.raises(MapoError, match=r"gave no pairs \(1 ties, 2 bad rows\)\. First: row 0: reason 0\."):
        import_pairs(source, tmp_path / "set", on_bad_row="drop")
    assert not (tmp_path / "set").exists()


def test_an_importer_that_breaks_off_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(source: Path) -> Iterator[RawPair]:
        yield GOOD
        raise MapoError("the source ends here")

    monkeypatch.setattr(some_format, "read", read)
    with pytest.raises(MapoError, match="the source ends here"):
        import_pairs(source, tmp_path / "set", on_bad_row="drop")
    assert files_below(tmp_path) == {"in", "in/x.parquet"}


def test_an_out_that_exists_is_refused_before_anything_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(some_format, "read", lambda source: pytest.fail("it was read"))
    (tmp_path / "set").mkdir()
    with pytest.raises(MapoError, match="already exists"):
        import_pairs(source, tmp_path / "set")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"source": Path("nowhere")}, "There is no file or folder nowhere to import"),
        ({"format": "pickapick"}, r"There is no format 'pickapick'\. Did you mean 'pickapic'\?"),
        ({"on_bad_row": "skip"}, "--on-bad-row is 'skip'; it must be stop or drop"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(
    source: Path, tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(MapoError, match=message):
        import_pairs(how.pop("source", source), tmp_path / "set", **how)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["x.csv", "x.json", "empty folder"])
def test_a_source_of_no_known_format_names_the_known_ones(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("prompt,chosen\n") if path.suffix else path.mkdir()
    with pytest.raises(MapoError, match=rf"is in no format that is known \({', '.join(IMPORTERS)}\)"):
        import_pairs(path, tmp_path / "set")


def test_the_format_is_found_by_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in (("a.png", RED), ("b.png", BLUE)):
        (tmp_path / "in" / name).write_bytes(data)
    line = {"prompt": "a bear", "images": ["a.png", "b.png"], "rank": [1, 2]}
    (tmp_path / "in" / "r.jsonl").write_text(json.dumps(line))
    import_pairs(tmp_path / "in", tmp_path / "ranking")
    row = {"jpg_0": RED, "jpg_1": BLUE, "label_0": 1, "label_1": 0, "caption": "a bear"}
    import_pairs(write_parquet(tmp_path / "p.parquet", [row]), tmp_path / "pickapic")
    ids = [[p.id for p in PairSet(tmp_path / name)] for name in IMPORTERS]
    assert ids[0] == ids[1]
    assert [PairSet(tmp_path / name)[0].source for name in IMPORTERS] == list(IMPORTERS)


def test_the_name_of_a_source_is_kept_even_when_it_is_the_working_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, [GOOD])
    monkeypatch.chdir(source.parent)
    import_pairs(Path(), tmp_path / "set")
    assert PairSet(tmp_path / "set").info["provenance"]["imported"] == "in"
