"""Pairs that a model makes itself: prompts → context prompts → pictures → judges → pairs.

Every stage leaves its files in the work folder ``.<out>.build.partial`` (:mod:`mapo.build.work`), so the same command
goes on where it was stopped, and several processes can share the work. The set depends on neither: portions of prompts
are made in a fixed order, and what was made before is only found again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mapo import progress
from mapo.build import minors
from mapo.build.candidates import DrawnBy, Latents, Maker, PassedPair, Portion
from mapo.build.context import Contexts, Rewriter, open_rewriter
from mapo.build.judge import Filter, judges_of
from mapo.build.recipe import Recipe, changed_recipe
from mapo.build.work import Work, forget, forgotten_if_nothing_is_made, is_made, open_work
from mapo.devices import use_own_device
from mapo.encode.cache import LATENTS, read_latents, write_head, write_shard
from mapo.errors import MapoError, count, memory_told, several
from mapo.files import sha256
from mapo.models import find_model
from mapo.pairs.pairs import PairWriter, pair_id
from mapo.sample.folder import read_picture
from mapo.sample.sample import Sampling, default_sampling
from mapo.shards import FINISHING, WHOLE, Shard, in_shares, refuse_existing

LOG = logging.getLogger(__name__)

MOST_TRIES_PER_PAIR = 5
KEEP = ("pictures", "rejected-as-latents")


def build(
    recipe: Recipe,
    model: str,
    prompts: str | Sequence[str],
    num_pairs: int,
    out: Path,
    *,
    judges: Sequence[Filter] = (),
    context: str | None = None,
    context_model: str | None = None,
    keep: str = "pictures",
    latents_for: str | None = None,
    shard: Shard = WHOLE,
    prompts_from: str | None = None,
    clip_skip: int | None = None,
    vae: str | None = None,
    prediction: str | None = None,
    long_prompts: str | None = None,
    loras: Sequence[str] = (),
    **how: Any,
) -> dict[str, int] | None:
    """Make ``num_pairs`` pairs into the set ``out``; its counts, or None where other shards are not done yet.

    Prompts are used in turn, with the next seed when all have been used. ``context``: see ``context.py``. ``keep``
    is ``pictures``, or ``rejected-as-latents``: then no rejected picture ever lies on disk, only what the VAE of
    ``latents_for`` (default: the model) makes of it. ``prompts_from`` is the name of the prompts that the set keeps.
    ``clip_skip``, ``vae``, ``prediction``, ``long_prompts`` and ``loras`` are of the model that draws, as
    :func:`mapo.models.find_model` takes them; ``latents_for`` keeps its own.
    ``how`` changes the sampling (steps, guidance, …).
    """
    refuse_existing(out)
    if num_pairs < 1:
        raise MapoError(f"--num-pairs is {num_pairs}; it must be at least 1.")
    if keep not in KEEP:
        raise MapoError(f"--keep {keep!r} is not known. Write {' or '.join(KEEP)}.")
    if latents_for and keep != "rejected-as-latents":
        raise MapoError("--latents-for goes with --keep rejected-as-latents.")
    prompts = several(prompts)
    recipe = changed_recipe(recipe)  # refuses two sides that are the same
    safe = _safe_prompts(recipe, prompts)
    judges, rewriter = judges_of(recipe, judges), _rewriter(recipe, context, context_model)
    asked = {"clip_skip": clip_skip, "vae": vae, "prediction": prediction, "long_prompts": long_prompts}
    found = find_model(model, **asked, loras=loras)  # type: ignore[arg-type]
    sampling = default_sampling(found, **(recipe.advice(model) | {k: v for k, v in how.items() if v is not None}))
    latents = Latents(find_model(latents_for) if latents_for else found) if keep != "pictures" else None
    drawn_by = DrawnBy(found, {**asked, "loras": loras})
    plan = BuildPlan(recipe, num_pairs, out, prompts, safe, prompts_from, rewriter, drawn_by, sampling, judges, latents)
    folder = plan.folder = open_work(out, plan.settings(), found.revisions())
    use_own_device()
    with forgotten_if_nothing_is_made(folder):
        gather = partial(_collect, plan, alone=shard[1] == 1)
        counts = in_shares(folder, shard, lambda: _share(plan, shard), gather)
    for note in dict.fromkeys(note for judge in judges for note in judge.scorer.notes()):
        LOG.info(note)
    return counts


@dataclass
class BuildPlan:
    """What is to be built, all of it checked."""

    recipe: Recipe
    num_pairs: int
    out: Path
    prompts: Sequence[str]
    safe: Sequence[str]  # those of the prompts that pictures are made of
    prompts_from: str | None
    rewriter: Rewriter | None
    model: DrawnBy
    sampling: Sampling
    judges: Sequence[Filter]
    latents: Latents | None  # of rejected pictures that are not kept
    folder: Path = field(init=False)  # to work in

    def open(self, shard: Shard) -> Maker:
        """A maker that writes into the part of a shard and finds what any part has."""
        unkept = ["rejected"] if self.latents else []
        work = Work(self.folder, shard, list(self.recipe.prefixes), unkept, self.batch)
        known = [path for part in work.parts if (path := part / "contexts.jsonl").exists()]
        contexts = Contexts(self.rewriter, known, work.own / "contexts.jsonl")
        return Maker(
            self.recipe, self.safe, self.model, self.sampling, self.judges, contexts, work, self.latents
        )  # fmt: skip

    @property
    def batch(self) -> int:
        """Pictures that are drawn at once."""
        return self.sampling.images_per_batch

    @property
    def most(self) -> int:
        """As many prompts are tried at the most."""
        return MOST_TRIES_PER_PAIR * self.num_pairs

    @property
    def minors(self) -> int:
        """How many prompts are left out, as they could mean minors."""
        return len(self.prompts) - len(self.safe)

    def how(self) -> dict[str, Any]:
        """How pictures are made."""
        return {
            "recipe": self.recipe.model_dump(),
            "model": self.model.files.stable_name,
            "revision": self.model.files.revision(),
            "sampling": self.sampling.told(),
            "context": self.rewriter.name if self.rewriter else "none",
            "keep": "rejected-as-latents" if self.latents else "pictures",
        }

    def judged_by(self) -> list[str]:
        """The judges in words."""
        return [str(judge) for judge in self.judges]

    def provenance(self) -> dict[str, Any]:
        """What the set says of itself."""
        found = {
            **self.how(),
            "prompts": self.prompts_from,
            "prompts_sha256": sha256("\n".join(self.prompts).encode()),
            "judges": self.judged_by(),
            **self.model.told(),
        }
        return found | {"minors_list": minors.VERSION} if self.recipe.sensitive else found

    def settings(self) -> dict[str, Any]:
        """What the work folder is of: under other settings what lies there is of no use."""
        found = {**self.how(), "prompts": sha256("\n".join(self.safe).encode()), **self.model.told()}
        found.pop("clip_skip", None)  # the revision knows of it
        if self.latents:  # what is not kept cannot be judged again
            found |= {"latents": self.latents.key.encoders, "judges": self.judged_by()}
        return found


def _safe_prompts(recipe: Recipe, prompts: Sequence[str]) -> list[str]:
    """All prompts; for a sensitive recipe those that name no minor, with a word on how many are left out."""
    if not recipe.sensitive:
        return list(prompts)
    for side, prefix in recipe.prefixes.items():
        if word := minors.names_minor(prefix):
            raise MapoError(f"The {side} prefix {prefix!r} could mean a minor ({word!r}). Such pictures are not made.")
    safe = [prompt for prompt in prompts if not minors.names_minor(prompt)]
    if not safe:
        every = "The only prompt" if len(prompts) == 1 else f"All {len(prompts):,} prompts"
        raise MapoError(f"{every} could mean minors, so nothing can be made with {recipe.name}.")
    left_out = len(prompts) - len(safe)
    do = "names or could mean minors and is" if left_out == 1 else "name or could mean minors and are"
    LOG.info(f"{left_out:,} of {count(len(prompts), 'prompt')} {do} not used.")
    return safe


def _rewriter(recipe: Recipe, context: str | None, context_model: str | None) -> Rewriter | None:
    if recipe.context and context is None:
        raise MapoError(
            f"The recipe {recipe.name} makes pictures from context prompts, without style words. Say how to get them: "
            "--context rules, local:MODEL or endpoint:URL, or none if the prompts have no style words already."
        )
    return open_rewriter(context or "none", context_model)


def _share(plan: BuildPlan, shard: Shard) -> None:
    """Make every n-th of the full portions that will be needed, as far as one's own show.

    Portions that turn out too many are ignored, and those that lack are made when the set is put together.
    """
    index, of = shard
    maker = plan.open(shard)
    start, kept, tried = index * plan.batch, 0, 0
    bar = progress.bar(desc=f"build {plan.recipe.name} {index}/{of}", unit="pair", shown=index == 0)
    while start + plan.batch <= (end := min(plan.most, _needed(plan.num_pairs, kept, tried))):
        mine = range(start, end - plan.batch + 1, of * plan.batch)
        bar.total = kept + len(mine) * plan.batch * (kept + 1) // (tried + 1)
        maker.prepare([k + j for k in mine for j in range(plan.batch)], plan.batch)
        with memory_told(plan.batch, rest=""):
            portion = maker.portion(start, plan.batch)
        start, kept, tried = start + of * plan.batch, kept + len(portion.pairs), tried + plan.batch
        _advance(bar, portion)
    bar.close()


def _needed(pairs: int, kept: int, tried: int) -> int:
    """How many prompts give ``pairs`` pairs at the rate so far (at first: one each)."""
    return math.ceil(pairs * (tried + 1) / (kept + 1))


def _advance(bar: Any, portion: Portion, most: int | None = None) -> None:
    number = len(portion.pairs) if most is None else min(len(portion.pairs), most)
    if not portion.made:  # found, so it says nothing about the rate
        bar.initial += number
    bar.update(number)


def _collect(plan: BuildPlan, alone: bool) -> dict[str, int] | None:
    """Go through the portions in order, make those that no part has, and write the set."""
    if is_made(plan.out, plan.folder, alone):
        return None
    maker, totals = plan.open(WHOLE), Totals(plan.minors)
    kept: list[PassedPair] = []
    bar = progress.bar(total=plan.num_pairs, desc=f"build {plan.recipe.name}", unit="pair")
    start = 0
    while len(kept) < plan.num_pairs:
        if start >= plan.most:
            raise MapoError(_too_few(plan, totals, len(kept)))
        missing = min(_needed(plan.num_pairs - len(kept), len(kept), start), plan.most - start)
        size = min(plan.batch, missing)
        maker.prepare(range(start, start + missing), size)
        with memory_told(size, rest=""):
            portion = maker.portion(start, size)
        start += size
        new = totals.add(portion)
        _advance(bar, portion, min(len(new), plan.num_pairs - len(kept)))
        kept = [*kept, *new][: plan.num_pairs]
    bar.close()
    (plan.folder / FINISHING).touch()
    _write(plan, maker, kept, totals.counts())
    forget(plan.folder)
    return {"pairs": len(kept), **totals.counts()}


class Totals:
    """What became of all prompts; knows the pairs that it has seen."""

    def __init__(self, minors: int) -> None:
        self.left_out = minors
        self.sums = {"tried": 0, "judged_out": 0, "unjudged": 0, "equal_pictures": 0, "repeats": 0}
        self.minors: set[str] = set()
        self.no_context: set[str] = set()
        self.seen: set[Any] = set()

    def add(self, portion: Portion) -> list[PassedPair]:
        """Count a portion; its pairs that are not repeats (of two prompts with the same context, the first)."""
        for name in ("tried", "judged_out", "unjudged", "equal_pictures"):
            self.sums[name] += getattr(portion, name)
        self.minors |= portion.minors
        self.no_context |= portion.no_context
        new = []
        for pair in portion.pairs:
            (_, chosen), (_, rejected) = pair.chosen, pair.rejected
            names = {
                pair_id(pair.prompt, chosen.sha256, rejected.sha256),
                (chosen.prompt_id, chosen.seed, rejected.seed),
            }
            if names & self.seen:
                self.sums["repeats"] += 1
            else:
                new.append(pair)
            self.seen |= names
        return new

    def counts(self) -> dict[str, int]:
        """For the provenance and the last line."""
        return {**self.sums, "minors": self.left_out + len(self.minors), "no_context": len(self.no_context)}


def describe(counts: Mapping[str, int]) -> str:
    """What :func:`build` counted besides the pairs, in words: ``9 tried, 4 judged out, 1 repeat``."""
    said = {
        "tried": f"{counts['tried']:,} tried",
        "judged_out": f"{counts['judged_out']:,} judged out",
        "unjudged": f"{counts['unjudged']:,} unjudged",
        "equal_pictures": f"{counts['equal_pictures']:,} with equal pictures",
        "repeats": count(counts["repeats"], "repeat"),
        "minors": f"{count(counts['minors'], 'prompt')} that could mean minors",
        "no_context": f"{count(counts['no_context'], 'prompt')} without a context",
    }
    return ", ".join(words for name, words in said.items() if counts[name])


def _too_few(plan: BuildPlan, totals: Totals, kept: int) -> str:
    counts = totals.counts()
    were = "was" if kept == 1 else "were"
    return (
        f"Of {count(counts['tried'], 'tried pair')} only {kept} {were} kept ({counts['judged_out']} judged out, "
        f"{counts['unjudged']} without a judge's number, {counts['equal_pictures']} with equal pictures, "
        f"{count(counts['repeats'], 'repeat')}). The pictures are in {plan.folder}, where the same command with fewer "
        "pairs or another --judge uses them. Or use more prompts."
    )


def _write(plan: BuildPlan, maker: Maker, kept: Sequence[PassedPair], counts: dict[str, int]) -> None:
    """The set, in the order of the prompts."""
    provenance = {**plan.provenance(), "counts": counts}
    with PairWriter(plan.out, provenance, sensitive=plan.recipe.sensitive) as writer:
        for pair in kept:
            rest = {"source": plan.recipe.name, "meta": pair.meta}
            (_, chosen), (_, rejected) = pair.chosen, pair.rejected
            if maker.latents:
                writer.add_image(read_picture(*pair.chosen))
                writer.add_latent_only(rejected.sha256, rejected.width, rejected.height)
                writer.add_pair_by_hash(pair.prompt, chosen.sha256, rejected.sha256, **rest)
            else:
                writer.add_pair(pair.prompt, read_picture(*pair.chosen), read_picture(*pair.rejected), **rest)
        if maker.latents:
            folder = writer.content / LATENTS
            folder.mkdir()
            write_head(folder, maker.latents.files.name, maker.latents.key)
            names = dict.fromkeys(pair.rejected[1].sha256 for pair in kept)
            for tensors in read_latents([p for part in maker.work.parts if (p := part / LATENTS).exists()], names):
                write_shard(folder, "latents", tensors)
