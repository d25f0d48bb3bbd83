"""A set through training's eyes: is there anything to train on, and what does the crop leave of its pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from mapo.check.pictures import PictureTable
from mapo.check.rows import Finding, Rows, find, quote
from mapo.encode.buckets import nearest
from mapo.encode.frame import share_cut_away
from mapo.encode.seen import MUCH, Choice, View, choose_any, look
from mapo.pairs import PairSet

SPLIT, TIES = "train", "drop"  # what `mapo train` takes when nothing else is said
HALF = 0.5
ASSUMED = " (assumed: the square in the middle, as training crops; name the model for its own size)"


def what_is_trained_on(pairs: PairSet, view: View | None) -> Choice:
    """The pairs that training takes at its defaults, with what is lost of them where the model is known."""
    choice = choose_any(pairs, SPLIT, TIES)
    return look(pairs, view, choice) if view else choice


def check_training(rows: Rows, pictures: PictureTable, view: View | None, choice: Choice) -> list[Finding]:
    """No rejected pictures; nothing to train on; what the crop cuts; pairs whose pictures are equal after it."""
    return [*_alone(rows), *_choice(rows, choice), *_crop(rows, pictures, view)]


def _alone(rows: Rows) -> list[Finding]:
    if rows.has_rejected:
        return []
    says = "There are no rejected pictures: a pair here is a picture with its prompt, and no leak is looked for."
    return [Finding("no_rejected", "note", says, "Train with --objective sft.")]


def _choice(rows: Rows, choice: Choice) -> list[Finding]:
    if len(choice.rows):
        return [Finding("trained_on", "note", choice.line())]
    if choice.ties:
        says = f"Nothing to train on: the pairs of the split {SPLIT} are all ties ({choice.ties:,})."
        return [Finding("nothing_to_train_on", "error", says, "Train with --set data.ties=keep, or let people decide.")]
    names, counts = np.unique(np.array(rows.split), return_counts=True)
    where = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    says = f"Nothing to train on: no pair is in the split {SPLIT} ({where})."
    return [Finding("nothing_to_train_on", "error", says, "Train with --set data.split=all, or add more prompts.")]


def _crop(rows: Rows, pictures: PictureTable, view: View | None) -> list[Finding]:
    found, read = pictures.found, pictures.read
    width, height = found["width"], found["height"]
    known = read[rows.chosen] & read[rows.rejected]
    if view:
        shape = np.log(width / height)
        of_pair = np.where(known, shape[rows.chosen] + shape[rows.rejected], 0) / 2
        high, wide = np.array(view.frames)[nearest(of_pair, view.frames)].T
    cut = []
    for _, places in rows.sides:
        across, down = width[places], height[places]
        across, down = (np.where(read[places], length, 1) for length in (across, down))
        target = (wide, high) if view else (np.minimum(across, down),) * 2
        cut.append(np.where(read[places], share_cut_away(across, down, *target), 0.0))
    assumed = "" if view else ASSUMED
    worst = np.max(cut, axis=0)

    def tell(i: int) -> str:
        shares = (f"{name} {share[i]:.0%}" for (name, _), share in zip(rows.sides, cut, strict=True))
        return f"{quote(rows.texts[i])} {', '.join(shares)} cut away"

    findings = []
    for name, severity, fits, share in (
        ("mostly_cropped", "warning", worst > HALF, "half"),
        ("cropped", "note", (worst > MUCH) & (worst <= HALF), "a tenth"),
    ):
        findings += find(
            name, severity, fits, "More than {share} of a picture is cut away by the crop: {n}{assumed}.",
            "Training never sees what stands there. Where it matters, crop the pictures yourself before importing "
            "them, or train with data.buckets=true.",
            tell, trained=rows.trained, share=share, assumed=assumed,
        )  # fmt: skip
    equal: Any = found["seen"][rows.chosen] == found["seen"][rows.rejected]
    equal &= (rows.chosen_content != rows.rejected_content) & read[rows.chosen] & read[rows.rejected]
    return findings + find(
        "equal_after_crop", "error", equal,
        "The same picture on both sides once it is cropped: {n}{assumed}.",
        "What differs lies outside of the crop, so there is nothing to learn. Crop these pictures yourself, or leave "
        "the pairs out.",
        tell, trained=rows.trained, assumed=assumed,
    )  # fmt: skip
