"""Folders of pictures that another program made are read, whatever form their prompts have."""

import json
import os
import tarfile

import pytest
from PIL import Image

from data_fixtures import encoded, make_picture, noise
from mapo.errors import MapoError
from mapo.importers import import_pairs
from mapo.pairs.pictures import ENDS
from mapo.sample.folder import open_picture, read_images
from mapo.sample.foreign import find_pictures

WORDS = ["a harbour at dusk", "two cups on a shelf", "a fox beside a gate", "paper boats, in rain"]


def fill(folder, names=("0.png", "1.png", "2.png", "3.png")):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(noise(number)))
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(folder):
    return [(row.file, row.prompt, row.seed) for row in read_images(folder)]


PLAIN = [(f"{n}.png", word, 0) for n, word in enumerate(WORDS)]
FORMS = {
    "metadata.jsonl": "".join(json.dumps({"file_name": f"{n}.png", "prompt": w}) + "\n" for n, w in enumerate(WORDS)),
    "pictures.ndjson": "".join(json.dumps({"file": f"{n}.png", "text": w}) + "\n" for n, w in enumerate(WORDS)),
    "pictures.jsonl": "".join(json.dumps({"image": f"{n}.png", "text": w, "x": 1}) + "\n" for n, w in enumerate(WORDS)),
    "list.csv": "path,Caption\n" + "".join(f'{n}.png,"{w}"\n' for n, w in enumerate(WORDS)),
    "excel.csv": "\ufefffile;prompt;seed\r\n" + "".join(f"{n}.png;{w};\r\n" for n, w in enumerate(WORDS)),
    "list.tsv": "file_name\tprompt\n" + "".join(f"{n}.png\t{w}\n" for n, w in enumerate(WORDS)),
    "manifest.jsonl": "".join(
        json.dumps({"file": f"{n}.png", "prompt": w, "seed": 0}) + "\n" for n, w in enumerate(WORDS)
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_list_of_pictures_and_prompts_makes_an_images_folder(tmp_path, name):
    folder = fill(tmp_path / "my pictures")
    (folder / name).write_text(FORMS[name])
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert said(folder) == PLAIN
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    row = read_images(folder)[0]
    assert row.model == "my pictures" and (row.width, row.height) == (24, 16) and row.foreign
    assert row.numbered is (name != "manifest.jsonl")


@pytest.mark.parametrize("end", [".txt", ".caption"])
def test_a_text_beside_each_picture_is_its_prompt(tmp_path, end):
    folder = fill(tmp_path / "pictures", [f"deep/{n}.png" for n in range(4)])
    for number, word in enumerate(WORDS):
        (folder / f"deep/{number}{end}").write_text(word + "\n")
    assert said(folder) == [(f"deep/{file}", word, seed) for file, word, seed in PLAIN]


def test_what_automatic1111_writes_gives_the_prompt_and_the_seed(tmp_path):
    folder = fill(tmp_path, ["0.png"])
    text = (
        "a harbour\nat dusk\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 64x64"
    )
    (folder / "0.txt").write_text(text)
    assert said(folder) == [("0.png", "a harbour at dusk", 123)]
    (folder / "0.txt").write_text(text.replace("at dusk", "at dusk, a sign says Seed: 5").replace("blurry", "Seed: 6"))
    assert said(folder) == [("0.png", "a harbour at dusk, a sign says Seed: 5", 123)]


def test_pictures_of_one_prompt_are_numbered_in_the_order_of_their_names(tmp_path):
    folder = fill(tmp_path, [f"fox_{n}.png" for n in (10, 2, 1)])
    lines(
        folder / "metadata.jsonl",
        [{"file_name": f"fox_{n}.png", "prompt": "A  fox" if n == 2 else "a fox"} for n in (10, 2, 1)],
    )
    assert [(file, seed) for file, _, seed in said(folder)] == [("fox_1.png", 0), ("fox_2.png", 1), ("fox_10.png", 2)]


def test_seeds_are_kept_where_they_are_given(tmp_path):
    folder = fill(tmp_path)
    (folder / "list.csv").write_text("file,prompt,seed\n" + "".join(f"{n}.png,a fox,{9 - n}.0\n" for n in range(4)))
    assert [seed for *_, seed in said(folder)] == [9, 8, 7, 6]
    assert not any(row.numbered for row in read_images(folder))


def test_lists_lie_in_the_folders_of_their_pictures_too(tmp_path):
    folder = fill(tmp_path, ["train/0.png", "test/deep/1.png"])
    lines(folder / "train/metadata.jsonl", [{"file_name": "0.png", "prompt": WORDS[0]}])
    lines(folder / "test/metadata.jsonl", [{"file_name": "deep/1.png", "prompt": WORDS[1]}])
    assert said(folder) == [("test/deep/1.png", WORDS[1], 0), ("train/0.png", WORDS[0], 0)]


def test_paths_are_understood_as_other_systems_write_them(tmp_path):
    folder = fill(tmp_path, ["sub/0.png", "caf\u00e9.png", "2.png"])
    names = ["sub\\0.png", "cafe\u0301.png", str((folder / "2.png").resolve())]
    lines(folder / "metadata.jsonl", [{"file_name": name, "prompt": "x"} for name in names])
    assert sorted(file for file, *_ in said(folder)) == ["2.png", "caf\u00e9.png", "sub/0.png"]


def test_pictures_of_all_kinds_are_read_upright_and_opaque(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = Image.new("RGB", (30, 20), "red")
    wide.save(tmp_path / "a.jpg", exif=turned)
    wide.convert("CMYK").save(tmp_path / "b.jpeg")
    wide.save(tmp_path / "c.webp")
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "D.PNG")
    Image.new("I;16", (30, 20), 40000).save(tmp_path / "e.tiff")
    for name in "abcDe":
        (tmp_path / f"{name}.txt").write_text("a wall")
    rows = read_images(tmp_path)
    assert [(row.width, row.height) for row in rows] == [(30, 20), (20, 30), (30, 20), (30, 20), (30, 20)]
    pictures = [open_picture(tmp_path, row) for row in rows]
    assert {p.mode for p in pictures} == {"RGB"} and pictures[0].getpixel((0, 0)) == (255, 255, 255)
    assert [p.size for p in pictures] == [(row.width, row.height) for row in rows]


def test_litter_is_passed_over_with_a_count(tmp_path, heard):
    folder = fill(tmp_path)
    for number, word in enumerate(WORDS):
        (folder / f"{number}.txt").write_text(word)
    for name in ("Thumbs.db", "README.txt", "0.json", "0.npz", ".DS_Store", "scores.csv"):
        (folder / name).write_bytes(b"\x00\x01 litter")
    assert said(folder) == PLAIN and said(folder) == PLAIN
    told = heard()
    assert told == f"note: {folder}: what is neither a picture nor a prompt is passed over (5)\n"


# ------------------------------------------------------------------ what is refused, in a sentence


def listed(folder, rows):
    lines(folder / "metadata.jsonl", rows)


def all_but(*lacking):
    return [{"file_name": f"{n}.png", "prompt": word} for n, word in enumerate(WORDS) if n not in lacking]


def texts(folder, *numbers):
    for number in numbers:
        (folder / f"{number}.txt").write_text(WORDS[min(number, 3)])


REFUSED = {
    "no prompts at all": (lambda f: None, r"has 4 pictures and no prompts\. Write metadata\.jsonl"),
    "a list without the columns": (
        lambda f: (f / "list.csv").write_text("a,b\n1,2\n"),
        r"list\.csv is not a list of prompts: it has no columns file_name and prompt",
    ),
    "a picture without a line": (
        lambda f: listed(f, all_but(1, 3)), r"2 pictures are not in .*metadata\.jsonl and so without a prompt: 1\.png, 3\.png\. Add"
    ),
    "a line without a picture": (
        lambda f: listed(f, [*all_but(), {"file_name": "9.png", "prompt": "x"}]),
        r"names 1 picture that is not there: 9\.png \(line 5\)\. Put",
    ),
    "a line without a prompt": (
        lambda f: listed(f, [*all_but(3), {"file_name": "3.png", "prompt": " "}]), r"has no prompt for 3\.png \(line 4\)\. Write one"
    ),
    "a line without a prompt that has a caption": (
        lambda f: (f / "list.csv").write_text(
            "file_name,caption,prompt\n" + "".join(f"{n}.png,from a phone,{'' if n == 2 else 'a fox'}\n" for n in range(4))
        ),
        r"has no prompt for 2\.png \(line 4\)\. Write one",
    ),
    "a line for Excel": (
        lambda f: (f / "metadata.csv").write_text("sep=;\n" + FORMS["excel.csv"][1:]), r"begins with the line 'sep=;', .*take that line out"
    ),
    "a column twice": (
        lambda f: (f / "list.csv").write_text("file_name,prompt,Prompt\n" + "".join(f"{n}.png,a,b\n" for n in range(4))),
        r"list\.csv cannot be used: it has two columns prompt; rename one of them",
    ),
    "a key twice, in capitals": (
        lambda f: listed(f, [row | {"Prompt": "a cat"} for row in all_but()]), r"it has two columns prompt; rename one"
    ),
    "lists in lists": (
        lambda f: (f / "metadata.jsonl").write_text(FORMS["metadata.jsonl"] + "[" * 100_000 + "]" * 100_000), r"nested more than 100 deep"
    ),
    "a line that names nothing": (lambda f: listed(f, [*all_but(), {"prompt": "x"}]), r"names no picture in line 5\."),
    "a picture named twice": (lambda f: listed(f, [*all_but(), *all_but(1, 2, 3)]), r"line 5 names 0\.png a second time"),
    "a line that is not JSON": (
        lambda f: (f / "metadata.jsonl").write_text(FORMS["metadata.jsonl"] + "{"), r"line 5 is not JSON"
    ),
    "a list that is not JSON": (lambda f: (f / "metadata.jsonl").write_text("[1"), r"metadata\.jsonl cannot be read"),
    "a comma without quotes": (
        lambda f: (f / "list.csv").write_text(FORMS["list.csv"].replace('"', "")),
        r"list\.csv cannot be used: line 5 has more fields than the first; put prompts in quotes",
    ),
    "two lists": (
        lambda f: [(f / name).write_text(FORMS[name]) for name in ("list.csv", "list.tsv")],
        r"has 2 lists of prompts: list\.csv, list\.tsv\. Keep one",
    ),
    "a path that leads out": (lambda f: listed(f, [{"file_name": "../secret.png", "prompt": "x"}]), r"leaves its folder"),
    "an absolute path": (lambda f: listed(f, [{"file_name": "/etc/passwd", "prompt": "x"}]), r"Use paths inside the folder"),
    "a seed that is a word": (
        lambda f: listed(f, [row | {"seed": "best"} for row in all_but()]), r"line 1 has the seed best, which is not a whole"
    ),
    "a seed that is too large": (
        lambda f: listed(f, [row | {"seed": 2**64 - 1} for row in all_but()]), r"a table of scores holds none above"
    ),
    "seeds for some": (
        lambda f: listed(f, [row | {"seed": 1} for row in all_but(3)] + all_but(0, 1, 2)), r"1 picture has no seed and others have one: 3\.png"
    ),
    "one seed for all": (
        lambda f: listed(f, [{"file_name": f"{n}.png", "prompt": "a fox", "seed": 42} for n in range(4)]),
        r"0\.png and 1\.png have the same prompt and the same seed 42\. Keep one",
    ),
    "half a character": (lambda f: listed(f, [{"file_name": "0.png", "prompt": "\ud83d"}]), r"the prompt in line 1 has half a character"),
    "a picture without a text": (lambda f: texts(f, 0, 1, 2), r"1 picture has no prompt: 3\.png\. Write it into .* such as 3\.txt"),
    "a text without a picture": (lambda f: texts(f, 0, 1, 2, 3, 7), r"1 text has no picture of the same name beside it: 7\.txt"),
    "an empty text": (lambda f: [texts(f, 0, 1, 2, 3), (f / "2.txt").write_text("\n")], r"1 picture has no prompt: 2\.png"),
    "a text of several lines": (
        lambda f: [texts(f, 0, 1, 2, 3), (f / "2.txt").write_text("a fox\na red fox\n")], r"2\.txt has 2 lines\. A prompt is one line"
    ),
    "a text in another coding": (
        lambda f: [texts(f, 0, 1, 2, 3), (f / "2.txt").write_bytes(b"caf\xe9")], r"2\.txt cannot be read .*Write the prompt into it as UTF-8"
    ),
    "two texts that differ": (
        lambda f: [texts(f, 0, 1, 2, 3), (f / "2.caption").write_text("a cat")], r"the prompts in 2\.caption and 2\.txt differ"
    ),
    "two pictures for a text": (
        lambda f: [texts(f, 0, 1, 2, 3), fill(f, ["2.jpg"])], r"2\.jpg and 2\.png share the prompt in 2\.txt"
    ),
    "a file that is not a picture": (
        lambda f: [texts(f, 0, 1, 2, 3), (f / "2.png").write_bytes(b"x")], r"1 of 4 pictures cannot be used: 2\.png \(it is not in a known picture format"
    ),
    "a picture that was cut off": (
        lambda f: [texts(f, 0, 1, 2, 3), (f / "2.png").write_bytes(encoded(noise(2))[:600])], r"pictures cannot be used: 2\.png"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_named_with_what_to_do(tmp_path, name):
    make, sentence = REFUSED[name]
    folder = fill(tmp_path / "pictures")
    (tmp_path / "secret.png").write_bytes(make_picture("red"))
    make(folder)
    with pytest.raises(MapoError, match=sentence):
        read_images(folder)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(make_picture("red"))
    folder = fill(tmp_path / "pictures", ["0.png"])
    (folder / "1.png").symlink_to(tmp_path / "secret.png")
    texts(folder, 0, 1)
    with pytest.raises(MapoError, match=r"1\.png"):
        read_images(folder)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("set.json", "is a pairs set, not an images folder"), ("run.json", "is a run, not an images folder")],
)
def test_other_folders_of_ours_are_told_apart(tmp_path, name, sentence):
    (tmp_path / name).write_text("{}")
    with pytest.raises(MapoError, match=sentence):
        read_images(tmp_path)


def test_a_folder_that_holds_an_images_folder_names_it(tmp_path):
    fill(tmp_path, ["before/0.png"])
    lines(tmp_path / "before/manifest.jsonl", [{"file": "0.png", "prompt": "x", "sha256": "0"}])
    with pytest.raises(MapoError, match=r"it holds one, .*before\. Name that"):
        read_images(tmp_path)
    fill(tmp_path, ["after/0.png"])
    lines(tmp_path / "after/manifest.jsonl", [{"file": "0.png", "prompt": "x", "sha256": "0"}])
    with pytest.raises(MapoError, match=r"it holds 2: .*after, .*before\. Name one of them"):
        read_images(tmp_path)


def test_a_file_or_nothing_in_place_of_a_folder_is_a_sentence(tmp_path):
    fill(tmp_path, ["0.png"])
    with pytest.raises(
        MapoError, match=r"0\.png is not an images folder: it is a file\. Name the folder that it is in"
    ):
        read_images(tmp_path / "0.png")
    with pytest.raises(MapoError, match=r"nowhere is not an images folder: it is not there"):
        read_images(tmp_path / "nowhere")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything can be read")
def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path):
    fill(tmp_path, ["in/0.png"])
    (tmp_path / "in").chmod(0)
    with pytest.raises(OSError):
        find_pictures(tmp_path)
    (tmp_path / "in").chmod(0o755)


@pytest.mark.parametrize("end", ENDS)
def test_what_is_a_picture_by_its_name_is_one_at_every_door(tmp_path, end):
    (tmp_path / "1").mkdir()
    for name, data in (("a" + end, make_picture()), ("a.txt", b"a bear")):
        (tmp_path / "1" / name).write_bytes(data)
    found, passed_over = find_pictures(tmp_path / "1")
    assert ([one.file for one in found], passed_over) == (["a" + end], 0)
    for side in ("chosen", "rejected"):
        (tmp_path / "2" / side).mkdir(parents=True)
        (tmp_path / "2" / side / ("a" + end)).write_bytes(encoded(noise(len(side))))
    (tmp_path / "2" / "chosen" / "a.txt").write_text("a bear")
    assert import_pairs(tmp_path / "2", tmp_path / "of folders")["pairs"] == 1
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for side in ("chosen", "rejected"):
            tar.add(tmp_path / "2" / side / ("a" + end), f"a.{side}{end}")
        tar.add(tmp_path / "2" / "chosen" / "a.txt", "a.txt")
    assert import_pairs(tmp_path / "x.tar", tmp_path / "of a tar")["pairs"] == 1


@pytest.mark.parametrize("name", ["list.tsv", "list.csv"])
def test_a_list_parted_by_tabs_may_have_commas_in_the_names_of_its_columns(tmp_path, name):
    fill(tmp_path, ("0.png",))
    first = "file_name\tprompt" + ("\tseen by, whom, when" if name.endswith("tsv") else "")
    (tmp_path / name).write_text(f"{first}\n0.png\ta bear\n")
    assert [one.prompt for one in find_pictures(tmp_path)[0]] == ["a bear"]
