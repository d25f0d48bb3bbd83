import re

import numpy as np
import pytest

from mapo.errors import MapoError
from mapo.report.curves import draw_curves, read_metrics, smooth


def test_a_broken_line_is_refused_and_a_half_written_last_one_is_not(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 101, "mar')
    assert len(read_metrics(run)["margin"]) == 100
    path.write_text('{"step": 1\n' + path.read_text())
    with pytest.raises(MapoError, match="line 1 is not JSON"):
        read_metrics(run)


def test_only_what_a_run_recorded_is_drawn(run):
    metrics = read_metrics(run)
    (curve,) = draw_curves({n: metrics[n] for n in ("pairs_seen", "error_chosen")})
    assert curve.title == "Denoising error" and "rejected" not in curve.note
    assert draw_curves({"loss": metrics["loss"]}) == []


def test_curves_take_their_colours_from_the_page(run):
    for curve in draw_curves(read_metrics(run)):
        assert "var(--ink)" in curve.svg or "var(--after)" in curve.svg
        assert not re.search(r"#(010203|040506|070809|0a0b0c|0d0e0f|000000)", curve.svg)


def test_a_long_run_makes_no_larger_page(tmp_path, run):
    metrics = read_metrics(run)
    long = {n: np.resize(v, 50_000) for n, v in metrics.items()}
    assert sum(len(c.svg) for c in draw_curves(long)) < 150_000


def test_smoothing_keeps_a_constant_and_averages_neighbours():
    assert smooth(np.full(7, 0.3), 2) == pytest.approx(np.full(7, 0.3))
    assert smooth(np.array([0.0, 3.0, 0.0, 0.0]), 1) == pytest.approx([1.5, 1, 1, 0])
