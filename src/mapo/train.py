"""Training: from a cache of pairs to a run folder.

All state is one integer, the number of steps done: batches, noise, timesteps and the learning rate are functions of
it and of the seed. A run folder holds ``config.toml``, ``metrics.jsonl``, ``checkpoints/``, and when it is finished
the weights in diffusers' format and ``run.json``, which makes it a model.
"""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
import signal
import time
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from mapo import metrics
from mapo.adapters import add_adapter, trainable, without_adapter
from mapo.batches import Members, load_batch, prefetched, rows_at
from mapo.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from mapo.config import Config, differences, make_config, to_toml
from mapo.encode.cache import Cache, cache_key
from mapo.encode.fill import encode
from mapo.errors import DivergedError, MapoError, suggest
from mapo.families import Family, Model, family_of, find_model
from mapo.files import prepare_out, replacing, write_json, write_text
from mapo.noise import Schedule
from mapo.objectives import NEEDS_REFERENCE, OBJECTIVES, settings_of
from mapo.optim import learning_rate, make_optimizer
from mapo.pairs import PairSet
from mapo.step import Predict, pair_errors, pair_losses, pair_metrics
from mapo.types import Batch

RUN_FORMAT, RUN_VERSION = "mapo-run", 1
MAY_CHANGE = {
    "cache",
    "pairs",
    "model",
    "train.steps",
    "train.save_every_steps",
    "train.pairs_per_device",
    "train.gradient_checkpointing",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}  # of the weights


def train(config: Config, out: Path) -> None:
    """Train as ``config`` says into the run folder ``out``, or go on where an earlier run of it stopped."""
    config = _with_objective_defaults(config)
    pairs = PairSet(Path(config.pairs))
    members, ties = _members(pairs, config)
    model = find_model(config.model)
    family = family_of(model)
    cache_key(family, model, config.data.resolution, config.data.flip)  # refuses a resolution that does not fit
    identity = {"pairs": pairs.fingerprint(), "model": model.revision()}
    accelerator = Accelerator()
    with accelerator.main_process_first():
        checkpoint = _open_run(config, out, identity)
    if checkpoint and _steps_of(checkpoint) >= config.train.steps and (out / "run.json").exists():
        print(f"{out} has done its {_steps_of(checkpoint)} steps. Ask for more with --set train.steps=N.")
        return
    if ties and accelerator.is_main_process:
        is_kept = config.data.ties == "keep"
        print(f"{ties} ties are " + ("trained on as ties." if is_kept else "left out (data.ties=keep trains on them)."))

    cache = _open_cache(config, family, model, pairs, accelerator)
    dtype = DTYPES[config.train.precision]
    denoiser = family.load_denoiser(model, accelerator.device, dtype)
    reference_copy = None
    if config.objective.name in NEEDS_REFERENCE and config.adapter.kind == "full":
        reference_copy = copy.deepcopy(denoiser).requires_grad_(False).eval()
    add_adapter(denoiser, family, config.adapter, config.train.seed)
    if config.train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    denoiser.train()
    names = trainable(denoiser)
    optimizer = make_optimizer(names.values(), config.optim)
    step = 0
    if checkpoint:
        weights, moments, state = load_checkpoint(checkpoint)
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.copy_(weights[name])
        load_optimizer_tensors(optimizer, names, moments)
        step = int(state["step"])
    if accelerator.is_main_process:
        metrics.cut_back(out / "metrics.jsonl", step)

    wrapped = accelerator.prepare_model(denoiser) if accelerator.num_processes > 1 else denoiser
    loop = Loop(config, accelerator, family, model, members, cache, wrapped, denoiser, reference_copy, optimizer)
    bar = tqdm(
        total=config.train.steps, initial=step, desc="train", unit="step", disable=not accelerator.is_main_process
    )
    with interruptible() as interrupted:
        for values in loop.run(step):
            step = int(values["step"])
            if accelerator.is_main_process:
                metrics.append(out / "metrics.jsonl", values)
                bar.set_postfix(
                    accuracy=f"{values['accuracy']:.2f}", margin=f"{values['margin']:.4f}",
                    pairs_s=f"{values['pairs_per_second']:.1f}",
                )  # fmt: skip
                bar.update()
            stop = interrupted() or step == config.train.steps
            if accelerator.is_main_process and (stop or step % config.train.save_every_steps == 0):
                _save(out, step, names, optimizer, identity)
            if interrupted() and step < config.train.steps:
                raise KeyboardInterrupt
    bar.close()
    if accelerator.is_main_process:
        _finish(config, out, family, model, denoiser, step, sensitive=bool(pairs.info.get("sensitive")))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _members(pairs: PairSet, config: Config) -> tuple[Members, int]:
    """The pairs of ``pairs`` that the configuration asks for, and how many ties its split has."""
    splits, sure = (np.array(pairs.table[c].to_pylist()) for c in ("split", "preference"))
    inside = (splits == config.data.split) | (config.data.split == "all")
    ties = int((inside & (sure == 0.5)).sum())
    keep = inside & ((sure > 0.5) | (config.data.ties == "keep"))
    if not keep.any():
        hint = "keep ties with --set data.ties=keep" if ties else "try --set data.split=all"
        but = f" but {ties} ties" if ties else ""
        raise MapoError(f"{config.pairs} has no pairs{but} in the split {config.data.split!r}; {hint}.")
    return Members(pairs, np.flatnonzero(keep)), ties


