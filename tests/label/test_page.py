"""People at the page, in a real headless Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, Browser, Page, serving, until

from apart import run_apart
from data_fixtures import encoded, noise
from mapo.label.blind import pair_key
from mapo.label.grids import on_pairs
from mapo.label.votes import read_votes
from mapo.pairs import PairSet, PairWriter
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images
from mapo.texts import read_json, write_json
from pages import WHOLE, begin, done, look, press_and_wait

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PAIRS = 20
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown", "bad": "x", "skip": "s"}
MINDS: dict[str, list[str]] = {  # what each thinks of the pictures of pair k, whatever side they are shown on
    "ann": ["chosen"] * 8 + ["rejected"] * 4 + ["chosen"] * 4 + ["tie", "bad", "skip", "rejected"],
    "Bob Ö.": ["chosen"] * 8 + ["rejected"] * 4 + ["rejected"] * 2 + ["tie"] * 3 + ["bad", "chosen", "tie"],
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with PairWriter(tmp_path / "pairs", {"made": "by a test"}) as writer:
        for k in range(PAIRS):
            meta = {"chosen": {"of": "chosen"}, "rejected": {"of": "rejected"}}
            chosen, rejected = encoded(noise(2 * k)), encoded(noise(2 * k + 1), "JPEG")
            writer.add_pair(f"prompt {k}", chosen, rejected, meta=meta, source="someone's model")
    return tmp_path / "pairs"


def mapo(*words: Any) -> str:
    done = run_apart("-m", "mapo", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def vote_by_mind(page: Page, pairs: PairSet, name: str) -> None:
    seen = look(page)
    pair = pairs[int(seen["prompt"].split()[1])]
    thought = MINDS[name][int(seen["prompt"].split()[1])]
    picture = {"chosen": pair.chosen, "rejected": pair.rejected}.get(thought)
    side = thought if picture is None else "left" if seen["left"] == picture else "right"
    press_and_wait(page, KEYS[side])


@pytest.mark.long
def test_two_people_label_twenty_pairs_by_keyboard_and_the_exported_set_is_theirs(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    pairs = PairSet(folder)
    with serving(folder) as url:
        people = {name: browser.page() for name in MINDS}
        for name, page in people.items():
            begin(page, url, name)
        for k in range(PAIRS):  # both at once, pair by pair
            for name, page in people.items():
                vote_by_mind(page, pairs, name)
                if name == "ann" and k == 3:  # a slip, taken back
                    before = look(page)
                    press_and_wait(page, "x")
                    press_and_wait(page, "u", -1)
                    assert look(page) == before
                if name == "ann" and k == 9:
                    before = look(page)
                    page.open(url)
                    page.wait(WHOLE)
                    assert look(page)["prompt"] == before["prompt"] and look(page)["left"] == before["left"]
                    assert done(page) == 10 and page.run("document.getElementById('name').textContent") == "ann"
        for page in people.values():
            page.wait("!document.getElementById('end').hidden")
            assert page.problems() == []
    votes = read_votes(folder / "votes.jsonl")
    assert [sum(v.annotator == name for v in votes) for name in MINDS] == [PAIRS, PAIRS]
    assert len((folder / "votes.jsonl").read_text().splitlines()) == 2 * PAIRS + 2  # the slip and its undo
    shown = {(v.annotator, v.pair): v.left for v in votes}
    orders = [[v.pair for v in votes if v.annotator == name] for name in MINDS]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    assert any(shown["ann", pair] != shown["Bob Ö.", pair] for pair in orders[0])

    told = mapo("label", folder, "--summary")
    assert "20 of 20 pairs judged." in told and "over the 19 pairs" in told
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    said = mapo("label", folder, "--apply", "--out", tmp_path / "labeled")
    assert "16 pairs; 3 left out because votes were even; 1 left out because most found both" in said
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    mapo("export", tmp_path / "labeled", "--to", "preference", "--out", tmp_path / "hf")
    rows = [r for f in sorted((tmp_path / "hf/data").iterdir()) for r in pq.read_table(f).to_pylist()]
    found = {int(r["prompt"].split()[1]): r for r in rows}
    expected = dict.fromkeys(range(12), (1.0, 2.0)) | {
        14: (0.75, 2.0),
        15: (0.75, 2.0),
        18: (1.0, 1.0),
        19: (0.75, 2.0),
    }
    assert {k: (r["preference"], r["weight"]) for k, r in found.items()} == expected
    for k, row in found.items():
        sides = ("rejected", "chosen") if k in (8, 9, 10, 11, 19) else ("chosen", "rejected")
        assert json.loads(row["meta"])["chosen"] == {"of": sides[0]}
        assert row["chosen"]["bytes"] == pairs.image_bytes(getattr(pairs[k], sides[0]))
        assert row["rejected"]["bytes"] == pairs.image_bytes(getattr(pairs[k], sides[1]))


def test_a_key_pressed_twice_fast_votes_once(browser: Browser, folder: Path) -> None:
    with serving(folder, "--annotator", "ann") as url:
        page = browser.page()
        begin(page, url, None)
        first = look(page)["prompt"]
        page.run("new Promise((go) => setTimeout(go, 300))")
        for _ in range(2):
            page.press("ArrowLeft")
        page.wait(f"document.getElementById('prompt').textContent !== {json.dumps(first)}")
        page.wait(WHOLE)
        second = look(page)["prompt"]
        page.run(  # held down: the key repeats
            "for (let k = 0; k < 9; k++) document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', repeat: true}))"
        )
        page.run("new Promise((go) => setTimeout(go, 400))")
        assert look(page)["prompt"] == second and done(page) == 1
        page.press("ArrowLeft")
        until(lambda: done(page) == 2, "the vote that was meant")
    assert len(read_votes(folder / "votes.jsonl")) == 2


def test_nothing_that_the_page_loads_tells_which_picture_is_which(browser: Browser, folder: Path) -> None:
    pairs = PairSet(folder)
    with serving(folder, "--annotator", "ann") as url:
        page = browser.page()
        begin(page, url, None)
        for _ in range(3):
            press_and_wait(page, "ArrowRight")
        page.wait(WHOLE)
        urls = [e["request"]["url"] for e in page.events("Network.requestWillBeSent")]
        answers = page.events("Network.responseReceived")
        state = page.run("fetch('state').then((r) => r.text())")
        html = page.run("document.documentElement.outerHTML")
    assert all(u.startswith(url) for u in urls)  # nothing from elsewhere
    kinds = {a["response"]["mimeType"] for a in answers if "/picture/" in a["response"]["url"]}
    assert kinds == {"image/png"}  # though all rejected ones are JPEG
    told = " ".join([state, html, *urls])
    assert not any(word in told.lower() for word in ("chosen", "rejected", "someone's model", ".parquet"))
    assert not any(pair.id in told for pair in pairs)  # a hash with the chosen picture first
    keys = {pair_key(p.prompt, p.chosen, p.rejected) for p in pairs}
    assert all(
        task["pair"] in keys and set(task) == {"pair", "prompt", "left", "right"} for task in json.loads(state)["tasks"]
    )


def test_a_sensitive_set_is_blurred_on_both_sides_until_asked_and_takes_no_vote_unseen(
    browser: Browser, folder: Path
) -> None:
    write_json(folder / "set.json", {**read_json(folder / "set.json", "", ""), "sensitive": True})
    blurred = "[...document.querySelectorAll('.frame img')].map(i => getComputedStyle(i).filter.includes('blur'))"
    with serving(folder, "--annotator", "ann") as url:
        page = browser.page()
        begin(page, url, None)
        assert page.run(blurred) == [True, True]
        page.run("new Promise((go) => setTimeout(go, 300))")
        page.press("ArrowLeft")
        page.press("z")
        page.click("#left .frame")
        assert page.run("document.body.className") == "veiled" and done(page) == 0
        press_and_wait(page, "s")  # a pair may be skipped unseen
        page.wait(WHOLE)
        page.press("b")
        assert page.run(blurred) == [False, False]
        press_and_wait(page, "ArrowLeft")
        page.wait(WHOLE)
        assert page.run(blurred) == [False, False]
        page.press("b")
        assert page.run(blurred) == [True, True]
        page.open(url)
        page.wait(WHOLE)
        assert page.run(blurred) == [True, True]
    assert [v.vote for v in read_votes(folder / "votes.jsonl")] == ["skip", "left"]


def test_zoom_shows_the_same_place_of_both_pictures(browser: Browser, folder: Path) -> None:
    styles = "[...document.querySelectorAll('.frame img')].map(i => i.style.transform + ' ' + i.style.transformOrigin)"
    with serving(folder, "--annotator", "ann") as url:
        page = browser.page()
        begin(page, url, None)
        page.press("z")
        assert page.run(styles) == ["scale(2.5) 50% 50% 0px"] * 2 or page.run(styles) == ["scale(2.5) 50% 50%"] * 2
        press_and_wait(page, "ArrowDown")  # votes count while zoomed
        page.wait(WHOLE)
        page.wait("document.body.className === ''")
        page.click("#right .frame")
        assert len(set(page.run(styles))) == 1 and "scale" in page.run(styles)[0]
        page.press("Escape")
        assert [s.strip() for s in page.run(styles)] == ["", ""]


def test_buttons_do_what_the_keys_do(browser: Browser, folder: Path) -> None:
    with serving(folder, "--annotator", "ann") as url:
        page = browser.page(390, 844, phone=True)
        begin(page, url, None)
        for place, does in enumerate(("left", "right", "tie", "bad", "skip")):
            page.wait(WHOLE)
            page.run("new Promise((go) => setTimeout(go, 300))")
            page.click(f"[data-does={does}]")
            until(lambda wanted=place + 1: done(page) == wanted, does)
        page.click("#choices .undo")
        until(lambda: done(page) == 4, "undo")
        assert page.run("document.documentElement.scrollWidth") <= 390
    assert [v.vote for v in read_votes(folder / "votes.jsonl")] == ["left", "right", "tie", "bad"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures of one prompt, three of another, two of a third, as another program left them."""
    (tmp_path / "own").mkdir()
    for number, prompt in enumerate(["prompt 0"] * 5 + ["prompt 1"] * 3 + ["prompt 2"] * 2):
        (tmp_path / "own" / f"{number}.png").write_bytes(encoded(noise(number)))
        (tmp_path / "own" / f"{number}.txt").write_text(prompt)
    return tmp_path / "own"


