"""A style from a folder of pictures on the mini world: which objective learns it, at which price, and does it copy?

    python bench/style.py [--work work/style] [--out bench/results/style] [--only mapo sft] [--minutes 80]
    python bench/style.py --tables | --grid FILE.png

From 50 drawings each of cartoon, pixel art and a style that the model has never drawn (low poly), five seeds; from 20
and from 200 cartoons, three. A seed is that of the training, of the drawings and of the pictures of the test. The
pairs are those of `mapo style`, each set made once for all objectives; what is trained is its recipe with another
objective, rate, β and number of steps.

Those are chosen once for each objective, as a recipe has to suit any style: by the same number of trials on validation
prompts, from 50 drawings of each style, of a seed that is not measured, and by the learned judge. No caption and no
prompt names a style. Both judges know the five styles: one compares with drawings, the other is trained here.

Every training is a line of `trials.jsonl` or `runs.jsonl` as soon as it is done, and the same command goes on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mapo.build.against import Own, build_against, held_out
from mapo.errors import DivergedError
from mapo.lab.mini import scenes
from mapo.lab.mini.draw import UNSEEN, draw
from mapo.lab.mini.judge_learned import LearnedJudge, train_judge
from mapo.lab.mini.judge_search import SearchJudge
from mapo.lab.mini.judges import Judge, Pictures, accuracy, drawings, follows
from mapo.lab.study.search import compass, merit
from mapo.pairs.splits import prompt_id
from mapo.sample.sample import Sampler, default_sampling
from mapo.settings import merge
from mapo.style import copies
from mapo.texts import append_lines, read_lines
from mapo.train.config import make_config
from mapo.train.recipes.recipe import read_recipe
from mapo.train.train import train
from measured import write_measured
from style_tables import OBJECTIVES, write_tables

STYLES = (*scenes.STYLES, UNSEEN)  # that the judges know
JUDGE_STEPS = 800
SEEDS = (10, 11, 12, 13, 14)  # 0 to 4 were those of the first search
RECIPE = "mini-style"
PROMPTS = {"test": slice(84, 168), "validation": slice(48)}  # half of them with two objects; the first 84 were seen
TUNED_ON, TUNING_SEED, TRIALS = ("cartoon", UNSEEN, "pixel art"), 100, 5
LOOKS = (40, 80, 160, 240)  # steps after which a trial is looked at; the best ends training
STARTS: dict[str, tuple[dict[str, float], dict[str, float]]] = {  # where each search begins, and its factors
    "mapo": ({"lr": 1e-3, "beta": 0.1}, {"lr": 10**0.5, "beta": 4.0}),
    "sft": ({"lr": 1e-3}, {"lr": 10**0.5}),
    "dpo": ({"lr": 3e-4, "beta": 10.0}, {"lr": 10**0.5, "beta": 10.0}),
}
Case = tuple[str, int, int]  # style, number of drawings, seed


def cases() -> list[Case]:
    """What is measured, in this order, so that what is there after an early end is balanced."""
    found: list[Case] = [(style, 50, seed) for style in ("cartoon", UNSEEN, "pixel art") for seed in SEEDS[:3]]
    found += [("cartoon", number, seed) for number in (20, 200) for seed in SEEDS[:3]]
    return found + [(style, 50, seed) for seed in SEEDS[3:] for style in ("cartoon", UNSEEN, "pixel art")]


def own_drawings(style: str, number: int, seed: int) -> list[tuple[str, Image.Image]]:
    """Different plain captions of the train split, and a drawing of each in the style: of more drawings these are the
    first, and of every style they show the same."""
    rng = random.Random(f"style:{seed}")
    found: dict[str, Image.Image] = {}
    for scene in scenes.random_plain_scenes("train", rng):
        if (caption := scenes.context(scene)) not in found:
            at = random.Random(f"{caption}:{seed}")
            found[caption] = Image.fromarray(draw(replace(scene, style=style), at))
        if len(found) == number:
            break
    return list(found.items())


def write_drawings(folder: Path, style: str, number: int, seed: int) -> list[Own]:
    """The drawings as a folder of pictures with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    own = []
    for place, (caption, picture) in enumerate(own_drawings(style, number, seed)):
        path = folder / f"{place:03}.png"
        picture.save(path)
        path.with_suffix(".txt").write_text(caption)
        own.append(Own(path.name, caption, path))
    return own


