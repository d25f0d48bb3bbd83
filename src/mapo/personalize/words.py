"""The words of a personalization: a token for the subject, a class word for its like, and captions with either."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mapo.errors import MapoError, reason
from mapo.texts import read_text

PLACE = "{}"  # where the word stands in a template


@dataclass(frozen=True)
class Words:
    """``token`` stands for the subject where ``noun`` would stand for any of its kind: a <dog>, a dog."""

    token: str
    noun: str
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.noun.strip():
            raise MapoError("--class is empty. Name what the subject is, such as dog.")
        if self.token.lower() == self.noun.lower():
            raise MapoError(f"--token and --class are both {self.token}. Take another token, such as <{self.noun}>.")

    def knows(self, text: str) -> bool:
        """Whether the token stands in a text."""
        return self.token.lower() in text.lower()

    def of_subject(self, text: str) -> str | None:
        """A text with the token in place of the first class word; None where it has neither."""
        if self.knows(text):
            return text
        found, number = re.subn(
            rf"\b{re.escape(self.noun)}\b", lambda _: self.token, text, count=1, flags=re.IGNORECASE
        )
        return found if number else None

    def of_class(self, text: str) -> str:
        """A text with the class word in place of every token, and a or an before it as it wants."""
        article = "an" if self.noun[0].lower() in "aeiou" else "a"
        text = re.sub(rf"\ban? {re.escape(self.token)}", f"{article} {self.noun}", text, flags=re.IGNORECASE)
        return re.sub(re.escape(self.token), lambda _: self.noun, text, flags=re.IGNORECASE)

    def filled(self, template: str) -> str:
        """A template with the token in its place."""
        return template.replace(PLACE, self.token)


def read_templates(path: str | None) -> tuple[str, ...]:
    """The lines of a file of templates, or ours; MapoError names a line without a place for the word."""
    if path is None:
        return own_lines("templates.txt")
    try:
        lines = [line.strip() for line in read_text(Path(path)).splitlines()]
    except (OSError, ValueError) as error:
        raise MapoError(
            f"--templates: {path} cannot be read ({reason(error)}). Name a text with a caption a line."
        ) from None
    for number, line in enumerate(lines, 1):
        if line and line.count(PLACE) != 1:
            raise MapoError(
                f"--templates: {path} line {number} must have {PLACE} once, where the word stands, such as “a photo "
                f"of a {PLACE}”."
            )
    if not any(lines):
        raise MapoError(f"--templates: {path} is empty. Write a caption a line, such as “a photo of a {PLACE}”.")
    return tuple(line for line in lines if line)


def own_lines(name: str) -> tuple[str, ...]:
    """The lines of one of this room's lists."""
    return tuple((importlib.resources.files("mapo.personalize") / name).read_text("utf-8").splitlines())


def some_of(prompts: Sequence[str]) -> str:
    """The first prompt, and whether there are more."""
    return f"“{prompts[0]}”" + (" and the like" if len(prompts) > 1 else "")
