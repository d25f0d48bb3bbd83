"""Each process of a machine computes on a GPU of its own."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mapo
from mapo.api import encode, sample, score
from mapo.devices import best_device, use_own_device
from mapo.train.processes import processes
from mapo.train.processes.processes import Place
from tiny import make_pairs

OF_LAUNCHERS = ("LOCAL_RANK", "SLURM_LOCALID")


@pytest.fixture
def taken(monkeypatch):
    """A machine with two GPUs, as far as choosing one goes; which ones were taken."""
    for name in OF_LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    numbers: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", numbers.append)
    return numbers


@pytest.mark.parametrize(
    ("name", "place", "gpu"), [("LOCAL_RANK", 1, 1), ("SLURM_LOCALID", 3, 1), ("LOCAL_RANK", 0, 0)]
)
def test_a_process_takes_the_gpu_of_its_place_on_the_machine(monkeypatch, taken, name, place, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    use_own_device()
    assert taken == []  # alone it takes the first
    monkeypatch.setenv(name, str(place))
    use_own_device()
    assert taken == [gpu]


def test_every_verb_that_shares_its_work_asks_for_its_gpu_before_it_loads_anything(tmp_path, sdxl, monkeypatch):
    import mapo.encode.verb
    import mapo.sample.sample
    import mapo.score.score

    asked: list[str] = []
    for room in (mapo.encode.verb, mapo.sample.sample, mapo.score.score):
        monkeypatch.setattr(room, "use_own_device", lambda name=room.__name__: asked.append(name))
    encode(model=sdxl, pairs=make_pairs(tmp_path / "pairs", 2), out=tmp_path / "cache")
    images = sample(model=sdxl, prompts=["a red square"], out=tmp_path / "images", steps=1)
    score(images, scorer="guards", out=tmp_path / "scores.parquet")
    assert asked == ["mapo.encode.verb", "mapo.sample.sample", "mapo.score.score"]


def test_the_bench_at_real_size_says_the_most_of_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "bench")
    from real_size import row_of

    steps = [{"seconds": 1.0, "loss": 0.5, "grad_norm": 1.0, "memory": k * 2**30} for k in (2, 5, 4)]
    assert row_of(9.0, 1.0, steps, on_gpu=True)["peak_gpu_gib"] == 5
    assert "peak_gpu_gib" not in row_of(9.0, 1.0, steps, on_gpu=False)


def test_a_macs_gpu_is_for_a_training_in_one_process_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert best_device() == "cpu" and best_device(or_a_macs=True) == "mps"
    assert [processes._device(Place(0, world)).type for world in (1, 2)] == ["mps", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device() == best_device(or_a_macs=True) == "cuda"


def test_no_other_module_chooses_a_device():
    asked = re.compile(r"mps\.is_available|['\"]cuda['\"] if ")
    found = {path.name for path in Path(mapo.__file__).parent.rglob("*.py") if asked.search(path.read_text("utf-8"))}
    assert found == {"devices.py"}


HOLES = """
import ctypes, sys
from mapo.devices import give_back_at_once, give_back_now, keep_freed_blocks, memory_in_use
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def held():
    libc.free(libc.malloc(16 * 2**20))  # from here on glibc keeps blocks of this size
    before, large = memory_in_use("cpu"), []
    for _ in range(20):  # large blocks that go, between small ones that stay
        large.append(libc.malloc(8 * 2**20))
        ctypes.memset(large[-1], 1, 8 * 2**20)
        libc.malloc(500_000)
    for block in large:
        libc.free(block)
    return (memory_in_use("cpu") - before) // 2**20

if sys.argv[1] == "at once":
    print(give_back_at_once(), held(), keep_freed_blocks())
if sys.argv[1] == "afterwards":
    before = memory_in_use("cpu")
    print(held())
    give_back_now()
    print((memory_in_use("cpu") - before) // 2**20)
else:
    print(held())
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed blocks so")
def test_freed_blocks_go_back_at_once_where_that_is_asked_for(monkeypatch):
    def held(how: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", HOLES, how], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert int(held("as it is")[0]) > 140
    done, meanwhile, undone, afterwards = held("at once")
    assert (done, undone) == ("True", "True")
    assert int(meanwhile) < 5
    assert int(afterwards) > 140
    kept, left = map(int, held("afterwards"))
    assert kept > 140 and left < 30
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**25))  # what a person says stands
    done, meanwhile, undone, _ = held("at once")
    assert (done, undone) == ("False", "False")
    assert int(meanwhile) > 140
