"""Trainings in other processes: one that is killed or a study that is stopped leaves a sentence and no process."""

import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass

import pytest

from mapo.errors import MapoError
from mapo.lab.study.crew import Crew
from mapo.sample.prompts import asked_prompts


@dataclass(frozen=True)
class Named:
    key: str


def test_a_training_that_is_killed_is_said_in_a_sentence_and_what_was_done_is_kept(tmp_path):
    with pytest.raises(MapoError, match="was killed.*same command goes on"), Crew(tmp_path, 1) as crew:
        crew.do("runs", Named("before"), list)
        crew.together([lambda: crew.do("runs", Named("this"), os._exit, 1)])
    assert "before" in (tmp_path / "runs.jsonl").read_text() and "this" not in (tmp_path / "runs.jsonl").read_text()


def test_a_stop_ends_the_training_at_once_and_begins_no_other(tmp_path):
    processes = []

    def search():
        crew.do("runs", Named("one"), time.sleep, 600)
        crew.do("runs", Named("two"), list)

    def stop():
        while not crew.pool._processes:
            time.sleep(0.05)
        processes.extend(crew.pool._processes.values())
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Crew(tmp_path, 1) as crew:
        (tmp_path / "running").mkdir()
        threading.Thread(target=stop, daemon=True).start()
        crew.together([search])
    assert len(processes) == 1 and not processes[0].is_alive()
    assert not (tmp_path / "runs.jsonl").exists() and not (tmp_path / "running").exists()
    with pytest.raises(CancelledError):
        crew.do("runs", Named("three"), list)


def test_what_the_library_says_in_a_training_is_in_the_log(tmp_path):
    with Crew(tmp_path, 1) as crew:
        crew.do("runs", Named("one"), asked_prompts, ["a star", "a star"])
    assert "the list: 1 prompt occurs twice; it is used once.\n" in (tmp_path / "log.txt").read_text()
