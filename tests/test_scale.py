"""The page on many processes: its script for Slurm is read, and its numbers are counted again."""

import json
import re
import shlex
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from mapo.devices import use_own_device
from mapo.models import find_model, open_model
from mapo.settings import parse_set
from mapo.shards import shard_of_environment
from mapo.train.config import make_config
from mapo.train.processes.processes import Place, place_of_environment
from real import REAL, needs_real, published
from test_docs import ROOT, parse

PAGE, SCRIPT = ROOT / "docs" / "scale.md", ROOT / "scripts" / "slurm.sh"
VALUES = {"WORK": "work", "MODEL": "mini"}
TASKS = {"nodes": int, "ntasks-per-node": int, "gpus-per-node": int, "cpus-per-task": int}
# Options of sbatch, by its manual, and what may stand behind them.
OTHERS = {
    "job-name": r"\w+",
    "mem": r"\d+[KMGT]?",
    "time": r"\d+:\d\d:\d\d",
    "signal": r"(B:)?[A-Z]+@\d+",
    "output": r"\S+",
}


def asked_of_slurm() -> dict[str, str]:
    lines = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)=(\S+)", line) for line in lines]
    assert all(found), lines
    return {match[1]: match[2] for match in found if match}


def commands() -> list[list[str]]:
    """The words that each task runs, behind srun and its own options."""
    found = []
    for line in SCRIPT.read_text().splitlines():
        words = shlex.split(re.sub(r"\$\{?(\w+)\}?", lambda name: VALUES.get(name[1], name[0]), line.split("#")[0]))
        if words[:1] == ["srun"]:
            assert words[1] == "mapo", words
            found.append(words[1:])
    return found


def test_the_script_is_the_one_that_the_page_shows():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    assert blocks == [SCRIPT.read_text()]


def test_the_shell_and_slurm_can_read_the_script():
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True).returncode == 0
    text, asked = SCRIPT.read_text(), asked_of_slurm()
    assert text.startswith("#!/bin/bash\n#SBATCH")  # behind the first command Slurm reads no more of them
    assert text.rindex("#SBATCH") < min(text.index(word) for word in ("\nset ", "srun", "WORK="))
    assert asked.keys() == TASKS.keys() | OTHERS.keys()
    assert all(kind(asked[name]) > 0 for name, kind in TASKS.items())
    assert all(re.fullmatch(pattern, asked[name]) for name, pattern in OTHERS.items())


def test_every_command_of_the_script_parses_and_its_settings_are_known():
    found = commands()
    assert [parse(shlex.join(words)) for words in found] == ["build", "encode", "train", "sample", "score"]
    assert SCRIPT.read_text().count("mapo ") - SCRIPT.read_text().count("srun mapo ") == 0
    training = next(words for words in found if words[1] == "train")
    settings = parse_set([training[k + 1] for k, word in enumerate(training) if word == "--set"])
    config = make_config({"model": "mini", "pairs": "work/pairs", **settings})
    encoding = next(words for words in found if words[1] == "encode")
    assert config.data.cache_precision == encoding[encoding.index("--precision") + 1]
    asked = asked_of_slurm()
    assert config.train.pairs_per_step >= int(asked["nodes"]) * int(asked["ntasks-per-node"])
    outs = [words[words.index("--out") + 1] for words in found]
    assert len({*outs}) == len(outs) and all(out.startswith("work/") for out in outs)


def test_the_tasks_that_the_script_starts_become_ranks_with_a_gpu_each(monkeypatch):
    asked = {name: int(asked_of_slurm()[name]) for name in TASKS}
    local, world = asked["ntasks-per-node"], asked["nodes"] * asked["ntasks-per-node"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    gpus: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: asked["gpus-per-node"])
    monkeypatch.setattr(torch.cuda, "set_device", gpus.append)
    monkeypatch.setenv("MASTER_ADDR", "node0")  # as the script says
    assert re.search(r"^MASTER_ADDR=.*\nexport MASTER_ADDR$", SCRIPT.read_text(), re.M)
    for task in range(world):
        for name, value in {
            "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 1, "SLURM_NTASKS": world, "SLURM_STEP_NUM_TASKS": world,
            "SLURM_STEP_NUM_NODES": asked["nodes"], "SLURM_PROCID": task, "SLURM_LOCALID": task % local,
        }.items():  # fmt: skip
            monkeypatch.setenv(name, str(value))
        assert shard_of_environment() == (task, world)
        assert place_of_environment() == Place(task, world, task % local)
        use_own_device()
    assert gpus == [*range(local)] * asked["nodes"]  # no two of a machine share one


