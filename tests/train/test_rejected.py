"""SFT runs the chosen pictures alone, unless the rejected ones are asked for or learned from."""

import shutil
import tomllib

import numpy as np
import pyarrow as pa
import pytest
import tomli_w
from test_train import metrics, run

from mapo.errors import MapoError
from mapo.pairs import PairSet
from mapo.pairs.pairs import replace_pairs
from mapo.report.curves import draw_curves, read_metrics
from mapo.train.objectives.trial import try_objective

GONE = {"error_rejected", "margin", "accuracy", "logit", "logit_scale"}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_sft_without_the_rejected_pictures_is_sft_with_them(tmp_path, sdxl, pairs, cache, kind, heard):
    how = {"steps": 3, "pairs_per_device": 3, "optim": {"lr": 1e-3, "eps": 1e-4}}
    with_them = run(tmp_path / "a", sdxl, pairs, cache, "sft", kind, measure_rejected=True, **how)
    assert "Rejected pictures are not run" not in heard()
    without = run(tmp_path / "b", sdxl, pairs, cache, "sft", kind, **how)
    assert "Rejected pictures are not run: sft does not learn from them. train.measure_rejected=true" in heard()
    for ours, theirs in zip(without, with_them, strict=True):
        assert theirs.keys() - ours.keys() == GONE
        for name in ("loss", "error_chosen", "grad_norm", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-9)


def test_half_as_many_pictures_go_through_the_model(tmp_path, sdxl, pairs, cache, monkeypatch):
    from mapo.models.families.sdxl import StableDiffusionXL

    seen, predict = [], StableDiffusionXL.predict

    def counted(self, denoiser, x_t, t, cond):
        seen.append(len(x_t))
        return predict(self, denoiser, x_t, t, cond)

    monkeypatch.setattr(StableDiffusionXL, "predict", counted)
    run(tmp_path / "a", sdxl, pairs, cache, "sft", steps=2)
    run(tmp_path / "b", sdxl, pairs, cache, "sft", steps=2, measure_rejected=True)
    run(tmp_path / "c", sdxl, pairs, cache, "sft", steps=1, measure_rejected=True, pair_by_pair=True)
    assert seen == [4, 4, 8, 8, 4, 4, 4]


def test_pairs_that_are_not_certain_have_their_rejected_pictures_run(tmp_path, sdxl, pairs, cache):
    graded = shutil.copytree(pairs, tmp_path / "pairs")
    table = PairSet(graded).table
    preference = pa.array(np.where(np.arange(len(table)) % 4, 1.0, 0.75))
    replace_pairs(graded, table.set_column(table.schema.get_field_index("preference"), "preference", preference))
    one = run(tmp_path / "a", sdxl, graded, tmp_path / "cache", "sft", steps=2)
    other = run(tmp_path / "b", sdxl, graded, tmp_path / "cache", "sft", steps=2, measure_rejected=True)
    assert [m["loss"] for m in one] == [m["loss"] for m in other] and one[0].keys() >= GONE


def test_a_run_of_an_older_version_goes_on_with_what_it_measured(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, "sft", steps=1, measure_rejected=True)
    settings = tmp_path / "r" / "config.toml"
    values = tomllib.loads(settings.read_text())
    for name in ("measure_rejected", "pair_by_pair"):
        del values["train"][name]
    settings.write_text(tomli_w.dumps(values))
    got = run(tmp_path / "r", sdxl, pairs, cache, "sft", steps=2)
    assert all(line.keys() >= GONE for line in got)
    got = run(tmp_path / "r", sdxl, pairs, cache, "sft", steps=3, measure_rejected=False)
    assert got[1].keys() >= GONE and not GONE & got[2].keys()


def test_curves_are_drawn_of_what_there_is(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, "sft", steps=3)
    (curve,) = draw_curves(read_metrics(tmp_path / "r"))
    assert curve.title == "Denoising error" and "chosen" in curve.note and "rejected" not in curve.note
    assert len(metrics(tmp_path / "r")) == 3


def test_an_objective_that_needs_what_it_says_it_does_not_is_refused(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from mapo.train.objectives import Objective\n"
        "alone = Objective(lambda errors: errors.chosen.double(), needs_rejected=False)\n"
        "wrong = Objective(lambda errors: errors.chosen.double() - errors.rejected.double(), needs_rejected=False)\n"
        "still = Objective(lambda errors: errors.chosen + errors.rejected.detach(), needs_rejected=False)\n"
    )
    assert try_objective(f"{file}:alone", {}) == []
    for name in ("wrong", "still"):
        with pytest.raises(MapoError, match=r"says needs_rejected=False, .* Leave needs_rejected out"):
            try_objective(f"{file}:{name}", {})