def arrays(pictures: Sequence[Image.Image]) -> Pictures:
    """Pictures as the judges take them, uint8 "n 48 48 3"."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


class Bench:
    """The folder that the bench works in, and the one in which results are kept."""

    def __init__(self, work: Path, out: Path) -> None:
        self.work, self.out = work, out
        out.mkdir(parents=True, exist_ok=True)

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Both judges of five styles; the learned one is trained once."""
        weights = self.work / "judge.safetensors"
        if not weights.exists():
            weights.parent.mkdir(parents=True, exist_ok=True)
            train_judge(weights, steps=JUDGE_STEPS, styles=STYLES)
        found: dict[str, Judge] = {
            "mini-learned": LearnedJudge(weights, STYLES), "mini-search": SearchJudge(STYLES)
        }  # fmt: skip
        return found

    def about(self) -> None:
        """Write down how often the judges are right on fresh drawings, and on what all was measured."""
        if not (self.out / "about.json").exists():
            fresh = drawings("test", 1_000, styles=STYLES)
            right = {name: accuracy(judge, *fresh) for name, judge in self.judges.items()}
            write_measured(self.out / "about.json", {"judge_steps": JUDGE_STEPS, "looks": LOOKS, "judges": right})

    def pairs(self, case: Case) -> tuple[Path, list[Own]]:
        """The pairs that `mapo style` makes of the drawings, and these; made once."""
        style, number, seed = case
        folder = self.work / "cases" / f"{style}-{number}-{seed}".replace(" ", "-")
        own = write_drawings(folder / "drawings", *case)
        if not (folder / "pairs").exists():
            build_against(own, "mini", folder / "pairs", self.work / "rejected" / str(seed))
        return folder / "pairs", own

    def pictures(self, sampler: Sampler, split: str, seed: int) -> Pictures:
        """A model's pictures of the prompts of a split."""
        how = default_sampling(sampler.model)
        jobs = [(prompt, seed) for prompt in prompts(split)]
        made: list[Image.Image] = []
        for start in range(0, len(jobs), how.images_per_batch):
            made += sampler.batch(jobs[start : start + how.images_per_batch], how)
        return arrays(made)

    def before(self, split: str, seed: int) -> Pictures:
        """The untrained model's pictures, drawn once."""
        path = self.work / "before" / f"{split}-{seed}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.pictures(Sampler("mini"), split, seed))
        return np.asarray(np.load(path))

    def look(self, pictures: Pictures, case: Case, split: str, own: Sequence[Own]) -> dict[str, Any]:
        """What pictures show, as strings of 0 and 1 with a digit per picture, and how near they are to the drawings
        trained on and to as many others of the style."""
        style, number, seed = case
        asked = [scenes.parse(prompt) for prompt in prompts(split)]
        row: dict[str, Any] = {"prompts": [len(asked)] * 2, "same": True}
        for name, judge in self.judges.items():
            seen = judge(pictures)
            row[f"reached {name}"] = digits(scene.style == style for scene in seen)
            row[f"followed {name}"] = digits(a is not None and follows(a, s) for a, s in zip(asked, seen, strict=True))
        splits = held_out(own)
        trained = [one for one in own if splits[prompt_id(one.caption)] == "train"]
        known: dict[str, Image.Image] = {one.name: Image.open(one.path) for one in trained}
        others = dict(enumerate_names(own_drawings(style, number, seed + 1_000)[: len(known)]))
        drawn = {f"drawn {k}": Image.fromarray(picture) for k, picture in enumerate(pictures)}
        old = {f"drawn {k}": Image.fromarray(picture) for k, picture in enumerate(self.before(split, seed))}
        near = copies.nearest(drawn, known)
        row["bits"] = [round(one.apart) for one in near]
        row["bits to others"] = [round(one.apart) for one in copies.nearest(drawn, others)]
        among = copies.nearest(known, known)
        row["copies"] = copies.compared(among, copies.nearest(old, known), near)["copies"]
        row["own near"] = [sum(one.apart <= copies.NEAR for one in among), len(among)]
        return row

    def run(
        self, case: Case, objective: str, settings: Mapping[str, float], steps: Sequence[int], split: str
    ) -> list[dict[str, Any]]:
        """Train, and look after each of some numbers of steps. A training that diverges has learned nothing."""
        pairs, own = self.pairs(case)
        name = "-".join([*map(str, case), objective, split]).replace(" ", "-")
        folder = self.work / "running" / name
        shutil.rmtree(folder, ignore_errors=True)
        knobs = {key: value for key, value in settings.items() if key != "lr"}
        looks = []
        for number in steps:
            values = read_recipe(RECIPE)
            values["objective"] = {"name": objective, **knobs}
            told: dict[str, Any] = {"optim": {"lr": settings["lr"]}, "train": {"steps": number, "seed": case[2]}}
            more = {"pairs": str(pairs), "cache": str(self.work / "cache")}
            try:
                train(make_config(merge(merge(values, told), more)), folder)
                pictures = self.pictures(Sampler(str(folder)), split, case[2])
            except DivergedError as error:
                looks.append({"steps": number, "failed": str(error), **nothing(split)})
                break
            seconds = [float(line["seconds"]) for line in read_lines(folder / "metrics.jsonl")]
            looks.append({
                "steps": number, **self.look(pictures, case, split, own),
                "seconds_per_step": round(float(np.median(seconds)), 4),
            })  # fmt: skip
        if split == "test" and "failed" not in looks[-1]:
            self.keep(name, folder, pictures)
        shutil.rmtree(folder, ignore_errors=True)
        return looks

    def keep(self, name: str, folder: Path, pictures: Pictures) -> None:
        """Keep the pictures of a run, and its weights."""
        (self.work / "after").mkdir(exist_ok=True)
        np.save(self.work / "after" / f"{name}.npy", pictures)
        kept = self.work / "weights" / name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "weights", kept)


