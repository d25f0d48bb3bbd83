"""The verb: captions, pairs, their check, training, pictures before and after, a report, and a LoRA to take away."""

from __future__ import annotations

import importlib.resources
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mapo.build.against import Own, build_against, check_asked, frames_for, held_out, told
from mapo.build.judge import parse_filter
from mapo.captions.fit import FEWEST, refuse_unfit
from mapo.captions.folder import look_in, refuse_silent
from mapo.captions.ledger import Caption, read_ledger
from mapo.captions.verb import caption
from mapo.encode.frame import Frame
from mapo.errors import MapoError, count
from mapo.files import inside, prepare_out, sha256
from mapo.models import find_model, open_model
from mapo.pairs import PairSet, PairWriter
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import open_picture, read_images
from mapo.score.scorers import scorer_names
from mapo.score.scorers.choice import NEUTRAL, only_neutral
from mapo.settings import merge
from mapo.shards import owned
from mapo.style import copies
from mapo.style.stages import Ledger, Stage, digest_of
from mapo.texts import read_object, write_json

LOG = logging.getLogger(__name__)

RECIPES = {  # for whoever names none, by the kind of the model
    "StableDiffusionXLPipeline": "sdxl-mapo-lora",
    "StableDiffusionPipeline": "sd15-mapo-lora",
    "StableDiffusion3Pipeline": "sd35-mapo-lora",
    "FluxPipeline": "flux-mapo-lora",
}
OWN_RECIPES = {"mini": "mini-style"}
SEEDS = (0, 1)  # of the pictures before and after
BOTH = ("before", "after")


@dataclass
class Style:
    """What was asked for."""

    pictures: Path
    model: str
    out: Path
    caption_with: str | None = None
    raw: bool = False
    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    per_picture: int = 1
    judge: str | None = None
    eval_prompts: str | None = None
    scorer: str | None = None
    goal: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    loras: Sequence[str] = ()

    def __post_init__(self) -> None:
        from mapo.train.recipes.recipe import read_recipe

        if self.out.resolve().is_relative_to(self.pictures.resolve()):
            raise MapoError(f"--out {self.out} lies in {self.pictures}, whose pictures are read. Choose another place.")
        if self.scorer and scorer_names(self.scorer) == [NEUTRAL]:
            raise MapoError(f"--scorer: {NEUTRAL} alone know no better or worse. Name another scorer, or none.")
        if self.goal and not self.scorer:
            LOG.info(f"--goal {self.goal}: it has to be a metric of the scorers at hand; --scorer names others.")
        self.chooser = parse_filter(self.judge) if self.judge else None
        check_asked(self.per_picture, self.chooser)
        self.files = find_model(self.model, loras=self.loras)
        if self.recipe is None:
            self.recipe = OWN_RECIPES.get(self.model) or self._fitting_recipe()
        values = read_recipe(self.recipe) if self.recipe else {"adapter": {"kind": "lora"}}
        values.pop("model", None)
        self.resolution: int | None = merge(values, self.settings).get("data", {}).get("resolution")
        self.is_lora = values.get("adapter", {}).get("kind", "full") == "lora"

    def _fitting_recipe(self) -> str | None:
        """The recipe for models of this kind, where this one is not much smaller."""
        from mapo.train.recipes.recipe import check_recipe, read_recipe

        name = RECIPES.get(self.files.pipeline_class)
        if name is None:
            return None
        try:
            check_recipe(name, self.model, read_recipe(name).get("data", {}).get("resolution"))
        except MapoError:
            return None
        return name

    @cached_property
    def side(self) -> int:
        """Pixels at which is trained."""
        return open_model(self.files, to_train=False).layout.checked(self.resolution)

    @property
    def captions_file(self) -> Path:
        """The captions, to be read and changed."""
        return self.out / "captions.jsonl"

    def own(self, captions: Sequence[Caption]) -> list[Own]:
        """The pictures that are kept and still there."""
        kept = [one for one in captions if one.keep]
        found = [Own(one.file, one.caption, inside(self.pictures, one.file, str(self.captions_file))) for one in kept]
        return [one for one in found if one.path.is_file()]


