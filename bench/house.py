"""The house in numbers: places at the top level, modules, and which place imports from which.

    python bench/house.py [--before REVISION] [--out bench/results]

A place is a room (package) or a flat module of `mapo`. An arrow says that some module of one place imports one of
another. Places that import each other, directly or around, are in a circle. grimp, which import-linter brings, reads
the imports.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from measured import write_measured

ROOT = Path(__file__).resolve().parents[1]
COUNT = """
import grimp, json
graph = grimp.build_graph("mapo", cache_dir=None)
places, arrows = {}, set()
for module in graph.modules:
    mine = module.split(".")[1:2]
    if mine:
        places.setdefault(mine[0], []).append(module)
    for other in graph.find_modules_directly_imported_by(module):
        theirs = other.split(".")[1:2]
        if mine and theirs and mine != theirs:
            arrows.add((mine[0], theirs[0]))
reach = {p: {b for a, b in arrows if a == p} for p in places}
for _ in places:
    reach = {p: r | {c for b in r for c in reach[b]} for p, r in reach.items()}
print(json.dumps({
    "places": len(places), "rooms": sum(len(m) > 1 for m in places.values()), "modules": len(graph.modules),
    "arrows": len(arrows), "places in circles": sum(p in reach[p] for p in places),
}))
"""


def count(source: Path) -> dict[str, Any]:
    """The numbers of the package below ``source``."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"}, cwd=source,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def main() -> None:
    """Count, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a revision to compare with")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {"now": count(ROOT / "src")}
    if args.before:
        packed = subprocess.run(["git", "archive", args.before, "src"], cwd=ROOT, capture_output=True, check=True)
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
            files.extractall(folder, filter="data")
            found["before"] = count(Path(folder) / "src")
    for name, numbers in found.items():
        print(f"{name:7} {numbers}")
    if args.out:
        write_measured(args.out / "house.json", found)


if __name__ == "__main__":
    main()
