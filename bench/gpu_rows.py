"""What a process of bench/gpu.py does: it prepares, counts, or measures one row at some sizes.

    python bench/gpu_rows.py '{"task": "measure", …}'

It takes its task as JSON and says what it found as a line of JSON each. The networks have random weights, made where
they are used: nothing large is read.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mapo.devices import best_device
from mapo.encode.cache import Cache, cache_key
from mapo.encode.encoding import to_pixels
from mapo.encode.fill import encode
from mapo.encode.frame import square
from mapo.errors import MapoError, is_out_of_memory
from mapo.models import Frames, Opened, find_model, open_model
from mapo.models.files import ModelFiles
from mapo.pairs import PairSet
from mapo.settings import parse_set
from mapo.train.batches import Members, draws, prefetched
from mapo.train.config import Config, make_config
from mapo.train.loop import Loop
from mapo.train.objectives import OBJECTIVES, Objective
from mapo.train.plan.live import Live
from mapo.train.plan.outlines import Outlines
from mapo.train.plan.rehearsal import META, _batch
from mapo.train.processes.processes import Place, Processes
from mapo.train.types import Batch
from mapo.train.weights.levers import check_levers
from mapo.train.weights.opening import open_trained
from mapo.train.weights.speed import check_speed
from step import anonymous_memory, synchronise

Row = dict[str, Any]
PAIRS = 32
STEPS = 10_000  # that the run would have
LEAST = 3  # steps that are timed, however long they take
DECIDES = ("adapter.kind", "adapter.rank", "train.reference")  # of a row's settings, how much arithmetic a pair takes


@dataclass(frozen=True)
class AtRandom(ModelFiles):
    """A model's files whose parts have random weights in place of their own, made on the device."""

    device: torch.device = field(default=torch.device("cpu"))

    def load(self, part: str, kind: Any, dtype: Any = torch.float32, loras: bool = True) -> Any:
        """The network of a part."""
        network: nn.Module = copy.deepcopy(self.outline(part, kind))
        exact = tuple(getattr(kind, "_keep_in_fp32_modules", None) or ())
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point() and not any(one in name for one in exact):
                tensor.data = tensor.data.to(dtype)
        network.to_empty(device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            for name, buffer in network.named_buffers():
                if name.endswith("position_ids"):
                    buffer.copy_(torch.arange(buffer.shape[-1], device=self.device).expand(buffer.shape))
                elif name == "pos_embed.pos_embed":  # of SD3's transformer: sines, kept as weights are
                    buffer.uniform_(-1, 1, generator=generator)
                else:
                    raise MapoError(f"{part}: nobody told how to make {name}. Take another model.")
        return network


def device_at_hand() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device(best_device())


def open_at_random(name: str) -> Opened:
    """A model with random weights on the device."""
    return open_model(AtRandom(**vars(find_model(name)), device=device_at_hand()), to_train=False)


# ---------------------------------------------------------------------- before all tables


def make_set(folder: Path, side: int) -> Path:
    """Pairs of pictures that are about as much work to decode as photographs: smooth, as JPEG."""
    from PIL import Image

    from mapo.pairs import PairWriter

    rng = random.Random(0)

    def picture() -> bytes:
        colours = Image.frombytes("RGB", (16, 16), rng.randbytes(3 * 16**2))
        held = io.BytesIO()
        colours.resize((side, side), Image.Resampling.BICUBIC).save(held, "JPEG", quality=90)
        return held.getvalue()

    if not (folder / "set.json").exists():
        with PairWriter(folder, {"made": "by bench/gpu.py"}) as writer:
            for k in range(PAIRS):
                writer.add_pair(f"a small red circle number {k}", picture(), picture(), split="train")
    return folder


def prepare(work: Path, model: str, side: int) -> None:
    """The model's folder without weights, the pairs, and what random encoders make of them; what is there stays."""
    make_outline(work, model)
    pairs = PairSet(make_set(work / f"pairs-{side}", side))
    encode(open_at_random(model), pairs, cache_of(work, model, side), resolution=side, device=device_at_hand())


def make_outline(work: Path, model: str) -> None:
    """The folder of a model's configurations, where it is one of those whose real size is known."""
    from real_size import PARAMETERS, make_model

    name = Path(model).name
    if not Path(model).exists() and name in PARAMETERS and model == str(work / name):
        make_model(work / name, name, weights=False)


def cache_of(work: Path, model: str, side: int) -> Path:
    """Where the encoded pairs of a model lie."""
    return work / f"cache-{Path(model).name}-{side}"


def about_the_card() -> Row:
    """Its name, and 10¹² operations a second in products of large bfloat16 matrices, the best of five."""
    import platform

    gpu = torch.cuda.is_available()
    side, times = (8192, 20) if gpu else (1024, 2)
    a = torch.randn(side, side, device=device_at_hand(), dtype=torch.bfloat16)
    best = 0.0
    for _ in range(5):
        synchronise()
        began = time.perf_counter()
        for _ in range(times):
            a @ a
        synchronise()
        best = max(best, 2 * side**3 * times / (time.perf_counter() - began) / 1e12)
    name = torch.cuda.get_device_name() if gpu else platform.machine()
    return {"device": name, "torch": torch.__version__, "peak in bfloat16, 10^12 a second": best}


# ---------------------------------------------------------------------- the loop


def config_of(row: Row, model: str, work: Path, size: int, side: int) -> tuple[Config, Objective]:
    """The settings of `train` that a row has."""
    name = row.get("objective", "mapo")
    settings = parse_set([f"{key}={json.dumps(value).strip(chr(34))}" for key, value in row.items() if "." in key])
    settings["train"] = {**settings.get("train", {}), "pairs_per_step": size, "steps": STEPS}
    settings["optim"] = {"lr": 1e-5, **settings.get("optim", {})}
    settings |= {"model": model, "pairs": str(work / f"pairs-{side}"), "data": {"resolution": side}}
    settings["objective"] = {"name": name, **OBJECTIVES[name].settings}
    return make_config(settings), OBJECTIVES[name]


def open_loop(row: Row, model_name: str, work: Path, size: int, side: int) -> Loop:
    """The training loop as `mapo train` builds it, on a model with random weights."""
    config, objective = config_of(row, model_name, work, size, side)
    processes = Processes(Place(), device_at_hand())
    check_levers(config, processes)
    check_speed(config, processes.device)
    pairs, model = PairSet(work / f"pairs-{side}"), open_at_random(model_name)
    cache = Cache(cache_of(work, model_name, side), cache_key(model, side))
    trained = open_trained(config, model, objective, processes, None)
    return _known(Loop(config, objective, processes, Members(pairs, np.arange(len(pairs))), cache, trained))


def of_another_size(loop: Loop, size: int) -> Loop:
    """The same loop, on the same weights, with another number of pairs a step."""
    config = loop.config.model_copy(update={"train": loop.config.train.model_copy(update={"pairs_per_step": size})})
    return _known(Loop(config, loop.objective, loop.processes, loop.members, loop.cache, loop.trained))


def _known(loop: Loop) -> Loop:
    """With made-up errors of a reference that was run before: they are read from a table in any case."""
    if loop.objective.needs_reference and loop.config.train.reference == "before":
        loop.known = torch.full((2, STEPS * loop.config.train.pairs_per_step), 0.1)
    return loop


def encoded_in_the_step(loop: Loop, half: bool) -> Iterator[None]:
    """The loop's own steps on batches whose pictures and prompts are encoded within them. `train` has no such mode.

    Pictures are decoded while the step before is at work, as they would be by a worker. The VAE is in float32, and the
    text encoders are so too or in ``half``, as public scripts have them. Positions decide what is drawn, as always.
    """
    model: Any = loop.trained.model
    device, seed, side = loop.processes.device, loop.config.train.seed, loop.cache.resolution
    kind = torch.float32 if not half else torch.float16 if device.type == "cuda" else torch.bfloat16
    pictures, encoders = model.image_encoder(device), tuple(model.load_text_encoders(device, kind).values())

    def ready(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if device.type == "cuda" else tensor

    def decoded(positions: Sequence[int]) -> tuple[Tensor, list[Any], Batch]:
        drawn = draws(positions, len(loop.members), loop.process, model.layout.latent(side, side), seed=seed)
        pairs = [loop.members[draw.row] for draw in drawn]
        names = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs if pair.rejected]
        seen = [to_pixels(loop.members.pairs.image(name), square(side)) for name in names]
        ones = torch.ones(len(pairs), dtype=torch.float64)
        samples = torch.stack([draw.samples[which] for which in (0, 1) for draw in drawn])
        told = {"sizes": torch.tensor([size for _, size in seen])}
        noise, t = torch.stack([draw.noise for draw in drawn]), torch.stack([draw.time for draw in drawn])
        batch = Batch(samples, told, ones, ones, noise.to(loop.dtype), t, tuple(p.id for p in pairs), certain=True)
        return ready(torch.stack([pixels for pixels, _ in seen])), model.tokens([p.prompt for p in pairs]), batch

    @torch.no_grad()
    def encoded(pixels: Tensor, tokens: list[Any], batch: Batch) -> Batch:
        batch = (batch.pinned() if device.type == "cuda" else batch).to(device)
        mean, logvar = pictures(pixels.to(device, non_blocking=True))
        latents = model.scale(mean + (0.5 * logvar.clamp(-30, 20)).exp() * batch.latents)
        text = {name: values.float() for name, values in model.encode_prompts(encoders, tokens).items()}
        cond = model.condition(text, Frames.alike(batch.cond["sizes"], square(side)))
        return replace(batch, latents=latents.to(loop.dtype), cond=cond)

    jobs = (partial(decoded, places) for step in itertools.count() for places in loop.micro_batches(step))
    batches = (encoded(*item) for item in prefetched(jobs))
    before = None
    for step in itertools.count():
        told = loop.one_step(step, batches)
        if before is not None and before.numbers.read()[0]:
            raise MapoError("A loss is not finite.")
        before = told
        yield


# ---------------------------------------------------------------------- what is measured


def arithmetic(row: Row, model_name: str, work: Path, side: int) -> float:
    """10¹² operations of one pair of a row, by PyTorch's counter. No device is needed: tensors have no numbers.

    Attention counts as its two products, and nothing is computed twice, whatever the row's settings are.
    """
    from torch.utils.flop_counter import FlopCounterMode

    decides = {key: value for key, value in row.items() if key in DECIDES or key == "objective"}
    config, objective = config_of(decides, model_name, work, 1, side)
    members = Members(PairSet(work / f"pairs-{side}"), np.arange(PAIRS))
    nothing: Any = None
    with Live(META), META:
        model = open_model(Outlines(**vars(find_model(model_name))), to_train=False)
        trained = open_trained(config, model, objective, Processes(Place(), META), None)
        trained.updater.end = lambda good: None  # type: ignore[method-assign]  # the optimizer is not counted
        trained.predictor = lambda network: partial(trained.model.predict, network)  # type: ignore[method-assign]
        loop = Loop(config, objective, Processes(Place(), META), members, nothing, trained)
        batch = _batch(loop, 1, [square(side)])
        with FlopCounterMode(display=False) as counter:
            loop.one_step(0, iter([batch]))
    return float(counter.get_total_flops()) / 1e12


def timed(loop: Loop, steps: Iterator[Any], warm: int, most: int, seconds: float, strict: bool) -> Row:
    """Seconds of a step after some that warm up, over as many as take about ``seconds``, and the peak of memory.

    ``strict``: whoever waits for the GPU within them ends the row.
    """
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(max(1, warm)):
        next(steps)
    synchronise()
    began = time.perf_counter()
    next(steps)
    synchronise()
    times = max(LEAST, min(most, int(seconds / (time.perf_counter() - began)))) if most >= LEAST else most
    if strict and gpu:
        torch.cuda.set_sync_debug_mode("error")
    began = time.perf_counter()
    for _ in range(times):
        next(steps)
    if gpu:
        torch.cuda.set_sync_debug_mode("default")
    synchronise()
    one, size = (time.perf_counter() - began) / times, loop.config.train.pairs_per_step
    found = {"seconds": one, "steps": times, "pairs_per_second": size / one, "peak_gib": anonymous_memory() / 1024}
    return {**found, "reserved_gib": torch.cuda.max_memory_reserved() / 2**30} if gpu else found


def measure(task: Row) -> Iterator[Row]:
    """A row at some sizes, one after the other on the same weights; one that does not fit ends the larger ones."""
    row, where = task["row"], (task["model"], Path(task["work"]))
    loop: Loop | None = None
    for size in task["sizes"]:
        try:
            if loop is None:
                loop = open_loop(row, *where, size, task["side"])
            else:
                loop = of_another_size(loop, size)
                torch.compiler.reset()  # or the next size would be compiled for any
            way = row.get("way")
            steps: Any = encoded_in_the_step(loop, way == "public") if way else loop.run(0)
            with contextlib.closing(steps):
                yield {
                    "pairs": size,
                    **timed(loop, steps, task["warm"], task["steps"], task["seconds"], row.get("strict", False)),
                }
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            yield {"pairs": size, "failed": "out of memory"}
            return
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    """Do what is asked for; what goes wrong is said in the last line."""
    task = json.loads(sys.argv[1])
    work, model, side = Path(task["work"]), task["model"], task["side"]
    try:
        if task["task"] == "prepare":
            prepare(work, model, side)
            found: Iterator[Row] = iter([about_the_card()])
        elif task["task"] == "count":
            found = ({"counted": name, "teraflop": arithmetic(row, model, work, side)} for name, row in task["rows"])
        else:
            found = measure(task)
        for one in found:
            print(json.dumps(one), flush=True)
    except (MapoError, RuntimeError, ImportError) as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"[:400]}), flush=True)


if __name__ == "__main__":
    main()
