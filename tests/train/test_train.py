import json
import math
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mapo.errors import MapoError
from mapo.train.config import make_config
from mapo.train.objectives import OBJECTIVES
from mapo.train.train import Run, train
from tiny import make_pairs

BASE = {"optim": {"lr": 1e-3, "warmup_steps": 2}, "train": {"steps": 4, "pairs_per_step": 4, "precision": "float64"}}


def run(out: Path, model, pairs, cache=None, objective="mapo", kind="full", allow_change=False, **train_settings):
    values = {
        "model": str(model),
        "pairs": str(pairs),
        "objective": {"name": objective} if isinstance(objective, str) else objective,
        "adapter": {"kind": kind, "rank": 4},
        "optim": {**BASE["optim"], **train_settings.pop("optim", {})},
        "data": train_settings.pop("data", {}),
        "train": {**BASE["train"], **train_settings},
    }
    if cache:
        values["cache"] = str(cache)
    train(make_config(values), out, allow_change=allow_change)
    return metrics(out)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: list[dict], two: list[dict], tolerance=1e-9):
    assert [m["step"] for m in one] == [m["step"] for m in two]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "error_chosen", "error_rejected", "margin", "accuracy", "grad_norm", "lr", "pairs_seen"):
            if key == "accuracy" and abs(a.get("margin_over_reference", 1)) < 1e-7:
                continue  # of a model that still is its reference rounding alone says which margin has grown
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=1e-12), (a["step"], key)


@contextmanager
def power_cut(after: int):
    """Inside, a training ends as soon as it has written the line of that step."""

    def cut(run_folder, values, log_step=Run.log_step):
        log_step(run_folder, values)
        if values["step"] == after:
            raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Run, "log_step", cut)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sdxl, pairs, cache):
    """Four uninterrupted steps of four pairs at a time."""
    return run(tmp_path_factory.mktemp("whole") / "run", sdxl, pairs, cache)


def test_a_run_that_goes_on_is_the_uninterrupted_run(tmp_path, sdxl, pairs, cache, whole):
    first = run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    assert_same(first, whole[:2])
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, steps=4), whole)


def test_a_run_cut_off_between_checkpoints_goes_on_from_the_last_one(tmp_path, sdxl, pairs, cache, whole):
    with power_cut(after=3):
        run(tmp_path / "r", sdxl, pairs, cache, save_every_steps=2)
    assert [m["step"] for m in metrics(tmp_path / "r")] == [1, 2, 3]
    assert not (tmp_path / "r" / "run.json").exists()
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, save_every_steps=2), whole)


@pytest.mark.long
def test_two_processes_of_torchrun_train_as_one(tmp_path, sdxl, pairs, cache, whole):
    script = tmp_path / "go.py"
    script.write_text(
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']\n"
        "from pathlib import Path\nfrom test_train import run\n"
        "run(Path(sys.argv[5]), sys.argv[2], sys.argv[3], sys.argv[4])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", str(script), str(Path(__file__).parent)]
    import os

    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(sdxl), str(pairs), str(cache), str(tmp_path / "r")],
        capture_output=True,
        text=True,
        timeout=240,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(metrics(tmp_path / "r"), whole, tolerance=1e-6)


@pytest.fixture(scope="module")
def cache_v(tmp_path_factory):
    """The cache of ``sdxl_v``, which its first training fills."""
    return tmp_path_factory.mktemp("caches") / "cache-v"


@pytest.mark.parametrize(
    ("objective", "kind"),
    [(name, ("full", "lora")[k % 2]) for k, name in enumerate(OBJECTIVES)] + [("dpo", "full"), ("dpo", "lora")],
)  # each with each: test_matrix.py
def test_every_objective_trains_and_gives_a_model(tmp_path, sdxl_v, pairs, cache_v, objective, kind):
    from mapo.models import find_model, open_model

    got = run(tmp_path / "r", sdxl_v, pairs, cache_v, objective, kind, steps=2, optim={"lr": 1e-2})
    assert all(math.isfinite(v) for m in got for v in m.values())
    if objective == "dpo":
        assert got[0]["margin_over_reference"] == pytest.approx(0, abs=1e-12)
        assert got[0]["loss"] == pytest.approx(math.log(2))
        assert got[1]["loss"] != pytest.approx(math.log(2), abs=1e-9)
    before, after = (
        open_model(find_model(str(model))).denoiser("cpu", torch.float32).state_dict()
        for model in (sdxl_v, tmp_path / "r")
    )
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved
    if kind == "lora":
        assert all(".to_" in name for name in moved)


