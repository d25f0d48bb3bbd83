"""A build that several processes make together."""

import pytest
from builds import BEST, CARTOON, PROMPTS, SAFETY, Fussy, Lightness, contents

import mapo.build.build
import mapo.build.work
import mapo.shards
from apart import Apart, ended, started
from mapo.build.build import build
from mapo.build.judge import Filter
from mapo.errors import MapoError
from mapo.pairs.pairs import PairSet
from mapo.shards import locked

# Shards


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "judge", "keep"), [
    (CARTOON, Filter(Fussy(), "liked", threshold=0.5), "pictures"),
    (BEST, Filter(Lightness(), "all"), "pictures"),
    (SAFETY, Filter(Fussy(), "liked", threshold=0.5), "rejected-as-latents"),
])  # fmt: skip
def test_shards_make_the_set_of_one_process_to_the_byte(tmp_path, sdxl, recipe, judge, keep):
    arguments = (recipe, str(sdxl), PROMPTS, 10)
    how = {"judges": [judge], "keep": keep, "steps": 1, "images_per_batch": 2}
    build(*arguments, tmp_path / "one", **how)
    counts = (3,) if keep == "pictures" else (2,)
    for count in counts:
        out = tmp_path / f"of-{count}"
        ends = [build(*arguments, out, shard=(index, count), **how) for index in reversed(range(count))]
        assert ends[:-1] == [None] * (count - 1) and ends[-1]["pairs"] == 10
        assert contents(out) == contents(tmp_path / "one")
    assert sorted(f.name for f in tmp_path.iterdir()) == [*(f"of-{count}" for count in counts), "one"]


def test_work_folders_of_two_machines_are_copied_together(tmp_path, sdxl):
    import shutil

    how = {"steps": 1, "images_per_batch": 2}
    build(CARTOON, str(sdxl), PROMPTS, 8, tmp_path / "one", **how)
    for machine in (0, 1):
        (tmp_path / f"m{machine}").mkdir()
        assert build(CARTOON, str(sdxl), PROMPTS, 8, tmp_path / f"m{machine}" / "p", shard=(machine, 2), **how) is None
    shutil.copytree(tmp_path / "m1" / ".p.build.partial", tmp_path / "m0" / ".p.build.partial", dirs_exist_ok=True)
    from mapo.sample.sample import Sampler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "batch", None)  # nothing is left to make
        build(CARTOON, str(sdxl), PROMPTS, 8, tmp_path / "m0" / "p", **how)
    assert contents(tmp_path / "m0" / "p") == contents(tmp_path / "one")


def test_processes_that_torchrun_numbers_share_the_work(tmp_path, sdxl, monkeypatch, capsys):
    from mapo.cli import cli

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["build", "pick-style-cartoon", "--model", str(sdxl), "--prompts", str(tmp_path / "prompts.txt"),
               "--num-pairs", "6", "--steps", "1", "--images-per-batch", "2", "--out", str(tmp_path / "p")]  # fmt: skip
    for rank in ("1", "0"):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        cli.main(command, standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("shard 1/2 is done") and said[-1].startswith("6 pairs in")
    build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "one", steps=1, images_per_batch=2, prompts_from="prompts.txt")
    assert contents(tmp_path / "p") == contents(tmp_path / "one")


@pytest.mark.long
@pytest.mark.parametrize("how", ["--shard", "as torchrun numbers them", "the same shard twice"])
def test_processes_at_the_same_time_make_the_set_of_one(tmp_path, sdxl, how):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["-m", "mapo", "build", "pick-style-cartoon", "--num-pairs", "10", "--steps", "1", "--images-per-batch",
               "2", "--model", sdxl, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "many"]  # fmt: skip
    if how == "as torchrun numbers them":
        processes = started(command, 2)
    else:
        shards = {"--shard": ("0/2", "1/2"), "the same shard twice": ("0/1", "0/1")}[how]
        processes = [Apart(*command, "--shard", shard) for shard in shards]
    ends = ended(processes)
    codes, said = [code for code, _, _ in ends], [out + err for _, out, err in ends]
    if how == "the same shard twice":
        assert sorted(codes) == [0, 2], said
        assert "Another process is at work" in said[codes.index(2)] or "already exists" in said[codes.index(2)]
    else:
        assert set(codes) == {0}, said
        assert sum("10 pairs in" in text for text in said) == 1
    build(CARTOON, str(sdxl), PROMPTS, 10, tmp_path / "one", steps=1, images_per_batch=2, prompts_from="prompts.txt")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["many", "one", "prompts.txt"]


def test_a_shard_that_ends_while_another_puts_the_set_together_leaves_it_to_that(tmp_path, sdxl, monkeypatch):
    arguments, how = (CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p"), {"steps": 1, "images_per_batch": 2}
    assert build(*arguments, shard=(0, 2), **how) is None
    real = mapo.shards._gathered

    def slow(*given, **named):
        monkeypatch.undo()
        assert build(*arguments, **how)["pairs"] == 6  # another process is faster from here on
        return real(*given, **named)

    monkeypatch.setattr(mapo.shards, "_gathered", slow)
    assert build(*arguments, shard=(1, 2), **how) is None
    assert len(PairSet(tmp_path / "p")) == 6 and [f.name for f in tmp_path.iterdir()] == ["p"]


def test_a_shard_that_is_at_work_keeps_others_from_writing_the_set(tmp_path, sdxl):
    how = {"steps": 1, "images_per_batch": 2}
    assert build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p", shard=(0, 2), **how) is None
    with locked(tmp_path / ".p.build.partial", ["1-of-2"]):
        with pytest.raises(MapoError, match=r"Another process is at work in .* \(1-of-2\)"):
            build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p", **how)
        with pytest.raises(MapoError, match="Another process is at work"):
            build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p", shard=(1, 2), **how)
    assert build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p", shard=(1, 2), **how)["pairs"] == 6


def test_a_shard_without_a_bar_goes_on(tmp_path, sdxl):
    """Of several shards only the first shows a bar."""
    for _ in range(2):
        counts = build(CARTOON, str(sdxl), PROMPTS, 6, tmp_path / "p", steps=1, images_per_batch=2, shard=(1, 2))
        assert counts is None
