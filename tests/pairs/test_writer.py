"""Writing sets: pictures that are not kept, pairs by hash, work that goes on, and relabelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_fixtures import BLACK, BLUE, GREEN, RED, WHITE, encoded, files_below, make_picture, make_set, noise
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs import PairSet, PairWriter
from mapo.pairs.ledger import Ledger
from mapo.pairs.pictures import check_picture


def test_a_picture_can_be_known_and_not_kept(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        chosen = writer.add_image(RED)
        writer.add_latent_only(sha256(BLUE), 64, 48)
        writer.add_latent_only(chosen, 1, 1)  # it is kept already
        writer.add_pair_by_hash("a bear", chosen, sha256(BLUE), weight=2.0)
    opened = PairSet(tmp_path / "set")
    assert (opened[0].chosen, opened[0].rejected, opened[0].weight) == (sha256(RED), sha256(BLUE), 2.0)
    assert opened.keeps(sha256(RED))
    assert not opened.keeps(sha256(BLUE))
    assert opened.image_names() == [sha256(RED), sha256(BLUE)]
    assert opened.info["images"] == 2
    assert opened.info["images_not_kept"] == 1
    assert opened.image_bytes(sha256(RED)) == RED
    for look in (opened.image, opened.image_bytes):
        with pytest.raises(MapoError, match="keeps the picture [0-9a-f]{64} as latents only"):
            look(sha256(BLUE))
    rows = pq.read_table(tmp_path / "set" / "images-00000.parquet").to_pylist()
    assert rows[1] == {"sha256": sha256(BLUE), "bytes": None, "width": 64, "height": 48}
    assert all(BLUE not in path.read_bytes() for path in (tmp_path / "set").iterdir())


def test_a_pair_by_hash_needs_pictures_that_were_added(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        red, blue = writer.add_image(RED), sha256(BLUE)
        with pytest.raises(ValueError, match=f"the rejected picture {blue} was not added"):
            writer.add_pair_by_hash("a", red, blue)
        writer.add_image(BLUE)
        assert writer.add_pair_by_hash("a", red, blue) is not None
        assert writer.add_pair_by_hash("a", red, blue) is None
        with pytest.raises(ValueError, match="the same picture"):
            writer.add_pair_by_hash("a", red, red)
    assert len(PairSet(tmp_path / "set")) == 1


@pytest.mark.parametrize("name", ["", "ab", "z" * 64])
def test_a_name_that_is_no_hash_is_refused(tmp_path: Path, name: str) -> None:
    with PairWriter(tmp_path / "set", {}) as writer:
        with pytest.raises(ValueError):
            writer.add_latent_only(name, 8, 8)
        writer.add_pair("a", RED, BLUE)


def test_a_picture_that_the_set_has_not_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    opened = make_set(tmp_path / "set", 2)
    for name in ("0" * 64, "short", "z" * 64):
        with pytest.raises(MapoError, match=f"has no picture {name}"):
            opened.image_bytes(name)


def test_ties_and_conversions_are_counted(tmp_path: Path) -> None:
    grey = encoded(noise().convert("L"))
    with PairWriter(tmp_path / "set", {}) as writer:
        writer.add_pair("a", RED, grey, preference=0.5)
        writer.add_pair("b", RED, grey, preference=0.5)
        writer.add_pair("c", RED, grey)
    info = PairSet(tmp_path / "set").info
    assert (info["pairs"], info["ties"], info["conversions"]) == (3, 2, {"grey": 1})


# ------------------------------------------------------------------ work that goes on

JOB = {"source": "x"}


def fill(writer: PairWriter, rows: range) -> None:
    for k in rows:
        sides = make_picture((k % 256, k // 256, 1)), make_picture((k % 256, k // 256, 2))
        writer.add_pair(f"prompt {k}", *sides, preference=0.5 if k % 3 else 1.0)


@settings(max_examples=15, deadline=None)
@given(stops=st.lists(st.integers(0, 40), max_size=4), every=st.integers(1, 9))
def test_a_writer_that_is_stopped_anywhere_ends_in_the_set_that_nobody_stopped(
    stops: list[int], every: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sets")

    def write(name: str, until: int | None) -> None:
        with PairWriter(folder / name, {}, job=JOB) as writer:
            for k in range(writer.progress or 0, 30):
                if until is not None and k >= until:
                    raise KeyboardInterrupt
                fill(writer, range(k, k + 1))
                if (k + 1) % every == 0:
                    writer.commit(k + 1)

    write("whole", None)
    for stop in stops:
        if not (folder / "stopped").exists():
            try:
                write("stopped", stop)
            except KeyboardInterrupt:
                assert not (folder / "stopped").exists()
    if not (folder / "stopped").exists():
        write("stopped", None)
    whole, stopped = ({p.name: p.read_bytes() for p in (folder / name).iterdir()} for name in ("whole", "stopped"))
    assert stopped == whole
    assert PairSet(folder / "stopped").info["ties"] == 20


@pytest.mark.parametrize("last", ["INSERT OR REPLACE INTO state", "COMMIT", "BEGIN IMMEDIATE"])
def test_a_writer_that_is_stopped_within_a_commit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    with PairWriter(tmp_path / "whole", {}, job=JOB) as writer:
        fill(writer, range(9))
    run, armed = Ledger._run, [True]

    def run_and_stop(self: Ledger, sql: str, *given: Any, **named: Any) -> object:
        done = run(self, sql, *given, **named)
        if sql.startswith(last) and armed:
            armed.clear()
            raise KeyboardInterrupt
        return done

    with pytest.raises(KeyboardInterrupt), PairWriter(tmp_path / "set", {}, job=JOB) as writer:
        fill(writer, range(3))
        writer.commit(3)
        fill(writer, range(3, 6))
        monkeypatch.setattr(Ledger, "_run", run_and_stop)
        writer.commit(6)
    monkeypatch.undo()
    with PairWriter(tmp_path / "set", {}, job=JOB) as writer:
        assert writer.progress in (3, 6)
        fill(writer, range(writer.progress, 9))
    assert PairSet(tmp_path / "set")[8] == PairSet(tmp_path / "whole")[8] and len(PairSet(tmp_path / "set")) == 9


def test_an_error_of_the_data_throws_the_work_away(tmp_path: Path) -> None:
    with pytest.raises(MapoError), PairWriter(tmp_path / "set", {}, job=JOB) as writer:
        fill(writer, range(3))
        writer.commit(3)
        raise MapoError("bad row")
    assert files_below(tmp_path) == set()


def test_work_without_a_job_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PairWriter(tmp_path / "set", {}, job=JOB) as writer:
        fill(writer, range(3))
        writer.commit(3)
        raise RuntimeError
    with PairWriter(tmp_path / "set", {}) as writer:
        assert writer.progress is None
        fill(writer, range(5, 7))
    assert [p.prompt for p in PairSet(tmp_path / "set")] == ["prompt 5", "prompt 6"]


def test_checked_pictures_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [check_picture(data) for data in (GREEN, WHITE)]
    monkeypatch.setattr("mapo.pairs.writer.check_picture", lambda *_: pytest.fail("it was decoded"))
    with PairWriter(tmp_path / "set", {}) as writer:
        assert writer.add_checked_pair("a", *sides) is not None
        assert writer.add_checked_pair("a", *sides) is None
        assert writer.add_pair("b", GREEN, WHITE) is not None
        with pytest.raises(pytest.fail.Exception):
            writer.add_pair("b", GREEN, BLACK)
    assert np.load(tmp_path / "set" / "pictures.npy").shape == (2,)
