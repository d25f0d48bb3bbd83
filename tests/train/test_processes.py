"""What launchers and other people's settings do to a training: the same run, or a refusal in a sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train import assert_same, metrics, run

from apart import Apart, ended, free_port, run_apart, started
from mapo.encode.fill import encode
from mapo.errors import MapoError
from mapo.models import find_model, open_model
from mapo.pairs import PairSet
from mapo.train.processes import processes
from mapo.train.processes.processes import Place, place_of_environment
from tiny import make_pairs

NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID",
    "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (*NAMES, *processes.ASKS):
        monkeypatch.delenv(name, raising=False)


def setting(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_a_plain_start_is_one_process():
    assert place_of_environment() == Place(0, 1, 0)


def test_torchrun_says_who_is_who(monkeypatch):
    setting(monkeypatch, RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, MASTER_ADDR="node0", MASTER_PORT=29501)
    assert place_of_environment() == Place(3, 4, 1)


def test_slurm_on_one_machine_says_who_is_who(monkeypatch):
    setting(monkeypatch, SLURM_PROCID=1, SLURM_LOCALID=1, SLURM_STEP_NUM_TASKS=2, SLURM_JOB_ID=777)
    assert place_of_environment() == Place(1, 2, 1)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and 20_000 <= int(os.environ["MASTER_PORT"]) < 40_000


def test_a_slurm_script_without_srun_is_one_process(monkeypatch):
    setting(monkeypatch, SLURM_PROCID=0, SLURM_NTASKS=4, SLURM_JOB_ID=777)
    assert place_of_environment() == Place(0, 1, 0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"RANK": 1}, "RANK is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": 4}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": 0, "WORLD_SIZE": 2}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"RANK": 2, "WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}, "there is no such process"),
        (
            {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 65536},
            "MASTER_PORT is 65536, and ports end at",
        ),
        ({"RANK": "first", "WORLD_SIZE": 2}, "RANK is 'first', which is not a number"),
        ({"SLURM_STEP_NUM_TASKS": 4, "SLURM_PROCID": 1, "SLURM_STEP_NUM_NODES": 2}, "export MASTER_ADDR="),
        ({"OMPI_COMM_WORLD_SIZE": 2}, "mpirun started 2 processes"),
    ],
)
def test_half_of_what_a_launcher_says_is_refused_in_a_sentence(monkeypatch, values, says):
    setting(monkeypatch, **values)
    with pytest.raises(MapoError, match=says):
        place_of_environment()


def test_settings_of_accelerate_change_nothing_and_are_named(tmp_path, sdxl, pairs, cache, monkeypatch, heard):
    whole = run(tmp_path / "plain", sdxl, pairs, cache)
    setting(
        monkeypatch, ACCELERATE_GRADIENT_ACCUMULATION_STEPS=8, ACCELERATE_MIXED_PRECISION="fp16",
        ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_USE_FSDP="true", ACCELERATE_DYNAMO_BACKEND="INDUCTOR",
    )  # fmt: skip
    heard()
    assert_same(run(tmp_path / "asked", sdxl, pairs, cache), whole, tolerance=1e-12)
    said = heard()
    assert "ask for mixed precision (fp16), accumulated steps (8), DeepSpeed, FSDP, torch.compile (inductor)" in said
    assert "the run's own settings decide" in said


def command(out: Path, sdxl, pairs, cache, *more: str) -> list[str]:
    words = ["train", "--model", sdxl, "--pairs", pairs, "--cache", cache, "--out", out]
    settings = {
        "optim.lr": "1e-3",
        "optim.warmup_steps": "2",
        "train.pairs_per_step": "4",
        "train.precision": "float64",
    }
    words += [w for key, value in settings.items() for w in ("--set", f"{key}={value}")]
    return ["-m", "mapo", *map(str, words), *more]


@pytest.mark.long
def test_two_processes_without_a_gpu_are_one_training_whatever_accelerate_asks_for(tmp_path, sdxl, pairs, cache):
    whole = run(tmp_path / "whole", sdxl, pairs, cache, steps=3)
    words = command(tmp_path / "r", sdxl, pairs, cache, "--set", "train.steps=3")
    asked = {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": 4}
    found = ended(started(words, 2, **asked))
    assert [code for code, _, _ in found] == [0, 0], found
    assert_same(metrics(tmp_path / "r"), whole, tolerance=1e-6)
    assert "accelerate ask for" in found[0][1] and "accelerate ask for" not in found[1][1]
    assert json.loads((tmp_path / "r" / "run.json").read_text())["steps"] == 3


def test_processes_encode_together_and_are_refused_together(tmp_path, sdxl):
    pairs = make_pairs(tmp_path / "pairs", 100)
    words = command(tmp_path / "r", sdxl, pairs, tmp_path / "cache", "--set", "train.steps=1")
    found = ended(started(words, 2))
    assert [code for code, _, _ in found] == [0, 0], found
    encode(open_model(find_model(str(sdxl))), PairSet(pairs), tmp_path / "one")
    files = [{p.name: p.read_bytes() for p in (tmp_path / c).glob("*-*.safetensors")} for c in ("cache", "one")]
    assert len(files[0]) == 4 + 2 and files[0] == files[1]  # of pictures and of prompts
    assert sum("the run is in" in out for _, out, _ in found) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    words = command(tmp_path / "mine", sdxl, pairs, tmp_path / "cache", "--set", "train.steps=1")
    found = ended(started(words, 2))
    assert [code for code, _, _ in found] == [2, 2], found
    assert [err.count("is not a run folder") for _, _, err in found] == [1, 0]  # said once
    assert not any("Traceback" in err for _, _, err in found)


def test_all_stop_after_the_same_step_when_one_is_told_to(tmp_path, sdxl, pairs, cache):
    words = command(tmp_path / "r", sdxl, pairs, cache, "--set", "train.steps=100000")
    running = started(words, 2)
    log = tmp_path / "r" / "metrics.jsonl"
    until = time.monotonic() + 200
    while time.monotonic() < until and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.1)
    running[1].send_signal(signal.SIGTERM)  # not the one that writes
    found = ended(running)
    assert [code for code, _, _ in found] == [130, 130], found
    done = len(metrics(tmp_path / "r"))
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == [f"step-{done:08d}"]


BAD_LOSS = """
import os, sys
sys.argv[0] = "mapo"
from mapo.train import loop
real, calls = loop.pair_losses, []
def broken(*args):
    calls.append(1)
    bad = os.environ["RANK"] == "1" and len(calls) == 3
    return real(*args) * (float("nan") if bad else 1)
