"""The page in a real headless Chromium: what moves, in light and dark, on a desk and on a phone."""

import re

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from worlds import World

from mapo.report.report import FIRST_PAIRS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

AT = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--at')"
CUT = "getComputedStyle(document.querySelector('.stage .above')).clipPath"
BOX = "(() => { const r = document.querySelector('.stage').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
COLOURS = "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; })()"
TOO_WIDE = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre, svg')).map(e => e.tagName + '.' + e.className)"


def painted(side, prompt, seed):
    """A picture of 200 pixels, so that it is embedded as WebP and not left as it is."""
    rng = np.random.default_rng(abs(hash((prompt, seed))) % 2**32)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    return small.resize((200, 200), Image.Resampling.BICUBIC if side == "before" else Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with everything on it, at a long and unbroken model name and prompt."""
    root = tmp_path_factory.mktemp("world")
    long = "m" * 120
    world = World(root, model=long, pictures=painted, width=200, height=200)
    world.add(lambda i: 20 + i / 7, lambda i: 21 + i / 9, scorer="pickscore", metric="pickscore")
    world.add(lambda i: 1, lambda i: i % 5 > 0, metric="prompt_following")
    for metric in ("saturation", "edge_density", "colour_entropy", "diversity"):
        world.add(lambda i: 0.3 + i / 100, lambda i: 0.9 + i / 90, scorer="guards", metric=metric)
    run = root / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        "".join(
            f'{{"step": {k}, "error_chosen": 0.1, "error_rejected": 0.2, "margin": 0.{k}, "accuracy": 0.7}}\n'
            for k in range(1, 60)
        )
    )
    (run / "config.toml").write_text(f'model = "{long}"\npairs = "/nowhere/{long}"\n')
    world.report("cartoon", run=run, votes=[world.vote("votes.jsonl", ["after", "before", "tie"] * 8)])
    return (root / "report.html").as_uri()


def bring(page, selector):
    """Scroll there at once, and click nothing yet."""
    page.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")


def number(text):
    return float(re.match(r"\s*([\d.]+)%", text)[1])


def cut(page):
    """How much of the upper picture is cut away from the right, as the browser resolved it."""
    return page.run(CUT)


def test_the_slider_follows_the_mouse(browser, address):
    page = browser.page()
    page.open(address)
    bring(page, ".stage")
    x, y, width, height = page.run(BOX)
    assert number(page.run(AT)) == 50
    before = cut(page)
    mouse = {"y": y + height / 2, "button": "left", "clickCount": 1}
    page.send("Input.dispatchMouseEvent", type="mousePressed", x=x + width * 0.3, **mouse)
    assert number(page.run(AT)) == pytest.approx(30, abs=1)
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + width * 0.8, buttons=1, **mouse)
    assert number(page.run(AT)) == pytest.approx(80, abs=1) and cut(page) != before
    page.send("Input.dispatchMouseEvent", type="mouseReleased", x=x + width * 0.8, **mouse)
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + width * 0.1, y=y + height / 2)
    assert number(page.run(AT)) == pytest.approx(80, abs=1)


def test_the_slider_follows_a_finger(browser, address):
    page = browser.page(390, 844, phone=True)
    page.open(address)
    bring(page, ".stage")
    x, y, width, height = page.run(BOX)
    at = y + height / 2
    page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x + width / 2, "y": at}])
    for share in (0.5, 0.4, 0.3, 0.2):
        page.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x + width * share, "y": at}])
    page.wait(f"Math.abs(parseFloat({AT}) - 20) < 1")
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def test_the_slider_follows_the_arrow_keys_and_says_where_it_is(browser, address):
    page = browser.page()
    page.open(address)
    page.run("document.querySelector('.stage input').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    assert number(page.run(AT)) == 53
    page.press("ArrowLeft")
    assert number(page.run(AT)) == 52
    assert "per cent" in page.run("document.querySelector('.stage input').getAttribute('aria-label')")
    assert page.run("getComputedStyle(document.querySelector('.stage')).outlineStyle") == "solid"


def test_a_card_is_shown_on_the_stage_and_next_goes_round(browser, address):
    page = browser.page()
    page.open(address)
    shown, prompt = (
        "document.querySelector('.beside .says').textContent",
        "[...document.querySelectorAll('#pictures .card')][{}].dataset.prompt",
    )
    start = int(page.run("document.querySelector('.stage').dataset.start"))
    assert page.run(shown) == page.run(prompt.format(start)) and start < FIRST_PAIRS
    assert page.run("document.getElementById('place').textContent") == f"{start + 1} of 30"
    first = page.run(prompt.format(0))
    bring(page, ".grid .card:nth-child(4)")
    page.click(".grid .card:nth-child(4)")
    wanted = page.run("document.querySelector('.grid .card:nth-child(4)').dataset.prompt")
    assert page.run(shown) == wanted != first
    same = "(() => { const c = document.querySelectorAll('.grid .card')[3].querySelectorAll('img'); return document.querySelector('.above').src === c[0].src && document.querySelector('.below').src === c[1].src; })()"
    assert page.run(same)
    assert page.run("document.getElementById('place').textContent") == "4 of 30"
    for _ in range(27):
        page.run("document.getElementById('next').click()")
    assert page.run(shown) == first


def test_the_page_asks_nothing_of_the_network_and_complains_of_nothing(browser, address):
    page = browser.page()
    page.open(address)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    asked = [e["request"]["url"] for e in page.events("Network.requestWillBeSent")]
    assert asked[0] == address and all(url.startswith("data:") for url in asked[1:])
    assert page.events("Log.entryAdded") == [] and page.events("Runtime.exceptionThrown") == []


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_sticks_out_to_the_right(browser, address, width):
    page = browser.page(width, 800, phone=width < 500)
    page.open(address)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run(TOO_WIDE) == []
    assert page.run("document.scrollingElement.scrollWidth") <= width


def luminance(colour):
    linear = [
        c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in map(int, re.findall(r"\d+", colour)[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_follow_the_system_and_are_readable(browser, address, dark):
    page = browser.page(dark=dark)
    page.open(address)
    paper, ink = page.run(COLOURS)
    assert (luminance(paper) < 0.05) is dark and contrast(paper, ink) > 12
    for part in (".note", ".eyebrow", "figcaption", "nav a", ".num.range", "svg text"):
        name = "fill" if part == "svg text" else "color"
        assert contrast(paper, page.run(f"getComputedStyle(document.querySelector({part!r})).{name}")) > 4.5, part
    warning = page.run(
        "(() => { const s = getComputedStyle(document.querySelector('aside')); return [s.backgroundColor, s.color]; })()"
    )
    assert contrast(*warning) > 4.5
    line = page.run(
        "getComputedStyle([...document.querySelectorAll('#distributions svg path')].find(p => p.style.stroke.includes('--after'))).stroke"
    )
    assert contrast(paper, line) > 3


def test_more_pairs_unfold(browser, address):
    page = browser.page()
    page.open(address)
    seen = "[...document.querySelectorAll('#pictures .card')].filter(c => c.checkVisibility()).length"
    assert page.run(seen) == FIRST_PAIRS
    bring(page, "#pictures summary")
    page.click("#pictures summary")
    page.wait(f"{seen} === 30")


def test_sensitive_pictures_are_blurred_until_asked(browser, tmp_path):
    world = World(tmp_path)
    world.report(blur=True)
    page = browser.page()
    page.open((tmp_path / "report.html").as_uri())
    blur = "getComputedStyle(document.querySelector('.stage img')).filter"
    assert "blur" in page.run(blur)
    page.click("#show-pictures")
    assert page.run(blur) == "none"
