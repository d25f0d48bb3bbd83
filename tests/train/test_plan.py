"""What a training needs, known before it begins."""

import json
import math
import re
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel
from test_train import assert_same, run

from mapo.api import plan
from mapo.cli import cli
from mapo.encode import fill
from mapo.errors import MapoError
from mapo.pairs import PairSet
from mapo.settings import nested, parse_set
from mapo.train import reference
from mapo.train.config import make_config
from mapo.train.loop import Loop
from mapo.train.plan import at_hand
from mapo.train.plan import plan as plan_module
from mapo.train.plan.at_hand import told_when_full
from mapo.train.plan.fit import LATER, changed, smallest_change
from mapo.train.plan.machine import SPARE, SPARE_BYTES, parse_size, room_of, shown
from mapo.train.plan.plan import Change
from mapo.train.plan.subject import Subject, open_subject
from mapo.train.run.changes import MAY_CHANGE, MUST_STAY
from mapo.train.run.folder import Run, settled
from tiny import MAKERS, make_sdxl

SPLIT = {"data.split": "all", "train.pairs_per_step": 4}


def tight(whole):
    """A size into which a training just does not fit."""
    room = whole.memory if torch.cuda.is_available() else whole.memory * (1 + SPARE) + SPARE_BYTES
    return f"{room - 2**12:.0f}"


def planned(model, pairs, **how):
    settings = {**SPLIT, **how.pop("settings", {})}
    return plan(model=model, pairs=pairs, settings=settings, **how)


def test_a_script_hears_whether_a_training_fits_by_the_exit_code(sdxl, pairs, monkeypatch):
    monkeypatch.setattr(plan_module, "smallest_change", lambda *given, **how: None)  # whose search takes a while
    words = ["plan", "--model", str(sdxl), "--pairs", str(pairs), "--set", "data.split=all", "--memory"]
    fits, not_fits = (CliRunner().invoke(cli, [*words, size]) for size in ("100GB", "1MB"))
    assert (fits.exit_code, not_fits.exit_code) == (0, 1)
    assert "It fits." in fits.stdout and "It does not fit." in not_fits.stdout


def parameters_of(model, part="unet"):
    from safetensors import safe_open

    (file,) = (model / part).glob("*.safetensors")
    with safe_open(file, "pt") as held:
        return sum(math.prod(held.get_slice(key).get_shape()) for key in held.keys())  # noqa: SIM118


def test_the_bytes_of_full_training_are_those_that_can_be_counted_by_hand(sdxl, pairs):
    number = parameters_of(sdxl)
    found = planned(sdxl, pairs)
    assert (found.parameters, found.trained) == (number, number)
    assert found.kinds["trained"] == 4 * number
    tensors = sum(1 for _ in _denoiser(sdxl).parameters())
    assert found.kinds["optimizer"] in (8 * number, 8 * number + 4 * tensors)  # and the number of steps of each
    assert "mapped" not in found.kinds and "reference" not in found.kinds and "mean" not in found.kinds


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_an_optimizer_that_compiles_its_step_is_planned_too(sdxl, pairs):
    number = parameters_of(sdxl)
    found = planned(sdxl, pairs, settings={"optim.name": "adamw8bit"}).kinds["optimizer"]
    assert 2 * number < found < 8 * number  # two moments of a byte each, but for small tensors


def _denoiser(model):
    from mapo.models import find_model, open_model

    return open_model(find_model(str(model))).outline("unet")


def test_a_lora_leaves_the_frozen_weights_in_their_file_unless_they_are_rounded(sdxl, pairs):
    number = parameters_of(sdxl)
    found = planned(sdxl, pairs, adapter="lora")
    assert found.kinds["mapped"] == 4 * number and found.own_memory == found.memory - 4 * number
    assert found.trained < number < found.parameters
    half = planned(sdxl, pairs, adapter="lora", settings={"train.base_precision": "bfloat16"})
    assert half.kinds["weights"] == 2 * number and "mapped" not in half.kinds


