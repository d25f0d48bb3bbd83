"""The stages: captions, the prior's drawings, the rounds one after the other, and what shows and leaves the result.

A pair of a photo has the photo as chosen. A pair of the prior has no token, and two drawings: chosen is the one by the
model as it was before any training, which is what an ordinary picture is; rejected is by the model of the round before.
All pairs count alike. An objective that learns from chosen pictures alone gets as many pairs without rejected ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from mapo.build.against import Own, build_against, build_alone
from mapo.captions.ledger import Caption, write_ledger
from mapo.errors import count
from mapo.files import sha256
from mapo.personalize.asked import Personalize
from mapo.personalize.captions import TEMPLATE
from mapo.sample.folder import read_images
from mapo.style import copies
from mapo.style.asked import are_wide
from mapo.style.screen import screener, screening, unsafe_in
from mapo.style.shown import SCORES, SEEDS, compare, compared_from, frames_in, leave, others, untrained, write_copies
from mapo.style.stages import Stage, digest_of
from mapo.style.training import go_on
from mapo.train.run.folder import Run

EMBEDDING = "embedding.safetensors"


def stages(asked: Personalize, hands: Any, captions: Callable[[], list[Caption]] | None = None) -> list[Stage]:
    """All stages; ``captions`` is what will be in the file of captions, where that is not written yet."""
    now = captions or asked.captions_now

    def write_captions() -> str:
        found = asked.found()
        write_ledger(asked.captions_file, [*found.captions, *found.gone])
        of_templates = sum(one.source == TEMPLATE for one in found.captions)
        return f"{count(len(found.captions), 'caption')}, {of_templates} of templates"

    prior = Stage(
        "prior", f"{asked.model} draws what is to stay", ("prior",),
        lambda: [*asked.drawn_by(), str(asked.resolution), *map(str, asked.prior_jobs(now()))],
        lambda: _draw_prior(asked),
    )  # fmt: skip
    rounds = [stage for number in range(1, asked.rounds + 1) for stage in _round(asked, number, hands, now)]
    first = [Stage("captions", "what each photo shows", ("captions.jsonl",), lambda: [], write_captions, again=True)]
    if scorer := screener():
        first.append(screening(asked.pictures, scorer, asked.out, now, lambda: _seen(asked, now())))
    return [*first, *([prior] if asked.prior else []), *rounds, *_result(asked, now)]


def _seen(asked: Personalize, captions: Sequence[Caption]) -> list[str]:
    """The photos and captions that are kept, as they are now."""
    photos = asked.photos(captions, 1)
    return [f"{one.name} {one.caption} {sha256(one.path.read_bytes())}" for one in photos]


def _draw_prior(asked: Personalize) -> None:
    from mapo.devices import use_own_device
    from mapo.sample.sample import Sampler, default_sampling

    jobs = asked.prior_jobs(asked.captions_now())
    sampling = default_sampling(asked.files, **asked.sampling, width=asked.side, height=asked.side)
    use_own_device()
    Sampler(asked.files, sampling.precision).fill(asked.out / "prior", jobs, sampling, "draw the prior")


def _prior(asked: Personalize) -> list[Own]:
    """The prior's drawings, which are chosen."""
    folder = asked.out / "prior"
    jobs = set(asked.prior_jobs(asked.captions_now()))  # a command that was killed may have left others
    rows = [row for row in read_images(folder) if (row.prompt, row.seed) in jobs] if asked.prior else []
    return [Own(f"prior/{row.file}", row.prompt, folder / row.file, drawings=1) for row in rows]


# ------------------------------------------------------------------ a round