def test_a_lora_run_as_a_model_is_the_denoiser_that_was_trained(tmp_path, sdxl, pairs, cache):
    from diffusers import StableDiffusionXLPipeline

    from mapo.models import find_model, open_model

    run(tmp_path / "r", sdxl, pairs, cache, kind="lora", optim={"lr": 1e-2})
    ours = open_model(find_model(str(tmp_path / "r"))).denoiser("cpu", torch.float32)
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    pipeline.load_lora_weights(tmp_path / "r" / "weights")
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    cond = {"text_embeds": torch.randn(1, 24), "time_ids": torch.ones(1, 6)}
    states = torch.randn(1, 32, 40)
    with torch.no_grad():
        a = ours(x, t, states, added_cond_kwargs=cond).sample
        b = pipeline.unet(x, t, states, added_cond_kwargs=cond).sample
    assert torch.allclose(a, b, atol=1e-5)


def test_the_margin_grows_on_the_pairs_that_are_trained_on(tmp_path, sdxl):
    pairs = make_pairs(tmp_path / "pairs", count=4)
    got = run(tmp_path / "r", sdxl, pairs, steps=30, pairs_per_step=4, precision="float32", optim={"lr": 3e-3})
    early, late = (sum(m["error_chosen"] for m in part) / 5 for part in (got[:5], got[-5:]))
    assert late < early


def test_weights_of_pairs_scale_their_share(tmp_path, sdxl, cache, pairs, whole):
    heavy = make_pairs(tmp_path / "pairs", weight=3.0)
    got = run(tmp_path / "r", sdxl, heavy, tmp_path / "cache")
    assert_same(got, whole)  # equal weights, whatever their size, are the plain mean


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    with pytest.raises(MapoError, match=r"other settings \(optim.lr\)"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=2, optim={"lr": 5e-4})
    with pytest.raises(MapoError, match="the content of pairs"):
        run(tmp_path / "r", sdxl, make_pairs(tmp_path / "other", seed=9), tmp_path / "c2", steps=2)


def test_a_refused_run_does_not_bind_its_folder(tmp_path, sdxl, pairs, cache):
    with pytest.raises(MapoError, match="data.resolution is 50"):
        run(tmp_path / "r", sdxl, pairs, data={"resolution": 50})
    assert not (tmp_path / "r").exists()
    with pytest.raises(MapoError, match="encoded with resolution"):
        run(tmp_path / "r", sdxl, pairs, cache, data={"resolution": 32})
    assert len(run(tmp_path / "r", sdxl, pairs, cache, steps=1)) == 1


def test_a_cache_of_another_resolution_is_refused(tmp_path, sdxl, pairs, cache):
    with pytest.raises(MapoError, match="encoded with resolution 16, this run asks for 32"):
        run(tmp_path / "r", sdxl, pairs, cache, data={"resolution": 32})


