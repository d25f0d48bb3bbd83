"""Imports that are stopped, killed or run out of space go on where they were."""

from __future__ import annotations

import json
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from apart import Apart, run_apart
from data_fixtures import RED, encoded, files_below, noise, write_parquet
from long_sources import KINDS_OF_FILES, make_long
from mapo.errors import MapoError
from mapo.importers import import_pairs
from mapo.importers.containers import rows, tables
from mapo.pairs import PairSet

ROWS = 400
IMPORT = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in its background
import mapo.importers, mapo.pairs.writer
from mapo.importers.containers import tables
mapo.importers.importing.ROWS_PER_COMMIT = 50
read, pause = tables._read, float(sys.argv[3])
def slowly(*args):
    for number, row in enumerate(read(*args)):
        time.sleep(pause * (number > 200))
        yield row
tables._read = slowly
print(mapo.importers.import_pairs(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"prompt {k}", "chosen": encoded(noise(k)), "rejected": encoded(noise(10_000 + k))}
        for k in range(ROWS)
    ]
    rows[7] = {**rows[6]}
    return write_parquet(tmp_path_factory.mktemp("source") / "x.parquet", rows)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an import that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 50)
        import_pairs(source, out)
    assert len(PairSet(out)) == ROWS - 1
    assert len(list(out.glob("images-*"))) == 8
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(source: Path, out: Path, pause: float) -> Apart:
    return Apart("-c", IMPORT, source, out, pause)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_an_import_that_is_stopped_goes_on_and_ends_in_the_same_files(
    source: Path, whole: dict[str, bytes], tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(source, tmp_path / "set", 0.05)
    work = tmp_path / ".set.partial"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (work / "set" / "images-00002.parquet").exists():
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert {path.name for path in tmp_path.iterdir()} - {".set.lock"} == {".set.partial"}
    starts: list[int] = []
    read = rows.rows
    monkeypatch.setattr(rows, "rows", lambda *args: starts.append(args[3]) or read(*args))
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 50)
    assert import_pairs(source, tmp_path / "set") == {"pairs": ROWS - 1, "ties": 0, "repeats": 1, "bad": 0}
    assert len(starts) == 1
    assert starts[0] >= 50
    assert starts[0] % 50 == 0
    assert contents(tmp_path / "set") == whole
    assert {path.name for path in tmp_path.iterdir()} == {"set"}


def interrupted(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: int = 120) -> None:
    """Ctrl-C at row ``at``, in this process; commits every 50 rows."""
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 50)
    read = tables._read

    def stops(*args: object) -> object:
        for number, row in enumerate(read(*args)):  # type: ignore[arg-type]
            if number == at:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr("mapo.importers.checking.PAIRS_PER_CHUNK", 1)
        patch.setattr(tables, "_read", stops)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(source, out, workers=1)


def test_what_was_written_after_the_last_commit_is_thrown_away(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, tmp_path / "set", monkeypatch)
    work = tmp_path / ".set.partial"
    images = sorted(path.name for path in (work / "set").iterdir())
    assert images == ["images-00000.parquet", "images-00001.parquet"]
    (work / "set" / "images-00002.parquet").write_text("half a file")
    (work / "pairs-00002.parquet").write_text("half a file")
    (work / "set" / "pairs.parquet").write_text("half a file")
    import_pairs(source, tmp_path / "set")
    assert contents(tmp_path / "set") == whole


def make_source(kind: str, folder: Path) -> Path:
    """Four good pairs and a bad row of a format, or of a kind of file."""
    folder.mkdir()
    if kind in KINDS_OF_FILES:
        return make_long(folder, kind, 5)
    for k in range(10):
        (folder / f"{k}.png").write_bytes(encoded(noise(k)))
    if kind == "folders":
        for side, shift in (("chosen", 0), ("rejected", 5)):
            (folder / side).mkdir()
            for k in range(5):
                (folder / f"{k + shift}.png").rename(folder / side / f"{k}.png")
                (folder / side / f"{k}.txt").write_text(f"prompt {k}" if k else "")
        return folder
    extra = {"ranking": "rank", "scores": "scores"}.get(kind)
    with (folder / "x.jsonl").open("w") as file:
        for k in range(5):
            names = [f"{k}.png", f"{k + 5}.png"]
            row = {"images": names, extra: [1, 2]} if extra else dict(zip(("chosen", "rejected"), names, strict=True))
            file.write(json.dumps({"prompt": f"prompt {k}" if k else None, **row}) + "\n")
    return folder / "x.jsonl"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "ranking", "scores", "folders", *KINDS_OF_FILES])