GRID = "document.querySelectorAll('.tile img').length > 1 && [...document.querySelectorAll('.tile img')].every(i => i.complete && i.naturalWidth)"


def shown(page: Page) -> list[str]:
    """The hashes of the pictures of a grid as they stand, when they can be judged."""
    page.wait(GRID)
    page.run("new Promise((go) => setTimeout(go, 300))")
    return list(page.run("[...document.querySelectorAll('.tile img')].map(i => i.src.split('/').pop())"))


def wait_for(page: Page, number: int) -> None:
    until(lambda: done(page) == number, f"{number} judged")


def test_two_people_pick_the_best_and_the_worst_of_a_folder_and_go_on_after_a_stop(
    browser: Browser, pictures: Path, tmp_path: Path
) -> None:
    words = (pictures, "--out", tmp_path / "set", "--grid")
    orders: dict[str, list[list[str]]] = {"ann": [], "bob": []}
    with serving(*words) as url:
        for name in orders:
            page = browser.page()
            page.open(url)
            page.wait("!document.getElementById('ask').hidden")
            page.type(name)
            page.press("Enter")
            names = shown(page)
            orders[name].append(sorted(names))
            one, other = sorted(names)[0], sorted(names)[-1]
            if len(names) == 2:
                page.press(str(names.index(one) + 1))  # of two the better one says it all
            elif name == "ann":
                page.press(str(names.index(one) + 1))
                assert page.run("document.querySelector('.best .mark').textContent") == "Best" and done(page) == 0
                page.press("Escape")
                assert page.run("document.querySelectorAll('.best').length") == 0
                page.press(str(names.index(one) + 1))
                page.press("9")  # there is no such picture
                page.press(str(names.index(other) + 1))
            else:
                page.click(f".tile:nth-child({names.index(one) + 1}) .pick")
                page.click(f".tile:nth-child({names.index(other) + 1}) .pick")
            wait_for(page, 1)
            assert "own" not in page.run("fetch('state').then((r) => r.text())") and page.problems() == []
    with serving(*words, "--annotator", "ann") as url:  # the same command goes on
        page = browser.page()
        page.open(url)
        names = shown(page)
        assert done(page) == 1 and sorted(names) not in orders["ann"]
        page.press("ArrowDown")
        wait_for(page, 2)
        page.press("u")
        wait_for(page, 1)
        assert shown(page) == names
        page.press("x")
        wait_for(page, 2)
        shown(page)
        page.press("s")
        page.wait("!document.getElementById('end').hidden")
        assert page.run("document.getElementById('thanks').textContent") == "You have judged all 3 grids. Thank you."
    votes = read_votes(tmp_path / "set/votes.jsonl")
    assert [(v.annotator, v.vote) for v in votes] == [("ann", "left"), ("bob", "left"), ("ann", "bad"), ("ann", "skip")]
    assert all((v.left, v.right) == (min(v.pictures), max(v.pictures)) for v in votes[:2])
    mapo("label", tmp_path / "set", "--apply", "--out", tmp_path / "labeled")
    made = {(pair.chosen, pair.rejected) for pair in PairSet(tmp_path / "labeled")}
    assert made == {(v.left, v.right) for v in on_pairs(votes[:2])}


