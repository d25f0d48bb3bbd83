"""JSONL of pairs."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from test_pictures import NO_PICTURE

from data_fixtures import BLUE, GREEN, RED, encoded, make_picture, noise
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.importers import import_pairs
from mapo.importers.formats.jsonl import detects
from mapo.importers.sources import Source
from mapo.pairs import PairSet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(RED)
    (folder / "deep" / "b.png").write_bytes(BLUE)
    (folder / "zero.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(GREEN)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def make_line(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a bear", "chosen": "a.png", "rejected": "deep/b.png", **changes}


def write(folder: Path, *lines: Any, name: str = "x.jsonl") -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text)
    return folder / name


def test_pictures_are_found_beside_the_file_and_the_rest_is_kept(folder: Path) -> None:
    write(folder, make_line(preference=0.7, weight=2, group=5, meta={"model": "x"}), make_line(prompt="b"))
    import_pairs(folder, folder.parent / "set")
    first, second = PairSet(folder.parent / "set")
    assert (first.chosen, first.rejected, first.source) == (sha256(RED), sha256(BLUE), "jsonl")
    assert (first.preference, first.weight, first.group, first.meta) == (0.7, 2.0, "5", {"model": "x"})
    assert (second.prompt, second.preference, second.weight, second.group, second.meta) == ("b", 1.0, 1.0, None, {})


def test_the_metadata_of_an_image_folder_is_taken_before_other_files(folder: Path) -> None:
    line = {"prompt": "a", "chosen_file_name": "a.png", "rejected_file_name": "deep/b.png"}
    write(folder, line, name="metadata.jsonl")
    write(folder, "nothing", name="notes.jsonl")
    assert detects(Source(folder))
    assert import_pairs(folder, folder.parent / "set")["pairs"] == 1


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "it is not JSON"),
    "cut in the middle": (json.dumps(make_line())[:-9], "it is not JSON"),
    "too deep": ("[" * 100_000, "its lists and objects are nested more than 100 deep"),
    "no object": ("3", "it is not a JSON object"),
    "a key is missing": ({"prompt": "a", "chosen": "a.png"}, "it lacks rejected; it has prompt, chosen"),
    "prompt is None": (make_line(prompt=None), "there is no prompt"),
    "prompt is empty": (make_line(prompt=""), "the prompt is empty"),
    "path is a number": (make_line(chosen=3), "chosen and rejected must be paths"),
    "path climbs out": (make_line(chosen="../secret.png"), "the path '../secret.png' leaves its folder"),
    "path is absolute": (make_line(chosen="/etc/hostname"), "the path '/etc/hostname' is absolute and lies outside of its folder"),
    "path is of a Windows drive": (make_line(chosen="C:\\in\\a.png"), r"the path 'C:.*' is one of a Windows machine"),
    "path is on the web": (make_line(chosen="https://example.org/a.png"), "'https://example.org/a.png' is a web address"),
    "path is empty": (make_line(chosen=""), "a path is empty"),
    "path has a NUL": (make_line(chosen="a\0.png"), r"no file can have the path 'a\\x00\.png'"),
    "path is too long": (make_line(chosen="a" * 5000), r"the picture a{200} cannot be read \(File name too long\)"),
    "prompt is half a character": (make_line(prompt="a \ud83d"), "the prompt has half a character at place 2"),
    "link leads out": (make_line(chosen="link.png"), "the path 'link.png' is a link that leads to .*secret.png, outside of its folder"),
    "picture of no bytes": (make_line(rejected="zero.png"), "the rejected picture: it is empty"),
    "preference is a text": (make_line(preference="1"), "preference is '1', which is not a number"),
    "preference is false": (make_line(preference=False), "preference is False, which is not a number"),
    "preference is too low": (make_line(preference=0.1), "preference is 0.1"),
    "weight is endless": ('{"prompt": "a", "chosen": "a.png", "rejected": "deep/b.png", "weight": 1e999}', "weight is inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_by_its_number_and_can_be_dropped(folder: Path, name: str) -> None:
    line, why = BAD[name]
    path = write(folder, make_line(), "", line)
    with pytest.raises(MapoError, match=rf"^x\.jsonl line 3: {why}"):
        import_pairs(path, folder.parent / "set")
    assert not (folder.parent / "set").exists()
    counts = import_pairs(path, folder.parent / "set", on_bad_row="drop")
    assert counts == {"pairs": 1, "ties": 0, "repeats": 0, "bad": 1}


BAD_PICTURES = NO_PICTURE | {
    "one pixel": (make_picture("red", (1, 1)), "it has 1 × 1 pixels"),
    "cut off": (encoded(noise(), "JPEG")[:-300], "it cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_of_any_kind_names_its_line_and_can_be_dropped(folder: Path, name: str) -> None:
    data, why = BAD_PICTURES[name]
    (folder / "bad").write_bytes(data)
    path = write(folder, make_line(), make_line(rejected="bad"))
    with pytest.raises(MapoError, match=rf"^x\.jsonl line 2: the rejected picture: .*{why}"):
        import_pairs(path, folder.parent / "set")
    assert not (folder.parent / "set").exists()
    assert import_pairs(path, folder.parent / "set", on_bad_row="drop")["bad"] == 1


def test_a_file_of_blank_lines_is_empty(folder: Path) -> None:
    with pytest.raises(MapoError, match=r"x\.jsonl is empty: it holds no lines"):
        import_pairs(write(folder, "", " ", ""), folder.parent / "set", format="jsonl")


@pytest.mark.parametrize("how", ["backslashes", "absolute", "./", "decomposed"])
def test_paths_as_other_tools_write_them_are_read(folder: Path, how: str) -> None:
    (folder / "deep" / "b\u00e4r.png").write_bytes(BLUE)
    names = ["deep/b.png", "deep/b\u00e4r.png"][how == "decomposed" :]
    spelled = {
        "backslashes": lambda name: name.replace("/", "\\"),
        "absolute": lambda name: str(folder / name),
        "./": lambda name: f"./{name}",
        "decomposed": lambda name: unicodedata.normalize("NFD", name),
    }[how]
    path = write(folder, make_line(rejected=spelled(names[0])))
    import_pairs(path, folder.parent / "set")
    assert PairSet(folder.parent / "set")[0].rejected == sha256(BLUE)


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_list_in_the_hub_cache_is_read_through_its_links(tmp_path: Path, given: str) -> None:
    repo = tmp_path / "hub" / "datasets--me--set"
    snapshot = repo / "snapshots" / "0123abc"
    (repo / "blobs").mkdir(parents=True)
    (snapshot / "images").mkdir(parents=True)
    line = {"prompt": "a", "chosen_file_name": "images/a.png", "rejected_file_name": "images/b.png"}
    files = {"images/a.png": RED, "images/b.png": BLUE, "metadata.jsonl": json.dumps(line).encode()}
    for name, data in files.items():
        (repo / "blobs" / sha256(data)).write_bytes(data)
        (snapshot / name).symlink_to(Path("../" * (name.count("/") + 2), "blobs", sha256(data)))
    source = snapshot if given == "folder" else snapshot / "metadata.jsonl"
    assert import_pairs(source, tmp_path / "set")["pairs"] == 1
    opened = PairSet(tmp_path / "set")
    assert (opened[0].chosen, opened[0].rejected) == (sha256(RED), sha256(BLUE))
    assert opened.info["provenance"]["imported"] == source.name
