"""Whether a source has changed: every file that an import reads counts, and no other."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import BLUE, GREEN, RED, encoded, noise
from mapo.importers import checking, import_pairs
from mapo.importers.named import state_of
from mapo.importers.sources import Source
from mapo.pairs import PairSet


def make_folders(root: Path, count: int = 40) -> Path:
    for side, first in (("chosen", 0), ("rejected", 1000)):
        (root / side).mkdir(parents=True)
        for k in range(count):
            (root / side / f"{k:03}.png").write_bytes(encoded(noise(first + k)))
    for k in range(count):
        (root / "chosen" / f"{k:03}.txt").write_text(f"prompt {k}")
    return root


def interrupt(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: int = 25) -> None:
    """Ctrl-C at row ``at``; commits every ten rows."""
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 10)
    check, seen = checking._check, [0]

    def stops(chunk: Any, check_ties: bool) -> Any:
        seen[0] += len(chunk)
        if seen[0] > at:
            raise KeyboardInterrupt
        return check(chunk, check_ties)

    with monkeypatch.context() as patch:
        patch.setattr("mapo.importers.checking.PAIRS_PER_CHUNK", 1)
        patch.setattr(checking, "_check", stops)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(source, out, workers=1)
    assert out.with_name(f".{out.name}.partial").is_dir()


AFRESH = "held unfinished work from another source or other settings; it begins afresh"


@pytest.mark.parametrize("changed", ["caption", "picture", "nothing"])
def test_an_interrupted_import_of_folders_never_mixes_old_and_new_captions_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str], changed: str
) -> None:
    root = make_folders(tmp_path / "in")
    interrupt(root, tmp_path / "set", monkeypatch)
    if changed == "caption":
        (root / "chosen" / "003.txt").write_text("another prompt")
    if changed == "picture":
        (root / "rejected" / "003.png").write_bytes(GREEN)
    import_pairs(root, tmp_path / "set")
    assert (AFRESH in heard()) == (changed != "nothing")
    import_pairs(root, tmp_path / "clean")
    assert list(PairSet(tmp_path / "set")) == list(PairSet(tmp_path / "clean"))
    assert ("another prompt" in {p.prompt for p in PairSet(tmp_path / "set")}) == (changed == "caption")


def list_of(root: Path, kind: str, folder: str = "pics") -> Path:
    """A list of pairs with paths, of one kind, beside a folder of pictures."""
    (root / folder).mkdir(parents=True)
    rows = []
    for k in range(40):
        names = [f"{folder}/{k}w.png", f"{folder}/{k}l"]  # one has no ending
        for name, data in zip(names, (encoded(noise(k)), encoded(noise(1000 + k))), strict=True):
            (root / name).write_bytes(data)
        rows.append({"prompt": f"Bär {k}", "chosen": names[0], "rejected": names[1]})
    path = root / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_interrupted_import_of_a_list_sees_that_a_picture_it_names_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str], kind: str
) -> None:
    path = list_of(tmp_path / "in", kind)
    interrupt(path, tmp_path / "in" / "set", monkeypatch)
    (tmp_path / "in" / "pics" / "3l").write_bytes(GREEN)
    import_pairs(path, tmp_path / "in" / "set")
    assert AFRESH in heard()
    import_pairs(path, tmp_path / "clean")
    assert list(PairSet(tmp_path / "in" / "set")) == list(PairSet(tmp_path / "clean"))


@pytest.mark.parametrize("given", ["file", "folder"])
def test_an_import_beside_its_own_source_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str], given: str
) -> None:
    """Its own work, and for a file also the logs and pictures that others write there, change nothing."""
    path = list_of(tmp_path / "in", "jsonl")
    source = path if given == "file" else path.parent
    interrupt(source, tmp_path / "in" / "set", monkeypatch)
    if given == "file":
        (tmp_path / "in" / "import.log").write_text("stopped")
        (tmp_path / "in" / "pics" / "other.png").write_bytes(RED)
    import_pairs(source, tmp_path / "in" / "set")
    assert AFRESH not in heard()


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "parquet"])
def test_every_picture_that_a_list_names_counts(tmp_path: Path, kind: str) -> None:
    path = list_of(tmp_path, kind)
    before = state_of(path)
    assert before[0] == 81
    (tmp_path / "pics" / "39l").write_bytes(BLUE)
    assert state_of(path) != before


def cells(path: Path, mark: str) -> Path:
    rows = [["prompt", "chosen", "rejected"], ["a", "a.png", "b.png"]]
    path.write_text("\n".join(mark.join(row) for row in rows))
    return path


NAMING: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "semicolons": (lambda folder: cells(folder / "x.csv", ";"), {"a.png", "b.png"}),
    "tabs in CSV": (lambda folder: cells(folder / "x.csv", "\t"), {"a.png", "b.png"}),
    "TSV": (lambda folder: cells(folder / "x.TSV", "\t"), {"a.png", "b.png"}),
    "a list in a cell": (
        lambda folder: write(folder / "x.csv", 'prompt,images,rank\n[a],"[""a.png"", ""b.png""]","[1, 2]"\n'),
        {"a.png", "b.png"},
    ),
    "a list in a text of JSON": (
        lambda folder: write(
            folder / "x.jsonl", json.dumps({"prompt": "[", "images": '["a.png", "b.png"]', "rank": "[1, 2]"})
        ),
        {"a.png", "b.png"},
    ),
    "HPDv2's folder": (
        lambda folder: write(
            folder / "train.json",
            json.dumps([{"prompt": "a", "image_path": ["c.png", "d.png"], "human_preference": [1, 0]}]),
        ),
        {"train/c.png", "train/d.png"},
    ),
    "ImageReward's name alone": (
        lambda folder: write(
            folder / "x.jsonl",
            "\n".join(
                json.dumps({"prompt_id": "1", "prompt": "a", "rank": k, "image_path": f"images/train/{name}"})
                for k, name in enumerate(("a.png", "b.png"))
            ),
        ),
        {"a.png", "b.png"},
    ),
    "a single Arrow file": (lambda folder: arrow(folder / "x.arrow"), {"a.png", "b.png"}),
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def arrow(path: Path) -> Path:
    table = pa.Table.from_pylist([{"prompt": "a", "chosen": "a.png", "rejected": {"path": "b.png", "bytes": None}}])
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    return path


@pytest.mark.parametrize("name", NAMING)
def test_every_picture_counts_that_the_reader_finds(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    (folder / "train").mkdir(parents=True)
    for picture, data in (("a.png", RED), ("b.png", BLUE), ("train/c.png", RED), ("train/d.png", BLUE)):
        (folder / picture).write_bytes(data)
    make, pictures = NAMING[name]
    path = make(folder)
    assert import_pairs(path, tmp_path / "set")["pairs"] == 1
    for picture in pictures:
        before = state_of(path)
        (folder / picture).write_bytes(GREEN + GREEN)
        assert state_of(path) != before


def spelled(text: str) -> dict[str, Any]:
    return {"prompt": "a\0b", "meta": {"deep": [text]}}


@pytest.mark.parametrize("text", ["sub\\a.png", "./sub/a.png", "sub/é.png", "{absolute}"])
def test_a_picture_counts_however_its_path_is_spelled(tmp_path: Path, text: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "e\u0301.png"):
        (tmp_path / "sub" / name).write_bytes(RED)
    (tmp_path / "x.jsonl").write_text(json.dumps(spelled(text.format(absolute=tmp_path / "sub" / "a.png"))))
    assert state_of(tmp_path / "x.jsonl")[0] == 2


CHANGES: dict[str, Callable[[Path], object]] = {
    "size": lambda path: path.write_bytes(RED + b"x"),
    "time": lambda path: os.utime(path, ns=(1, 1)),
    "name": lambda path: path.rename(path.with_name("b.png")),
    "gone": lambda path: path.unlink(),
    "one more": lambda path: path.with_name("z.png").write_bytes(RED),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_identity_of_a_folder_follows_size_time_and_name_of_every_file(tmp_path: Path, change: str) -> None:
    root = make_folders(tmp_path / "in", 2)
    (root / "chosen" / "deep" / "er").mkdir(parents=True)
    (root / "chosen" / "deep" / "er" / "a.png").write_bytes(RED)
    before = Source(root).identity()
    assert Source(root).identity() == before
    CHANGES[change](root / "chosen" / "deep" / "er" / "a.png")
    assert Source(root).identity() != before


def test_the_identity_of_many_files_is_a_few_bytes(tmp_path: Path) -> None:
    few, many = (Source(make_folders(tmp_path / str(count), count)).identity() for count in (2, 50))
    assert len(json.dumps(many)) <= len(json.dumps(few)) + 3


def test_two_files_that_change_places_are_a_change(tmp_path: Path) -> None:
    for name, data in (("a.png", RED), ("b.png", RED + b"x")):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, ns=(1, 1))
    before = state_of(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "c")
    (tmp_path / "b.png").rename(tmp_path / "a.png")
    (tmp_path / "c").rename(tmp_path / "b.png")
    assert state_of(tmp_path) != before


def test_what_a_pattern_does_not_match_does_not_make_an_import_begin_afresh(tmp_path: Path) -> None:
    from mapo.importers.sources import find_source

    for name in ("train-0.jsonl", "train-1.jsonl", "other.jsonl", "log.txt"):
        (tmp_path / name).write_text('{"prompt": "a"}\n')
    pattern = str(tmp_path / "train-*.jsonl")
    before = find_source(pattern).identity()
    for name in ("other.jsonl", "log.txt"):
        (tmp_path / name).write_text('{"prompt": "longer"}\n')
    assert find_source(pattern).identity() == before
    (tmp_path / "train-1.jsonl").write_text('{"prompt": "longer"}\n')
    assert find_source(pattern).identity() != before
