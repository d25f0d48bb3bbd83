import json

import pytest

from mapo.build import build, parse_filter, read_recipe, recipe_names
from mapo.errors import MapoError
from mapo.pairs import PairSet

PROMPTS = ["a red square", "a blue heart", "a green star"]


def test_every_recipe_of_the_package_is_read():
    assert recipe_names() == ["pick-safety-hazard", "pick-style-cartoon", "pick-style-pixel-art"]
    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.name == name and recipe.about and recipe.chosen_prefix != recipe.rejected_prefix


def test_pairs_share_prompt_seed_and_noise_and_differ_in_the_prefix(tmp_path, sdxl):
    counts = build(
        read_recipe("pick-style-cartoon"), str(sdxl), PROMPTS, 7, tmp_path / "p", steps=2, images_per_batch=4
    )
    pairs = list(PairSet(tmp_path / "p"))
    assert len(pairs) == 7 and counts["judged_out"] == 0
    assert [p.prompt for p in pairs] == [PROMPTS[k % 3] for k in range(7)]
    for k, pair in enumerate(pairs):
        chosen, rejected = pair.meta["chosen"], pair.meta["rejected"]
        assert chosen["seed"] == rejected["seed"] == k // 3
        assert chosen["noise_seed"] == rejected["noise_seed"]
        assert (chosen["prefix"], rejected["prefix"]) == ("Disney style animated image.", "Realistic 8k image.")
    provenance = json.loads((tmp_path / "p" / "set.json").read_text())["provenance"]
    assert provenance["model"] == str(sdxl) and len(provenance["revision"]) == 16
    assert [f.name for f in tmp_path.iterdir()] == ["p"]


def test_a_pair_can_be_made_again_from_its_row(tmp_path, sdxl):
    import torch
    from diffusers import StableDiffusionXLPipeline

    from mapo.images import png_bytes
    from mapo.pairs import sha256

    build(read_recipe("pick-style-pixel-art"), str(sdxl), PROMPTS, 1, tmp_path / "p", steps=2, images_per_batch=1)
    pair = PairSet(tmp_path / "p")[0]
    how = pair.meta["chosen"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(how["model"], add_watermarker=False)
    generator = [torch.Generator().manual_seed(how["noise_seed"])]
    again = pipeline(
        [f"{how['prefix']} {pair.prompt}"],
        num_inference_steps=how["steps"],
        guidance_scale=how["guidance"],
        width=how["width"],
        height=how["height"],
        generator=generator,
    ).images[0]
    assert sha256(png_bytes(again)) == pair.chosen


def test_an_interrupted_build_goes_on_and_makes_the_same_set(tmp_path, sdxl, monkeypatch):
    import mapo.sample

    how = {"steps": 2, "images_per_batch": 2}
    build(read_recipe("pick-style-cartoon"), str(sdxl), PROMPTS, 5, tmp_path / "whole", **how)
    real, calls = mapo.sample.append_images, []

    def cut(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(mapo.sample, "append_images", cut)
    with pytest.raises(KeyboardInterrupt):
        build(read_recipe("pick-style-cartoon"), str(sdxl), PROMPTS, 5, tmp_path / "cut", **how)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(mapo.sample, "append_images", real)
    build(read_recipe("pick-style-cartoon"), str(sdxl), PROMPTS, 5, tmp_path / "cut", **how)
    assert PairSet(tmp_path / "cut").fingerprint() == PairSet(tmp_path / "whole").fingerprint()


class Fussy:
    """A scorer that likes every second picture it is shown."""

    name, version, revision, metrics, needs_reference = "fussy", "1", "", ("liked",), False

    def __init__(self):
        self.seen = 0

    def __call__(self, pictures, prompts, references=None):
        assert len(pictures) == len(prompts)
        self.seen += len(pictures)
        return {"liked": [float(k % 2 == 0 and self.seen % 8 == len(pictures)) for k in range(len(pictures))]}


def test_a_judge_keeps_only_pairs_whose_chosen_picture_it_prefers(tmp_path, sdxl):
    from mapo.build import Filter

    judge = Filter(Fussy(), "liked", 1)
    how = {"steps": 2, "images_per_batch": 2}
    counts = build(read_recipe("pick-style-cartoon"), str(sdxl), PROMPTS, 3, tmp_path / "p", judges=[judge], **how)
    assert len(PairSet(tmp_path / "p")) == 3
    assert counts["judged_out"] >= 2


def test_a_judge_that_keeps_too_few_is_told_and_nothing_is_written(tmp_path, sdxl):
    class Never(Fussy):
        def __call__(self, pictures, prompts, references=None):
            return {"liked": [0.0] * len(pictures)}

    from mapo.build import Filter

    with pytest.raises(MapoError, match="Of 10 tried pairs only 0 were kept"):
        build(
            read_recipe("pick-style-cartoon"), str(sdxl), PROMPTS, 2, tmp_path / "p",
            judges=[Filter(Never(), "liked")], steps=1, images_per_batch=4,
        )  # fmt: skip
    assert not (tmp_path / "p").exists()


def test_judges_are_named_with_their_metric():
    found = parse_filter("mini-search:-hazard")
    assert (found.scorer.name, found.metric, found.sign, found.threshold) == ("mini-search", "hazard", -1, None)
    assert parse_filter("mini-search:prompt_following:0.5").threshold == 0.5
    with pytest.raises(MapoError, match="the threshold 'x' is no number"):
        parse_filter("mini-search:hazard:x")
    with pytest.raises(MapoError, match="Did you mean 'cartoon'"):
        parse_filter("mini-search:cartoons")
    with pytest.raises(MapoError, match="no scorer 'mini-serch'"):
        parse_filter("mini-serch:cartoon")


def test_a_recipe_file_with_equal_prefixes_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[chosen]\nprefix = "x"\n[rejected]\nprefix = "x"\n')
    with pytest.raises(MapoError, match="the same prefix"):
        read_recipe(str(path))
