"""Prompts from the built-in lists and from every kind of file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import RED, encoded, noise, write_parquet
from mapo.errors import MapoError
from mapo.pairs import PairWriter
from mapo.pairs.splits import prompt_id, split_of
from mapo.sample.prompts import BUILT_IN, read_prompts

BEAR, SNOW = "a bear, 8k", "雪の中の熊 🐻"


@pytest.mark.parametrize("source", BUILT_IN)
def test_a_built_in_list_holds_prompts_of_its_split_and_number_of_objects(source: str) -> None:
    split, _, number = source.removeprefix("mini:").partition("-")
    objects = {"": None, "one": 1, "two": 2}[number]
    prompts = read_prompts(source)
    assert len(prompts) == len(set(prompts)) > 20
    assert {split_of(p) for p in prompts} == {split}
    two = [" of " in p or " above " in p or " below " in p for p in prompts]
    assert set(two) == ({False, True} if objects is None else {objects == 2})


def test_a_built_in_list_is_the_same_every_time() -> None:
    assert read_prompts("mini:test") == read_prompts("mini:test")
    assert set(read_prompts("mini:test")) == {*read_prompts("mini:test-one"), *read_prompts("mini:test-two")}


def test_an_unknown_built_in_list_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MapoError, match="there is no built-in list 'mini:tset'.*mini:train, .*mini:test"):
        read_prompts("mini:tset")


def json_rows(values: list[object]) -> bytes:
    return "\n".join(json.dumps(v, ensure_ascii=False) for v in values).encode()


FILES: dict[str, tuple[str, bytes]] = {
    "text": ("p.txt", f"{BEAR}\n{SNOW}\n".encode()),
    "text without a last line feed": ("p.txt", f"{BEAR}\n{SNOW}".encode()),
    "text with blank lines and spaces": ("p.txt", f"\n  {BEAR}  \n\n{SNOW}\n\n".encode()),
    "text with Windows lines": ("p.txt", f"{BEAR}\r\n{SNOW}\r\n".encode()),
    "text with a byte order mark": ("p.txt", f"{BEAR}\n{SNOW}".encode("utf-8-sig")),
    "text in UTF-16": ("p.txt", f"{BEAR}\n{SNOW}".encode("utf-16")),
    "upper-case suffix": ("P.TXT", f"{BEAR}\n{SNOW}".encode()),
    "JSON of texts": ("p.json", json.dumps([BEAR, SNOW]).encode()),
    "JSON of objects": ("p.json", json.dumps([{"id": 1, "prompt": BEAR}, {"prompt": SNOW}]).encode()),
    "JSON in UTF-16": ("p.json", json.dumps([BEAR, SNOW], ensure_ascii=False).encode("utf-16")),
    "JSONL of texts": ("p.jsonl", json_rows([BEAR, SNOW])),
    "JSONL of objects": ("p.jsonl", json_rows([{"caption": BEAR, "tag": 1}, {"caption": SNOW}])),
    "JSONL with blank lines": ("p.jsonl", b"\n" + json_rows([BEAR]) + b"\r\n\r\n" + json_rows([SNOW]) + b"\n"),
    "JSONL with a byte order mark": ("p.jsonl", b"\xef\xbb\xbf" + json_rows([BEAR, SNOW])),
    "prompt before caption": (
        "p.jsonl",
        json_rows([{"caption": "x", "prompt": BEAR}, {"prompt": SNOW, "caption": "y"}]),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_text_file_is_read(tmp_path: Path, name: str) -> None:
    file, data = FILES[name]
    (tmp_path / file).write_bytes(data)
    assert read_prompts(str(tmp_path / file)) == [BEAR, SNOW]


@pytest.mark.parametrize("column", ["prompt", "caption"])
def test_a_column_of_a_parquet_file_is_read(tmp_path: Path, column: str) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{column: p, "picture": RED} for p in (BEAR, None, SNOW)])
    assert read_prompts(str(path)) == [BEAR, SNOW]


def test_an_export_can_be_the_source_of_prompts(tmp_path: Path) -> None:
    kind = pa.schema([("chosen", pa.struct([("bytes", pa.binary())])), ("prompt", pa.large_string())])
    path = write_parquet(tmp_path / "p.parquet", [{"chosen": {"bytes": RED}, "prompt": BEAR}], kind)
    assert read_prompts(str(path)) == [BEAR]


def test_repeats_are_left_out_and_the_order_stays(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("b\na\nb\nc\na\n")
    assert read_prompts(str(tmp_path / "p.txt")) == ["b", "a", "c"]


def test_prompts_that_count_as_the_same_are_kept_once_so_that_names_are_unique(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("A Bear\na  bear\nA BEAR\nanother bear\n")
    prompts = read_prompts(str(tmp_path / "p.txt"))
    assert prompts == ["A Bear", "another bear"]
    assert len({prompt_id(p) for p in prompts}) == 2


@pytest.mark.parametrize("sign", ["\n", "\u2028", "\x85", "\x0b", "\x0c"])
def test_a_prompt_of_several_lines_is_not_cut(tmp_path: Path, sign: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": f"one{sign}two"}, ensure_ascii=False), "utf-8")
    assert read_prompts(str(tmp_path / "p.jsonl")) == [f"one{sign}two"]


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty text": ("p.txt", b"", "holds no prompts"),
    "only blanks": ("p.txt", b" \n\t\n", "holds no prompts"),
    "Latin-1": ("p.txt", "ein Bär".encode("latin-1"), "cannot be read .*utf-8"),
    "UTF-16 without a mark": ("p.txt", "a bear".encode("utf-16-le"), "cannot be read .*not UTF-8 text"),
    "half of UTF-16": ("p.txt", "a bear".encode("utf-16")[:-1], "cannot be read .*truncated"),
    "a picture": ("p.png", RED, r"cannot be read \(its name does not end in \.txt, \.tsv, \.csv, \.json, .*"),
    "a table without names": (
        "p.csv",
        b"a bear\nan owl\n",
        r"\(its first line names .* has no column .* It has a bear\.",
    ),
    "a table with an open quote": ("p.csv", b'prompt\n"a bear\n', r"\(line 2: unexpected end of data\)"),
    "a table with a comma in a prompt": (
        "p.csv",
        b"prompt,id\na bear, big,1\n",
        r"line 2 has 3 cells and the first line 2",
    ),
    "a table with a short line": ("p.tsv", b"id\tprompt\n1\n", r"\(line 2 has no prompt\)"),
    "an empty table": ("p.csv", b"", r"has no prompt"),
    "a sheet of a spreadsheet": ("p.xlsx", b"PK", r"its name does not end in \.txt"),
    "no suffix": ("prompts", b"a bear\n", r"its name does not end in \.txt"),
    "damaged JSON": ("p.json", b'["a bear"', "cannot be read"),
    "JSON that is not a list": ("p.json", b'{"prompt": "a bear"}', r"cannot be read \(it is not a list\)"),
    "JSON entry without prompt": ("p.json", b'["a bear", {"words": "x"}]', r"entry 1 has no column .*It has words\."),
    "lines in a JSON file": ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}', r"name the file \.jsonl"),
    "JSON number": ("p.json", b"[3]", r"\(entry 0 has no prompt\)"),
    "empty JSON": ("p.json", b"[]", "holds no prompts"),
    "damaged JSONL": ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt"', r"\(line 3 is not JSON: "),
    "JSONL line without prompt": ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}', r"\(line 2 has no prompt\)"),
    "JSONL line without prompt that has a caption": (
        "p.jsonl",
        b'{"prompt": "a", "caption": "b"}\n{"prompt": null, "caption": "c"}',
        r"\(line 2 has no prompt\)",
    ),
    "JSON entry with another column": ("p.json", b'[{"caption": "a"}, {"text": "b"}]', r"\(entry 1 has no caption\)"),
    "a key twice": ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', r"\(line 1: it has two columns prompt; rename one"),
    "a column twice": ("p.csv", b"prompt,prompt\na,b\n", r"\(it has two columns prompt; rename one of them\)"),
    "a line for Excel": ("p.csv", b"\xef\xbb\xbfsep=,\r\nprompt,id\r\na,1\r\n", "begins with the line 'sep=,'"),
    "lists in lists": ("p.json", b"[" * 100_000 + b"]" * 100_000, r"nested more than 100 deep\)"),
    "half a character": (
        "p.jsonl",
        b'{"prompt": "\\ud83d"}',
        r"cannot be read \(line 1 has half a character at place 0",
    ),
    "damaged Parquet": ("p.parquet", b"PAR1", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_readable_prompts_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file, data, message = BAD[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(MapoError, match=message) as failure:
        read_prompts(str(tmp_path / file))
    assert str(failure.value).startswith(f"--prompts: {tmp_path / file} ")


def test_a_parquet_file_without_prompts_names_the_columns_that_it_has(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{"words": "a", "id": 1}])
    with pytest.raises(
        MapoError, match=rf"has no column prompt or caption. It has words, id. .* such as {path}:words\."
    ):
        read_prompts(str(path))


def test_a_parquet_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [b"bytes"]}), tmp_path / "p.parquet")
    with pytest.raises(MapoError, match="row 0 has no prompt"):
        read_prompts(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize("source", ["nowhere.txt", "nowhere.jsonl:text", ""])
def test_a_source_that_is_no_file_says_what_to_give(source: str) -> None:
    with pytest.raises(
        MapoError,
        match=r"there is no file .*Give a \.txt, \.csv, .* or \.parquet file, a pairs set, or mini:.*owner/name",
    ):
        read_prompts(source)


def test_a_column_behind_a_colon_is_read_in_its_place(tmp_path: Path) -> None:
    rows = [{"Prompt": BEAR, "prompt": "other"}, {"Prompt": SNOW, "prompt": "other"}]
    (tmp_path / "p.jsonl").write_bytes(json_rows(list(rows)))
    (tmp_path / "p.json").write_text(json.dumps(rows))
    write_parquet(tmp_path / "p.parquet", rows)
    for name in ("p.jsonl", "p.json", "p.parquet"):
        assert read_prompts(f"{tmp_path / name}:Prompt") == [BEAR, SNOW]
    with pytest.raises(MapoError, match=r"line 1 has no column words. It has Prompt, prompt. .*/p\.jsonl:Prompt\."):
        read_prompts(f"{tmp_path / 'p.jsonl'}:words")
    with pytest.raises(MapoError, match="has no column words. It has Prompt, prompt. Name the one"):
        read_prompts(f"{tmp_path / 'p.parquet'}:words")


def test_a_file_whose_name_has_a_colon_is_read(tmp_path: Path) -> None:
    (tmp_path / "a:b.txt").write_text("a fox\n")
    assert read_prompts(str(tmp_path / "a:b.txt")) == ["a fox"]


def test_a_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a fox\n")
    with pytest.raises(MapoError, match="a text has no column prompt"):
        read_prompts(f"{tmp_path / 'p.txt'}:prompt")


GENEVAL = """\
{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}
{"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a tie left of a dog"}
"""
IMAGEREWARD = """\
[
    {
        "id": "005695-0057",
        "prompt": "a harbour at dusk, oil on canvas"
    },
    {
        "id": "005784-0093",
        "prompt": "an owl in a library, sharp, detailed"
    }
]
"""


def test_the_prompts_of_geneval_are_read_as_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "geneval.jsonl").write_text(GENEVAL)
    assert read_prompts(str(tmp_path / "geneval.jsonl")) == [
        "a photo of a bench",
        "a photo of two clocks",
        "a photo of a tie left of a dog",
    ]


def test_the_prompts_of_image_reward_are_read_as_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "imagereward.json").write_text(IMAGEREWARD)
    prompts = ["a harbour at dusk, oil on canvas", "an owl in a library, sharp, detailed"]
    assert read_prompts(str(tmp_path / "imagereward.json")) == prompts


# ------------------------------------------------------------------ folders and the hub


def test_a_folder_gives_its_files_of_the_first_kind_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.txt").write_text("not a prompt")
    write_parquet(folder / "data" / "b.parquet", [{"prompt": SNOW}])
    write_parquet(folder / "data" / "a.parquet", [{"prompt": BEAR}])
    assert read_prompts(str(folder)) == [BEAR, SNOW]


def test_a_pairs_set_gives_its_prompts_once_each(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {"made": "by a test"}) as writer:
        for prompt, seed in ((BEAR, 0), (SNOW, 2), (BEAR, 4)):
            writer.add_pair(prompt, encoded(noise(seed)), encoded(noise(seed + 1)))
    assert read_prompts(str(tmp_path / "set")) == [BEAR, SNOW]


def test_a_folder_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(MapoError, match=r"it holds no \.parquet, \.jsonl, .*, \.tsv or \.txt file"):
        read_prompts(str(tmp_path / "set"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub as a file system in memory, with a set of two splits."""
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    files.store.clear()
    root = "datasets/somebody/prompts"
    files.pipe(f"{root}/README.md", b"# Prompts")
    for split, prompts in (("train", ["a fox", "an owl"]), ("test", [BEAR])):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"caption": prompts, "jpg": [RED] * len(prompts)}), buffer)
        files.pipe(f"{root}/data/{split}-00000-of-00001.parquet", buffer.getvalue())
    files.pipe(f"{root}/lists/words.jsonl", json_rows([{"words": SNOW}]))
    monkeypatch.setattr("mapo.importers.sources.hub_files", lambda: files)
    return files


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("somebody/prompts", [BEAR, "a fox", "an owl"]),
        ("hf://somebody/prompts", [BEAR, "a fox", "an owl"]),
        ("somebody/prompts:caption", [BEAR, "a fox", "an owl"]),
        ("hf://somebody/prompts/data/test-*.parquet", [BEAR]),
        ("hf://somebody/prompts/data/train-00000-of-00001.parquet:caption", ["a fox", "an owl"]),
        ("hf://somebody/prompts/lists/words.jsonl:words", [SNOW]),
    ],
)
def test_a_set_on_the_hub_can_be_the_source(hub: Any, source: str, want: list[str]) -> None:
    assert read_prompts(source) == want