class Loop:
    """The training loop: yields the metrics of each step after the weights have moved."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        family: Family,
        model: Model,
        members: Members,
        cache: Cache,
        wrapped: nn.Module,
        denoiser: nn.Module,
        reference_copy: nn.Module | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.config, self.accelerator, self.members, self.optimizer = config, accelerator, members, optimizer
        self.wrapped, self.denoiser, self.reference_copy = wrapped, denoiser, reference_copy
        self.family = family
        self.schedule: Schedule = family.schedule(model)
        self.dtype = DTYPES[config.train.precision]
        self.batch_at = partial(
            load_batch,
            pairs=members,
            cache=cache,
            family=family,
            model=model,
            seed=config.train.seed,
            resolution=config.data.resolution or family.resolution(model),
            num_timesteps=self.schedule.num_timesteps,
            flip=config.data.flip,
            dtype=self.dtype,
        )
        size, world = config.train.pairs_per_step, accelerator.num_processes
        if size < world:
            raise MapoError(
                f"train.pairs_per_step is {size}, but there are {world} processes. Make it at least {world}."
            )
        self.first, self.last = (size * r // world for r in (accelerator.process_index, accelerator.process_index + 1))

    def micro_batches(self, step: int) -> list[range]:
        """The positions of this process's pairs of a step, in portions that fit the device."""
        start = step * self.config.train.pairs_per_step
        most = self.config.train.pairs_per_device or self.last - self.first
        return [range(start + k, start + min(k + most, self.last)) for k in range(self.first, self.last, most)]

    def total_weight(self, step: int) -> float:
        """The weight of the whole step's pairs over all processes."""
        size = self.config.train.pairs_per_step
        positions = range(step * size, (step + 1) * size)
        rows = rows_at(positions, len(self.members), self.config.train.seed)
        return float(self.members.weights[rows].sum()) or 1.0

    def predictor(self, denoiser: nn.Module) -> Predict:
        """The family's call of a denoiser, under this run's precision."""

        def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.config.train.precision == "bfloat16"):
                return self.family.predict(denoiser, x_t, t, cond)

        return predict

    def reference(self) -> Predict | None:
        """The reference's prediction, where the objective asks for one."""
        if self.config.objective.name not in NEEDS_REFERENCE:
            return None
        if self.reference_copy is not None:
            return self.predictor(self.reference_copy)
        adapted = self.predictor(self.denoiser)

        def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            with without_adapter(self.denoiser):
                return adapted(x_t, t, cond)

        return predict

    def run(self, first_step: int) -> Iterator[dict[str, float]]:
        """Steps from ``first_step`` to the end."""
        steps = range(first_step, self.config.train.steps)
        jobs = (partial(self.batch_at, list(p)) for step in steps for p in self.micro_batches(step))
        batches = prefetched(jobs)
        predict, reference = self.predictor(self.wrapped), self.reference()
        for step in steps:
            began = time.perf_counter()
            values = self.one_step(step, batches, predict, reference)
            seconds = time.perf_counter() - began
            size = self.config.train.pairs_per_step
            yield {
                "step": step + 1,
                "pairs_seen": (step + 1) * size,
                **values,
                "pairs_per_second": size / seconds,
                "seconds": seconds,
            }

    def one_step(
        self, step: int, batches: Iterator[Batch], predict: Predict, reference: Predict | None
    ) -> dict[str, float]:
        """Errors, loss, gradient and update of one step; its means over all pairs and processes."""
        objective, settings = self.config.objective.name, self.config.objective.settings
        rate = learning_rate(step, self.config.train.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total, micros = self.total_weight(step), self.micro_batches(step)
        sums: dict[str, Tensor] = {}
        for number in range(len(micros)):
            batch = next(batches).to(self.accelerator.device)
            last = number == len(micros) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                errors = pair_errors(predict, batch, self.schedule, reference)
                losses = pair_losses(objective, errors, settings, batch.preference)
                _check_finite(losses, batch, step + 1)
                loss = (losses * batch.weight.to(losses.device)).sum() / total
                self.accelerator.backward(loss * self.accelerator.num_processes)
            for name, value in pair_metrics(objective, errors, losses, settings).items():
                sums[name] = sums.get(name, 0) + value.sum()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.optim.clip_norm))
        if not math.isfinite(norm):
            raise DivergedError(
                f"Step {step + 1}: the gradient is not finite; the weights were left as they were. "
                f"Pairs {', '.join(batch.ids[:5])}, timesteps {batch.timesteps[:5].tolist()}. Try a lower optim.lr, "
                "or train.precision=float32."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        device = self.accelerator.device
        stacked = self.accelerator.reduce(torch.stack([s.float().to(device) for s in sums.values()]))
        means = (stacked / self.config.train.pairs_per_step).tolist()
        return {**dict(zip(sums, means, strict=True)), "grad_norm": norm, "lr": rate}


def _check_finite(losses: Tensor, batch: Batch, step: int) -> None:
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        named = ", ".join(f"{batch.ids[i]} (timestep {int(batch.timesteps[i])})" for i in bad[:5])
        raise DivergedError(
            f"Step {step}: the loss is not finite for {len(bad)} pairs: {named}. The weights were left as they were. "
            "Look at these pictures, try a lower optim.lr, or train.precision=float32."
        )


def _with_objective_defaults(config: Config) -> Config:
    """The configuration with every knob of its objective spelled out; an unknown name or knob is an error."""
    name = config.objective.name
    if name not in OBJECTIVES:
        raise MapoError(f"There is no objective {name!r}. {suggest(name, OBJECTIVES)}")
    known = settings_of(name)
    for key, value in config.objective.settings.items():
        if key not in known:
            raise MapoError(
                f"The objective {name} has no setting {key!r}. {suggest(key, known) if known else ''}".strip()
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MapoError(f"The setting objective.{key} = {value!r} is no number.")
    return make_config(config.model_dump() | {"objective": {"name": name, **known, **config.objective.settings}})


def _checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step-*"))


def _steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _open_run(config: Config, out: Path, identity: dict[str, str]) -> Path | None:
    """Prepare a new run folder, or check that an old one can go on; its newest checkpoint."""
    old = out / "config.toml"
    if not old.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise MapoError(f"{out} exists and is no run. Choose another --out.")
        prepare_out(out)
        out.mkdir(exist_ok=True)
        write_text(old, to_toml(config))
        return None
    found = _checkpoints(out)
    if not found:  # nothing was trained yet, so nothing is bound to the old settings
        write_text(old, to_toml(config))
        return None
    checkpoint, state = found[-1], load_checkpoint(found[-1])[2]
    before = tomllib.loads(old.read_text("utf-8"))
    changed = [k for k in differences(before, tomllib.loads(to_toml(config))) if k not in MAY_CHANGE]
    changed += [f"the content of {k}" for k, v in identity.items() if state.get(k) != v]
    if changed:
        raise MapoError(
            f"{out} was made with other settings ({', '.join(changed)}). Choose another --out, or delete it first."
        )
    done = _steps_of(checkpoint)
    if done > config.train.steps:
        raise MapoError(f"{out} has done {done} steps already, train.steps asks for {config.train.steps}.")
    write_text(old, to_toml(config))
    return checkpoint


def _open_cache(config: Config, family: Family, model: Model, pairs: PairSet, accelerator: Accelerator) -> Cache:
    """The cache of the pairs, completed first where something is missing."""
    folder = Path(config.cache) if config.cache else pairs.folder.resolve().parent / "cache"
    key = cache_key(family, model, config.data.resolution, config.data.flip)
    if accelerator.is_main_process:
        encode(
            family, model, pairs, folder,
            resolution=config.data.resolution, flip=config.data.flip, device=accelerator.device,
        )  # fmt: skip
    accelerator.wait_for_everyone()
    return Cache(folder, key)


def _save(
    out: Path, step: int, names: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, identity: dict[str, str]
) -> None:
    before = _checkpoints(out)
    folder = out / "checkpoints" / f"step-{step:08d}"
    save_checkpoint(folder, names, optimizer_tensors(optimizer, names), {"step": step, **identity})
    for old in before:
        if old != folder:
            shutil.rmtree(old)


def _finish(
    config: Config, out: Path, family: Family, model: Model, denoiser: nn.Module, step: int, sensitive: bool
) -> None:
    """Write the weights in diffusers' format, then ``run.json``, which says that they are whole."""
    with replacing(out / "weights") as temporary:
        temporary.mkdir()
        if config.adapter.kind == "lora":
            family.save_lora(denoiser, temporary)
        else:
            family.save_denoiser(denoiser.float() if config.train.precision == "float64" else denoiser, temporary)
    where = "weights" if config.adapter.kind == "lora" else "weights/unet"
    write_json(
        out / "run.json",
        {
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "base": model.stable_name,
            "adapter": config.adapter.kind,
            "denoiser": where,
            "objective": config.objective.name,
            "steps": step,
            "pairs_seen": step * config.train.pairs_per_step,
            "sensitive": sensitive,  # reports about its pictures blur them until asked
        },
    )


@contextlib.contextmanager
def interruptible() -> Iterator[Any]:
    """Within the block the first Ctrl-C (or SIGTERM) only asks to stop after the step; the second stops at once."""
    asked = False
    old: dict[int, Any] = {}

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with contextlib.suppress(ValueError):  # only the main thread may install handlers
        old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
