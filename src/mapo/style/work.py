"""What each stage of `mapo style` does, by the ordinary verbs; each returns what there is to say of it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from mapo.build.against import build_against, build_alone, held_out, told
from mapo.build.rejected import build_beside, rejected_of
from mapo.captions.verb import caption, counted
from mapo.errors import count
from mapo.files import write_text
from mapo.pairs.splits import prompt_id
from mapo.style import copies
from mapo.style.asked import are_wide
from mapo.style.screen import unsafe_in
from mapo.style.shown import SEEDS, frames_in, write_copies
from mapo.style.training import go_on
from mapo.style.wanted import Style
from mapo.texts import read_object
from mapo.train.run.folder import Run

LOG = logging.getLogger(__name__)

MISMATCH = "mismatch.txt"


def write_captions(asked: Style) -> str:
    """What each picture shows, in one file."""
    found = caption(
        asked.pictures, asked.captions_file, captions=asked.captions, caption_with=asked.caption_with, raw=asked.raw
    )
    asked.refuse_unfit(found)
    return f"{count(len(found), 'caption')}: {counted(found)}"


def make_pairs(asked: Style) -> str:
    """The pictures against what the model draws from their captions, or against those that were given."""
    shutil.rmtree(asked.pairs, ignore_errors=True)  # of a command that was killed when all but this was done
    own = asked.own(asked.captions_now())
    if asked.rejected:
        given, _ = rejected_of(own, asked.rejected)
        counts = build_beside(own, given, asked.model, asked.pairs, resolution=asked.resolution, **asked.told)
        return told(counts, hint=False)
    if not asked.draws:
        counts = build_alone(own, asked.model, asked.pairs, resolution=asked.resolution, **asked.told)
        return told(counts, drawn=False, hint=False)
    counts = build_against(
        own, asked.model, asked.pairs, asked.out / "rejected", per_picture=asked.per_picture, judge=asked.chooser,
        resolution=asked.resolution, loras=asked.loras, **asked.told, **asked.sampling,
    )  # fmt: skip
    return told(counts, hint=False)


def check_pairs(asked: Style) -> str:
    """The page of what is wrong in the pairs."""
    from mapo.check.verb import check

    wide = are_wide(frames_in(asked.pairs))
    how = {"model": asked.model, "buckets": wide, "veiled": unsafe_in(asked.out), **asked.told}
    return str(check(asked.pairs, asked.out / "check.html", **how)["verdict"])


def measure_mismatch(asked: Style) -> str:
    """How far the pictures are from what the model draws: the first sentences. All of it is in a file."""
    from mapo.mismatch.verb import mismatch

    encoder, numbers = asked.encoder(), asked.out / "mismatch.json"
    if encoder == "none":
        LOG.info("No DINOv2 is on this machine (--copies-with names one), so only the denoising error is measured.")
    _, said = mismatch(
        asked.model, asked.pairs, numbers, "1000-1001", encoder=encoder, loras=asked.loras,
        resolution=asked.resolution, buckets=are_wide(frames_in(asked.pairs)), **asked.told,
    )  # fmt: skip
    write_text(asked.out / MISMATCH, "\n".join(said) + "\n")
    first = read_object(numbers, "what was measured", "Delete it.")["says"][:2]
    return "\n".join([*first, f"The table and the rest are in {asked.out / MISMATCH}."])


def train(asked: Style, hands: Any) -> str:
    """Train, or go on with the run; where that cannot be, the run gets another name and a new one begins."""
    from mapo.train import verb

    frames, run = frames_in(asked.pairs), Run(asked.run)
    how = {"hands": hands, **asked.of_run()}
    return go_on(
        run, asked.config(frames), lambda: verb.train(run.folder, asked.train_settings(frames), asked.recipe, **how)
    )


def draw(asked: Style, model: str, folder: Path, **how: Any) -> None:
    """Draw what is shown before and after."""
    from mapo.sample.verb import sample

    sample(model, asked.shown(), list(SEEDS), folder, more=asked.beside(), **asked.sampling, **how)


def look_for_copies(asked: Style) -> str:
    """Whether drawings are copies of pictures that were trained on."""
    own = asked.own(asked.captions_now())
    split = held_out(own)
    trained = [one.name for one in own if split[prompt_id(one.caption)] == "train"]
    return copies.told(write_copies(asked.out, asked.pictures, trained, look=copies.look_by(asked.copies_with)))
