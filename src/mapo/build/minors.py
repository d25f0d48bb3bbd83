"""Prompts that name or could mean minors. Rejected pictures of a sensitive recipe are never made from them.

Words are compared as words, so ``boycott`` and ``kidney`` pass; where a word has a harmless meaning too (``kid`` for a
young goat, ``minor`` in music, ``student``), the prompt is left out: there is no lack of prompts. The list knows words,
ages and a few other languages (``minors.toml``); it knows no names of persons or characters.
"""

from __future__ import annotations

import importlib.resources
import re
import tomllib
import unicodedata

VERSION = "1"

_LISTS = tomllib.loads((importlib.resources.files("mapo.build") / "minors.toml").read_text("utf-8"))
NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_UNDER_18 = r"(?:0?[1-9]|1[0-7]|" + NUMBERS.replace(" ", "|") + ")"
_GAP = r"[\s\-–—_.,:]*"
AGES = re.compile(
    rf"""(?<![a-z\d])(?<!\d[.,])(?:
      {_UNDER_18}(?:\s*(?:to|or|and|/|-|–|—)\s*\d{{1,2}})?{_GAP}(?:years?|yrs?|yo|y{_GAP}/{_GAP}o|y\.?\s?o)(?![a-z])
      | \d+{_GAP}(?:months?|weeks?|days?){_GAP}old
      | {_UNDER_18}(?:st|nd|rd|th)?{_GAP}(?:ans|años|anos|jahre|jährige?[rsn]?|anni|jaar|лет|года?)(?![a-zа-я])
      | (?<![a-z])(?:age[ds]?|âgée?s?){_GAP}(?:of|is|about|around)?{_GAP}{_UNDER_18}(?![\da-z])
      | (?<![a-z])(?:under|below|u){_GAP}(?:18|eighteen|aged?)(?![\da-z])
      | (?:[1-9]|1[0-2])(?:st|nd|rd|th){_GAP}grade | (?<![a-z])grade{_GAP}(?:[1-9]|1[0-2])(?!\d)
      | (?<![a-z])(?:barely{_GAP}legal|sweet{_GAP}sixteen|k{_GAP}12)
      | (?<![a-z])little{_GAP}(?:sister|brother|ones?|lady|princess)
      | {_UNDER_18}\s*(?:岁|歲|歳|才|살|세)
    )""",
    re.VERBOSE,
)
TENS = re.compile(rf"\b(twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety){_GAP}(?:{NUMBERS.replace(' ', '|')})\b")
LETTERS = str.maketrans(  # what stands for letters: digits as in t33n, and Cyrillic and Greek that look like Latin
    "013457$@" + "аеорсухіјѕһԁ" + "οαιερτκυ", "oieastsa" + "aeopcyxijshd" + "oaieptku"
)


def _fold(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).replace("ı", "i")  # whose capital is the plain I
    return unicodedata.normalize("NFC", "".join(c for c in plain if not "\u0300" <= c <= "\u036f"))


WORDS = frozenset(map(_fold, f"{_LISTS['english']} {_LISTS['others']}".split()))
STARTS, ENDS = (tuple(map(_fold, _LISTS[name].split())) for name in ("starts", "ends"))
ANYWHERE = tuple(unicodedata.normalize("NFKC", word) for word in _LISTS["anywhere"].split())


def _is_named(word: str) -> bool:
    return word in WORDS or word.startswith(STARTS) or word.endswith(ENDS)


def names_minor(prompt: str) -> str | None:
    """The first words of ``prompt`` that name or could mean a minor, or None.

    Case, accents, full-width letters and invisible characters do not matter; ``school_girl``, ``1girl``, ``t33n`` and
    letters of other alphabets that look like these are seen too.
    """
    text = "".join(c for c in unicodedata.normalize("NFKC", prompt).casefold() if unicodedata.category(c) != "Cf")
    if age := AGES.search(TENS.sub(r"\1", text)):
        return age.group().strip()
    if found := next((part for part in ANYWHERE if part in text), None):
        return found
    folded = _fold(text)
    spelled = [word.translate(LETTERS) for word in re.findall(r"[^\W_]+", folded) if not word.isdecimal()]
    return next((word for word in [*re.findall(r"[^\W\d_]+", folded), *spelled] if _is_named(word)), None)
