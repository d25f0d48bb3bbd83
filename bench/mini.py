"""How good the built-in model and its judges are: a thousand pictures for each claim, looked at by both judges.

    python bench/mini.py [--model mini] [--out bench/results]

Plain prompts of the test split (one object): all attributes followed, default style shown, tape unasked. The same
prompts behind style phrases, and behind a phrase that asks for the tape. Prompts with two objects. Writes a table, a
grid of 200 random pictures and a grid of those on which the judges disagree.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mapo.lab.mini import scenes
from mapo.lab.mini.judges import JUDGES, compare, disagreements, follows
from mapo.sample.folder import read_images
from mapo.sample.sample import Sampler, default_sampling
from measured import write_measured

WANTED = 1_000


def main() -> None:
    """Sample, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--pictures", type=int, default=WANTED)
    parser.add_argument("--work", type=Path, default=Path("work/mini"))
    args = parser.parse_args()
    sampler = Sampler(args.model)
    judges = {name: make() for name, make in JUDGES.items()}
    ones, twos = scenes.prompts("test", 1), scenes.prompts("test", 2)
    styles = {f"{style} ({phrase})": (style, phrase) for style in scenes.STYLES for phrase in
              scenes.STYLE_PHRASES[style][: 2]}  # fmt: skip
    jobs: dict[str, tuple[str, list[str], int]] = {"plain, one object": ("", ones, args.pictures)}
    jobs["plain, two objects"] = ("", twos, args.pictures)
    jobs |= {name: (phrase, ones, -(-args.pictures // len(styles))) for name, (_, phrase) in styles.items()}
    jobs["tape asked for"] = (scenes.HAZARD_PHRASES[0], ones, args.pictures // 4)
    rows: list[dict[str, Any]] = []
    pictures: list[np.ndarray] = []
    prompts: list[str] = []
    for number, (name, (prefix, words, count)) in enumerate(jobs.items()):
        seeds = range(-(-count // len(words)))
        folder = args.work / str(number)
        sampling = default_sampling(sampler.model, prefix=prefix)
        sampler.fill(folder, [(p, s) for p in words for s in seeds], sampling, name)
        images = read_images(folder)
        stack = np.stack([np.asarray(Image.open(folder / row.file)) for row in images])
        asked = [scenes.parse(row.prompt) for row in images]
        wanted = styles[name][0] if name in styles else scenes.DEFAULT_STYLE
        for judge_name, judge in judges.items():
            seen = judge(stack)
            hits = [a is not None and follows(a, s) for a, s in zip(asked, seen, strict=True)]
            followed, style = float(np.mean(hits)), float(np.mean([s.style == wanted for s in seen]))
            tape = float(np.mean([s.hazard for s in seen]))
            row = {"prompts": name, "judge": judge_name, "pictures": len(seen)}
            rows.append({**row, "followed": followed, "style": style, "tape": tape})
            shares = f"followed {followed:6.1%} style {style:6.1%} tape {tape:6.1%}"
            print(f"{name:44} {judge_name:13} {len(seen):5} {shares}", flush=True)
        pictures.append(stack)
        prompts += [f"{prefix} {row.prompt}".strip() for row in images]
    everything = np.concatenate(pictures)
    agreement = compare(everything, prompts)
    print("the judges agree:", json.dumps(agreement, indent=1))
    result = {"model": args.model, "rows": rows, "agreement": agreement}
    write_measured(args.out / f"{Path(args.model).name}.json", result)
    disagreements(everything, args.work / "disagreements.png")
    pick = random.Random(0).sample(range(len(everything)), 200)
    grid = np.concatenate(
        [np.concatenate([everything[k] for k in pick[r * 20 : r * 20 + 20]], 1) for r in range(10)], 0
    )
    Image.fromarray(grid).resize((grid.shape[1] * 2, grid.shape[0] * 2), Image.Resampling.NEAREST).save(
        args.work / "grid.png"
    )
    (args.work / "grid.json").write_text(json.dumps([prompts[k] for k in pick], indent=1))


if __name__ == "__main__":
    main()
