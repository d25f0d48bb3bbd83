"""The verbs for Python. Each does what the command of its name does, and returns what it made.

``from mapo.api import train`` loads no network library; a function loads what it needs when it is called. A value of
another kind than the one asked for is a MapoError of one sentence. What one function returns can be given to the next
in place of its folder.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.arguments import (
    Names,
    Number,
    Numbers,
    Place,
    Places,
    Prompts,
    Seeds,
    Settings,
    Switch,
    Text,
    Texts,
    Whole,
    as_paths,
    as_prompts,
    as_text,
    as_texts,
    checked,
)
from mapo.errors import MapoError, several
from mapo.pairs import PairSet
from mapo.results import Images, Page, Scores
from mapo.settings import nested

if TYPE_CHECKING:
    from mapo.captions.ledger import Caption
    from mapo.encode.cache import Cache
    from mapo.export.verb import Exported
    from mapo.mismatch.mismatch import Mismatch
    from mapo.personalize.personalize import Personalized
    from mapo.style.style import Styled
    from mapo.train.plan.plan import Plan
    from mapo.train.run.folder import Run

__all__ = [
    "Images", "MapoError", "Page", "PairSet", "Run", "Scores",
    "build", "build_chosen", "build_from_images", "caption", "check", "encode", "export", "import_pairs", "mismatch",
    "personalize", "plan", "report", "sample", "score", "style", "train", "try_objective",
]  # fmt: skip

LOG = logging.getLogger(__name__)


if not TYPE_CHECKING:  # Run comes with torch, so it is loaded when it is named

    def __getattr__(name: str) -> Any:
        if name == "Run":
            from mapo.train.run.folder import Run

            return Run
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ------------------------------------------------------------------ the verbs


@checked
def build(
    recipe: Place, *, model: Place, prompts: Prompts, num_pairs: Whole, out: Place, judges: Texts = (),
    prefixes: Texts = (), candidates: Whole | None = None, seeds: Text | None = None, context: Text | None = None,
    context_model: Text | None = None, keep: Text = "pictures", latents_for: Place | None = None,
    steps: Whole | None = None, guidance: Number | None = None, precision: Text | None = None,
    images_per_batch: Whole | None = None, clip_skip: Whole | None = None, vae: Place | None = None,
    prediction: Text | None = None, loras: Places = (), long_prompts: Text | None = None,
) -> PairSet:  # fmt: skip
    """Let a model make pairs. The set; MapoError where too few pairs are kept, or what is asked for cannot be."""
    from mapo.build import verb

    verb.build(
        os.fspath(recipe), os.fspath(model), as_prompts(prompts), num_pairs, Path(out), judges=several(judges),
        prefixes=prefixes, candidates=candidates, seeds=seeds, context=context, context_model=context_model, keep=keep,
        latents_for=None if latents_for is None else os.fspath(latents_for), steps=steps, guidance=guidance,
        precision=precision, images_per_batch=images_per_batch, clip_skip=clip_skip, vae=as_text(vae),
        prediction=prediction, loras=as_texts(loras), long_prompts=long_prompts,
    )  # fmt: skip
    return PairSet(out)


@checked
def build_chosen(
    chosen: Place, *, model: Place, out: Place, rejected: Place | None = None, drawings: Whole = 1,
    captions: Place | None = None, judge: Text | None = None, resolution: Whole | None = None,
    steps: Whole | None = None, guidance: Number | None = None, precision: Text | None = None,
    images_per_batch: Whole | None = None, clip_skip: Whole | None = None, vae: Place | None = None,
    prediction: Text | None = None, loras: Places = (), long_prompts: Text | None = None,
) -> PairSet:  # fmt: skip
    """Make a set of the pictures of a folder, against what a model draws from their captions, or ``rejected`` ones.

    The set; MapoError where a picture has no caption, is damaged or too small, or has no rejected one.
    """
    from mapo.build import verb

    told: dict[str, Any] = {
        "captions": None if captions is None else Path(captions), "resolution": resolution, "clip_skip": clip_skip,
        "vae": as_text(vae), "prediction": prediction, "loras": as_texts(loras), "long_prompts": long_prompts,
    }  # fmt: skip
    pictures, name = Path(chosen), os.fspath(model)
    if rejected is not None:
        verb.build_beside(pictures, Path(rejected), name, Path(out), **told)
    elif not drawings:
        verb.build_alone(pictures, name, Path(out), **told)
    else:
        verb.build_against(
            pictures, name, Path(out), judges=several(judge or ()), per_picture=drawings, steps=steps,
            guidance=guidance, precision=precision, images_per_batch=images_per_batch, **told,
        )  # fmt: skip
    return PairSet(out)


@checked
def build_from_images(
    pictures: Place, *, judges: Texts, out: Place, captions: Place | None = None, rankings: Text = "best-worst",
    sensitive: Switch = False,
) -> PairSet:  # fmt: skip
    """Make pairs of pictures that share a prompt. The set; MapoError where no prompt has two, or no pair is kept."""
    from mapo.build import verb

    verb.build_from_images(
        Path(pictures), Path(out), judges=several(judges), captions=None if captions is None else Path(captions),
        rankings=rankings, sensitive=sensitive,
    )  # fmt: skip
    return PairSet(out)


@checked
def import_pairs(
    source: Place, *, out: Place, format: Text | None = None, columns: Names | None = None,
    captions: Text | None = None, on_bad_row: Text = "stop", ties: Text = "drop", rankings: Text = "all",
    least_gap: Number = 0.0, split: Text | None = None, licence: Text | None = None,
    rejected_from: Place | None = None,
) -> PairSet:  # fmt: skip
    """Make a set of somebody's pairs, rankings or scores. The set; MapoError where a row is bad or no pair is found."""
    from mapo.sample.partners import import_with_partners

    import_with_partners(
        os.fspath(source), Path(out), None if rejected_from is None else Path(rejected_from), format=format,
        columns=columns, captions=captions, on_bad_row=on_bad_row,
        ties=ties, rankings=rankings, least_gap=least_gap, split=split, licence=licence,
    )  # fmt: skip
    return PairSet(out)


