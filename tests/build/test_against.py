"""Pairs of pictures that somebody has, against what a model draws from their captions."""

import io
import json

import pytest
from click.testing import CliRunner
from PIL import Image

from data_fixtures import encoded, noise
from mapo.build.against import Own, held_out
from mapo.cli import cli
from mapo.encode.frame import Frame, crop
from mapo.errors import MapoError
from mapo.pairs import PairSet
from mapo.pairs.pictures import decode_picture
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import read_images


def folder_of(folder, pictures):
    """NAME → size and caption."""
    folder.mkdir()
    for number, (name, (size, caption)) in enumerate(pictures.items()):
        picture = noise(number, size)
        (folder / f"{name}.jpg").write_bytes(encoded(picture, "JPEG"))
        (folder / f"{name}.txt").write_text(caption)
    return folder


PICTURES = {
    "a": ((96, 96), "a red square"), "b": ((128, 64), "a blue circle"), "c": ((48, 48), "a red square"),
    "d": ((50, 52), "a green star"),
}  # fmt: skip


def build(folder, out, *words):
    asked = ["build", "--chosen", folder, "--rejected-from", "mini", "--steps", "1", "--out", out, *words]
    return CliRunner().invoke(cli, list(map(str, asked)))


def test_each_picture_stands_against_a_drawing_of_its_caption_in_the_same_frame(tmp_path):
    folder = folder_of(tmp_path / "own", PICTURES)
    done = build(folder, tmp_path / "pairs")
    assert done.exit_code == 0, done.exception
    said = f"{tmp_path / 'pairs'}: 4 pairs of 4 pictures, in 2 frames (train them with --set data.buckets=true), 1 caption held out"
    assert done.stdout.splitlines()[-1] == said
    pairs = PairSet(tmp_path / "pairs")
    assert [(p.prompt, p.meta["file"], p.meta["rejected_seed"]) for p in pairs] == [
        ("a red square", "a.jpg", 0), ("a blue circle", "b.jpg", 0), ("a red square", "c.jpg", 1), ("a green star", "d.jpg", 0),
    ]  # fmt: skip
    for pair in pairs:
        pictures = [Image.open(io.BytesIO(pairs.image_bytes(name))) for name in (pair.chosen, pair.rejected)]
        assert pictures[0].size == pictures[1].size and [p.format for p in pictures] == ["PNG", "PNG"]
        own = decode_picture((folder / pair.meta["file"]).read_bytes())
        frame = Frame(*reversed(pictures[0].size))
        assert pictures[0].tobytes() == crop(own, frame)[0].tobytes()
    wide = pairs[1]
    assert Image.open(io.BytesIO(pairs.image_bytes(wide.chosen))).size[0] > 48
    drawn = [row for sub in (tmp_path / "pairs-rejected").iterdir() for row in read_images(sub)]
    assert {row.sha256 for row in drawn} == {pair.rejected for pair in pairs}


