"""Several captions of one pair: ``first`` takes one, ``join`` joins them with ", ", ``each`` makes several pairs."""

from __future__ import annotations

from collections.abc import Iterator

from mapo.importers.containers.shape import Row, Where

COLUMNS = ("prompt", "caption", "original_prompt")


def choose(captions: list[str], several: str | None, what: str) -> list[str]:
    """The prompts that ``several`` captions make; ValueError, naming the option, when it was not said."""
    if not any(c.strip() for c in captions):
        raise ValueError("the prompt is empty")
    if several is None:
        raise ValueError(f"{what}; a prompt is one line. Say --captions first, join or each")
    captions = [c.strip() for c in captions if c.strip()]
    if several == "join":
        return [", ".join(captions)]
    return captions[:1] if several == "first" else list(dict.fromkeys(captions))


def each_row(row: Row, several: str | None, where: Where) -> Iterator[Row]:
    """The row, or for a list of captions the rows with one caption each that ``several`` asks for."""
    column = next((c for c in COLUMNS if isinstance(row.get(c), list)), None)
    if column is None:
        yield row
        return
    found = row[column]
    if not found:
        raise ValueError(f"{column} is an empty list")
    if not all(isinstance(caption, str) for caption in found):
        what = "messages" if isinstance(found[0], dict) and "content" in found[0] else "other things than texts"
        raise ValueError(f"{column} is a list of {what}; it must be a text")
    prompts = found if len(found) == 1 else choose(found, several, f"{column} has {len(found)} captions")
    group = row.get("group") if len(prompts) == 1 or row.get("group") is not None else where.group
    for prompt in prompts:
        yield {**row, column: prompt, "group": group}
