"""One training, however it is cut up: five steps in float64 whose losses and gradients agree to 1e-9.

The plain run holds all pairs of a step at once, in one process, and reads the cache.
"""

import json

import pytest
import torch
from held import make_held_out
from safetensors.torch import load_file
from test_train import assert_same, metrics
from together import train_together

from mapo.encode.encoding import to_pixels
from mapo.encode.frame import square
from mapo.train.config import make_config
from mapo.train.train import train
from tiny import make_sd3

pytestmark = pytest.mark.long

PORTIONS = {"pairs_per_device": 1}
BEFORE = {"reference": "before"}
BY_PAIR = {"pair_by_pair": True, "pairs_per_device": 2}
SHARDED = {"shard": "fsdp2"}
UNEVEN = {"pairs_per_step": 3, "pairs_per_device": 1}  # so that two processes have two portions and one
ALONE = {  # name: model, objective, what is trained, settings
    "four portions": ("mapo", "full", PORTIONS),
    "three and one": ("mapo", "full", {"pairs_per_device": 3}),
    "checkpointed": ("mapo", "full", {"gradient_checkpointing": True}),
    "pair by pair": ("mapo", "full", BY_PAIR),
    "pair by pair, LoRA": ("mapo_relative", "lora", BY_PAIR),
    "pair by pair, what a step prepares": ("kto", "full", BY_PAIR),
    "pair by pair, extras": ("sdpo", "lora", BY_PAIR),
    "reference before": ("dpo", "full", {**BEFORE, "pairs_per_device": 3}),
    "reference before, LoRA": ("ipo", "lora", {**BEFORE, "pairs_per_device": 3}),
    "reference before, extras": ("sdpo", "lora", {**BEFORE, "pairs_per_device": 3}),
    "reference before, what a step prepares": ("kto", "full", {**BEFORE, "pairs_per_device": 3}),
}
TOGETHER = {  # name: model, objective, what is trained, settings
    "two processes": ("sdxl", "mapo", "full", {}),
    "two processes, flow": ("flow", "mapo", "full", {}),
    "uneven": ("sdxl", "kto", "full", UNEVEN),
    "reference before, pair by pair": ("flow", "dpo", "full", {**BEFORE, **BY_PAIR, **PORTIONS}),
    "sharded, with a reference": ("sdxl", "dpo", "full", SHARDED),
    "sharded, flow": ("flow", "mapo", "full", SHARDED),
    "sharded LoRA, checkpointed": ("sdxl", "mapo", "lora", {**SHARDED, "gradient_checkpointing": True}),
    "sharded LoRA, flow": ("flow", "dpo", "lora", SHARDED),
    "sharded, checkpointed": ("flow", "mapo", "full", {**SHARDED, "gradient_checkpointing": 2}),
    "sharded, uneven": ("flow", "kto", "full", {**SHARDED, **UNEVEN}),
    "sharded, reference before, pair by pair": ("flow", "dpo", "full", {**SHARDED, **BEFORE, **BY_PAIR, **PORTIONS}),
}
PLAIN_ONLY = ("pairs_per_step",)  # of the settings, what the plain run has too


@pytest.fixture(scope="module")
def given(tmp_path_factory, sdxl, pairs, cache):
    """Both models and their caches."""
    folder = tmp_path_factory.mktemp("equal")
    flow = make_sd3(folder / "sd3", t5=False)
    return {"pairs": pairs, "folder": folder, "sdxl": (sdxl, cache), "flow": (flow, folder / "cache")}


def values_of(given, model, objective, kind, settings):
    name, cache = given[model]
    return {
        "model": str(name), "pairs": str(given["pairs"]), "cache": str(cache), "objective": {"name": objective},
        "adapter": {"kind": kind, "rank": 4}, "optim": {"lr": 1e-3, "eps": 1e-4, "warmup_steps": 2},
        "train": {"steps": 5, "pairs_per_step": 4, "precision": "float64", **settings},
    }  # fmt: skip


@pytest.fixture(scope="module")
def plain(given):
    """The plain run of a model, an objective and an adapter, each trained once."""
    known = {}

    def of(model, objective, kind, settings):
        own = {key: value for key, value in settings.items() if key in PLAIN_ONLY}
        key = model, objective, kind, *own.items()
        if key not in known:
            out = given["folder"] / f"plain-{len(known)}"
            train(make_config(values_of(given, model, objective, kind, own)), out)
            known[key] = metrics(out)
        return known[key]

    return of


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("model", ["sdxl", "flow"])
def test_a_run_that_is_cut_up_otherwise_is_the_plain_one(tmp_path, given, plain, model, name):
    objective, kind, settings = ALONE[name]
    train(make_config(values_of(given, model, objective, kind, settings)), tmp_path / "r")
    one, other = metrics(tmp_path / "r"), plain(model, objective, kind, settings)
    assert_same(one, other)
    for ours, theirs in zip(one, other, strict=True):
        key = "margin_over_reference"
        assert (key in ours) == (objective not in ("mapo", "mapo_relative"))
        assert key not in ours or ours[key] == pytest.approx(theirs[key], rel=1e-9, abs=1e-12)
    if "reference" in settings:
        kept = load_file(tmp_path / "r" / "reference.safetensors")
        assert kept["chosen"].shape == kept["rejected"].shape == (20,)


