"""The files that rows lie in: JSON lists, .ndjson, CSV, TSV, save_to_disk, tar, nested metadata."""

from __future__ import annotations

import csv
import io
import json
import resource
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_fixtures import BLUE, GREEN, RED, encoded, files_below, noise, write_parquet
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import import_pairs
from mapo.pairs import PairSet

ROWS = [
    {"prompt": 'a "bear", ein Bär 🐻', "chosen": "a.png", "rejected": "deep/b.png", "preference": 0.75, "weight": 2.0},
    {"prompt": "two\nlines", "chosen": "deep/b.png", "rejected": "a.png", "preference": None, "weight": None},
    {"prompt": "[a list]", "chosen": "a.png", "rejected": "deep/b.png", "preference": 1.0, "weight": 1.0},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(RED)
    (folder / "deep" / "b.png").write_bytes(BLUE)
    return folder


def write_cells(path: Path, rows: list[dict[str, Any]], delimiter: str, encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([list(rows[0]), *([row[k] for k in rows[0]] for row in rows)])
    return path


def write_rows(folder: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / f"x.{kind.partition(' ')[0]}"
    match kind:
        case "ndjson" | "jsonl" | "json of lines":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
        case "json":
            path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
        case "json indented":
            path.write_text("\ufeff \n" + json.dumps(rows, indent=2) + "\n", "utf-8")
        case "csv":
            write_cells(path, rows, ",")
        case "csv of Excel":
            write_cells(path, rows, ";", "utf-8-sig")
        case "tsv":
            write_cells(path, rows, "\t")
        case "tsv of Excel":
            write_cells(path, rows, "\t", "utf-16")
        case "csv in capitals":
            path = write_cells(folder / "X.CSV", rows, ",")
    return path


KINDS = (
    "ndjson",
    "json",
    "json indented",
    "json of lines",
    "csv",
    "csv of Excel",
    "csv in capitals",
    "tsv",
    "tsv of Excel",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_folder", [False, True])
def test_rows_in_text_of_every_kind_become_the_same_pairs(folder: Path, kind: str, as_folder: bool) -> None:
    path = write_rows(folder, kind)
    if as_folder and kind == "csv in capitals":
        pytest.skip("a folder is searched by small letters on this system")
    import_pairs(folder if as_folder else path, folder.parent / "set")
    found = [(p.prompt, p.chosen, p.rejected, p.preference, p.weight) for p in PairSet(folder.parent / "set")]
    assert found == [
        (ROWS[0]["prompt"], sha256(RED), sha256(BLUE), 0.75, 2.0),
        ("two\nlines", sha256(BLUE), sha256(RED), 1.0, 1.0),
        ("[a list]", sha256(RED), sha256(BLUE), 1.0, 1.0),
    ]


def test_a_ranking_in_csv_has_its_lists_as_json(folder: Path) -> None:
    rows = [{"prompt": "a", "images": '["a.png", "deep/b.png"]', "rank": "[2, 1]"}]
    import_pairs(write_rows(folder, "csv", rows), folder.parent / "set")
    assert PairSet(folder.parent / "set")[0].chosen == sha256(BLUE)


BAD_TEXT: dict[str, tuple[str, bytes, str]] = {
    "list that breaks off": ("x.json", b'[{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}, {"pro', "is not a whole JSON list: entry 2"),
    "list without an end": ("x.json", b'[{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}', "is not a whole JSON list: entry 2"),
    "a list in one line of .jsonl": ("x.jsonl", b'[{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}]\n', r"x\.jsonl is one JSON list, not lines\. Rename it to x\.json\."),
    "a list over lines of .jsonl": ("x.jsonl", b'[\n{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}\n]\n', r"x\.jsonl is one JSON list, not lines\."),
    "a list over many lines of .ndjson": ("x.ndjson", b'[{"prompt": "a",\n "chosen": "a.png", "rejected": "deep/b.png"}\n]\n', r"Rename it to x\.json\."),
    "a value in capitals": ("X.JSON", b'{\n "rows": []\n}', "is one JSON value, not a list of rows"),
    "two lists": ("x.json", 2 * b'[{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}]\n', "goes on behind the end of its list: another list follows"),
    "words behind a list": ("x.json", b'[{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}]' + b"\n" * 2**21 + b"oops", "goes on behind the end of its list: 'oops' follows"),
    "an empty list before another": ("x.json", b'[] [{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}]', "goes on behind the end of its list"),
    "one object over lines": ("x.json", b'{\n "rows": []\n}', "is one JSON value, not a list of rows"),
    "empty list": ("x.json", b"[]", "x.json is empty"),
    "list of texts": ("x.json", b'["a", "b"]', "is one JSON value, not a list of rows .it is not a JSON object"),
    "CSV without names": ("x.csv", b"a bear,a.png,deep/b.png\n", r"its columns are a bear, a\.png, deep/b\.png"),
    "CSV of names alone": ("x.csv", b"prompt,chosen,rejected\n", "it has no line below the names of its columns"),
    "CSV with a cell more": ("x.csv", b"prompt,chosen,rejected\na bear, brown,a.png,deep/b.png\n", "^x.csv line 2: it has 4 cells; the first line names 3 columns"),
    "CSV in Latin-1": ("x.csv", "prompt,chosen,rejected\nBär,a.png,deep/b.png\n".encode("latin-1"), "is not UTF-8 text"),
    "CSV with a quote left open": ("x.csv", b'prompt,chosen,rejected\n"a,a.png,deep/b.png\n', "cannot be read behind line"),
    "CSV with a column twice": ("x.csv", b"prompt,chosen,chosen\na,a.png,deep/b.png\n", "has two columns chosen"),
    "a key twice": ("x.jsonl", b'{"prompt": "a", "prompt": "b", "chosen": "a.png", "rejected": "deep/b.png"}\n', "two columns prompt"),
    "a key twice in a list": ("x.json", b'[{"prompt": "a", "prompt": "b", "chosen": "a.png", "rejected": "deep/b.png"}]', "two columns prompt"),
    "a key twice far on": ("x.json", b'[{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png"}, {"prompt": "a", "prompt": "b"}]', "^x.json entry 2: it has two columns prompt; rename one of them"),
    "lists in lists": ("x.jsonl", b'{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png", "meta": {"c": ' + b"[" * 900 + b"]" * 900 + b"}}\n", "nested more than 100 deep"),
    "many digits": ("x.jsonl", b'{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png", "weight": ' + b"9" * 5000 + b"}\n", "a number in it has too many digits"),
    "a line for Excel": ("x.csv", b"sep=;\nprompt;chosen;rejected\na;a.png;deep/b.png\n", "x.csv cannot be read: it begins with the line 'sep=;', which is meant for Excel alone; take that line out"),
    "CSV without a prompt": ("x.csv", b"prompt,chosen,rejected\n,a.png,deep/b.png\n", "^x.csv line 2: there is no prompt"),
    "CSV that climbs out": ("x.csv", b"prompt,chosen,rejected\na,../x.png,deep/b.png\n", "^x.csv line 2: the path '../x.png'"),
    "weight in words": ("x.csv", b"prompt,chosen,rejected,weight\na,a.png,deep/b.png,much\n", "weight is 'much', which is not a number"),
}  # fmt: skip


def test_two_columns_of_one_name_are_refused_in_parquet_too(folder: Path) -> None:
    cells = [pa.array(values) for values in (["a"], ["b"], ["a.png"], ["deep/b.png"])]
    table = pa.Table.from_arrays(cells, names=["prompt", "prompt", "chosen", "rejected"])
    pq.write_table(table, folder / "x.parquet")
    with pytest.raises(MapoError, match=r"x\.parquet cannot be read: it has two columns prompt; rename one of them\."):
        import_pairs(folder / "x.parquet", folder.parent / "set")


@pytest.mark.parametrize("name", BAD_TEXT)
def test_text_that_cannot_be_read_is_told_in_a_sentence(folder: Path, name: str) -> None:
    file, data, why = BAD_TEXT[name]
    (folder / file).write_bytes(data)
    with pytest.raises(MapoError, match=why):
        import_pairs(folder / file, folder.parent / "set")
    assert not (folder.parent / "set").exists()


def test_a_list_is_read_whatever_the_case_of_the_ending(folder: Path) -> None:
    write_rows(folder, "json indented").rename(folder / "U.JSON")
    assert import_pairs(folder / "U.JSON", folder.parent / "set")["pairs"] == len(ROWS)
    assert import_pairs(folder, folder.parent / "other")["pairs"] == len(ROWS)


def test_a_bad_entry_of_a_list_is_named_by_its_number(folder: Path) -> None:
    path = write_rows(folder, "json", [ROWS[0], {**ROWS[1], "prompt": None}])
    with pytest.raises(MapoError, match=r"^x\.json entry 2: there is no prompt"):
        import_pairs(path, folder.parent / "set")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_in_the_folders_of_splits_is_read_with_the_pictures_beside_it(folder: Path, name: str) -> None:
    for split, data in (("train", RED), ("test", GREEN)):
        (folder / split).mkdir()
        for file, picture in (("1.png", data), ("2.png", BLUE)):
            (folder / split / file).write_bytes(picture)
        row = {"prompt": split, "chosen_file_name": "1.png", "rejected_file_name": "2.png"}
        if name.endswith("csv"):
            write_cells(folder / split / name, [row], ",")
        else:
            (folder / split / name).write_text(json.dumps(row))
    import_pairs(folder, folder.parent / "set")
    found = {(p.prompt, p.split, p.chosen) for p in PairSet(folder.parent / "set")}
    assert found == {("train", "train", sha256(RED)), ("test", "test", sha256(GREEN))}


def test_files_named_by_splits_are_all_read_and_other_several_files_are_asked_about(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({**ROWS[0], "prompt": split}))
    import_pairs(folder, folder.parent / "set")
    assert {(p.prompt, p.split) for p in PairSet(folder.parent / "set")} == {
        (s, s) for s in ("train", "validation", "test")
    }
    (folder / "notes.jsonl").write_text("{}")
    with pytest.raises(MapoError, match=r"holds 4 files that could be meant .*notes\.jsonl.*'.*/\*\.jsonl'"):
        import_pairs(folder, folder.parent / "other")
    import_pairs(str(folder / "t*.jsonl"), folder.parent / "other")
    assert {p.split for p in PairSet(folder.parent / "other")} == {"train", "test"}


def test_folders_of_splits_with_one_file_each_are_read(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
        (folder / split / "data.jsonl").write_text(json.dumps({**ROWS[0], "prompt": split, "rejected": "b.png"}))
        (folder / split / "a.png").write_bytes(RED)
        (folder / split / "b.png").write_bytes(BLUE)
    import_pairs(folder, folder.parent / "set")
    assert {(p.prompt, p.split) for p in PairSet(folder.parent / "set")} == {
        (s, s) for s in ("train", "validation", "test")
    }


# ---------------------------------------------------------------------- save_to_disk


def dataset(count: int = 6) -> Any:
    datasets = pytest.importorskip("datasets")
    kinds = {"prompt": datasets.Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image()}
    rows = {
        "prompt": [f"prompt {k}" for k in range(count)],
        "chosen": [noise(k) for k in range(count)],
        "rejected": [Image.new("RGB", (8, 8), (k, 0, 0)) for k in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_a_dataset_saved_to_disk_is_read_whole_and_in_order(tmp_path: Path) -> None:
    dataset(70).save_to_disk(str(tmp_path / "in"), num_shards=3)
    import_pairs(tmp_path / "in", tmp_path / "set")
    opened = PairSet(tmp_path / "set")
    assert [p.prompt for p in opened] == [f"prompt {k}" for k in range(70)]
    assert opened.image(opened[7].chosen).tobytes() == noise(7).tobytes()
    assert "splits" not in opened.info["provenance"]


def test_a_dataset_dict_saved_to_disk_keeps_its_splits(tmp_path: Path, heard: Callable[[], str]) -> None:
    datasets = pytest.importorskip("datasets")
    whole = dataset(9)
    parts = {"train": range(5), "test": range(5, 7), "validation_unique": range(7, 8), "extra": range(8, 9)}
    datasets.DatasetDict({name: whole.select(rows) for name, rows in parts.items()}).save_to_disk(str(tmp_path / "in"))
    import_pairs(tmp_path / "in", tmp_path / "set")
    found = {p.prompt: p.split for p in PairSet(tmp_path / "set")}
    assert [found[f"prompt {k}"] for k in range(8)] == ["train"] * 5 + ["test"] * 2 + ["validation"]
    said = heard()
    assert "5 train, 1 validation, 2 test" in said
    assert "1 pair is of the split 'extra', and split by prompt." in said


def test_a_single_arrow_file_is_read_with_and_without_a_footer(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b"], "chosen": [RED, GREEN], "rejected": [BLUE, BLUE]})
    for name, opener in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with opener(str(tmp_path / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
        assert import_pairs(tmp_path / f"{name}.arrow", tmp_path / name)["pairs"] == 2


def spoil_missing(folder: Path) -> None:
    (folder / "data-00001-of-00002.arrow").unlink()


def spoil_cut(folder: Path) -> None:
    data = (folder / "data-00001-of-00002.arrow").read_bytes()
    (folder / "data-00001-of-00002.arrow").write_bytes(data[: len(data) // 2])


def spoil_state(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def spoil_outside(folder: Path) -> None:
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_missing, r"is not whole: it lacks data-00001-of-00002\.arrow"),
        (spoil_cut, r"data-00001-of-00002\.arrow (breaks off after row|is not a whole Arrow file)"),
        (spoil_state, r"state\.json cannot be read"),
        (spoil_outside, r"the path '\.\./x\.arrow' leaves its folder"),
    ],
)
def test_a_damaged_dataset_on_disk_is_told_in_a_sentence(tmp_path: Path, spoil: Any, why: str) -> None:
    dataset(8).save_to_disk(str(tmp_path / "in"), num_shards=2)
    spoil(tmp_path / "in")
    with pytest.raises(MapoError, match=why):
        import_pairs(tmp_path / "in", tmp_path / "set")


# ---------------------------------------------------------------------- tar


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, prompt: str = "a bear", data: bytes = RED) -> dict[str, bytes]:
    return {f"{key}.chosen.png": data, f"{key}.rejected.png": BLUE, f"{key}.txt": f"{prompt}\n".encode()}


LAYOUTS: dict[str, dict[str, bytes]] = {
    "txt": sample("000"),
    "json": {"0.chosen.jpg": RED, "0.rejected.webp": BLUE, "0.json": b'{"prompt": "a bear", "weight": 2}'},
    "folders": sample("./deep/er/000"),
    "prompt.txt": {"0.chosen.png": RED, "0.rejected.png": BLUE, "0.prompt.txt": b"a bear"},
    "sides without an end": {"0.jpg_0": RED, "0.jpg_1": BLUE, "0.json": b'{"caption": "a bear", "label_0": 1, "label_1": 0}'},
    "sides with an end": {"0.jpg_0.jpg": RED, "0.jpg_1.jpg": BLUE, "0.caption.txt": b"a bear", "0.label_0.txt": b"1", "0.label_1.txt": b"0"},
    "capitals": {"0.chosen.PNG": RED, "0.rejected.PNG": BLUE, "0.TXT": b"a bear"},
    "one prompt twice": sample("0") | {"0.caption": b"a bear ", "0.json": b'{"prompt": "a bear", "weight": 2, "chosen": "x.png"}', "0.weight.txt": b"2.0"},
    "two of what is not read": sample("0") | {"0.mask.png": RED, "0.mask.jpg": BLUE, "0.json": b'{"mask": "x"}'},
    "more members": sample("0") | {"0.npz": b"PK", "0.mask.npy": b"x", ".hidden": b"x", "LICENSE": b"x"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_webdataset_in_the_layouts_that_people_have_is_read(tmp_path: Path, layout: str, mode: str) -> None:
    path = write_tar(tmp_path / "in" / ("x.tar" if mode == "w" else "x.tar.gz"), LAYOUTS[layout], mode)
    import_pairs(path, tmp_path / "set")
    (pair,) = PairSet(tmp_path / "set")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("a bear", sha256(RED), sha256(BLUE))
    assert files_below(tmp_path / "in") == {path.name}


def test_shards_of_webdataset_in_folders_of_splits_keep_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("train/0000.tar", "train/0001.tar", "val/0000.tar")):
        write_tar(tmp_path / "in" / name, sample(f"{k}", f"prompt {k}", encoded(noise(k))))
    import_pairs(tmp_path / "in", tmp_path / "set")
    assert Counter(p.split for p in PairSet(tmp_path / "set")) == {"train": 2, "validation": 1}


def test_tars_on_the_hub_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    files.store.clear()
    for split, prompt in (("train", "a"), ("test", "b")):
        path = write_tar(tmp_path / "in" / f"{split}.tar", sample("0", prompt))
        files.pipe(f"datasets/somebody/pairs/{split}/0000.tar", path.read_bytes())
    monkeypatch.setattr("mapo.importers.sources.hub_files", lambda: files)
    import_pairs("somebody/pairs", tmp_path / "set")
    assert {(p.prompt, p.split) for p in PairSet(tmp_path / "set")} == {("a", "train"), ("b", "test")}
    import_pairs("hf://somebody/pairs/test/*.tar", tmp_path / "part")
    assert [p.split for p in PairSet(tmp_path / "part")] == ["test"]


def test_unsafe_members_of_a_tar_are_never_written_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "in" / "x.tar"
    write_tar(path, sample("../../evil") | sample("/tmp/mapo-evil/000", "b"))
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            link = tarfile.TarInfo("9.chosen.png")
            link.type, link.linkname = kind, "/etc/hostname"
            tar.addfile(link)
    assert import_pairs(path, tmp_path / "set")["pairs"] == 2
    assert files_below(tmp_path) == {"in", "in/x.tar", "set", *(f"set/{p.name}" for p in (tmp_path / "set").iterdir())}
    assert not Path("/tmp/mapo-evil").exists()


BAD_TARS: dict[str, tuple[dict[str, bytes], str]] = {
    "no text": ({"1.chosen.png": RED, "1.rejected.png": BLUE}, "^x.tar sample 1: it lacks prompt; it has chosen, rejected"),
    "one picture": ({"1.chosen.png": RED, "1.txt": b"a"}, "^x.tar sample 1: it lacks rejected"),
    "no JSON": (sample("1") | {"1.json": b"{"}, r"^x.tar sample 1: 1\.json is not JSON"),
    "a list of JSON": (sample("1") | {"1.json": b"[]"}, r"^x.tar sample 1: 1\.json is not a JSON object"),
    "text that is none": (sample("1") | {"1.txt": b"\xff\xff"}, r"^x.tar sample 1: 1\.txt cannot be read"),
    "a path": ({"1.txt": b"a", "1.json": b'{"chosen": "/etc/hostname", "rejected": "b.png"}'}, "^x.tar sample 1: the picture /etc/hostname is a path"),
    "two prompts": (sample("1") | {"1.json": b'{"prompt": "a fox"}'}, r"^x.tar sample 1: prompt differs in 1\.json and the members before it"),
    "three prompts": ({"1.json": b'{"prompt": "a fox"}'} | sample("1") | {"1.caption": b"a fox"}, r"^x.tar sample 1: prompt differs in 1\.txt and"),
    "two pictures": (sample("1") | {"1.chosen.jpg": BLUE}, r"^x.tar sample 1: chosen differs in 1\.chosen\.jpg and the members"),
    "no picture": (sample("1", data=b"text"), "^x.tar sample 1: the chosen picture: it is not in a known picture format"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TARS)
def test_a_bad_sample_of_a_tar_is_named_and_can_be_dropped(tmp_path: Path, name: str) -> None:
    members, why = BAD_TARS[name]
    path = write_tar(tmp_path / "in" / "x.tar", sample("0") | members | sample("2", "b"))
    with pytest.raises(MapoError, match=why):
        import_pairs(path, tmp_path / "set")
    assert import_pairs(path, tmp_path / "set", on_bad_row="drop") == {"pairs": 2, "ties": 0, "repeats": 0, "bad": 1}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_breaks_off_says_where(tmp_path: Path, mode: str) -> None:
    members: dict[str, bytes] = {}
    for k in range(9):
        members |= sample(f"{k}", f"prompt {k}", encoded(noise(k)))
    path = write_tar(tmp_path / "in" / ("x.tar" if mode == "w" else "x.tgz"), members, mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MapoError, match=r"x\.t(ar|gz) (breaks off after sample \d|sample \d|is not a whole tar file)"):
        import_pairs(path, tmp_path / "set")
    assert files_below(tmp_path) == {"in", f"in/{path.name}"}
    path.write_bytes(b"no tar at all")
    with pytest.raises(MapoError, match="is not a whole tar file"):
        import_pairs(path, tmp_path / "set")


def test_a_tar_that_is_cut_between_two_samples_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in" / "x.tar", sample("0") | sample("1", "b"))
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[3].offset
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(MapoError, match=r"x\.tar breaks off after sample 0 \(its end is missing\)"):
        import_pairs(path, tmp_path / "set")
    path.write_bytes(whole + whole)
    with pytest.raises(MapoError, match="another tar follows in the same file"):
        import_pairs(path, tmp_path / "set")


# ---------------------------------------------------------------------- what is not read, and memory

REMEDIES = {
    "x.zip": "Unpack it",
    "x.jsonl.gz": "gunzip",
    "x.xlsx": "Save it as CSV",
    "x.pkl": "A pickle can run programs",
    "x.png": "It is one picture; give the folder that holds chosen/ and rejected/",
    "x.txt": "pairs need pictures too",
    "x.arrow": "is not a whole Arrow file",
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_is_not_read_is_told_with_its_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some bytes")
    with pytest.raises(MapoError, match=REMEDIES[name]):
        import_pairs(tmp_path / name, tmp_path / "set")


def test_a_folder_of_pictures_alone_is_told_of_chosen_and_rejected(folder: Path) -> None:
    with pytest.raises(MapoError, match="has no folders chosen/ and rejected/"):
        import_pairs(folder, folder.parent / "set")


READ = """
import sys, resource
from pathlib import Path
from mapo.importers import Options
from mapo.importers.formats import jsonl, preference
from mapo.importers.sources import Source
module = jsonl if sys.argv[1].endswith("json") else preference
before = None
for number, row in enumerate(module.read(Source(Path(sys.argv[1])), Options())):
    if number == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(number, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["json", "tar", "csv"])
def test_memory_does_not_grow_with_the_file(folder: Path, kind: str) -> None:
    path, count, filler = folder / f"x.{kind}", 4_000, "x" * 4_000
    rows = ({"prompt": f"{k} {filler}", "chosen": "a.png", "rejected": "deep/b.png"} for k in range(count))
    if kind == "json":
        with path.open("w") as file:
            file.write("[")
            file.writelines((", " if k else "") + json.dumps(row) for k, row in enumerate(rows))
            file.write("]")
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["prompt", "chosen", "rejected"], *(list(row.values()) for row in rows)])
    else:
        with tarfile.open(path, "w") as tar:
            for k in range(count):
                for name, data in (("chosen.png", RED), ("rejected.png", BLUE), ("txt", filler.encode())):
                    info = tarfile.TarInfo(f"{k:06}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    number, grown = map(int, done.stdout.split())
    assert number == count - 1
    assert grown * (1024 if sys.platform != "darwin" else 1) < path.stat().st_size / 3
    assert resource.RUSAGE_SELF == 0


def test_files_of_another_kind_that_fit_too_are_passed_over_in_a_sentence(
    folder: Path, heard: Callable[[], str]
) -> None:
    write_rows(folder, "jsonl")
    write_tar(folder / "y.tar", sample("0", "in the tar"))
    import_pairs(folder, folder.parent / "set")
    assert [p.prompt for p in PairSet(folder.parent / "set")] == ["in the tar"]
    assert "has rows in y.tar and in x.jsonl; only those like the first are read." in heard()


def test_a_first_file_that_is_unlike_the_others_is_named(folder: Path) -> None:
    write_parquet(folder / "a_stats.parquet", [{"x": 1}])
    write_parquet(folder / "b.parquet", [{"prompt": "a", "chosen": RED, "rejected": BLUE}])
    why = r"^a_stats\.parquet, the first of 2 files in .*in, is not in a known format: its columns are x\. Name the"
    with pytest.raises(MapoError, match=why):
        import_pairs(folder, folder.parent / "set")
    (folder / "a_stats.parquet").rename(folder / "z_stats.parquet")
    with pytest.raises(MapoError, match=r"^z_stats\.parquet lacks the columns prompt, chosen, rejected; it has x"):
        import_pairs(folder, folder.parent / "set")


def test_hidden_files_are_nobodys_data(folder: Path) -> None:
    path = write_rows(folder, "jsonl")
    (folder / "._x.jsonl").write_bytes(b"\0\5\26\7")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.parquet").write_bytes(b"half a file")
    (folder / "deep" / "._y.parquet").write_bytes(b"\0\5\26\7")
    import_pairs(folder, folder.parent / "set")
    assert len(PairSet(folder.parent / "set")) == len(path.read_text().splitlines())
