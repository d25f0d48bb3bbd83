"""The demo's recipe on all three mini sets: what is learned, and how well prompts are still followed.

python bench/align.py [--out bench/results] [--work work/align]

Judged on all 210 plain test prompts, 168 of them with two objects, five pictures of each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mapo.lab.demo import GOALS, demo
from measured import write_measured


def main() -> None:
    """Run the three demos, write their summaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--work", type=Path, default=Path("work/align"))
    args = parser.parse_args()
    results = {recipe: demo(args.work / recipe, recipe, "mini:test", range(5)) for recipe in GOALS}
    write_measured(args.out / "align.json", {"results": results})


if __name__ == "__main__":
    main()