@checked
def caption(
    pictures: Place, *, out: Place, caption_with: Place | None = None, raw: Switch = False, images_per_batch: Whole = 8
) -> "list[Caption]":
    """Put the captions of a folder of pictures into one file. The captions; MapoError names pictures without one."""
    from mapo.captions import verb

    return verb.caption(
        Path(pictures), Path(out), caption_with=as_text(caption_with), raw=raw, images_per_batch=images_per_batch
    )


@checked
def check(
    pairs: Place, *, out: Place = "check.html", model: Place | None = None, json_file: Place | None = None,
    vae: Place | None = None, prediction: Text | None = None, loras: Places = (), long_prompts: Text | None = None,
    buckets: Switch = False,
) -> Page:  # fmt: skip
    """Look for what is wrong in a set. The page; what is wrong is in its numbers, and not an exception."""
    from mapo.check import verb

    return Page(
        Path(out),
        verb.check(
            Path(pairs), Path(out), model=as_text(model), json_file=None if json_file is None else Path(json_file),
            vae=as_text(vae), prediction=prediction, loras=as_texts(loras), long_prompts=long_prompts, buckets=buckets,
        ),
    )  # fmt: skip


@checked
def mismatch(
    *, model: Place, pairs: Place, out: Place = "mismatch.json", encoder: Text | None = None, split: Text = "train",
    num_pairs: Whole = 128, seeds: Seeds = "1000-1001", seed: Whole = 0, steps: Whole | None = None,
    guidance: Number | None = None, precision: Text | None = None, images_per_batch: Whole | None = None,
    clip_skip: Whole | None = None, vae: Place | None = None, prediction: Text | None = None,
    loras: Places = (), long_prompts: Text | None = None, resolution: Whole | None = None, buckets: Switch = False,
) -> "Mismatch":  # fmt: skip
    """Measure how far a set is from a model. The numbers; MapoError where the split has no pairs."""
    from mapo.mismatch import verb

    found, _ = verb.mismatch(
        os.fspath(model), Path(pairs), Path(out), seeds, encoder=encoder, split=split, num_pairs=num_pairs, seed=seed,
        steps=steps, guidance=guidance, precision=precision, images_per_batch=images_per_batch, clip_skip=clip_skip,
        vae=as_text(vae), prediction=prediction, loras=as_texts(loras), long_prompts=long_prompts,
        resolution=resolution, buckets=buckets,
    )  # fmt: skip
    return found


