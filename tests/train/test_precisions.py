"""Precisions of the frozen base, of the arithmetic and of the cache."""

import json

import pytest
import torch
from test_train import run

from mapo.errors import MapoError


@pytest.mark.parametrize("base", ["bfloat16", "float16"])
def test_a_lora_beside_a_base_in_half_precision_trains_in_float32(tmp_path, sdxl, pairs, cache, base):
    train = {"precision": "float32", "steps": 3, "optim": {"lr": 1e-2}}
    plain = run(tmp_path / "plain", sdxl, pairs, cache, kind="lora", **train)
    half = run(tmp_path / "half", sdxl, pairs, cache, kind="lora", **train, base_precision=base)
    for one, other in zip(plain, half, strict=True):
        assert one["loss"] != other["loss"]
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.2)
    from safetensors.torch import load_file

    for folder in ("checkpoints/step-00000003/weights.safetensors", "weights/pytorch_lora_weights.safetensors"):
        ours, theirs = (load_file(tmp_path / name / folder) for name in ("half", "plain"))
        assert {t.dtype for t in ours.values()} == {torch.float32}
        assert all(torch.allclose(ours[k], theirs[k], atol=7e-2) for k in ours)
    assert (
        run(tmp_path / "half", sdxl, pairs, cache, kind="lora", **{**train, "steps": 4}, base_precision=base)[:3]
        == half
    )


def test_the_base_precision_has_no_effect_on_full_training_and_is_part_of_the_run(tmp_path, sdxl, pairs, cache):
    plain = run(tmp_path / "plain", sdxl, pairs, cache, precision="float32", steps=1)
    other = run(tmp_path / "other", sdxl, pairs, cache, precision="float32", steps=1, base_precision="bfloat16")
    same = [{k: v for k, v in m.items() if "second" not in k and k != "memory"} for m in (*plain, *other)]
    assert same[0] == same[1]
    run(tmp_path / "lora", sdxl, pairs, cache, kind="lora", precision="float32", steps=1)
    with pytest.raises(MapoError, match=r"other settings \(train.base_precision\)"):
        run(tmp_path / "lora", sdxl, pairs, cache, kind="lora", precision="float32", steps=2, base_precision="bfloat16")


def test_the_scale_of_a_half_precision_loss_is_taken_out_again_to_the_bit():
    from mapo.train.sections import OptimConfig
    from mapo.train.weights.updater import AtEnd

    moved = []
    for scale in (1.0, 1024.0):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 7))
        updater = AtEnd({"p": parameter}, OptimConfig(lr=0.1), 10, scale)
        updater.begin(0)
        updater.backward((parameter.sin() * 3).sum())
        moved.append((updater.end(torch.tensor(True)), parameter.detach().clone()))
    assert moved[0][0] == moved[1][0] and torch.equal(moved[0][1], moved[1][1])


def test_a_cache_in_half_precision_is_half_as_large_and_trains_nearly_alike(tmp_path, sdxl, pairs, cache):
    sizes, runs = {}, {}
    for precision in ("float32", "bfloat16", "float16"):
        folder = tmp_path / precision
        data = {"cache_precision": precision}
        runs[precision] = run(tmp_path / f"run-{precision}", sdxl, pairs, folder, data=data)
        sizes[precision] = sum(f.stat().st_size for f in folder.glob("*-*.safetensors"))
        head = json.loads((folder / "cache.json").read_text())["key"]
        assert head.get("precision", "float32") == precision
        for one, other in zip(runs["float32"], runs[precision], strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert sizes["float16"] == pytest.approx(sizes["bfloat16"], abs=200) and sizes["float16"] < 0.7 * sizes["float32"]
    with pytest.raises(MapoError, match=r"was encoded with precision float32, this run asks for float16"):
        run(tmp_path / "x", sdxl, pairs, cache, data={"cache_precision": "float16"})


@pytest.mark.parametrize(
    ("precision", "base"), [("bfloat16", "float16"), ("float64", "bfloat16"), ("float64", "float16")]
)
def test_precisions_that_do_not_go_together_are_refused(tmp_path, sdxl, pairs, cache, precision, base):
    with pytest.raises(MapoError, match=f"base_precision={base} does not go together with train.precision={precision}"):
        run(tmp_path / "r", sdxl, pairs, cache, kind="lora", precision=precision, base_precision=base)
