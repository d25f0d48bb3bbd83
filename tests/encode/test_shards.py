"""Several processes fill one cache, which then has the files of one process."""

import shutil

import pytest

from apart import Apart, ended, started
from mapo.encode import fill
from mapo.encode.cache import hold, work_of
from mapo.encode.fill import encode, encode_shard, lacking
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.shards import locked, owned
from tiny import make_pairs

SMALL = 4  # pictures or prompts of a file
MAIN = f"import sys; sys.argv[0] = 'mapo'; from mapo.encode import fill; fill.PER_SHARD = {SMALL}\n"
COMMAND = f"{MAIN}from mapo.cli import main; main()"


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(fill, "PER_SHARD", SMALL)
    monkeypatch.setattr("mapo.encode.cache.PER_SHARD", SMALL)  # of latents that a set keeps


@pytest.fixture(scope="module")
def model(sdxl):
    return open_model(find_model(str(sdxl)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, pairs):
    """The cache of one process: 24 pictures in six files, 8 prompts in two."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "PER_SHARD", SMALL)
        encode(model, PairSet(pairs), folder, images_per_batch=3)
    assert (len(list(folder.glob("latents-*"))), len(list(folder.glob("text-*")))) == (6, 2)
    return folder


def contents(folder):
    """All files but the index, which holds times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.safetensors"}


def share(model, pairs, out, shard, **how):
    return encode_shard(model, PairSet(pairs), out, shard, **{"images_per_batch": 3, **how})


def stopped_at(patch, number):
    real, calls = fill.write_shard, []

    def cut(*given):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        real(*given)

    patch.setattr(fill, "write_shard", cut)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_shards_fill_the_cache_of_one_process_to_the_byte(tmp_path, model, pairs, whole, count):
    done = [share(model, pairs, tmp_path / "c", (index, count)) for index in reversed(range(count))]
    assert [ended for _, ended in done] == [False] * (count - 1) + [True]
    assert contents(tmp_path / "c") == contents(whole)
    cache = done[-1][0]
    assert not any(lacking(PairSet(pairs), cache.index)) and cache.text(PairSet(pairs)[0].prompt)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_shard_that_was_stopped_goes_on_and_encodes_nothing_twice(tmp_path, model, pairs, whole, monkeypatch):
    out, made, real = tmp_path / "c", [], fill.encode_pictures
    monkeypatch.setattr(fill, "encode_pictures", lambda *given: made.extend(given[2]) or real(*given))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped_at(patch, 3)  # its prompts and a file of pictures are written
        share(model, pairs, out, (0, 2))
    assert not share(model, pairs, out, (1, 2))[1]  # the first is not done
    assert share(model, pairs, out, (0, 2))[1]
    assert len(made) == 24 + SMALL and len(set(made)) == 24  # the file that was lost
    assert contents(out) == contents(whole)


def test_one_process_ends_what_shards_began(tmp_path, model, pairs, whole):
    assert not share(model, pairs, tmp_path / "c", (1, 4))[1]
    encode(model, PairSet(pairs), tmp_path / "c", images_per_batch=3)
    assert contents(tmp_path / "c") == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_caches_of_two_machines_are_laid_on_top_of_each_other(tmp_path, model, pairs, whole, monkeypatch):
    for machine in (0, 1):
        (tmp_path / f"m{machine}").mkdir()
        assert not share(model, pairs, tmp_path / f"m{machine}" / "c", (machine, 2))[1]
    shutil.copytree(tmp_path / "m1" / "c", tmp_path / "m0" / "c", dirs_exist_ok=True)
    monkeypatch.setattr(fill, "write_shard", None)  # nothing is left to encode
    encode(model, PairSet(pairs), tmp_path / "m0" / "c")
    assert contents(tmp_path / "m0" / "c") == contents(whole)


def test_a_shard_of_a_whole_cache_has_nothing_to_do(model, pairs, whole, monkeypatch):
    monkeypatch.setattr(fill, "_write", None)
    assert share(model, pairs, whole, (1, 2))[1]
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]


def test_shards_add_to_a_cache_what_another_set_needs(tmp_path, model, pairs, whole):
    other = make_pairs(tmp_path / "other", 6, seed=7, prompts=["a blue square", "a small red circle number 0"])
    for name, shards in (("one", [(0, 1)]), ("many", [(1, 2), (0, 2)])):
        encode(model, PairSet(pairs), tmp_path / name, images_per_batch=3)
        for shard in shards:
            share(model, other, tmp_path / name, shard)
    one, many = contents(tmp_path / "one"), contents(tmp_path / "many")
    assert one.keys() == many.keys() and one == many
    assert one.items() > contents(whole).items()


