"""What every format gets: counts, bad rows, and all or nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_fixtures import BLUE, GREEN, RED, encoded, files_below, make_set, noise, write_parquet
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import IMPORTERS, BadRow, Options, RawPair, import_pairs
from mapo.importers.formats import pickapic as some_format
from mapo.importers.sources import Source
from mapo.pairs import PairSet
from mapo.pairs.splits import split_of

GOOD = RawPair("row 0", "a bear", RED, BLUE)
EMPTY = "the prompt is empty"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_parquet(tmp_path / "in" / "x.parquet", [dict.fromkeys(some_format.NEEDED, "1")])


def given(monkeypatch: pytest.MonkeyPatch, rows: list[RawPair | BadRow]) -> None:
    monkeypatch.setattr(some_format, "read", lambda source, options, start=0: iter([row] for row in rows[start:]))


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
    assert opened.info["provenance"] == {
        "imported": "x.parquet", "format": "pickapic", "ties": "drop", "rankings": "all", "least_gap": 0.0,
        "licence": None, "counts": counts,
    }  # fmt: skip
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
        (RawPair("row 7", "a", RED, b"text"), "the rejected picture: it is not in a known picture format"),
        (RawPair("row 7", "a", b"", RED), "the chosen picture: it is empty"),
        (RawPair("row 7", "a", RED, BLUE, preference=0.3), "preference is 0.3"),
        (RawPair("row 7", "\ud83d", RED, BLUE), "the prompt has half a character at place 0"),
        (RawPair("row 7", "a", RED, BLUE, group="\ud83d"), "group has half a character at place 0"),
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
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str]
) -> None:
    given(monkeypatch, [*bad_rows(4), GOOD, RawPair("row 9", "", RED, BLUE), *bad_rows(3)])
    assert import_pairs(source, tmp_path / "set", on_bad_row="drop")["bad"] == 8
    assert heard().splitlines() == [
        *(f"left out: row {k}: reason {k}" for k in range(4)),
        f"left out: row 9: {EMPTY}",
        "left out: 3 more",
        "By their prompts all pairs are in train, so no pair is held out.",
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
    with pytest.raises(MapoError, match=r"gave no pairs \(1 tie, 2 bad rows\)\. First: row 0: reason 0\."):
        import_pairs(source, tmp_path / "set", on_bad_row="drop")
    assert not (tmp_path / "set").exists()


def test_an_importer_that_breaks_off_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(source: Source, options: Options, start: int = 0) -> Iterator[list[RawPair]]:
        yield [GOOD]
        raise MapoError("the source ends here")

    monkeypatch.setattr(some_format, "read", read)
    with pytest.raises(MapoError, match="the source ends here"):
        import_pairs(source, tmp_path / "set", on_bad_row="drop")
    assert files_below(tmp_path) == {"in", "in/x.parquet"}


def test_an_out_that_exists_is_refused_before_anything_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(some_format, "read", lambda *_: pytest.fail("it was read"))
    (tmp_path / "set").mkdir()
    with pytest.raises(MapoError, match="already exists"):
        import_pairs(source, tmp_path / "set")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"source": Path("nowhere")}, "There is no file or folder nowhere to import"),
        ({"format": "pickapick"}, r"There is no format 'pickapick'\. Did you mean 'pickapic'\?"),
        ({"on_bad_row": "skip"}, "--on-bad-row is 'skip'; it must be stop or drop"),
        ({"ties": "yes"}, "--ties is 'yes'; it must be drop or keep"),
        ({"split": "all"}, "--split is 'all'; it must be by-prompt, train, validation or test"),
        ({"rankings": "best"}, "--rankings is 'best'; it must be all or best-worst"),
        ({"least_gap": -1.0}, "--least-gap is -1.0; it must be a number that is not negative"),
        ({"least_gap": float("nan")}, "--least-gap is nan"),
        ({"source": "hf://nobody"}, "hf://nobody is not a set on the hub. Write hf://owner/name"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(
    source: Path, tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(MapoError, match=message):
        import_pairs(how.pop("source", source), tmp_path / "set", **how)
    assert not (tmp_path / "set").exists()


UNKNOWN: dict[str, tuple[bytes | None, str]] = {
    "x.abc": (
        b"prompt,chosen",
        rf"is not in a known format\. Known formats: {', '.join(IMPORTERS)}; see `mapo import",
    ),
    "x.jsonl": (b'{"b": 1, "a": 2}', "its lines have a, b"),
    "x.parquet": (b"text", "is not a whole Parquet file"),
    "zero.jsonl": (b"", r"is empty\. There is nothing to import"),
    "zero.parquet": (b"", "is empty"),
    "folder": (None, "is empty"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_source_of_no_known_format_is_told_what_it_is(tmp_path: Path, name: str) -> None:
    content, message = UNKNOWN[name]
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(MapoError, match=message):
        import_pairs(path, tmp_path / "set")
    assert files_below(tmp_path) == {name}


def test_a_table_of_other_columns_is_told_its_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [{"url": "a", "text": "b"}])
    with pytest.raises(MapoError, match="not in a known format: its columns are url, text"):
        import_pairs(path, tmp_path / "set")


def test_a_set_of_ours_is_no_source(tmp_path: Path) -> None:
    make_set(tmp_path / "mine", 2)
    (tmp_path / "drawn").mkdir()
    for name in ("images.json", "manifest.jsonl"):
        (tmp_path / "drawn" / name).touch()
    with pytest.raises(MapoError, match=r"drawn is an images folder, and no pairs .* with --rejected-from\."):
        import_pairs(tmp_path / "drawn", tmp_path / "pairs")
    with pytest.raises(MapoError, match="mine is a set of pairs already"):
        import_pairs(tmp_path / "mine", tmp_path / "set")


def make_sources(folder: Path) -> dict[str, Path]:
    """The same pair in every format."""
    folder.mkdir()
    for name, data in (("a.png", RED), ("b.png", BLUE)):
        (folder / name).write_bytes(data)
    for side, data in (("chosen", RED), ("rejected", BLUE)):
        (folder / "two" / side).mkdir(parents=True)
        (folder / "two" / side / "1.png").write_bytes(data)
    (folder / "two" / "chosen" / "1.txt").write_text("a bear\n")
    lines = {
        "ranking": {"prompt": "a bear", "images": ["a.png", "b.png"], "rank": [1, 2]},
        "scores": {"prompt": "a bear", "images": ["b.png", "a.png"], "scores": [0.1, 0.9]},
        "jsonl": {"prompt": "a bear", "chosen": "a.png", "rejected": "b.png"},
        "hpdv2": {"prompt": "a bear", "image_path": ["b.png", "a.png"], "human_preference": [0, 1]},
        "imagereward": {"prompt": "a bear", "prompt_id": "1", "img_better": "a.png", "img_worse": "b.png"},
    }
    for name, line in lines.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(line))
    tables = {
        "pickapic": {"jpg_0": RED, "jpg_1": BLUE, "label_0": 1, "label_1": 0, "caption": "a bear"},
        "preference": {"prompt": "a bear", "chosen": RED, "rejected": BLUE},
    }
    paths = {name: write_parquet(folder / f"{name}.parquet", [row]) for name, row in tables.items()}
    return paths | {name: folder / f"{name}.jsonl" for name in lines} | {"folders": folder / "two"}


def test_every_format_is_found_by_itself_and_by_its_name_and_gives_the_same_pair(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "in")
    assert sources.keys() == IMPORTERS.keys()
    for name, path in sources.items():
        import_pairs(path, tmp_path / name)
        import_pairs(path, tmp_path / f"{name} named", format=name)
        for folder in (name, f"{name} named"):
            (pair,) = PairSet(tmp_path / folder)
            assert (pair.source, pair.prompt) == (name, "a bear")
            assert (pair.chosen, pair.rejected) == (sha256(RED), sha256(BLUE))


@pytest.mark.parametrize("name", IMPORTERS)
def test_reading_from_a_row_on_gives_the_rest_of_the_rows(tmp_path: Path, name: str) -> None:
    module = importlib.import_module(IMPORTERS[name])
    source = make_long(tmp_path / "in", name, 70)
    whole = list(module.read(source, Options()))
    assert len(whole) == 70
    assert sum(isinstance(item, BadRow) for row in whole for item in row) == 1
    for start in (0, 1, 31, 32, 33, 64, 69, 70):
        assert list(module.read(source, Options(), start)) == whole[start:]


def make_long(folder: Path, name: str, count: int) -> Source:
    """``count`` rows in two files or one, the fourth of them bad."""
    (folder / "chosen").mkdir(parents=True)
    (folder / "rejected").mkdir()
    for side, data in (("chosen", RED), ("rejected", BLUE)):
        (folder / side / "a.png").write_bytes(data)
    if name == "folders":
        (folder / "rejected" / "a.png").unlink()
        for k in range(count):
            for side, data in (("chosen", RED), ("rejected", BLUE)):
                (folder / side / ("a.png" if k == 0 else f"{k:03}.png")).write_bytes(data)
            if k != 3:
                (folder / "chosen" / ("a.txt" if k == 0 else f"{k:03}.txt")).write_text(f"prompt {k}")
        return Source(folder)
    made: list[dict[str, Any]] = []
    for k in range(count):
        prompt = None if k == 3 else f"prompt {k}"
        made.append(
            {
                "pickapic": {"jpg_0": RED, "jpg_1": BLUE, "label_0": 1, "label_1": 0, "caption": prompt},
                "preference": {"prompt": prompt, "chosen": RED, "rejected": BLUE},
                "ranking": {"prompt": prompt, "images": ["chosen/a.png", "rejected/a.png"] * 2, "rank": [1, 2, 3, 4]},
                "scores": {"prompt": prompt, "images": ["chosen/a.png", "rejected/a.png"], "scores": [2, 1]},
                "jsonl": {"prompt": prompt, "chosen": "chosen/a.png", "rejected": "rejected/a.png"},
                "hpdv2": {
                    "prompt": prompt,
                    "file_path": ["chosen/a.png", "rejected/a.png"],
                    "human_preference": [1, 0],
                },
                "imagereward": {
                    "prompt": prompt,
                    "prompt_id": k,
                    "image": ["chosen/a.png", "rejected/a.png"],
                    "rank": [1, 2],
                },
            }[name]
        )
    if name in ("pickapic", "preference"):
        for part, start in enumerate(range(0, count, 40)):
            table = pa.Table.from_pylist(made[start : start + 40])
            pq.write_table(table, folder / f"{part}.parquet", row_group_size=12)
    else:
        (folder / "x.jsonl").write_text("\n\n".join(map(json.dumps, made)))
    return Source(folder)


def test_ties_are_kept_on_request(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, [GOOD, RawPair("row 1", "a bear", RED, GREEN, preference=0.5)])
    assert import_pairs(source, tmp_path / "set", ties="keep") == {"pairs": 2, "ties": 1, "repeats": 0, "bad": 0}
    opened = PairSet(tmp_path / "set")
    assert [p.preference for p in opened] == [1.0, 0.5]
    assert opened.info["ties"] == 1


def test_a_source_of_ties_only_says_how_to_keep_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, [RawPair("row 1", "a bear", RED, GREEN, preference=0.5)])
    with pytest.raises(MapoError, match=r"gave no pairs \(1 tie, 0 bad rows\)\. Keep the ties with --ties keep\."):
        import_pairs(source, tmp_path / "set")


def test_a_picture_of_a_tie_that_is_dropped_is_not_looked_at(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, [GOOD, RawPair("row 1", "a bear", b"text", GREEN, preference=0.5)])
    assert import_pairs(source, tmp_path / "set")["ties"] == 1
    with pytest.raises(MapoError, match=r"^row 1: the chosen picture: it is not in a known picture format"):
        import_pairs(source, tmp_path / "other", ties="keep")


def test_the_licence_of_the_source_is_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, [GOOD])
    import_pairs(source, tmp_path / "set", licence="CC-BY-4.0")
    assert PairSet(tmp_path / "set").info["provenance"]["licence"] == "CC-BY-4.0"


def test_what_is_converted_is_counted_once_for_each_picture(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = [encoded(Image.new("RGBA", (4, 4), (k, 0, 0, 99))) for k in range(3)]
    grey = encoded(Image.new("L", (4, 4), 7))
    pairs = [(clear[0], clear[1]), (clear[0], clear[2]), (grey, RED), (GREEN, BLUE)]
    given(monkeypatch, [RawPair(f"row {k}", "a", *sides) for k, sides in enumerate(pairs)])
    import_pairs(source, tmp_path / "set")
    assert PairSet(tmp_path / "set").info["conversions"] == {"alpha": 3, "grey": 1}


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_set_does_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    rows = [
        {"prompt": f"prompt {k}", "chosen": encoded(noise(k)), "rejected": encoded(noise(k % 7 + 1000), "JPEG")}
        for k in range(150)
    ]
    rows[20]["chosen"] = rows[21]["rejected"] = rows[100]["chosen"] = b"text"
    path = write_parquet(tmp_path / "x.parquet", rows)
    counts = import_pairs(path, tmp_path / "many", workers=workers, on_bad_row="drop")
    assert counts == {"pairs": 147, "ties": 0, "repeats": 0, "bad": 3}
    opened = PairSet(tmp_path / "many")
    assert [p.prompt for p in opened] == [f"prompt {k}" for k in range(150) if k not in (20, 21, 100)]
    expected = dict.fromkeys(sha256(row[side]) for row in rows for side in ("chosen", "rejected"))
    kept = [name for name in expected if name != sha256(b"text") and name != sha256(rows[21]["chosen"])]
    assert opened.image_names() == kept


def test_the_name_of_a_source_is_kept_even_when_it_is_the_working_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, [GOOD])
    monkeypatch.chdir(source.parent)
    import_pairs(Path(), tmp_path / "set")
    assert PairSet(tmp_path / "set").info["provenance"]["imported"] == "in"


def numbered(count: int, split: str) -> list[RawPair | BadRow]:
    """``count`` pairs whose prompts fall into ``split``."""
    prompts = [f"prompt {k}" for k in range(40 * count) if split_of(f"prompt {k}") == split]
    return [RawPair(prompt, prompt, RED, BLUE) for prompt in prompts[:count]]


def test_pairs_that_are_held_out_are_counted_with_the_reason_and_the_way_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str]
) -> None:
    given(monkeypatch, [*numbered(17, "train"), *numbered(2, "validation"), *numbered(1, "test")])
    import_pairs(source, tmp_path / "set")
    assert heard().splitlines() == [
        "3 of 20 pairs are held out for validation and test, by their prompts; --split train trains on all."
    ]
    import_pairs(source, tmp_path / "all", split="train")
    assert {p.split for p in PairSet(tmp_path / "all")} == {"train"}
    assert len(PairSet(tmp_path / "all")) == 20
    assert heard() == ""
    assert PairSet(tmp_path / "all").info["provenance"]["split"] == "train"


def test_a_set_of_few_prompts_of_which_none_is_held_out_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str]
) -> None:
    given(monkeypatch, numbered(3, "train"))
    import_pairs(source, tmp_path / "set")
    assert heard().splitlines() == ["By their prompts all pairs are in train, so no pair is held out."]


def test_a_set_with_nothing_to_train_on_says_so_at_once_and_names_the_option(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str]
) -> None:
    given(monkeypatch, numbered(3, "test"))
    import_pairs(source, tmp_path / "set")
    said = heard()
    assert "All 3 pairs are held out for validation and test, by their prompts" in said
    assert f"Delete {tmp_path / 'set'}, and import again with --split train." in said


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_whole_set_can_be_put_into_one_split(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str], split: str
) -> None:
    given(monkeypatch, [*numbered(3, "train"), *numbered(1, "test")])
    import_pairs(source, tmp_path / "set", split=split)
    assert [p.split for p in PairSet(tmp_path / "set")] == [split] * 4
    assert f"All 4 pairs are held out, as --split {split} says" in heard()