# ------------------------------------------------------------------ numbers

PUBLISHED = {
    "Stable Diffusion 1.5 at 512": ("stable-diffusion-v1-5", 512),
    "SDXL at 1024": ("stable-diffusion-xl-base-1.0", 1024),
    "Stable Diffusion 3.5 Large at 1024": ("stable-diffusion-3.5-large", 1024),
    "FLUX.1-dev at 1024": ("FLUX.1-dev", 1024),
}


def row_of(name: str) -> list[str]:
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


@needs_real("configs")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_bytes_of_a_million_pairs_are_those_that_the_code_keeps(tmp_path, name):
    folder, pixels = PUBLISHED[name]
    model = open_model(find_model(str(published(tmp_path / "m", folder))))
    pair = 2 * 2 * 4 * torch.Size(model.layout.latent(pixels)).numel()  # pictures, mean and log-variance, bytes
    prompt = 4 * model.prompt_numbers
    terabytes = [f"{bytes_ * number / 1e12:.2f} TB" for bytes_, number in ((pair, 1e6), (prompt, 1e6), (prompt, 1e5))]
    assert row_of(name) == [f"{pair:,}", f"{prompt:,}", *terabytes]


def test_the_sizes_of_a_pair_are_what_a_cache_really_holds(sdxl, pairs, cache):
    """The arithmetic of the page, with a small model: what it counts is what lies in the files."""
    model = open_model(find_model(str(sdxl)))
    held = {"latents": 0, "text": 0}
    for path in cache.glob("*-*.safetensors"):
        tensors = [tensor for name, tensor in load_file(path).items() if not name.endswith("|size")]
        held[path.name.split("-")[0]] += sum(t.numel() * t.element_size() for t in tensors)
    assert held == {
        "latents": 24 * 2 * 4 * torch.Size(model.layout.latent(16)).numel(),
        "text": 8 * 4 * model.prompt_numbers,
    }


@needs_real("configs")
@pytest.mark.parametrize(("name", "told"), [("SDXL at 1024", "4.88"), ("Stable Diffusion 1.5 at 512", "1.12")])
def test_the_operations_of_encoding_a_picture_are_counted(name, told):
    from diffusers import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    folder, pixels = PUBLISHED[name]
    config = json.loads((REAL / "configs" / folder / "vae" / "config.json").read_text())
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        AutoencoderKL.from_config(config).encode(torch.empty(1, 3, pixels, pixels))
    assert f"{counter.get_total_flops() / 1e12:.2f}" == told
    assert f"{told} · 10¹² " in PAGE.read_text().replace("\n", " ")


def test_the_hours_and_the_bandwidth_follow_from_the_numbers_beside_them():
    page = PAGE.read_text().replace("\n", " ")
    hours = 1e6 / 0.24 / 3600
    assert f"{hours:,.0f} hours of one GPU, {hours / 8:.0f} of eight, {hours / 64:.0f} of 64" in page
    encoding = 2e6 * 4.88 / 50 / 3600
    assert f"are {encoding:.0f} hours of one GPU at 1024 pixels, {encoding / 8:.0f} of eight" in page
    pair, prompt = (int(cell.replace(",", "")) for cell in row_of("SDXL at 1024")[:2])
    both = (pair + prompt) / 1e6
    assert f"reads {both:.2f} MB a pair: {0.24 * both:.1f} MB a second and GPU" in page
    assert f"{64 * 0.24 * both:.0f} MB a second for 64 GPUs" in page
    assert f"at most {851_000 * pair / 1e12:.2f} TB of latents and {59_000 * prompt / 1e12:.2f} TB of text" in page
    a_second = 50 / 4.88 * 335e9 / (2 * 959_040)
    assert round(50 / 4.88) == 10 and 1.5e6 < a_second < 2e6  # "ten pictures a second", "under 2 MB a second"
