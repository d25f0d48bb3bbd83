"""Captions without what is meant for programs alone, and without the words about how a picture is drawn."""

from __future__ import annotations

import re

EXTRA = re.compile(r"<\s*(?:lora|lyco|locon|loha|hypernet)\s*:[^<>]*>", re.IGNORECASE)
EMBEDDING = re.compile(r"\bembedding:[^\s,()\[\]{}<>]+", re.IGNORECASE)
WILDCARD = re.compile(r"(?<!\w)__[\w*/-]+?__(?!\w)")  # which stands for words that nobody knows any more
NUMBER = r"[-+]?\d*\.?\d+"
NOVEL_WEIGHT = re.compile(rf"(?<![\w.]){NUMBER}::(.*?)::", re.DOTALL)
WEIGHT = re.compile(rf"(?<!\d)\s*:\s*{NUMBER}\s*$")  # 16:9 has none
MARKS = re.compile(
    rf"<\w+:[^<>]*>|\([^()]*[^()\d]:\s*{NUMBER}\s*\)|\(\(|\[\[|\{{\{{|\\[()]|\bBREAK\b|\bembedding:\S|{NUMBER}::"
)
PAIRS = {")": "(", "]": "[", "}": "{"}
ESCAPED = {"\\(": "\ue000", "\\)": "\ue001", "\\[": "\ue002", "\\]": "\ue003", "\\{": "\ue004", "\\}": "\ue005"}


def clean_caption(raw: str, of_program: bool = False) -> str:
    """A caption as a person would say it: without the grammar of programs, and without style words; "" if none is left.

    ``of_program``: it was written for a program. Otherwise brackets are ordinary ones, unless something else in the
    caption shows that it was.
    """
    return without_style(without_grammar(raw) if of_program or MARKS.search(raw) else " ".join(raw.split()))


def without_grammar(text: str) -> str:
    """A prompt without weights and brackets, LoRAs, embeddings, wildcards, BREAK and AND."""
    text = re.sub("[\ue000-\ue005]", "", text)
    for escape, sign in ESCAPED.items():
        text = text.replace(escape, sign)
    text = WILDCARD.sub(" ", EMBEDDING.sub(" ", EXTRA.sub(" ", text)))
    text = NOVEL_WEIGHT.sub(r"\1", text)
    if re.search(r"[a-z]", text):  # in a text of capitals these are words
        if re.search(r"\sAND\s", text):
            text = ", ".join(WEIGHT.sub("", part) for part in re.split(r"\sAND\s", text))
        text = re.sub(r"\bBREAK\b", ",", text)
    text = _opened(text)
    for escape, sign in ESCAPED.items():
        text = text.replace(sign, escape[1])
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"\s*,(?:\s*,)*\s*", ", ", text).strip(" ,")


def _opened(text: str) -> str:
    """Without pairs of brackets and the weights in them; a bracket alone stays, and so does a choice in braces."""
    parts: list[list[str]] = [[]]
    open_at: list[str] = []
    for piece in re.split(r"([()\[\]{}])", text):
        if piece and piece in "([{":
            open_at.append(piece)
            parts.append([])
        elif piece in PAIRS and open_at and open_at[-1] == PAIRS[piece]:
            inner = "".join(parts.pop())
            parts[-1].append(_inner(open_at.pop(), inner))
        else:
            parts[-1].append(piece)
    return "".join(parts[0]) + "".join(o + "".join(part) for o, part in zip(open_at, parts[1:], strict=True))


def _inner(bracket: str, inner: str) -> str:
    """What was in brackets: ``x:1.2`` is x; ``[from:to:0.5]`` ends with ``to``; ``[a|b]`` is both."""
    if bracket == "{" and "|" in inner:
        return "{" + inner + "}"
    weighed = WEIGHT.search(inner)
    inner = WEIGHT.sub("", inner)
    if bracket == "[" and weighed and ":" in inner:
        first, _, second = inner.partition(":")
        return second.strip(" :") or first
    if bracket == "[" and "|" in inner:
        return " and ".join(part.strip() for part in inner.split("|") if part.strip())
    return inner


# ------------------------------------------------------------------ style words