def test_a_set_that_the_hub_has_not_is_refused(hub: Any) -> None:
    with pytest.raises(MapoError, match="There is no file or folder somebody/else, and the hub has no such set"):
        read_prompts("somebody/else")


def test_of_several_files_it_is_said_which_were_read(hub: Any, heard: Callable[[], str]) -> None:
    read_prompts("somebody/prompts")
    said = heard()
    assert "prompts of 2 files, test-00000-of-00001.parquet to train-00000-of-00001.parquet" in said


def test_a_connection_that_breaks_is_told_in_a_sentence(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        pass

    def breaks(*args: Any, **how: Any) -> Any:
        raise Broken("the line went dead")

    monkeypatch.setattr(hub, "open", breaks, raising=False)
    with pytest.raises(MapoError, match=r"hf://datasets/somebody/prompts cannot be read \(the line went dead\)"):
        read_prompts("somebody/prompts")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("a fox\nan owl\na fox", "1 prompt occurs twice; it is used once."),
        ("a fox\nan owl\na fox\na fox", "1 prompt occurs 3 times; it is used once."),
        ("a fox\nan owl\na fox\nan owl", "2 prompts occur twice; each is used once."),
        ("a fox\nan owl\na fox\na fox\nan owl", "2 prompts occur several times; each is used once."),
        (
            "a fox\nA  Fox\nan owl",
            "1 prompt occurs twice; it is used once. Capitals, white space and the coding of accents make no other prompt.",
        ),
        ("a fox\nan owl", None),
    ],
)
def test_repeats_are_left_out_and_counted(tmp_path: Path, heard: Any, lines: str, says: str | None) -> None:
    (tmp_path / "p.txt").write_text(lines)
    assert read_prompts(str(tmp_path / "p.txt")) == ["a fox", "an owl"]
    assert heard() == (f"{tmp_path / 'p.txt'}: {says}\n" if says else "")


