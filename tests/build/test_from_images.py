"""Pictures that other programs made, of which those of one prompt become pairs."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from PIL import Image

from captions.written import graph
from data_fixtures import encoded, files_below, noise
from mapo.build.framed import in_frame
from mapo.build.from_images import Judging, build_from_images, check_asked, selected
from mapo.build.groups import read_groups
from mapo.build.judge import Filter
from mapo.cli import cli
from mapo.encode.frame import Frame, crop
from mapo.errors import MapoError
from mapo.pairs import PairSet
from mapo.pairs.pictures import decode_picture
from mapo.pairs.splits import split_of
from mapo.sample.folder import png_bytes


def comfy(path, picture, text, seed):
    """A picture as ComfyUI saves it."""
    from PIL.PngImagePlugin import PngInfo

    nodes = graph()
    nodes["2"]["inputs"]["text"], nodes["5"]["inputs"]["seed"] = text, seed
    texts = PngInfo()
    texts.add_text("prompt", json.dumps(nodes))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, pnginfo=texts)


def grey(light, size=(16, 16)):
    return Image.new("RGB", size, (light, light, light))


LIGHTS = {"a red fox": (10, 200, 90, 30), "A  red fox": (250,), "a pond": (70, 20), "alone": (5,)}


@pytest.fixture
def output(tmp_path):
    """A ComfyUI folder: five foxes, two ponds, one picture alone."""
    number = 0
    for prompt, lights in LIGHTS.items():
        for light in lights:
            number += 1
            comfy(tmp_path / "output" / f"x_{number:05}_.png", grey(light), f"(masterpiece:1.2), {prompt}", number)
    return tmp_path / "output"


class Lightness:
    """How light a picture is; it has no number for what is black."""

    name, version, revision, needs_reference = "lightness", "1", "", False
    metrics = ("all", "dark")
    calls = 0

    def __call__(self, pictures, prompts, references=None):
        type(self).calls += 1
        means = [float(p.getpixel((0, 0))[0]) for p in pictures]
        return {"all": [m or None for m in means], "dark": [m or None for m in means]}

    def notes(self):
        return []


def asked(*judges, rankings="best-worst") -> Judging:
    return check_asked(judges or [Filter(Lightness(), "all")], rankings)


def sides(pairs, pair):
    """How light chosen and rejected are."""
    return tuple(pairs.image(name).getpixel((0, 0))[0] for name in (pair.chosen, pair.rejected))


def test_the_best_and_the_worst_of_a_prompt_become_a_pair_that_says_where_it_came_from(output, tmp_path):
    counts = build_from_images(read_groups(output), tmp_path / "set", asked())
    pairs = PairSet(tmp_path / "set")
    assert [(p.prompt, sides(pairs, p)) for p in pairs] == [("a red fox", (250, 10)), ("a pond", (70, 20))]
    expected = {"pairs": 2, "pictures": 7, "prompts": 2, "alone": 1, "copies": 0, "minors": 0, "judged_out": 0, "unjudged": 0}  # fmt: skip
    assert counts == expected == pairs.info["provenance"]["counts"]
    assert pairs.info["provenance"]["captions_from"] == {"metadata: ComfyUI": 7}
    assert pairs.info["provenance"]["judges"] == ["lightness:all (version 1)"]
    fox = pairs[0]
    assert fox.split == split_of("a red fox") and fox.weight == 1 and fox.meta["candidates"] == 5
    told = fox.meta["chosen"]
    assert {k: told[k] for k in ("file", "seed", "model", "width", "negative_prompt", "given_prompt")} == {
        "file": "x_00005_.png", "seed": 5, "model": "base.safetensors", "width": 16, "negative_prompt": "blurry",
        "given_prompt": "(masterpiece:1.2), A  red fox",
    }  # fmt: skip
    assert [(j["metric"], j["chosen"], j["rejected"]) for j in fox.meta["judges"]] == [("all", 250.0, 10.0)]
    picture = Image.open(io.BytesIO(pairs.image_bytes(fox.chosen)))
    assert picture.format == "PNG" and not picture.info  # no text of ComfyUI is left
    assert files_below(tmp_path) & {".set.build.partial", ".set.partial"} == set()


def test_all_pairs_on_which_every_judge_agrees_weigh_one_together(output, tmp_path):
    both = [Filter(Lightness(), "all"), Filter(Lightness(), "dark", threshold=60)]
    counts = build_from_images(read_groups(output), tmp_path / "set", asked(*both, rankings="all"))
    pairs = PairSet(tmp_path / "set")
    foxes = {sides(pairs, p): p.weight for p in pairs if p.prompt == "a red fox"}
    lights = (250, 200, 90, 30, 10)  # the second judge lets none pass whose better picture is darker than 60
    assert foxes.keys() == {(a, b) for a in lights for b in lights if a > b and a > 60}
    assert sum(foxes.values()) == pytest.approx(1) and len({*foxes.values()}) == 1
    assert counts["judged_out"] == 1 and len(pairs) == 10


def test_ranks_of_judges_that_disagree_are_put_together_and_a_disputed_pair_is_not_kept():
    one, other = Filter(Lightness(), "all"), Filter(Lightness(), "dark", sign=-1)
    assert selected([one], [[1, 3, 2]], "best-worst") == ([(1, 0)], 0)
    assert selected([one, other], [[1, 3, 2], [1, 3, 2]], "best-worst") == ([], 1)
    assert selected([one, other], [[1, 3, 2], [3, 1, 2]], "all") == ([(1, 0), (2, 0), (1, 2)], 0)
    assert selected([one], [[2, 2]], "best-worst") == ([], 1)  # a tie


def test_pictures_of_several_sizes_share_the_largest_frame_that_enlarges_none(tmp_path, heard):
    folder = tmp_path / "own"
    folder.mkdir()
    for name, size, kind in (("a", (40, 60), "JPEG"), ("b", (64, 48), "PNG"), ("c", (96, 96), "PNG")):
        (folder / f"{name}.{'jpg' if kind == 'JPEG' else 'png'}").write_bytes(encoded(noise(ord(name), size), kind))
        (folder / f"{name}.txt").write_text("a fox")
    (group,) = read_groups(folder).groups
    assert group.frame == Frame(48, 40)
    said = heard()
    assert "The pictures of 1 prompt differ in size and are cut to one frame, such as 40 × 48 for 'a fox'." in said
    assert "partly JPEG, WebP or AVIF and partly not" in said
    for one in group.pictures:
        picture = decode_picture(in_frame(one.path, group.frame))
        assert picture.tobytes() == crop(decode_picture(one.path.read_bytes()), group.frame)[0].tobytes()


def test_png_files_of_one_size_are_kept_as_they_were_packed_without_their_texts(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        for k in range(2):
            comfy(tmp_path / "a" / f"{k}.png", noise(k, (16, 16)), "a red fox", k)
        (group,) = read_groups(tmp_path / "a").groups
        for one, png in zip(group.pictures, group.framed(pool, group.pictures), strict=True):
            assert png in one.path.read_bytes().replace(chunk(one.path, b"tEXt"), b"")
        comfy(tmp_path / "a" / "2.png", noise(2, (20, 16)), "a red fox", 2)
        (group,) = read_groups(tmp_path / "a").groups
        found = group.framed(pool, group.pictures)
    assert found == [in_frame(one.path, group.frame) for one in group.pictures]


def chunk(path, kind):
    """The whole chunk of this kind in a PNG."""
    data = path.read_bytes()
    start = data.index(kind) - 4
    return data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]


def test_copies_count_once_and_a_picture_without_a_number_or_a_prompt_is_left_out(output, tmp_path, heard):
    comfy(output / "deep" / "copy.png", grey(200), "a red fox", 2)
    comfy(output / "black.png", grey(0), "a red fox", 9)
    grey(3).save(output / "screenshot.png")
    groups = read_groups(output)
    assert groups.counts == {"pictures": 8, "prompts": 2, "alone": 1, "copies": 1, "minors": 0}
    assert "1 picture without a prompt is left out: screenshot.png" in heard()
    counts = build_from_images(groups, tmp_path / "set", asked())
    assert counts["unjudged"] == 1
    pairs = PairSet(tmp_path / "set")
    assert [sides(pairs, p) for p in pairs if p.prompt == "a red fox"] == [(250, 10)]


def test_an_interrupted_build_asks_the_judge_only_about_the_rest_and_makes_the_same_set(tmp_path):
    for number in range(70):
        comfy(tmp_path / "output" / f"{number:03}.png", grey(number + 1), f"fox {number % 10}", number)

    class Stopped(Lightness):
        calls = 0

        def __call__(self, pictures, prompts, references=None):
            if type(self).calls == 1:
                raise KeyboardInterrupt
            return super().__call__(pictures, prompts)

    groups = read_groups(tmp_path / "output")
    with pytest.raises(KeyboardInterrupt):
        build_from_images(groups, tmp_path / "one", asked(Filter(Stopped(), "all")))
    assert not (tmp_path / "one").exists()
    Lightness.calls = 0
    build_from_images(groups, tmp_path / "one", asked())
    once = Lightness.calls
    Lightness.calls = 0
    build_from_images(groups, tmp_path / "two", asked())
    assert Lightness.calls == once + 1
    for name in ("pairs.parquet", "images-00000.parquet", "set.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_shards_judge_a_part_each_and_the_last_one_makes_the_set(output, tmp_path):
    groups = read_groups(output)
    assert build_from_images(groups, tmp_path / "set", asked(), shard=(0, 2)) is None
    assert build_from_images(groups, tmp_path / "set", asked(), shard=(1, 2))["pairs"] == 2
    build_from_images(groups, tmp_path / "alone", asked())
    assert (tmp_path / "set/pairs.parquet").read_bytes() == (tmp_path / "alone/pairs.parquet").read_bytes()


def test_a_set_that_is_sensitive_uses_no_prompt_that_could_mean_minors(output, tmp_path):
    for number in range(2):
        comfy(output / f"school_{number}.png", grey(number + 1), "a schoolgirl", number)
    assert read_groups(output).counts["minors"] == 0
    groups = read_groups(output, sensitive=True)
    assert groups.counts["minors"] == 1 and len(groups.groups) == 2
    build_from_images(groups, tmp_path / "set", asked())
    info = PairSet(tmp_path / "set").info
    assert info["sensitive"] and info["provenance"]["minors_list"] and info["provenance"]["counts"]["minors"] == 1


def test_prompts_of_a_file_of_captions_count_and_lines_that_are_left_out_do_not(output, tmp_path):
    lines = [{"file": f"x_{n:05}_.png", "caption": "one thing", "keep": n != 1} for n in (1, 2, 3)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = read_groups(output, tmp_path / "captions.jsonl").groups
    assert group.prompt == "one thing" and [p.said.file for p in group.pictures] == ["x_00002_.png", "x_00003_.png"]


def mapo(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


def test_what_cannot_be_built_is_one_sentence_with_what_to_do(output, tmp_path):
    out = ["--out", tmp_path / "set"]
    judge = ["--judge", "mini-learned:cartoon"]

    def refused(folder, *words):
        said = mapo("build", "--from-images", folder, *words, *out).exception
        assert isinstance(said, MapoError), said
        return str(said)

    assert "Nobody says which pictures" in (said := refused(output)) and f"mapo label {output} --out" in said
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no pictures" in refused(empty, *judge)
    png = png_bytes(grey(4))
    (empty / "a.png").write_bytes(png)
    (empty / "b.png").write_bytes(png_bytes(grey(5)))
    assert "2 pictures, and none has a prompt: a.png, b.png. Write it into" in refused(empty, *judge)
    (empty / "a.txt").write_text("one")
    (empty / "b.txt").write_text("two")
    assert "no prompt has two different pictures (2 prompts with one picture only)" in refused(empty, *judge)
    (empty / "b.txt").write_text("one")
    (empty / "b.png").write_bytes(png)
    assert "1 prompt with one picture only, 1 repeated picture" in refused(empty, *judge)
    (empty / "b.png").write_bytes(png[:60])
    assert "1 picture is damaged: b.png" in refused(empty, *judge)
    assert "is not a folder of pictures: it is not there" in refused(tmp_path / "nowhere", *judge)
    assert "nobody orders the pictures" in refused(output, "--judge", "mini-learned:cartoon:0.5")
    assert "No pair was kept of 2 prompts" in (said := refused(output, *judge, "--judge", "mini-learned:cartoon:2"))
    assert "2 judged out" in said and "the same command with another --judge goes on" in said
    assert "--model does not go with --from-images" in refused(output, *judge, "--model", "mini")
    assert "--steps does not go with --from-images" in refused(output, *judge, "--steps", "2")
    assert not (tmp_path / "set").exists()
    said = str(mapo("build", "best-of-k", "--sensitive", "--out", tmp_path / "x").exception)
    assert said == "--sensitive goes with --from-images."
