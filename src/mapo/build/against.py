"""Pairs of pictures that people have: theirs is chosen, and what a model draws from the same caption is rejected.

Both pictures of a pair have the frame in which a training would see the chosen one, and lie in the set as PNG files of
that size. So neither size nor shape nor the kind of file tells them apart. :func:`build_alone` leaves the drawings out.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mapo import progress
from mapo.build.framed import in_frame
from mapo.build.judge import Filter
from mapo.devices import use_own_device
from mapo.encode.buckets import nearest
from mapo.encode.frame import Frame
from mapo.encode.seen import frames_of
from mapo.errors import MapoError, count
from mapo.files import sha256
from mapo.models import ModelFiles, find_model, open_model
from mapo.pairs.pairs import PairWriter
from mapo.pairs.pictures import check_picture, decode_picture
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, read_picture
from mapo.sample.sample import Sampler, Sampling, default_sampling
from mapo.shards import refuse_existing

LOG = logging.getLogger(__name__)

HELD_OUT = 0.1  # of the captions
NAMED = 5


@dataclass(frozen=True)
class Own:
    """A picture that somebody has: its name, its caption, and where it lies.

    ``drawn_as`` is what the model is told in place of the caption, where it does not know a word of it yet.
    ``drawings`` is how many there are of it, where not as many as of the others; it then counts less than they do.
    """

    name: str
    caption: str
    path: Path
    drawn_as: str = ""
    drawings: int | None = None

    @property
    def told(self) -> str:
        """The prompt of its drawings."""
        return self.drawn_as or self.caption


@dataclass(frozen=True)
class DrawingTask:
    """What is to be drawn for a picture: the frame of both, and the seeds of the rejected ones."""

    own: Own
    frame: Frame
    seeds: tuple[int, ...]


def build_against(
    pictures: Sequence[Own], model: str, out: Path, drawn: Path, *, per_picture: int = 1, judge: Filter | None = None,
    resolution: int | None = None, hold_out: bool = True, clip_skip: int | None = None,
    vae: str | None = None, prediction: str | None = None, long_prompts: str | None = None, loras: Sequence[str] = (),
    **how: Any,
) -> dict[str, int]:  # fmt: skip
    """Make the set ``out``: a pair of each picture and of each of ``per_picture`` drawings of its caption.

    With a ``judge`` only the drawing that it likes best becomes a pair. The drawings lie in ``drawn``, an images folder
    for each frame, where the same call goes on. :func:`held_out` says which captions are not trained on; without
    ``hold_out`` all are. ``how`` changes the sampling.

    Returns how many ``pairs``, ``pictures`` and ``frames`` there are, and how many captions are ``held_out``.
    MapoError where a picture is damaged or too small, or nothing can be drawn.
    """
    refuse_existing(out)
    check_asked(per_picture, judge)
    if not pictures:
        raise MapoError("There are no pictures to make pairs of.")
    for name in ("width", "height"):
        if how.get(name) is not None:
            raise MapoError(f"--{name}: a drawing has the size of the picture beside it. Use --resolution.")
    told: dict[str, Any] = {
        "clip_skip": clip_skip, "vae": vae, "prediction": prediction, "long_prompts": long_prompts, "loras": loras,
    }  # fmt: skip
    files = find_model(model, **told)
    sampling = default_sampling(files, **how)
    tasks = _tasks(pictures, files, resolution, per_picture)
    split = held_out(pictures) if hold_out else {}
    use_own_device()
    rows = _draw(Sampler(files, sampling.precision), tasks, sampling, drawn)
    best, unjudged = _judged(tasks, rows, judge, drawn) if judge else ({}, 0)
    provenance = _provenance(files, sampling, pictures, per_picture, judge)
    with PairWriter(out, provenance, sensitive=files.sensitive) as writer:
        for place, task in enumerate(tasks):
            chosen = in_frame(task.own.path, task.frame)
            kept, weight = ([best[place]], 1.0) if place in best else (list(task.seeds), 1 / per_picture)
            for seed in kept:
                row = rows[task.frame][task.own.told, seed]
                writer.add_pair(
                    task.own.caption, chosen, read_picture(_folder(drawn, task.frame), row), weight=weight,
                    split=split.get(prompt_id(task.own.caption), "train"), source=files.stable_name,
                    meta=_meta(task.own, row),
                )  # fmt: skip
        pairs = writer.count
    return {"pairs": pairs, **_counts(tasks, split), "unjudged": unjudged}


def build_alone(
    pictures: Sequence[Own], model: str, out: Path, *, times: int = 1, resolution: int | None = None,
    hold_out: bool = True, **told: Any,
) -> dict[str, int]:  # fmt: skip
    """As :func:`build_against` without anything drawn: the same chosen pictures, in the frames of ``model``, and no
    rejected ones. Each picture stands there ``times``, as beside so many drawings.

    No weights are read. The model is ``told`` of what :func:`mapo.models.find_model` may be told.
    """
    refuse_existing(out)
    if not pictures:
        raise MapoError("There are no pictures to make a set of.")
    files = find_model(model, weights=False, **told)
    tasks = _tasks(pictures, files, resolution, times)
    split = held_out(pictures) if hold_out else {}
    provenance = {
        "made": "pictures that somebody has, without rejected ones",
        "frames_of": files.stable_name,
        "captions_sha256": _captions_sha256(pictures),
    }
    with PairWriter(out, provenance) as writer:
        for task in tasks:
            of, chosen = split.get(prompt_id(task.own.caption), "train"), in_frame(task.own.path, task.frame)
            for repeat in range(len(task.seeds)):
                writer.add_pair(
                    task.own.caption, chosen, None, repeat=repeat, weight=1 / times, split=of,
                    meta={"file": task.own.name},
                )  # fmt: skip
        pairs = writer.count
    return {"pairs": pairs, **_counts(tasks, split)}


def _counts(tasks: Sequence[DrawingTask], split: Mapping[str, str]) -> dict[str, int]:
    return {
        "pictures": len(tasks),
        "frames": len({task.frame for task in tasks}),
        "held_out": sum(name != "train" for name in split.values()),
    }


def told(counts: Mapping[str, int], *, drawn: bool = True, hint: bool = True) -> str:
    """What :func:`build_against` counted, in words; or :func:`build_alone`, where nothing was ``drawn``.

    With a ``hint`` of how to train several frames.
    """
    said = [f"{count(counts['pairs'], 'pair')} of {count(counts['pictures'], 'picture')}"]
    if not drawn:
        said = [f"{count(counts['pairs'], 'picture')} without rejected ones, for --objective sft"]
    if counts["frames"] > 1:
        how = " (train them with --set data.buckets=true)" if hint else ""
        said.append(f"in {counts['frames']} frames{how}")
    said.append(f"{count(counts['held_out'], 'caption')} held out")
    if counts.get("unjudged"):
        said.append(f"{count(counts['unjudged'], 'picture')} with all drawings, as the judge gave no number")
    return ", ".join(said)


def held_out(pictures: Sequence[Own]) -> dict[str, str]:
    """A split for each caption by its id: a tenth of the different ones is ``test``, one at least where there are two.

    Which ones follows from the names of the pictures alone, so that another word in a caption moves none.
    """
    names: dict[str, str] = {}
    for one in pictures:
        name = prompt_id(one.caption)
        names[name] = min(one.name, names.get(name, one.name))
    number = max(1, round(HELD_OUT * len(names))) if len(names) > 1 else 0
    last = set(sorted(names, key=lambda name: sha256(f"held out:{names[name]}".encode()))[:number])
    return {name: "test" if name in last else "train" for name in names}


def check_asked(per_picture: int, judge: Filter | None) -> None:
    """MapoError where so many drawings and such a judge make no sense together."""
    if per_picture < 1:
        raise MapoError(f"--rejected-per-picture is {per_picture}; it must be at least 1.")
    if judge and judge.threshold is not None:
        raise MapoError(
            "--judge chooses among the drawings of a caption here, so it has no threshold. Write SCORER:METRIC."
        )
    if judge and per_picture == 1:
        raise MapoError("--judge chooses among several drawings. Ask for them with --rejected-per-picture.")


def frames_for(pictures: Sequence[Own], files: ModelFiles, resolution: int | None) -> list[Frame]:
    """The frame of each picture; MapoError names those that are too small for theirs, or damaged."""
    among = frames_of(open_model(files, to_train=False), resolution, buckets=True)
    sizes = [size_of(one.path) for one in pictures]
    places = nearest(np.log(np.array([width / height for width, height in sizes])), among)
    found = [among[place] for place in places]
    small = [
        f"{one.name} ({width} × {height})"
        for one, (width, height), frame in zip(pictures, sizes, found, strict=True)
        if 2 * width < frame.width or 2 * height < frame.height
    ]
    if small:
        more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
        have = "has less" if len(small) == 1 else "have less"
        raise MapoError(
            f"{count(len(small), 'picture')} {have} than half the size at which the model is trained, "
            f"{among[0].width} pixels: {', '.join(small[:NAMED])}{more}. Leave them out, or take a "
            "smaller resolution."
        )
    return found


def _tasks(pictures: Sequence[Own], files: ModelFiles, resolution: int | None, per_picture: int) -> list[DrawingTask]:
    """What is to be drawn; the second picture of a prompt has other seeds than the first."""
    seen: Counter[str] = Counter()
    tasks = []
    for one, frame in zip(pictures, frames_for(pictures, files, resolution), strict=True):
        first, number = seen[prompt_id(one.told)], one.drawings or per_picture
        seen[prompt_id(one.told)] += number
        tasks.append(DrawingTask(one, frame, tuple(range(first, first + number))))
    return tasks


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture; MapoError where it is damaged."""
    try:
        picture = check_picture(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MapoError(f"The picture {path} cannot be used: {error}. Mend it, or leave it out.") from None
    return picture.width, picture.height


def _folder(drawn: Path, frame: Frame) -> Path:
    """Where the drawings of a frame lie."""
    return drawn / f"{frame.width}x{frame.height}"


Rows = dict[Frame, dict[tuple[str, int], ImageRow]]  # of the drawings, by caption and seed


def _draw(sampler: Sampler, tasks: Sequence[DrawingTask], sampling: Sampling, drawn: Path) -> Rows:
    """The rejected pictures; those that are there already are not drawn again."""
    rows: Rows = {}
    for frame in sorted({task.frame for task in tasks}):
        jobs = [(task.own.told, seed) for task in tasks if task.frame == frame for seed in task.seeds]
        how = replace(sampling, width=frame.width, height=frame.height)
        found = sampler.fill(_folder(drawn, frame), jobs, how, f"draw {frame}")
        rows[frame] = dict(zip(jobs, found, strict=True))
    return rows


def _judged(tasks: Sequence[DrawingTask], rows: Rows, judge: Filter, drawn: Path) -> tuple[dict[int, int], int]:
    """The seed of the drawing that the judge likes best, for each task of which it gave all numbers; how many lack."""
    best: dict[int, int] = {}
    with progress.bar(total=len(tasks), desc=f"judge {judge.scorer.name}", unit="picture") as bar:
        for place, task in enumerate(tasks):
            found = [rows[task.frame][task.own.told, seed] for seed in task.seeds]
            images = [decode_picture(read_picture(_folder(drawn, task.frame), row)) for row in found]
            values = judge.scorer(images, [task.own.caption] * len(images))[judge.metric]
            known = [judge.sign * value for value in values if value is not None and math.isfinite(value)]
            if len(known) == len(task.seeds):
                best[place] = task.seeds[known.index(max(known))]
            bar.update()
    for note in judge.scorer.notes():
        LOG.info(note)
    return best, len(tasks) - len(best)


def _meta(own: Own, row: ImageRow) -> dict[str, Any]:
    """What a pair remembers of where its pictures came from."""
    drawn = {"rejected_prompt": row.prompt} if own.drawn_as else {}
    return {"file": own.name, "rejected_seed": row.seed, "rejected_model": row.model, **drawn}


def _provenance(
    files: ModelFiles, sampling: Sampling, pictures: Sequence[Own], per_picture: int, judge: Filter | None
) -> dict[str, Any]:  # fmt: skip
    return {
        "made": "pictures that somebody has, against what a model draws from their captions",
        "model": files.stable_name,
        "revision": files.revision(),
        "sampling": {k: v for k, v in sampling.told().items() if k not in ("width", "height")},
        "rejected_per_picture": per_picture,
        "judges": [str(judge)] if judge else [],
        "captions_sha256": _captions_sha256(pictures),
    }


def _captions_sha256(pictures: Sequence[Own]) -> str:
    return sha256(json.dumps([[one.name, one.caption] for one in pictures], ensure_ascii=False).encode())
