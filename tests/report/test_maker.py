"""A run is shown beside pictures that it made, and beside no others."""

import json
import shutil

import pytest
from worlds import World

from mapo.errors import MapoError
from mapo.models import find_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs on the built-in model: its own weights, and the same a little changed."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        weights = root / name / "weights" / "unet"
        weights.mkdir(parents=True)
        for file in (find_model("mini").base / "unet").iterdir():
            shutil.copy(file, weights)
        (root / name / "run.json").write_text(
            json.dumps({"base": "mini", "adapter": "full", "denoiser": "weights/unet", "sensitive": False})
        )
        (root / name / "metrics.jsonl").write_text('{"step": 1, "pairs_seen": 2, "margin": 0.1}\n')
        change(root / name, len(name), load_file, save_file)
    return root


def change(run, by, load_file, save_file):
    (path,) = (run / "weights" / "unet").glob("*.safetensors")
    tensors = load_file(path)
    save_file({name: tensor + by * 1e-3 for name, tensor in tensors.items()}, path)


def revision(run):
    return find_model(str(run)).revision()


def world_of(root, run, **changes):
    return World(root, model=str(run.resolve()), revision=revision(run), **changes)


def about_run(summary):
    words = ("cannot be told", "has been trained since")
    return [caution for caution in summary["cautions"] if any(word in caution for word in words)]


def test_the_run_that_made_the_pictures_is_shown_without_a_word(tmp_path, trained):
    assert about_run(world_of(tmp_path, trained / "first").report(run=trained / "first")) == []


def test_a_run_that_has_nothing_to_do_with_the_pictures_is_refused(tmp_path, trained):
    world = world_of(tmp_path, trained / "first")
    with pytest.raises(MapoError) as told:
        world.report(run=trained / "second")
    assert str(told.value) == (
        f"--run: {trained / 'second'} did not make the pictures in {tmp_path / 'after'}; {trained / 'first'} did. "
        f"Give --run {trained / 'first'}, or leave --run out."
    )
    assert not (tmp_path / "report.html").exists()


def test_a_run_is_refused_where_its_base_made_the_pictures(tmp_path, trained):
    world = World(tmp_path, model="mini", revision=find_model("mini").revision())
    with pytest.raises(MapoError, match=r"; mini did\. Give the run that made them, or leave --run out"):
        world.report(run=trained / "first")


def test_a_run_that_was_moved_is_known_by_its_weights(tmp_path, trained):
    shutil.copytree(trained / "first", tmp_path / "elsewhere")
    world = World(tmp_path, model="/gone/run", revision=revision(trained / "first"))
    assert about_run(world.report(run=tmp_path / "elsewhere")) == []


def test_a_run_is_known_by_the_revision_that_0_1_0_wrote(tmp_path, trained):
    new, old = find_model(str(trained / "first")).revisions()
    world = World(tmp_path, model=str(trained / "first"), revision=old)
    assert new != old and about_run(world.report(run=trained / "first")) == []


def test_a_run_that_was_trained_since_is_said_on_the_page(tmp_path, trained):
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(trained / "first", run)
    world = world_of(tmp_path, run)
    change(run, 7, load_file, save_file)
    summary = world.report(run=run)
    assert about_run(summary) == [f"{run} has been trained since it made the pictures after, or has changed."]
    assert "has been trained since it made the pictures after" in world.page


def test_a_run_that_was_moved_and_trained_since_is_not_refused(tmp_path, trained):
    world = World(tmp_path, model="/gone/first", revision="0123456789abcdef")
    (said,) = about_run(world.report(run=trained / "first"))
    assert said.startswith(f"Whether {trained / 'first'} made the pictures after cannot be told")


def test_a_run_without_weights_is_shown_beside_pictures_of_its_name_alone(tmp_path, run):
    world = World(tmp_path, model=str(run.resolve()), revision="0123456789abcdef")
    assert about_run(world.report(run=run)) == []
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other", model="owner/name", revision="0123456789abcdef")
    with pytest.raises(MapoError, match=r"did not make the pictures in .*; owner/name did"):
        other.report(run=run)
