"""Files are there whole or not at all, and paths stay where they belong."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_fixtures import files_below
from mapo.errors import MapoError, printable, suggest
from mapo.files import inside, prepare_file, prepare_out, replacing, sha256, write_text
from mapo.shards import owned, refuse_existing
from mapo.texts import (
    append_lines,
    encoding_of,
    finite,
    numbered_lines,
    parse_json,
    parse_row,
    read_json,
    read_text,
    write_json,
)


def test_a_number_that_json_cannot_hold_is_null_wherever_it_lies() -> None:
    assert finite({"a": [1, float("nan")], "b": {"c": (float("inf"), 2.5)}, "d": "inf"}) == {
        "a": [1, None], "b": {"c": [None, 2.5]}, "d": "inf",
    }  # fmt: skip


def test_a_file_appears_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "half"
    assert files_below(tmp_path) == {"new folder", "new folder/file.txt"}


def test_weights_have_the_rights_of_other_files(tmp_path: Path) -> None:
    with replacing(tmp_path / "weights") as temporary:
        temporary.mkdir()
        save_file({"a": torch.zeros(1)}, temporary / "a.safetensors")
    with replacing(tmp_path / "b.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    (tmp_path / "plain").write_text("")
    usual = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "weights" / "a.safetensors").stat().st_mode == usual
    assert (tmp_path / "b.safetensors").stat().st_mode == usual


def test_a_failed_write_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert files_below(tmp_path) == {"file.txt"}


def test_a_folder_takes_the_place_of_a_folder_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "was folder").mkdir()
    (tmp_path / "was folder" / "stale").write_text("")
    (tmp_path / "was file").write_text("")
    for name in ("was folder", "was file", "was nothing"):
        with replacing(tmp_path / name) as temporary:
            temporary.mkdir()
            (temporary / "fresh").write_text("")
        assert files_below(tmp_path / name) == {"fresh"}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_folder_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "folder") as temporary:
        (temporary / "deep").mkdir(parents=True)
        raise KeyboardInterrupt
    assert files_below(tmp_path) == {"folder", "folder/old"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_under_the_same_name_does_not_get_in(tmp_path: Path, kind: str) -> None:
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("")
    if kind == "file":
        temporary.write_text("stale")
    else:
        (temporary / "data").mkdir(parents=True)
        (temporary / "stale").write_text("")
    (tmp_path / "out").unlink()
    with replacing(tmp_path / "out") as again:
        assert again == temporary
        (again / "data").mkdir(parents=True)
    assert files_below(tmp_path) == {"out", "out/data"}


def test_json_goes_out_readable_and_comes_back_equal(tmp_path: Path) -> None:
    value = {"prompt": "ein Bär 🐻", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "x.json", value)
    assert "Bär 🐻" in (tmp_path / "x.json").read_text("utf-8")
    assert read_json(tmp_path / "x.json", "a thing", "Make it.") == value
    assert files_below(tmp_path) == {"x.json"}


def test_json_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", "1")
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", object())
    assert (tmp_path / "x.json").read_text() == "1"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"nan?"])
def test_a_damaged_json_file_is_an_error_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(MapoError, match=r"set\.json cannot be read .* Make it\.$"):
        read_json(path, "a thing", "Make it.")


NESTED = "[" * 900 + "]" * 900


@pytest.mark.parametrize("text", [NESTED, '{"a":' * 101 + "1" + "}" * 101, "[" * 100_000 + "]" * 100_000])
def test_json_that_is_nested_too_deeply_is_refused_by_every_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text + "\n")
    for read in (lambda: parse_json(text), lambda: parse_row(text.encode())):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            read()
    with pytest.raises(MapoError, match=r"x\.json line 1 is not JSON \(.*nested more than 100 deep"):
        list(numbered_lines(tmp_path / "x.json"))
    with pytest.raises(MapoError, match=r"x\.json cannot be read \(.*nested more than 100 deep"):
        read_json(tmp_path / "x.json", "a set", "Make it.")


def test_json_that_is_wide_or_nested_a_little_is_read() -> None:
    wide, deep = [[1]] * 1000, parse_json("[" * 100 + "]" * 100)
    assert parse_json(str(wide)) == wide and str(deep) == "[" * 100 + "]" * 100


def test_a_number_of_thousands_of_digits_is_told_in_our_words() -> None:
    with pytest.raises(ValueError, match="^a number in it has too many digits$"):
        parse_json("9" * 5000)
    assert parse_json("9" * 400) == 10**400 - 1


def test_a_row_with_a_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="^it has two columns prompt; rename one of them$"):
        parse_row('{"prompt": "a", "prompt": "b"}')
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}


def test_a_full_disk_names_the_file_of_lines_that_it_kept_from_growing() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        append_lines(Path("/dev/full"), [1])
    assert caught.value.filename == "/dev/full"


def test_a_missing_json_file_says_what_the_folder_is_not(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match=r"is not a pairs set: it has no set\.json\. Make it\."):
        read_json(tmp_path / "set.json", "a pairs set", "Make it.")


def test_the_name_of_a_picture_is_its_sha256() -> None:
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "sub/../a.png", "./a.png", "link in"])
def test_a_path_inside_its_folder_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link in").symlink_to(tmp_path / "sub")
    assert inside(tmp_path, name, "line 3") == tmp_path / name


OUTSIDE = {
    "../a.png": r"leaves its folder .*folder by '\.\.'\. Use paths inside",
    "sub/../../a.png": r"leaves its folder .*folder by '\.\.'",
    "..\\a.png": r"leaves its folder .*folder by '\.\.'",
    "/etc/passwd": "is absolute and lies outside of its folder .*folder. Use paths inside",
    "link out": "is a link that leads to .*, outside of its folder .*folder. Put the file itself there",
    "link out/a.png": "lies behind a link that leads to .*a.png, outside of its folder",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leaves_its_folder_is_refused_with_the_true_reason(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link out").symlink_to(tmp_path)
    with pytest.raises(MapoError, match=f"^line 3: the path .* {OUTSIDE[name]}"):
        inside(folder, name, "line 3")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("https://example.org/a.png", "is a web address. Fetch the file"),
        ("C:\\pictures\\a.png", "is one of a Windows machine. Use paths inside the folder, such as"),
        ("D:/pictures/a.png", "is one of a Windows machine"),
        ("\\\\server\\a.png", "is one of a Windows machine"),
    ],
)
def test_a_path_of_another_machine_is_refused_for_what_it_is(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(MapoError, match=why):
        inside(tmp_path, name, "line 3")


def test_an_absolute_path_inside_the_folder_is_taken_however_the_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "sub" / "a.png").write_bytes(b"a")
    (tmp_path / "other name").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real" / "sub")
    for folder in (tmp_path / "real", tmp_path / "other name", Path(".."), Path()):
        for written in (tmp_path / "real" / "sub" / "a.png", tmp_path / "other name" / "sub" / "a.png"):
            assert inside(folder, str(written), "line 3").read_bytes() == b"a"


def test_backslashes_of_windows_are_read_and_a_name_that_has_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"a")
    (tmp_path / "odd\\name.png").write_bytes(b"b")
    assert inside(tmp_path, "sub\\a.png", "line 3").read_bytes() == b"a"
    assert inside(tmp_path, ".\\sub\\a.png", "line 3").read_bytes() == b"a"
    assert inside(tmp_path, "odd\\name.png", "line 3").read_bytes() == b"b"


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accents_find_their_file_however_they_are_coded(
    tmp_path: Path, on_disk: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's accents are coded in the other way than the file's."""
    other = {"NFC": "NFD", "NFD": "NFC"}[on_disk]
    folder, file = unicodedata.normalize(other, "Bären"), unicodedata.normalize(on_disk, "größe é.png")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_bytes(b"a")
    name = unicodedata.normalize(written, "Bären/größe é.png")
    assert inside(tmp_path, name, "line 3").read_bytes() == b"a"
    assert inside(tmp_path, name.replace("/", "\\"), "line 3").read_bytes() == b"a"
    assert inside(tmp_path, str(tmp_path / name), "line 3").read_bytes() == b"a"
    monkeypatch.chdir(tmp_path)
    assert inside(Path(), name, "line 3").read_bytes() == b"a"


