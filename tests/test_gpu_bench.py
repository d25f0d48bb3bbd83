"""bench/gpu.py on the built-in model, without a GPU: what it counts, that its rows run, and that it goes on."""

import contextlib
import json
import platform
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mapo.train.processes.processes import Place, Processes

pytestmark = pytest.mark.long

BENCH = Path(__file__).parent.parent / "bench"
SIDE = 64


@pytest.fixture(scope="module")
def bench():
    """Both modules, and the folder that they work in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        import gpu
        import gpu_rows

        yield gpu, gpu_rows


@pytest.fixture(scope="module")
def work(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    bench[1].prepare(folder, "mini", SIDE)
    return folder


def counted(work):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return {part: sum(found.values()) / 1e12 for part, found in counter.get_flop_counts().items()}


def test_the_arithmetic_of_a_pair_is_that_of_a_step_of_either_way_and_of_its_parts(bench, work):
    _, rows = bench
    told = rows.arithmetic({}, "mini", work, SIDE)
    loop = rows.open_loop({}, "mini", work, 1, SIDE)
    loop.late = False
    with contextlib.closing(loop.run(0)) as ours:
        assert counted(lambda: next(ours))["Global"] == pytest.approx(told, rel=1e-9)
    with contextlib.closing(rows.encoded_in_the_step(loop, half=False)) as public:
        found = counted(lambda: next(public))
        assert found["UNet2DConditionModel"] == pytest.approx(told, rel=1e-9)
        assert found["Global"] > 1.01 * told  # with the encoders
    batch, trained = loop.batch_at([0]), loop.trained
    one, cond = batch.latents[:1], {name: value[:1] for name, value in batch.told("both").items()}

    def forth_and_back():
        trained.model.predict(trained.denoiser, one, batch.timesteps, cond).sum().backward()

    assert 2 * counted(forth_and_back)["Global"] == pytest.approx(told, rel=1e-9)
    dpo = rows.arithmetic({"objective": "dpo"}, "mini", work, SIDE)
    lora = rows.arithmetic({"adapter.kind": "lora", "adapter.rank": 16}, "mini", work, SIDE)
    assert 1.3 < dpo / told < 1.35 and 0.6 < lora / told < 0.7


@pytest.mark.parametrize("table", ["dpo", "cache"])
def test_rows_run_at_several_sizes_after_one_load(bench, work, table):
    gpu, rows = bench
    task = {"model": "mini", "work": str(work), "side": SIDE, "warm": 1, "steps": 1, "seconds": 1}
    chosen = {"cache": list(gpu.TABLES["cache"])[1:], "dpo": ["dpo, all weights", "dpo, reference before, all weights"]}
    for name in chosen[table]:
        row = {key: value for key, value in gpu.TABLES[table][name].items() if key != "train.compile"}  # takes minutes
        found = list(rows.measure({**task, "row": row, "sizes": [1, 2]}))
        assert [one["pairs"] for one in found] == [1, 2] and all(one["seconds"] > 0 for one in found), name


def test_every_row_has_settings_of_train_and_counted_arithmetic_and_comparisons_name_rows(bench, work):
    gpu, rows = bench
    for table, of_it in gpu.TABLES.items():
        for row in of_it.values():
            config, _ = rows.config_of(row, "mini", work, 8, SIDE)
            rows.check_levers(
                config.model_copy(update={"optim": config.optim.model_copy(update={"name": "adamw"})}), ONE
            )
            assert gpu.counted_as(row) in gpu.COUNTED
        assert {name for both in gpu.AGAINST.get(table, []) for name in both} <= set(of_it) | LORA_BEFORE


LORA_BEFORE = {f"dpo, reference before, LoRA{again}" for again in ("", ", recomputed")}  # who hold no second model
ONE = Processes(Place(), torch.device("cpu"))


def test_the_same_command_goes_on_and_a_row_that_takes_too_long_is_ended(bench, work, tmp_path, monkeypatch, capsys):
    gpu, _ = bench
    (work / f"arithmetic-mini-{SIDE}.json").write_text(json.dumps(dict.fromkeys(gpu.COUNTED, 0.001)))
    words = [
        "gpu.py",
        "memory",
        "--only",
        "LoRA of rank 16",
        "--model",
        "mini",
        "--side",
        str(SIDE),
        "--work",
        str(work),
    ]
    whole = gpu.in_a_process
    monkeypatch.setattr(gpu, "in_a_process", lambda task, *rest: whole(task, *rest) if "row" in task else CARD)
    monkeypatch.setattr(sys, "argv", [*words, "--steps", "1", "--warm", "1", "--sizes", "1", "--out", str(tmp_path)])
    gpu.main()
    (path,) = tmp_path.glob("gpu-memory-*.json")
    first = json.loads(path.read_text())
    assert first["rows"][0]["seconds"] > 0 and first["rows"][0]["share_of_peak"] > 0
    assert "The table is whole." in capsys.readouterr().out
    monkeypatch.setattr(
        gpu, "in_a_process", lambda task, *rest: pytest.fail("measured again") if "row" in task else CARD
    )
    gpu.main()
    assert json.loads(path.read_text()) == first
    monkeypatch.undo()
    task = {"task": "measure", "row": {}, "model": "mini", "work": str(work), "side": SIDE}
    assert list(gpu.in_a_process(task, 0.5, work)) == [{"failed": gpu.OUT_OF_TIME}]


CARD = [{"device": platform.machine(), "torch": torch.__version__, "peak in bfloat16, 10^12 a second": 1.0}]


@pytest.mark.parametrize("name", ["sd15", "sd35-medium", "flux-dev"])
def test_the_other_models_are_opened_in_their_real_size_without_weights(bench, tmp_path, name):
    from real_size import PARAMETERS

    gpu, rows = bench
    assert name in gpu.REAL
    rows.make_outline(tmp_path, str(tmp_path / name))
    model = rows.open_at_random(str(tmp_path / name))
    outline = model.outline(model.denoiser_part)
    assert sum(p.numel() for p in outline.parameters()) == PARAMETERS[name]
    assert list(gpu.counted_for("prepare", name)) == list(gpu.counted_for("families", name)) == ["mapo, LoRA of rank 8"]


def test_what_does_not_fit_is_known_not_to_fit_at_larger_sizes_and_time_that_ran_out_is_tried_again(bench, tmp_path):
    gpu, _ = bench
    results, told = gpu.Results(tmp_path / "r.json", {"side": 1}), {"table": "dpo"}
    for pairs, found in ((1, {"seconds": 1.0, "peak_gib": 1}), (4, {"failed": "out of memory"})):
        results.add({"row": "a", "pairs": pairs, "turn": 0, "settings": {}, **found}, told)
    results.add({"row": "b", "pairs": 1, "turn": 0, "settings": {}, "failed": gpu.OUT_OF_TIME}, told)
    again = gpu.Results(tmp_path / "r.json", {"side": 1})
    assert [again.known("a", {}, n, 0) for n in (1, 2, 4, 8)] == [True, False, True, True]
    assert not again.known("b", {}, 1, 0) and again.tried("b", 0)
    assert not again.known("a", {"train.tf32": True}, 1, 0)  # other settings are another row
    with pytest.raises(SystemExit, match="is of another side"):
        gpu.Results(tmp_path / "r.json", {"side": 2})


def test_a_ratio_is_of_one_turn(bench):
    gpu, _ = bench
    rows = [
        {"row": row, "pairs": 4, "turn": turn, "seconds": seconds, "peak_gib": 2.0}
        for turn, both in enumerate([(1.0, 2.0), (2.0, 8.0)])
        for row, seconds in zip(("from the cache", "encoded in every step"), both, strict=True)
    ]
    found = gpu.ratios_of("cache", rows)["encoded in every step / from the cache, 4 a step"]
    assert found["seconds"] == {"median": 3.0, "least": 2.0, "most": 4.0} and found["peak_gib"]["most"] == 1.0