loop.pair_losses = broken
from mapo.cli import main
main()
"""


def test_all_stop_at_a_bad_loss_that_one_of_them_has(tmp_path, sdxl, pairs, cache):
    words = command(tmp_path / "r", sdxl, pairs, cache, "--set", "train.steps=5")
    found = ended(started(["-c", BAD_LOSS, *words[2:]], 2))
    assert [code for code, _, _ in found] == [2, 2], found
    assert "Step 3: the loss is not finite for 2 pairs" in found[0][2] and "Step 3" not in found[1][2]
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_process_that_waits_for_others_says_so_and_hears_a_signal(tmp_path, sdxl, pairs, cache):
    words = command(tmp_path / "r", sdxl, pairs, cache)
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = Apart(*words, env=env)
    assert process.stdout.readline().startswith("Process 0 of 2 waits for the others at 127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped." in said
    gone = run_apart(*words, env={**env, "RANK": "1", "MASTER_ADDR": "nohost.invalid"})
    assert gone.returncode == 2 and "did not find the others at nohost.invalid" in gone.stderr


def test_a_second_signal_stops_at_once(tmp_path):
    """In a process of its own, whose step would take a minute."""
    code = (
        "import sys, time; from mapo.train.train import interruptible\n"
        "with interruptible() as asked:\n"
        "    print('ready', flush=True)\n"
        "    while not asked(): time.sleep(0.01)\n"
        "    print('asked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)):
        process = Apart("-c", code)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "asked\n"
        began = time.monotonic()
        process.send_signal(second)
        process.wait(timeout=30)
        assert time.monotonic() - began < 30 and process.returncode != 0
        process.communicate()


def test_a_macs_gpu_is_given_no_number_of_64_bits(monkeypatch):
    """Without one at hand: a tensor that refuses the move as torch's does there."""
    from mapo.train.types import Batch

    real = torch.Tensor.to

    def to(tensor, *args, **how):
        if args and isinstance(args[0], torch.device) and args[0].type == "mps":
            if tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
            return tensor
        return real(tensor, *args, **how)

    monkeypatch.setattr(torch.Tensor, "to", to)
    one = torch.ones(1, dtype=torch.float64)
    latents = torch.zeros(2, 4, 8, 8)
    moved = Batch(latents, {"text": latents}, one, one, latents[:1], torch.tensor([3])).to(torch.device("mps"))
    assert moved.weight is one and moved.preference is one


def test_the_reference_runs_before_the_graph_of_the_policy_exists(sdxl):
    from mapo.models.noise.process import Ddpm
    from mapo.train.step import pair_errors
    from mapo.train.types import Batch

    order = []

    def predicting(name):
        def predict(x_t, t, cond):
            order.append((name, torch.is_grad_enabled()))
            return x_t

        return predict

    one = torch.ones(1, dtype=torch.float64)
    latents = torch.zeros(2, 4, 8, 8)
    batch = Batch(latents, {}, one, one, torch.ones(1, 4, 8, 8), torch.tensor([3]))
    schedule = Ddpm(torch.linspace(0.99, 0.01, 1000), "epsilon")
    pair_errors(predicting("policy"), batch, schedule, predicting("reference"))
    assert order == [("reference", False), ("policy", True)]


def test_the_command_line_lets_waiting_threads_sleep_after_a_moment_unless_the_user_chose():
    code = "import os, sys; sys.argv = ['mapo', '--version']\ntry:\n import mapo.cli as c; c.main()\nfinally:\n"
    code += " print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))\n"
    bare = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    for chosen, expected in (
        ({}, "PASSIVE 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"KMP_BLOCKTIME": "9"}, "None None"),
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**bare, **chosen})
        assert done.stdout.strip().splitlines()[-1] == expected
