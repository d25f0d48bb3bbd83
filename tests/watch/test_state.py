"""What the page of a run is told, and that looking disturbs nobody."""

import json
import math
import re
import time

import numpy as np
import pytest
from browser import until
from runs import PROMPTS, add, draw, line, make_run
from starlette.testclient import TestClient

from apart import run_apart
from mapo.errors import MapoError
from mapo.shards import is_owned, owned
from mapo.texts import lines_after
from mapo.train.run.folder import Run
from mapo.watch.server import make_app
from mapo.watch.state import POINTS, Growing, Watched, points

HERE = "http://127.0.0.1:8001"


def test_it_tells_the_step_the_speed_and_what_is_left(tmp_path):
    told = Watched(make_run(tmp_path / "run").folder).state()
    assert (told["name"], told["step"], told["steps"], told["status"]) == ("run", 120, 200, "stopped")
    assert (told["pairs_per_second"], told["seconds_left"], told["memory"]) == (2.0, 160.0, 3 * 2**30)
    assert 0 <= told["seconds_since"] < 60 and told["best"] == 100
    assert ("objective", "mapo (beta 0.1, snr 0.5, num_timesteps 1000)") in told["about"] or (
        "objective", "mapo (beta 0.1)"
    ) in told["about"]  # fmt: skip


@pytest.mark.parametrize(
    ("evaluate", "pictures", "says"),
    [(50, 0, ["No pictures"]), (0, 50, ["Pairs that are not trained on"]), (0, 0, ["Pairs that", "No pictures"]), (5, 5, [])],
)  # fmt: skip
def test_what_the_page_will_not_have_is_told_with_its_setting(tmp_path, evaluate, pictures, says):
    run = make_run(tmp_path / "run")
    path = run.folder / "config.toml"
    text = re.sub(r"(evaluate_every) = \d+", rf"\1 = {evaluate}", path.read_text())
    path.write_text(re.sub(r"(pictures_every) = \d+", rf"\1 = {pictures}", text))
    told = Watched(run.folder).state()["missing"]
    assert len(told) == len(says) and all(one.startswith(start) for one, start in zip(told, says, strict=True))
    assert ["train.evaluate_every=" in " ".join(told), "train.pictures_every=" in " ".join(told)] == [
        not evaluate,
        not pictures,
    ]


def test_curves_hold_the_numbers_of_the_files(tmp_path):
    curves = {curve["title"]: curve for curve in Watched(make_run(tmp_path / "run").folder).state()["curves"]}
    chosen, rejected = curves["Errors in training"]["lines"]
    assert [p[0] for p in chosen["points"]] == list(range(1, 121))
    last = [line(step)["error_chosen"] for step in range(116, 121)]  # a 25th of the run to either side
    assert chosen["points"][-1][1] == pytest.approx(np.mean(last))
    assert (chosen["label"], rejected["label"]) == ("chosen", "rejected")
    assert curves["Accuracy"]["lines"][0]["points"] == [(0, 0.5), (50, 0.55), (100, 0.6)]
    by_time = curves["Margin by timestep"]["lines"]
    assert [one["label"] for one in by_time] == ["t ≈ 125", "t ≈ 375", "t ≈ 625", "t ≈ 875"]
    assert by_time[3]["points"][-1] == (100, pytest.approx(0.3))


def test_a_long_curve_is_the_means_of_equal_portions():
    found = points(range(1, 48_001), range(1, 48_001))
    assert len(found) == POINTS and found[0] == (200.0, 100.5) and found[-1][0] == 48_000
    assert points([1, 2, 3], [1.0, None, float("nan")]) == [(1.0, 1.0)]
    assert points([], []) == []


def test_lines_that_come_are_read_once_and_a_half_written_one_later(tmp_path):
    path = tmp_path / "metrics.jsonl"
    growing = Growing(path)
    assert growing.read() == []
    add(path, [line(1)])
    with path.open("a") as file:
        file.write('{"step": 2, "err')
    assert [one["step"] for one in growing.read()] == [1]
    with path.open("a") as file:
        file.write('or_chosen": 1}\n')
    assert [one["step"] for one in growing.read()] == [1, 2]
    path.unlink()
    add(path, [line(7)])  # of a run that was begun again
    assert [one["step"] for one in growing.read()] == [7]


