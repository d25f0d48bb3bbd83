"""Sources on this machine and on the hub; the hub is a file system in memory here."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import BLUE, GREEN, RED, encoded, files_below, noise, write_parquet
from mapo.errors import MapoError
from mapo.importers import import_pairs
from mapo.importers.containers import rows, tables
from mapo.importers.containers.shape import Shape
from mapo.importers.sources import Source, find_source
from mapo.pairs import PairSet

ROOT = "datasets/somebody/pairs"


def test_a_run_is_not_a_source_of_pairs(tmp_path: Path) -> None:
    for name in ("run.json", "metrics.jsonl", "alarms.jsonl"):
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(MapoError, match="is a run, not a source of pairs. Give the folder or file that holds them"):
        import_pairs(tmp_path, tmp_path.parent / "out")


def table(rows: list[dict[str, Any]], **how: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **how)
    return buffer.getvalue()


def make_rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"jpg_0": encoded(noise(k)), "jpg_1": RED, "label_0": 1, "label_1": 0, "caption": f"prompt {k}"}
        for k in range(first, first + count)
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    files.store.clear()
    files.pipe(f"{ROOT}/README.md", b"# Pairs")
    files.pipe(f"{ROOT}/data/train-00000-of-00002.parquet", table(make_rows(0, 50), row_group_size=20))
    files.pipe(f"{ROOT}/data/train-00001-of-00002.parquet", table(make_rows(50, 30)))
    files.pipe(f"{ROOT}/data/test-00000-of-00001.parquet", table(make_rows(100, 5)))
    monkeypatch.setattr("mapo.importers.sources.hub_files", lambda: files)
    return files


@pytest.mark.parametrize("name", ["somebody/pairs", "hf://somebody/pairs", "hf://datasets/somebody/pairs"])
def test_a_set_on_the_hub_is_read_whole_by_its_id(hub: Any, tmp_path: Path, name: str) -> None:
    assert import_pairs(name, tmp_path / "set")["pairs"] == 85
    opened = PairSet(tmp_path / "set")
    assert sorted(p.prompt for p in opened) == sorted(f"prompt {k}" for k in [*range(80), *range(100, 105)])
    assert opened.info["provenance"]["imported"] == "hf://datasets/somebody/pairs"


@pytest.mark.parametrize(
    ("name", "count"),
    [("data", 85), ("data/test-00000-of-00001.parquet", 5), ("data/train-*.parquet", 80)],
)
def test_a_folder_a_file_or_a_pattern_of_a_set_on_the_hub_can_be_named(
    hub: Any, tmp_path: Path, name: str, count: int
) -> None:
    assert import_pairs(f"hf://somebody/pairs/{name}", tmp_path / "set")["pairs"] == count


def test_a_set_on_the_hub_is_streamed_and_rows_before_the_start_are_not_fetched(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    opening = type(hub).open
    monkeypatch.setattr(
        type(hub), "open", lambda self, path, *a, **k: fetched.append(path) or opening(self, path, *a, **k)
    )
    source = Source(hub=ROOT)
    read: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, **how: Any) -> Any:
        read.extend(how["row_groups"])
        return iter_batches(self, *args, **how)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    source.seen["kinds"] = [(tables.files(source), ["caption"])]  # as detection left it
    found = next(rows.read(source, Shape((("caption",),)), 45))
    assert isinstance(found, tuple)
    assert found[1] == {"caption": "prompt 40"}  # 5 of the file test, then 40
    assert read == [2]
    assert len(fetched) == 2
    assert [Path(name).name for name in fetched] == ["test-00000-of-00001.parquet", "train-00000-of-00002.parquet"]


@pytest.mark.parametrize("name", ["somebody/others", "hf://somebody/pairs/nowhere"])
def test_a_set_that_the_hub_has_not_is_refused(hub: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(MapoError, match="the hub has no such set"):
        import_pairs(name, tmp_path / "set")
    assert files_below(tmp_path) == set()


def test_a_set_on_the_hub_without_tables_is_refused(hub: Any, tmp_path: Path) -> None:
    hub.pipe("datasets/somebody/words/data.txt", b"x")
    with pytest.raises(MapoError, match="is not in a known format. Only Parquet files and tars are read from the hub"):
        import_pairs("somebody/words", tmp_path / "set")
    with pytest.raises(MapoError, match="holds no Parquet files"):
        import_pairs("somebody/words", tmp_path / "set", format="pickapic")


def test_a_path_of_a_picture_in_a_table_on_the_hub_is_a_bad_row(hub: Any, tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "/etc/hostname", "rejected": BLUE}
    hub.pipe("datasets/somebody/paths/x.parquet", table([row]))
    with pytest.raises(MapoError, match=r"^x\.parquet row 0: the picture /etc/hostname is a path; on the hub"):
        import_pairs("somebody/paths", tmp_path / "set")


def test_a_hub_that_breaks_off_can_be_asked_again_and_the_import_goes_on(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 16)
    read, asked = tables._read, [0]

    def breaks_off(file: Any, names: list[str], start: int) -> Any:
        for row in read(file, names, start):
            asked[0] += 1
            if asked[0] == 60:
                raise RuntimeError("the line is dead")
            yield row

    monkeypatch.setattr(tables, "_read", breaks_off)
    with pytest.raises(MapoError, match=r"could not be fetched \(the line is dead\)\. Repeat the command: it goes on"):
        import_pairs("somebody/pairs", tmp_path / "set", workers=1)
    assert {name.split("/")[0] for name in files_below(tmp_path)} == {".set.partial"}
    assert import_pairs("somebody/pairs", tmp_path / "set", workers=1)["pairs"] == 85
    assert asked[0] < 60 + 85 - 30  # what was committed was not read again
    assert len(PairSet(tmp_path / "set").image_names()) == 86
    assert files_below(tmp_path) == {"set", *(f"set/{p.name}" for p in (tmp_path / "set").iterdir())}


def test_without_a_network_a_hub_id_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        MapoError, match=r"The hub cannot be asked for somebody/pairs \(.*, and there is no file or folder"
    ):
        import_pairs("somebody/pairs", tmp_path / "set")


@pytest.mark.parametrize("name", ["nowhere", "in/nowhere", "nowhere/x.parquet", "nowhere/x.jsonl", "a/b/c", "/a/b"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapo.importers.sources.hub_files", lambda: pytest.fail("it was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    with pytest.raises(MapoError, match=f"There is no file or folder {name} to import"):
        find_source(name)


def test_what_is_there_is_read_from_there_even_if_it_looks_like_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapo.importers.sources.hub_files", lambda: pytest.fail("it was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody" / "pairs").mkdir(parents=True)
    assert find_source("somebody/pairs") == Source(Path("somebody/pairs"))


def test_a_source_that_lacks_one_of_its_numbered_files_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": RED, "rejected": BLUE}
    for number in (0, 2):
        write_parquet(tmp_path / "in" / f"train-{number:05d}-of-00004.parquet", [{**row, "prompt": f"{number}"}])
    with pytest.raises(MapoError, match=r"in is not whole: it lacks train-00001-of-00004\.parquet and 1 more"):
        import_pairs(tmp_path / "in", tmp_path / "set")
    assert import_pairs(tmp_path / "in" / "train-00002-of-00004.parquet", tmp_path / "set")["pairs"] == 1


def numbered(folder: Path, names: list[str]) -> Path:
    """Files of a pair each, of the kinds that their names tell."""
    folder.mkdir()
    (folder / "a.png").write_bytes(RED)
    (folder / "b.png").write_bytes(BLUE)
    for name in names:
        row = {"prompt": name, "chosen": "a.png", "rejected": "b.png"}
        if name.endswith(".parquet"):
            write_parquet(folder / name, [row])
        elif name.endswith(".tar"):
            with tarfile.open(folder / name, "w") as tar:
                for end, data in {"chosen.png": RED, "rejected.png": BLUE, "txt": name.encode()}.items():
                    info = tarfile.TarInfo(f"0.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        elif name.endswith(".csv"):
            (folder / name).write_text(",".join(row) + "\n" + ",".join(row.values()))
        else:
            (folder / name).write_text(json.dumps(row))
    return folder


GAPS = {
    "one Parquet of two": (["train-00000-of-00002.parquet"], "train-00001-of-00002.parquet"),
    "with a hash": (["train-00000-of-00002-a1b2c3.parquet"], "train-00001-of-00002.parquet"),
    "JSON lines": (["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], "train-00001-of-00003.jsonl"),
    "one of JSON lines": (["x-00001-of-00002.jsonl"], "x-00000-of-00002.jsonl"),
    "CSV": (["test-00000-of-00002.csv"], "test-00001-of-00002.csv"),
    "tars": (["x-00000-of-00003.tar", "x-00001-of-00003.tar"], "x-00002-of-00003.tar"),
    "one tar": (["x-00000-of-00002.tar"], "x-00001-of-00002.tar"),
}


@pytest.mark.parametrize("name", GAPS)
def test_a_folder_that_lacks_numbered_files_of_any_kind_is_refused(tmp_path: Path, name: str) -> None:
    there, lacks = GAPS[name]
    folder = numbered(tmp_path / "in", there)
    with pytest.raises(MapoError, match=f"in is not whole: it lacks {lacks}"):
        import_pairs(folder, tmp_path / "set")
    assert import_pairs(folder / there[0], tmp_path / "set", split="train")["pairs"] == 1


def test_numbered_files_that_are_all_there_are_read_whether_they_count_from_0_or_1(tmp_path: Path) -> None:
    for first in (0, 1):
        names = [f"train-{number:05d}-of-00002.jsonl" for number in (first, first + 1)]
        assert import_pairs(numbered(tmp_path / f"{first}", names), tmp_path / f"set{first}")["pairs"] == 2


def test_the_identity_of_a_source_follows_its_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in" / "x.parquet", [{"prompt": "a", "chosen": RED, "rejected": BLUE}])
    for source in (Source(path), Source(path.parent)):
        before = source.identity()
        assert source.identity() == before
        write_parquet(path, [{"prompt": "a", "chosen": RED, "rejected": GREEN}] * 3)
        assert source.identity() != before


@pytest.mark.parametrize("name", ["", "/data", "/data/test-00000-of-00001.parquet", "/data/te*.parquet"])
def test_the_identity_of_a_set_on_the_hub_follows_its_files(hub: Any, name: str) -> None:
    source = Source(hub=f"{ROOT}{name}")
    before = source.identity()
    assert source.identity() == before
    hub.pipe(f"{ROOT}/data/test-00000-of-00001.parquet", table(make_rows(100, 6)))
    assert source.identity() != before


def test_what_is_neither_file_nor_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for given in (tmp_path / "pipe", "/dev/null", ""):
        with pytest.raises(MapoError, match="is neither a file nor a folder"):
            find_source(given)
