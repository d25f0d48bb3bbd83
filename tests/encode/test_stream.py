"""A foreign source is encoded while it is read: the set and the cache of an import, and no picture on disk."""

import errno
import json
import os
import shutil
import signal
import time

import pytest
from click.testing import CliRunner

import mapo.encode.cache
from apart import Apart
from data_fixtures import encoded, noise, write_parquet
from long_sources import make_long
from mapo.api import encode as encode_verb
from mapo.api import import_pairs
from mapo.cli import cli
from mapo.encode import fill, stream
from mapo.errors import MapoError
from mapo.pairs import PairSet
from mapo.train.config import make_config
from mapo.train.train import train
from test_cli import refused

SMALL, ROWS, PER_COMMIT = 4, 41, 6  # pictures or prompts of a file; rows of the source, and of a commit
PATCHES = {
    "mapo.encode.fill.PER_SHARD": SMALL, "mapo.encode.stream.PER_SHARD": SMALL,
    "mapo.importers.importing.ROWS_PER_COMMIT": PER_COMMIT, "mapo.importers.checking.PAIRS_PER_CHUNK": 1,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATCHES.items():
            patch.setattr(name, value)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pick-a-Pic's columns in two files. As there, the better picture is compared with the next one; some are ties."""
    folder, best, rows = tmp_path_factory.mktemp("source"), encoded(noise(0)), []
    for k in range(ROWS):
        new = encoded(noise(k + 1), "JPEG")
        tie = k % 9 == 5
        rows.append({
            "jpg_0": best, "jpg_1": new, "label_0": 0.5 if tie else 0.0, "label_1": 0.5 if tie else 1.0,
            "caption": f"a small red circle number {k // 3}",
        })  # fmt: skip
        best = new if k % 4 else encoded(noise(1000 + k))
    rows[20] = rows[19]  # the same again
    for number, part in enumerate((rows[:25], rows[25:])):
        write_parquet(folder / f"train-{number:05d}-of-00002.parquet", part)
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory, source, sdxl):
    """The set that keeps its pictures, and its cache."""
    folder = tmp_path_factory.mktemp("imported")
    import_pairs(source, out=folder / "pairs")
    encode_verb(model=sdxl, pairs=folder / "pairs", out=folder / "cache", images_per_batch=3)
    return folder


@pytest.fixture(scope="module")
def streamed(tmp_path_factory, source, sdxl):
    """The same without a kill, in one go."""
    folder = tmp_path_factory.mktemp("streamed")
    go(source, sdxl, folder)
    return folder


def go(source, sdxl, folder, **how):
    encode_verb(
        model=sdxl, source=source, pairs=folder / "pairs", out=folder / "cache", images_per_batch=3, **how
    )  # fmt: skip


def cache_of(folder):
    return {p.name: p.read_bytes() for p in (folder / "cache").iterdir() if p.name != "index.safetensors"}


def set_of(folder):
    return {p.name: p.read_bytes() for p in (folder / "pairs").iterdir()}


def everything(folder):
    return {"cache": cache_of(folder), "pairs": set_of(folder)}


def test_set_and_cache_are_those_of_an_import(streamed, imported):
    ours, theirs = (PairSet(folder / "pairs") for folder in (streamed, imported))
    assert set_of(streamed)["pairs.parquet"] == set_of(imported)["pairs.parquet"]
    assert ours.image_names() == theirs.image_names() and ours.fingerprint() == theirs.fingerprint()
    assert (ours.image_sizes() == theirs.image_sizes()).all()
    assert ours.number_of_images() % SMALL  # the last file is not full
    assert cache_of(streamed) == cache_of(imported)


def test_no_picture_is_on_disk_and_the_set_says_so(streamed, imported):
    info = json.loads((streamed / "pairs" / "set.json").read_text())
    assert info["images_not_kept"] == info["images"] == PairSet(imported / "pairs").number_of_images()
    assert info["pictures"] == "not kept"
    found = b"".join(path.read_bytes() for path in streamed.rglob("*") if path.is_file())
    kept = (imported / "pairs" / "images-00000.parquet").read_bytes()
    for start in (b"\x89PNG\r\n", b"\xff\xd8\xff\xe0"):
        assert start in kept and start not in found
    assert sorted(path.name for path in streamed.iterdir()) == ["cache", "pairs"]


