"""`mapo personalize` on the mini world: a subject that its model has never drawn, from five pictures of it.

    python bench/personalize.py [--work work/personalize] [--out bench/results] [--arms sft dpo …] [--seeds 0 1 2 3 4]

The subject is a crescent moon. Each seed has five other pictures of it, in five of seven colours on five of six
backgrounds, with captions that say circle, which is the class word. A training is one line of ``rows.jsonl``; the same
command goes on where it stopped, and several may run side by side with other arms. What is looked at:

========  ==========================================================================================
moons     the moon, whatever its colour, on all pictures of its word
shown     the same, of the captions of the five photos
colours   the moon in the colour and on the background that were asked for, where no photo shows both
new       the same, where no photo shows the colour or none the background
circles   ordinary prompts with the class word that are still followed
ordinary  other ordinary prompts that are still followed
========  ==========================================================================================

by a judge that draws the moon and compares, and by a network that learned to see it (``lab/study/subjects.py``), as the
learned judge of the world does not know it. Ordinary prompts are those of the world's split ``test``; with ``--tune``
those of ``validation``, and other photos.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import t as student

from measured import write_measured

SEEDS, PHOTOS, PICTURES = (0, 1, 2, 3, 4), 5, 2
COLUMNS, GAP = 9, 3  # of the figure
TOKEN, CLASS = "<moon>", "circle"
BY_SEARCH, BY_LEARNING = "mini-search", "mini-learned"
SKIPPED = ("check", "before", "after", "copies", "lora", "embedding", "report")  # stages that show and take away

Arm = dict[str, Any]
UNTRAINED = "untrained"
PRIOR: Arm = {"prior_prompts": "mini:train"}
ARMS: dict[str, Arm] = {  # the first is the command with its recipe
    "sft": PRIOR,
    UNTRAINED: PRIOR,
    "sft one round": {**PRIOR, "rounds": 1, "settings": {"train": {"steps": 480}}},
    "sft no prior": {"prior": 0},
    "mapo_aaai 1024": {**PRIOR, "settings": {"objective": {"name": "mapo_aaai", "beta": 1024}}},
    "mapo_aaai 8": {**PRIOR, "settings": {"objective": {"name": "mapo_aaai", "beta": 8}}},
    "mapo_relative": {**PRIOR, "settings": {"objective": {"name": "mapo_relative"}}},
    "dpo 500": {**PRIOR, "settings": {"objective": {"name": "dpo", "beta": 500}}},
}


def subject_scenes(seed: int) -> tuple[list[Any], list[Any]]:
    """The subject as the photos of a seed show it, and in all other colours on all other backgrounds."""
    from mapo.lab.mini.scenes import BACKGROUNDS, COLOURS
    from mapo.lab.study.subjects import subject_scene

    rng = random.Random(f"photos:{seed}")
    while True:
        shown = list(zip(rng.sample(COLOURS, PHOTOS), rng.sample(BACKGROUNDS, PHOTOS), strict=True))
        if all(colour != ground for colour, ground in shown):
            break
    others = [(c, g) for c in COLOURS for g in BACKGROUNDS if c != g and (c, g) not in shown]
    return [subject_scene(*pair) for pair in shown], [subject_scene(*pair) for pair in others]


def told(scene: Any, word: str) -> str:
    """The caption of a scene with a word for the moon."""
    from mapo.lab.mini.scenes import context

    return context(scene).replace("moon", word)


def write_photos(folder: Path, seed: int) -> None:
    """The photos of a seed, with captions that say the class word."""
    from mapo.lab.mini.draw import draw

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"poses:{seed}")
    for number, scene in enumerate(subject_scenes(seed)[0]):
        Image.fromarray(draw(scene, rng)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(told(scene, CLASS))


def train(work: Path, arm: Arm, seed: int) -> tuple[Path, float]:
    """Do the stages of the command up to the last run; that run, and the seconds.

    What is drawn before the first training is the same in all arms that ask for the same, so it is drawn once.
    """
    from mapo.personalize.asked import Personalize
    from mapo.personalize.rounds import stages
    from mapo.settings import merge
    from mapo.style.stages import run_all

    photos = work.with_name(f"photos-{seed}")
    write_photos(photos, seed)
    arm = {**arm, "settings": merge({"train": {"seed": seed}}, arm.get("settings", {}))}
    shared, begun = work.with_name(f"drawn-{arm.get('prior')}-{arm.get('per_picture')}-{seed}"), time.monotonic()
    for place in (shared, work):
        asked = Personalize(photos, "mini", place, token=TOKEN, noun=CLASS, **arm)
        wanted = [one for one in stages(asked, None) if not one.name.endswith(SKIPPED)]
        first = [one.name for one in wanted].index("round-1 pairs") + 1
        run_all(place, asked.identity(), wanted[:first] if place == shared else wanted)
        if not work.exists():
            shutil.copytree(shared, work)
    return asked.round(asked.rounds) / "run", time.monotonic() - begun


@cache
def probe(folder: Path) -> Any:
    """The network that sees the moon, trained at its first use."""
    from mapo.lab.study.subjects import LearnedProbe

    return LearnedProbe("subject", folder)


def ordinary_prompts(split: str) -> tuple[list[str], list[str]]:
    """Prompts of one object: with the class word, and with other shapes."""
    from mapo.sample.prompts import read_prompts

    prompts = read_prompts(f"mini:{split}-one")
    return [p for p in prompts if CLASS in p], [p for p in prompts if CLASS not in p]


def drawn(model: str, prompts: Sequence[str]) -> Any:
    """Some pictures of each prompt, one after the other, "n 48 48 3"."""
    from mapo.sample.sample import Sampler, default_sampling

    jobs = [(prompt, number) for prompt in prompts for number in range(PICTURES)]
    sampler = Sampler(model)
    how, starts = default_sampling(sampler.model), range(0, len(jobs), 32)
    return np.stack([np.asarray(one) for start in starts for one in sampler.batch(jobs[start : start + 32], how)])


def look(model: str, seed: int, split: str, probes: Path) -> dict[str, dict[str, float]]:
    """What a model shows, as shares of its pictures, by the way of seeing."""
    from mapo.lab.mini.judges import JUDGES, follows
    from mapo.lab.mini.scenes import parse
    from mapo.lab.study.subjects import subject_by_learning, subject_by_search

    seen, others = subject_scenes(seed)
    classes, ordinary = ordinary_prompts(split)
    moons = drawn(model, [told(scene, TOKEN) for scene in (*seen, *others)])
    rest = drawn(model, [*classes, *ordinary])
    found: dict[str, dict[str, float]] = {}
    for name, subjects in (
        (BY_SEARCH, subject_by_search(moons)), (BY_LEARNING, subject_by_learning(moons, probe(probes))),
    ):  # fmt: skip
        followed = [
            (asked := parse(prompt)) is not None and follows(asked, scene)
            for prompt, scene in zip(each(*classes, *ordinary), JUDGES[name]()(rest), strict=True)
        ]
        found[name] = {
            **of_subject(subjects, seen, others),
            "circles": share(followed[: PICTURES * len(classes)]),
            "ordinary": share(followed[PICTURES * len(classes) :]),
        }
    return found


def each(*some: Any) -> list[Any]:
    """Each of them as often as it is drawn."""
    return [one for one in some for _ in range(PICTURES)]


def of_subject(subjects: Sequence[Any], seen: Sequence[Any], others: Sequence[Any]) -> dict[str, float]:
    """What was found on drawings of the subject as the photos show it, and then otherwise."""
    from mapo.lab.mini.scenes import context

    colours, grounds = {scene.things[0].colour for scene in seen}, {scene.background for scene in seen}
    asked, of_photos = each(*seen, *others), PICTURES * len(seen)
    right = [s is not None and context(s) == context(a) for s, a in zip(subjects, asked, strict=True)]
    new = [a.things[0].colour not in colours or a.background not in grounds for a in asked]
    return {
        "moons": share([s is not None for s in subjects]),
        "shown": share([s is not None for s in subjects[:of_photos]]),
        "colours": share(right[of_photos:]),
        "new": share([hit for hit, is_new in zip(right, new, strict=True) if is_new]),
    }


def share(hits: Sequence[bool]) -> float:
    """How many of them are true."""
    return sum(hits) / len(hits)


def spread(values: Sequence[float]) -> str:
    """The mean in per cent, with Student's interval over trainings."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:.0f}"
    reach = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:.0f} [{100 * max(mean - reach, 0):.0f}, {100 * min(mean + reach, 1):.0f}]"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each arm and judge."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        for judge in (BY_SEARCH, BY_LEARNING):
            looks = [row["look"][judge] for row in of_arm]
            cells = "  ".join(f"{what} {spread([one[what] for one in looks]):14}" for what in looks[0])
            lines.append(
                f"{arm:22} {len(looks)} {judge:13} {cells} {statistics.mean(r['seconds'] for r in of_arm):.0f} s"
            )
    return "\n".join(lines)