@pytest.mark.parametrize(("width", "height"), [(390, 844), (844, 390)])
def test_a_grid_fits_a_phone_and_a_picture_of_it_can_be_seen_in_full_size(
    browser: Browser, pictures: Path, tmp_path: Path, width: int, height: int
) -> None:
    with serving(pictures, "--out", tmp_path / "set", "--grid", "--annotator", "ann", "--blur") as url:
        page = browser.page(width, height, phone=True)
        page.open(url)
        names = shown(page)
        blurred = "[...document.querySelectorAll('.tile img')].every(i => getComputedStyle(i).filter.includes('blur'))"
        assert page.run(blurred)
        page.click(".tile:nth-child(1) .pick")
        page.click(".tile:nth-child(2) .pick")
        assert page.run("document.querySelectorAll('.best').length") == 0 and done(page) == 0  # nothing unseen
        page.click("[data-does=veil]")
        assert not page.run(blurred)
        box = page.run(
            "[...document.querySelectorAll('.tile')].map(t => { const r = t.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom, r.width]; })"
        )
        assert all(min(left, top) >= 0 and right <= width and bottom <= height for left, top, right, bottom, _ in box)
        assert min(across for *_, across in box) >= 90
        assert page.run("document.documentElement.scrollWidth") <= width
        page.click(".tile:nth-child(2) .closer")
        assert page.run("document.querySelector('#near-frame img').src.split('/').pop()") == names[1]
        page.click("#near-after")
        assert page.run("document.getElementById('near-number').textContent").endswith(f"of {len(names)}")
        page.click("#near-before")
        page.click("#near-pick")
        if len(names) > 2:
            page.click("#near-before")
            assert page.run("document.getElementById('near-pick').textContent") == "This is the worst"
            page.press("Enter")
        wait_for(page, 1)
        assert page.run("document.getElementById('near').hidden") and page.problems() == []
    (vote,) = read_votes(tmp_path / "set/votes.jsonl")
    assert (vote.left, vote.right) == (names[1], names[0])


