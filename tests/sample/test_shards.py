"""Several processes fill one images folder, which is then that of one process, byte for byte."""

import shutil
from pathlib import Path

import pytest

import mapo.sample.filling
from apart import Apart, ended, started
from mapo.errors import MapoError
from mapo.sample.folder import read_images
from mapo.sample.sample import Sampler, sample
from mapo.shards import locked, owned

PROMPTS = ["a small red circle", "a large blue star", "a green heart", "two yellow moons"]
HOW = {"steps": 1, "images_per_batch": 3}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sdxl):
    """The folder of one process: twelve pictures in four batches."""
    folder = tmp_path_factory.mktemp("whole") / "images"
    sample(str(sdxl), PROMPTS, [0, 1, 2], folder, **HOW)
    assert len(contents(folder)) == 14
    return folder


def draw(sdxl, out, shard, seeds=(0, 1, 2), **how):
    return sample(str(sdxl), PROMPTS, list(seeds), out, shard=shard, **{**HOW, **how})


def stopped_at(monkeypatch, number, stop=KeyboardInterrupt):
    """Stop when pictures are written for the ``number``-th time."""
    real, calls = mapo.sample.filling.append_images, []

    def cut(*given):
        calls.append(1)
        if len(calls) == number:
            raise stop
        real(*given)

    monkeypatch.setattr(mapo.sample.filling, "append_images", cut)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("last", [0, -1])
def test_shards_fill_the_folder_of_one_process_to_the_byte(tmp_path, sdxl, whole, count, last):
    order = list(range(count))
    order.append(order.pop(last))
    done = [draw(sdxl, tmp_path / "many", (index, count)) for index in order]
    assert done[:-1] == [None] * (count - 1)
    assert done[-1] == read_images(whole)
    assert contents(tmp_path / "many") == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["many"]


