"""The verb as the command line and Python give it: a folder in, one file of captions out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mapo.captions.beside import named, some
from mapo.captions.folder import Folder, look_in, made, refuse_silent
from mapo.captions.ledger import Caption, Merged, merge, read_ledger, work_file, write_ledger
from mapo.errors import MapoError, count
from mapo.files import prepare_out
from mapo.shards import owned

LOG = logging.getLogger(__name__)

MODEL = "model: "


def caption(
    pictures: Path, out: Path, *, captions: Path | None = None, caption_with: str | None = None, raw: bool = False,
    images_per_batch: int = 8,
) -> list[Caption]:  # fmt: skip
    """The captions of the pictures of a folder, in ``out`` too; those that a person changed there stay.

    ``captions`` is a file whose captions come first. ``caption_with`` is a model that writes captions for pictures that
    have none. MapoError names pictures without a caption; nothing is written then.
    """
    if images_per_batch < 1:
        raise MapoError(f"--images-per-batch {images_per_batch}: give 1 or more.")
    if out.is_dir():
        raise MapoError(f"--out: {out} is a folder. Name the file to write, such as {out / 'captions.jsonl'}.")
    prepare_out(out)
    with owned(out):
        before = read_ledger(out) if out.is_file() else {}
        found = look_in(pictures, raw=raw, but=out, given=captions)
        merged = merge(found.pictures, found.captions, before, partial(made, raw=raw))
        known = {one.file: one for one in merged.captions}
        without = {name: why for name, why in found.without.items() if name not in known}
        if caption_with is not None and without:
            from mapo.captions.write import written

            texts = written(pictures, list(without), caption_with, out, images_per_batch)
            source = f"{MODEL}{caption_with}"
            known |= {n: Caption(n, made(t, source, raw=raw), source, t) for n, t in texts.items() if t}
            without = {name: f"{caption_with} says nothing of it" for name, text in texts.items() if not text}
        said = [known[name] for name in found.pictures if name in known]
        refuse_silent(pictures, without, said)
        write_ledger(out, [*said, *merged.gone])
        work_file(out).unlink(missing_ok=True)
    _tell(out, merged, found)
    return said


def _tell(out: Path, merged: Merged, found: Folder) -> None:
    """What is not as it was when the file was written, and what was not used."""
    if found.passed_over:
        LOG.info(f"{count(found.passed_over, 'other file')} passed over")
    for absent in found.absent:
        LOG.warning(f"{absent}. Nothing is made of them.")
    if merged.new:
        LOG.info(f"{some(merged.new, 'picture is', 'pictures are')} new since {out} was written: {named(merged.new)}")
    if merged.changed:
        LOG.info(f"{some(merged.changed, 'caption was', 'captions were')} read again: {named(merged.changed)}")
    if merged.gone:
        names = [one.file for one in merged.gone]
        gone, stay = ("is", "Its line stays") if len(names) == 1 else ("are", "Their lines stay")
        LOG.info(f"{count(len(names), 'picture')} of {out} {gone} gone: {named(names)}. {stay}.")


def counted(captions: Sequence[Caption]) -> str:
    """How many captions came from where, the most first, and how many pictures are left out."""
    sources = Counter(one.source for one in captions)
    said = ", ".join(f"{number} {_from(source)}" for source, number in sources.most_common())
    out = sum(not one.keep for one in captions)
    return said + (f"; {out} left out" if out else "")


def _from(source: str) -> str:
    kind, _, name = source.partition(": ")
    words = {
        "list": "of a list",
        "beside": "of texts beside the pictures",
        "metadata": "of the metadata of",
        "model": "by",
        "given": "of",
    }
    return f"{words.get(kind, source)} {name}".strip()
