"""The captions of photos of a subject, with the token in each: of the photo itself where it says the class word, else
of a template."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from mapo.captions.beside import named, some
from mapo.captions.clean import MARKS, without_grammar
from mapo.captions.folder import METADATA, look_in
from mapo.captions.ledger import Caption, merge, read_ledger
from mapo.errors import MapoError
from mapo.personalize.words import Words

LOG = logging.getLogger(__name__)

TEMPLATE = "template"


@dataclass(frozen=True)
class PhotoCaptions:
    """The captions of the photos that are there, and those of photos that are gone, whose lines stay in the file."""

    captions: list[Caption]
    gone: list[Caption]
    silent: list[str]  # photos whose own caption does not say the class word


def captions_in(photos: Path, words: Words, ledger: Path) -> PhotoCaptions:
    """What is said of each photo; a line of ``ledger`` that a person changed stays. Nothing is written.

    MapoError names photos of which a caption does not have the token.
    """
    found = look_in(photos, raw=True)
    fresh, silent = dict[str, Caption](), list[str]()
    for number, name in enumerate(found.pictures):
        own = found.captions.get(name)
        text = _made(words, own.raw, own.source) if own else ""
        if own and text:
            fresh[name] = Caption(name, text, own.source, own.raw)
            continue
        if own:
            silent.append(name)
        template = words.templates[number % len(words.templates)]
        fresh[name] = Caption(name, words.filled(template), TEMPLATE, template)
    before = read_ledger(ledger) if ledger.is_file() else {}
    merged = merge(found.pictures, fresh, before, lambda raw, source: _made(words, raw, source))
    lack = [one.file for one in merged.captions if one.keep and not words.knows(one.caption)]
    if lack:
        raise MapoError(
            f"{ledger}: {some(lack, 'caption does', 'captions do')} not have {words.token}: {named(lack)}. Write it "
            f"where the word {words.noun} would stand."
        )
    return PhotoCaptions(merged.captions, merged.gone, [name for name in silent if name not in before])


def _made(words: Words, raw: str, source: str) -> str:
    """The caption that becomes of a text from there; empty where the text does not say the class word."""
    if source == TEMPLATE:
        return words.filled(raw)
    text = without_grammar(raw) if source.startswith(METADATA) or MARKS.search(raw) else " ".join(raw.split())
    return words.of_subject(text) or ""
