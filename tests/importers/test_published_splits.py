"""Splits that a source publishes are kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_fixtures import RED, encoded, noise, write_parquet
from mapo.importers import import_pairs
from mapo.importers.splits import split_named, split_of_file, splits_of
from mapo.pairs import PairSet
from mapo.pairs.splits import split_of

HELD_OUT = next(f"held out {k}" for k in range(99) if split_of(f"held out {k}") == "test")
TRAINED = next(f"trained {k}" for k in range(99) if split_of(f"trained {k}") == "train")


def make_rows(word: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"{word} {k}", "chosen": encoded(noise(first + k)), "rejected": RED} for k in range(count)]


def make_hub_layout(folder: Path) -> Path:
    files = {
        "train-00000-of-00002": 4,
        "train-00001-of-00002": 4,
        "validation-00000-of-00001": 2,
        "test-00000-of-00001": 2,
    }
    for k, (name, count) in enumerate(files.items()):
        write_parquet(folder / "data" / f"{name}.parquet", make_rows(name, count, 10 * k))
    return folder


def splits(folder: Path) -> dict[str, int]:
    return dict(Counter(pair.split for pair in PairSet(folder)))


def test_a_hub_set_that_was_downloaded_whole_keeps_its_splits(tmp_path: Path, heard: Callable[[], str]) -> None:
    import_pairs(make_hub_layout(tmp_path / "hf"), tmp_path / "set")
    opened = PairSet(tmp_path / "set")
    assert {(pair.prompt.split("-")[0], pair.split) for pair in opened} == {
        (s, s) for s in ("train", "validation", "test")
    }
    assert splits(tmp_path / "set") == {"train": 8, "validation": 2, "test": 2}
    assert opened.info["provenance"]["splits"] == {"train": 8, "validation": 2, "test": 2}
    assert "The source's own splits are kept: 8 train, 2 validation, 2 test" in heard()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("data/train-*.parquet", {"train": 8}),
        ("data/t*-*.parquet", {"train": 8, "test": 2}),
        ("**/validation-0000?-of-*.parquet", {"validation": 2}),
        ("*/test-*", {"test": 2}),
    ],
)
def test_a_pattern_of_files_on_this_machine_is_read_as_one_on_the_hub(
    tmp_path: Path, pattern: str, found: dict[str, int]
) -> None:
    make_hub_layout(tmp_path / "hf")
    import_pairs(str(tmp_path / "hf" / pattern), tmp_path / "set")
    assert splits(tmp_path / "set") == found
    assert f"hf/{pattern}".endswith(PairSet(tmp_path / "set").info["provenance"]["imported"])  # no path of a machine


def test_a_set_on_the_hub_keeps_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    files.store.clear()
    for path in make_hub_layout(tmp_path / "hf").rglob("*.parquet"):
        files.pipe(f"datasets/somebody/test-pairs/data/{path.name}", path.read_bytes())
    monkeypatch.setattr("mapo.importers.sources.hub_files", lambda: files)
    import_pairs("somebody/test-pairs", tmp_path / "set")
    assert splits(tmp_path / "set") == {"train": 8, "validation": 2, "test": 2}


NAMES = {
    "train-00000-of-00002.parquet": "train",
    "data/validation-00000-of-00001.parquet": "validation",
    "train_unique-00000-of-00001-abc.parquet": "train",
    "test_unique-00000-of-00001.parquet": "test",
    "data/validation_unique-00000-of-00001.parquet": "validation",
    "val.jsonl": "validation",
    "dev.csv": "validation",
    "eval/0000.parquet": "test",
    "default/partial-train/0000.parquet": "train",
    "train/metadata.jsonl": "train",
    "test/part.0.parquet": "test",
    "train/0001.tar": "train",
    "pickapic-train-00000-of-00002.arrow": "train",
    "train.tar.gz": "train",
    "TEST.parquet": "test",
    "data.parquet": None,
    "contest/latest.parquet": None,
    "0000.parquet": None,
    "train-test.parquet": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_files_and_folders_tell_their_split(name: str) -> None:
    assert split_of_file(name) == NAMES[name]


ALONE = {
    "my-test.parquet": None, "eval_rankings.jsonl": None, "test1.jsonl": None, "train-0000.tar": None, "dev_set.csv": None,
    "test.jsonl": "test", "TEST.csv": "test", "test-00000-of-00001.parquet": "test", "dev/my-test.jsonl": "validation",
    "test_unique-00000-of-00001-abc.parquet": "test", "train.tar.gz": "train", "eval/0000.parquet": "test",
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_a_lone_file_is_of_a_split_only_if_its_whole_name_says_so(name: str) -> None:
    assert splits_of([name]) == [ALONE[name]]


def test_files_side_by_side_are_of_the_splits_that_they_name() -> None:
    assert splits_of(["my-train.csv", "my-test.csv", "more.csv"]) == ["train", "test", None]
    assert splits_of(["test_a.csv", "test_b.csv"]) == [None, None]
    assert splits_of(["train-0000.tar", "train-0001.tar"]) == ["train", "train"]
    assert splits_of([]) == []


@pytest.mark.parametrize("name", ["my-test.jsonl", "eval_rankings.jsonl", "test1.jsonl", "my-test.parquet"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_a_word_in_the_name_of_a_lone_file_does_not_hold_out_all_pairs(
    tmp_path: Path, name: str, as_folder: bool
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(RED)
    (tmp_path / "in" / "b.png").write_bytes(encoded(noise()))
    rows = [{"prompt": prompt, "chosen": "a.png", "rejected": "b.png"} for prompt in (HELD_OUT, TRAINED)]
    if name.endswith(".parquet"):
        write_parquet(tmp_path / "in" / name, rows)
    else:
        (tmp_path / "in" / name).write_text("\n".join(map(json.dumps, rows)))
    import_pairs(tmp_path / "in" if as_folder else tmp_path / "in" / name, tmp_path / "set")
    assert [pair.split for pair in PairSet(tmp_path / "set")] == ["test", "train"]


def test_names_that_are_no_split_are_none() -> None:
    assert [split_named(name) for name in ("extra", "", "1", "trains")] == [None] * 4


def test_what_has_no_split_beside_files_that_have_is_split_by_prompt_and_said(
    tmp_path: Path, heard: Callable[[], str]
) -> None:
    write_parquet(tmp_path / "in" / "more.parquet", [{**make_rows("x", 1)[0], "prompt": HELD_OUT}])
    write_parquet(tmp_path / "in" / "train.parquet", [{**make_rows("x", 1, 5)[0], "prompt": f" {HELD_OUT.upper()}!"}])
    import_pairs(tmp_path / "in", tmp_path / "set")
    assert splits(tmp_path / "set") == {"test": 1, "train": 1}
    assert "1 pair is of no split that is known, and split by prompt." in heard()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_of_splits_is_kept_and_its_unknown_names_are_said(
    tmp_path: Path, kind: str, heard: Callable[[], str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for k, split in enumerate(("test", "dev", "extra")):
        (folder / f"{k}.png").write_bytes(encoded(noise(k)))
        rows.append(
            {"prompt": f"{TRAINED}" if k == 2 else f"p{k}", "chosen": f"{k}.png", "rejected": "r.png", "split": split}
        )
    (folder / "r.png").write_bytes(RED)
    path = folder / f"x.{kind}"
    if kind == "parquet":
        write_parquet(path, rows)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    import_pairs(path, tmp_path / "set")
    assert [pair.split for pair in PairSet(tmp_path / "set")] == ["test", "validation", "train"]
    said = heard()
    assert "1 pair is of the split 'extra', and split by prompt." in said
    assert "1 validation, 1 test" in said


def test_a_prompt_in_two_published_splits_is_told_with_a_count(tmp_path: Path, heard: Callable[[], str]) -> None:
    rows = make_rows("x", 4)
    write_parquet(tmp_path / "in" / "train.parquet", rows)
    other = {"prompt": "X  1", "chosen": encoded(noise(77)), "rejected": RED}
    write_parquet(tmp_path / "in" / "test.parquet", [other, rows[3]])  # another pair, and the very same
    counts = import_pairs(tmp_path / "in", tmp_path / "set")
    assert counts["repeats"] == 1
    assert "2 prompts stand in more than one split of the source" in heard()


def test_a_split_that_only_repeats_another_is_told_without_a_contradiction(
    tmp_path: Path, heard: Callable[[], str]
) -> None:
    rows = make_rows("x", 4)
    write_parquet(tmp_path / "in" / "train.parquet", [*rows, rows[0]])
    write_parquet(tmp_path / "in" / "test.parquet", rows[1:3])
    assert import_pairs(tmp_path / "in", tmp_path / "set", split=None)["repeats"] == 3
    said = heard()
    assert "2 pairs of train repeat pairs of test and are left out." in said  # test comes first by its name
    assert "more than one split" in said
    dataset = pytest.importorskip("datasets")
    saved = dataset.DatasetDict({name: dataset.Dataset.from_list(rows[:k]) for name, k in (("train", 3), ("test", 1))})
    saved.save_to_disk(str(tmp_path / "saved"))
    import_pairs(tmp_path / "saved", tmp_path / "other")
    said = heard()
    assert "All pairs are in train, so no pair is held out." in said
    assert "1 pair of test repeats a pair of train and is left out." in said
    assert "not new to training" not in said


def test_a_source_that_names_no_splits_is_split_by_prompt(tmp_path: Path, heard: Callable[[], str]) -> None:
    rows = [{**row, "prompt": prompt} for row, prompt in zip(make_rows("x", 2), (HELD_OUT, TRAINED), strict=True)]
    import_pairs(write_parquet(tmp_path / "x.parquet", rows), tmp_path / "set")
    assert [pair.split for pair in PairSet(tmp_path / "set")] == ["test", "train"]
    assert "1 of 2 pairs is held out for validation and test, by their prompts" in heard()
    assert "splits" not in PairSet(tmp_path / "set").info["provenance"]


def test_a_pattern_that_matches_nothing_says_so(tmp_path: Path) -> None:
    from mapo.errors import MapoError

    with pytest.raises(MapoError, match=r"No file matches .*train-\*\.parquet"):
        import_pairs(str(tmp_path / "train-*.parquet"), tmp_path / "set")