@pytest.mark.parametrize(
    ("settings", "kind", "bytes_each"),
    [
        ({"train.ema": 0.99}, "mean", 4),
        ({"train.weights": "bfloat16-master"}, "trained", 6),
        ({"train.weights": "bfloat16-stochastic"}, "trained", 2),
        ({"objective.name": "dpo"}, "reference", 4),
    ],
)
def test_each_setting_has_its_bytes_for_each_number(sdxl, pairs, settings, kind, bytes_each):
    assert planned(sdxl, pairs, settings=settings).kinds[kind] == bytes_each * parameters_of(sdxl)


def test_levers_take_away_what_they_are_there_for(sdxl, pairs):
    plain = planned(sdxl, pairs)
    assert planned(sdxl, pairs, settings={"optim.name": "adafactor"}).kinds["optimizer"] < plain.kinds["optimizer"] / 4
    before = {"objective.name": "dpo", "train.reference": "before"}
    assert "reference" not in planned(sdxl, pairs, settings=before).kinds
    lora = planned(sdxl, pairs, adapter="lora")
    for less in ({"train.gradient_checkpointing": True}, {"train.pair_by_pair": True}):
        assert planned(sdxl, pairs, adapter="lora", settings=less).kinds["activations"] < lora.kinds["activations"]


def test_what_is_rehearsed_is_what_a_step_on_the_device_holds(sdxl, pairs, cache):
    """The same loop with numbers on the CPU, followed in the same way."""
    from mapo.encode.cache import Cache, cache_key
    from mapo.encode.frame import square
    from mapo.train.loop import Loop
    from mapo.train.plan.live import Live
    from mapo.train.plan.rehearsal import rehearse
    from mapo.train.processes.processes import Place, Processes
    from mapo.train.weights.opening import open_trained

    class Counted(Live):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                return func(*args, **(kwargs or {}))
            return super().__torch_dispatch__(func, types, args, kwargs)

    values = {"model": str(sdxl), "pairs": str(pairs), "adapter": {"kind": "lora"}, "data": {"split": "all"}}
    config = settled(make_config({**values, "train": {"pairs_per_step": 4, "steps": 9}}), None)
    subject = open_subject(config, "cpu")
    side = subject.model.layout.side
    cpu = Processes(Place(), torch.device("cpu"))
    trained = open_trained(config, subject.model, subject.objective, cpu, None)
    known = Cache(cache, cache_key(subject.model))
    loop = Loop(config, subject.objective, cpu, subject.members, known, trained)
    batches = [[loop.batch_at(places) for places in loop.micro_batches(step)] for step in range(2)]
    loop.one_step(0, iter(batches[0]))
    with Counted(torch.device("cpu")) as live:
        loop.one_step(1, iter(batches[1]))
    found = rehearse(config, subject.model, subject.objective, subject.members, [square(side)], "cpu")
    held = sum(size for kind, size in found.kinds.items() if kind in ("activations", "gradients", "update"))
    assert held == pytest.approx(live.peak, rel=0.01)


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_every_family_can_be_planned_from_its_small_files_alone(tmp_path, family, pairs):
    model = MAKERS[family](tmp_path / "model")
    for file in model.glob("*/*.safetensors"):
        file.unlink()
    found = planned(model, pairs, adapter="lora", settings={"train.allow_distilled": True})
    assert found.fits and found.kinds["activations"] > 0 and found.trained > 0
    checkpointed = {"train.gradient_checkpointing": True, "train.precision": "bfloat16"}
    less = planned(model, pairs, adapter="lora", settings={"train.allow_distilled": True, **checkpointed})
    assert less.kinds["activations"] < found.kinds["activations"]


def test_the_smallest_change_is_one_lever_where_one_is_enough_and_it_fits(sdxl, pairs):
    whole = planned(sdxl, pairs, settings={"train.pairs_per_step": 64})
    found = planned(sdxl, pairs, settings={"train.pairs_per_step": 64}, memory=tight(whole))
    assert not found.fits and found.change is not None
    assert found.change.settings == {"train.pairs_per_device": 32}
    again = planned(sdxl, pairs, settings={"train.pairs_per_step": 64, **found.change.settings})
    assert again.memory == found.change.memory <= whole.memory - 1
    assert "--set train.pairs_per_device=32" in found.lines()[-1]
    if not torch.cuda.is_available():
        assert found.lines()[-1].startswith("It may not fit: a tenth and 200 MiB have to be left. The smallest change")


