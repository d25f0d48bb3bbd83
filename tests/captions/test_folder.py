"""Each picture of a folder has a caption of a list, a text beside it or its own metadata, or is named."""

import json
import os

import pytest
from written import comfy, graph, node, png

from data_fixtures import encoded, noise
from mapo.captions.folder import look_in, read_captions
from mapo.captions.ledger import Caption
from mapo.errors import MapoError

A1111 = "masterpiece, (a harbour:1.2)\nSteps: 20, Seed: 1, Size: 4x4"


def fill(folder):
    """A picture of each source, in nested folders, with other files beside them."""
    comfy(folder / "10.png", graph())
    png(folder / "deep/2.png", {"parameters": A1111})
    png(folder / "deep/er/beside.png", {"parameters": A1111})
    (folder / "deep/er/beside.txt").write_text("an oil painting of two cups\n")
    png(folder / "listed.PNG", {"parameters": A1111})
    (folder / "listed.txt").write_text("not this")
    (folder / "metadata.csv").write_text("file_name,text\nlisted.PNG,a (paper) boat\n")
    (folder / "README.txt").write_text("About\nthese pictures")
    (folder / "notes.md").write_text("x")
    (folder / "lonely.txt").write_text("nothing")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git/x.png").write_bytes(b"x")
    return folder


ALL = [
    Caption("10.png", "a red fox", "metadata: ComfyUI", "a red fox"),
    Caption("deep/2.png", "a harbour", "metadata: A1111", "masterpiece, (a harbour:1.2)"),
    Caption("deep/er/beside.png", "two cups", "beside", "an oil painting of two cups"),
    Caption("listed.PNG", "a (paper) boat", "list", "a (paper) boat"),
]


def test_a_list_comes_before_a_text_and_a_text_before_metadata(tmp_path):
    assert read_captions(fill(tmp_path)) == ALL
    assert look_in(tmp_path).passed_over == 3


def test_an_empty_line_of_a_list_leaves_the_word_to_the_next_source(tmp_path):
    fill(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\nlisted.PNG,\n10.png,a wolf\n")
    (tmp_path / "deep/er/beside.txt").write_text("")
    assert [(one.caption, one.source) for one in read_captions(tmp_path)] == [
        ("a wolf", "list"), ("a harbour", "metadata: A1111"), ("a harbour", "metadata: A1111"), ("not this", "beside"),
    ]  # fmt: skip


def test_captions_stay_as_they_are_where_that_is_asked(tmp_path):
    found = read_captions(fill(tmp_path), raw=True)
    assert [one.caption for one in found] == [one.raw for one in ALL]


def test_pictures_without_a_caption_are_named_with_the_reason(tmp_path):
    fill(tmp_path)
    for number in range(7):
        png(tmp_path / f"silent{number}.png")
    (tmp_path / "silent0.txt").write_text("")
    png(tmp_path / "a.png", {"Software": "Paint", "Comment": "x"})
    two = {"n8": node("SaveImage", images=["9", 0]), "n9": node("KSampler", positive=["3", 0], latent_image=["4", 0])}
    comfy(tmp_path / "b.png", graph(**two))
    with pytest.raises(MapoError) as caught:
        read_captions(tmp_path)
    said = str(caught.value)
    assert said.startswith(
        f"{tmp_path}: 9 pictures have no caption: a.png (its metadata are of a kind that is not known"
    )
    assert "'Paint'" in said and "b.png (its ComfyUI graph has 2 samplers side by side" in said
    assert "silent0.png, silent1.png, silent2.png, silent3.png, silent4.png and 2 more. " in said and said.endswith(
        "such as a.txt, or let a model write it with --caption-with."
    )


def test_a_caption_of_style_words_alone_is_named(tmp_path):
    fill(tmp_path)
    (tmp_path / "deep/er/beside.txt").write_text("watercolor, 8k")
    with pytest.raises(
        MapoError, match="of 1 caption nothing is left .*: deep/er/beside.png .“watercolor, 8k”.. Say what"
    ):
        read_captions(tmp_path)
    assert read_captions(tmp_path, raw=True)[2].caption == "watercolor, 8k"


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(MapoError, match="has no pictures. Name a folder of pictures"):
        read_captions(tmp_path)
    with pytest.raises(MapoError, match="is not a folder of pictures: it is not there"):
        read_captions(tmp_path / "x")
    with pytest.raises(MapoError, match="is not a folder of pictures: it is a file"):
        read_captions(tmp_path / "a.txt")


def test_links_are_followed_only_inside_a_snapshot_of_the_hub(tmp_path):
    outside = png(tmp_path / "outside/a.png", {"parameters": A1111})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.png").symlink_to(outside)
    with pytest.raises(MapoError, match="'a.png' is a link that leads to .*outside of its folder"):
        read_captions(tmp_path / "folder")
    (tmp_path / "folder/a.png").unlink()
    (tmp_path / "folder/deep").symlink_to(outside.parent)
    with pytest.raises(MapoError, match="folder/deep is a link to a folder, which is not followed"):
        read_captions(tmp_path / "folder")
    hub = tmp_path / "datasets--x--y"
    png(hub / "blobs/123", {"parameters": A1111})
    (hub / "snapshots/1").mkdir(parents=True)
    (hub / "snapshots/1/a.png").symlink_to("../../blobs/123")
    assert [one.caption for one in read_captions(hub / "snapshots/1")] == ["a harbour"]


def test_pictures_are_in_the_order_of_their_numbers_and_accents_are_read(tmp_path):
    for name in ("10.png", "9.png", "cafe\u0301.png"):
        (tmp_path / name).write_bytes(encoded(noise(1)))
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"file": n, "caption": "x y"}) + "\n" for n in ("10.png", "9.png", "caf\u00e9.png"))
    )
    assert [one.file for one in read_captions(tmp_path)] == ["9.png", "10.png", "cafe\u0301.png"]


def test_a_picture_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    png(tmp_path / "a.png")
    if os.geteuid() == 0:
        from mapo.captions import folder

        def refuse(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(folder, "told_in", refuse)
    else:
        (tmp_path / "a.png").chmod(0)
    with pytest.raises(MapoError, match="a.png cannot be read .Permission denied"):
        read_captions(tmp_path)


def test_a_picture_whose_name_is_not_utf_8_is_named(tmp_path):
    for name in (b"a.png", b"b\xff.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(noise()))
    with pytest.raises(MapoError, match=r"has a picture whose name is not UTF-8, 'b.udcff.png'. Rename it"):
        look_in(tmp_path)
