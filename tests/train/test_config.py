"""What a run can be told, and what is said about a setting that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mapo.errors import MapoError
from mapo.settings import differences, merge, parse_set, read_toml
from mapo.train.config import Config, make_config, to_toml
from mapo.train.sections import AdapterConfig

LEAST = {"model": "mini", "pairs": "work/pairs"}


def told(*assignments: str) -> Config:
    return make_config(merge(dict(LEAST), parse_set(assignments)))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.step=3", "There is no setting 'train.step'. Did you mean 'train.steps'?"),
        ("optim.betas=3", "There is no setting 'optim.betas'. Did you mean 'optim.beta2'?"),
        ("modle=x", "There is no setting 'modle'. Did you mean 'model'?"),
        ("lr=1e-5", "There is no setting 'lr'. Did you mean 'optim.lr'?"),
        ("train.rank=8", "There is no setting 'train.rank'. Did you mean 'adapter.rank'?"),
        (
            "adapter.size=8",
            "There is no setting 'adapter.size'. Known: adapter.alpha, adapter.dropout, adapter.kind, adapter.rank, "
            "adapter.start, adapter.targets, adapter.text_encoders, adapter.token, adapter.token_from.",
        ),
    ],
)
def test_an_unknown_setting_suggests_the_right_one(assignment: str, message: str) -> None:
    with pytest.raises(MapoError) as failure:
        told(assignment)
    assert str(failure.value) == message


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.steps=many", "The setting train.steps = 'many' does not fit: it has to be a whole number."),
        ("train.steps=0", "The setting train.steps = 0 does not fit: it has to be greater than 0."),
        ("train.steps=1.5", "The setting train.steps = 1.5 does not fit"),
        ("train.steps=true", "The setting train.steps = True does not fit: it has to be a number."),
        ("train.steps=inf", "The setting train.steps = inf does not fit: it has to be a finite number."),
        ("train.seed=-1", "The setting train.seed = -1 does not fit"),
        ("optim.lr=nan", "The setting optim.lr = nan does not fit"),
        ("optim.lr=true", "The setting optim.lr = True does not fit: it has to be a number."),
        ("optim.beta2=1", "The setting optim.beta2 = 1 does not fit: it has to be less than 1."),
        ("adapter.kind=loar", "The setting adapter.kind = 'loar' does not fit: it has to be 'full' or 'lora'."),
        ("data.resolution=big", "The setting data.resolution = 'big' does not fit"),
        ("data.flip=maybe", "The setting data.flip = 'maybe' does not fit: it has to be true or false."),
        ("train=5", "train is a section of settings; set one of them, such as train.steps"),
        ("model=5", "The setting model = 5 does not fit: it has to be text."),
        (
            "adapter.targets=to_q",
            "The setting adapter.targets = 'to_q' does not fit: it has to be a list, such as [\"NAME\"].",
        ),
        ("adapter.start=continued", "The section adapter does not fit: start = 'continued' is for a LoRA"),
        ("objective.beta=inf", "does not fit: beta should be a finite number."),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_name(assignment: str, message: str) -> None:
    with pytest.raises(MapoError) as failure:
        told(assignment)
    assert message in str(failure.value)


@pytest.mark.parametrize("left_out", LEAST)
def test_a_missing_setting_is_named(left_out: str) -> None:
    with pytest.raises(MapoError, match=rf"^The setting {left_out} is missing\.$"):
        make_config({k: v for k, v in LEAST.items() if k != left_out})


@pytest.mark.parametrize(
    ("text", "value"), [("False", False), ("false", False), ("0", False), ("no", False), ("True", True), ("true", True)]
)
def test_a_switch_that_reads_false_is_off(text: str, value: bool) -> None:
    assert told(f"train.gradient_checkpointing={text}").train.gradient_checkpointing is value
    assert told(f"data.flip={text}").data.flip is value


def test_assignments_are_toml_or_else_text() -> None:
    assert parse_set(["optim.lr=1e-5", "train.steps = 100", "data.flip=true", 'model="a b"', "pairs=work/p=q"]) == {
        "optim": {"lr": 1e-5},
        "train": {"steps": 100},
        "data": {"flip": True},
        "model": "a b",
        "pairs": "work/p=q",
    }


@pytest.mark.parametrize("text", ["2026-11-22", "12:30:00", "2026-11-22T12:30:00", "C:\\pairs", "a # b", "", "1\nx=2"])
def test_what_is_no_toml_value_of_ours_is_a_text(text: str) -> None:
    assert parse_set([f"pairs={text}"]) == {"pairs": text}


@pytest.mark.parametrize("assignment", ["optim.lr", "=3", " = 3", ""])
def test_an_assignment_without_a_name_or_value_shows_how_it_looks(assignment: str) -> None:
    with pytest.raises(MapoError, match=r"does not look like section\.key=value, for example optim\.lr=1e-5"):
        parse_set([assignment])


def test_a_path_in_the_home_folder_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = 'cache = "~/c"\nloras = ["~/x.safetensors:0.8", "~"]\n[adapter]\ntoken = "<~/>"\n'
    (tmp_path / "own.toml").write_text(text)
    told = {"cache": "/home/me/c", "loras": ["/home/me/x.safetensors:0.8", "~"], "adapter": {"token": "<~/>"}}
    assert read_toml(tmp_path / "own.toml") == told
    assert parse_set(["cache=~/c", 'loras=["~/x.safetensors:0.8", "~"]', "adapter.token=<~/>"]) == told


def test_the_last_assignment_counts() -> None:
    assert parse_set(["a.b=1", "a.c=2", "a.b=3", "d=1", "d.e=2"]) == {"a": {"b": 3, "c": 2}, "d": {"e": 2}}


def test_one_layer_is_laid_on_another_section_by_section() -> None:
    under: dict[str, Any] = {"model": "a", "train": {"steps": 1, "seed": 2}}
    over = {"train": {"steps": 5}, "optim": {"lr": 1.0, "deep": {"x": 1}}}
    assert merge(under, over) is under
    assert under == {"model": "a", "train": {"steps": 5, "seed": 2}, "optim": {"lr": 1.0, "deep": {"x": 1}}}


def test_laying_layers_on_each_other_changes_only_the_lowest() -> None:
    over = {"a": {"b": {"c": 1}}}
    merge(merge({}, over), {"a": {"b": {"d": 2}}})
    assert over == {"a": {"b": {"c": 1}}}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        told().train.steps = 5


def test_the_knobs_of_an_objective_are_kept_as_they_are() -> None:
    assert told("objective.name=dpo", "objective.beta=5000").objective.settings == {"beta": 5000}
    assert told().objective.settings == {}


FLOATS = st.floats(1e-12, 0.999)
COUNTS = st.integers(1, 2**62)
TEXT = st.text(st.characters(codec="utf-8"))


def choices(section: type[Any], name: str) -> st.SearchStrategy[str]:
    return st.sampled_from(get_args(section.model_fields[name].annotation))


SETTINGS = st.fixed_dictionaries(
    {"model": TEXT, "pairs": TEXT},
    optional={
        "cache": TEXT,
        "objective": st.dictionaries(
            TEXT.filter(lambda k: k != "name"), FLOATS | st.integers(-(2**62), 2**62), max_size=3
        ),
        "adapter": st.fixed_dictionaries({}, optional={"kind": choices(AdapterConfig, "kind"), "rank": COUNTS}),
        "optim": st.fixed_dictionaries(
            {}, optional={"lr": FLOATS, "beta1": FLOATS, "eps": FLOATS, "warmup_steps": COUNTS}
        ),
        "data": st.fixed_dictionaries({}, optional={"resolution": st.none() | COUNTS, "flip": st.booleans()}),
        "train": st.fixed_dictionaries({}, optional={"steps": COUNTS, "pairs_per_device": st.none() | COUNTS}),
    },
)


@given(SETTINGS)
def test_a_configuration_survives_toml(values: dict[str, Any]) -> None:
    import tomllib

    config = make_config(values)
    again = make_config(tomllib.loads(to_toml(config)))
    assert again == config
    assert to_toml(again) == to_toml(config)
    assert differences(config.model_dump(), again.model_dump()) == []


def test_a_toml_file_and_flags_make_one_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "mini"\npairs = "p"\n[optim]\nlr = 1e-4\n[train]\nsteps = 7\n', "utf-8-sig")
    config = make_config(merge(read_toml(path), parse_set(["train.steps=8"])))
    assert (config.model, config.optim.lr, config.train.steps) == ("mini", 1e-4, 8)


@pytest.mark.parametrize("content", [b"model = ", b"model = 'a'\nmodel = 'b'", b"\xff", b"a\0"])
def test_a_toml_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(MapoError, match=r"^--config: .*run\.toml cannot be read"):
        read_toml(tmp_path / "run.toml")


def test_a_toml_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MapoError, match=r"^--config: there is no file .*run\.toml\.$"):
        read_toml(tmp_path / "run.toml")
    with pytest.raises(MapoError, match="cannot be read"):
        read_toml(tmp_path)


def test_differences_are_listed_by_their_dotted_names() -> None:
    one = told("train.steps=5", "objective.beta=0.1").model_dump()
    two = told("train.steps=6", "optim.lr=1", "cache=c").model_dump()
    assert differences(one, two) == ["cache", "objective.beta", "optim.lr", "train.steps"]
    assert differences(one, one) == []
    assert differences({"a": {"b": 1}}, {"a": 1}) == ["a"]
    assert differences({"a": None}, {}) == []