LORA = {"adapter.kind": "lora", "train.base_precision": "bfloat16"}


class Weighed(Subject):
    """Takes what a few of its settings say, without a rehearsal: for the search alone."""

    def memory(self, config):
        train = config.train
        images = 2 * min(train.pairs_per_device or train.pairs_per_step, train.pairs_per_step)
        held = images // (2 if train.pair_by_pair else 1) * (1 if train.gradient_checkpointing else 4)
        return held + (100 if config.optim.name == "adafactor" else 300 if config.adapter.kind == "full" else 90)


@pytest.mark.parametrize(
    ("room", "settings"),
    [
        (410, {"train.pairs_per_device": 8}),
        (306, {"optim.name": "adafactor"}),
        (200, {"train.pair_by_pair": True, "optim.name": "adafactor"}),
        (104, {"train.pairs_per_device": 1, "train.pair_by_pair": True, "optim.name": "adafactor"}),
        (92, {"train.pairs_per_device": 1, "train.gradient_checkpointing": True, **LORA}),
        (90, None),
    ],
)
def test_the_search_takes_one_lever_where_one_is_enough_and_none_that_is_not_needed(sdxl, pairs, room, settings):
    config = settled(make_config({"model": str(sdxl), "pairs": str(pairs), "data": {"split": "all"}}), None)
    subject = Weighed(**vars(open_subject(config, "cpu")))
    assert subject.memory(config) == 428
    assert smallest_change(subject, config, room) == settings


def test_processes_that_share_the_model_need_their_part_of_it_and_the_largest_block(sdxl, pairs):
    alone = planned(sdxl, pairs)
    found = planned(sdxl, pairs, settings={"train.shard": "fsdp2"}, processes=4)
    for kind in ("trained", "optimizer"):
        assert found.kinds[kind] == pytest.approx(alone.kinds[kind] / 4, rel=0.01)
    number = parameters_of(sdxl)
    assert 0 < found.kinds["gathered"] < 4 * 3 * number
    assert "on each of 4 devices" in found.line() and "on each of 4 devices" in found.lines()[1]
    assert planned(sdxl, pairs, processes=4).kinds["trained"] == alone.kinds["trained"]
    lora = {"train.shard": "fsdp2", "train.base_precision": "bfloat16"}
    assert planned(sdxl, pairs, adapter="lora", settings=lora, processes=4).kinds["weights"] == pytest.approx(
        2 * number / 4, rel=0.01
    )


def test_sharing_the_model_is_offered_where_there_are_several_processes(sdxl, pairs):
    whole = planned(sdxl, pairs, processes=4)
    found = planned(sdxl, pairs, processes=4, memory=tight(whole))
    assert not found.fits and found.change is not None and found.change.settings == {"train.shard": "fsdp2"}


def test_what_train_refuses_the_plan_refuses_too(sdxl, pairs):
    together = {"train.pair_by_pair": True, "optim.in_backward": True, "optim.clip_norm": 0}
    refused = [(together, "does not go together"), ({"train.pairs_per_step": 1}, "there are 2 processes")]
    refused.append(({"train.evaluate_every": 2}, "every pair is trained on"))
    if not torch.cuda.is_available():
        refused.append(({"train.tf32": True}, "no such arithmetic"))
    for settings, says in refused:
        with pytest.raises(MapoError, match=says):
            planned(sdxl, pairs, settings=settings, processes=2 if "2 processes" in says else 1)
    half = {"train.precision": "bfloat16", "train.base_precision": "float16"}
    with pytest.raises(MapoError, match="base_precision=float16 does not go together"):
        planned(sdxl, pairs, adapter="lora", settings=half)


