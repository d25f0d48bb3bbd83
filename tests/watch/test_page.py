"""The page of a run in a real headless Chromium, on a desk and on a phone."""

import json

import pytest
from browser import CHROMIUM, Browser, serving
from runs import PROMPTS, add, draw, evaluation, line, make_run

from mapo.shards import owned

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

READY = "document.getElementById('name').textContent !== ''"
TOO_WIDE = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('svg')).map(e => e.tagName + '.' + e.className)"
TEXT = "document.querySelector('main').innerText"
PICTURES = "[...document.querySelectorAll('#pictures img')].map(i => i.getAttribute('src'))"
LOADED = "[...document.querySelectorAll('#pictures img')].every(i => i.complete && i.naturalWidth > 0)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def opened(browser, url, **how):
    page = browser.page(**how)
    page.open(url)
    page.wait(READY)
    return page


def test_what_happens_in_the_run_is_on_the_page_without_a_reload(browser, tmp_path):
    run = make_run(tmp_path / "run")
    with owned(run.folder), serving(run.folder, verb="watch") as url:
        page = opened(browser, url)
        said = page.run(TEXT)
        assert "running" in said and "120 of 200" in said and "3 min" in said and "3.0 GiB" in said
        assert page.run("document.querySelectorAll('figure svg').length") == 7
        assert page.run("document.getElementById('alarms').hidden") is True
        page.wait(LOADED)
        assert page.run(PICTURES) == [f"picture/{step}/{k}.png" for k in range(2) for step in (0, 50, 100)]
        add(run.log, map(line, range(121, 151)))
        add(run.evaluation_log, [evaluation(150)])
        add(run.alarm_log, [{"step": 150, "name": "both_errors_rise", "says": "Both errors <rise>."}])
        draw(run, 150)
        page.wait(f"{TEXT}.includes('150 of 200')")
        assert "At step 150: Both errors <rise>." in page.run(TEXT) and "best so far\nstep 150" in page.run(TEXT)
        assert page.run(PICTURES)[3] == "picture/150/0.png"
        assert page.run("document.querySelector('#held svg').getAttribute('aria-label')") == "Accuracy: Now 65\u202f%."
        assert page.run("document.getElementById('bar').value") == 150
        assert page.problems() == []


@pytest.mark.parametrize(
    "how", [{"width": 1280}, {"width": 390, "height": 844, "phone": True}, {"width": 320, "phone": True}]
)
def test_nothing_is_wider_than_the_screen(browser, tmp_path, how):
    run = make_run(tmp_path / ("r" * 120), pictures=(0, 50, 100, 110, 120))
    add(run.alarm_log, [{"step": 9, "name": "leak", "says": "x" * 200}])
    with serving(run.folder, verb="watch") as url:
        page = opened(browser, url, **how)
        page.wait(LOADED)
        assert page.run(TOO_WIDE) == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") is False
        assert page.problems() == []


def test_it_is_dark_where_the_system_is(browser, tmp_path):
    with serving(make_run(tmp_path / "run").folder, verb="watch") as url:
        colours = [
            opened(browser, url, dark=dark).run("getComputedStyle(document.body).backgroundColor")
            for dark in (False, True)
        ]
    assert colours == ["rgb(253, 253, 251)", "rgb(21, 21, 23)"]


def test_pictures_of_a_sensitive_set_are_blurred_until_asked(browser, tmp_path):
    blurred = "getComputedStyle(document.querySelector('#pictures img')).filter"
    with serving(make_run(tmp_path / "run", sensitive=True).folder, verb="watch") as url:
        page = opened(browser, url)
        assert "blur" in page.run(blurred)
        page.run("document.getElementById('veil').click()")
        assert (
            page.run(blurred) == "none" and page.run("document.getElementById('veil').textContent") == "Blur pictures"
        )
    with serving(make_run(tmp_path / "plain").folder, verb="watch") as url:
        page = opened(browser, url)
        assert page.run(blurred) == "none" and page.run("document.getElementById('veil').hidden") is True


def test_many_steps_are_spread_until_all_are_asked_for_and_a_picture_opens_large(browser, tmp_path):
    run = make_run(tmp_path / "run", pictures=range(0, 120, 10))
    with serving(run.folder, verb="watch") as url:
        page = opened(browser, url)
        steps = [int(source.split("/")[1]) for source in page.run(PICTURES)[:8]]
        assert len(page.run(PICTURES)) == 16 and steps[0] == 0 and steps[-1] == 110
        page.run("document.getElementById('all').click()")
        assert len(page.run(PICTURES)) == 24
        page.run("document.querySelectorAll('#pictures button')[1].click()")
        assert page.run("document.getElementById('large').open") is True
        assert page.run("document.getElementById('caption').textContent") == f"{PROMPTS[0]} · step 10"
        page.press("Escape")
        page.wait("document.getElementById('large').open === false")


def test_a_finished_run_and_one_that_has_not_begun_have_their_page(browser, tmp_path):
    finished = make_run(tmp_path / "finished", done=200)
    weights = finished.folder / "weights"
    weights.mkdir()
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"x": zeros(1)}, weights / "pytorch_lora_weights.safetensors")
    (finished.folder / "run.json").write_text(json.dumps({"steps": 200}))
    with serving(finished.folder, verb="watch") as url:
        page = opened(browser, url)
        assert "finished" in page.run(TEXT) and "left, about" not in page.run(TEXT)
    with serving(make_run(tmp_path / "new", done=0, pictures=()).folder, verb="watch") as url:
        page = opened(browser, url)
        assert "No step is done yet. This page goes on by itself." in page.run(TEXT)
        assert page.problems() == []


def test_the_page_says_when_its_server_is_gone(browser, tmp_path):
    run = make_run(tmp_path / "run")
    with owned(run.folder):
        with serving(run.folder, verb="watch") as url:
            page = opened(browser, url)
        page.wait("!document.getElementById('trouble').hidden")
    assert "The training does not depend on it" in page.run("document.getElementById('trouble').textContent")