def _round(asked: Personalize, number: int, hands: Any, now: Callable[[], list[Caption]]) -> list[Stage]:
    from mapo.check import verb as check_verb
    from mapo.train import verb as train_verb

    place, (model, loras) = asked.round(number), asked.before(number)
    pairs, run, name = place / "pairs", place / "run", place.name

    def make_pairs() -> str:
        shutil.rmtree(pairs, ignore_errors=True)  # of a command that was killed when all but this was done
        own = [*asked.photos(asked.captions_now(), number), *_prior(asked)]
        how: dict[str, Any] = {"resolution": asked.resolution, "hold_out": False}
        if asked.draws:
            counts = build_against(
                own, model, pairs, place / "rejected", per_picture=asked.per_picture, loras=loras, **how,
                **(asked.told if number == 1 else {}), **asked.sampling,
            )  # fmt: skip
        else:
            counts = build_alone(own, asked.model, pairs, times=asked.per_picture, **how, **asked.told)
        return f"{count(counts['pairs'], 'pair')} of {count(counts['pictures'], 'picture')}"

    def look() -> str:
        wide = are_wide(frames_in(pairs))
        how = {"model": asked.model, "buckets": wide, "veiled": unsafe_in(asked.out), **asked.told}
        return str(check_verb.check(pairs, place / "check.html", **how)["verdict"])

    def train() -> str:
        frames = frames_in(pairs)
        settings, how = asked.round_settings(frames, number), {"hands": hands, **asked.of_run(number)}
        config = asked.config(frames, number)
        return go_on(Run(run), config, lambda: train_verb.train(run, settings, asked.recipe, **how))

    def by() -> list[str]:
        """What the drawings of this round come from."""
        return [*asked.drawn_by(), digest_of(asked.round(number - 1) / "run" / "weights") if number > 1 else ""]

    def drawn() -> list[str]:
        prior = digest_of(asked.out / "prior" / "manifest.jsonl") if asked.prior else ""
        made_by = by() if asked.draws else ["alone"]
        return [*made_by, str(asked.per_picture), str(asked.resolution), *_seen(asked, now()), prior]

    last = (f"{asked.round(number - 1).name} run",) if number > 1 else ()
    cache = (f"{name}/cache",)  # what the encoders of the round before made, which are trained
    for_drawings = Stage(
        f"{name} rejected", "a folder for the drawings", (f"{name}/rejected",), by,
        lambda: (place / "rejected").mkdir(parents=True, exist_ok=True), clears=cache, follows=last,
    )  # fmt: skip
    says = f"{model} draws the captions" if asked.draws else "each photo alone"
    return [
        *([for_drawings] if asked.draws else []),
        Stage(f"{name} pairs", says, (f"{name}/pairs",), drawn, make_pairs, aside_if_changed=True,
              follows=("prior", *(last if asked.draws else ()))),
        Stage(f"{name} check", "what is wrong in the pairs", (f"{name}/check.html",), lambda: [digest_of(pairs)], look,
              follows=(f"{name} pairs",)),
        Stage(f"{name} run", "the training", (f"{name}/run",), lambda: [digest_of(pairs), *by()], train,
              again=True, aside=True, clears=cache if last else (), follows=(f"{name} pairs", *last)),
    ]  # fmt: skip


# ------------------------------------------------------------------ the result


def _result(asked: Personalize, now: Callable[[], list[Caption]]) -> list[Stage]:
    from mapo.sample import verb as sample_verb

    out, run = asked.out, asked.round(asked.rounds) / "run"

    def shown() -> list[str]:
        sets = [asked.round(number) / "pairs" for number in range(1, asked.rounds + 1)]
        return untrained(asked.shown(), *(pairs for pairs in sets if pairs.is_dir()))

    def foreseen() -> list[str]:
        told = now()
        return others(
            asked.shown(), [*(one.caption for one in told), *(prompt for prompt, _ in asked.prior_jobs(told))]
        )

    def sample(model: str, folder: str, **how: Any) -> None:
        sample_verb.sample(model, shown(), list(SEEDS), out / folder, more=asked.beside(), **asked.sampling, **how)

    def look_for_copies() -> str:
        photos, look = [one.name for one in asked.photos(asked.captions_now(), 1)], copies.look_by(asked.copies_with)
        return "\n".join(asked.found_of(write_copies(out, asked.pictures, photos, asked.words.knows, look)))

    def weights() -> list[str]:
        return [digest_of(run / "weights")]

    def left(name: str, form: str) -> Stage:
        file = f"{name}.safetensors"
        return Stage(name, "a file for other programs", (file,), weights,
                     lambda: leave(run, form, out / file, out / EMBEDDING), follows=last)  # fmt: skip

    by, last = asked.drawn_by(), (f"{asked.round(asked.rounds).name} run",)
    every = tuple(f"{asked.round(number).name} pairs" for number in range(1, asked.rounds + 1))
    return [
        Stage("before", "pictures of the model as it was", ("before",), lambda: [*by, *shown()],
              lambda: sample(asked.model, "before", loras=asked.loras, **asked.told),
              follows=every, foreseen=lambda: [*by, *foreseen()]),
        Stage("after", "pictures of the trained model", ("after",), lambda: [*by, *shown(), *weights()],
              lambda: sample(str(run), "after", grid=True, compare=[out / "before"]),
              follows=(*every, *last, "before")),
        Stage("copies", "whether the model draws copies", ("copies.json",),
              lambda: [digest_of(out / "after" / "manifest.jsonl"), asked.looked_by(), *_seen(asked, now())],
              look_for_copies,
              follows=("after",)),
        left("lora", "kohya"),
        left("embedding", "embedding"),
        Stage("report", "both beside each other", ("report.html",),
              lambda: compared_from(asked), lambda: compare(asked, run), clears=SCORES,
              follows=("before", "after", "copies")),
    ]  # fmt: skip
