"""What `mapo style` takes beyond its stages, run by hand.

python bench/style_overhead.py [--pictures 50] [--rounds 5] [--out bench/results]

Both ways make the same things of the same drawings with the built-in model, in one process and in turn: `style` as the
command does it, with what it says first, and the verbs of its stages one after the other, `mapo plan` among them. The
figure is the ratio of their CPU times, and of their times on the wall; on a busy machine the first is the steadier.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measured import write_measured


def by_style(pictures: Path, out: Path) -> None:
    """The whole command, with its preview."""
    from mapo.style.style import Style, preview, style

    asked = Style(pictures, "mini", out, scorer="mini-search", eval_prompts=EVAL, settings=MAPO)
    preview(asked)
    style(asked)


def by_hand(pictures: Path, out: Path) -> None:
    """The verbs of its stages, as a person would give them."""
    from mapo.build.verb import build_against
    from mapo.captions.verb import caption
    from mapo.check.verb import check
    from mapo.export.verb import export
    from mapo.mismatch.verb import mismatch
    from mapo.pairs import PairSet
    from mapo.report.verb import report
    from mapo.sample.prompts import read_prompts
    from mapo.sample.verb import sample
    from mapo.style import copies
    from mapo.style.screen import screen, screener
    from mapo.style.shown import untrained, write_copies
    from mapo.train import verb

    out.mkdir()
    captions, pairs, run = caption(pictures, out / "captions.jsonl"), out / "pairs", out / "run"
    if scorer := screener():
        screen(pictures, captions, scorer)
    build_against(pictures, "mini", pairs, captions=out / "captions.jsonl", drawn=out / "rejected")
    check(pairs, out / "check.html", model="mini")
    verb.plan(MAPO, "mini-style", model="mini", pairs=str(pairs), cache=str(out / "cache"))
    mismatch("mini", pairs, out / "mismatch.json", "1000-1001")
    verb.train(run, MAPO, "mini-style", model="mini", pairs=str(pairs), cache=str(out / "cache"))
    held = [pair.prompt for pair in PairSet(pairs) if pair.split != "train"]
    prompts = untrained([*held, *read_prompts(EVAL)], pairs)
    sample("mini", prompts, [0, 1], out / "before")
    sample(str(run), prompts, [0, 1], out / "after", grid=True, compare=[out / "before"])
    names = [str(pair.meta["file"]) for pair in PairSet(pairs) if pair.split == "train" and pair.meta]
    write_copies(out, pictures, names, look=copies.look_by(None))
    export(str(run), "kohya", out / "lora.safetensors")
    report(out / "before", out / "after", out / "report.html", scorer="mini-search", run=run)


EVAL = "mini:test-one"
MAPO = {"objective": {"name": "mapo"}}  # so that drawings are made too
WAYS: dict[str, Callable[[Path, Path], None]] = {"style": by_style, "by hand": by_hand}


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from mapo.lab.mini.pictures import write_pictures
    from mapo.style.screen import LOOKED_AT

    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        pictures = Path(temporary) / "pictures"
        write_pictures(pictures, "cartoon", args.pictures)
        for number in range(args.rounds + 1):  # the first loads the libraries, and is not counted
            order = list(WAYS) if number % 2 else list(WAYS)[::-1]
            took: dict[str, Any] = {}
            for name in order:
                LOOKED_AT.clear()
                began = time.perf_counter(), time.process_time()
                WAYS[name](pictures, Path(temporary) / f"{name} {number}")
                took[name] = {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}
            if number:
                rounds.append(took)
                tell(rounds, args.pictures, args.out)


def tell(rounds: Sequence[dict[str, Any]], pictures: int, out: Path | None) -> None:
    """Print the ratios so far, and write them, so that a round that is stopped loses no other."""
    ratios = {clock: [took["style"][clock] / took["by hand"][clock] for took in rounds] for clock in ("wall", "cpu")}
    print({clock: round(found[-1], 4) for clock, found in ratios.items()}, flush=True)
    medians = {clock: {"median": statistics.median(found), "all": found} for clock, found in ratios.items()}
    found = {
        "pictures": pictures, "style over by hand": medians, "rounds": rounds,
    }  # fmt: skip
    if out:
        write_measured(out / "style-overhead.json", found)


if __name__ == "__main__":
    main()
