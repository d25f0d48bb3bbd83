"""Small folders of pictures and scores, and a reader of the page that is made from them."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mapo.files import sha256
from mapo.report.report import write_report
from mapo.sample.folder import ImageRow, append_images, png_bytes
from mapo.score.table import SCHEMA


def picture(*words):
    """A 4 by 4 picture that is different for different words."""
    return Image.fromarray(
        np.frombuffer(bytes.fromhex(sha256(repr(words).encode()))[:16] * 3, np.uint8).reshape(4, 4, 3)
    )


def make_images(folder, side, prompts, seeds=(0, 1), pictures=picture, **changes):
    rows, data = [], []
    for prompt in prompts:
        for seed in seeds:
            png = png_bytes(pictures(side, prompt, seed))
            name = sha256(prompt.encode())[:12]
            row = ImageRow(
                file=f"{name}-{seed}.png", prompt_id=name, prompt=prompt, seed=seed, noise_seed=seed,
                sha256=sha256(png), model=f"model-{side}", sampler="euler", steps=16, guidance=3.0, width=4, height=4,
            )  # fmt: skip
            rows.append(replace(row, **changes))
            data.append(png)
    append_images(folder, rows, data)
    return rows


def score_rows(images, give, scorer="mini-search", metric="cartoon", **changes):
    return [
        {
            "image": row.sha256, "prompt_id": row.prompt_id, "prompt": row.prompt, "seed": row.seed, "model": row.model,
            "scorer": scorer, "metric": metric, "version": "1", "revision": "r1", "reference": None,
            "value": None if (value := give(i)) is None else float(value), **changes,
        }
        for i, row in enumerate(images)
    ]  # fmt: skip


class World:
    """Two folders of 15 prompts by 2 seeds, scored by mini-search: nothing is a cartoon before, most after."""

    def __init__(self, root, prompts=15, pictures=picture, **changes):
        self.root = root
        self.prompts = [f"prompt {i}" for i in range(prompts)]
        size = {k: v for k, v in changes.items() if k in ("width", "height")}
        self.before = make_images(root / "before", "before", self.prompts, pictures=pictures, **size)
        self.after = make_images(root / "after", "after", self.prompts, **{"pictures": pictures, **changes})
        self.rows = score_rows(self.before, lambda i: 0) + score_rows(self.after, lambda i: i % 10 != 0)

    def add(self, before, after, **names):
        self.rows += score_rows(self.before, before, **names) + score_rows(self.after, after, **names)
        return self

    def vote(self, name, choices, annotator="ann", **changes):
        """Write votes on the first pairs, in order: before, after, tie, bad or skip; those of a file are added to."""
        rows = []
        for place, choice in enumerate(choices):
            first, second = self.before[place], self.after[place]
            left, right = (first, second) if place % 2 else (second, first)
            picked = {"before": first, "after": second}.get(choice)
            said = choice if picked is None else "left" if picked is left else "right"
            rows.append({
                "time": "2026-01-01T00:00:00.000+00:00", "annotator": annotator, "pair": f"{first.prompt_id}-{first.seed}",
                "left": left.sha256, "right": right.sha256, "vote": said, "before": first.sha256,
                "after": second.sha256, "prompt_id": first.prompt_id, "seed": first.seed, **changes,
            })  # fmt: skip
        with (self.root / name).open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        return self.root / name

    def report(self, goal="cartoon", **options):
        pq.write_table(pa.Table.from_pylist(self.rows, SCHEMA), self.root / "scores.parquet")  # nulls and NaN too
        out = self.root / "report.html"
        summary = write_report(
            self.root / "before", self.root / "after", [self.root / "scores.parquet"], out, goal, **options
        )
        self.page = out.read_text("utf-8")
        return summary


class Parsed(HTMLParser):
    """Every element's name and attributes, and all text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def cards(self):
        return [a for tag, a in self.elements if tag == "button" and a.get("class", "").startswith("card")]
