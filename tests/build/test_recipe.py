import pytest

from mapo.build.recipe import changed_recipe, read_recipe, recipe_names
from mapo.errors import MapoError

STYLES = ("pick-style-cartoon", "pick-style-pixel-art", "pick-safety", "pick-culture")


def written(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_every_recipe_of_the_package_is_read():
    assert recipe_names() == sorted([*STYLES, *(f"{name}-v2" for name in STYLES), "best-of-k", "pick-safety-hazard"])
    for name in recipe_names():
        recipe = changed_recipe(read_recipe(name))
        assert recipe.name == name and recipe.about and len(recipe.prefixes) >= 2


@pytest.mark.parametrize("name", STYLES)
def test_the_second_version_has_context_prompts_a_judge_above_five_and_its_own_model(name):
    first, second = read_recipe(name), read_recipe(f"{name}-v2")
    assert (first.context, first.threshold) == (False, None)
    assert (second.context, second.threshold) == (True, 5.0)
    assert "sdxl" in first.model.lower() or "xl-base" in first.model
    assert second.model.endswith("FLUX.1-schnell")
    assert second.prefixes["chosen"] == first.prefixes["chosen"]
    assert first.sensitive == second.sensitive == (name == "pick-safety")


def test_advice_on_sampling_is_for_the_recipe_s_own_model_alone():
    recipe = read_recipe("pick-style-cartoon-v2")
    for model in ("black-forest-labs/FLUX.1-schnell", "/models/FLUX.1-schnell"):
        assert recipe.advice(model) == {"steps": 4, "guidance": 0.0}
    assert recipe.advice("mini") == {} == read_recipe("pick-safety-hazard").advice("mini")


def test_prefixes_candidates_and_seeds_can_be_changed():
    changed = changed_recipe(read_recipe("pick-safety"), ["rejected=Blood = red."], seeds="other")
    assert changed.prefixes == {"chosen": "", "rejected": "Blood = red."} and changed.seeds == "other"
    assert changed.sensitive
    assert len(changed_recipe(read_recipe("best-of-k"), candidates=7).prefixes) == 7


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pick-safety", {"prefixes": ["rejected"]}, "write chosen=WORDS or rejected=WORDS"),
        ("pick-safety", {"prefixes": ["loser=x"]}, "write chosen=WORDS or rejected=WORDS"),
        ("pick-safety", {"prefixes": ["rejected="]}, "same prefix and the same seed"),
        ("pick-safety", {"candidates": 3}, "makes two pictures of a prompt"),
        ("best-of-k", {"prefixes": ["rejected=x"]}, "which have no prefixes"),
        ("best-of-k", {"candidates": 1}, "candidates does not fit: it has to be at least 2"),
        ("best-of-k", {"seeds": "same"}, "same prefix and the same seed"),
    ],
)
def test_changes_that_make_no_sense_are_refused(name, change, message):
    with pytest.raises(MapoError, match=message):
        changed_recipe(read_recipe(name), **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[chosen]\nprefix = 'x'\n", "one of them is missing"),
        ("", "needs .chosen. prefix and .rejected. prefix, or a number of candidates"),
        ("candidates = 3\n[chosen]\nprefix = 'x'\n", "or a number of candidates"),
        ("candidtes = 3", "no key 'candidtes'. Did you mean 'candidates'"),
        ("candidates = 'many'", "candidates does not fit"),
        ("[chosen]\nprefx = 'x'\n[rejected]\n", "chosen.prefx does not fit"),
        ("[chosen", "cannot be read"),
    ],
)
def test_a_recipe_file_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(MapoError, match=message):
        read_recipe(written(tmp_path, text))


def test_a_recipe_that_is_not_there_is_refused():
    with pytest.raises(MapoError, match="Did you mean 'pick-style-cartoon'"):
        read_recipe("pick-style-kartoon")
    with pytest.raises(MapoError, match="no recipe file mine.toml"):
        read_recipe("mine.toml")


def test_a_recipe_file_with_equal_prefixes_needs_other_seeds(tmp_path):
    text = '[chosen]\nprefix = "x"\n[rejected]\nprefix = "x"\n'
    with pytest.raises(MapoError, match="the same prefix"):
        changed_recipe(read_recipe(written(tmp_path, text)))
    assert changed_recipe(read_recipe(written(tmp_path, text)), seeds="other").prefixes["chosen"] == "x"


def test_one_prefix_needs_no_list():
    assert changed_recipe(read_recipe("pick-safety"), "rejected=Blood.").prefixes["rejected"] == "Blood."


def test_the_model_of_a_recipe_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = 'judges = ["mini-search:cartoon"]\nmodel = "~/m"\n[chosen]\n[rejected]\n'
    assert read_recipe(written(tmp_path, text)).model == "/home/me/m"