MEDIUM = (
    r"(?:(?:digital|oil|acrylic|watercolou?r|gouache|pencil|charcoal|ink|pastel|matte|concept|fan|pixel|vector|line|3d|"
    r"low[- ]poly|hyper[- ]?realistic|photo[- ]?realistic|realistic|detailed|beautiful|stunning|cinematic|professional|"
    r"black and white|vintage|highly detailed|award[- ]winning|macro|colou?r|\d+k|"
    r"anime|manga|cartoon|comic|disney|pixar|ghibli)[ -]+)*"
    r"(?:painting|drawing|sketch|illustration|render(?:ing)?|photo(?:graph)?|artwork|art|portrait|poster|print|cartoon|"
    r"caricature|comic|collage|engraving|fresco|still|wallpaper|picture|image|close-?up shot|shot)"
)
OPENING = re.compile(rf"^(?:an? |the )?{MEDIUM} (?:of|showing|depicting) ", re.IGNORECASE)
INNER = re.compile(
    r"\b(?:in|with) (?:the |an? )?(?:[\w'-]+ ){0,4}(?:style|aesthetic)(?: of [^,.;]+)?"
    r"|\b(?:painted|drawn|rendered|photographed|illustrated|directed|designed|art(?:work)?|painting|photo) "
    r"(?:by|in|with) [^,.;]+"
    r"|\bby [A-Z][\w.'-]+(?: (?:[A-Z][\w.'-]+|and|van|von|de|da|del))*"
    r"|\b(?:as|like) an? " + MEDIUM + r"\b",
)
STYLE_WORD = re.compile(
    r"\b(?:art ?station|deviant ?art|pixiv|cgsociety|behance|unsplash|shutterstock|unreal engine(?: \d)?|octane|"
    r"blender|v-?ray|redshift|ray ?trac(?:ed|ing)|\d+ ?k|u?hd|hdr|hq|uhq|dslr|bokeh|depth of field|"
    r"f/?\d(?:\.\d)?|\d+ ?mm|"
    r"(?:highly|ultra|hyper|very|super|extremely|intricate(?:ly)?|insanely)[- ]*(?:detail(?:ed|s)?|realistic|sharp)|"
    r"detailed|intricate|masterpiece|best quality|high(?:est)? (?:quality|resolution|detail)|award[- ]winning|"
    r"trending|sharp focus|smooth|(?:photo|hyper|sur)?[- ]?realis(?:m|tic)|impressionis[mt](?:ic)?|cubis[mt]|baroque|"
    r"art (?:nouveau|deco)|cyberpunk|steampunk|synthwave|vaporwave|anime|manga|cartoon(?:ish)?|comic book|disney|pixar|"
    r"(?:studio )?ghibli|pixel art|voxel|low[- ]poly|cel[- ]?shad(?:ed|ing)|water ?colou?r|oil on canvas|concept art|"
    r"(?:digital|fantasy|vector|line|fan) art|(?:dramatic|studio|volumetric|soft|cinematic) light(?:ing)?|cinematic|"
    r"photograph(?:y|ic)?|illustrat(?:ion|ed)|rendered|render|painting|sketch(?:ed)?|aesthetic|stylized)\b",
    re.IGNORECASE,
)


def without_style(prompt: str) -> str:
    """The parts between commas, without openings such as "an oil painting of"; a part of style words goes whole."""
    kept = []
    for part in re.split(r"[,;|]|(?<=[\w)])\.(?:\s|$)", prompt):
        bare = " ".join(INNER.sub(" ", OPENING.sub("", part.strip())).split())
        left = re.sub(
            r"\b(?:on|in|with|and|the|an?|by|of|style|art|very)\b|\W", "", STYLE_WORD.sub("", bare), flags=re.I
        )
        if left:
            kept.append(" ".join(STYLE_WORD.sub(" ", bare).split()))
    return re.sub(r"\b([Aa])n (?![aeiouhAEIOUH])", r"\1 ", ", ".join(kept))


def style_words(text: str) -> set[str]:
    """The style words in a caption that the rules know, in small letters."""
    found = set[str]()
    for part in re.split(r"[,;|]", text):
        opening = OPENING.search(part.strip())
        found |= {match.lower() for match in re.findall(MEDIUM, opening[0], re.IGNORECASE)} if opening else set()
        found |= {" ".join(match[0].lower().split()) for rule in (INNER, STYLE_WORD) for match in rule.finditer(part)}
    return found
