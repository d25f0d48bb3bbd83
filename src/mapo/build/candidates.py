"""Makes the pictures of a portion of prompts and lets the judges choose, keeping every stage in the work folder.

A portion is a batch of the pipeline: the same prompts together whoever makes it, so its pictures are the same to the
bit. What the work folder has already is not made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mapo import progress
from mapo.build.context import Contexts
from mapo.build.judge import Filter, choose, unjudged
from mapo.build.minors import names_minor
from mapo.build.recipe import Recipe
from mapo.build.work import Work
from mapo.devices import best_device
from mapo.encode.cache import CacheKey, latents_key, write_shard
from mapo.encode.encoding import encode_pictures
from mapo.errors import MapoError
from mapo.models import ModelFiles, Opened, open_model
from mapo.models.family import ImageEncoder
from mapo.models.pipelines import cuts_told
from mapo.pairs.pairs import decode_picture
from mapo.sample.filling import open_folder
from mapo.sample.folder import ImageRow, png_bytes, read_picture
from mapo.sample.sample import Sampler, Sampling, full_prompt

LOG = logging.getLogger(__name__)

OF_THE_PAIR = ("prompt", "file", "prompt_id", "sha256")  # stands in the pair's row itself


@dataclass(frozen=True)
class PassedPair:
    """A pair that the judges let pass: the rows of its pictures and the folders that have them."""

    prompt: str
    chosen: tuple[Path, ImageRow]
    rejected: tuple[Path, ImageRow]
    meta: dict[str, Any]


@dataclass
class Portion:
    """What became of a batch of prompts."""

    pairs: list[PassedPair] = field(default_factory=list)
    tried: int = 0
    judged_out: int = 0
    unjudged: int = 0  # a judge gave no number
    equal_pictures: int = 0
    minors: set[str] = field(default_factory=set)  # prompts whose context could mean a minor
    no_context: set[str] = field(default_factory=set)  # prompts of which nothing was left
    made: bool = False  # or found


@dataclass(frozen=True)
class DrawnBy:
    """The model that draws, and what was asked of it besides its name, as :func:`mapo.models.find_model` takes it."""

    files: ModelFiles
    asked: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """What set and pairs say of it: what was asked, a VAE by a name that stays, LoRAs with file, weight and hash.

        A row has all of it, so that its pictures can be made again from it alone.
        """
        found = {key: value for key, value in self.asked.items() if value is not None and key != "loras"}
        if self.files.vae and "vae" in found:
            found["vae"] = self.files.vae.name
        loras = self.files.named_loras_told()
        return {**found, "loras": loras} if loras else found


@dataclass
class Latents:
    """Encodes pictures that are not kept, with the VAE of the model that will be trained on them."""

    files: ModelFiles
    resolution: int | None = None

    @cached_property
    def model(self) -> Opened:
        """The model; only those of a family can be trained, so only their latents are of use."""
        return open_model(self.files)

    @cached_property
    def key(self) -> CacheKey:
        """Of the model's VAE at its own resolution."""
        return latents_key(self.files, self.model.layout.checked(self.resolution))

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Loaded when the first picture is encoded."""
        return self.model.image_encoder(best_device())

    def keep(self, folder: Path, rows: Sequence[ImageRow], data: Sequence[bytes]) -> None:
        """Encode pictures and add them to the cache ``folder``."""
        pictures = {row.sha256: decode_picture(png) for row, png in zip(rows, data, strict=True)}
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(folder, "latents", encode_pictures(self.encoder, self.key, pictures, self.files.name))


@dataclass
class Maker:
    """Everything that it takes to make a portion of candidates."""

    recipe: Recipe
    prompts: Sequence[str]
    model: DrawnBy
    sampling: Sampling
    judges: Sequence[Filter]
    contexts: Contexts
    work: Work
    latents: Latents | None = None

    @cached_property
    def sampler(self) -> Sampler:
        """The pipeline, loaded when the first picture is made."""
        return Sampler(self.model.files.name, self.sampling.precision, **self.model.asked)

    @cached_property
    def model_told(self) -> dict[str, Any]:
        """Told once, as a LoRA's file is hashed for it."""
        return self.model.told()

    def __post_init__(self) -> None:
        self._prepared: dict[str, bool] = {}  # prompts, and whether their length is known to fit or was told
        if self.latents and self.recipe.ranks:
            raise MapoError(
                f"--keep rejected-as-latents: with the recipe {self.recipe.name} it is known only afterwards which "
                "picture is rejected. Use a recipe with a rejected side."
            )

    def prepare(self, numbers: Sequence[int], size: int) -> None:
        """Rewrite the prompts of these jobs at once, if those of the first ``size`` have not been: an instruction model
        is loaded once for many, before pictures are made."""
        first = (self.prompts[k % len(self.prompts)] for k in numbers[:size])
        if not all(prompt in self._prepared for prompt in first):
            given = [self.prompts[k % len(self.prompts)] for k in numbers]
            with progress.bar(desc="context prompts", unit="prompt", shown=bool(self.contexts.rewriter)) as bar:
                for _ in self.contexts.ensure(given):
                    bar.update()
            for prompt in given:
                self._prepared.setdefault(prompt, False)

    def portion(self, start: int, size: int) -> Portion:
        """Make, judge and choose among the candidates of jobs ``start`` … ``start + size - 1``.

        Job k is prompt k modulo their number, with the next seed each time round.
        """
        result = Portion()
        jobs = self._jobs(start, size, result)
        if not jobs:
            return result
        result.tried = len(jobs)
        found, data = self._pictures(start, jobs, result)
        values = [self._values(j, start, found, data) for j in self.judges]
        if self.latents and "rejected" in data:  # only now, as from here on the pictures are gone
            rows = [row for _, row in found["rejected"]]
            self.latents.keep(self.work.own / "latents", rows, data["rejected"])
            self.work.add("rejected", rows, None)
        for number, (_, given, prompt) in enumerate(jobs):
            at = [{side: column[side][number] for side in found} for column in values]
            sides = choose(self.recipe, self.judges, at)
            if len({found[side][number][1].sha256 for side in sides or found}) == 1:
                result.equal_pictures += 1
            elif sides is None and unjudged(self.recipe, self.judges, at):
                result.unjudged += 1
            elif sides is None:
                result.judged_out += 1
            else:
                chosen, rejected = (found[side][number] for side in sides)
                meta = self._meta(given, sides, (chosen[1], rejected[1]), at)
                result.pairs.append(PassedPair(prompt, chosen, rejected, meta))
        return result

    def _jobs(self, start: int, size: int, result: Portion) -> list[tuple[int, str, str]]:
        """Round, prompt as given and context of each job; for a sensitive recipe none that could mean minors."""
        jobs = []
        for number in range(start, start + size):
            given = self.prompts[number % len(self.prompts)]
            context = self.contexts[given]
            if not context:
                result.no_context.add(given)
            elif self.recipe.sensitive and any(
                names_minor(text) for text in (given, *(full_prompt(context, p) for p in self.recipe.prefixes.values()))
            ):
                result.minors.add(given)
            else:
                jobs.append((number // len(self.prompts), given, context))
        return jobs

    def _pictures(
        self, start: int, jobs: Sequence[tuple[int, str, str]], result: Portion
    ) -> tuple[dict[str, list[tuple[Path, ImageRow]]], dict[str, list[bytes]]]:
        """The rows of each side, and the PNG bytes of those sides that were made just now."""
        found: dict[str, list[tuple[Path, ImageRow]]] = {}
        data: dict[str, list[bytes]] = {}
        made: dict[str, Future[list[bytes]]] = {}
        count = len(self.recipe.prefixes)
        with ThreadPoolExecutor(1) as writer:  # a side is encoded and written while the next one is made
            for place, (side, prefix) in enumerate(self.recipe.prefixes.items()):
                seeds = [r if self.recipe.seeds == "same" else r * count + place for r, _, _ in jobs]
                wanted = [(prompt, seed) for (_, _, prompt), seed in zip(jobs, seeds, strict=True)]
                found[side] = self.work.rows(side, start, wanted) or []
                if not found[side]:
                    result.made = True
                    how = replace(self.sampling, prefix=prefix)
                    self._warn()
                    pictures = self.sampler.batch(wanted, how)
                    made[side] = writer.submit(self._keep, side, start, wanted, how, pictures, found[side])
            for side, future in made.items():
                data[side] = future.result()
        return found, data

    def _keep(
        self, side: str, start: int, jobs: Sequence[tuple[str, int]], how: Sampling, pictures: Sequence[Any],
        found: list[tuple[Path, ImageRow]],
    ) -> list[bytes]:  # fmt: skip
        """Write the pictures of a side, where they may be kept, and add their rows to ``found``; their PNG bytes."""
        data = [png_bytes(picture) for picture in pictures]
        kept = not (self.latents and side == "rejected")
        rows = [
            self.sampler.row(
                job, how, png, f"{start}/{k}/{len(jobs)}",
                file=f"{start:07d}-{k:02d}-of-{len(jobs)}.png" if kept else "",
            )
            for k, (job, png) in enumerate(zip(jobs, data, strict=True))
        ]  # fmt: skip
        if kept:
            open_folder(self.work.own / side, self.sampler.settings(how), revisions=self.sampler.revisions)
            self.work.add(side, rows, data)
        found += [(self.work.own / side, row) for row in rows]
        return data

    def _values(
        self, judge: Filter, start: int, found: dict[str, list[tuple[Path, ImageRow]]], data: dict[str, list[bytes]]
    ) -> dict[str, list[float | None]]:
        """The judge's number for every picture that it looks at, from the work folder's table or judged now."""
        sides = judge.sides(self.recipe)
        rows = [row for side in sides for _, row in found[side]]
        table = f"{start:07d}-{len(rows) // len(sides)}"
        asked = next(iter(self.recipe.prefixes.values())) if judge.judges_request else ""
        prompts = [full_prompt(row.prompt, asked) if asked else row.prompt for row in rows]

        def pngs() -> list[bytes]:
            return [
                data[side][k] if side in data else read_picture(folder, row)
                for side in sides
                for k, (folder, row) in enumerate(found[side])
            ]

        known = self.work.judged(table, judge.scorer, rows, prompts, pngs)
        return {
            side: [known.get((row.sha256, row.prompt_id, judge.metric)) for _, row in places]
            for side, places in found.items()
        }

    def _meta(
        self, given: str, sides: tuple[str, str], rows: tuple[ImageRow, ImageRow], at: Sequence[dict[str, float | None]]
    ) -> dict[str, Any]:
        """What a pair's row keeps: how each picture was made, what it was made from, and what the judges said."""
        meta: dict[str, Any] = {
            name: {k: v for k, v in asdict(row).items() if k not in OF_THE_PAIR}
            for name, row in zip(("chosen", "rejected"), rows, strict=True)
        }
        meta["judges"] = [j.verdict(*(v[s] for s in sides)) for j, v in zip(self.judges, at, strict=True)]
        if self.contexts.rewriter is not None:
            meta |= {"given_prompt": given, "context_by": self.contexts.rewriter.name}
        meta |= self.model_told
        if self.recipe.ranks:
            meta["candidates"] = self.recipe.candidates
        return meta

    def _warn(self) -> None:
        """Say which of the prepared prompts the text encoders will cut, once."""
        if self.model.files.long_prompts != "cut":
            return
        prompts = [self.contexts[prompt] for prompt, measured in self._prepared.items() if not measured]
        self._prepared = dict.fromkeys(self._prepared, True)
        longest = max(self.recipe.prefixes.values(), key=len)
        given = {p: full_prompt(p, longest) for p in prompts}
        for text in cuts_told(self.sampler.pipeline, given, self.sampling.negative_prompt):
            LOG.info(text)
