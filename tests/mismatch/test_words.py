"""What is said of a mismatch, and the scale that it is compared with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mapo.cli import cli
from mapo.lab.study.domains import DOMAINS
from mapo.lab.study.scale import scale_toml
from mapo.mismatch.mismatch import measure
from mapo.mismatch.words import SCALE, Domain, read_scale, sentences, write_mismatch
from mapo.sample.folder import read_images
from mapo.statistics import Interval
from tiny import make_pairs


def domain(name, distance, gap, **rest):
    return Domain(name, distance, "mini-learned", "1", "", gap, **{"pairs": 256, "best": "mapo", **rest})


def test_a_few_pairs_conclude_nothing_and_are_written_with_bounds_that_json_knows(sdxl, tmp_path):
    folder = make_pairs(tmp_path / "set", 1)
    arguments = ["mismatch", "--model", str(sdxl), "--pairs", str(folder), "--encoder", "none", "--steps", "1"]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "m.json")], catch_exceptions=False)
    assert done.exit_code == 0
    told = "Nothing can be concluded from 1 pair of 1 prompt: it takes 20 and 10. One prompt alone gives no intervals."
    assert told in done.stdout and "inf" not in done.stdout and "[" not in done.stdout
    assert "1 of 1 pair of the split train, 1 prompt; own samples" in done.stdout
    values = json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)
    assert values["conclusive"] is False and values["errors"]["own"]["low"] is None
    assert len(read_images(tmp_path / "m-images")) == 2
    assert "Distance:" not in done.stdout and "Objective" not in done.stdout


def test_what_is_printed_has_every_number_and_claims_nothing_without_a_study(style, tmp_path):
    found = replace(style[0], usual=True)
    lines = write_mismatch(found, tmp_path / "m.json", [])
    text = "\n".join(lines)
    assert f"{found.distances.chosen.value:.3f} [{found.distances.chosen.low:.3f}, " in text
    assert f"{100 * found.errors.chosen.relative.value:+.1f} % [" in text
    assert "times as far from the model's own samples as these are from each other" in text
    assert "Denoising error: higher for the chosen pictures" in text
    assert "the rejected pictures are denoised better than the chosen ones" in text
    assert "there is no study yet to compare this mismatch with" in text
    assert not any(word in text for word in ("mapo won", "dpo", "sft"))
    values = json.loads((tmp_path / "m.json").read_text())
    assert values["says"] == sentences(found, [])
    assert values["errors"]["chosen"]["relative"]["value"] == found.errors.chosen.relative.value


def test_with_a_study_the_words_name_the_domains_around_and_what_won_there(style):
    found = replace(style[0], usual=True)
    near = Interval(0.30, 0.25, 0.35, 128, 128, True)
    found = replace(
        found,
        distances=replace(found.distances, chosen=near),
        errors=replace(found.errors, chosen=replace(found.errors.chosen, relative=near)),
    )
    low = domain("culture", (0.1, 0.08, 0.12), (0.29, 0.26, 0.33), level=["sft", "base"], worse=["dpo"])
    high = domain("style", (0.5, 0.45, 0.6), (3.0, 2.0, 4.0), settings={"beta": 0.1}, worse=["sft", "dpo", "base"])
    text = "\n".join(sentences(found, [high, low]))
    assert "by its distance the set lies between culture and style." in text
    assert "by its relative gap the set lies about as far as culture." in text
    assert "in style, with 256 pairs, mapo (beta = 0.1) won over sft and dpo." in text
    nothing = "in culture, with 256 pairs, no objective was surely better than the untrained model"
    assert f"{nothing}; dpo did worse than the best." in text
    assert "of the built-in world" in text
    assert "below style, the lowest" in "\n".join(sentences(found, [high]))
    assert "above culture, the highest" in "\n".join(sentences(found, [low]))


def test_pictures_are_as_usual_whatever_the_batch_but_not_with_a_prefix(style_set, tmp_path):
    how = {"encoder": "none", "num_pairs": 1, "seeds": [5], "draws": 4}
    assert measure("mini", style_set, tmp_path / "1", **how, images_per_batch=1).usual
    assert not measure("mini", style_set, tmp_path / "2", **how, prefix="sketch image.").usual


def test_only_the_same_encoder_is_compared(style):
    found = replace(style[0], usual=True)
    scale = [domain("style", (0.5, 0.4, 0.6), (3.0, 2.0, 4.0), level=["sft"], worse=["dpo", "base"])]
    text = "\n".join(sentences(found, scale))
    assert "by its distance" in text and "by its relative gap" in text
    assert (
        "in style, with 256 pairs, mapo had the highest score, and sft cannot be told from it; dpo did worse." in text
    )
    assert not style[0].usual  # it took other steps than the model advises
    unlike = "\n".join(sentences(style[0], scale))
    assert "Study:" not in unlike and "nothing is said about them" in unlike
    other = "\n".join(sentences(replace(found, distances=replace(found.distances, encoder="clip")), scale))
    assert "by its distance" not in other and "by its relative gap" in other
    assert "there is no study yet" in "\n".join(sentences(found, []))


def test_a_model_on_which_no_scale_was_measured_is_compared_with_none(style, style_set, tmp_path):
    how = {"encoder": "none", "num_pairs": 2, "seeds": [5], "draws": 4}
    flow = measure("mini-flow", style_set, tmp_path / "images", **how)
    assert style[0].on_scale and flow.built_in and not flow.on_scale and flow.usual
    scale = [domain("style", (0.5, 0.4, 0.6), (3.0, 2.0, 4.0))]
    text = "\n".join(sentences(replace(style[0], usual=True, on_scale=False), scale))
    assert "Study:" not in text and "no scale of this model is known" in text and "in style" not in text


def test_the_scale_of_the_package_can_be_read_and_its_intervals_hold_their_values():
    scale = read_scale()
    assert {one.name for one in scale} <= {domain.title for domain in DOMAINS.values()}
    for one in scale:
        for value, low, high in (one.distance, one.relative_gap):
            assert low <= value <= high
        assert {one.best, *one.level, *one.worse} == {"base", "mapo", "mapo_aaai", "mapo_relative", "sft", "dpo"}
    assert SCALE.is_file()


def test_the_scale_of_the_package_is_that_of_the_committed_study():
    tables = json.loads((Path(__file__).parents[2] / "bench/results/study/tables.json").read_text())
    assert SCALE.read_text() == scale_toml(tables)


def test_a_study_writes_the_scale_that_is_read(tmp_path):
    three = {"value": 0.5, "low": 0.25, "high": 1.0, "prompts": 100}
    measured = {"distance": three, "gap": three, "encoder": ["mini-learned", "1", ""]}
    few = {**measured, "gap": {**three, "prompts": 6}}
    tables = {
        "mismatch": [{"domain": "general", **measured}, {"domain": "personalization", **few}],
        "ranks": [
            {"domain": domain, "pairs": n, "best": ["mapo"], "level": ["sft"], "worse": ["dpo"]}
            for n in (64, 256)
            for domain in ("general", "personalization")
        ],
        "tuned": {"general mapo": {"result": {"settings": {"lr": 1e-4, "beta": 0.1}, "steps": 48}}},
    }
    (tmp_path / "scale.toml").write_text(scale_toml(tables))
    (one,) = read_scale(tmp_path / "scale.toml")
    assert one.name == "general preference" and one.distance == one.relative_gap == (0.5, 0.25, 1)
    assert one.settings == {"lr": 1e-4, "beta": 0.1, "steps": 48} and (one.best, one.level, one.worse) == (
        "mapo",
        ["sft"],
        ["dpo"],
    )
    assert one.pairs == 256
    assert read_scale(tmp_path / "absent.toml") == []
