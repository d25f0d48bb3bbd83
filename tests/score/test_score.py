"""Scoring a folder of pictures: whole, in parts, again, with references, and what is refused."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import mapo.score.task as task_module
from apart import ended, started
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.pairs import PairWriter
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images, png_bytes, read_images
from mapo.score.score import refuse_table_of_others, score, score_images
from mapo.score.scorers import Unfinished
from mapo.score.table import read_scores, write_scores

SIDE = 6


class Brightness:
    """Mean of a picture, less that of its reference where there is one; None for black pictures. Counts its calls."""

    name, version, revision, metrics = "brightness", "1", "", ("light", "dark")
    needs_reference = whole_prompts = False
    calls: list[list[str]] = []  # noqa: RUF012  (the prompts of each call, of all instances)

    def __call__(self, pictures, prompts, references=None):
        type(self).calls.append(list(prompts))
        light = [float(np.asarray(p).mean()) for p in pictures]
        if references is not None:
            light = [a - float(np.asarray(b).mean()) for a, b in zip(light, references, strict=True)]
        return {"light": [v or None for v in light], "dark": [255 - v if v else None for v in light]}

    def notes(self):
        return ["it was asked"]


class Together(Brightness):
    """How many pictures the prompt has."""

    name, metrics, whole_prompts = "together", ("count",), True

    def __call__(self, pictures, prompts, references=None):
        type(self).calls.append(list(prompts))
        return {"count": [len(prompts)] * len(prompts)}


class Comparing(Brightness):
    name, needs_reference = "comparing", True


class Prepared(Brightness):
    """The same number by way of prepare and score."""

    name = "prepared"

    def __call__(self, *given):
        raise AssertionError("prepare and score are to be used")

    def prepare(self, picture):
        return float(np.asarray(picture).mean())

    def score(self, prepared, prompts, references=None):
        assert references is None or all(isinstance(value, float) for value in references)
        return {"light": prepared, "dark": [255 - value for value in prepared]}


KINDS = {kind.name: kind for kind in (Brightness, Together, Comparing, Prepared)}


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    monkeypatch.setattr(task_module, "scorer_names", lambda text: text.split(","))
    monkeypatch.setattr(task_module, "load_scorer", lambda name: KINDS[name]())
    for kind in KINDS.values():
        kind.calls = []


def noise(seed, side=SIDE):
    return Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side))


def write_images(folder, prompts=4, seeds=3, picture=noise):
    rows, data = [], []
    for prompt in [f"a drawing {n}" for n in range(prompts)]:
        for seed in range(seeds):
            png = png_bytes(picture(f"{folder.name} {prompt} {seed}"))
            name = prompt_id(prompt)
            rows.append(ImageRow(f"{name}-{seed}.png", name, prompt, seed, seed, sha256(png), "noise"))
            data.append(png)
    append_images(folder, rows, data)
    return folder


def change(folder, places, picture):
    """Other pictures for some of the rows."""
    rows = read_images(folder)
    for place in places:
        png = png_bytes(picture)
        (folder / rows[place].file).write_bytes(png)
        rows[place] = replace(rows[place], sha256=sha256(png))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))


def hidden(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def contents(path):
    return {
        (r["scorer"], r["metric"], r["image"], r["prompt"], r["seed"]): r["value"]
        for r in read_scores(path).to_pylist()
    }


def mean_of(folder, row):
    return float(np.asarray(Image.open(folder / row.file)).mean())


def test_every_picture_gets_its_row_for_every_metric_with_its_hash(tmp_path):
    folder = write_images(tmp_path / "i")
    counts = score(folder, "brightness,together", tmp_path / "s.parquet", images_per_batch=5)
    assert counts == {"pictures": 12, "scored": 24, "missing": 0, "without_number": 0}
    want = {}
    for row in read_images(folder):
        light = mean_of(folder, row)
        for scorer, metric, value in (
            ("brightness", "light", light), ("brightness", "dark", 255 - light), ("together", "count", 3),
        ):  # fmt: skip
            want[scorer, metric, row.sha256, row.prompt, row.seed] = value
    assert contents(tmp_path / "s.parquet") == want
    assert [len(call) for call in Brightness.calls] == [5, 5, 2]
    assert hidden(tmp_path) == []


def test_all_pictures_of_a_prompt_are_in_one_call_where_a_scorer_asks_for_it(tmp_path):
    score_images(write_images(tmp_path / "i"), "together", tmp_path / "s.parquet", images_per_batch=2)
    assert Together.calls == [[f"a drawing {n}"] * 3 for n in range(4)]


def test_a_scorer_with_a_step_before_the_network_gives_the_same_numbers(tmp_path):
    folder = write_images(tmp_path / "i")
    score_images(folder, "brightness,prepared", tmp_path / "s.parquet", images_per_batch=5)
    found = contents(tmp_path / "s.parquet")
    assert len(found) == 48
    assert all(found["prepared", *key[1:]] == value for key, value in found.items() if key[0] == "brightness")


def interrupted(monkeypatch, kind, after):
    """The scorer is stopped in the call behind so many."""
    real = kind.__call__

    def cut(self, *given):
        if len(kind.calls) == after:
            raise KeyboardInterrupt
        return real(self, *given)

    return monkeypatch.context(), cut


@pytest.mark.parametrize("name", ["brightness", "together"])
def test_scoring_that_is_interrupted_goes_on_inside_a_scorer(tmp_path, monkeypatch, name):
    kind, folder, out = KINDS[name], write_images(tmp_path / "i"), tmp_path / "s.parquet"
    patching, cut = interrupted(monkeypatch, kind, 2)
    with patching as patch:
        patch.setattr(kind, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            score(folder, name, out, images_per_batch=3)
    assert not out.exists() and len(hidden(tmp_path)) == 1
    (ledger,) = (tmp_path / hidden(tmp_path)[0]).glob("*.jsonl")
    ledger.write_bytes(ledger.read_bytes() + b'{"version": "1", "revi')  # killed while it was writing
    counts = score(folder, name, out, images_per_batch=3)
    assert counts["scored"] == 6 and len(kind.calls) == 4
    assert hidden(tmp_path) == []
    whole = tmp_path / "whole.parquet"
    score(folder, name, whole, images_per_batch=3)
    assert contents(whole) == contents(out)


def test_the_scorers_that_were_done_are_not_asked_again(tmp_path, monkeypatch):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    patching, cut = interrupted(monkeypatch, Together, 0)
    with patching as patch:
        patch.setattr(Together, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            score(folder, "brightness,together", out)
    score(folder, "brightness,together", out)
    assert len(Brightness.calls) == 1 and len(Together.calls) == 4


def test_an_interrupted_scorer_is_still_known_after_another_was_finished(tmp_path, monkeypatch):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    patching, cut = interrupted(monkeypatch, Together, 3)
    with patching as patch:
        patch.setattr(Together, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            score(folder, "together", out)
    score(folder, "brightness", out)
    assert {key[0] for key in contents(out)} == {"brightness"}
    assert score(folder, "together", out)["scored"] == 3
    assert {key[0] for key in contents(out)} == {"brightness", "together"}
    assert hidden(tmp_path) == []


def test_a_finished_table_leaves_nothing_to_do(tmp_path, monkeypatch):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    score(folder, "brightness,together", out)
    before = out.stat().st_mtime_ns
    for names in ("brightness,together", "together", "brightness"):
        assert score(folder, names, out) == {"pictures": 12, "scored": 0, "missing": 0, "without_number": 0}
    assert len(Brightness.calls) == 1 and out.stat().st_mtime_ns == before
    assert hidden(tmp_path) == []


def test_only_pictures_that_changed_are_scored_anew(tmp_path):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    score(folder, "brightness,together", out)
    change(folder, [4], noise("other"))
    assert score(folder, "brightness,together", out) == {
        "pictures": 12,
        "scored": 1 + 3,
        "missing": 0,
        "without_number": 0,
    }
    assert Brightness.calls[1:] == [["a drawing 1"]]
    assert Together.calls[4:] == [["a drawing 1"] * 3]  # what is compared with each other changes together
    shas = {row.sha256 for row in read_images(folder)}
    assert {key[2] for key in contents(out)} == shas and len(contents(out)) == 36


def test_another_version_or_revision_scores_all_anew_and_stays_alone(tmp_path, monkeypatch):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    score(folder, "brightness", out)
    for attribute in ("version", "revision"):
        monkeypatch.setattr(Brightness, attribute, "2")
        assert score(folder, "brightness", out)["scored"] == 12
        assert {row[attribute] for row in read_scores(out).to_pylist()} == {"2"}


def test_rows_of_other_scorers_stay_where_the_pictures_of_their_prompt_are_the_same(tmp_path, heard):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    score(folder, "together", out)
    change(folder, [0], noise("other"))
    score(folder, "brightness", out)
    rows = read_scores(out).to_pylist()
    assert {r["prompt"] for r in rows if r["scorer"] == "together"} == {f"a drawing {n}" for n in (1, 2, 3)}
    assert "note: 3 scores by together were of other pictures and are left out" in heard()
    assert score(folder, "together", out)["scored"] == 3


def test_a_picture_without_a_number_has_a_row_and_is_asked_about_again(tmp_path, heard):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    change(folder, [1, 5], Image.new("RGB", (SIDE, SIDE)))
    assert score(folder, "brightness", out)["missing"] == 4
    empty = [r for r in read_scores(out).to_pylist() if r["value"] is None]
    assert [(r["metric"], r["prompt"], r["seed"]) for r in empty] == [
        (m, p, s) for p, s in (("a drawing 0", 1), ("a drawing 1", 2)) for m in ("light", "dark")
    ]
    said = heard().splitlines()
    assert said == [
        "note: it was asked",
        "note: brightness gave no light to 2 of 12 pictures",
        "note: brightness gave no dark to 2 of 12 pictures",
    ]
    assert score(folder, "brightness", out) == {"pictures": 12, "scored": 2, "missing": 4, "without_number": 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_names_scorer_and_picture_and_keeps_what_was_scored(tmp_path, monkeypatch, value):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    real, row = Brightness.__call__, read_images(folder)[7]

    def give(self, pictures, prompts, references=None):
        said = real(self, pictures, prompts)
        return {
            **said,
            "dark": [value if len(Brightness.calls) == 3 and k == 1 else v for k, v in enumerate(said["dark"])],
        }

    with monkeypatch.context() as patch:
        patch.setattr(Brightness, "__call__", give)
        with pytest.raises(MapoError, match=f"brightness gave {value} for picture {row.sha256[:12]}"):
            score(folder, "brightness", out, images_per_batch=3)
    assert not out.exists()
    assert score(folder, "brightness", out, images_per_batch=3)["scored"] == 6


# ------------------------------------------------------------------ shards


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("last", [0, -1])
def test_shards_come_to_the_table_of_one_process(tmp_path, count, last):
    folder = write_images(tmp_path / "i")
    names = "brightness,together"
    score(folder, names, tmp_path / "one.parquet", images_per_batch=2)
    order = list(range(count))
    order.append(order.pop(last))
    for kind in KINDS.values():
        kind.calls = []
    done = [score(folder, names, tmp_path / "many.parquet", shard=(k, count), images_per_batch=2) for k in order]
    assert done[:-1] == [None] * (count - 1) and done[-1]["pictures"] == 12
    assert count > 12 or done[-1]["scored"] > 0
    assert read_scores(tmp_path / "many.parquet").equals(read_scores(tmp_path / "one.parquet"))
    assert sum(map(len, Brightness.calls)) == 12 and sorted(Together.calls) == [
        [f"a drawing {n}"] * 3 for n in range(4)
    ]
    assert hidden(tmp_path) == []


def test_one_process_can_end_what_shards_began(tmp_path):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    assert score(folder, "brightness", out, shard=(1, 4)) is None
    assert score(folder, "brightness", out, shard=(3, 4)) is None
    assert score(folder, "brightness", out, shard=(0, 1))["scored"] == 6
    assert len(contents(out)) == 24 and hidden(tmp_path) == []


def test_a_shard_of_a_finished_table_has_nothing_to_do(tmp_path):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    score(folder, "brightness", out)
    assert score(folder, "brightness", out, shard=(1, 2)) == {
        "pictures": 12,
        "scored": 0,
        "missing": 0,
        "without_number": 0,
    }
    assert hidden(tmp_path) == []


def test_two_processes_as_torchrun_numbers_them_write_one_table(tmp_path):
    from mapo.lab.mini.draw import draw
    from mapo.lab.mini.scenes import context, random_plain_scenes

    rng, folder, out = random.Random(1), tmp_path / "i", tmp_path / "s.parquet"
    plain = random_plain_scenes("test", rng)
    rows, data = [], []
    for k in range(8):
        scene = next(plain)
        png = png_bytes(Image.fromarray(draw(scene, rng)))
        rows.append(ImageRow(f"{k}.png", prompt_id(context(scene)), context(scene), k, k, sha256(png), "drawn"))
        data.append(png)
    append_images(folder, rows, data)
    found = ended(started(["-m", "mapo", "score", folder, "--scorer", "mini-search,guards", "--out", out], 2))
    assert [code for code, _, _ in found] == [0, 0], found
    assert sum(f"8 pictures are scored in {out}" in text for _, text, _ in found) >= 1
    assert len(contents(out)) == 8 * (6 + 4) and hidden(tmp_path) == []


# ------------------------------------------------------------------ references


def test_a_picture_is_compared_with_the_one_of_its_prompt_and_seed(tmp_path):
    folder, other, out = write_images(tmp_path / "i"), write_images(tmp_path / "r"), tmp_path / "s.parquet"
    score(folder, "comparing,brightness", out, references=other)
    rows = {(r["prompt"], r["seed"], r["scorer"], r["metric"]): r for r in read_scores(out).to_pylist()}
    for row, reference in zip(read_images(folder), read_images(other), strict=True):
        own = rows[row.prompt, row.seed, "comparing", "light"]
        assert own["reference"] == reference.sha256
        assert own["value"] == mean_of(folder, row) - mean_of(other, reference)
        assert rows[row.prompt, row.seed, "brightness", "light"]["reference"] is None


def test_another_reference_is_another_score(tmp_path):
    folder, other, out = write_images(tmp_path / "i"), write_images(tmp_path / "r"), tmp_path / "s.parquet"
    score(folder, "comparing", out, references=other)
    change(other, [2], noise("other"))
    assert score(folder, "comparing", out, references=other)["scored"] == 1
    assert {r["reference"] for r in read_scores(out).to_pylist()} == {r.sha256 for r in read_images(other)}


def test_the_chosen_pictures_of_a_pairs_set_are_references(tmp_path):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    chosen = {}
    with PairWriter(tmp_path / "pairs", {"made": "by a test"}) as writer:
        for n in range(4):
            for k in range(1 + n % 2):
                png = png_bytes(noise(f"chosen {n} {k}"))
                chosen.setdefault(f"a drawing {n}", []).append(sha256(png))
                writer.add_pair(f"A  drawing {n}", png, png_bytes(noise(f"rejected {n} {k}")))
    score(folder, "comparing", out, references=tmp_path / "pairs")
    for row in read_scores(out).to_pylist():
        of_prompt = chosen[row["prompt"]]
        assert row["reference"] == of_prompt[row["seed"] % len(of_prompt)]


def test_references_that_are_missing_are_told_before_anything_is_scored(tmp_path):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    with pytest.raises(MapoError, match="comparing compares each picture with a reference picture. Give --references"):
        score(folder, "brightness,comparing", out)
    with pytest.raises(MapoError, match=r"no reference for 6 of 12 pictures, .* shows 'a drawing 2'"):
        score(folder, "brightness,comparing", out, references=write_images(tmp_path / "few", prompts=2))
    with pytest.raises(MapoError, match="--references: no scorer of brightness compares. Leave"):
        score(folder, "brightness", out, references=folder)
    with pytest.raises(
        MapoError, match="--references takes an images folder or a pairs set. .* is not an images folder"
    ):
        score(folder, "comparing", out, references=tmp_path)
    assert Brightness.calls == [] and hidden(tmp_path) == []


# ------------------------------------------------------------------ what is refused


def test_bad_input_is_a_sentence(tmp_path):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    with pytest.raises(MapoError, match="--images-per-batch is 0; it must be at least 1"):
        score(folder, "brightness", out, images_per_batch=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "manifest.jsonl").write_text("")
    with pytest.raises(MapoError, match="empty holds no pictures"):
        score(tmp_path / "empty", "brightness", out)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(MapoError, match=r"--out: .*letter\.txt exists and is not a table of scores"):
        score(folder, "brightness", tmp_path / "letter.txt")
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_picture_that_was_damaged_is_named(tmp_path):
    folder = write_images(tmp_path / "i")
    row = read_images(folder)[3]
    (folder / row.file).write_bytes(b"no picture")
    with pytest.raises(MapoError, match=rf"{row.file} is not the picture that the manifest names"):
        score(folder, "brightness", tmp_path / "s.parquet")


def test_a_finished_table_does_not_speak_for_files_that_were_exchanged(tmp_path):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    score(folder, "brightness", out)
    first, second = read_images(folder)[:2]
    (folder / second.file).write_bytes((folder / first.file).read_bytes())
    with pytest.raises(MapoError, match=rf"{second.file} is not the picture that the manifest names"):
        score(folder, "brightness", out)


def test_a_second_process_is_told_that_one_is_at_work(tmp_path, monkeypatch):
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    real, said = Brightness.__call__, []

    def nested(self, *given):
        if not said:
            said.append("")
            with pytest.raises(MapoError, match="Another process is writing"):
                score(folder, "brightness", out)
        return real(self, *given)

    monkeypatch.setattr(Brightness, "__call__", nested)
    score(folder, "brightness", out)
    assert said and len(contents(out)) == 24


def test_a_table_of_an_older_road_is_completed(tmp_path):
    """A table that another program wrote in our schema counts as what is known."""
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    score(folder, "brightness", out)
    rows = read_scores(out).to_pylist()
    write_scores(out, [row for row in rows if row["seed"] != 1])
    assert score(folder, "brightness", out)["scored"] == 4
    assert sorted(map(str, read_scores(out).to_pylist())) == sorted(map(str, rows))


def test_a_table_of_another_folder_is_not_written_over(tmp_path):
    first, second, out = write_images(tmp_path / "i"), write_images(tmp_path / "j"), tmp_path / "s.parquet"
    score(first, "brightness", out)
    refuse_table_of_others(first, out)
    with pytest.raises(MapoError, match=r"s\.parquet holds scores of other pictures .* and of none in"):
        refuse_table_of_others(second, out)
    refuse_table_of_others(second, tmp_path / "new.parquet")


class Breaking(Brightness):
    """Brightness, which cannot end a call that holds the third drawing, once."""

    name, broken = "breaking", False

    def __call__(self, pictures, prompts, references=None):
        said = super().__call__(pictures, prompts, references)
        if "a drawing 2" in prompts and not Breaking.broken:
            Breaking.broken = True
            number = prompts.index("a drawing 2")
            raise Unfinished("the endpoint is gone", {metric: values[:number] for metric, values in said.items()})
        return said


def test_numbers_that_were_said_before_a_call_broke_are_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "breaking", Breaking)
    folder, out = write_images(tmp_path / "i"), tmp_path / "s.parquet"
    with pytest.raises(MapoError, match="the endpoint is gone"):
        score(folder, "breaking", out)
    assert not out.exists()
    assert score(folder, "breaking", out)["scored"] == 6
    assert [len(call) for call in Breaking.calls] == [12, 6]
    want = {mean_of(folder, row) for row in read_images(folder)}
    assert {row["value"] for row in read_scores(out).to_pylist() if row["metric"] == "light"} == want


def test_what_a_terminal_would_obey_is_escaped_in_a_note(tmp_path, monkeypatch, heard):
    monkeypatch.setattr(Brightness, "notes", lambda self: ["it said \x1b[31mred"])
    score(write_images(tmp_path / "i"), "brightness", tmp_path / "s.parquet")
    assert "it said \\x1b[31mred" in heard()
