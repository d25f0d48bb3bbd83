"""The command that makes the built-in model, at a size of nothing."""

import json

import pytest
import torch
from click.testing import CliRunner

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.lab.mini.pretrain import Loop, Settings, make_settings
from mapo.models import find_model, open_model
from mapo.texts import read_lines

TINY = ["vae_steps=2", "vae_batch=2", "steps=2", "batch=2", "pictures=128", "save_every_steps=1"]


def test_pretraining_makes_a_model_that_loads_and_goes_on_where_it_stopped(tmp_path):
    words = ["mini", "pretrain", "--out", str(tmp_path / "m")]
    for steps in ("steps=1", "steps=2"):
        done = CliRunner().invoke(
            cli, [*words, *(w for s in (*TINY, steps) for w in ("--set", s))], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
    model = find_model(str(tmp_path / "m"))
    assert open_model(model).layout.side == 48
    log = [json.loads(line) for line in (tmp_path / "m.work" / "log.jsonl").read_text().splitlines()]
    assert [(row["part"], row["step"]) for row in log] == [("vae", 2), ("denoiser", 1), ("denoiser", 2)]


def test_the_model_of_flow_matching_is_made_on_the_parts_of_the_first_and_goes_on_where_it_stopped(tmp_path):
    words = ["mini", "pretrain", "--flow", "--out", str(tmp_path / "m")]
    for steps in ("steps=1", "steps=2"):
        settings = ("batch=2", "pictures=128", "save_every_steps=1", steps)
        done = CliRunner().invoke(cli, [*words, *(w for s in settings for w in ("--set", s))], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    model = open_model(find_model(str(tmp_path / "m")))
    assert model.layout.side == 48 and model.process.shift == 2.0
    assert model.prompt_shapes == {"clip_embeds": (32, 160), "text_embeds": (160,)}
    log = [json.loads(line) for line in (tmp_path / "m.work" / "log.jsonl").read_text().splitlines()]
    assert [(row["part"], row["step"]) for row in log] == [("denoiser", 1), ("denoiser", 2)]


def test_a_log_whose_last_line_is_half_written_goes_on_with_whole_lines(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"part": "x", "step": 1}\n{"part": "x", "st')
    weights = torch.nn.Linear(2, 1)
    loop = Loop("x", weights, 1, 1e-3, Settings(), tmp_path)
    loop.run(lambda step: weights(torch.ones(1, 2)).mean())
    assert [row["step"] for row in read_lines(tmp_path / "log.jsonl")] == [1, 1]
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2


def test_settings_of_pretraining_are_checked():
    assert make_settings({"steps": 5, "lr": 1}, Settings()).steps == 5
    with pytest.raises(MapoError, match="Did you mean 'steps'"):
        make_settings({"stpes": 5}, Settings())
    with pytest.raises(MapoError, match="steps = 'many' has to be a number"):
        make_settings({"steps": "many"}, Settings())