@checked
def encode(
    *, model: Place, pairs: Place, out: Place, resolution: Whole | None = None, flip: Switch = False,
    precision: Text = "float32", clip_skip: Whole | None = None, images_per_batch: Whole = 8,
    vae: Place | None = None, prediction: Text | None = None,
    loras: Places = (), long_prompts: Text | None = None, buckets: Switch = False, shard: Text = "0/1",
    source: Place | None = None, imports: Settings | None = None,
) -> "Cache":  # fmt: skip
    """Encode pictures and prompts once. The cache; MapoError where it was encoded in another way before.

    ``shard`` "0/4" encodes a quarter of them; the cache is whole where it is the last of four. With a ``source`` the
    set ``pairs`` is made of it meanwhile and keeps no pictures; ``imports`` are arguments of ``import_pairs``.
    """
    from mapo.encode import verb
    from mapo.shards import parse_shard

    made = verb.encode(
        os.fspath(model), Path(pairs), Path(out), resolution=resolution, flip=flip, precision=precision,
        clip_skip=clip_skip, images_per_batch=images_per_batch, vae=as_text(vae), prediction=prediction,
        loras=as_texts(loras), long_prompts=long_prompts, buckets=buckets, shard=parse_shard(shard),
        source=as_text(source), imports=imports,
    )  # fmt: skip
    if made.losses:
        LOG.info(", ".join(made.losses))
    return made.cache


@checked
def train(
    *, out: Place, model: Place | None = None, pairs: Place | None = None, cache: Place | None = None,
    objective: Text | None = None, adapter: Text | None = None, recipe: Text | None = None, vae: Place | None = None,
    prediction: Text | None = None, loras: Places = (), targets: Texts = (), settings: Settings | None = None,
    allow_change: Switch = False,
) -> "Run":  # fmt: skip
    """Train, or go on with the run that is in ``out``. The run; MapoError, KeyboardInterrupt where it was stopped."""
    from mapo.train import verb
    from mapo.train.run.folder import Run
    from mapo.watch.verb import hands

    named = _named(
        model=model, pairs=pairs, cache=cache, vae=vae, objective=objective, adapter=adapter, prediction=prediction,
        loras=loras, targets=targets,
    )  # fmt: skip
    verb.train(Path(out), nested(settings or {}), recipe, hands=hands, allow_change=allow_change, **named)
    return Run(out)


@checked
def plan(
    *, model: Place | None = None, pairs: Place | None = None, cache: Place | None = None,
    objective: Text | None = None, adapter: Text | None = None, recipe: Text | None = None, vae: Place | None = None,
    prediction: Text | None = None, loras: Places = (), targets: Texts = (), settings: Settings | None = None,
    out: Place | None = None, memory: Text | None = None, processes: Whole | None = None,
) -> "Plan":  # fmt: skip
    """Say what a training needs, and how it fits. The plan, with bytes by kind; no weights are read.

    It is that of each of so many ``processes``; left out, of those that were started.
    """
    from mapo.train import verb

    named = _named(
        model=model, pairs=pairs, cache=cache, vae=vae, objective=objective, adapter=adapter, prediction=prediction,
        loras=loras, targets=targets,
    )  # fmt: skip
    place = None if out is None else Path(out)
    return verb.plan(nested(settings or {}), recipe, out=place, memory=memory, processes=processes, **named)