def test_what_nothing_makes_fit_is_said_plainly(sdxl, pairs):
    found = planned(sdxl, pairs, memory="100MB")
    assert found.change is None and not found.fits
    assert "No setting that is known to take less memory makes it fit." in found.lines()[-1]


def test_the_disk_is_what_the_cache_lacks(tmp_path, sdxl, pairs, cache):
    found = planned(sdxl, pairs, cache=tmp_path / "none").disk
    model = open_subject(
        settled(make_config({"model": str(sdxl), "pairs": str(pairs), "data": {"split": "all"}}), None), "cpu"
    ).model
    latent = math.prod(model.layout.latent(model.layout.side))
    assert found.pictures == PairSet(pairs).number_of_images()
    assert found.bytes == found.pictures * 2 * latent * 4 + found.prompts * model.prompt_numbers * 4
    assert planned(sdxl, pairs, cache=cache).disk.bytes == 0
    flipped = planned(sdxl, pairs, cache=cache, settings={"data.flip": True})  # to which training adds nothing
    assert (flipped.disk.pictures, flipped.disk.prompts) == (found.pictures, found.prompts)
    assert any(
        "was encoded with flip False, this run asks for True" in line and "--cache" in line for line in flipped.lines()
    )


def test_train_says_the_plan_first_and_refuses_what_cannot_fit(tmp_path, sdxl, pairs, cache, monkeypatch, heard):
    from mapo.train.plan import at_hand

    monkeypatch.setattr(at_hand, "room_of", lambda device: 200 * 2**20)
    with pytest.raises(MapoError, match=r"This training needs about .*No setting .*allow_oversize=true"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=1, pairs_per_step=64)
    assert not (tmp_path / "r" / "config.toml").exists()
    monkeypatch.setattr(at_hand, "room_of", lambda device: 800 * 2**20)
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    about = 2**20 * int(re.findall(r"needs about (\d+) MiB", heard())[-1])
    monkeypatch.setattr(at_hand, "room_of", lambda device: int(1.05 * about))
    if not torch.cuda.is_available():
        with pytest.raises(MapoError, match=r"This training needs about .*A tenth and 200 MiB have to be left\."):
            run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    monkeypatch.setattr(at_hand, "room_of", lambda device: 2**40)  # of which it is a small part
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    found = re.search(r"This training surely needs less than (\d+) MiB of memory, of 1,024.0 GiB\.", heard())
    assert found and int(found[1]) * 2**20 > planned(sdxl, pairs).memory


def test_what_surely_is_enough_counts_a_lora_of_any_rank(sdxl, pairs):
    adapter = {"kind": "lora", "rank": 2000}
    values = {"model": str(sdxl), "pairs": str(pairs), "adapter": adapter, "data": {"split": "all"}}
    config = settled(make_config({**values, "train": {"pairs_per_step": 1}}), None)
    subject = open_subject(config, "cpu")
    trained = subject.needs(config)[2]
    assert trained > 4e6 and subject.most(config) > 16 * trained  # the weights, their gradients and two moments each


def test_a_step_is_timed_by_a_run_of_this_device_beside_it(tmp_path, sdxl, pairs, cache):
    run(tmp_path / "r", sdxl, pairs, cache, steps=2)
    how = {"train.precision": "float64", "adapter.rank": 4, "data.split": "train"}
    found = planned(sdxl, pairs, settings=how, out=tmp_path / "new")
    assert found.seconds and f"s a step, as {tmp_path}/r on this device measured" in "\n".join(found.lines())
    for other in ({"train.gradient_checkpointing": True}, {"train.pairs_per_step": 3}):
        assert planned(sdxl, pairs, settings={**how, **other}, out=tmp_path / "new").seconds is None
    about = tmp_path / "r" / "run.json"
    about.write_text(about.read_text().replace('"device": "', '"device": "Another '))
    assert planned(sdxl, pairs, settings=how, out=tmp_path / "new").seconds is None