PARTI = """\
Prompt\tCategory\tChallenge\tNote
bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings
"G I G G L E" painted in thick colorful lettering as graffiti\tIllustrations\tWriting & Symbols\t
The 1970s logo for a london-area football club called "The Rumbury Wanderers"\tArts\tWriting & Symbols
"""
DRAWBENCH = """\
"Prompts","Category"
"A red colored car.","Colors"
"New York Skyline with 'Deep Learning' written with fireworks on the sky, at night.","Text"
"""


def test_prompts_are_read_from_the_tables_in_which_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "PartiPrompts.tsv").write_text(PARTI)
    (tmp_path / "drawbench.csv").write_text(DRAWBENCH)
    assert read_prompts(str(tmp_path / "PartiPrompts.tsv")) == [
        "bond",
        '"G I G G L E" painted in thick colorful lettering as graffiti',
        'The 1970s logo for a london-area football club called "The Rumbury Wanderers"',
    ]
    assert read_prompts(str(tmp_path / "drawbench.csv")) == [
        "A red colored car.",
        "New York Skyline with 'Deep Learning' written with fireworks on the sky, at night.",
    ]
    assert read_prompts(f"{tmp_path / 'drawbench.csv'}:Category") == ["Colors", "Text"]


@pytest.mark.parametrize(
    ("file", "count", "last"),
    [("PartiPrompts.tsv", 1632, "a series of musical"), ("drawbench.csv", 200, "New York Sky")],
)
def test_the_published_tables_are_read_whole(file: str, count: int, last: str) -> None:
    path = Path(__file__).parents[3] / "shared" / "real" / "prompts" / file
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    prompts = read_prompts(str(path))
    assert len(prompts) == count and prompts[-1].startswith(last)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("p.csv", f'id,PROMPT,notes\n1,"{BEAR}",\n2,{SNOW},x\n'),
        ("p.csv", f"id;Prompt \n1;{BEAR}\n\n2;{SNOW}\n"),
        ("p.csv", f'\ufeffcaptions\r\n"{BEAR}"\r\n{SNOW}\r\n'),
        ("p.tsv", f"id\tText\n1\t{BEAR}\n2\t{SNOW}"),
        ("p.ndjson", json.dumps({"Prompts": BEAR}) + "\n" + json.dumps({"Prompts": SNOW}) + "\n"),
        ("p.jsonl", json.dumps({"id": "1", "Text": BEAR}) + "\n" + json.dumps({"id": "2", "Text": SNOW})),
    ],
)
def test_a_column_that_can_only_be_the_prompts_is_found_in_tables_and_json(
    tmp_path: Path, file: str, data: str
) -> None:
    (tmp_path / file).write_text(data, "utf-8")
    assert read_prompts(str(tmp_path / file)) == [BEAR, SNOW]


def test_a_cell_of_several_lines_and_quotes_is_read_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    for file, sign in (("p.csv", ","), ("p.tsv", "\t")):
        (tmp_path / file).write_text(f'id{sign}prompt\n1{sign}"a ""red"" fox\nat night"\n2{sign}an owl\n')
        assert read_prompts(str(tmp_path / file)) == ['a "red" fox\nat night', "an owl"]


def test_of_two_columns_that_could_be_the_prompts_the_user_chooses(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Prompts,Text\na fox,Colors\n")
    with pytest.raises(MapoError, match=r"several columns that could be .* It has Prompts, Text. .*p\.csv:Prompts\."):
        read_prompts(str(tmp_path / "p.csv"))
    assert read_prompts(f"{tmp_path / 'p.csv'}:Prompts") == ["a fox"]


def test_a_mistyped_table_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(MapoError, match="there is no file lists/p.tsv"):
        read_prompts("lists/p.tsv")