def enumerate_names(found: Sequence[tuple[str, Image.Image]]) -> list[tuple[str, Image.Image]]:
    """The pictures under names that no other picture has."""
    return [(f"other {place}", picture) for place, (_, picture) in enumerate(found)]


@cache
def prompts(split: str) -> tuple[str, ...]:
    """The plain prompts that are looked at."""
    return tuple(scenes.read_list(split)[PROMPTS[split]])


def digits(flags: Any) -> str:
    """1 for what is true, 0 for what is not."""
    return "".join("1" if flag else "0" for flag in flags)


def nothing(split: str) -> dict[str, Any]:
    """The look at a model that is lost."""
    number = len(prompts(split))
    names = [f"{what} {judge}" for what in ("reached", "followed") for judge in ("mini-learned", "mini-search")]
    return {"prompts": [number] * 2, "same": True, **dict.fromkeys(names, "0" * number)}


class Lines:
    """Results by what was asked, a line each, appended as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows: list[dict[str, Any]] = list(read_lines(path)) if path.exists() else []
        self.rows = {self.key(row): row for row in rows}

    @staticmethod
    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        """What was asked."""
        settings = tuple(sorted(row["settings"].items()))
        return row["style"], row["drawings"], row["seed"], row["objective"], settings, tuple(row["steps"])

    def do(self, bench: Bench, case: Case, objective: str, settings: dict[str, float], steps: Sequence[int], split: str
           ) -> dict[str, Any]:  # fmt: skip
        """The row that is known, or a new one."""
        asked = {
            **dict(zip(("style", "drawings", "seed"), case, strict=True)), "objective": objective,
            "settings": settings, "steps": list(steps),
        }  # fmt: skip
        if self.key(asked) in self.rows:
            return self.rows[self.key(asked)]
        began = time.perf_counter()
        if objective == "none":
            looks = [{"steps": 0, **bench.look(bench.before(split, case[2]), case, split, bench.pairs(case)[1])}]
        else:
            looks = bench.run(case, objective, settings, steps, split)
        row = {**asked, "seconds": round(time.perf_counter() - began, 1), "looks": looks}
        append_lines(self.path, [row])
        self.rows[self.key(asked)] = row
        print(told(row), flush=True)
        return row


def told(row: Mapping[str, Any]) -> str:
    """A row on a line."""
    look = row["looks"][-1]
    shown, followed = (look[f"{what} mini-search"].count("1") for what in ("reached", "followed"))
    settings = ", ".join(f"{name} {value:g}" for name, value in row["settings"].items())
    return (
        f"{row['style']} {row['drawings']} {row['seed']} {row['objective']} {settings}; {look['steps']} steps: "
        f"shown {shown}, followed {followed} of {look['prompts'][0]}, {row['seconds']:.0f} s"
    )


def tune(bench: Bench, lines: Lines, objective: str) -> tuple[dict[str, float], int]:
    """The settings and the number of steps of an objective that did best over the styles of the search."""

    def trial(settings: dict[str, float]) -> tuple[float, Any]:
        told = {key: float(f"{value:.3g}") for key, value in settings.items()}
        on: list[Case] = [(style, 50, TUNING_SEED) for style in TUNED_ON]
        rows = [lines.do(bench, case, objective, told, LOOKS, "validation") for case in on]
        merits = {}
        for place, steps in enumerate(LOOKS):  # a training that diverged has fewer looks
            merits[steps] = np.mean([merit(r["looks"][min(place, len(r["looks"]) - 1)]) for r in rows])
        best = max(merits, key=lambda steps: merits[steps])
        return float(merits[best]), (told, best)

    start, factors = STARTS[objective]
    best: tuple[dict[str, float], int] = compass(trial, start, factors, TRIALS).result
    return best


def write_grid(bench: Bench, path: Path, objective: str, columns: int = 8) -> None:
    """Some test prompts: a row of the untrained model's pictures, and one for each style learned from 50 drawings."""
    places = list(range(0, 2 * columns, 2))[: columns // 2] + list(range(1, 2 * columns, 2))[: columns // 2]
    rows = [bench.before("test", SEEDS[0])[places]]
    for style in ("cartoon", "pixel art", UNSEEN):
        name = f"{style}-50-{SEEDS[0]}-{objective}-test".replace(" ", "-")
        rows.append(np.load(bench.work / "after" / f"{name}.npy")[places])
    gap, zoom = 4, 2
    side = rows[0].shape[1] * zoom + gap
    sheet = Image.new("RGB", (len(places) * side + gap, len(rows) * side + gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            big = Image.fromarray(picture).resize((side - gap, side - gap), Image.Resampling.NEAREST)
            sheet.paste(big, (gap + x * side, gap + y * side))
    sheet.save(path, optimize=True)


def main() -> None:
    """Search, train, look, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/style"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/style"))
    parser.add_argument("--only", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES, help="These objectives.")
    parser.add_argument("--minutes", type=float, default=1e9, help="Begin no training after so many minutes.")
    parser.add_argument("--tables", action="store_true", help="Only write the tables from what is there.")
    parser.add_argument("--grid", type=Path, help="Only draw the picture of the three styles, by SFT.")
    args = parser.parse_args()
    bench = Bench(args.work, args.out)
    if args.grid:
        write_grid(bench, args.grid, "sft")
    elif not args.tables:
        end = time.monotonic() + 60 * args.minutes
        bench.about()
        trials, runs = Lines(args.out / "trials.jsonl"), Lines(args.out / "runs.jsonl")
        tuned = {objective: tune(bench, trials, objective) for objective in args.only if objective != "none"}
        for case in cases():
            for objective in args.only:
                if time.monotonic() < end:
                    settings, steps = tuned.get(objective, ({}, 0))
                    runs.do(bench, case, objective, settings, (steps,), "test")
    write_tables(args.out)


if __name__ == "__main__":
    main()
