"""The page, the numbers and the exit code of `mapo check`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sets import check, named, png, random_rows, replace_picture, write_set

from mapo.check import gallery
from mapo.check.check import check_pairs, lines
from mapo.cli import cli
from mapo.pairs import PairSet

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Every element of a page, its attributes, and its cards."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.source = (folder / "check.html").read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, kind: str) -> int:
        return sum(t == tag and kind in (a.get("class") or "").split() for t, a in self.elements)


def test_texts_of_the_set_are_text_on_the_page(tmp_path: Path) -> None:
    rows = [(EVIL, png(1), png(2), {"source": EVIL, "group": EVIL}), (EVIL.upper(), png(1), png(3))]
    check(write_set(tmp_path / "set", rows))
    page = Page(tmp_path)
    assert "<script>alert" not in page.source
    assert [a for tag, a in page.elements if tag == "script"] == [{"type": "application/json", "id": "summary"}]
    assert not any("onerror" in a for _, a in page.elements)
    assert EVIL in page.text


def test_the_page_asks_nothing_of_the_network_and_carries_its_numbers(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", random_rows(3))
    summary = check(folder, json_file=tmp_path / "numbers.json")
    page = Page(tmp_path)
    assert "http://" not in page.source and "https://" not in page.source
    assert all((a.get("src") or "data:").startswith("data:") for _, a in page.elements)
    found = re.search(r'<script type="application/json" id="summary">(.*?)</script>', page.source, re.DOTALL)
    assert found
    plain = json.loads(json.dumps(summary))
    assert json.loads(found[1]) == json.loads((tmp_path / "numbers.json").read_text("utf-8")) == plain
    assert sorted(p.name for p in tmp_path.iterdir()) == ["check.html", "numbers.json", "set"]


def test_the_same_set_makes_the_same_page_to_the_byte(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", random_rows(30))
    pages = []
    for _ in range(2):
        check(folder)
        pages.append((tmp_path / "check.html").read_bytes())
    assert pages[0] == pages[1]


def test_no_more_than_24_pairs_are_shown_at_random(tmp_path: Path) -> None:
    check(write_set(tmp_path / "set", random_rows(gallery.SHOWN + 6, split="train")))
    page = Page(tmp_path)
    assert page.count("article", "pair") == gallery.SHOWN
    assert "24 of 30 pairs" in page.text


def test_a_broken_picture_has_a_card_only_where_it_is_suspicious_and_says_why(tmp_path: Path) -> None:
    rows = [*random_rows(4), ("prompt 0", png(1), png(0))]  # contradicts row 0
    folder = write_set(tmp_path / "set", rows)
    replace_picture(folder, png(1), b"broken")
    check(folder)
    page = Page(tmp_path)
    assert page.count("div", "gone") == 2  # once rejected, once chosen
    assert "rejected: it is not in a known picture format" in page.text


@pytest.mark.parametrize("sensitive", [False, True])
def test_rejected_pictures_of_a_sensitive_set_are_veiled_until_asked(tmp_path: Path, sensitive: bool) -> None:
    check(write_set(tmp_path / "set", random_rows(5), sensitive))
    page = Page(tmp_path)
    assert page.count("label", "veil") == (5 if sensitive else 0)
    assert ("marked sensitive" in page.text) == sensitive
    boxes = [a for tag, a in page.elements if tag == "input"]
    assert all(a["type"] == "checkbox" and "checked" not in a for a in boxes)


def test_a_picture_that_is_rejected_anywhere_is_veiled_everywhere_and_of_a_tie_both(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [
        ("a", png(1), png(2)),
        ("b", png(2), png(3)),
        ("c", png(4), png(5), {"preference": 0.5}),
    ]
    check(write_set(tmp_path / "set", rows, sensitive=True))
    random = Page(tmp_path).source.split('id="random"')[1]
    cards = random.split('<article class="pair">')[1:]
    assert [card.count('class="veil') for card in cards] == [1, 2, 2]


def test_chosen_pictures_of_files_that_look_unsafe_are_veiled(tmp_path: Path) -> None:
    rows = [(name, png(k), png(k + 3), {"meta": {"file": f"{name}.png"}}) for k, name in enumerate("abc")]
    check(write_set(tmp_path / "set", rows), veiled={"b.png"})
    cards = Page(tmp_path).source.split('id="random"')[1].split('<article class="pair">')[1:]
    assert [card.count('class="veil') for card in cards] == [0, 1, 0]


def run(*words: Any) -> Any:
    return CliRunner().invoke(cli, ["check", *map(str, words)])


def test_the_exit_code_tells_errors_and_with_strict_warnings(tmp_path: Path) -> None:
    page = ["--out", tmp_path / "check.html"]
    clean = write_set(tmp_path / "clean", random_rows(30))
    warned = write_set(tmp_path / "warned", [*random_rows(30), ("prompt 0", png(1), png(0))])
    broken = write_set(tmp_path / "broken", random_rows(30))
    replace_picture(broken, png(0), b"broken")
    assert [run(s, *page).exit_code for s in (clean, warned, broken)] == [0, 0, 1]
    assert [run(s, *page, "--strict").exit_code for s in (clean, warned, broken)] == [0, 1, 1]


def test_the_terminal_shows_findings_rows_aucs_and_the_page(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [*random_rows(30, split="train"), ("\x1b[31mred", png(70), png(71))])
    for k in range(7):
        replace_picture(folder, png(2 * k), b"broken" * (k + 1))
    replace_picture(folder, png(70), b"red")
    said = run(folder, "--out", tmp_path / "check.html").output
    assert re.search(r"^error    Unreadable pictures: 8 in 8 pairs\.$", said, re.M)
    assert (
        re.search(r"^ +row 4: “prompt 4” chosen: it is not in a known picture format", said, re.M)
        and "and 3 more" in said
    )
    assert re.search(r"^ +and 3 more\n +Make or import the set again, leaving these pictures out\.$", said, re.M)
    assert re.search(r"^brightness +0\.\d\d +0\.\d\d to 0\.\d\d +0\.\d\d +23$", said, re.M)
    assert "\x1b" not in said
    assert said.endswith(f"the page is {tmp_path / 'check.html'}\n")


def test_lines_say_what_the_summary_says(tmp_path: Path) -> None:
    summary = check(write_set(tmp_path / "set", random_rows(12)))
    told = lines(summary)
    assert told[-1] == summary["verdict"]
    assert sum("24" in line for line in told) == 0
    assert sum(line.endswith(" 12") for line in told) == len(summary["leaks"]) + 1


def test_without_a_model_no_torch_is_loaded(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", random_rows(2))
    code = (
        "import sys; from pathlib import Path; from mapo.check.check import check_pairs; from mapo.pairs import PairSet\n"
        f"check_pairs(PairSet(Path({str(folder)!r})), Path({str(tmp_path / 'check.html')!r}))\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_page_in_the_set_itself_leaves_the_set_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mapo check .` writes it, where somebody stands in the set."""
    folder = write_set(tmp_path / "set", random_rows(2))
    before, whole = PairSet(folder).fingerprint(), sorted(path.name for path in folder.iterdir())
    monkeypatch.chdir(folder)
    for _ in range(2):
        check_pairs(PairSet(Path()), Path("check.html"))
    assert sorted(path.name for path in folder.iterdir()) == sorted([*whole, "check.html"])
    assert PairSet(folder).fingerprint() == before and PairSet(folder)[0].prompt == "prompt 0"