def test_a_link_of_the_hub_cache_is_followed_into_its_own_blobs_and_nowhere_else(tmp_path: Path) -> None:
    repo, other = tmp_path / "hub" / "datasets--me--set", tmp_path / "hub" / "datasets--me--other"
    snapshot = repo / "snapshots" / "0123abc"
    (snapshot / "images").mkdir(parents=True)
    for blobs in (repo / "blobs", other / "blobs"):
        blobs.mkdir(parents=True)
        (blobs / "aa").write_bytes(b"a")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    (repo / "blobs" / "onward").symlink_to("/etc/passwd")
    links = {
        "a.png": "../../../blobs/aa",
        "other.png": "../../../../datasets--me--other/blobs/aa",
        "refs.png": "../../../refs/main",
        "onward.png": "../../../blobs/onward",
    }
    for name, target in links.items():
        (snapshot / "images" / name).symlink_to(target)
    for folder, name in ((snapshot, "images/a.png"), (snapshot / "images", "a.png")):
        assert inside(folder, name, "line 3").read_bytes() == b"a"
    assert inside(snapshot, str(snapshot / "images" / "a.png"), "line 3").read_bytes() == b"a"
    for name in ("other.png", "refs.png", "onward.png"):
        with pytest.raises(MapoError, match="is a link that leads to .*, outside of its folder"):
            inside(snapshot, f"images/{name}", "line 3")
    with pytest.raises(MapoError, match=r"leaves its folder .* by '\.\.'"):
        inside(snapshot, "../../blobs/aa", "line 3")


