"""A process of several that dies: the others end soon, with its reason, and nothing is lost."""

import re

import pytest
from held import make_held_out
from test_processes import command
from test_train import assert_same, metrics, run
from torch.distributed import HashStore

from apart import ended, started
from mapo.train.config import make_config
from mapo.train.processes import peers
from mapo.train.processes.peers import Peers
from mapo.train.train import train

pytestmark = pytest.mark.long

BREAK = """
import os, signal, sys, time
sys.argv[0] = "mapo"
from mapo.train import loop, train
from mapo.train.run import checkpoint
from mapo.train.monitor import evaluation
from mapo.train.processes import peers
peers.BEAT, peers.SILENCE, peers.GRACE = 0.2, 3.0, 1.0
me, how, where, when = int(os.environ["RANK"]), *sys.argv[1].split("-")
del sys.argv[1]
places = {
    "step": (loop, "pair_losses"), "saving": (checkpoint, "whole"), "evaluation": (evaluation, "pair_errors"),
    "writing": (checkpoint, "save_in_turn"),
}
module, name = places[where]
real, calls = getattr(module, name), []
def broken(*args, **named):
    calls.append(1)
    if me == int(os.environ["BREAKS"]) and len(calls) == int(when):
        if how == "raises":
            raise ValueError("the cat lay on the keyboard")
        if how == "full":
            raise OSError(28, "No space left on device", "weights")
        os.kill(os.getpid(), {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}[how])
    return real(*args, **named)
setattr(module, name, broken)
from mapo.cli import main
main()
"""
CASES = [  # how and where, in which process, the settings, what the other one says
    ("raises-step-3", 1, {}, "Process 1 of 2 has stopped: ValueError: the cat lay on the keyboard. So this one stops"),
    ("killed-step-3", 0, {"shard": "fsdp2"}, "has stopped|is gone"),
    ("frozen-step-3", 1, {}, "Process 1 of 2 has not been heard of for 3 seconds. So this one stops too"),
    ("killed-saving-9", 1, {"shard": "fsdp2"}, "has stopped without a word|has not been heard of"),
    ("raises-evaluation-2", 1, {"evaluate_every": 1}, "Process 1 of 2 has stopped: ValueError: the cat lay"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sdxl, pairs, cache):
    return run(tmp_path_factory.mktemp("whole") / "run", sdxl, pairs, cache, steps=4)


def words_for(out, sdxl, pairs, cache, **settings):
    settings = {"steps": 4, "save_every_steps": 1, **settings}
    more = [w for key, value in settings.items() for w in ("--set", f"train.{key}={value}")]
    return command(out, sdxl, pairs, cache, *more)[2:]


@pytest.mark.parametrize(("how", "breaks", "settings", "says"), CASES)
def test_the_others_end_soon_with_its_reason_and_what_was_saved_goes_on(
    tmp_path, sdxl, pairs, cache, whole, how, breaks, settings, says
):
    if how.endswith("evaluation-2"):
        pairs, cache = make_held_out(tmp_path / "pairs"), tmp_path / "cache"
    words = words_for(tmp_path / "r", sdxl, pairs, cache, **settings)
    running = started(["-c", BREAK, how, *words], 2, BREAKS=breaks)
    try:
        _, said = running[1 - breaks].communicate(timeout=100)
    finally:
        running[breaks].kill()
    ended([running[breaks]])
    assert running[1 - breaks].returncode == 2 and re.search(says, said), said
    assert "fault of mapo" not in said and "Traceback" not in said
    if how.endswith("evaluation-2"):
        return
    train(make_config({"model": str(sdxl), "pairs": str(pairs), "train": {"steps": 4}}), tmp_path / "r")
    assert_same(metrics(tmp_path / "r"), whole, tolerance=1e-6)


def test_a_process_that_has_left_is_not_taken_for_one_that_died(monkeypatch):
    monkeypatch.setattr(peers, "SILENCE", -1.0)
    store, heard = HashStore(), {1: (b"", 0.0)}
    one, other = (Peers(store, rank, 2) for rank in (0, 1))
    assert "Process 1 of 2 has not been heard of" in one._gone(store, heard)
    with other:
        pass
    assert one._gone(store, heard) is None


def test_a_disk_that_is_full_ends_all_and_is_said_once(tmp_path, sdxl, pairs, cache, whole):
    """The first file of the second checkpoint cannot be written, while the other process still gives its parts."""
    words = words_for(tmp_path / "r", sdxl, pairs, cache, shard="fsdp2")
    found = ended(started(["-c", BREAK, "full-writing-3", *words], 2, BREAKS=0))
    assert [code for code, _, _ in found] == [2, 2], found
    assert "The checkpoint of step 2 could not be written" in found[0][2] and "checkpoint" not in found[1][2]
    assert "No space left on device). The checkpoint of step 1 is kept. Make room" in found[0][2]
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000001"]
