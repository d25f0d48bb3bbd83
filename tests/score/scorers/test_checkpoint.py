import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from mapo.errors import MapoError
from mapo.pretrained import Repository
from mapo.score.scorers.checkpoint import check_shapes, find_checkpoint, read_tensors
from small_scorers import place_in_hub

REPOSITORY = Repository("some/one", "0123456789abcdef0123456789abcdef01234567")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def pickled(path, value=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.full((2,), value)}, path)
    return path


def test_a_pickle_that_changes_under_its_name_is_refused_until_its_record_is_deleted(tmp_path, cache):
    path = pickled(tmp_path / "w.pt")
    first = find_checkpoint("hps-v2.0", str(path), "x.pt")
    assert find_checkpoint("hps-v2.0", str(path), "x.pt") == first and len(first.revision) == 16
    (record,) = (cache / "mapo" / "pickles").iterdir()
    kept = json.loads(record.read_text())
    assert kept["file"] == str(path) and kept["sha256"].startswith(first.revision)
    pickled(path, 2.0)
    with pytest.raises(MapoError, match="not the file that was used first: its sha256 was .* and is .* delete") as told:
        find_checkpoint("hps-v2.0", str(path), "x.pt")
    assert kept["sha256"] in str(told.value) and str(record) in str(told.value)
    assert json.loads(record.read_text()) == kept
    record.unlink()
    assert find_checkpoint("hps-v2.0", str(path), "x.pt").revision not in ("", first.revision)


def test_files_of_other_names_have_their_own_records(tmp_path, cache):
    one, two = pickled(tmp_path / "a" / "w.pt"), pickled(tmp_path / "b" / "w.pt", 2.0)
    assert find_checkpoint("x", str(one), "").revision != find_checkpoint("x", str(two), "").revision
    assert len(list((cache / "mapo" / "pickles").iterdir())) == 2


def test_a_safetensors_file_may_change_and_is_known_by_its_content(tmp_path, cache):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    first = find_checkpoint("x", str(path), "").revision
    save_file({"a": torch.ones(2)}, path)
    assert find_checkpoint("x", str(path), "").revision != first
    assert not cache.exists()


def test_a_file_of_the_hub_is_remembered_whatever_its_commit(tmp_path):
    pickled(tmp_path / "w.pt")
    place_in_hub(tmp_path / "hub", REPOSITORY, tmp_path, "w.pt")
    found = find_checkpoint("x", REPOSITORY, "w.pt")
    assert found.name == "some/one" and found.revision.startswith(f"{REPOSITORY.commit}/")
    shutil.rmtree(tmp_path / "hub")
    pickled(tmp_path / "w.pt", 3.0)
    newer = Repository("some/one", "f" * 40)
    place_in_hub(tmp_path / "hub", newer, tmp_path, "w.pt")
    with pytest.raises(MapoError, match=r"some/one/w\.pt is a pickle and not the file that was used first"):
        find_checkpoint("x", newer, "w.pt")


def test_a_damaged_record_is_told(tmp_path, cache):
    path = pickled(tmp_path / "w.pt")
    find_checkpoint("x", str(path), "")
    (record,) = (cache / "mapo" / "pickles").iterdir()
    record.write_text("{")
    with pytest.raises(MapoError, match="cannot be read .* delete"):
        find_checkpoint("x", str(path), "")


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MapoError, match="Set XDG_CACHE_HOME"):
        find_checkpoint("x", str(pickled(tmp_path / "w.pt")), "")


def test_a_folder_needs_one_checkpoint_or_the_one_of_the_published_name(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(MapoError, match=r"holds no checkpoint such as known\.pt"):
        find_checkpoint("x", str(folder), "known.pt")
    pickled(folder / "a.pt")
    assert find_checkpoint("x", str(folder), "known.pt").path.name == "a.pt"
    pickled(folder / "b.pth")
    with pytest.raises(MapoError, match=r"several checkpoints, a\.pt and b\.pth. Name the file with x@FILE"):
        find_checkpoint("x", str(folder), "known.pt")
    pickled(folder / "known.pt")
    assert find_checkpoint("x", str(folder), "known.pt").path.name == "known.pt"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/nowhere/w.pt", "there is no file or folder /nowhere/w.pt"),
        ("w.bin", "is not a checkpoint. Give a file that ends in"),
        ("some/other", "hf download some/other --include"),
    ],
)
def test_a_source_that_leads_nowhere_is_one_sentence(tmp_path, monkeypatch, source, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").touch()
    with pytest.raises(MapoError, match=sentence):
        find_checkpoint("x", source, "w.pt")


@pytest.mark.parametrize("value", [[torch.ones(1)], {"a": 3}, {"state_dict": {"a": "b"}}])
def test_what_is_no_named_tensors_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(MapoError, match="holds other things than named tensors"):
        read_tensors("x", tmp_path / "w.pt")


def test_a_torch_that_cannot_read_pickles_safely_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(MapoError, match=r"torch 2\.5\.1 cannot read safely"):
        read_tensors("x", pickled(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({"a": 2, "b": 3, "c": 1}, "it has c, which is not in one"),
        ({"a": 2}, "it lacks b"),
        ({"a": 2, "b": 4}, r"b is \(4,\), not \(3,\)"),
    ],
)
def test_the_first_difference_is_named(tmp_path, found, problem):
    wanted = {"a": torch.empty(2), "b": torch.empty(3)}
    with pytest.raises(MapoError, match=f"is not a model: {problem}"):
        check_shapes("x", tmp_path, {name: torch.empty(size) for name, size in found.items()}, wanted, "a model")
    check_shapes("x", tmp_path, wanted, wanted, "a model")