@pytest.mark.parametrize("at", [1, 4, 7, 12])
def test_what_was_stopped_goes_on_and_ends_in_the_same_files(tmp_path, source, sdxl, streamed, at):
    made, real_encode, real_write = [], stream.encode_pictures, stream.write_shard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "encode_pictures", lambda *given: made.extend(given[2]) or real_encode(*given))

        def cut(*given):
            real_write(*given)
            if len(made) == at * SMALL:
                _stop()

        with patch.context() as inner, pytest.raises(KeyboardInterrupt):
            inner.setattr(stream, "write_shard", cut)
            go(source, sdxl, tmp_path)
        assert not (tmp_path / "pairs").exists()
        go(source, sdxl, tmp_path)
    assert everything(tmp_path) == everything(streamed)
    assert len(made) == len(set(made)) == PairSet(streamed / "pairs").number_of_images()  # nothing is encoded twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "pairs"]


def test_what_was_stopped_reads_on_from_its_last_commit(tmp_path, source, sdxl, streamed, monkeypatch):
    from mapo.importers.formats import pickapic

    starts, real = [], pickapic.read
    monkeypatch.setattr(
        pickapic, "read", lambda source, options, start: starts.append(start) or real(source, options, start)
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls, write = [], stream.write_shard
        patch.setattr(
            stream, "write_shard", lambda *given: calls.append(write(*given)) or (len(calls) == 10 and _stop())
        )
        go(source, sdxl, tmp_path)
    go(source, sdxl, tmp_path)
    assert starts[0] == 0 and PER_COMMIT < starts[1] < 30
    assert everything(tmp_path) == everything(streamed)


def _stop():
    raise KeyboardInterrupt


def test_a_stream_that_is_killed_goes_on_with_the_same_command(tmp_path, source, sdxl, streamed):
    patches = "\n".join(f"import {name.rpartition('.')[0]}; {name} = {value}" for name, value in PATCHES.items())
    code = f"""
{patches}
import sys, time, mapo.encode.stream
real = mapo.encode.stream.write_shard
def slowly(*given):
    real(*given)
    time.sleep(0.3)
mapo.encode.stream.write_shard = slowly
sys.argv[0] = "mapo"
from mapo.cli import main
main()
"""
    words = ["encode", source, "--stream", "--model", sdxl, "--pairs", tmp_path / "pairs", "--out", tmp_path / "cache",
             "--images-per-batch", "3"]  # fmt: skip
    process = Apart("-c", code, *words)
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list((tmp_path / "cache").glob("latents-*"))) < 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0 and not (tmp_path / "pairs").exists()
    said = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False).output
    assert "MB of pictures were read in" in said and "bytes a second" in said
    assert everything(tmp_path) == everything(streamed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "pairs"]


def test_a_kill_between_pictures_and_prompts_loses_nothing(tmp_path, source, sdxl, streamed, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fill, "encode_prompts", lambda *_: _stop())
        go(source, sdxl, tmp_path)
    assert (tmp_path / "pairs").exists() and not list((tmp_path / "cache").glob("text-*"))
    monkeypatch.setattr(stream, "import_pairs", None)  # the source is not read again
    go(source, sdxl, tmp_path)
    assert everything(tmp_path) == everything(streamed)


def test_a_cache_that_was_deleted_meanwhile_begins_afresh(tmp_path, source, sdxl, streamed):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls, real = [], stream.write_shard
        patch.setattr(stream, "write_shard", lambda *given: calls.append(real(*given)) or (len(calls) == 9 and _stop()))
        go(source, sdxl, tmp_path)
    shutil.rmtree(tmp_path / "cache")
    go(source, sdxl, tmp_path)
    assert everything(tmp_path) == everything(streamed)


def test_where_the_disk_of_the_cache_is_full_it_is_the_cache_that_is_named(tmp_path, source, sdxl, streamed):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MapoError) as said:
        calls, real = [], mapo.encode.cache.save_tensors

        def full(*given):
            calls.append(1)
            if len(calls) == 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*given)

        patch.setattr(mapo.encode.cache, "save_tensors", full)
        go(source, sdxl, tmp_path)
    assert str(said.value).startswith(f"The disk of the cache {tmp_path}/cache is full (No space left on device).")
    go(source, sdxl, tmp_path)
    assert everything(tmp_path) == everything(streamed)


@pytest.mark.parametrize("kind", ["tar", "arrow", "ndjson"])
def test_other_kinds_of_files_are_streamed_too(tmp_path, sdxl, kind):
    (tmp_path / "in").mkdir()
    given = make_long(tmp_path / "in", kind, 14)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    import_pairs(given, out=tmp_path / "one" / "pairs", on_bad_row="drop", ties="keep")
    encode_verb(model=sdxl, pairs=tmp_path / "one" / "pairs", out=tmp_path / "one" / "cache")
    encode_verb(
        model=sdxl, source=given, pairs=tmp_path / "many" / "pairs", out=tmp_path / "many" / "cache",
        imports={"on_bad_row": "drop", "ties": "keep"},
    )  # fmt: skip
    assert cache_of(tmp_path / "many") == cache_of(tmp_path / "one")
    assert list(PairSet(tmp_path / "many" / "pairs")) == list(PairSet(tmp_path / "one" / "pairs"))