def test_of_a_run_that_has_begun_a_change_is_one_with_which_it_goes_on(tmp_path, sdxl, pairs, cache, monkeypatch):
    """Which these are the next tests but one say."""
    run(tmp_path / "r", sdxl, pairs, cache, steps=1)
    made, asked = at_hand.make_plan, []
    monkeypatch.setattr(at_hand, "make_plan", lambda *of, begun: asked.append(begun) or made(*of, begun=begun))
    for name in ("r", "new"):
        planned(sdxl, pairs, out=tmp_path / name)
    assert asked == [True, False]


def test_where_the_memory_runs_out_one_statement_has_the_plan_and_the_change_with_what_it_gives(sdxl, pairs):
    config = settled(make_config({"model": str(sdxl), "pairs": str(pairs), "data": {"split": "all"}}), None)
    subject = Weighed(**vars(open_subject(config, "cpu")))
    plan = at_hand.make_plan(subject, config, 2**40)
    less = smallest_change(subject, config, int(0.9 * plan.memory))
    said = told_when_full(subject, config, plan, lambda: False, "Use less.")
    flags, planned_then = Change(less, 0).flags(), shown(subject.memory(changed(config, less)))
    assert said == (
        f"By its plan this training needs about {shown(plan.memory)} ({plan.largest()}), and this device has 1,024.0 GiB. "
        f"So something else takes memory too, or the plan is too low. Repeat the command with {flags}, with which about "
        f"{planned_then} are planned, or use a machine with more memory."
    )
    full = told_when_full(subject, config, replace(plan, room=1), lambda: False, "Use less.")
    assert full.startswith("That was to be expected: by its plan this training needs") and full.endswith(" Use less.")


def test_what_is_advised_is_read_by_every_verb_that_trains():
    settings = {"adapter.kind": "lora", "train.gradient_checkpointing": True, "train.pairs_per_device": 1}
    words = Change(settings, 0).flags().split()
    assert set(words[::2]) == {"--set"} and parse_set(words[1::2]) == nested(settings)


def test_a_run_that_goes_on_is_advised_what_it_may_change(sdxl, pairs):
    config = settled(make_config({"model": str(sdxl), "pairs": str(pairs), "data": {"split": "all"}}), None)
    subject = Weighed(**vars(open_subject(config, "cpu")))
    assert smallest_change(subject, config, 306, begun=True) == {
        "train.pairs_per_device": 1, "train.gradient_checkpointing": True
    }  # fmt: skip
    assert smallest_change(subject, config, 300, begun=True) is None
    keys = [key for lever in LATER for settings in lever(replace(subject, world=2), config) for key in settings]
    assert set(keys) <= MAY_CHANGE and len(set(keys)) > 3


def out_of_memory(monkeypatch, owner, name, call):
    """Let the memory run out in a call of this number of a function that is there."""
    real, calls = getattr(owner, name), []

    def failing(*args, **how):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(*args, **how)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("late", [False, True])
def test_where_the_memory_runs_out_in_a_step_the_steps_before_are_kept(tmp_path, sdxl, pairs, cache, monkeypatch, late):
    whole = run(tmp_path / "whole", sdxl, pairs, cache, steps=3)
    if late:  # as on a GPU, where a step's numbers are read in the next one
        begin = Loop.__init__
        monkeypatch.setattr(Loop, "__init__", lambda loop, *all: (begin(loop, *all), setattr(loop, "late", True))[0])
    with monkeypatch.context() as inside:
        out_of_memory(inside, UNet2DConditionModel, "forward", 3)
        says = r"ran out with 4 pairs at a time\. By its plan this training needs about .*What was trained up to step 2 is kept\.$"
        with pytest.raises(MapoError, match=says) as said:
            run(tmp_path / "r", sdxl, pairs, cache, steps=3)
    assert [path.name for path in Run(tmp_path / "r").checkpoints()] == ["step-00000002"]
    assert not any(name in str(said.value) for name in MUST_STAY | {"optim.in_backward", "adapter.kind"})
    assert_same(run(tmp_path / "r", sdxl, pairs, cache, steps=3, pairs_per_device=1), whole)


