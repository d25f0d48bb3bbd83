"""The verb: captions with a token, rounds of drawing, pairs and training, pictures before and after, files to take
away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from mapo.build.against import Own, frames_for
from mapo.captions.beside import named, some
from mapo.encode.frame import Frame
from mapo.errors import count
from mapo.personalize.asked import Personalize
from mapo.personalize.rounds import stages
from mapo.personalize.words import some_of
from mapo.style.asked import Left, Preview
from mapo.style.planned import plan_training
from mapo.style.screen import SCREENED, screened_before, screener
from mapo.style.shown import SEEDS
from mapo.style.stages import StageLedger, run_all, told_again
from mapo.style.training import begins_again, goes_on, stays
from mapo.train.run.folder import Run

OWED = "Pictures of real people need their consent. Show and share what the model makes of them only as they wish."

# ------------------------------------------------------------------ what will be done


def preview(asked: Personalize) -> Preview:
    """What `personalize` will do, with the memory and the time of a training; nothing is written. MapoError as it
    would."""
    ledger = StageLedger(asked.out, asked.identity())
    found = asked.found()
    photos, jobs = asked.photos(found.captions, 1), asked.prior_jobs(found.captions)
    frames = frames_for(photos, asked.files, asked.resolution)
    model = {name: asked.of_run(1)[name] for name in ("model", "loras")}
    planned = plan_training(
        photos, frames, asked.round_settings(frames, 1), asked.recipe, model, asked.out, hold_out=False
    )
    first, *plan = planned.lines
    shown, each = 2 * len(SEEDS) * len(asked.shown()), ", each" if asked.rounds > 1 else ""
    prior = (
        f"{count(len(jobs), 'drawing')} of {some_of([prompt for prompt, _ in jobs])} by {asked.model}"
        if jobs
        else "none"
    )
    kept = [one for one, _ in asked.kept(found.captions)]
    every = stages(asked, None, lambda: kept)
    screened, *unsafe = screened_before(every, ledger, asked.pictures, kept)
    lines = [
        f"captions   {count(len(photos), 'photo')}, as {some_of([one.caption for one in photos])}",
        f"screened   {screened}",
        f"prior      {prior}",
        f"rounds     {asked.rounds}{each} with {_rejected(asked, photos)}, in {count(len(set(frames)), 'frame')}",
        f"{first}{each and ' in each round'}",
        *plan,
        f"pictures   {shown}, half before and half after the training",
        f"out        {asked.out}: {', '.join(names(asked))}",
    ]
    again = ledger.stale(every)
    left = _runs_left(asked, frames, again)
    if done := ledger.told_done(every, [*again, *left]):
        lines.append(done)
    if again:
        lines.append(told_again(again))
    if said := _begins_again(asked, frames, again):
        lines.append(said)
    silent = []
    if found.silent:
        lack = some(found.silent, "photo's own caption does", "photos' own captions do")
        silent = [f"{lack} not say {asked.words.noun}, so templates are used: {named(found.silent)}."]
    warnings = [*silent, *unsafe, *_told_of_use(asked, frames), OWED]
    return Preview(lines, warnings, planned.refusal if left else "")


def _rejected(asked: Personalize, photos: Sequence[Own]) -> str:
    """What the rejected pictures of a round will be."""
    if asked.draws:
        return f"{count(asked.per_picture * len(photos) + asked.prior, 'drawing')} by the model as it then is"
    times = f" {count(asked.per_picture, 'time')}" if asked.per_picture > 1 else ""
    prior = " and the prior" if asked.prior else ""
    why = f"as {asked.config([], 1).objective.name} learns from none"
    return f"{count(len(photos), 'photo')}{times}{prior}, without rejected pictures, {why}"


def _told_of_use(asked: Personalize, frames: Sequence[Frame]) -> list[str]:
    """What is drawn and serves little: rejected pictures that are not learned from, prompts without the subject."""
    said, config = [], asked.config(frames, 1)
    if asked.draws and not asked.learns_from_rejected(config):
        said.append(
            f"{config.objective.name} does not learn from the rejected drawings. They are made because {asked.out} has "
            "such drawings already. Another --out draws none."
        )
    if not any(asked.words.knows(prompt) for prompt in asked.shown()):
        said.append(
            f"--eval-prompts: none has {asked.token} or {{}} in it, so nothing will show the subject. Write one that "
            "has."
        )
    return said


def _runs_left(asked: Personalize, frames: Sequence[Frame], again: Sequence[str]) -> list[str]:
    """The trainings that are to be done, or gone on with: the first such, and all behind it."""

    def stays_there(number: int) -> bool:
        run = Run(asked.round(number) / "run")
        return f"round-{number} run" not in again and stays(run, asked.config(frames, number))

    numbers = dropwhile(stays_there, range(1, asked.rounds + 1))
    return [f"round-{number} run" for number in numbers]


def _begins_again(asked: Personalize, frames: Sequence[Frame], again: Sequence[str]) -> str:
    """Which run that is there cannot go on, and why, or goes on; empty where all stay, or are made ``again`` anyhow."""
    for number in range(1, asked.rounds + 1):
        name, run = f"round-{number} run", Run(asked.round(number) / "run")
        if name in again or not run.before():
            return ""
        if why := begins_again(run, asked.config(frames, number)):
            return f"made again {name}, and what follows from it: {why}. The run that is there gets another name"
        if further := goes_on(run, asked.config(frames, number), name):
            return further
    return ""


def names(asked: Personalize) -> list[str]:
    """What is left in the folder."""
    rounds = [asked.round(number).name for number in range(1, asked.rounds + 1)]
    prior = ["prior"] if asked.prior else []
    last = ["before", "after", "after/grid.png", "copies.json", "lora.safetensors", "embedding.safetensors"]
    return ["captions.jsonl", *[SCREENED] * bool(screener()), *prior, *rounds, *last, "report.html"]


# ------------------------------------------------------------------ doing it


class Personalized(Left):
    """What `mapo personalize` has left."""

    @property
    def rounds(self) -> list[Run]:
        """The run of each round; the last one is the result."""
        return [Run(path / "run") for name, path in self.files.items() if name.startswith("round-")]


def personalize(asked: Personalize, *, hands: Any = None) -> Personalized:
    """Do all stages in ``asked.out``, or go on there; what came of it.

    MapoError where a stage cannot be done, with the stages before it kept; KeyboardInterrupt where it was stopped.
    """
    return Personalized.of(asked.out, names(asked), run_all(asked.out, asked.identity(), stages(asked, hands)))