def test_training_on_the_streamed_set_is_training_on_the_imported_one_to_the_bit(tmp_path, sdxl, streamed, imported):
    found = []
    for number, folder in enumerate((streamed, imported)):
        train(make_config({
            "model": str(sdxl), "pairs": str(folder / "pairs"), "cache": str(folder / "cache"),
            "train": {"steps": 3, "pairs_per_step": 4},
        }), tmp_path / str(number))  # fmt: skip
        lines = [json.loads(line) for line in (tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()]
        found.append([{k: line[k] for k in ("loss", "error_chosen", "error_rejected", "grad_norm")} for line in lines])
    assert len(found[0]) == 3 and found[0] == found[1]
    weights = [sorted((tmp_path / str(number) / "weights").rglob("*.safetensors")) for number in (0, 1)]
    assert [p.read_bytes() for p in weights[0]] == [p.read_bytes() for p in weights[1]] != []


@pytest.mark.parametrize(
    "words",
    [
        "check {pairs} --out {new}", "export {pairs} --to preference --out {new}",
        "label {pairs} --annotator ann --port 0", "label {pairs} --summary",
        "mismatch --model {model} --pairs {pairs} --encoder none --out {new}",
        "encode --model {model} --pairs {pairs} --out {new}",
        "encode --model {model} --pairs {pairs} --out {new} --resolution 8",
        "train --model {model} --pairs {pairs} --cache {new} --out {new}-run --set train.steps=1",
        "plan --model {model} --pairs {pairs} --cache {new}",
    ],
)  # fmt: skip
def test_what_needs_pictures_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, streamed, sdxl, words):
    given = {"pairs": streamed / "pairs", "model": sdxl, "new": tmp_path / "new"}
    said = refused(*(word.format(**given) for word in words.split()))
    assert "keeps no pictures, as `mapo encode --stream` made it" in said
    assert "`mapo import` reads the same source" in said or "Name the cache that was made with the set" in said
    assert list(tmp_path.iterdir()) == []


def test_references_of_a_set_without_pictures_are_refused(streamed):
    from mapo.score.references import References

    with pytest.raises(MapoError, match="keeps no pictures, .* and mapo score --references needs them"):
        References(streamed / "pairs", set())


def test_a_set_of_another_source_or_of_other_options_is_not_taken_for_made(tmp_path, source, sdxl, streamed):
    there = everything(streamed)
    with pytest.raises(MapoError, match="was streamed from another source .* or with other options"):
        go(source, sdxl, streamed, imports={"ties": "keep"})
    other = shutil.copytree(source, tmp_path / source.name)  # of the same name
    with pytest.raises(MapoError, match="was streamed from another source"):
        go(other, sdxl, streamed)
    go(source, sdxl, streamed)
    assert everything(streamed) == there


def test_wrong_ways_to_stream_are_refused_in_a_sentence(tmp_path, source, sdxl, imported, monkeypatch):
    common = ["--model", sdxl, "--pairs", tmp_path / "p", "--out", tmp_path / "c"]
    assert "Give SOURCE and --stream together" in refused("encode", source, *common)
    assert "Give SOURCE and --stream together" in refused("encode", "--stream", *common)
    assert "--ties says how SOURCE is read" in refused("encode", "--ties", "keep", *common)
    assert "Leave --buckets out" in refused("encode", source, "--stream", "--buckets", *common)
    assert "Leave --shard out" in refused("encode", source, "--stream", "--shard", "0/2", *common)
    assert "There is no file or folder" in refused("encode", tmp_path / "nowhere", "--stream", *common)
    there = ["--model", sdxl, "--pairs", imported / "pairs", "--out", tmp_path / "c"]
    assert "already exists. Choose another --pairs" in refused("encode", source, "--stream", *there)
    assert "--images-per-batch is 0; it must" in refused("encode", source, "--stream", *common, "--images-per-batch", 0)
    for inside in ("p", "p/cache"):
        within = ["--model", sdxl, "--pairs", tmp_path / "p", "--out", tmp_path / inside]
        assert f"/{inside} lies in --pairs" in refused("encode", source, "--stream", *within)
    with pytest.raises(MapoError, match="There is no option 'tie' of an import. Did you mean 'ties'"):
        go(source, sdxl, tmp_path, imports={"tie": "keep"})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in refused("encode", source, "--stream", *common)
    assert list(tmp_path.iterdir()) == []
