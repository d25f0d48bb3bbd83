"""kill -9 at random moments: every verb ends as if it had never been killed, and leaves nothing behind.

``python bench/kills.py --kills 50 --out bench/results`` runs each job once without a kill, then again and again with
kills, repeating the same command until it ends, and compares what lies on disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured import write_measured

PRELOADED = [
    "mapo.build.build",
    "mapo.importers",
    "mapo.train.train",
    "mapo.sample.sample",
    "mapo.score.score",
    "mapo.models.families.sdxl",
    "pyarrow",
]
PAIRS = 24
TIMES = ("seconds", "pairs_per_second", "memory")  # of a step: no two runs agree on them


@dataclass(frozen=True)
class Job:
    """A command that writes ``out`` below the folder of a trial; ``before`` is what already lies there."""

    name: str
    words: tuple[str, ...]
    out: str
    before: str = ""
    last_moment: bool = False  # kill it while it writes its final weights
    ends_once: bool = False  # what it has made is refused the next time


def jobs(material: Path) -> list[Job]:
    """What is killed. ``{}`` stands for the folder of the trial."""
    pairs, cache = str(material / "pairs"), str(material / "cache")
    train: tuple[str, ...] = ("train", "--model", "mini", "--pairs", pairs, "--cache", cache, "--out", "{}/run")
    train += ("--set", "optim.lr=1e-4", "--set", "train.pairs_per_step=4", "--set", "train.save_every_steps=2")
    train += ("--set", "data.split=all")
    full, lora = (*train, "--set", "train.steps=8"), (*train, "--set", "train.steps=8", "--adapter", "lora")
    build: tuple[str, ...] = ("build", "pick-style-cartoon", "--model", "mini", "--prompts", "mini:train")
    build += ("--num-pairs", "8", "--judge", "mini-learned:cartoon", "--steps", "3", "--images-per-batch", "2")
    build += ("--out", "{}/set")
    sample: tuple[str, ...] = ("sample", "--model", "mini", "--prompts", str(material / "prompts.txt"))
    sample += ("--seeds", "0-3", "--steps", "3", "--images-per-batch", "2", "--out", "{}/images")
    score = ("score", str(material / "images"), "--scorer", "mini,guards", "--out", "{}/scores.parquet")
    encode = ("encode", "--model", "mini", "--pairs", pairs, "--out", "{}/cache", "--images-per-batch", "2")
    return [
        Job("build", build, "set", ends_once=True),
        Job("import", ("import", str(material / "source"), "--out", "{}/set"), "set", ends_once=True),
        Job("encode", encode, "cache"),
        Job("train, full", full, "run"),
        Job("train, lora", lora, "run"),
        Job("sample", sample, "images"),
        Job("score", (*score, "--images-per-batch", "4"), "scores.parquet"),
        Job("a longer run's final weights", (*train, "--set", "train.steps=3"), "run", "finished", last_moment=True),
    ]


def make_material(folder: Path) -> None:
    """Pairs, a cache, pictures, a source to import, and a finished run of one step."""
    from mapo.cli import cli
    from mapo.lab.mini import scenes
    from mapo.pairs import PairSet
    from mapo.sample.folder import png_bytes

    def mapo(*words: str) -> None:
        cli.main(list(words), standalone_mode=False)

    pairs, cache = str(folder / "pairs"), str(folder / "cache")
    mapo(
        "build", "pick-style-cartoon", "--model", "mini", "--prompts", "mini:train", "--num-pairs", str(PAIRS),
        "--steps", "3", "--out", pairs,
    )  # fmt: skip
    mapo("encode", "--model", "mini", "--pairs", pairs, "--out", cache)
    (folder / "prompts.txt").write_text("\n".join(scenes.prompts("test", 1)[:4]) + "\n")
    mapo(
        "sample", "--model", "mini", "--prompts", str(folder / "prompts.txt"), "--seeds", "0-3", "--steps", "3",
        "--out", str(folder / "images"),
    )  # fmt: skip
    opened = PairSet(Path(pairs))
    for number in range(8):
        for k, pair in enumerate(opened):
            for side in ("chosen", "rejected"):
                path = folder / "source" / side / f"{number}-{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png_bytes(opened.image(getattr(pair, side)).rotate(number)))
                path.with_suffix(".txt").write_text(f"{pair.prompt}, number {number}")
    mapo(*(w.replace("{}", str(folder / "finished")) for w in jobs(folder)[-1].words[:-1]), "train.steps=1")


def contents(out: Path) -> dict[str, Any]:
    """What a person would call the content of ``out``: no times, and no names that a process chose by chance."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")) if out.is_dir() else [out]:
        name = str(path.relative_to(out)) if path != out else path.name
        if path.is_dir() or path.suffix in (".lock", ".index"):
            continue
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        elif path.name == "state.json":
            state = json.loads(path.read_text())
            del state["crc32"]  # which covers the times
            found[name] = {**state, "line": {k: v for k, v in state["line"].items() if k not in TIMES}}
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif path.suffix == ".safetensors" and (out / "cache.json").exists():
            found |= {key: tensor.tobytes() for key, tensor in load_file(path).items()}
        elif path.suffix != ".npy" or not (out / "cache.json").exists():
            found[name] = path.read_bytes().replace(str(out.parent).encode(), b"HERE")
    return found