def test_a_server_that_has_gone_is_said_and_no_vote_is_lost(browser: Browser, folder: Path) -> None:
    with serving(folder, "--annotator", "ann") as url:
        page = browser.page()
        begin(page, url, None)
        press_and_wait(page, "ArrowLeft")
        page.wait(WHOLE)
        seen = look(page)
        page.run("new Promise((go) => setTimeout(go, 300))")
    page.press("ArrowLeft")
    page.wait("!document.getElementById('trouble').hidden")
    assert "does not answer" in page.run("document.getElementById('trouble').textContent")
    assert look(page) == seen and done(page) == 1
    assert len(read_votes(folder / "votes.jsonl")) == 1


def test_two_images_folders_are_compared_blindly(browser: Browser, tmp_path: Path) -> None:
    for side, seed in (("before", 0), ("after", 100)):
        data = [encoded(noise(seed + k)) for k in range(4)]
        from mapo.files import sha256

        rows = [
            ImageRow(f"{k}.png", prompt_id(f"prompt {k}"), f"prompt {k}", 7, 7, sha256(data[k]), f"the {side} model")
            for k in range(4)
        ]
        append_images(tmp_path / side, rows, data)
    words = ("--before", tmp_path / "before", "--after", tmp_path / "after", "--annotator", "ann")
    after = {json.loads(line)["sha256"] for line in (tmp_path / "after/manifest.jsonl").read_text().splitlines()}
    with serving(*words, "--out", tmp_path / "votes.jsonl", "--blur") as url:
        page = browser.page()
        begin(page, url, None)
        page.press("b")
        for k in range(3):
            seen = look(page)
            wanted = seen["left"] in after if k < 2 else seen["left"] not in after
            press_and_wait(page, "ArrowLeft" if wanted else "ArrowRight")
        press_and_wait(page, "ArrowDown")
        assert "model" not in page.run("fetch('state').then((r) => r.text())")
    votes = read_votes(tmp_path / "votes.jsonl")
    assert [v.outcome for v in votes] == ["after", "after", "before", "tie"]
    assert {v.seed for v in votes} == {7} and {v.prompt_id for v in votes} == {
        prompt_id(f"prompt {k}") for k in range(4)
    }