def test_the_folder_in_which_one_stands_may_be_filled(tmp_path, sdxl, whole, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert draw(sdxl, Path(), (0, 1)) == read_images(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_share_that_was_stopped_goes_on_and_draws_nothing_twice(tmp_path, sdxl, whole, monkeypatch):
    out, drawn, real = tmp_path / "i", [], Sampler.batch
    monkeypatch.setattr(Sampler, "batch", lambda self, jobs, how: drawn.append(jobs[0]) or real(self, jobs, how))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped_at(patch, 2)
        draw(sdxl, out, (0, 2))
    assert draw(sdxl, out, (1, 2)) is None  # the first is not done
    assert len(drawn) == 4
    assert draw(sdxl, out, (0, 2)) == read_images(whole)
    assert len(drawn) == 5 and drawn[-1] == drawn[1]  # the batch that was lost
    assert contents(out) == contents(whole)


def test_a_kill_while_the_manifest_is_put_together_loses_nothing(tmp_path, sdxl, whole, monkeypatch):
    out = tmp_path / "i"
    assert draw(sdxl, out, (0, 2)) is None
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mapo.sample.filling, "write_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        draw(sdxl, out, (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "batch", None)  # nothing is left to draw
        draw(sdxl, out, (0, 1))
    assert contents(out) == contents(whole) and [path.name for path in tmp_path.iterdir()] == ["i"]


def test_one_process_ends_what_shards_began(tmp_path, sdxl, whole):
    assert draw(sdxl, tmp_path / "i", (1, 4)) is None
    assert draw(sdxl, tmp_path / "i", (3, 4)) is None
    assert draw(sdxl, tmp_path / "i", (0, 1)) == read_images(whole)
    assert contents(tmp_path / "i") == contents(whole) and [path.name for path in tmp_path.iterdir()] == ["i"]


def test_folders_of_two_machines_are_copied_together(tmp_path, sdxl, whole, monkeypatch):
    for machine in (0, 1):
        (tmp_path / f"m{machine}").mkdir()
        assert draw(sdxl, tmp_path / f"m{machine}" / "i", (machine, 2)) is None
    shutil.copytree(tmp_path / "m1", tmp_path / "m0", dirs_exist_ok=True)
    monkeypatch.setattr(Sampler, "batch", None)  # nothing is left to draw
    draw(sdxl, tmp_path / "m0" / "i", (0, 1))
    assert contents(tmp_path / "m0" / "i") == contents(whole)
    assert [path.name for path in (tmp_path / "m0").iterdir()] == ["i"]


def test_shards_make_a_picture_again_that_is_gone_or_damaged(tmp_path, sdxl, whole):
    out = shutil.copytree(whole, tmp_path / "i")
    rows = read_images(out)
    (out / rows[0].file).unlink()
    (out / rows[5].file).write_bytes(b"half")
    assert draw(sdxl, out, (0, 2)) is None and len(draw(sdxl, out, (1, 2))) == 12
    files = contents(out)
    assert {name: data for name, data in files.items() if name != "manifest.jsonl"} == {
        name: data for name, data in contents(whole).items() if name != "manifest.jsonl"
    }
    assert sorted(row.file for row in read_images(out)) == sorted(row.file for row in rows)


def test_shards_add_further_seeds_to_a_folder_as_one_process_does(tmp_path, sdxl):
    for name, shards in (("one", [(0, 1)]), ("many", [(1, 2), (0, 2)])):
        draw(sdxl, tmp_path / name, (0, 1), seeds=[0])
        for shard in shards:
            draw(sdxl, tmp_path / name, shard, seeds=[0, 1])
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_a_shard_of_a_full_folder_has_nothing_to_do(tmp_path, sdxl, whole, monkeypatch):
    monkeypatch.setattr(Sampler, "batch", None)
    assert draw(sdxl, whole, (1, 2)) == read_images(whole)
    assert not list(whole.parent.glob(".*"))


def test_a_prompt_that_comes_twice_in_a_batch_is_drawn_once(tmp_path, sdxl):
    rows = sample(str(sdxl), [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [0], tmp_path / "i", steps=1)
    assert len(rows) == 3 and rows[0] == rows[2] and len(read_images(tmp_path / "i")) == 2


def test_shards_with_other_settings_are_refused_and_leave_nothing(tmp_path, sdxl, whole):
    before = contents(whole)
    with pytest.raises(MapoError, match=r"made with other settings \(steps\)"):
        draw(sdxl, whole, (0, 2), steps=2)
    assert contents(whole) == before and not list(whole.parent.glob(".*"))
    assert draw(sdxl, tmp_path / "i", (0, 2)) is None
    with pytest.raises(MapoError, match=r"made with other settings \(guidance\)"):
        draw(sdxl, tmp_path / "i", (1, 2), guidance=1.5)
    assert draw(sdxl, tmp_path / "i", (1, 2)) is not None


def test_a_shard_at_work_keeps_one_process_away_and_the_other_way_round(tmp_path, sdxl):
    out = tmp_path / "i"
    assert draw(sdxl, out, (0, 2)) is None
    with locked(tmp_path / ".i.sample.partial", ["1-of-2"]):
        with pytest.raises(MapoError, match=r"Another process is at work in .* \(1-of-2\)"):
            draw(sdxl, out, (0, 1))
        with pytest.raises(MapoError, match=r"Another process is at work in .* \(1-of-2\)"):
            draw(sdxl, out, (1, 2))
    with owned(out), pytest.raises(MapoError, match="Another process is writing"):
        draw(sdxl, out, (1, 2))
    assert len(draw(sdxl, out, (1, 2))) == 12


def words(sdxl, folder):
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return ["sample", "--model", str(sdxl), "--prompts", str(folder / "prompts.txt"), "--seeds", "0-2", "--steps", "1",
            "--images-per-batch", "3", "--out", str(folder / "many")]  # fmt: skip


@pytest.mark.parametrize("named", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_processes_that_a_launcher_numbers_share_the_pictures(tmp_path, sdxl, whole, monkeypatch, capsys, named):
    from mapo.cli import cli

    for rank in ("1", "0"):
        for name, value in zip(named, (rank, "2"), strict=True):
            monkeypatch.setenv(name, value)
        cli.main([*words(sdxl, tmp_path), "--grid"], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("shard 1/2 is done") and said[-2].startswith("12 pictures in")
    assert (tmp_path / "many" / "grid.png").exists()
    assert {k: v for k, v in contents(tmp_path / "many").items() if k != "grid.png"} == contents(whole)


@pytest.mark.long
@pytest.mark.parametrize("how", ["as torchrun numbers them", "--shard"])
def test_two_processes_at_the_same_time_fill_one_folder(tmp_path, sdxl, whole, how):
    command = ["-m", "mapo", *words(sdxl, tmp_path)]
    if how == "--shard":
        processes = [Apart(*command, "--shard", f"{index}/2") for index in range(2)]
    else:
        processes = started(command, 2)
    found = ended(processes)
    assert [code for code, _, _ in found] == [0, 0], found
    assert sum("12 pictures in" in out for _, out, _ in found) == 1
    assert contents(tmp_path / "many") == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "prompts.txt"]


def test_a_folder_of_which_shares_lack_is_read_by_nobody_and_says_why(tmp_path, sdxl):
    assert draw(sdxl, tmp_path / "many", (0, 2)) is None
    with pytest.raises(MapoError, match=r"many is not finished: .*Give the same command again, or with --shard 0/1"):
        read_images(tmp_path / "many")