def test_all_is_read_again_where_a_longer_file_has_taken_the_place_of_one(tmp_path):
    log, other = tmp_path / "log.jsonl", tmp_path / "other.jsonl"
    log.write_text('{"step": 1}\n')
    growing = Growing(log)
    assert [line["step"] for line in growing.read()] == [1]
    other.write_text('{"step": 7}\n{"step": 8}\n')
    other.rename(log)
    assert [line["step"] for line in growing.read()] == [7, 8]


def test_what_stands_behind_a_place_in_a_file_is_whole_lines(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\nno json\n{"a": "\xc3\xbc"}\n{"a": ')
    values, end = lines_after(path, 0)
    assert values == [{"a": 1}, {"a": "ü"}] and end == path.stat().st_size - len(b'{"a": ')
    assert lines_after(path, end) == ([], end)


def test_pictures_are_in_the_order_of_steps_and_of_prompts(tmp_path):
    run = make_run(tmp_path / "run", pictures=(100, 0))
    watched = Watched(run.folder)
    told = watched.state()["pictures"]
    assert told["steps"] == [0, 100] and [row["prompt"] for row in told["prompts"]] == PROMPTS
    assert told["prompts"][1]["pictures"][1] == {"from": "picture/100/1.png", "width": 48, "height": 48}
    draw(run, 120)
    (run.pictures_at(120) / "1.png").unlink()  # as if it were only being made
    assert watched.state()["pictures"]["steps"] == [0, 100]


def test_a_run_of_a_sensitive_set_is_blurred_and_another_where_asked(tmp_path):
    assert Watched(make_run(tmp_path / "a", sensitive=True).folder).state()["sensitive"]
    plain = make_run(tmp_path / "b").folder
    assert not Watched(plain).state()["sensitive"] and Watched(plain, blur=True).state()["sensitive"]


def test_what_is_not_a_run_folder_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.json").touch()
    for folder, why in (
        (tmp_path, ": it has no config.toml"),
        (tmp_path / "nothing", ": it is not there"),
        (tmp_path / "set", ", but a pairs set"),
    ):
        with pytest.raises(MapoError, match=f"is not a run folder{why}. Give the folder that `mapo train`"):
            Watched(folder)
    (tmp_path / "style" / "run").mkdir(parents=True)
    (tmp_path / "style" / "run" / "config.toml").touch()
    with pytest.raises(
        MapoError, match=r"style is not a run folder: it has no config.toml. Its run is \S+/style/run\.$"
    ):
        Watched(tmp_path / "style")
    (tmp_path / "config.toml").write_text("steps = [")
    with pytest.raises(MapoError, match="config.toml cannot be read"):
        Watched(tmp_path)
    done = run_apart("-m", "mapo", "watch", tmp_path / "x")
    assert done.returncode == 2 and "x is not a run folder" in done.stderr


def test_a_run_that_has_not_begun_shows_nothing_and_is_no_error(tmp_path):
    told = Watched(make_run(tmp_path / "run", done=0, pictures=()).folder).state()
    assert (told["step"], told["curves"], told["pairs_per_second"], told["best"]) == (0, [], None, None)


def test_looking_takes_no_lock_and_tells_whether_training_goes_on(tmp_path):
    run = make_run(tmp_path / "run")
    watched = Watched(run.folder)
    assert not is_owned(run.folder)
    with owned(run.folder):
        assert is_owned(run.folder) and watched.state()["status"] == "running"
        with pytest.raises(MapoError, match="Another process is writing"), owned(run.folder):
            pass
    assert watched.state()["status"] == "stopped"
    (tmp_path / ".run.lock").touch()  # of a process that was killed
    assert watched.state()["status"] == "stopped"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    watched.state()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_only_pictures_that_a_manifest_names_are_sent_and_large_ones_are_made_small(tmp_path):
    run = make_run(tmp_path / "run", pictures=(0,), side=1024)
    draw(run, 50, 48)
    client = TestClient(make_app(Watched(run.folder)), HERE)
    large, small = client.get("/picture/0/1.png"), client.get("/picture/50/1.png")
    assert (large.headers["content-type"], small.headers["content-type"]) == ("image/webp", "image/png")
    assert len(large.content) < 20_000
    (run.pictures_at(0) / "secret.png").write_bytes(b"x")
    for path in ("/picture/0/secret.png", "/picture/7/1.png", "/picture/0/..%2f..%2fconfig.toml", "/config.toml"):
        assert client.get(path).status_code == 404
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert "`mapo watch` printed" in client.get("/", headers={"Host": "evil.example"}).text
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]


def test_a_run_that_is_damaged_meanwhile_is_told_and_the_page_goes_on(tmp_path):
    run = make_run(tmp_path / "run")
    client = TestClient(make_app(Watched(run.folder)), HERE)
    text = (run.folder / "config.toml").read_text()
    (run.folder / "config.toml").write_text("steps = [")
    answer = client.get("/state")
    assert answer.status_code == 500 and "config.toml cannot be read" in answer.json()["error"]
    (run.folder / "config.toml").write_text(text)
    for log, added, says in (
        (run.log, '{"step": 121, "seconds": "x"}', "metrics.jsonl is damaged: the line of step 121 has seconds = 'x'"),
        (run.log, "[1]", "metrics.jsonl is damaged: a line is not that of a step"),
        (
            run.evaluation_log,
            '{"step": 121, "accuracy": "x"}',
            "evaluations.jsonl is damaged: the line of step 121 has accuracy = 'x'",
        ),
        (
            run.evaluation_log,
            '{"step": 121, "timesteps": [1, "x"]}',
            "the line of step 121 has timesteps = \"[1, 'x']\"",
        ),
        (run.alarm_log, '{"step": 121, "says": 3}', "alarms.jsonl is damaged: the line of step 121 has says = '3'"),
    ):
        text = log.read_text() if log.exists() else ""
        log.write_text(f"{text}{added}\n")
        for _ in range(2):  # it is damaged as long as it is
            answer = client.get("/state")
            assert answer.status_code == 500 and says in answer.json()["error"]
        log.unlink()
        log.write_text(text)
    assert client.get("/state").json()["step"] == 120


def test_a_line_that_lacks_numbers_is_shown_as_far_as_it_goes(tmp_path):
    run = make_run(tmp_path / "run")
    add(run.log, [{"step": 121, "seconds": math.nan, "pairs_per_second": 1.0}])
    add(run.evaluation_log, [{"step": 121, "pairs": 64, "timesteps": [], "margin_by_time": [0.5]}])
    state = TestClient(make_app(Watched(run.folder)), HERE).get("/state").json()
    assert state["step"] == 121 and state["pairs_per_second"] == 2.0


def test_a_fault_of_ours_is_not_told_as_a_damaged_line(tmp_path, monkeypatch):
    watched = Watched(make_run(tmp_path / "run").folder)
    monkeypatch.setattr(watched, "pictures", lambda: {}["steps"])
    with pytest.raises(KeyError):
        TestClient(make_app(watched), HERE).get("/state")


def test_a_training_that_is_watched_is_the_training_that_is_not(tmp_path, sdxl):
    """Two runs of the same settings, one of them looked at all the while, are equal to the bit."""
    import threading

    from held import make_held_out
    from test_train import metrics, run

    pairs = make_held_out(tmp_path / "pairs")
    run(tmp_path / "alone", sdxl, pairs, evaluate_every=2)
    seen, over = [], threading.Event()

    def look():
        watched = None
        while not over.is_set():
            if watched or (tmp_path / "seen" / "config.toml").exists():
                watched = watched or Watched(tmp_path / "seen")
                seen.append((watched.state()["status"], watched.state()["step"]))
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        run(tmp_path / "seen", sdxl, pairs, evaluate_every=2)
        until(lambda: any(status == "finished" for status, _ in seen), "the end to be seen")
    finally:
        over.set()
        thread.join()
    for name in ("loss", "error_chosen", "grad_norm"):
        assert [m[name] for m in metrics(tmp_path / "seen")] == [m[name] for m in metrics(tmp_path / "alone")]
    assert "running" in {status for status, _ in seen} and seen[-1] == ("finished", 4)
    assert np.all(np.diff([step for _, step in seen]) >= 0)
    assert Run(tmp_path / "seen").finished_steps() == 4 and json.loads((tmp_path / "seen" / "run.json").read_text())
