"""bench/style.py: what it draws, and the tables that it makes of a few lines."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parent.parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("style"), importlib.import_module("style_tables")


def line(objective, seed, shown, followed, near, *, style="cartoon"):
    digits = {name: "".join(map(str, flags)) for name, flags in (("reached", shown), ("followed", followed))}
    look = {f"{name} {judge}": text for name, text in digits.items() for judge in ("mini-search", "mini-learned")}
    look |= {"steps": 120, "prompts": [4, 4], "same": True, "bits": near, "bits to others": [30] * 4, "copies": False}
    settings = {} if objective == "none" else {"lr": 1e-3}
    asked = {"style": style, "drawings": 50, "seed": seed, "objective": objective, "settings": settings}
    return {**asked, "steps": [120], "seconds": 1.0, "looks": [look]}


def test_the_tables_compare_objectives_on_the_seeds_that_all_have(bench, tmp_path):
    _, tables = bench
    rows = []
    for seed in (0, 1):
        rows.append(line("none", seed, [0] * 4, [1, 1, 1, 0], [30] * 4))
        rows.append(line("mapo", seed, [1] * 4, [1, 1, 1, 0], [30, 30, 5, 5]))
        rows.append(line("sft", seed, [1, 1, 0, 0], [1, 1, 0, 0], [30] * 4))
        rows.append(line("dpo", seed, [0] * 4, [0] * 4, [30] * 4))
    rows.append(line("mapo", 2, [0] * 4, [0] * 4, [30] * 4))
    rows.append(line("mapo", 0, [1] * 4, [1] * 4, [30] * 4, style="low poly"))
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables.write_tables(tmp_path)
    cells = tables.read_cells(tmp_path / "runs.jsonl")
    assert {key[0] for key in cells} == {"cartoon"} and {len(looks) for looks in cells.values()} == {2}
    assert (
        tables.change(cells["cartoon", 50, "sft"], cells["cartoon", 50, "none"], "mini-search", "followed").value
        == -0.25
    )
    assert np.mean(tables.shares_near(cells["cartoon", 50, "mapo"])) == 0.5
    text = (tmp_path / "tables.md").read_text()
    assert "| cartoon | 50 | MaPO | 2 | 100 [" in text and "low poly" not in text
    assert "| cartoon | 50 | SFT (plain LoRA) | +25 [" in text


def test_tables_are_written_from_nothing(bench, tmp_path):
    bench[1].write_tables(tmp_path)
    assert (tmp_path / "tables.md").read_text().startswith("# A style")


def test_more_drawings_begin_with_the_same_and_other_styles_show_the_same(bench, tmp_path):
    style, _ = bench
    few, many = style.own_drawings("cartoon", 3, 0), style.own_drawings("cartoon", 5, 0)
    assert [caption for caption, _ in many[:3]] == [caption for caption, _ in few]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(few, many, strict=False))
    other = style.own_drawings("low poly", 3, 0)
    assert [caption for caption, _ in other] == [caption for caption, _ in few]
    assert not np.array_equal(other[0][1], few[0][1])
    assert [caption for caption, _ in style.own_drawings("cartoon", 3, 1)] != [caption for caption, _ in few]
    own = style.write_drawings(tmp_path / "own", "cartoon", 3, 0)
    assert [one.path.with_suffix(".txt").read_text() for one in own] == [caption for caption, _ in few]


def test_what_is_measured_is_balanced_wherever_it_ends(bench):
    style, _ = bench
    cases = style.cases()
    assert len(set(cases)) == len(cases) == 21
    for name in ("cartoon", "pixel art", "low poly"):
        assert [seed for found, number, seed in cases if (found, number) == (name, 50)] == [*style.SEEDS]
