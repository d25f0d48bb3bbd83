"""The training step against the bare work it cannot avoid, in one run on one machine.

    python bench/step.py [--model mini|wide] [--side PIXELS] [--pairs-per-step 16] [--rounds 15] [--out bench/results]

(1) our step (batch from the cache to updated weights) against forward, backward and optimizer of the same UNet on the
same batch; (2) MaPO against Diffusion-DPO, time and peak anonymous memory, each in a process of its own, with the
number of forwards and the seconds of a step's parts beside it; (3) our step against the public way, which runs the VAE
and both text encoders in every step; (4) MaPO with one picture of a pair in memory at a time, SFT without its rejected
pictures, and DPO whose reference was run before: time and memory against the same without. Rounds of the variants
alternate; a ratio is of one round, and its median, least and most over the rounds are shown. ``wide`` is the built-in
model with a random UNet of 77 million parameters and SDXL's VAE in its published size, at 256 pixels; its text encoders
stay tiny, which is to the public way's advantage.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measured import write_measured

HERE = Path(__file__).resolve()


KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # objective and settings of train
    "mapo": ("mapo", {}),
    "dpo": ("dpo", {}),
    "mapo, pair by pair": ("mapo", {"pair_by_pair": True}),
    "sft": ("sft", {}),
    "sft, rejected measured": ("sft", {"measure_rejected": True}),
    "dpo, reference before": ("dpo", {"reference": "before"}),
}
AGAINST = {
    "mapo, pair by pair": "mapo", "sft": "sft, rejected measured", "dpo, reference before": "dpo",
}  # fmt: skip


def make_set(folder: Path, count: int, pixels: int | None = None) -> Path:
    """Pairs of drawings: cartoon over realistic, enlarged to so many pixels."""
    from dataclasses import replace

    from PIL import Image

    from mapo.lab.mini import scenes
    from mapo.lab.mini.draw import draw
    from mapo.pairs import PairWriter
    from mapo.sample.folder import png_bytes

    rng = random.Random(0)
    with PairWriter(folder, {"made": "by bench/step.py"}) as writer:
        plain = scenes.random_plain_scenes("train", rng)
        while writer.count < count:
            scene = next(plain)
            sides = [draw(replace(scene, style=style), rng) for style in ("cartoon", "realistic")]
            images = [Image.fromarray(side) for side in sides]
            images = [image.resize((pixels, pixels)) for image in images] if pixels else images
            writer.add_pair(scenes.context(scene), *map(png_bytes, images))
    return folder


def make_wide(folder: Path, vae: dict[str, Any] | None = None) -> Path:
    """The built-in model with a larger UNet, and with such a ``vae`` where one is given; random weights."""
    import shutil

    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from mapo.models import find_model

    shutil.copytree(find_model("mini").base, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    wide = {"block_out_channels": [160, 320, 448], "attention_head_dim": [5, 10, 14]}
    wide["transformer_layers_per_block"] = [1, 1, 2]
    torch.manual_seed(0)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config({**config, **wide}).save_pretrained(folder / "unet")
    if vae:
        shutil.rmtree(folder / "vae")
        AutoencoderKL(**vae).save_pretrained(folder / "vae")
    return folder


def make_loop(model_name: str, folder: Path, kind: str, size: int, pixels: int | None = None) -> Any:
    """The training loop exactly as `mapo train` builds it, and its parts.

    Errors of a reference that was run before are made up: they are read from a table in any case.
    """
    import numpy as np
    import torch

    from mapo.encode.cache import Cache, cache_key
    from mapo.encode.fill import encode
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet
    from mapo.train.batches import Members
    from mapo.train.config import make_config
    from mapo.train.loop import Loop
    from mapo.train.objectives import OBJECTIVES
    from mapo.train.processes.processes import Place, Processes
    from mapo.train.weights.opening import open_trained

    objective, settings = KINDS[kind]
    pairs = PairSet(folder / "pairs")
    model = open_model(find_model(model_name))
    config = make_config(
        {
            "model": model_name,
            "pairs": str(folder / "pairs"),
            "objective": {"name": objective, **OBJECTIVES[objective].settings},
            "data": {"resolution": pixels},
            "train": {"pairs_per_step": size, "steps": 10_000, **settings},
        }
    )
    processes = Processes(Place(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    encode(model, pairs, folder / "cache", resolution=pixels, device=processes.device)
    cache = Cache(folder / "cache", cache_key(model, pixels))
    trained = open_trained(config, model, OBJECTIVES[objective], processes, None)
    members = Members(pairs, np.arange(len(pairs)))
    loop = Loop(config, OBJECTIVES[objective], processes, members, cache, trained)
    if settings.get("reference") == "before":
        loop.known = torch.full((2, 10_000 * size), 0.1)
    return loop


def our_steps(loop: Any) -> Callable[[], None]:
    """One call, one whole step, as training does it."""
    steps = loop.run(0)
    return lambda: (next(steps), None)[1]


def bare_steps(loop: Any) -> Callable[[], None]:
    """Forward, backward and optimizer on one fixed batch that lies ready: what no implementation can avoid."""
    import copy

    import torch

    unet = copy.deepcopy(loop.trained.denoiser)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    batch = loop.batch_at(range(loop.config.train.pairs_per_step)).to(loop.processes.device)
    noise, t = batch.noise.repeat(2, 1, 1, 1), batch.timesteps.repeat(2)
    x_t = loop.process.add_noise(batch.latents, noise, t)

    def step() -> None:
        error = (loop.trained.model.predict(unet, x_t, t, batch.told("both")) - noise).pow(2).mean()
        error.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def public_steps(loop: Any, folder: Path, model_name: str) -> Callable[[], None]:
    """Our step, but with pictures decoded and the VAE and both text encoders run in every step."""
    import torch

    from mapo.encode.encoding import to_pixels
    from mapo.encode.frame import square
    from mapo.models import Frames
    from mapo.pairs import PairSet
    from mapo.train.batches import rows_at
    from mapo.train.step import pair_errors, pair_losses
    from mapo.train.types import Batch

    model, device = loop.trained.model, loop.processes.device
    encode_pictures, encode_prompts = model.image_encoder(device), model.text_encoder(device)
    pairs, size = PairSet(folder / "pairs"), loop.config.train.pairs_per_step
    side, updater = loop.config.data.resolution or model.layout.side, loop.trained.updater
    predict, settings = loop.trained.predictor(loop.trained.denoiser), loop.config.objective.settings
    done = 0

    def step() -> None:
        nonlocal done
        rows = [pairs[r] for r in rows_at(range(done * size, (done + 1) * size), len(pairs), 0)]
        done += 1
        names = [p.chosen for p in rows] + [p.rejected for p in rows if p.rejected]
        pixels, sizes = zip(*(to_pixels(pairs.image(n), square(side)) for n in names), strict=True)
        mean, logvar = encode_pictures(torch.stack(pixels))
        latents = model.scale(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        text = encode_prompts([p.prompt for p in rows])
        twice = {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in text.items()}
        cond = model.condition(twice, Frames.square(torch.tensor(sizes, device=latents.device), side))
        one = torch.ones(size, dtype=torch.float64)
        t = torch.randint(1000, (size,))
        batch = Batch(latents, cond, one, one, torch.randn_like(latents[:size]), t).to(latents.device)
        updater.begin(done - 1)
        updater.backward(pair_losses(loop.objective, pair_errors(predict, batch, loop.process), settings).mean())
        updater.end(loop.good)

    return step


def alternate(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round, measured in turn so that a busy machine hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, step in variants.items():
            began = time.perf_counter()
            step()
            synchronise()
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    return times


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def parts_of(loop: Any, rounds: int) -> dict[str, Any]:
    """A step of DPO taken apart: how many forwards it makes, and the median seconds of each part.

    MaPO's step is the same without the reference.
    """
    import torch

    from mapo.train.objectives import OBJECTIVES
    from mapo.train.step import pair_losses
    from mapo.train.types import PairErrors

    trained, process = loop.trained, loop.process
    batch = loop.batch_at(range(loop.config.train.pairs_per_step)).to(loop.processes.device)
    noise, t = batch.noise.repeat(2, 1, 1, 1), batch.timesteps.repeat(2)
    x_t, target = process.add_noise(batch.latents, noise, t), process.target(batch.latents, noise, t)
    predict, reference = trained.predictor(trained.denoiser), trained.reference_predictor()
    times: dict[str, list[float]] = {name: [] for name in ("reference", "forward", "backward", "update")}

    def took(name: str, began: float) -> float:
        synchronise()
        now = time.perf_counter()
        times[name].append(now - began)
        return now

    def errors(prediction: Any) -> Any:
        return (prediction - target).pow(2).flatten(1).mean(1).chunk(2)

    for number in range(rounds + 1):
        trained.updater.begin(number)
        began = time.perf_counter()
        with torch.no_grad():
            theirs = errors(reference(x_t, t, batch.told("both")))
        began = took("reference", began)
        ours = errors(predict(x_t, t, batch.told("both")))
        began = took("forward", began)
        losses = pair_losses(OBJECTIVES["dpo"], PairErrors(*ours, *theirs), OBJECTIVES["dpo"].settings)
        trained.updater.backward(losses.mean())
        began = took("backward", began)
        trained.updater.end(loop.good)
        took("update", began)
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    whole = sum(seconds.values())
    return {"median_seconds": seconds, "expected mapo / dpo": (whole - seconds["reference"]) / whole}


def forwards_of(loop: Any) -> int:
    """How often a picture goes through a denoiser, the trained one or the reference, in one step."""
    seen = 0

    def count(module: Any, given: Any) -> None:
        nonlocal seen
        seen += len(given[0])

    networks = {id(n): n for n in (loop.trained.denoiser, loop.trained.reference) if n is not None}
    hooks = [network.register_forward_pre_hook(count) for network in networks.values()]
    our_steps(loop)()
    for hook in hooks:
        hook.remove()
    return seen


def anonymous_memory() -> float:
    """Anonymous resident memory of this process in MiB (Linux), or the GPU's peak where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return int(next(line for line in status.read_text().splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