def test_a_link_into_a_folder_that_only_looks_like_blobs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "aa").write_bytes(b"a")
    (tmp_path / "snapshots" / "0123abc").mkdir(parents=True)
    (tmp_path / "snapshots" / "0123abc" / "a.png").symlink_to("../../blobs/aa")
    with pytest.raises(MapoError, match="is a link that leads to"):
        inside(tmp_path / "snapshots" / "0123abc", "a.png", "line 3")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "a path is empty"),
        ("a\0b", r"no file can have the path 'a\\x00b' \(it holds a NUL"),
        ("\ud800", r"no file can have the path '\\ud800'"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused_for_what_it_is(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(MapoError, match=f"^line 3: {why}"):
        inside(tmp_path, name, "line 3")


def test_links_in_a_circle_lead_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    try:  # what the path is resolved to depends on the version of Python
        assert not inside(tmp_path, "circle/a", "line 3").exists()
    except MapoError as error:
        assert "links lead in a circle" in str(error)


def test_a_folder_beside_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "set2").mkdir()
    with pytest.raises(MapoError, match="leaves its folder"):
        inside(tmp_path / "set", "../set2/a.png", "line 1")


def test_the_folder_of_an_output_is_tried_and_nothing_is_left_of_that(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "a" / "b" / "out", tmp_path / "mine" / "a" / "out", tmp_path / "mine" / "out"):
        assert prepare_out(out) == out
        assert files_below(tmp_path) == {"mine"}
    with pytest.raises(MapoError, match="Cannot write to .*File name too long"):
        prepare_out(tmp_path / "a" / "b" / ("c" * 300) / "out")
    assert files_below(tmp_path) == {"mine"}


def test_who_owns_an_output_leaves_no_empty_folder_and_takes_no_other(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(MapoError, match="refused"), owned(tmp_path / "mine" / "a" / "b" / "out"):
        assert files_below(tmp_path) == {"mine", "mine/a", "mine/a/b", "mine/a/b/.out.lock"}
        raise MapoError("refused")
    assert files_below(tmp_path) == {"mine"}
    with owned(tmp_path / "mine" / "out"):
        pass
    with owned(tmp_path / "a" / ("c" * 251)):  # whose lock has a name that is too long
        pass
    assert files_below(tmp_path) == {"mine"}
    with owned(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "note").touch()
    assert files_below(tmp_path) == {"mine", "a", "a/note"}


def test_an_output_below_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MapoError, match=r"Cannot write to .*file.* \(.+\)\. Choose another --out"):
        prepare_out(tmp_path / "file" / "out")


def test_what_is_neither_a_file_nor_a_folder_is_never_taken_for_an_output(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("/dev/null")

    def replace(path: Path) -> None:
        with replacing(path):
            pytest.fail("it was written")

    def own(path: Path) -> None:
        with owned(path):
            pytest.fail("it was locked")

    for path in (pipe, tmp_path / "link", Path("/dev/null")):
        for write in (prepare_out, replace, own, lambda p: prepare_file(p, "a page", b"<", "p.html")):
            with pytest.raises(MapoError, match=f"{path} is neither a file nor a folder .* Choose another name"):
                write(path)
    assert pipe.is_fifo() and files_below(tmp_path) == {"pipe", "link"}
    assert not [path for path in Path("/dev").iterdir() if path.name.startswith(".null")]


def test_the_root_of_all_folders_is_never_taken_for_an_output() -> None:
    for take in (prepare_out, refuse_existing, lambda path: owned(path).__enter__()):
        with pytest.raises(MapoError, match="^Nothing can be written in the place of /. Choose a folder in it"):
            take(Path("/"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_write_access_is_refused_in_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(MapoError, match=r"Cannot write to .*Permission denied.*change its permissions"):
            prepare_out(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_in_the_encodings_that_editors_write(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.txt").write_bytes("Bär\r\n雪".encode(encoding))
    assert read_text(tmp_path / "x.txt") == "Bär\n雪"
    assert encoding_of(tmp_path / "x.txt") == ("utf-16" if encoding == "utf-16" else "utf-8-sig")


@pytest.mark.parametrize(
    "data", ["bär".encode("latin-1"), "bear".encode("utf-16-le"), b"\xff\xfeodd", b"\xff\xfe\0\xd8"]
)
def test_what_is_no_text_is_a_value_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ValueError):
        read_text(tmp_path / "x.txt")


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("a\x1b[2J\r\u202eb\udc80 Bär\nc") == "a\\x1b[2J\\r\\u202eb\\udc80 Bär\nc"


def test_a_suggestion_is_near_or_the_whole_list() -> None:
    assert suggest("cartoo", ["sketch", "cartoon"]) == "Did you mean 'cartoon'?"
    assert suggest("zzz", ["sketch", "cartoon"]) == "Known: cartoon, sketch."


@pytest.mark.parametrize("target", ["out", "nowhere"], ids=["in a circle", "to nothing"])
@pytest.mark.parametrize("below", ["", "run"])
def test_an_output_that_is_a_link_which_leads_nowhere_is_told_and_nothing_is_made(
    tmp_path: Path, target: str, below: str
) -> None:
    (tmp_path / "out").symlink_to(target)
    said = f"out is a link to {target}, which leads nowhere. Delete the link"
    for use in (prepare_out, refuse_existing, lambda path: owned(path).__enter__()):
        with pytest.raises(MapoError, match=said):
            use(tmp_path / "out" / below)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