def figure(run: Path, photos: Path, seed: int, out: Path) -> None:
    """Three rows: the photos, then what the model draws of the word before and after, as no photo shows it."""
    from mapo.lab.mini.draw import SIDE

    others = subject_scenes(seed)[1]
    prompts = [told(scene, TOKEN) for scene in random.Random(0).sample(others, COLUMNS)]
    rows = [[np.asarray(Image.open(path)) for path in sorted(photos.glob("*.png"))]]
    rows += [list(drawn(str(model), prompts)[::PICTURES]) for model in ("mini", run)]
    sheet = np.full((3 * (SIDE + GAP) + GAP, COLUMNS * (SIDE + GAP) + GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (SIDE + GAP) + GAP, x * (SIDE + GAP) + GAP
            sheet[top : top + SIDE, left : left + SIDE] = picture
    image = Image.fromarray(sheet)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(out, optimize=True)


def main() -> None:
    """Train what is not in the file yet, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/personalize"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--tune", action="store_true", help="Look at the split validation.")
    parser.add_argument("--figure", type=Path, help="Draw what the first arm made of the first seed.")
    parser.add_argument("--tell", action="store_true", help="Train nothing, and print what is there.")
    args = parser.parse_args()
    from mapo.texts import append_lines, numbered_lines

    split, file = "validation" if args.tune else "test", args.work / "rows.jsonl"
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.tell:
        for seed in args.seeds:
            for name in args.arms:
                rows = [row for _, row in numbered_lines(file)] if file.exists() else []
                if any((row["arm"], row["seed"], row["split"]) == (name, seed, split) for row in rows):
                    continue
                run, seconds = (
                    ("mini", 0.0) if name == "untrained" else train(args.work / f"{name}-{seed}", ARMS[name], seed)
                )
                row = {"arm": name, "seed": seed, "split": split, "seconds": round(seconds)}
                append_lines(file, [{**row, "look": look(str(run), seed, split, args.work)}])
    rows = [row for _, row in numbered_lines(file) if row["split"] == split]
    print(table(rows))
    if args.figure:
        seed = args.seeds[0]
        place = args.work / f"{args.arms[0].replace(' ', '-')}-{seed}"
        run = max(place.glob("round-*/run"), key=lambda run: run.parent.name)
        figure(run, args.work / f"photos-{seed}", seed, args.figure)
    if args.out:
        about = {"photos": PHOTOS, "pictures": PICTURES, "arms": ARMS, "rows": rows}
        write_measured(args.out / "personalize.json", about)


if __name__ == "__main__":
    main()