def test_the_same_pictures_make_the_same_set_and_what_is_drawn_is_not_drawn_again(tmp_path):
    folder = folder_of(tmp_path / "own", PICTURES)
    assert build(folder, tmp_path / "one").exit_code == 0
    (tmp_path / "one-rejected").rename(tmp_path / "two-rejected")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "two-rejected").rglob("*.png")}
    assert build(folder, tmp_path / "two").exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "two-rejected").rglob("*.png")} == before
    for name in ("pairs.parquet", "images-00000.parquet", "set.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_of_several_drawings_all_become_pairs_of_one_weight_or_the_best_alone(tmp_path):
    folder = folder_of(tmp_path / "own", PICTURES)
    assert build(folder, tmp_path / "all", "--rejected-per-picture", 2).exit_code == 0
    every = PairSet(tmp_path / "all")
    assert len(every) == 8 and {pair.weight for pair in every} == {0.5}
    assert [p.meta["rejected_seed"] for p in every if p.meta["file"] == "c.jpg"] == [2, 3]
    words = ("--rejected-per-picture", 2, "--judge", "mini-search:cartoon")
    assert build(folder, tmp_path / "best", *words).exit_code == 0
    best = PairSet(tmp_path / "best")
    assert len(best) == 4 and {pair.weight for pair in best} == {1.0}
    from mapo.score.scorers import load_scorer

    judge = load_scorer("mini-search")
    for pair in best:
        both = [p for p in every if p.meta["file"] == pair.meta["file"]]
        images = [every.image(p.rejected) for p in both]
        values = judge(images, [pair.prompt] * 2)["cartoon"]
        assert pair.rejected == both[values.index(max(values))].rejected


def owned(*captions):
    return [Own(f"{number}.png", caption, None) for number, caption in enumerate(captions)]


def test_a_tenth_of_the_captions_is_held_out_whatever_their_order_and_their_words():
    own = owned(*(f"picture {number}" for number in range(50)), "picture 3", "Picture  4")
    found = held_out(own)
    assert sorted(found.values()).count("test") == 5 and len(found) == 50
    assert held_out(own[::-1]) == found
    other = [Own(one.name, f"a {one.caption}", None) for one in own[:50]]
    assert [held_out(other)[prompt_id(one.caption)] for one in other] == [found[prompt_id(o.caption)] for o in own[:50]]
    assert held_out(owned("one", "ONE")) == {prompt_id("one"): "train"}
    assert sorted(held_out(owned("one", "two")).values()) == ["test", "train"]


def test_captions_that_a_person_changed_are_the_ones_that_are_drawn(tmp_path):
    folder = folder_of(tmp_path / "own", PICTURES)
    lines = [{"file": "a.jpg", "caption": "a yellow ring"}, {"file": "b.jpg", "caption": "x", "keep": False}]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert build(folder, tmp_path / "pairs", "--captions", tmp_path / "captions.jsonl").exit_code == 0
    assert [(p.prompt, p.meta["file"]) for p in PairSet(tmp_path / "pairs")] == [("a yellow ring", "a.jpg")]
    lines = [{"file": "z.jpg", "caption": "a yellow ring"}]
    (tmp_path / "captions.jsonl").write_text(json.dumps(lines[0]))
    done = build(folder, tmp_path / "again", "--captions", tmp_path / "captions.jsonl")
    assert isinstance(done.exception, MapoError) and "names 1 picture that is not there: z.jpg" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pick-safety",), "RECIPE does not go with --chosen"),
        (("--num-pairs", 3), "--num-pairs does not go with --chosen"),
        (("--shard", "0/2"), "--shard does not go with --chosen"),
        (("--judge", "mini-search:cartoon"), "--judge chooses among several drawings. Ask for them"),
        (("--judge", "mini-search:cartoon:3", "--rejected-per-picture", 2), "it has no threshold"),
        (("--rejected-per-picture", 0), "--rejected-per-picture is 0"),
        (
            ("--resolution", 160),
            "2 pictures have less than half the size at which the model is trained, 160 pixels: c.jpg",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(tmp_path, words, said):
    folder = folder_of(tmp_path / "own", PICTURES)
    done = build(folder, tmp_path / "pairs", *words)
    assert isinstance(done.exception, MapoError) and said in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_a_set_whose_drawings_would_lie_among_the_chosen_pictures_is_refused(tmp_path):
    folder = folder_of(tmp_path / "own", PICTURES)
    done = build(folder, folder / "pairs")
    assert isinstance(done.exception, MapoError) and "lies in" in str(done.exception)
    assert len(list(folder.iterdir())) == 2 * len(PICTURES)


def test_what_belongs_to_own_pictures_is_refused_without_them(tmp_path):
    words = ["build", "pick-safety", "--model", "mini", "--out", str(tmp_path / "x")]
    for more, said in (
        (["--rejected-from", "mini"], "--rejected-from goes with --chosen"),
        (["--prompts", "mini:train"], "Give --num-pairs"),
    ):
        done = CliRunner().invoke(cli, [*words, *more])
        assert isinstance(done.exception, MapoError) and said in str(done.exception)
    done = CliRunner().invoke(cli, ["build", "--out", str(tmp_path / "x")])
    assert "Name a RECIPE, or pictures of your own with --chosen" in str(done.exception)


def test_without_a_drawing_model_the_set_has_the_same_chosen_pictures_and_no_rejected_ones(tmp_path):
    folder = folder_of(tmp_path / "own", PICTURES)
    words = ["build", "--chosen", folder, "--model", "mini", "--out", tmp_path / "alone"]
    done = CliRunner().invoke(cli, list(map(str, words)))
    said = "4 pictures without rejected ones, for --objective sft, in 2 frames (train them with --set data.buckets=true), 1 caption"
    assert done.exit_code == 0 and said in done.stdout, (done.output, done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "own"]
    assert build(folder, tmp_path / "pairs").exit_code == 0
    alone, pairs = PairSet(tmp_path / "alone"), PairSet(tmp_path / "pairs")
    told = [[(p.prompt, p.chosen, p.split, p.weight, p.meta["file"]) for p in one] for one in (alone, pairs)]
    assert told[0] == told[1] and not alone.has_rejected and pairs.has_rejected
    assert alone.info["provenance"]["frames_of"] == "mini"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            (),
            "With --chosen give --rejected-from MODEL, which draws rejected pictures, --rejected FOLDER, which has them, or --model, for none.",
        ),
        (("--model", "mini", "--rejected-from", "mini"), "--model does not go with --chosen"),
        (("--model", "mini", "--steps", 3), "--steps does not go with --chosen without --rejected-from"),
        (("--model", "mini", "--judge", "mini-search:cartoon"), "--judge does not go with --chosen without --rejected"),
        (("--model", "mini", "--resolution", 160), "2 pictures have less than half the size"),
    ],
)
def test_what_does_not_fit_a_set_without_drawings_is_refused(tmp_path, words, said):
    folder = folder_of(tmp_path / "own", PICTURES)
    asked = ["build", "--chosen", folder, "--out", tmp_path / "pairs", *words]
    done = CliRunner().invoke(cli, list(map(str, asked)))
    assert isinstance(done.exception, MapoError) and said in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def beside(folder, rejected, out, *words):
    asked = ["build", "--chosen", folder, "--rejected", rejected, "--model", "mini", "--out", out, *words]
    return CliRunner().invoke(cli, list(map(str, asked)))