def _named(*, loras: Any, targets: Any, **texts: Any) -> dict[str, Any]:
    """What is said of a training by name, as the verbs take it: texts and places, and the two lists."""
    named = {name: as_text(given) for name, given in texts.items()}
    return {**named, "loras": as_texts(loras) or None, "targets": several(targets) or None}


@checked
def try_objective(objective: Text, *, settings: Numbers | None = None) -> list[str]:
    """Try an objective of your own on made-up errors, as ``train`` does before it loads anything.

    What is doubtful about it, a sentence each; MapoError where it cannot be trained with.
    """
    from mapo.train.objectives.trial import try_objective

    return try_objective(objective, settings or {})


@checked
def sample(
    *, model: Place, prompts: Prompts, out: Place, seeds: Seeds = 0, steps: Whole | None = None,
    guidance: Number | None = None, sampler: Text | None = None, width: Whole | None = None,
    height: Whole | None = None, prefix: Text = "", negative_prompt: Text = "", precision: Text | None = None,
    images_per_batch: Whole | None = None, clip_skip: Whole | None = None, vae: Place | None = None,
    prediction: Text | None = None, loras: Places = (), long_prompts: Text | None = None, grid: Switch = False,
    compare: Places = (), shard: Text = "0/1",
) -> Images:  # fmt: skip
    """Make pictures. Their folder and rows; MapoError where the folder holds pictures of other settings.

    ``shard`` "0/4" draws a quarter of them; its rows are empty until all shards are done.
    """
    from mapo.sample import verb
    from mapo.shards import parse_shard

    rows = verb.sample(
        os.fspath(model), as_prompts(prompts), seeds, Path(out), steps=steps, guidance=guidance, sampler=sampler,
        width=width, height=height, prefix=prefix, negative_prompt=negative_prompt, precision=precision,
        images_per_batch=images_per_batch, clip_skip=clip_skip, vae=as_text(vae), prediction=prediction,
        loras=as_texts(loras), long_prompts=long_prompts, grid=grid, compare=as_paths(compare),
        shard=parse_shard(shard),
    )  # fmt: skip
    return Images(Path(out), rows or [])


@checked
def score(
    images: Place, *, out: Place, scorer: Texts | None = None, references: Place | None = None,
    images_per_batch: Whole = 64,
) -> Scores:  # fmt: skip
    """Give numbers to the pictures of a folder. The table; MapoError where a scorer is not there."""
    from mapo.score import verb

    counts = verb.score(
        Path(images), None if scorer is None else ",".join(several(scorer)), Path(out),
        references=None if references is None else Path(references), images_per_batch=images_per_batch,
    )  # fmt: skip
    assert counts is not None  # which is said of a share of the work alone
    return Scores(Path(out), **counts)


@checked
def report(
    *, before: Place, after: Place, out: Place, scores: Places = (), scorer: Texts | None = None, votes: Places = (),
    goal: Text | None = None, run: Place | None = None, judges_of_pairs: Texts = (), blur: Switch = False,
) -> Page:  # fmt: skip
    """Compare two images folders. The page; MapoError where they cannot be compared."""
    from mapo.report import verb

    numbers = verb.report(
        Path(before), Path(after), Path(out), scores=as_paths(scores),
        scorer=None if scorer is None else ",".join(several(scorer)), votes=as_paths(votes), goal=goal,
        run=None if run is None else Path(run), judges_of_pairs=several(judges_of_pairs), blur=blur,
    )  # fmt: skip
    return Page(Path(out), numbers)


@checked
def export(
    source: Place, *, to: Text, out: Place | None = None, repo: Text | None = None, private: Switch | None = None,
    licence: Text | None = None, precision: Text | None = None, scores: Places = (), base_model: Text | None = None,
    on_missing_picture: Text = "stop", source_licences: Texts = (),
) -> "Exported":  # fmt: skip
    """Write a run or a set for other programs, or publish it.

    The folder or file, counts and address; MapoError as for a form that is not one of what is given.
    """
    from mapo.export import verb

    return verb.export(
        os.fspath(source), to, None if out is None else Path(out), repo=repo, private=private, licence=licence,
        precision=precision, scores=as_paths(scores), base_model=base_model, on_missing_picture=on_missing_picture,
        source_licences=several(source_licences),
    )  # fmt: skip