def test_what_cannot_be_checked_is_refused_and_leaves_no_page(tmp_path: Path) -> None:
    from mapo.errors import MapoError

    folder = write_set(tmp_path / "set", random_rows(2))
    with pytest.raises(MapoError, match="there is no folder or file ./nowhere"):
        check(folder, model="./nowhere")
    for where, why in (
        ({"out": tmp_path / "set"}, "set is a folder. Name the file to write, such as .*/set/check.html"),
        ({"out": tmp_path / "set" / "pairs.parquet"}, "pairs.parquet belongs to the set itself"),
        ({"out": tmp_path / "set" / "images-00000.parquet"}, "images-00000.parquet belongs to the set itself"),
        (
            {"out": tmp_path / "a.html", "json_file": tmp_path / "set" / "set.json"},
            "set.json belongs to the set itself",
        ),
        ({"out": tmp_path / "a.html", "json_file": tmp_path / "set" / ".." / "a.html"}, "--json names the page"),
    ):
        with pytest.raises(MapoError, match=why):
            check_pairs(PairSet(folder), **where)
    assert [p.name for p in tmp_path.iterdir()] == ["set"] and len(PairSet(folder)) == 2


def test_a_page_and_numbers_take_the_place_of_their_own_kind_only(tmp_path: Path) -> None:
    from mapo.errors import MapoError

    folder = write_set(tmp_path / "set", random_rows(2))
    numbers, notes, config = tmp_path / "numbers.json", tmp_path / "notes.py", tmp_path / "config.json"
    for _ in range(2):  # the same command again writes both anew
        check(folder, json_file=numbers)
    notes.write_text("print()\n")
    config.write_text('{\n "version": 1\n}\n')
    files = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    for how, why in (
        ({"out": notes}, r"--out: .*notes\.py exists and is not an HTML page"),
        ({"out": numbers}, r"--out: .*numbers\.json exists and is not an HTML page"),
        ({"json_file": config}, r"--json: .*config\.json exists and is not a file of `mapo check --json`"),
        ({"json_file": notes}, r"--json: .*notes\.py exists and is not a file of `mapo check --json`"),
    ):
        with pytest.raises(MapoError, match=why):
            check_pairs(PairSet(folder), **{"out": tmp_path / "check.html", **how})
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == files


def test_a_set_without_rejected_pictures_is_looked_at_and_no_leak_is_looked_for(tmp_path: Path) -> None:
    rows = [(f"prompt {k}", png(k), None) for k in range(8)]
    folder = write_set(
        tmp_path / "set", [*rows, ("another prompt", png(3), None), ("prompt 0", png(90, (40, 8)), None)]
    )
    replace_picture(folder, png(5), png(5)[:100])
    summary = check(folder, json_file=tmp_path / "numbers.json")
    found = named(summary)
    assert not summary["has_rejected"] and summary["leaks"] == [] and summary["pairs"] == 10
    assert found["no_rejected"]["remedy"] == "Train with --objective sft."
    assert found["unreadable"]["rows"][0][1].count("chosen") == 1 and "rejected" not in str(found["unreadable"]["rows"])
    assert found["mostly_cropped"]["rows"][0][1] == "“prompt 0” chosen 80% cut away"
    assert found["repeated_pictures"]["says"] == "Pictures in several pairs: 1 of 9, one in up to 2."
    unfit = {"same_picture", "nearly_same", "sizes_differ", "equal_after_crop", "leak_file", "leak_unsure", "unused"}
    assert unfit.isdisjoint(found)
    assert summary["errors"] == 1 and "paired AUC" not in "\n".join(lines(summary))
    page = Page(tmp_path)
    assert page.count("article", "pair") == 9 and page.text.count("chosen") > 0
    assert "Leak test" not in page.text and "told by statistics alone" not in page.text
    assert page.count("span", "rejected") == 0