@dataclass(frozen=True)
class Preview:
    """What will be done, before anything is."""

    lines: list[str]
    warnings: list[str]


# ------------------------------------------------------------------ what will be done


def preview(asked: Style) -> Preview:
    """What `style` will do, with the memory and the time of its training; nothing is written. MapoError as it would."""
    ledger = Ledger(asked.out, _identity(asked))
    known = read_ledger(asked.captions_file) if asked.captions_file.is_file() else {}
    found = look_in(asked.pictures, raw=asked.raw)
    captions = [known.get(name) or found.captions[name] for name in found.pictures if name in {*known, *found.captions}]
    without = {name: why for name, why in found.without.items() if name not in known}
    if not asked.caption_with:
        refuse_silent(asked.pictures, without, captions)
        without = {}
    _refuse_unfit(asked, captions)
    own = asked.own(captions)
    frames = frames_for(own, asked.files, asked.resolution)
    drawings = asked.per_picture * (len(own) + len(without))
    prompts = _eval_prompts(asked)
    sources = f"{count(len(own), 'picture')} with captions"
    if without:
        sources += f", {count(len(without), 'caption')} to be written by {asked.caption_with}"
    tenth = [name for name in held_out(own).values() if name != "train"]
    lines = [
        f"captions   {sources}",
        f"pairs      {count(drawings, 'drawing')} by {asked.model}, in {count(len(set(frames)), 'frame')}",
        f"held out   {count(len(tenth), 'caption')} and {count(len(prompts), 'plain prompt')}",
        *_plan_lines(asked, own, frames),
        f"pictures   {2 * len(SEEDS) * (len(tenth) + len(prompts))}, half before and half after the training",
        f"out        {asked.out}: {', '.join(_names(asked))}",
    ]
    if again := ledger.stale(_stages(asked, {}, None)) if known else []:
        lines.append(f"made again {', '.join(again)}, as what they are made from has changed")
    return Preview(lines, _owed())


def _owed() -> list[str]:
    return [
        "Pictures of real people need their consent. Pictures and styles of artists have owners: ask them, and say "
        "whose they are where you show the result."
    ]


def _names(asked: Style) -> list[str]:
    last = ["lora.safetensors"] if asked.is_lora else []
    names = ["captions.jsonl", "rejected", "pairs", "check.html", "mismatch.json", "cache", "run", "before", "after"]
    return [*names, "after/grid.png", "copies.json", *last, "report.html"]


def _plan_lines(asked: Style, own: Sequence[Own], frames: Sequence[Frame]) -> list[str]:
    """The plan of the training, by a set of blank pictures of the right sizes."""
    from mapo.train import verb

    with tempfile.TemporaryDirectory() as temporary:
        blank = _blank_set(Path(temporary) / "pairs", own, frames)
        found = verb.plan(_settings(asked, frames), asked.recipe, **_named(asked, blank, Path(temporary) / "cache"))
    first, *rest = found.lines()
    kept = [line for line in rest if not line.startswith("disk")]
    return [f"training   {_training_told(asked)}", first, *kept]


def _training_told(asked: Style) -> str:
    from mapo.train.config import TrainConfig
    from mapo.train.recipes.recipe import read_recipe

    values = read_recipe(asked.recipe) if asked.recipe else {}
    train = merge({"train": TrainConfig().model_dump()}, merge({"train": values.get("train", {})}, asked.settings))[
        "train"
    ]
    way = f"recipe {asked.recipe}" if asked.recipe else "a LoRA with default settings"
    return f"{way}, {count(train['steps'], 'step')} of {count(train['pairs_per_step'], 'pair')}"


