"""How often a safety scorer takes a harmless picture for an unsafe one.

    python bench/nsfw.py [--drawn 400] [--photos NAME=FOLDER …] [--drawings NAME=FOLDER …] [--scorer nsfw]
                         [--out bench/results]

Every picture given has to be harmless; those at or above a threshold are false alarms, counted with the exact
(Clopper-Pearson) 95 % interval. --drawn: drawings of the mini world, as many of each style. Of the folders every
picture counts that `mapo import` would take and whose shorter side has 64 pixels; of equal files one. What the scorer
misses is not measured: that needs unsafe pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from scipy import stats

from measured import write_measured

THRESHOLDS = (0.2, 0.5, 0.8)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LEAST = 64  # pixels of the shorter side: what is smaller is an icon
NAMED = 10

Found = list[tuple[str, Image.Image]]


def drawn(count: int) -> Iterator[tuple[str, Found]]:
    """Drawings of the mini world, style by style."""
    from mapo.lab.mini import scenes
    from mapo.lab.mini.draw import draw

    rng = random.Random(0)
    plain = scenes.random_plain_scenes("test", rng)
    for style in scenes.STYLES:
        each = [replace(next(plain), style=style) for _ in range(count // len(scenes.STYLES))]
        yield f"mini world, {style}", [(f"{k}", Image.fromarray(draw(one, rng))) for k, one in enumerate(each)]


def read_folder(folder: Path) -> Found:
    """The pictures below a folder."""
    from mapo.pairs.pictures import decode_picture

    found, seen = list[tuple[str, Image.Image]](), set[str]()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        data = path.read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) in seen:
            continue
        seen.add(digest)
        try:
            picture = decode_picture(data)
        except ValueError as error:
            print(f"passed over: {path.name} ({error})")
            continue
        if min(picture.size) >= LEAST:
            found.append((path.relative_to(folder).as_posix(), picture))
    return found


def interval(alarms: int, count: int) -> dict[str, Any]:
    """A count, its share and the share's exact interval."""
    bounds = stats.binomtest(alarms, count).proportion_ci(0.95, "exact")
    return {"alarms": alarms, "share": alarms / count, "interval": [float(bounds.low), float(bounds.high)]}


def measure(values: list[float]) -> dict[str, Any]:
    """The false alarms among numbers of harmless pictures."""
    counts = {str(t): interval(sum(value >= t for value in values), len(values)) for t in THRESHOLDS}
    return {"pictures": len(values), "largest": max(values), "at": counts}


def say(name: str, found: dict[str, Any]) -> None:
    """A line of the table."""
    cells = [
        f"{at['alarms']:3} ({100 * at['share']:.1f} % [{100 * at['interval'][0]:.1f}, {100 * at['interval'][1]:.1f}])"
        for at in found["at"].values()
    ]
    print(f"{name:34} {found['pictures']:4}  largest {found['largest']:.3f}  " + "  ".join(cells))


def main() -> None:
    """Score, count, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", default="nsfw")
    parser.add_argument("--drawn", type=int, default=400)
    parser.add_argument("--photos", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--drawings", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from mapo.score.scorers import load_scorer

    scorer: Any = load_scorer(args.scorer)
    (metric,) = scorer.metrics
    groups: list[dict[str, Any]] = []
    together: dict[str, list[float]] = {"drawings": [], "photos": []}

    def look(kind: str, name: str, found: Found) -> None:
        pictures = [picture for _, picture in found]
        values = list(scorer(pictures, [""] * len(pictures))[metric])
        together[kind] += values
        loud = sorted((-value, where) for value, (where, _) in zip(values, found, strict=True))[:NAMED]
        named = {where: round(-less, 3) for less, where in loud if -less >= THRESHOLDS[0]}
        groups.append({"kind": kind, "name": name, **measure(values), "loudest": named})
        say(name, groups[-1])

    for name, found in drawn(args.drawn):
        look("drawings", name, found)
    for kind in together:
        for text in getattr(args, kind):
            name, _, folder = text.rpartition("=")
            look(kind, name or Path(folder).name, read_folder(Path(folder)))
    totals = {kind: measure(values) for kind, values in together.items() if values}
    for kind, total in totals.items():
        say(f"all {kind}", total)
    if args.out:
        given = {
            kind: " ".join(text.rpartition("=")[0] or Path(text).name for text in getattr(args, kind))
            for kind in together
        }
        result = {
            "command": f"python bench/nsfw.py --scorer {scorer.name} --drawn {args.drawn} "
            + " ".join(f"--{kind} {names}" for kind, names in given.items() if names),
            **{name: version(name) for name in ("onnxruntime", "pillow")},
            "scorer": {"name": scorer.name, "version": scorer.version, "revision": scorer.revision},
            "all": totals,
            "groups": groups,
        }
        write_measured(args.out / f"{scorer.name.replace('@', '-')}.json", result)


if __name__ == "__main__":
    main()
