import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from data_fixtures import make_set
from mapo.build.build import build
from mapo.build.candidates import Latents
from mapo.build.recipe import changed_recipe, read_recipe
from mapo.build.remake import remake, remake_pairs
from mapo.cli import cli
from mapo.encode.cache import read_latents
from mapo.errors import MapoError
from mapo.models import find_model
from mapo.pairs.pairs import PairSet, sha256
from tiny import make_lora, make_sd

PROMPTS = ["a red square", "a blue heart", "a green star"]
HOW = {"steps": 2, "images_per_batch": 4}


def test_a_pair_can_be_made_again_from_its_row(tmp_path, sdxl):
    build(read_recipe("pick-style-pixel-art"), str(sdxl), PROMPTS, 6, tmp_path / "p", **HOW)
    for pair in PairSet(tmp_path / "p"):
        assert [sha256(png) for png in remake(pair)] == [pair.chosen, pair.rejected]
    with pytest.raises(MapoError, match="does not say how its pictures were made"):
        remake(replace(pair, meta={}))
    with pytest.raises(MapoError, match=r"revision 0000 of .* which is now"):
        remake(replace(pair, meta={"chosen": {**pair.meta["chosen"], "revision": "0000"}}))


@pytest.mark.parametrize(
    "change", [{"batch_layout": "0/4/4"}, {"batch_layout": "x"}, {"precision": "int3"}, {"seed": None}, {"model": None}]
)
def test_a_row_that_others_wrote_is_refused_in_a_sentence(tmp_path, sdxl, change):
    build(read_recipe("pick-style-pixel-art"), str(sdxl), PROMPTS, 1, tmp_path / "p", **HOW)
    (pair,) = PairSet(tmp_path / "p")
    with pytest.raises(MapoError, match="does not say how its pictures were made"):
        remake(replace(pair, meta={"chosen": {**pair.meta["chosen"], **change}}))