def test_latents_that_a_set_keeps_are_taken_over_by_shards_too(tmp_path, sdxl):
    from mapo.build.build import build
    from mapo.build.recipe import read_recipe

    build(
        read_recipe("pick-style-cartoon"), str(sdxl), ["a red square", "a blue heart", "a green star"], 7,
        tmp_path / "p", keep="rejected-as-latents", steps=1, images_per_batch=2,
    )  # fmt: skip
    model, pairs = open_model(find_model(str(sdxl))), PairSet(tmp_path / "p")
    encode(model, pairs, tmp_path / "one")
    for index in range(3):
        share(model, tmp_path / "p", tmp_path / "many", (index, 3), images_per_batch=8)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_shards_and_one_process_keep_each_other_away(tmp_path, model, pairs, heard):
    out = tmp_path / "c"
    assert not share(model, pairs, out, (0, 2))[1]
    with locked(work_of(out), ["1-of-2"]):
        with pytest.raises(MapoError, match=r"Another process is at work in .* \(1-of-2\)"):
            encode(model, PairSet(pairs), out)
        with pytest.raises(MapoError, match=r"Another process is at work in .* \(1-of-2\)"):
            share(model, pairs, out, (1, 2))
    with owned(out), pytest.raises(MapoError, match="Another process is writing"):
        share(model, pairs, out, (1, 2))
    with hold(out, wait=True):  # nobody is at work, though the work is not done
        pass
    assert "Waiting" not in heard()
    assert share(model, pairs, out, (1, 2), images_per_batch=8)[1] is False  # the marks went with who held it
    assert share(model, pairs, out, (0, 2), images_per_batch=8)[1] is True


def test_a_training_waits_for_shards_that_are_at_work(tmp_path, model, pairs, heard):
    import threading

    out, stack = tmp_path / "c", []
    assert not share(model, pairs, out, (0, 2))[1]
    begun = locked(work_of(out), ["1-of-2"])
    begun.__enter__()
    threading.Timer(0.5, lambda: (stack.append("ended"), begun.__exit__(None, None, None))).start()
    encode(model, PairSet(pairs), out, wait=True)
    assert stack == ["ended"] and "fill the cache in shards" in heard()


def test_shards_in_another_way_than_the_cache_are_refused(tmp_path, model, pairs, whole):
    before = contents(whole)
    with pytest.raises(MapoError, match="was encoded with flip False"):
        share(model, pairs, whole, (0, 2), flip=True)
    assert contents(whole) == before


def words(sdxl, pairs, folder):
    return ["encode", "--model", sdxl, "--pairs", pairs, "--out", folder / "many", "--images-per-batch", "3"]


@pytest.mark.parametrize("named", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_processes_that_a_launcher_numbers_share_the_set(tmp_path, sdxl, pairs, whole, monkeypatch, capsys, named):
    from mapo.cli import cli

    for rank in ("1", "0"):
        for name, value in zip(named, (rank, "2"), strict=True):
            monkeypatch.setenv(name, value)
        cli.main([str(word) for word in words(sdxl, pairs, tmp_path)], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("shard 1/2 is done") and said[-1].startswith("12 pairs are encoded")
    assert contents(tmp_path / "many") == contents(whole)


@pytest.mark.long
@pytest.mark.parametrize("how", ["as torchrun numbers them", "--shard"])
def test_two_processes_at_the_same_time_fill_one_cache(tmp_path, sdxl, pairs, whole, how):
    command = ["-c", COMMAND, *words(sdxl, pairs, tmp_path)]
    if how == "--shard":
        processes = [Apart(*command, "--shard", f"{index}/2") for index in range(2)]
    else:
        processes = started(command, 2)
    found = ended(processes)
    assert [code for code, _, _ in found] == [0, 0], found
    assert sum("12 pairs are encoded" in out for _, out, _ in found) == 1
    assert contents(tmp_path / "many") == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["many"]


@pytest.mark.long
def test_the_processes_of_a_training_encode_a_share_each_at_the_same_time(tmp_path, sdxl, pairs, whole):
    code = (
        f"{MAIN}from pathlib import Path; from mapo.pairs import PairSet\n"
        "from mapo.models import find_model, open_model\n"
        "m = open_model(find_model(sys.argv[1]))\n"
        "fill.encode(m, PairSet(Path(sys.argv[2])), Path(sys.argv[3]), shard=(int(sys.argv[4]), 2), locked=False,"
        " images_per_batch=3)"
    )
    with hold(tmp_path / "c"):
        made = ended([Apart("-c", code, sdxl, pairs, tmp_path / "c", k) for k in (0, 1)])
        assert [end for end, _, _ in made] == [0, 0], made
    assert contents(tmp_path / "c") == contents(whole)
    assert not any(
        lacking(PairSet(pairs), encode(open_model(find_model(str(sdxl))), PairSet(pairs), tmp_path / "c").index)
    )
