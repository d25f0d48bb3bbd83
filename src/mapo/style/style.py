"""The verb: captions, pairs, their check, training, pictures before and after, a report, and a LoRA to take away."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapo.build.against import Own, build_against, check_asked, frames_for, held_out, told
from mapo.build.judge import parse_filter
from mapo.build.rejected import build_beside, refuse_within, rejected_of, told_unused
from mapo.captions.fit import FEWEST, refuse_unfit
from mapo.captions.folder import look_in, refuse_silent
from mapo.captions.ledger import Caption, read_ledger
from mapo.captions.verb import caption, counted
from mapo.encode.frame import Frame
from mapo.errors import MapoError, count
from mapo.files import sha256
from mapo.pairs import PairSet
from mapo.pairs.splits import prompt_id
from mapo.style import copies
from mapo.style.asked import Asked, Preview, are_wide
from mapo.style.planned import plan_lines
from mapo.style.shown import SCORES, SEEDS, compare, compared_from, frames_in, leave, untrained, write_copies
from mapo.style.stages import Ledger, Stage, digest_of, run_all, set_aside
from mapo.style.training import begins_again, is_finished
from mapo.texts import read_object
from mapo.train.config import Config
from mapo.train.run.folder import Run

LOG = logging.getLogger(__name__)

OWED = (
    "Pictures of real people need their consent. Pictures and styles of artists have owners: ask them, and say whose "
    "they are where you show the result."
)


@dataclass
class Style(Asked):
    """What was asked for."""

    RECIPES = {  # noqa: RUF012
        "StableDiffusionXLPipeline": "sdxl-mapo-lora",
        "StableDiffusionPipeline": "sd15-mapo-lora",
        "StableDiffusion3Pipeline": "sd35-mapo-lora",
        "FluxPipeline": "flux-mapo-lora",
    }
    OWN_RECIPES = {"mini": "mini-style"}  # noqa: RUF012

    captions: Path | None = None
    caption_with: str | None = None
    raw: bool = False
    rejected: Path | None = None
    judge: str | None = None
    copies_with: str | None = None

    def __post_init__(self) -> None:
        if self.rejected is not None:
            if self.judge is not None or self.per_picture != 1:
                flag = "--judge" if self.judge is not None else "--rejected-per-picture"
                raise MapoError(f"{flag} is for drawings and does not go with --rejected. Leave one of them out.")
            refuse_within(self.pictures, self.rejected)
        super().__post_init__()
        self.chooser = parse_filter(self.judge) if self.judge else None
        check_asked(self.per_picture, self.chooser)
        if self.copies_with is not None:
            copies.look_by(self.copies_with)  # refused now, where it is not a model

    def own(self, captions: Sequence[Caption]) -> list[Own]:
        """The pictures that are kept and still there."""
        return [Own(one.file, one.caption, path) for one, path in self.kept(captions)]


# ------------------------------------------------------------------ what will be done


def preview(asked: Style) -> Preview:
    """What `style` will do, with the memory and the time of its training; nothing is written. MapoError as it would."""
    ledger = Ledger(asked.out, asked.identity())
    known = read_ledger(asked.captions_file) if asked.captions_file.is_file() else {}
    found = look_in(asked.pictures, raw=asked.raw, given=asked.captions)
    captions = [known.get(name) or found.captions[name] for name in found.pictures if name in {*known, *found.captions}]
    without = {name: why for name, why in found.without.items() if name not in known}
    if not asked.caption_with:
        refuse_silent(asked.pictures, without, captions)
        without = {}
    _refuse_unfit(asked, captions)
    own = asked.own(captions)
    frames = frames_for(own, asked.files, asked.resolution)
    prompts = asked.plain_prompts()
    warnings = [f"{said}. Nothing is made of them." for said in found.absent]
    if asked.rejected:
        rejected, unused = rejected_of(own, asked.rejected)
        against = f"{count(len(rejected), 'rejected picture')} of {asked.rejected}"
        warnings += [told_unused(asked.rejected, unused)] if unused else []
    else:
        against = f"{count(asked.per_picture * (len(own) + len(without)), 'drawing')} by {asked.model}"
    sources = f"{count(len(own), 'picture')} with captions"
    if without:
        sources += f", {count(len(without), 'caption')} to be written by {asked.caption_with}"
    tenth = [name for name in held_out(own).values() if name != "train"]
    lines = [
        f"captions   {sources}",
        f"pairs      {against}, in {count(len(set(frames)), 'frame')}",
        f"held out   {count(len(tenth), 'caption')} and {count(len(prompts), 'plain prompt')}",
        *plan_lines(own, frames, asked.train_settings(frames), asked.recipe, _named(asked)),
        f"pictures   {2 * len(SEEDS) * (len(tenth) + len(prompts))}, half before and half after the training",
        f"out        {asked.out}: {', '.join(_names(asked))}",
    ]
    again = ledger.stale(_stages(asked, None)) if known else []
    if again:
        lines.append(f"made again {', '.join(again)}, as what they are made from has changed")
    if "run" not in again and (why := begins_again(Run(asked.out / "run"), _config(asked, frames))):
        lines.append(f"made again run, and what follows from it: {why}. The run that is there gets another name")
    return Preview(lines, [*warnings, OWED])


def _names(asked: Style) -> list[str]:
    last = ["lora.safetensors"] if asked.is_lora else []
    drawn = [] if asked.rejected else ["rejected"]
    names = ["captions.jsonl", *drawn, "pairs", "check.html", "mismatch.json", "cache", "run", "before", "after"]
    return [*names, "after/grid.png", "copies.json", *last, "report.html"]


# ------------------------------------------------------------------ doing it


def style(asked: Style, *, hands: Any = None) -> dict[str, Any]:
    """Do all stages in ``asked.out``, or go on there.

    What came of it: what each stage ``said`` by its name, what was found of ``copies``, and the ``files``. MapoError
    where a stage cannot be done, with the stages before it kept; KeyboardInterrupt where it was stopped.
    """
    done: dict[str, Any] = {"said": run_all(asked.out, asked.identity(), _stages(asked, hands))}
    done["copies"] = read_object(asked.out / "copies.json", "what was found of copies", "Delete it.")
    done["files"] = {name: str(asked.out / name) for name in _names(asked) if (asked.out / name).exists()}
    return done


def _stages(asked: Style, hands: Any) -> list[Stage]:
    out, pairs, run = asked.out, asked.out / "pairs", asked.out / "run"
    from mapo.check import verb as check_verb
    from mapo.mismatch import verb as mismatch_verb
    from mapo.sample import verb as sample_verb
    from mapo.train import verb as train_verb

    def captions() -> str:
        found = caption(
            asked.pictures, asked.captions_file, captions=asked.captions, caption_with=asked.caption_with, raw=asked.raw
        )
        _refuse_unfit(asked, found)
        return f"{count(len(found), 'caption')}: {counted(found)}"

    def pair() -> str:
        shutil.rmtree(pairs, ignore_errors=True)  # of a command that was killed when all but this was done
        own = asked.own(list(read_ledger(asked.captions_file).values()))
        if asked.rejected:
            return told(
                build_beside(own, rejected_of(own, asked.rejected)[0], asked.model, pairs, resolution=asked.resolution)
            )
        counts = build_against(
            own, asked.model, pairs, out / "rejected", per_picture=asked.per_picture, judge=asked.chooser,
            resolution=asked.resolution, loras=asked.loras, **asked.sampling,
        )  # fmt: skip
        return told(counts)

    def look() -> str:
        numbers = check_verb.check(pairs, out / "check.html", model=asked.model, buckets=are_wide(frames_in(pairs)))
        return str(numbers["verdict"])

    def distance() -> str:
        _, said = mismatch_verb.mismatch(asked.model, pairs, out / "mismatch.json", "1000-1001", loras=asked.loras)
        *numbers, says = "\n".join(said).split("\n\n")
        LOG.info("\n\n".join(numbers))
        return says

    def train() -> str:
        frames = frames_in(pairs)
        config = _config(asked, frames)
        if why := begins_again(Run(run), config):
            LOG.warning(f"The training begins again: {why}. What was there of run is now {set_aside(run)}.")
        if not is_finished(Run(run), config):
            train_verb.train(run, asked.train_settings(frames), asked.recipe, hands=hands, **_of_run(asked))
        return f"trained for {count(Run(run).finished_steps(), 'step')}; more --steps go on from there"

    def sample(model: str, folder: str, **more: Any) -> None:
        sample_verb.sample(model, _shown(asked, pairs), list(SEEDS), out / folder, **asked.sampling, **more)

    def report() -> str | None:
        return compare(out, run, asked.scorer, asked.goal)

    def look_for_copies() -> str:
        own = asked.own(list(read_ledger(asked.captions_file).values()))
        split = held_out(own)
        trained = [one.name for one in own if split[prompt_id(one.caption)] == "train"]
        return copies.told(write_copies(out, asked.pictures, trained, look=copies.look_by(asked.copies_with)))

    by = asked.drawn_by()
    drawn = [*by, asked.judge or "", str(asked.per_picture), str(asked.resolution)]
    stages = [Stage("captions", "what each picture shows", ("captions.jsonl",), lambda: [], captions, again=True)]
    if asked.rejected:
        says = f"each picture beside that of its name in {asked.rejected}"
    else:
        says = f"{asked.model} draws the captions"
        stages.append(Stage("rejected", "a folder for the drawings", ("rejected",), lambda: by,
                            lambda: (out / "rejected").mkdir(exist_ok=True)))  # fmt: skip
    stages += [
        Stage("pairs", says, ("pairs",), lambda: [*drawn, *_seen(asked)], pair, aside_if_changed=True),
        Stage("check", "what is wrong in the pairs", ("check.html",), lambda: [digest_of(pairs)], look),
        Stage("mismatch", "how far the pictures are from what the model draws", ("mismatch.json", "mismatch-images"),
              lambda: [*by, digest_of(pairs)], distance),
        Stage("run", "the training", ("run",), lambda: [asked.files.revision(), digest_of(pairs)], train,
              again=True, aside=True),
        Stage("before", "pictures of the model as it was", ("before",), lambda: [*by, *_shown(asked, pairs)],
              lambda: sample(asked.model, "before", loras=asked.loras)),
        Stage("after", "pictures of the trained model", ("after",),
              lambda: [*by, *_shown(asked, pairs), digest_of(run / "weights")],
              lambda: sample(str(run), "after", grid=True, compare=[out / "before"])),
        Stage("copies", "whether the model draws copies", ("copies.json",),
              lambda: [digest_of(out / "after" / "manifest.jsonl"), _looked_by(asked), *_seen(asked)], look_for_copies),
    ]  # fmt: skip
    if asked.is_lora:
        stages.append(
            Stage("lora", "a file for other programs", ("lora.safetensors",), lambda: [digest_of(run / "weights")],
                  lambda: leave(run, "kohya", out / "lora.safetensors"))
        )  # fmt: skip
    stages.append(
        Stage("report", "both beside each other", ("report.html",),
              lambda: compared_from(out, asked.scorer, asked.goal), report, clears=SCORES)
    )  # fmt: skip
    return stages


def _refuse_unfit(asked: Style, captions: Sequence[Caption]) -> None:
    refuse_unfit(asked.pictures, captions, fewest=FEWEST, side=asked.side // 2)


def _seen(asked: Style) -> list[str]:
    """The pictures and captions that are kept, as they are now, and the rejected ones that are given."""
    own = asked.own(list(read_ledger(asked.captions_file).values()))
    given = rejected_of(own, asked.rejected)[0] if asked.rejected else {}
    seen = [f"{one.name} {one.caption} {sha256(one.path.read_bytes())}" for one in own]
    return seen + [f"{name} rejected {sha256(path.read_bytes())}" for name, path in given.items()]


def _looked_by(asked: Style) -> str:
    return asked.copies_with or ("dinov2" if copies.dinov2_at_hand() else "hash")


def _named(asked: Style) -> dict[str, Any]:
    return {"model": asked.model, "loras": [*asked.loras] or None}


def _of_run(asked: Style) -> dict[str, Any]:
    return {**_named(asked), "pairs": str(asked.out / "pairs"), "cache": str(asked.out / "cache")}


def _config(asked: Style, frames: Sequence[Frame]) -> Config:
    """The settings of the training, as `mapo train` would have them."""
    from mapo.train.verb import config_of

    return config_of(asked.out / "run", asked.train_settings(frames), asked.recipe, _of_run(asked))


def _shown(asked: Style, pairs: Path) -> list[str]:
    """What is drawn before and after: held-out captions and plain prompts, none of which is trained on."""
    held = [pair.prompt for pair in PairSet(pairs) if pair.split != "train"]
    return untrained([*held, *asked.plain_prompts()], pairs)