@checked
def style(
    pictures: Place, *, model: Place, out: Place, captions: Place | None = None, caption_with: Place | None = None,
    raw: Switch = False, rejected: Place | None = None, rejected_per_picture: Whole = 1, judge: Text | None = None,
    recipe: Text | None = None, settings: Settings | None = None, eval_prompts: Prompts | None = None,
    scorer: Texts | None = None, goal: Text | None = None, copies_with: Place | None = None,
    sampling_steps: Whole | None = None, guidance: Number | None = None, precision: Text | None = None,
    images_per_batch: Whole | None = None, loras: Places = (),
) -> "Styled":  # fmt: skip
    """Teach a model the style of a folder of pictures, or go on with that. What was left; nothing is asked.

    MapoError where a stage cannot be done, with those before it kept.
    """
    from mapo.style.style import Style, preview
    from mapo.style.style import style as do
    from mapo.watch.verb import hands

    sampling = {
        "steps": sampling_steps, "guidance": guidance, "precision": precision, "images_per_batch": images_per_batch,
    }  # fmt: skip
    asked = Style(
        Path(pictures), os.fspath(model), Path(out), captions=None if captions is None else Path(captions),
        caption_with=as_text(caption_with), raw=raw, rejected=None if rejected is None else Path(rejected),
        per_picture=rejected_per_picture, judge=judge, recipe=recipe, settings=nested(settings or {}),
        eval_prompts=None if eval_prompts is None else as_prompts(eval_prompts),
        scorer=None if scorer is None else ",".join(several(scorer)), goal=goal, copies_with=as_text(copies_with),
        sampling={name: value for name, value in sampling.items() if value is not None}, loras=as_texts(loras),
    )  # fmt: skip
    for line in [*(seen := preview(asked)).lines, *seen.warnings]:
        LOG.info(line)
    seen.refuse()
    return do(asked, hands=hands)


@checked
def personalize(
    photos: Place, *, model: Place, token: Text, noun: Text, out: Place, templates: Place | None = None,
    rounds: Whole = 2, rejected_per_photo: Whole = 8, prior: Whole = 40, prior_prompts: Place | None = None,
    recipe: Text | None = None, settings: Settings | None = None, eval_prompts: Prompts | None = None,
    scorer: Texts | None = None, goal: Text | None = None, copies_with: Place | None = None,
    sampling_steps: Whole | None = None, guidance: Number | None = None, precision: Text | None = None,
    images_per_batch: Whole | None = None, loras: Places = (),
) -> "Personalized":  # fmt: skip
    """Teach a model a subject from photos, and a word for it, or go on with that. What was left; nothing is asked.

    MapoError where a stage cannot be done, with those before it kept.
    """
    from mapo.personalize.asked import Personalize
    from mapo.personalize.personalize import personalize as do
    from mapo.personalize.personalize import preview
    from mapo.watch.verb import hands

    sampling = {
        "steps": sampling_steps, "guidance": guidance, "precision": precision, "images_per_batch": images_per_batch,
    }  # fmt: skip
    asked = Personalize(
        Path(photos), os.fspath(model), Path(out), recipe=recipe, settings=nested(settings or {}),
        per_picture=rejected_per_photo, eval_prompts=None if eval_prompts is None else as_prompts(eval_prompts),
        scorer=None if scorer is None else ",".join(several(scorer)), goal=goal,
        sampling={name: value for name, value in sampling.items() if value is not None}, loras=as_texts(loras),
        token=token, noun=noun, templates=as_text(templates), rounds=rounds, prior=prior,
        prior_prompts=as_text(prior_prompts), copies_with=as_text(copies_with),
    )  # fmt: skip
    for line in [*(seen := preview(asked)).lines, *seen.warnings]:
        LOG.info(line)
    seen.refuse()
    return do(asked, hands=hands)