def memory_of(model: str, folder: Path, kind: str, size: int, pixels: int | None) -> dict[str, float]:
    """Peak memory over a few steps, above the state with the model loaded, sampled while they run."""
    import threading

    loop = make_loop(model, folder, kind, size, pixels)
    loaded, peak, stop = anonymous_memory(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, anonymous_memory())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step = our_steps(loop)
    for _ in range(6):
        step()
    stop.set()
    watcher.join()
    parameters = sum(p.numel() * p.element_size() for p in loop.trained.denoiser.parameters()) / 2**20
    return {"loaded_mib": loaded, "peak_mib": peak, "parameters_mib": parameters}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--side", type=int, help="pixels; default: the model's own, of wide 256")
    parser.add_argument("--pairs-per-step", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size, pixels = args.pairs_per_step, args.side or (256 if args.model == "wide" else None)
    if args.memory_of:
        print(json.dumps(memory_of(args.model, args.folder, args.memory_of, size, pixels)))
        return

    from real_size import VAE, VAES

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_set(folder / "pairs", 4 * size, pixels)
        name_of_model = str(make_wide(folder / "wide", VAE | VAES["sdxl"])) if args.model == "wide" else args.model
        loop, dpo = (make_loop(name_of_model, folder, name, size, pixels) for name in ("mapo", "dpo"))
        parameters = sum(p.numel() for p in loop.trained.denoiser.parameters())
        variants = {
            "mapo": our_steps(loop),
            "bare": bare_steps(loop),
            "dpo": our_steps(dpo),
            "public_way": public_steps(make_loop(name_of_model, folder, "mapo", size, pixels), folder, name_of_model),
        }
        forwards = {"mapo": forwards_of(loop), "dpo": forwards_of(dpo)}
        seconds = alternate(variants, args.rounds)
        parts = parts_of(dpo, args.rounds)
        del loop, dpo, variants
        others = {kind: our_steps(make_loop(name_of_model, folder, kind, size, pixels)) for kind in KINDS}
        ways = alternate(others, args.rounds)
        del others
        run = partial(subprocess.run, capture_output=True, text=True, check=True)
        memory = {}
        for name in KINDS:
            command = [sys.executable, str(HERE), "--model", name_of_model, "--pairs-per-step", str(size)]
            command += ["--side", str(pixels)] if pixels else []
            done = run([*command, "--memory-of", name, "--folder", str(folder)])
            memory[name] = json.loads(done.stdout.strip().splitlines()[-1])
    ratios = {
        f"mapo / {name}": spread([ours / other for ours, other in zip(seconds["mapo"], seconds[key], strict=True)])
        for name, key in (("bare", "bare"), ("dpo", "dpo"), ("public way", "public_way"))
    }
    for kind, other in AGAINST.items():
        ratios[f"{kind} / {other}"] = spread([a / b for a, b in zip(ways[kind], ways[other], strict=True)])
        mine, its = (memory[name]["peak_mib"] - memory[name]["loaded_mib"] for name in (kind, other))
        ratios[f"peak memory above the model, {kind} / {other}"] = spread([mine / its])
    one = memory["mapo"]["peak_mib"] / memory["dpo"]["peak_mib"]
    above = [memory[name]["peak_mib"] - memory[name]["loaded_mib"] for name in ("mapo", "dpo")]
    ratios["peak memory mapo / dpo"] = spread([one])
    ratios["peak memory above the loaded model, mapo / dpo"] = spread([above[0] / above[1]])
    result = {
        "parameters": parameters,
        "rounds": args.rounds,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "seconds of other ways": {name: spread(values) for name, values in ways.items()},
        "ratios": ratios,
        "forwards of a step, in pictures": forwards,
        "parts of a step of DPO": parts,
        "memory": memory,
    }
    for name, ratio in ratios.items():
        print(f"{name:72} {ratio['median']:.3f} [{ratio['least']:.3f}, {ratio['most']:.3f}]")
    print(f"{'expected from the parts, mapo / dpo':72} {parts['expected mapo / dpo']:.3f}")
    print(f"{'forwards of a step, in pictures':72} {forwards['mapo']} and {forwards['dpo']}")
    if args.out:
        write_measured(args.out / ("step.json" if args.model == "mini" else f"step-{args.model}.json"), result)


if __name__ == "__main__":
    main()
