import pytest

from mapo.build.work import open_work
from mapo.errors import MapoError
from mapo.shards import locked, mark, parse_shard, shard_of_environment


def test_shards_are_counted_from_nought():
    assert parse_shard("0/1") == (0, 1) and parse_shard(" 3/4 ") == (3, 4)
    for text in ("4/4", "1", "1/0", "-1/2", "a/b", "1/2/3"):
        with pytest.raises(MapoError, match="I from 0 to N - 1"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, (1, 3)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 2)),
    ],
)
def test_torchrun_and_slurm_number_their_processes(monkeypatch, environment, shard):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shard_of_environment() == shard


def test_a_work_folder_belongs_to_its_settings(tmp_path):
    folder = open_work(tmp_path / "p", {"a": {"b": 1}, "c": "x"})
    assert open_work(tmp_path / "p", {"a": {"b": 1}, "c": "x"}) == folder
    with pytest.raises(MapoError, match=r"other settings: a\.b \(1, now 2\), d \(null, now \[3\]\)\. .*delete"):
        open_work(tmp_path / "p", {"a": {"b": 2}, "c": "x", "d": (3,)})


def test_a_work_folder_may_name_an_older_form_of_its_models_revision(tmp_path):
    folder = open_work(tmp_path / "p", {"revision": "old"})
    assert open_work(tmp_path / "p", {"revision": "new"}, ("new", "old")) == folder
    with pytest.raises(MapoError, match="other settings: revision"):
        open_work(tmp_path / "p", {"revision": "new"}, ("new", "other"))


def test_a_lock_is_held_by_one_and_ends_with_its_block(tmp_path):
    with locked(tmp_path, ["a"]):
        with pytest.raises(MapoError, match=r"Another process is at work .*\(a\)"), locked(tmp_path, ["a", "b"]):
            pass
        with locked(tmp_path, ["b"]):
            pass
    with locked(tmp_path, ["a", "b"]):
        pass


def test_all_shards_are_done_when_the_last_is(tmp_path):
    assert not mark(tmp_path, (0, 2), done=True)
    assert mark(tmp_path, (1, 2), done=True)
    assert not mark(tmp_path, (0, 2), done=False)
    assert not mark(tmp_path, (1, 2), done=True)
