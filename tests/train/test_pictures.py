"""Pictures that are drawn while a model is trained: what the sampling room draws, without a trace in training."""

import json

import pytest
import torch
from held import make_held_out
from test_train import assert_same, metrics

from apart import ended, started
from mapo.api import sample
from mapo.api import train as verb
from mapo.errors import MapoError
from mapo.sample.folder import read_images
from mapo.train.config import make_config
from mapo.train.monitor import pictures as module
from mapo.train.run.folder import Run
from mapo.train.train import train as room
from mapo.watch import hands


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("held") / "pairs", 6, 6)


def run(out, model, pairs, **settings):
    settings = {"optim.lr": 1e-2, "train.steps": 3, "train.pairs_per_step": 2, "train.save_every_steps": 1,
                "train.keep_checkpoints": "all", **settings}  # fmt: skip
    return verb(model=model, pairs=pairs, out=out, settings=settings)


def drawn(out):
    return {step: read_images(Run(out).pictures_at(step)) for step in Run(out).pictures()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sdxl, held):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, sdxl, held, **{"train.pictures_every": 2})
    return out


def test_they_come_before_the_first_step_every_so_many_and_after_the_last(whole):
    rows = drawn(whole)
    assert list(rows) == [0, 2, 3]
    assert [row.prompt for row in rows[0]] == [f"a circle number {k}" for k in (6, 7, 8, 9)]
    assert {row.seed for step in rows for row in rows[step]} == {0}
    assert rows[2][0].model == f"{whole.resolve()}@2" and rows[2][0].revision == "step 2"
    assert len({rows[step][0].sha256 for step in rows}) == 3  # the model has moved
    assert json.loads((Run(whole).pictures_at(2) / "images.json").read_text())["sensitive"] is False


def test_they_are_what_sampling_from_the_checkpoint_draws(tmp_path, whole):
    rows = drawn(whole)[2]
    again = sample(model=f"{whole}@2", prompts=[row.prompt for row in rows], seeds=0, out=tmp_path / "images")
    assert [row.sha256 for row in again.rows] == [row.sha256 for row in rows]


def test_training_is_the_same_to_the_bit_with_and_without(tmp_path, sdxl, held, whole):
    run(tmp_path / "r", sdxl, held)
    assert_same(metrics(tmp_path / "r"), metrics(whole), tolerance=0)
    for ours in (whole / "weights").rglob("*.safetensors"):
        assert ours.read_bytes() == (tmp_path / "r" / ours.relative_to(whole)).read_bytes()


def test_with_a_lora_and_dropout_it_is_the_same_too(tmp_path, sdxl, held):
    how = {"adapter.kind": "lora", "adapter.dropout": 0.5, "adapter.text_encoders": True}
    run(tmp_path / "with", sdxl, held, **how, **{"train.pictures_every": 1})
    run(tmp_path / "without", sdxl, held, **how)
    assert_same(metrics(tmp_path / "with"), metrics(tmp_path / "without"), tolerance=0)
    rows = drawn(tmp_path / "with")
    assert len({rows[step][0].sha256 for step in rows}) == 4
    again = sample(
        model=f"{tmp_path}/with@2", prompts=[row.prompt for row in rows[2]], seeds=0, out=tmp_path / "images"
    )
    for one, two in zip(again.rows, rows[2], strict=True):  # the LoRA is merged there, which rounds
        difference = _pixels(tmp_path / "images" / one.file) - _pixels(Run(tmp_path / "with").pictures_at(2) / two.file)
        assert difference.abs().max() <= 2


def _pixels(path):
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.asarray(Image.open(path), np.int16).copy())


def test_where_the_runs_weights_are_running_means_those_draw(tmp_path, sdxl, held):
    run(tmp_path / "r", sdxl, held, **{"train.pictures_every": 2, "train.ema": 0.5})
    rows = drawn(tmp_path / "r")[3]
    again = sample(model=tmp_path / "r", prompts=[row.prompt for row in rows], seeds=0, out=tmp_path / "images")
    assert [row.sha256 for row in again.rows] == [row.sha256 for row in rows]


