"""Recipes: every one is read, trains a small model of its family, and says what is published and what is not measured."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from mapo.errors import MapoError
from mapo.train.config import make_config
from mapo.train.recipes.recipe import check_recipe, read_recipe, recipe_list, recipe_names, recipe_text
from mapo.train.verb import train
from tiny import MAKERS, make_pairs

RESULTS = Path(__file__).parents[2] / "bench" / "results"
FAMILIES = {
    "stabilityai/stable-diffusion-xl-base-1.0": "StableDiffusionXLPipeline",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "StableDiffusionPipeline",
    "stabilityai/stable-diffusion-3.5-medium": "StableDiffusion3Pipeline",
    "black-forest-labs/FLUX.1-dev": "FluxPipeline",
    "mini": "mini", "mini-flow": "mini-flow",
}  # fmt: skip
SMALL = {"steps": 1, "pairs_per_step": 2, "pairs_per_device": 1}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    made = {}

    def model(family):
        if family not in MAKERS:
            return family
        if family not in made:
            made[family] = str(MAKERS[family](root / family))
        return made[family]

    return root, make_pairs(root / "pairs", 4), model


@pytest.mark.long
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_trains_a_small_model_of_its_family_with_every_setting_but_size(name, material, tmp_path):
    root, pairs, model = material
    recipe = read_recipe(name)
    family = FAMILIES[recipe["model"]]
    small = {"train": SMALL, "data": {"resolution": 16 if family in MAKERS else 48}}
    cache = (
        root / f"cache-{family}-{recipe.get('data', {}).get('cache_precision')}-{recipe.get('data', {}).get('flip')}"
    )
    assert train(tmp_path / "run", small, name, model=model(family), pairs=str(pairs), cache=str(cache))
    kept = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    for section in ("objective", "adapter", "optim", "data", "train"):
        changed = small.get(section, {})
        for key, value in recipe.get(section, {}).items():
            assert kept[section][key] == changed.get(key, value), key
    assert (tmp_path / "run" / "run.json").exists()


def test_the_recipe_of_the_flow_model_has_what_the_search_of_the_study_chose():
    recipe = read_recipe("mini-flow-cartoon")
    tuned = json.loads((RESULTS / "study-flow" / "tuned.json").read_text())[f"cartoon {recipe['objective']['name']}"][
        "result"
    ]
    settings = {"lr": recipe["optim"]["lr"], "beta": recipe["objective"]["beta"]}
    assert recipe["train"]["steps"] == tuned["steps"]
    assert settings == pytest.approx(tuned["settings"], rel=0.01)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_is_published_what_is_estimated_and_how_to_begin(name):
    text = recipe_text(name)
    assert make_config({**read_recipe(name), "pairs": "work/pairs"}).rate > 0
    assert f"mapo train --recipe {name} --pairs" in text and "Published" in text
    if not name.startswith("mini"):
        assert "Untried at real size" in text and "Memory" in text and "stimated" in text
    assert max(map(len, text.splitlines())) <= 124


def test_what_is_said_on_the_command_wins_over_the_recipe(tmp_path):
    pairs = make_pairs(tmp_path / "pairs", 4)
    small = {"train": SMALL, "optim": {"lr": 3e-5}}
    assert train(tmp_path / "run", small, "mini-cartoon", pairs=str(pairs), objective="mapo_aaai")
    kept = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert kept["optim"]["lr"] == 3e-5 and kept["optim"]["warmup_steps"] == 10
    assert kept["objective"] == {"name": "mapo_aaai", "beta": 8.0}  # the recipe's beta is of another objective


def test_a_recipe_for_another_kind_of_model_is_refused_before_anything_is_written(material, tmp_path):
    pairs = material[1]
    with pytest.raises(MapoError, match="recipe sd15-mapo-lora is for a StableDiffusionPipeline, but mini is a"):
        train(tmp_path / "run", {}, "sd15-mapo-lora", model="mini", pairs=str(pairs))
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    for name, says in (
        ("sdxl-mapo", r"Did you mean sdxl-mapo-full or sdxl-mapo-lora\?"),
        ("mini-carton", r"Did you mean mini-cartoon\?"),
        ("nothing", "There are flux-mapo-lora, mini-cartoon, .*sdxl-pickapic"),
    ):
        with pytest.raises(MapoError, match=f"no recipe '{name}'. {says}.*--config"):
            train(tmp_path / "run", {}, name)
    assert not (tmp_path / "run").exists()


def test_the_list_of_recipes_has_a_line_for_each_that_fits_a_terminal():
    found = recipe_list()
    assert [re.match(r"\S+", line)[0] for line in found] == recipe_names()
    assert max(map(len, found)) <= 118


def test_a_recipe_for_a_much_larger_model_is_refused_and_a_fitting_one_named():
    with pytest.raises(MapoError, match=r"trains at 1024 pixels, but mini draws 48\. Take the recipe mini-\w+, or set"):
        check_recipe("sdxl-mapo-lora", "mini", 1024)
    check_recipe("sdxl-mapo-lora", "mini", 96)
    check_recipe("sdxl-mapo-lora", "mini", None)
