"""The verb: captions, pairs, their check, training, pictures before and after, a report, and a LoRA to take away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mapo.build.against import Own, frames_for, held_out
from mapo.build.rejected import rejected_of, told_unused
from mapo.captions.fit import told_of_style
from mapo.captions.folder import look_in, made, refuse_silent
from mapo.captions.ledger import BY_HAND, Caption, merge, read_ledger
from mapo.captions.write import check_describer
from mapo.errors import MapoError, count
from mapo.pairs import PairSet
from mapo.pairs.splits import prompt_id
from mapo.style import work
from mapo.style.asked import Left, Preview
from mapo.style.planned import plan_training
from mapo.style.screen import screened_before, screener, screening
from mapo.style.shown import SCORES, SEEDS, compare, compared_from, leave
from mapo.style.stages import Stage, StageLedger, digest_of, run_all, told_again
from mapo.style.training import begins_again, goes_on, stays
from mapo.style.wanted import Style
from mapo.train.run.folder import Run

__all__ = ["Style", "Styled", "preview", "style"]

OWED = (
    "Pictures of real people need their consent. Pictures and styles of artists have owners: ask them, and say whose "
    "they are where you show the result."
)


def preview(asked: Style) -> Preview:
    """What `style` will do, with the memory and the time of its training; nothing is written. MapoError as it would."""
    ledger = StageLedger(asked.out, asked.identity())
    known = read_ledger(asked.captions_file) if asked.captions_file.is_file() else {}
    found = look_in(asked.pictures, raw=asked.raw, given=asked.captions)
    captions = merge(found.pictures, found.captions, known, partial(made, raw=asked.raw)).captions
    without = {name: why for name, why in found.without.items() if name not in {one.file for one in captions}}
    if asked.caption_with is None:
        refuse_silent(asked.pictures, without, captions)
    elif without:
        check_describer(asked.caption_with)
    styled = told_of_style(captions)
    captions += [Caption(name, name) for name in without]  # whose captions will be written
    asked.refuse_unfit(captions)
    own = asked.own(captions)
    frames = frames_for(own, asked.files, asked.resolution)
    split = held_out(own)
    tenth = [name for name, of in split.items() if of != "train"]
    prompts = [prompt for prompt in asked.plain_prompts() if split.get(prompt_id(prompt)) is None]
    if not prompts and not tenth:
        raise MapoError("--eval-prompts: all of them are captions that are trained on. Add others.")
    against, warnings = _rejected(asked, own)
    kept = [one for one, _ in asked.kept(captions)]
    stages = _stages(asked, None, lambda: kept)
    screened, *unsafe = screened_before(stages, ledger, asked.pictures, kept)
    unwritten = f", {count(len(without), 'caption')} to be written by {asked.caption_with}" if without else ""
    shorter = sum(
        1 for one in captions if one.raw and one.source != BY_HAND and one.caption != " ".join(one.raw.split())
    )
    without_words = f", {shorter} of them without style words, weights and the like" if shorter else ""
    planned = plan_training(own, frames, asked.train_settings(frames), asked.recipe, asked.named(), asked.out)
    lines = [
        f"captions   {count(len(own) - len(without), 'picture')} with captions{without_words}{unwritten}",
        f"screened   {screened}",
        f"pairs      {against}, in {count(len(set(frames)), 'frame')}",
        f"held out   {count(len(tenth), 'caption')} and {count(len(prompts), 'plain prompt')}",
        *planned.lines,
        f"pictures   {2 * len(SEEDS) * (len(tenth) + len(prompts))}, half before and half after the training",
        f"out        {asked.out}: {', '.join(asked.names())}",
    ]
    again = ledger.stale(stages)
    there, config = Run(asked.run), asked.config(frames)
    trained = "run" not in again and stays(there, config)
    if done := ledger.told_done(stages, [*again, *["run"] * (not trained)]):
        lines.append(done)
    if again:
        lines.append(told_again(again))
    if "run" not in again and (why := begins_again(there, config)):
        lines.append(f"made again run, and what follows from it: {why}. The run that is there gets another name")
    elif "run" not in again and (further := goes_on(there, config, "run")):
        lines.append(further)
    warnings = [*(f"{said}. Nothing is made of them." for said in found.absent), *styled, *warnings, *unsafe]
    if len(split) == 1:
        warnings.append(
            "All pictures have the same caption. So none is held out, and only plain prompts show what was learned."
        )
    return Preview(lines, [*warnings, OWED], "" if trained else planned.refusal)


UNSEEN = (
    "{} learns from your pictures alone: rejected ones come into the set, and the training does not look at them. "
    "To learn from them too add --set objective.name=mapo."
)


def _rejected(asked: Style, own: Sequence[Own]) -> tuple[str, list[str]]:
    """What the rejected pictures will be, and what to warn of."""
    config = asked.config([])
    unseen = [] if asked.learns_from_rejected(config) else [UNSEEN.format(config.objective.name)]
    if asked.draws:
        return f"{count(asked.per_picture * len(own), 'drawing')} by {asked.model}", unseen
    if asked.rejected is None:
        return f"{count(len(own), 'picture')} alone, as {config.objective.name} learns from no drawings", []
    given, unused = rejected_of(own, asked.rejected)
    told = f"{count(len(given), 'rejected picture')} of {asked.rejected}"
    return told, [*unseen, *([told_unused(asked.rejected, unused)] if unused else [])]


class Styled(Left):
    """What `mapo style` has left."""

    @property
    def pairs(self) -> PairSet:
        """The set that was trained on."""
        return PairSet(self.files["pairs"])

    @property
    def run(self) -> Run:
        """The run."""
        return Run(self.files["run"])


def style(asked: Style, *, hands: Any = None) -> Styled:
    """Do all stages in ``asked.out``, or go on there; what came of it.

    MapoError where a stage cannot be done, with the stages before it kept; KeyboardInterrupt where it was stopped.
    """
    return Styled.of(asked.out, asked.names(), run_all(asked.out, asked.identity(), _stages(asked, hands)))


def _stages(asked: Style, hands: Any, captions: Callable[[], list[Caption]] | None = None) -> list[Stage]:
    """All stages; ``captions`` is what will be in the file of captions, where that is not written yet."""
    now = captions or asked.captions_now
    out, pairs, run, by = asked.out, asked.pairs, asked.run, asked.drawn_by()
    drawn = [*by, asked.judge or "", str(asked.per_picture), str(asked.resolution)]
    stages = [
        Stage("captions", "what each picture shows", ("captions.jsonl",), lambda: [],
              partial(work.write_captions, asked), again=True),
    ]  # fmt: skip
    says = f"each picture beside that of its name in {asked.rejected}"
    if asked.rejected is None and not asked.draws:
        says, drawn = "each picture alone", ["alone", str(asked.resolution)]
    elif asked.draws:
        says = f"{asked.model} draws the captions"
        stages.append(Stage("rejected", "a folder for the drawings", ("rejected",), lambda: by,
                            lambda: (out / "rejected").mkdir(exist_ok=True)))  # fmt: skip
    if scorer := screener():
        stages.append(screening(asked.pictures, scorer, out, now, lambda: asked.seen(now())))
    stages += [
        Stage("pairs", says, ("pairs",), lambda: [*drawn, *asked.seen(now())], partial(work.make_pairs, asked),
              aside_if_changed=True),
        Stage("check", "what is wrong in the pairs", ("check.html",), lambda: [digest_of(pairs)],
              partial(work.check_pairs, asked), follows=("pairs",)),
        Stage("mismatch", "how far the pictures are from what the model draws", ("mismatch.json", "mismatch-images"),
              lambda: [*by, str(asked.resolution), asked.encoder(), digest_of(pairs)],
              partial(work.measure_mismatch, asked),
              clears=(work.MISMATCH,), follows=("pairs",)),
        Stage("run", "the training", ("run",), lambda: [asked.files.revision(), digest_of(pairs)],
              partial(work.train, asked, hands), again=True, aside=True,
              follows=("pairs",)),
        Stage("before", "pictures of the model as it was", ("before",), lambda: [*by, *asked.shown()],
              partial(work.draw, asked, asked.model, out / "before", loras=asked.loras, **asked.told),
              follows=("pairs",), foreseen=lambda: [*by, *asked.foreseen(now())]),
        Stage("after", "pictures of the trained model", ("after",),
              lambda: [*by, *asked.shown(), digest_of(run / "weights")],
              partial(work.draw, asked, str(run), out / "after", grid=True, compare=[out / "before"]),
              follows=("pairs", "run", "before")),
        Stage("copies", "whether the model draws copies", ("copies.json",),
              lambda: [digest_of(out / "after" / "manifest.jsonl"), asked.looked_by(), *asked.seen(now())],
              partial(work.look_for_copies, asked), follows=("after",)),
    ]  # fmt: skip
    if asked.is_lora:
        stages.append(Stage("lora", "a file for other programs", ("lora.safetensors",),
                            lambda: [digest_of(run / "weights")],
                            partial(leave, run, "kohya", out / "lora.safetensors"),
                            follows=("run",)))  # fmt: skip
    stages.append(Stage("report", "both beside each other", ("report.html",),
                        lambda: compared_from(asked), partial(compare, asked, run), clears=SCORES,
                        follows=("before", "after", "copies")))  # fmt: skip
    return stages