def left_behind(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*"))


def _work(words: list[str], log: str) -> None:
    """A verb, in a process of its own that has loaded the libraries already."""
    from mapo import cli

    with open(log, "a") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["mapo", *words]
    cli.main()


def begin(job: Job, folder: Path) -> Any:
    words = [word.replace("{}", str(folder)) for word in job.words]
    process = multiprocessing.get_context("forkserver").Process(target=_work, args=(words, f"{folder}.log"))
    process.start()
    return process


def kill(process: Any, job: Job, folder: Path, rng: random.Random, usual: float) -> bool:
    """Kill -9 at a random moment; whether the process was still at work."""
    if job.last_moment:
        until = time.monotonic() + 10 * usual + 10
        while process.is_alive() and time.monotonic() < until and not list((folder / "run").glob(".weights*")):
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.05)
    else:
        process.join(rng.random() * 0.8 * usual)
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return bool(alive)


def whole(job: Job, folder: Path, material: Path) -> float:
    """Run a job to its end; seconds."""
    began = time.monotonic()
    process = begin(job, folder)
    process.join()
    said = Path(f"{folder}.log").read_text().strip().splitlines()[-1:]
    if process.exitcode and not (job.ends_once and "already exists" in str(said)):  # killed just after it had ended
        raise SystemExit(f"{job.name} failed: {Path(f'{folder}.log').read_text()[-2000:]}")
    return time.monotonic() - began


def prepared(job: Job, folder: Path, material: Path) -> Path:
    folder.mkdir()
    if job.before:
        shutil.copytree(material / job.before, folder, dirs_exist_ok=True)
    return folder


def measure(kills: int, seed: int = 0) -> dict[str, Any]:
    """Kills of each job in turn until there were so many; what was unlike a job that was never killed."""
    rng = random.Random(seed)
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    done: Counter[str] = Counter()
    trials: Counter[str] = Counter()
    unlike: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        material = work / "material"
        material.mkdir()
        child = multiprocessing.get_context("forkserver").Process(target=make_material, args=(material,))
        child.start()
        child.join()
        todo = jobs(material)
        expected, usual = {}, {}
        for place, job in enumerate(todo):
            folder = prepared(job, work / f"whole-{place}", material)
            usual[job.name] = whole(job, folder, material)
            expected[job.name] = contents(folder / job.out)
            unlike += [f"{job.name}, never killed, left {name}" for name in left_behind(folder)]
        number = 0
        while sum(done.values()) < kills:
            job = todo[number % len(todo)]
            folder = prepared(job, work / f"trial-{number}", material)
            number += 1
            for _ in range(rng.choice((1, 1, 2, 3)) if kills > 2 * len(todo) else 1):
                if sum(done.values()) < kills:
                    done[job.name] += kill(begin(job, folder), job, folder, rng, usual[job.name])
            whole(job, folder, material)
            trials[job.name] += 1
            if contents(folder / job.out) != expected[job.name]:
                unlike.append(f"{job.name}, trial {number - 1}, is unlike")
            unlike += [f"{job.name}, trial {number - 1}, left {name}" for name in left_behind(folder)]
            shutil.rmtree(folder)
    return {"kills": sum(done.values()), "by job": dict(done), "trials": dict(trials), "unlike": unlike, "seed": seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = measure(asked.kills, asked.seed)
    print(json.dumps(found, indent=1))
    if asked.out:
        write_measured(asked.out / "kills.json", found)
    sys.exit(bool(found["unlike"]))


if __name__ == "__main__":
    main()