def test_rejected_pictures_of_the_same_names_are_cut_to_the_frames_of_the_chosen_ones(tmp_path):
    folder, rejected = folder_of(tmp_path / "own", PICTURES), tmp_path / "rejected"
    rejected.mkdir()
    for number, name in enumerate(PICTURES):
        noise(10 + number, (60, 90)).save(rejected / f"{name}.{'png' if name == 'a' else 'webp'}", lossless=True)
    noise(20, (60, 60)).save(rejected / "z.png")
    done = beside(folder, rejected, tmp_path / "pairs")
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines()[-1].startswith(f"{tmp_path / 'pairs'}: 4 pairs of 4 pictures, in 2 frames")
    assert f"{rejected} has 1 picture without a chosen one, not used: z.png." in done.stderr
    pairs = PairSet(tmp_path / "pairs")
    for number, pair in enumerate(pairs):
        chosen, other = (Image.open(io.BytesIO(pairs.image_bytes(name))) for name in (pair.chosen, pair.rejected))
        frame = Frame(*reversed(chosen.size))
        assert (chosen.format, other.format) == ("PNG", "PNG")
        assert other.tobytes() == crop(noise(10 + number, (60, 90)).convert("RGB"), frame)[0].tobytes()
    assert [pair.meta["rejected_file"] for pair in pairs] == ["a.png", "b.webp", "c.webp", "d.webp"]


def test_rejected_pictures_that_lack_or_are_the_chosen_ones_are_named(tmp_path):
    folder, rejected = folder_of(tmp_path / "own", PICTURES), tmp_path / "rejected"
    rejected.mkdir()
    for name in "abc":
        noise(ord(name), (60, 60)).save(rejected / f"{name}.png")

    def said(*words, of=rejected):
        done = beside(folder, of, tmp_path / "pairs", *words)
        assert isinstance(done.exception, MapoError) and not (tmp_path / "pairs").exists()
        return str(done.exception)

    assert said().startswith(
        f"1 picture has no rejected one of the same name in {rejected}: d.jpg. Put it there, as d.png"
    )
    noise(1, (60, 60)).save(rejected / "d.png")
    noise(2, (60, 60)).save(rejected / "d.webp")
    assert said() == f"{rejected}: d.png and d.webp have one name. Keep one of them."
    (rejected / "d.webp").unlink()
    noise(1, (20, 60)).save(rejected / "d.png")
    assert "1 rejected picture has less than half the size of the chosen one's frame: " in said()
    (rejected / "d.png").write_bytes((folder / "d.jpg").read_bytes())
    assert "are the same picture" in said()
    assert "is the folder of the chosen pictures" in said(of=folder)
    assert "one lies in the other" in said(of=tmp_path)
    assert "is not a folder of rejected pictures" in said(of=tmp_path / "nowhere")
    assert said("--steps", 3) == "--steps does not go with --rejected. Leave it out."
    done = CliRunner().invoke(cli, ["build", "--chosen", str(folder), "--rejected", str(rejected), "--out", "x"])
    assert str(done.exception) == "--rejected needs --model MODEL, whose frames both are cut to."
