import json
import re

import pytest
from worlds import Parsed, World, make_images, score_rows

from mapo.errors import MapoError
from mapo.report.report import SHOWN_PAIRS
from mapo.sample.folder import read_pictures


def test_the_page_asks_nothing_of_the_network(world, run):
    world.report(run=run)
    parsed = Parsed(world.page)
    assert "http://" not in world.page and "https://" not in world.page
    assert not {tag for tag, _ in parsed.elements} & {"link", "iframe", "object", "embed"}
    for tag, attributes in parsed.elements:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith("#"), tag
    assert any("default-src 'none'" in (a.get("content") or "") for _, a in parsed.elements)
    assert "@import" not in world.page and "url(http" not in world.page


def test_a_prompt_is_text_wherever_it_is_shown(tmp_path):
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    world = World(tmp_path)
    world.prompts = [evil, *world.prompts]
    for side in ("before", "after"):
        setattr(
            world, side, getattr(world, side) + make_images(tmp_path / side, side, [evil], model=f"</script>{evil}")
        )
    world.rows = score_rows(world.before, lambda i: 0) + score_rows(world.after, lambda i: 1)
    world.report()
    parsed = Parsed(world.page)
    assert "<script>alert" not in world.page
    assert [a for tag, a in parsed.elements if tag == "script"] == [{"type": "application/json", "id": "summary"}, {}]
    assert not any("onerror" in a for _, a in parsed.elements)
    assert evil in [c["data-prompt"] for c in parsed.cards()]


def test_the_page_carries_the_numbers_it_returns(world):
    summary = world.report()
    found = re.search(r'<script type="application/json" id="summary">(.*?)</script>', world.page, re.DOTALL)
    assert json.loads(found[1]) == summary
    assert summary["pairs"] == 30 and summary["prompts"] == 15
    assert summary["models"] == {"before": ["model-before"], "after": ["model-after"]}


def test_the_same_files_make_the_same_page_to_the_byte(world, run):
    world.report(run=run)
    first = world.page
    world.report(run=run)
    assert world.page == first


def test_no_name_is_given_twice_on_a_page(world, run):
    world.report(run=run)
    names = [a["id"] for _, a in Parsed(world.page).elements if "id" in a]
    assert len(names) == len(set(names))


def test_a_report_that_fails_leaves_the_old_page(world):
    world.report()
    world.rows[0]["image"] = "0" * 64
    with pytest.raises(MapoError):
        world.report()
    assert (world.root / "report.html").read_text("utf-8") == world.page


def test_a_folder_is_not_compared_with_itself(tmp_path):
    before = World(tmp_path).root / "before"
    (tmp_path / "link").symlink_to(before)
    with pytest.raises(MapoError, match=r"--before and --after are both \S+before\. Give the pictures of two models\."):
        read_pictures(before, tmp_path / "link")


def test_sampling_and_scorers_are_named(world):
    world.report()
    text = Parsed(world.page).text
    for words in ("model-before", "model-after", "euler", "0, 1", "mini-search", "1 r1", "scores.parquet"):
        assert words in text


def test_the_page_is_written_where_it_was_asked_for_and_nowhere_else(world):
    world.report()
    assert sorted(p.name for p in world.root.iterdir()) == ["after", "before", "report.html", "scores.parquet"]


def test_a_page_shows_up_to_250_pairs_of_all_prompts(tmp_path):
    world = World(tmp_path, prompts=130)
    world.report()
    cards = Parsed(world.page).cards()
    shown = [(c["data-prompt"], c["data-seed"]) for c in cards[:SHOWN_PAIRS]]
    assert len(set(shown)) == SHOWN_PAIRS == 250 and {p for p, _ in shown} == set(world.prompts)
    assert "250 of 260 pairs" in Parsed(world.page).text
    assert (tmp_path / "report.html").stat().st_size < 1e6


def test_every_picture_is_in_the_page_once_for_each_card(world):
    world.report()
    sources = [a["src"] for tag, a in Parsed(world.page).elements if tag == "img"]
    assert len(sources) == 2 * (1 + len(Parsed(world.page).cards()))
    assert "All 30 pairs" in Parsed(world.page).text


def test_curves_and_configuration_of_a_run_are_shown(world, run):
    world.report(run=run)
    text = Parsed(world.page).text
    assert world.page.count("<svg") == 3  # cartoon is yes or no, so it has no histogram
    # steps 91-100 against 1-10: (0.1 - 0.00955) / (0.1 - 0.00055) - 1
    assert "Relative to the first 10 steps" in text and "chosen \u22129.0\u202f%, rejected +0.0\u202f%" in text
    assert "# <b>bold</b>" in text and "<b>bold" not in world.page


def test_without_a_run_there_is_no_training_section(world):
    world.report()
    assert 'id="training"' not in world.page


def test_a_folder_that_is_no_run_is_refused(world, tmp_path):
    with pytest.raises(MapoError, match=r"has no metrics\.jsonl"):
        world.report(run=tmp_path / "before")


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_damaged_run_or_folder_is_told(tmp_path, run, text):
    world = World(tmp_path)
    (run / "run.json").write_text(text)
    with pytest.raises(MapoError, match=r"run\.json .*Give a folder that `mapo train` made"):
        world.report(run=run)
    (tmp_path / "after" / "images.json").write_text(text)
    with pytest.raises(MapoError, match=r"images\.json .*mapo sample"):
        world.report()


def test_pictures_of_a_run_on_sensitive_pairs_are_blurred_until_asked(tmp_path, run):
    world = World(tmp_path)
    cases = (
        (False, False, False, False),
        (True, False, False, True),
        (False, True, False, True),
        (False, False, True, True),
    )
    for run_is, folder_is, blur, want in cases:
        (run / "run.json").write_text(json.dumps({"sensitive": run_is}))
        (tmp_path / "after" / "images.json").write_text(json.dumps({"sensitive": folder_is}))
        world.report(run=run, blur=blur)
        boxes = [a for tag, a in Parsed(world.page).elements if tag == "input" and a.get("id") == "show-pictures"]
        assert len(boxes) == want and all("checked" not in box for box in boxes)
    assert re.search(r"#show-pictures:not\(:checked\) ~ main img \{ filter: blur", world.page)
    assert world.page.index('id="show-pictures"') < world.page.index("<main>")
