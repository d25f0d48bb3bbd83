"""A report on two folders of pictures that other programs made."""

import base64
import io
import json

import pytest
from click.testing import CliRunner
from PIL import Image
from worlds import Parsed

from data_fixtures import encoded, noise
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.label.blind import of_folders
from mapo.report.report import write_report
from mapo.sample.folder import read_images
from mapo.score.table import write_scores

PROMPTS = [f"a prompt, number {n}" for n in range(12)]


def listed(folder, size=(60, 40), seeds=None, count=2, prompts=PROMPTS):
    """A folder with metadata.jsonl."""
    folder.mkdir()
    rows = []
    for n, prompt in enumerate(prompts):
        for k in range(count):
            name = f"img_{count * n + k}.png"
            (folder / name).write_bytes(encoded(noise(1000 * len(folder.name) + count * n + k, size)))
            rows.append({"file_name": name, "prompt": prompt} | ({"seed": seeds[k]} if seeds else {}))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def texts(folder, count=2, size=(128, 256)):
    """A folder with a text beside each JPEG, all of them turned by their EXIF."""
    turned = Image.Exif()
    turned[0x0112] = 6
    folder.mkdir()
    for n, prompt in enumerate(PROMPTS):
        for k in range(count):
            data = encoded(noise(5000 + count * n + k, size), "JPEG", exif=turned)
            (folder / f"{n:03}-{k}.jpg").write_bytes(data)
            (folder / f"{n:03}-{k}.txt").write_text(prompt.capitalize() + "\n")
    return folder


def judged(path, *folders):
    """A table of scores in which the second folder is better."""
    rows = []
    for better, folder in enumerate(folders):
        for i, row in enumerate(read_images(folder)):
            value = None if i == 0 else float(better and i % 8 != 1)
            rows.append({
                "image": row.sha256, "prompt_id": row.prompt_id, "prompt": row.prompt, "seed": row.seed, "model": row.model,
                "scorer": "vlm@x", "metric": "prompt_following", "version": "1", "revision": "", "reference": None, "value": value,
            })  # fmt: skip
    write_scores(path, rows)
    return path


def report(before, after, out, **how):
    return write_report(before, after, [judged(out.with_suffix(".parquet"), before, after)], out, **how)


def test_folders_of_two_programs_are_compared_by_number_and_the_page_says_so(tmp_path):
    before, after, out = listed(tmp_path / "comfy"), texts(tmp_path / "forge"), tmp_path / "r.html"
    files = {path: path.stat().st_mtime_ns for folder in (before, after) for path in folder.iterdir()}
    summary = report(before, after, out)
    assert {path: path.stat().st_mtime_ns for folder in (before, after) for path in folder.iterdir()} == files
    assert (summary["pairs"], summary["prompts"], summary["call"]) == (24, 12, "better")
    assert summary["models"] == {"before": ["comfy"], "after": ["forge"]}
    assert summary["cautions"][:3] == [
        "Another program made the pictures before and after. How, and on which prompts its model was trained, is not "
        "known, so a difference need not come from training.",
        "Seeds are not known, so the pictures of a prompt are compared by their number, in the order of their names. "
        "They did not start from the same noise, which widens the intervals.",
        "The pictures differ in size: 60 × 40 before and 256 × 128 after.",
    ]
    parsed = Parsed(out.read_text())
    assert {card["data-place"] for card in parsed.cards()} == {"picture 1", "picture 2"}
    assert "Same prompt, same seed" not in parsed.text and "sampled differently" not in parsed.text
    made = parsed.text.partition("How this was made")[2]
    assert "guidance" not in made and "steps" not in made and "seedsnot knownnot known" in made.replace("\n", "")


def test_pictures_stand_upright_on_the_page(tmp_path):
    report(listed(tmp_path / "a"), texts(tmp_path / "b"), tmp_path / "r.html")
    (_, image), *_ = [e for e in Parsed((tmp_path / "r.html").read_text()).elements if e[1].get("class") == "below"]
    assert Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).size == (256, 128)


def test_on_how_many_pictures_prompt_following_rests_is_said(tmp_path):
    report(listed(tmp_path / "a"), listed(tmp_path / "bb"), tmp_path / "r.html")
    text = Parsed((tmp_path / "r.html").read_text()).text
    assert "before and 87.0\u202f% after, on 23 of 24 pairs. Prompts are followed better" in text