@pytest.mark.long
def test_every_family_draws(tmp_path, any_model):
    pairs = make_held_out(tmp_path / "pairs", 3, 2)
    kind = "lora" if "Flux" in (any_model / "model_index.json").read_text() else "full"
    run(tmp_path / "r", any_model, pairs, **{"train.steps": 1, "train.pictures_every": 1, "adapter.kind": kind})
    assert [len(rows) for rows in drawn(tmp_path / "r").values()] == [2, 2]


def test_precisions_of_training_are_those_of_the_pictures(tmp_path, sdxl, held):
    for name, how in {
        "float64": {"train.precision": "float64"},
        "bfloat16": {"train.precision": "bfloat16"},
        "half": {"train.base_precision": "bfloat16", "adapter.kind": "lora"},
    }.items():
        run(tmp_path / name, sdxl, held, **how, **{"train.steps": 1, "train.pictures_every": 1})
        assert len(drawn(tmp_path / name)[1]) == 4, name


def test_prompts_are_those_of_a_file_where_one_is_named(tmp_path, sdxl, held):
    (tmp_path / "prompts.txt").write_text("a red star\na blue star\n")
    how = {"train.steps": 1, "train.pictures_every": 1, "train.picture_prompts": str(tmp_path / "prompts.txt")}
    run(tmp_path / "r", sdxl, held, **how)
    assert [row.prompt for row in drawn(tmp_path / "r")[1]] == ["a red star", "a blue star"]
    with pytest.raises(MapoError, match="there is no"):
        run(tmp_path / "s", sdxl, held, **{**how, "train.picture_prompts": str(tmp_path / "nothing.txt")})
    assert not (tmp_path / "s").exists()


def test_a_run_that_goes_on_draws_what_the_uninterrupted_one_draws(tmp_path, sdxl, held, whole):
    run(tmp_path / "r", sdxl, held, **{"train.pictures_every": 2, "train.steps": 1})
    run(tmp_path / "r", sdxl, held, **{"train.pictures_every": 2})
    ours, theirs = drawn(tmp_path / "r"), drawn(whole)
    for step in (0, 2, 3):
        assert [row.sha256 for row in ours[step]] == [row.sha256 for row in theirs[step]]


@pytest.mark.long
def test_two_processes_draw_once(tmp_path, sdxl, held, whole):
    words = ["-m", "mapo", "train", "--model", sdxl, "--pairs", held, "--out", tmp_path / "r"]
    for name, value in {
        "optim.lr": 1e-2,
        "train.steps": 3,
        "train.pairs_per_step": 2,
        "train.pictures_every": 2,
    }.items():
        words += ["--set", f"{name}={value}"]
    found = ended(started([str(word) for word in words], 2))
    assert [code for code, _, _ in found] == [0, 0], found
    assert [len(rows) for rows in drawn(tmp_path / "r").values()] == [4, 4, 4]
    assert [r.sha256 for r in drawn(tmp_path / "r")[0]] == [r.sha256 for r in drawn(whole)[0]]


def test_where_drawing_fails_training_goes_on_and_says_so_once(tmp_path, sdxl, held, caplog):
    def broken(*given):
        raise MapoError("The memory ran out.")

    values = {"model": str(sdxl), "pairs": str(held), "train": {"steps": 3, "pairs_per_step": 2, "pictures_every": 1}}
    given = hands.hands()
    room(make_config(values), tmp_path / "r", type(given)(prompts=given.prompts, draw=broken))
    assert Run(tmp_path / "r").finished_steps() == 3 and Run(tmp_path / "r").pictures() == []
    assert [r.message for r in caplog.records if "pictures of step" in r.message] == [
        "The pictures of step 0 could not be drawn (The memory ran out). Training goes on without them. Mend that, or set "
        "train.pictures_every=0, before it is started again."
    ]


def test_a_training_without_hands_refuses_pictures_in_a_sentence(tmp_path, sdxl, held):
    values = {"model": str(sdxl), "pairs": str(held), "train": {"steps": 1, "pictures_every": 1}}
    with pytest.raises(MapoError, match=r"without what draws pictures. Start it with `mapo train` or mapo.api.train"):
        room(make_config(values), tmp_path / "r")


def test_whatever_is_drawn_from_the_global_generator_is_put_back():
    before = torch.random.get_rng_state()
    with module.same_randomness():
        torch.randn(5)
    assert torch.equal(torch.random.get_rng_state(), before)
