"""What a person does at the labelling page, for tests."""

from __future__ import annotations

import re
from typing import Any

from browser import Page

LOOK = """(() => ({
  prompt: document.getElementById("prompt").textContent,
  left: (document.querySelector("#left img") || {}).src || "",
  right: (document.querySelector("#right img") || {}).src || "",
  count: document.getElementById("count").textContent,
}))()"""
WHOLE = "document.querySelectorAll('.frame img').length === 2 && [...document.querySelectorAll('.frame img')].every(i => i.complete && i.naturalWidth)"
HOLD = 300  # milliseconds after which a newly shown pair takes a vote, and a little


def begin(page: Page, url: str, name: str | None) -> None:
    page.open(url)
    if name is not None:
        page.wait("!document.getElementById('ask').hidden")
        page.type(name)
        page.press("Enter")
    page.wait(WHOLE)


def look(page: Page) -> dict[str, Any]:
    """What is shown: prompt, and hashes of the pictures on the left and on the right."""
    page.wait(WHOLE)
    seen = page.run(LOOK)
    for side in ("left", "right"):
        seen[side] = re.search(r"/picture/([0-9a-f]{64})$", seen[side])[1]
    return seen


def done(page: Page) -> int:
    return int(page.run("document.getElementById('bar').value"))


def press_and_wait(page: Page, key: str, change: int = 1) -> None:
    """Press a key when the pair has been there long enough, and wait until the server has taken it."""
    page.wait(WHOLE)
    page.run(f"new Promise((go) => setTimeout(go, {HOLD}))")
    before = done(page)
    page.press(key)
    page.wait(f"document.getElementById('bar').value === {before + change}")