def test_where_the_memory_runs_out_before_the_first_step_the_plan_is_told_too(
    tmp_path, sdxl, pairs, cache, monkeypatch
):  # fmt: skip
    plan = "By its plan this training needs about "
    for owner, name, says in (
        (UNet2DConditionModel, "from_pretrained", r"while the model was loaded\. "),
        (reference, "both_residuals", r"with 4 pairs at a time\. "),
    ):
        with monkeypatch.context() as inside, pytest.raises(MapoError, match=f"The memory ran out {says}{plan}"):
            out_of_memory(inside, owner, name, 1)
            run(tmp_path / "r", sdxl, pairs, cache, "dpo", steps=1, reference="before")
    with monkeypatch.context() as inside, pytest.raises(MapoError) as said:
        out_of_memory(inside, fill, "encode_pictures", 1)
        run(tmp_path / "r", sdxl, pairs, tmp_path / "other", steps=1)
    begins = "The memory ran out with 8 pictures at a time. By its plan encoding needs about "
    assert str(said.value).startswith(begins) and "CUDA_VISIBLE_DEVICES= mapo encode" in str(said.value)


def test_where_the_memory_runs_out_in_an_update_no_weights_of_it_are_saved(tmp_path, sdxl, pairs, cache, monkeypatch):
    out_of_memory(monkeypatch, torch.optim.AdamW, "step", 4)
    with pytest.raises(MapoError, match=r"what was trained after step 2 is lost\.$"):
        run(tmp_path / "r", sdxl, pairs, cache, steps=4, save_every_steps=2)
    assert [path.name for path in Run(tmp_path / "r").checkpoints()] == ["step-00000002"]
    out_of_memory(monkeypatch, torch.optim.AdamW, "step", 4)
    with pytest.raises(MapoError, match=r"had begun to move on"):
        run(tmp_path / "b", sdxl, pairs, cache, steps=3, optim={"in_backward": True, "clip_norm": 0})
    assert not Run(tmp_path / "b").checkpoints()


def test_an_extra_that_train_refuses_with_the_reference_before_the_plan_refuses(tmp_path, sdxl, pairs):
    (tmp_path / "far.py").write_text(
        "from mapo.train.objectives import Objective\n"
        "def far(both):\n    return (both.chosen - both.ref_chosen).square().flatten(1).mean(1)\n"
        "mine = Objective(lambda errors: errors.chosen + errors.extras['far'], needs_reference=True, extras={'far': far})\n"
    )
    with pytest.raises(MapoError, match="the extra far of the objective .* cannot be made without its residuals"):
        planned(sdxl, pairs, objective=f"{tmp_path}/far.py:mine", settings={"train.reference": "before"})


def test_planning_reads_no_weights_and_writes_nothing(tmp_path, pairs):
    model = make_sdxl(tmp_path / "model")
    for file in model.glob("*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])  # cut off: what reads numbers would fail
        head = json.loads(file.read_bytes()[8:][: int.from_bytes(file.read_bytes()[:8], "little")])
        assert head
        file.unlink()
    before = sorted(path for path in tmp_path.rglob("*"))
    planned(model, pairs, out=tmp_path / "run", cache=tmp_path / "cache")
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_sizes_are_read_and_shown_as_people_write_them():
    assert [parse_size(t) for t in ("24GB", "1.5 GiB", "512M", "100B")] == [24 * 10**9, 3 * 2**29, 512 * 10**6, 100]
    assert [shown(n) for n in (5 * 2**30, 340 * 2**20, 3)] == ["5.0 GiB", "340 MiB", "less than 1 MiB"]
    for wrong in ("much", "GB", "0GB", "-1GB"):
        with pytest.raises(MapoError, match="is not a size"):
            parse_size(wrong)
    for bare in ("8", "24000"):
        with pytest.raises(MapoError, match=f"--memory '{bare}' would be {bare} bytes. Give a unit, as in 24GB"):
            parse_size(bare)
    assert parse_size(str(2**30)) == 2**30
    assert room_of("cpu") > 2**28