def test_unknown_objectives_and_knobs_are_named(tmp_path, sdxl, pairs, cache):
    with pytest.raises(MapoError, match=r"no objective 'mappo'. Did you mean 'mapo'"):
        run(tmp_path / "r", sdxl, pairs, cache, objective="mappo")
    with pytest.raises(MapoError, match=r"no setting 'bta'. Did you mean 'beta'"):
        run(tmp_path / "r", sdxl, pairs, cache, objective={"name": "mapo", "bta": 1.0})
    assert not (tmp_path / "r").exists()


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_pairs(tmp_path, sdxl, pairs, cache):
    """There is no advice to take a precision that is taken already."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "cache"
    broken.mkdir()
    for path in cache.iterdir():
        if path.name.startswith("latents"):
            tensors = load_file(path)
            save_file({k: v * math.nan if k.endswith("|0") else v for k, v in tensors.items()}, broken / path.name)
        else:
            (broken / path.name).write_bytes(path.read_bytes())
    says = r"Step 1: the loss is not finite for 4 pairs: [0-9a-f]{16} \(timestep \d+\).* try a lower optim.lr\. Nothing"
    with pytest.raises(MapoError, match=says):
        run(tmp_path / "r", sdxl, pairs, broken)
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_flip_mirrors_both_pictures_of_a_pair_or_none(tmp_path, sdxl, pairs):
    from mapo.encode.cache import Cache, cache_key
    from mapo.encode.fill import encode
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet
    from mapo.train.batches import assemble, draws

    model = open_model(find_model(str(sdxl)))
    opened = PairSet(pairs)
    encode(model, opened, tmp_path / "c", flip=True)
    cache = Cache(tmp_path / "c", cache_key(model, flip=True))
    rows = list(opened)
    mirrored, plain = (
        assemble(rows, draws(range(12), 12, model.process, (4, 8, 8), seed=3, flip=flip), cache, model)
        for flip in (True, False)
    )
    changed = (mirrored.latents != plain.latents).flatten(1).any(1)
    assert torch.equal(changed[:12], changed[12:])
    assert 0 < changed[:12].sum() < 12


def test_ties_are_left_out_and_counted(tmp_path, sdxl, heard):
    from PIL import Image

    from mapo.pairs import PairWriter
    from mapo.sample.folder import png_bytes

    def grey(value):
        return png_bytes(Image.new("RGB", (16, 16), (value,) * 3))

    with PairWriter(tmp_path / "pairs", {}) as writer:
        writer.add_pair("one", grey(1), grey(2), split="train")
        writer.add_pair("two", grey(3), grey(4), split="train", preference=0.5)
    got = run(tmp_path / "r", sdxl, tmp_path / "pairs", steps=3)
    assert "1 tie left out" in heard() and len(got) == 3
    with pytest.raises(MapoError, match="other settings"):
        run(tmp_path / "r", sdxl, tmp_path / "pairs", steps=4, optim={"lr": 5e-4})
    assert "ties" not in heard()  # what is refused says nothing else first
    with PairWriter(tmp_path / "ties", {}) as writer:
        writer.add_pair("two", grey(3), grey(4), split="train", preference=0.5)
    with pytest.raises(MapoError, match="no pairs but 1 tie in"):
        run(tmp_path / "s", sdxl, tmp_path / "ties")


def test_a_tie_that_is_kept_is_trained_on_as_a_tie(tmp_path, sdxl, heard):
    from PIL import Image

    from mapo.pairs import PairWriter
    from mapo.sample.folder import png_bytes

    pictures = [png_bytes(Image.new("RGB", (16, 16), (value,) * 3)) for value in (10, 200)]
    losses = []
    for sure in (0.5, 0.75, 1.0):
        with PairWriter(tmp_path / f"{sure}", {}) as writer:
            writer.add_pair("one", *pictures, split="train", preference=sure)
        got = run(tmp_path / f"run{sure}", sdxl, tmp_path / f"{sure}", steps=1, data={"ties": "keep"})
        losses.append(got[0]["loss"])
    assert "1 tie kept" in heard()
    tie, half_sure, certain = losses
    assert abs(tie - certain) > 1e-3
    assert half_sure == pytest.approx((tie + certain) / 2, rel=1e-9)  # the loss is linear in the preference


def test_bfloat16_training_stays_close_to_float32(tmp_path, sdxl, pairs, cache):
    full = run(tmp_path / "a", sdxl, pairs, cache, precision="float32")
    half = run(tmp_path / "b", sdxl, pairs, cache, precision="bfloat16")
    for one, other in zip(full, half, strict=True):
        assert one["error_chosen"] == pytest.approx(other["error_chosen"], rel=0.02)
    assert full[0]["error_chosen"] != half[0]["error_chosen"]


def test_pairs_that_are_equal_once_cropped_are_counted_before_training(tmp_path, sdxl, heard):
    from PIL import ImageDraw

    from data_fixtures import encoded, noise
    from mapo.pairs import PairWriter

    def wide(seed, end, dot=None):
        picture = noise(seed, (64, 16))
        ImageDraw.Draw(picture).rectangle([0, 0, 6, 16], fill=end)
        if dot:
            picture.putpixel((32, 8), dot)
        return encoded(picture)

    with PairWriter(tmp_path / "set", {}) as writer:
        for k in range(11):
            writer.add_pair(f"equal {k}", wide(k, "red"), wide(k, "blue"), split="train")
        writer.add_pair("differs", wide(50, "red", (0, 0, 0)), wide(50, "blue", (40, 0, 0)), split="train")
        writer.add_pair("square", encoded(noise(1, (16, 16))), encoded(noise(2, (16, 16))), split="train")
        writer.add_pair("held out", wide(60, "red"), wide(60, "blue"), split="test")
    run(tmp_path / "run", sdxl, tmp_path / "set", steps=1)
    said = heard()
    assert "11 pairs of these show the same picture twice once cropped" in said and "`mapo check` names them" in said
    run(tmp_path / "run", sdxl, tmp_path / "set", steps=2)
    assert "twice once cropped" not in heard()
