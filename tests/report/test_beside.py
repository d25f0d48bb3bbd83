"""What stands on a page beside the verdict: pictures to learn from, kinds of prompts, metrics that play no part."""

import re

import numpy as np
from PIL import Image
from worlds import Parsed, World

from mapo.sample.beside import Beside


def drawn(side, prompt, seed):
    """A square at the left before; after it stands at the right for the first three prompts, and is of another red."""
    pixels = np.full((48, 48, 3), 200, np.uint8)
    left = side == "before" or int(prompt.split()[1]) > 2
    part = np.s_[12:36, 4:20] if left else np.s_[12:36, 28:44]
    pixels[part] = (250, 20, 20) if side == "before" else (120, 20, 90)
    pixels[0, 0] = [len(prompt), int(prompt.split()[1]), seed]
    return Image.fromarray(pixels)


def first_shown(page):
    stage = next(a for tag, a in Parsed(page).elements if a.get("class", "").startswith("stage"))
    return Parsed(page).cards()[int(stage["data-start"])]


def test_the_slider_begins_with_two_pictures_that_are_laid_out_alike(tmp_path):
    world = World(tmp_path, pictures=drawn, width=48, height=48)
    world.report()
    shown = first_shown(world.page)
    assert shown["data-prompt"] == "prompt 3"
    below, above = re.findall(r'<img class="(?:below|above)" src="([^"]+)"', world.page)
    card = re.search(r'data-prompt="prompt 3" data-seed="0".*?</button>', world.page, re.DOTALL)[0]
    assert re.findall(r'src="([^"]+)"', card) == [above, below]
    assert "Above stands the first pair whose two pictures are laid out alike." in Parsed(world.page).text


def test_where_no_picture_changed_the_slider_begins_with_the_first_pair(tmp_path):
    world = World(tmp_path, pictures=lambda side, prompt, seed: drawn("before", prompt, seed), width=48, height=48)
    world.rows = [{**row, "value": 0.0} for row in world.rows]
    world.report()
    assert first_shown(world.page)["data-prompt"] == "prompt 0"
    assert "laid out alike" not in Parsed(world.page).text


def rows_of(page, section):
    part = page[page.index(f'<section id="{section}"') :]
    part = part[: part.index("</section>")]
    in_sight, _, folded = part.partition("<details>")
    return [re.findall(r'<th scope="row">([a-z ]+)', text) for text in (in_sight, folded)]


def test_other_answers_of_the_scorer_of_the_goal_stand_aside_and_a_scorer_of_its_own_does_not(tmp_path):
    world = World(tmp_path)
    world.add(lambda i: 1, lambda i: i % 2, metric="realistic")
    world.add(lambda i: 0, lambda i: i % 7 == 0, metric="hazard")
    world.add(lambda i: 1, lambda i: i % 5 > 0, metric="prompt_following")
    world.add(lambda i: 20 + i / 7, lambda i: 21 + i / 9, scorer="pickscore", metric="pickscore")
    numbers = world.report()
    for section in ("win-rates", "means"):
        assert rows_of(world.page, section) == [
            ["cartoon", "prompt following", "hazard ", "pickscore"] if section == "win-rates" else
            ["cartoon", "prompt following", "hazard", "pickscore"],
            ["realistic"],
        ]  # fmt: skip
    assert "realistic" in [row["metric"] for row in numbers["comparisons"]]
    assert "1 metric not asked for" in Parsed(world.page).text


def test_without_a_goal_only_what_changed_in_no_picture_stands_aside(tmp_path):
    world = World(tmp_path).add(lambda i: 0, lambda i: 0, metric="sketch").add(lambda i: 0, lambda i: 1, metric="anime")
    world.report(None)
    assert rows_of(world.page, "means") == [["anime", "cartoon"], ["sketch"]]
    world = World(tmp_path / "same")
    world.rows = [{**row, "value": 0.0} for row in world.rows]
    world.report(None)
    assert rows_of(world.page, "means") == [["cartoon"], []]


def test_the_pictures_to_learn_from_are_shown_with_what_is_said_and_each_prompt_says_its_kind(tmp_path):
    world = World(tmp_path).add(lambda i: 1, lambda i: i < 10, metric="prompt_following")
    own = [tmp_path / f"own-{number}.png" for number in range(20)]
    for number, path in enumerate(own):
        Image.new("RGB", (300, 200), (number, 0, 0)).save(path)
    kinds = {
        row.prompt_id: "plain prompt" if place < 10 else "caption, held out" for place, row in enumerate(world.after)
    }
    likest = [(own[3], world.after[4].file), (own[5], "gone.png")]
    more = Beside("Your photos", own, kinds, ["Look at <rex>."], likest, veiled={own[2], own[3]})
    world.report(more=more)
    section = world.page[world.page.index('<section id="own"') :]
    section = section[: section.index("</section>")]
    assert "<h2>Your photos</h2>" in section and "<p>Look at &lt;rex&gt;.</p>" in section
    strip, _, likest = section.partition("<h3>")
    assert strip.count("<img") == 10 and likest.count("<img") == 2 and world.after[4].prompt in likest
    assert strip.count('<label class="veil">') == 1 and likest.count('<label class="veil">') == 2
    assert 'href="#own"' in world.page
    places = {card["data-prompt"]: card["data-place"] for card in Parsed(world.page).cards()}
    assert places["prompt 0"].startswith("plain prompt · seed ") and places["prompt 9"].startswith(
        "caption, held out · "
    )
    part = world.page[world.page.index('<section id="kinds"') :]
    part = part[: part.index("</section>")]
    told = re.findall(r'<th scope="row">([a-z, ]+)<span class="by">([a-z ]+), mini-search, (\d+) pairs', part)
    assert told == [
        ("plain prompt", "cartoon", "10"), ("plain prompt", "prompt following", "10"),
        ("caption, held out", "cartoon", "20"), ("caption, held out", "prompt following", "20"),
    ]  # fmt: skip
    after = re.findall(r"after </span>([\d.]+)", part)
    assert after == ["90.0", "100.0", "90.0", "0.0"]


def test_without_them_nothing_of_it_is_on_the_page(world):
    world.report()
    assert 'id="own"' not in world.page and 'id="kinds"' not in world.page