class Encoded:
    """What stands in a cache's place: every picture and prompt is encoded when it is asked for, and nothing is kept."""

    def __init__(self, model, pairs):
        self.pairs, self.resolution = pairs, model.layout.side
        self.images, self.texts = model.image_encoder("cpu"), model.text_encoder("cpu")

    def seen(self, picture):
        return to_pixels(self.pairs.image(picture), square(self.resolution))

    def latents(self, picture, flip, to=None):
        pixels = self.seen(picture)[0][None]
        mean, logvar = self.images(pixels.flip(-1) if flip else pixels)
        return mean[0], logvar[0]

    def size(self, picture, to=None):
        return torch.tensor(self.seen(picture)[1], dtype=torch.int32)

    def text(self, prompt):
        return {name: value[0] for name, value in self.texts([prompt]).items()}

    def equal_pairs(self, chosen, rejected):
        return 0


@pytest.mark.parametrize("model", ["sdxl", "flow"])
def test_a_run_without_any_cache_is_that_with_one(tmp_path, given, monkeypatch, model):
    def encoded(config, opened, pairs, processes):
        return Encoded(opened, pairs)

    monkeypatch.setattr("mapo.train.prepare._open_cache", encoded)
    values = values_of(given, model, "mapo", "full", {})
    train(make_config({**values, "cache": str(tmp_path / "none"), "data": {"flip": True}}), tmp_path / "r")
    assert not (tmp_path / "none").exists()
    monkeypatch.undo()
    monkeypatch.setattr("mapo.encode.fill.PROMPTS_PER_IMAGE", 1)  # one at a time too, as encoders are in float32
    data = {"flip": True, "images_per_batch": 1}
    train(make_config({**values, "cache": str(tmp_path / "cache"), "data": data}), tmp_path / "cached")
    assert_same(metrics(tmp_path / "r"), metrics(tmp_path / "cached"))


ON = {"precision": "float32", "steps": 4, "save_every_steps": 2, "ema": 0.9}  # of runs that are taken up again


@pytest.fixture(scope="module")
def together(given, tmp_path_factory):
    """All runs of two processes, begun together: settings and folder of each."""
    folder = tmp_path_factory.mktemp("together")
    jobs = {name: (values_of(given, *case), folder / name) for name, case in TOGETHER.items()}
    sharded, half, alone = ({**ON, **SHARDED, **more} for more in ({}, {"steps": 2}, {"shard": "none"}))
    for name, kind in (("full", "full"), ("LoRA", "lora")):
        long, short, one = (values_of(given, "flow", "dpo", kind, how) for how in (sharded, half, alone))
        train(make_config({**one, "train": {**one["train"], "steps": 2}}), folder / f"{name}, one begins")
        jobs[f"{name}, whole"] = long, folder / f"{name}, whole"
        jobs[f"{name}, begins"] = short, folder / f"{name}, killed"
        jobs[f"{name}, goes on"] = long, folder / f"{name}, killed"
        jobs[f"{name}, for one"] = short, folder / f"{name}, two begin"
        jobs[f"{name}, two go on"] = long, folder / f"{name}, one begins"
    held = make_held_out(folder / "held", wide=12)
    given = {**given, "pairs": held, "flow": (given["flow"][0], folder / "cache-held")}
    how = {"evaluate_every": 2, "evaluate_pairs": 3, "ema": 0.9, **SHARDED}
    measured = values_of(given, "flow", "mapo", "full", how)
    jobs["measured"] = {**measured, "data": {"buckets": True}}, folder / "measured"
    train_together(folder, jobs.values())
    return {name: (values, out) for name, (values, out) in jobs.items()}


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_train_as_one(together, plain, name):
    assert_same(metrics(together[name][1]), plain(*TOGETHER[name]))


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_processes_that_share_the_model_go_on_as_if_they_had_never_stopped_to_the_bit(together, kind):
    whole, killed = (tensors_below(together[f"{kind}, {which}"][1]) for which in ("whole", "goes on"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
    assert sum("optimizer.safetensors" in name for name in whole) > sum(
        "/weights.safetensors" in name for name in whole
    )


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_another_number_of_processes_goes_on_whether_they_share_the_model_or_not(together, kind):
    """What two have saved one takes up, and the other way round."""
    values, two = together[f"{kind}, whole"]
    train(make_config(values), together[f"{kind}, for one"][1])
    whole = tensors_below(two)
    for name in ("for one", "two go on"):
        other = tensors_below(together[f"{kind}, {name}"][1])
        assert_same(metrics(together[f"{kind}, {name}"][1]), metrics(two), tolerance=1e-3)
        assert whole.keys() == other.keys()
        for key, tensor in whole.items():
            assert other[key].dtype == tensor.dtype and torch.allclose(other[key], tensor, rtol=1e-3, atol=1e-5), key


def test_held_out_pairs_are_measured_by_processes_that_share_the_model_as_by_one(tmp_path, together):
    """In frames of several shapes, with running means, and with fewer pairs than would be equal shares."""
    values, out = together["measured"]
    train(make_config(values), tmp_path / "r")
    assert_same(metrics(out), metrics(tmp_path / "r"))
    one, two = (
        [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "r", out)
    )
    assert [row["step"] for row in two] == [0, 2, 4, 5]
    for ours, theirs in zip(two, one, strict=True):
        for key in ("error_chosen", "error_rejected", "margin"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9)


def tensors_below(folder):
    """All tensors of a run: its weights and its last checkpoint."""
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