def test_the_built_in_model_makes_a_pair_again_to_the_bit_on_the_command_line(tmp_path):
    prompts = [f"a {size} red circle on a gray background" for size in ("small", "large")]
    build(read_recipe("pick-style-cartoon"), "mini", prompts, 3, tmp_path / "p", steps=3, images_per_batch=2)
    opened = PairSet(tmp_path / "p")
    assert [p.meta["chosen"]["batch_layout"] for p in opened] == ["0/0/2", "0/1/2", "2/0/1"]
    ids = [opened[1].id, opened[2].id]
    words = ["remake", str(tmp_path / "p"), "--pair", ids[0], "--pair", ids[1], "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0 and done.output.count("the same to the bit") == 4
    files = {f.name: f.read_bytes() for f in (tmp_path / "again").iterdir()}
    assert files == {
        f"{pair.id}-{side}.png": opened.image_bytes(getattr(pair, side))
        for pair in (opened[1], opened[2])
        for side in ("chosen", "rejected")
    }


def test_a_picture_that_differs_is_said_and_the_exit_code_is_1(tmp_path, sdxl):
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    build(read_recipe("pick-style-pixel-art"), str(sdxl), PROMPTS, 1, tmp_path / "p", **HOW)
    path = tmp_path / "p" / "pairs.parquet"
    (row,) = pq.read_table(path).to_pylist()
    meta = json.loads(row["meta"])
    meta["rejected"]["seed"] = 5
    pq.write_table(pa.Table.from_pylist([{**row, "meta": json.dumps(meta)}], pq.read_schema(path)), path)
    words = ["remake", str(tmp_path / "p"), "--pair", row["id"], "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1
    first, second = done.output.splitlines()[:2]
    assert "chosen   the same to the bit" in first and "rejected DIFFERS from that of the set" in second


def test_a_picture_that_the_set_keeps_as_latents_is_compared_and_written_nowhere(tmp_path, sdxl):
    recipe = changed_recipe(read_recipe("pick-safety"), ["rejected=Hazard tape image."])
    build(recipe, str(sdxl), PROMPTS, 2, tmp_path / "p", keep="rejected-as-latents", **HOW)
    opened = PairSet(tmp_path / "p")
    found = remake_pairs(opened, [opened[1].id], tmp_path / "again")
    assert [(r.side, r.same) for r in found] == [("chosen", True), ("rejected", True)]
    assert found[1].file is None and [f.name for f in (tmp_path / "again").iterdir()] == [found[0].file.name]


def test_what_cannot_be_made_again_leaves_nothing(tmp_path, sdxl):
    opened = make_set(tmp_path / "p", 2)
    with pytest.raises(MapoError, match="no model of ours made it"):
        remake_pairs(opened, [opened[0].id], tmp_path / "again")
    with pytest.raises(MapoError, match=f"has no pair '12'. Give an id .* such as {opened[0].id}"):
        remake_pairs(opened, [opened[0].id, "12"], tmp_path / "again")
    (tmp_path / "there").mkdir()
    with pytest.raises(MapoError, match="already exists"):
        remake_pairs(opened, [opened[0].id], tmp_path / "there")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["p", "there"]


def test_a_build_leaves_out_layers_as_it_was_told_and_its_pairs_are_made_again_so(tmp_path):
    sd = make_sd(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    made = {}
    for name, more in (("plain", []), ("none", ["--clip-skip", "0"]), ("one", ["--clip-skip", "1"])):
        words = ["build", "pick-style-pixel-art", "--model", sd, "--prompts", tmp_path / "prompts.txt", "--num-pairs", 2,
                 "--steps", 2, "--out", tmp_path / name, *more]  # fmt: skip
        done = CliRunner().invoke(cli, list(map(str, words)))
        assert done.exit_code == 0, done.exception
        pairs = PairSet(tmp_path / name)
        made[name] = [(pair.chosen, pair.rejected) for pair in pairs]
        for pair in pairs:
            assert tuple(sha256(png) for png in remake(pair)) == (pair.chosen, pair.rejected)
    assert made["plain"] == made["none"] != made["one"]
    assert PairSet(tmp_path / "one").info["provenance"]["clip_skip"] == 1
    with pytest.raises(MapoError, match="does not say how its pictures were made"):
        remake(replace(pair, meta={**pair.meta, "clip_skip": "one"}))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model, two LoRAs of it and another VAE."""
    folder = tmp_path_factory.mktemp("parts")
    make_sd(folder / "sd")
    make_sd(folder / "other", seed=1)
    for number, name in enumerate("ab"):
        make_lora(find_model(str(folder / "sd")), folder / f"{name}.safetensors", seed=number)
    return folder


def words_of(parts, out, *more):
    (parts / "prompts.txt").write_text("\n".join([f"{PROMPTS[0]}, " + "very " * 40 + "small", *PROMPTS[1:]]))
    words = ["build", "pick-style-pixel-art", "--model", parts / "sd", "--prompts", parts / "prompts.txt"]
    return [
        str(word) for word in (*words, "--num-pairs", 3, "--steps", 1, "--images-per-batch", 1, "--out", out, *more)
    ]


ASKED = {
    "lora": ("--lora", "a.safetensors:0.5"),
    "vae": ("--vae", "other"),
    "prediction": ("--prediction", "v"),
    "long_prompts": ("--long-prompts", "chunk"),
}


@pytest.mark.parametrize("kind", ASKED)
def test_a_set_is_bound_to_all_that_its_model_was_made_of_and_its_pairs_are_made_again_so(parts, tmp_path, kind):
    flag, name = ASKED[kind]
    more = (flag, str(parts / name) if kind in ("lora", "vae") else name)
    for out, words in (("plain", ()), ("asked", more)):
        done = CliRunner().invoke(cli, words_of(parts, tmp_path / out, *words))
        assert done.exit_code == 0, done.exception
    plain, asked = (PairSet(tmp_path / name) for name in ("plain", "asked"))
    assert [pair.chosen for pair in plain] != [pair.chosen for pair in asked]
    for pair in asked:
        assert tuple(sha256(png) for png in remake(pair)) == (pair.chosen, pair.rejected)
    said = asked.info["provenance"]
    assert asked.info["provenance"]["revision"] != plain.info["provenance"]["revision"]
    if kind == "lora":
        (told,) = said["loras"]
        file = parts / "a.safetensors"
        assert told == {"file": str(file), "weight": 0.5, "sha256": sha256(file.read_bytes())} == pair.meta["loras"][0]
        with pytest.raises(MapoError, match="does not say how its pictures were made"):
            remake(replace(pair, meta={**pair.meta, "loras": [{"file": 3}]}))
    else:
        assert said[kind] == pair.meta[kind] == more[1]


@pytest.mark.parametrize(
    ("kind", "other"), [("lora", "b.safetensors"), ("lora", None), ("vae", None), ("prediction", "epsilon")]
)
def test_an_unfinished_build_does_not_go_on_with_another_part(parts, tmp_path, kind, other):
    flag, name = ASKED[kind]
    in_parts = kind in ("lora", "vae")
    first = (flag, str(parts / name) if in_parts else name)
    judge = ("--judge", "mini:cartoon:2")  # which no picture reaches
    begun = CliRunner().invoke(cli, words_of(parts, tmp_path / "p", *first, *judge))
    assert "Of " in str(begun.exception) and (tmp_path / ".p.build.partial").is_dir()
    then = (flag, str(parts / other) if in_parts else other) if other else ()
    again = CliRunner().invoke(cli, words_of(parts, tmp_path / "p", *then))
    assert "made with other settings" in str(again.exception)
    assert {"lora": "loras", "vae": "vae", "prediction": "prediction"}[kind] in str(again.exception)
    assert CliRunner().invoke(cli, words_of(parts, tmp_path / "p", *first)).exit_code == 0


def test_a_lora_of_another_model_leaves_nothing_behind(parts, sdxl, tmp_path):
    done = CliRunner().invoke(
        cli, [*words_of(parts, tmp_path / "p", "--lora", parts / "a.safetensors"), "--model", str(sdxl)]
    )
    assert done.exit_code and "a.safetensors" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_latents_are_those_of_the_model_that_is_trained_whatever_layers_the_build_leaves_out(tmp_path):
    sd, other = make_sd(tmp_path / "sd"), make_sd(tmp_path / "other", seed=1, layers=2)
    for name, how in (("own", {}), ("others", {"latents_for": str(other)})):
        build(
            read_recipe("pick-style-pixel-art"), str(sd), PROMPTS, 2, tmp_path / name, keep="rejected-as-latents",
            clip_skip=2, **HOW, **how,
        )  # fmt: skip
    for name, model in (("own", sd), ("others", other)):
        key = Latents(find_model(str(model))).key
        assert list(read_latents([tmp_path / name / "latents"], [p.rejected for p in PairSet(tmp_path / name)]))
        assert json.loads((tmp_path / name / "latents" / "cache.json").read_text())["key"] == key.as_json()