def test_a_stop_while_the_set_is_put_together_loses_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    given = source if kind == "parquet" else make_source(kind, tmp_path / "source")
    clean = import_pairs(given, tmp_path / "clean", on_bad_row="drop")
    assert clean["bad"] == (kind != "parquet")
    with monkeypatch.context() as patch:
        patch.setattr("mapo.pairs.writer.write_places", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_pairs(given, tmp_path / "set", on_bad_row="drop")
    assert not (tmp_path / "set").exists()
    assert import_pairs(given, tmp_path / "set", on_bad_row="drop") == clean
    assert contents(tmp_path / "set") == contents(tmp_path / "clean")


def test_an_import_that_was_stopped_before_its_first_commit_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, tmp_path / "set", monkeypatch, at=30)
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("change", ["settings", "source"])
def test_other_settings_or_another_source_begin_afresh_and_say_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, heard: Callable[[], str]
) -> None:
    interrupted(source, tmp_path / "set", monkeypatch)
    how = {"ties": "keep"} if change == "settings" else {}
    if change == "source":
        source = write_parquet(tmp_path / "y.parquet", pq.read_table(source).slice(3).to_pylist())
    assert import_pairs(source, tmp_path / "set", **how)["pairs"] == ROWS - (4 if change == "source" else 1)
    assert "held unfinished work from another source or other settings; it begins afresh" in heard()


def test_a_bad_row_far_on_stops_the_import_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 10)
    rows = [{"prompt": f"{k}", "chosen": encoded(noise(k)), "rejected": RED} for k in range(60)]
    rows[55]["chosen"] = b"text"
    path = write_parquet(tmp_path / "in" / "x.parquet", rows)
    with pytest.raises(MapoError, match=r"^x\.parquet row 55"):
        import_pairs(path, tmp_path / "set")
    assert files_below(tmp_path) == {"in", "in/x.parquet"}


def test_two_imports_do_not_write_into_one_place(source: Path, tmp_path: Path) -> None:
    process = start(source, tmp_path / "set", 0.2)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (tmp_path / ".set.partial" / "set" / "images-00000.parquet").exists():
            time.sleep(0.02)
        with pytest.raises(MapoError, match=r"Another process is writing .*set. Wait for it"):
            import_pairs(source, tmp_path / "set")
        assert (tmp_path / ".set.partial" / "set" / "images-00000.parquet").exists()
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_full_disk_is_one_sentence_and_with_room_the_import_goes_on(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may not grow beyond a limit, which the system tells as it tells a full disk."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({90_000}, {90_000}))
import mapo.importers
mapo.importers.importing.ROWS_PER_COMMIT = 50
mapo.pairs.writer.BYTES_PER_ROW_GROUP = 10_000
sys.argv = ["mapo", "import", {str(source)!r}, "--out", {str(tmp_path / "set")!r}]
from mapo.cli import main
main()
"""
    done = run_apart("-c", code)
    assert done.returncode == 2, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert f"There is no space left for {tmp_path / 'set'} " in said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set").exists()
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 50)
    import_pairs(source, tmp_path / "set")
    assert contents(tmp_path / "set") == whole
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 90_000
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
def test_an_import_of_every_kind_of_file_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("mapo.importers.importing.ROWS_PER_COMMIT", 10)
    (tmp_path / "in").mkdir()
    given = make_long(tmp_path / "in", kind, 70)
    clean = import_pairs(given, tmp_path / "clean", on_bad_row="drop")
    assert clean["bad"] == 1
    reading, starts = rows.read, []

    def stops(source: object, shape: object, start: int = 0) -> object:
        starts.append(start)
        for number, item in enumerate(reading(source, shape, start)):  # type: ignore[arg-type]
            if number == 45 and len(starts) == 1:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(rows, "read", stops)
    with monkeypatch.context() as patch:
        patch.setattr("mapo.importers.checking.PAIRS_PER_CHUNK", 1)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(given, tmp_path / "set", on_bad_row="drop", workers=1)
    assert import_pairs(given, tmp_path / "set", on_bad_row="drop") == clean
    assert kind == "imagereward" or starts[1] >= 30
    pairs = [list(PairSet(tmp_path / name)) for name in ("set", "clean")]
    assert pairs[0] == pairs[1]
    provenance = [PairSet(tmp_path / name).info["provenance"] for name in ("set", "clean")]
    assert provenance[0] == provenance[1]


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@pytest.mark.parametrize("workers", [1, 3])
def test_reading_from_a_row_on_gives_the_rest_for_every_kind_of_file(tmp_path: Path, kind: str, workers: int) -> None:
    from mapo.importers import Options
    from mapo.importers.detect import find_importer
    from mapo.importers.sources import find_source

    (tmp_path / "in").mkdir()
    given = make_long(tmp_path / "in", kind, 70)
    source = find_source(given)
    _, module, _ = find_importer(source, None)
    whole = list(module.read(source, Options()))
    assert len(whole) == 70
    for start in (0, 1, 31, 32, 33, 64, 69, 70):
        assert list(module.read(source, Options(), start)) == whole[start:]
    counts = import_pairs(given, tmp_path / "set", workers=workers, on_bad_row="drop")
    assert counts == {"pairs": 69, "ties": 0, "repeats": 0, "bad": 1}