def _blank_set(folder: Path, own: Sequence[Own], frames: Sequence[Frame]) -> Path:
    from PIL import Image

    from mapo.sample.folder import png_bytes

    split = held_out(own)
    with PairWriter(folder, {"made": "to plan with"}) as writer:
        for number, (one, frame) in enumerate(zip(own, frames, strict=True)):
            colours = [(number % 256, number // 256 % 256, k) for k in range(2)]
            sides = [png_bytes(Image.new("RGB", (frame.width, frame.height), colour)) for colour in colours]
            writer.add_pair(one.caption, *sides, split=split[prompt_id(one.caption)])
    return folder


# ------------------------------------------------------------------ doing it


def style(asked: Style, *, hands: Any = None) -> dict[str, Any]:
    """Do all stages in ``asked.out``, or go on there; what came of it: ``verdict``, ``copies`` and the files.

    MapoError where a stage cannot be done, with the stages before it kept; KeyboardInterrupt where it was stopped.
    """
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with owned(asked.out):
        ledger = Ledger(asked.out, _identity(asked))
        prepare_out(asked.out)
        done: dict[str, Any] = {}
        for stage in _stages(asked, done, hands):
            ledger.run(stage)
    done["copies"] = read_object(asked.out / "copies.json", "what was found of copies", "Delete it.")
    done["files"] = {name: str(asked.out / name) for name in _names(asked) if (asked.out / name).exists()}
    return done


def _identity(asked: Style) -> dict[str, Any]:
    """What another command in the same folder has to ask for, too."""
    pictures = str(asked.pictures.resolve())
    return {"pictures": pictures, "model": asked.files.stable_name, "loras": [str(lora) for lora in asked.loras]}


def _stages(asked: Style, done: dict[str, Any], hands: Any) -> list[Stage]:
    out, pairs, run = asked.out, asked.out / "pairs", asked.out / "run"
    from mapo.check import verb as check_verb
    from mapo.export import verb as export_verb
    from mapo.mismatch import verb as mismatch_verb
    from mapo.report import verb as report_verb
    from mapo.sample import verb as sample_verb
    from mapo.train import verb as train_verb

    def captions() -> None:
        found = caption(asked.pictures, asked.captions_file, caption_with=asked.caption_with, raw=asked.raw)
        _refuse_unfit(asked, found)

    def draw() -> None:
        shutil.rmtree(pairs, ignore_errors=True)  # of a command that was killed when all but this was done
        own = asked.own(list(read_ledger(asked.captions_file).values()))
        counts = build_against(
            own, asked.model, pairs, out / "rejected", per_picture=asked.per_picture, judge=asked.chooser,
            resolution=asked.resolution, loras=asked.loras, **asked.sampling,
        )  # fmt: skip
        LOG.info(told(counts))

    def look() -> None:
        numbers = check_verb.check(pairs, out / "check.html", model=asked.model, buckets=_buckets(pairs))
        LOG.info(str(numbers["verdict"]))

    def distance() -> None:
        _, said = mismatch_verb.mismatch(asked.model, pairs, out / "mismatch.json", "1000-1001", loras=asked.loras)
        for line in said:
            LOG.info(line)

    def train() -> None:
        named = _named(asked, pairs, out / "cache")
        train_verb.train(run, _settings(asked, _frames_of(pairs)), asked.recipe, hands=hands, **named)

    def sample(model: str, folder: str, **more: Any) -> None:
        sample_verb.sample(model, _shown(asked, pairs), list(SEEDS), out / folder, **asked.sampling, **more)

    def report() -> None:
        if asked.scorer is None and only_neutral({out / name: read_images(out / name) for name in BOTH}):
            LOG.warning(
                "No scorer that knows better from worse is on this machine, so there is no report. Look at "
                "after/grid.png, or name one with --scorer, which is fetched once."
            )
            return
        numbers = report_verb.report(
            out / "before", out / "after", out / "report.html", scorer=asked.scorer, goal=asked.goal, run=run
        )
        done["verdict"] = numbers["verdict"]

    def look_for_copies() -> None:
        LOG.info(copies.told(_copies(asked, out)))

    def leave() -> None:
        export_verb.export(str(run), "kohya", out / "lora.safetensors")

    by = [asked.files.revision(), *(f"{name}={value}" for name, value in sorted(asked.sampling.items()))]
    drawn = [*by, asked.judge or "", str(asked.per_picture), str(asked.resolution)]
    stages = [
        Stage("captions", "what each picture shows", ("captions.jsonl",), lambda: [], captions, again=True),
        Stage("rejected", "a folder for the drawings", ("rejected",), lambda: by,
              lambda: (out / "rejected").mkdir(exist_ok=True)),
        Stage("pairs", f"{asked.model} draws the captions", ("pairs",), lambda: [*drawn, *_seen(asked)], draw),
        Stage("check", "what is wrong in the pairs", ("check.html",), lambda: [digest_of(pairs)], look),
        Stage("mismatch", "how far the pictures are from what the model draws", ("mismatch.json", "mismatch-images"),
              lambda: [*by, digest_of(pairs)], distance),
        Stage("run", "the training", ("run",), lambda: [digest_of(pairs)], train, again=True, aside=True),
        Stage("before", "pictures of the model as it was", ("before",), lambda: [*by, *_shown(asked, pairs)],
              lambda: sample(asked.model, "before", loras=asked.loras)),
        Stage("after", "pictures of the trained model", ("after",),
              lambda: [*by, *_shown(asked, pairs), digest_of(run / "weights")],
              lambda: sample(str(run), "after", grid=True, compare=[out / "before"])),
        Stage("copies", "whether the model draws copies", ("copies.json",),
              lambda: [digest_of(out / "after" / "manifest.jsonl"), *_seen(asked)], look_for_copies),
    ]  # fmt: skip
    if asked.is_lora:
        stages.append(Stage("lora", "a file for other programs", ("lora.safetensors",),
                            lambda: [digest_of(run / "weights")], leave))  # fmt: skip
    stages.append(
        Stage("report", "both beside each other", ("report.html",),
              lambda: [asked.scorer or "", asked.goal or "", *(digest_of(out / n / "manifest.jsonl") for n in BOTH)],
              report, clears=("before-scores.parquet", "after-scores.parquet"))
    )  # fmt: skip
    return stages


def _refuse_unfit(asked: Style, captions: Sequence[Caption]) -> None:
    refuse_unfit(asked.pictures, captions, fewest=FEWEST, side=asked.side // 2)


def _seen(asked: Style) -> list[str]:
    """The pictures and captions that are kept, as they are now."""
    own = asked.own(list(read_ledger(asked.captions_file).values()))
    return [f"{one.name} {one.caption} {sha256(one.path.read_bytes())}" for one in own]


def _frames_of(pairs: Path) -> list[Frame]:
    return [Frame(int(height), int(width)) for width, height in PairSet(pairs).image_sizes()]


def _buckets(pairs: Path) -> bool:
    return any(frame.width != frame.height for frame in _frames_of(pairs))


def _settings(asked: Style, frames: Sequence[Frame]) -> dict[str, Any]:
    wide = any(frame.width != frame.height for frame in frames)
    start: dict[str, Any] = {"data": {"buckets": True}} if wide else {}
    if asked.recipe is None:
        start["adapter"] = {"kind": "lora"}
    return merge(start, asked.settings)


def _named(asked: Style, pairs: Path, cache: Path) -> dict[str, Any]:
    return {"model": asked.model, "pairs": str(pairs), "cache": str(cache), "loras": [*asked.loras] or None}


def _eval_prompts(asked: Style) -> list[str]:
    """Plain prompts that have nothing to do with the pictures."""
    from mapo.sample.prompts import asked_prompts

    if asked.eval_prompts:
        return asked_prompts(asked.eval_prompts)
    text = (importlib.resources.files("mapo.style") / "prompts.txt").read_text("utf-8")
    return text.splitlines()


def _shown(asked: Style, pairs: Path) -> list[str]:
    """What is drawn before and after: held-out captions and plain prompts, none of which is trained on."""
    found = PairSet(pairs)
    trained = {prompt_id(pair.prompt) for pair in found if pair.split == "train"}
    asked_for = [*(pair.prompt for pair in found if pair.split != "train"), *_eval_prompts(asked)]
    return [*dict.fromkeys(prompt for prompt in asked_for if prompt_id(prompt) not in trained)]


def _copies(asked: Style, out: Path) -> dict[str, Any]:
    """Compare the drawings with the pictures, and write down what was found."""
    own = asked.own(list(read_ledger(asked.captions_file).values()))
    known = copies.read_folder(asked.pictures, [one.name for one in own])
    near = [
        copies.nearest({row.file: open_picture(out / name, row) for row in read_images(out / name)}, known)
        for name in BOTH
    ]
    found = copies.compared(copies.nearest(known, known), *near)
    write_json(out / "copies.json", found)
    return found
