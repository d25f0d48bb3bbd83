"""The picture of the README: prompts of a demo folder before (above) and after (below).

python bench/before_after.py demo docs/before-after.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mapo.sample.folder import read_images

COLUMNS, ZOOM, GAP = 12, 2, 2


def main() -> None:
    """One picture of each of the first prompts, in two rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    demo: Path = args.demo
    rows = []
    for side in ("before", "after"):
        images = [row for row in read_images(demo / side) if row.seed == 0][:COLUMNS]
        pictures = [np.asarray(Image.open(demo / side / row.file)) for row in images]
        framed = [np.pad(p, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255) for p in pictures]
        rows.append(np.concatenate(framed, 1))
    sheet = Image.fromarray(np.concatenate(rows, 0))
    sheet.resize((sheet.width * ZOOM, sheet.height * ZOOM), Image.Resampling.NEAREST).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