def test_seeds_that_are_given_match_whatever_the_files_are_called(tmp_path):
    before, after = listed(tmp_path / "a", seeds=(7, 8)), listed(tmp_path / "bb", seeds=(8, 7))
    summary = report(before, after, tmp_path / "r.html")
    assert (
        "Whether equal seeds began from the same noise is not known; where not, intervals are wider."
        in summary["cautions"]
    )
    cards = Parsed((tmp_path / "r.html").read_text()).cards()
    assert {card["data-place"] for card in cards} == {"seed 7", "seed 8"}
    task = next(iter(of_folders(before, after).tasks.values())).record
    (first,) = (r for r in read_images(before) if r.sha256 == task["before"])
    (second,) = (r for r in read_images(after) if r.sha256 == task["after"])
    assert first.seed == second.seed and first.file != second.file


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            {"count": 3},
            r"lacks 12 pictures that .*: 'a prompt, number 0' picture 3; .* Both folders need the same prompts",
        ),
        ({"prompts": ["others"] * 2}, r"they have no prompt in common\. Both folders need the same prompts"),
        ({"seeds": (100, 101)}, r"but the seeds differ\. The seeds of one folder are not known.* in a column seed"),
    ],
)
def test_folders_that_do_not_match_are_refused_with_what_to_do(tmp_path, how, sentence):
    with pytest.raises(MapoError, match=sentence):
        report(listed(tmp_path / "a"), listed(tmp_path / "bb", **how), tmp_path / "r.html")


def test_that_a_run_made_anybodys_pictures_cannot_be_told(tmp_path, run):
    summary = report(listed(tmp_path / "a"), listed(tmp_path / "bb"), tmp_path / "r.html", run=run)
    assert any("cannot be told: they come from another program" in caution for caution in summary["cautions"])


def test_people_judge_anybodys_pictures(tmp_path):
    before, after = listed(tmp_path / "a"), texts(tmp_path / "b")
    material = of_folders(before, after)
    assert len(material.tasks) == 24
    assert {material.open_picture(name).size for name in material.picture_names()} == {(60, 40), (256, 128)}
    votes = [
        {
            "time": "2026-01-01T00:00:00.000+00:00", "annotator": "ann", "pair": task.pair, "left": task.pictures[0],
            "right": task.pictures[1], "vote": "left" if task.pictures[0] == task.record["after"] else "right", **task.record,
        }
        for task in material.tasks.values()
    ]  # fmt: skip
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    words = [
        "report",
        "--before",
        before,
        "--after",
        after,
        "--votes",
        tmp_path / "votes.jsonl",
        "--out",
        tmp_path / "r.html",
    ]
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 0, done.exception
    assert "After beats before on human preference: it wins 100.0 % of 24 pairs" in done.output


# ------------------------------------------------------------------ tables beside the page


def ask(before, after, out):
    words = [
        "report",
        "--before",
        before,
        "--after",
        after,
        "--scorer",
        "mini-search",
        "--goal",
        "cartoon",
        "--out",
        out,
    ]
    return CliRunner().invoke(cli, list(map(str, words)))


def test_reports_on_folders_of_one_name_keep_a_table_each(tmp_path):
    for name in ("x", "yy"):
        (tmp_path / name).mkdir()
        listed(tmp_path / name / "after", size=(40, 40 + len(name)))
    before = listed(tmp_path / "before", size=(40, 40))
    assert ask(before, tmp_path / "x/after", tmp_path / "x.html").exit_code == 0
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert set(first) == {"before-scores.parquet", "after-scores.parquet"}
    second = ask(before, tmp_path / "yy/after", tmp_path / "y.html")
    assert second.exit_code == 0 and "after-scores.parquet holds scores of other pictures and is kept" in second.output
    both = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert set(both) == {*first, "after-2-scores.parquet"} and {name: both[name] for name in first} == first
    assert "after-2-scores.parquet" in (tmp_path / "y.html").read_text()


def test_the_same_report_again_finds_its_tables(tmp_path, monkeypatch):
    from mapo.lab.mini.scorer import Search

    for name in ("x", "yy"):
        (tmp_path / name).mkdir()
        listed(tmp_path / name / "after", size=(40, 40 + len(name)))
    before = listed(tmp_path / "before", size=(40, 40))
    for name in ("x", "yy"):
        assert ask(before, tmp_path / name / "after", tmp_path / f"{name}.html").exit_code == 0
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    monkeypatch.setattr(Search, "__call__", lambda *_: pytest.fail("it scored"))
    for name in ("x", "yy"):
        assert ask(before, tmp_path / name / "after", tmp_path / f"{name}.html").exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")} == kept


def test_a_file_that_is_no_table_is_not_written_over(tmp_path):
    before, after = listed(tmp_path / "before"), listed(tmp_path / "after")
    (tmp_path / "after-scores.parquet").write_text("mine")
    assert ask(before, after, tmp_path / "r.html").exit_code == 0
    assert (tmp_path / "after-scores.parquet").read_text() == "mine"
