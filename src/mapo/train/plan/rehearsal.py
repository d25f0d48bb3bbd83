"""A step of a training rehearsed on the meta device: the real code, on tensors that have shapes and no numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mapo.encode.cache import DTYPES
from mapo.encode.frame import Frame
from mapo.models import Frames, Opened, TokenModel
from mapo.models.family import Cond
from mapo.train.batches import Members
from mapo.train.config import Config
from mapo.train.loop import Loop
from mapo.train.objectives import Objective
from mapo.train.plan.kernels import attention_of, round_products
from mapo.train.plan.live import HEAP_MOST, Live
from mapo.train.plan.outlines import open_outlined
from mapo.train.processes.processes import Place, Processes
from mapo.train.processes.sharded import groups_of
from mapo.train.step import Predict
from mapo.train.types import Batch
from mapo.train.weights.levers import is_sharded
from mapo.train.weights.opening import Trained, open_trained

META = torch.device("meta")
SHARED = ("mapped", "weights", "trained", "gradients", "optimizer", "mean", "reference", "update")  # with fsdp2
PORTIONS = 2  # of a step, beyond which nothing is held that was not held before


@dataclass(frozen=True)
class Rehearsed:
    """What a step would hold: bytes of each kind at its peak, and how many numbers the networks and the training have.

    ``freed`` are the bytes of the largest tensor whose end a heap may not give back.
    """

    kinds: dict[str, int]
    parameters: int
    trained: int
    freed: int


def rehearse(
    config: Config, model: Opened, objective: Objective, members: Members, frames: Sequence[Frame], device: str,
    world: int = 1,
) -> Rehearsed:  # fmt: skip
    """Take one step without numbers as a process of ``world`` would on ``device``, and look at its peak.

    It is a step after the first one, so all that the optimizer keeps is there, in the largest of ``frames``.
    """
    share = math.ceil(config.train.pairs_per_step / world)
    config = config.model_copy(update={"train": config.train.model_copy(update={"pairs_per_step": share})})
    processes = Processes(Place(), META)
    sharded = is_sharded(config, Processes(Place(0, world), META))
    stays = device == "cpu" and not sharded  # in its file, where it is computed with
    live = Live(META, SHARED if sharded else (), world)
    with warnings.catch_warnings(action="ignore"), live, attention_of(device):
        model = open_outlined(model, live, stays)
        with live.of("other"), META:
            trained = open_trained(config, model, objective, processes, None)
            for network in (trained.network, trained.reference):
                if network is not None and trained.autocast:
                    round_products(network, device)
            loop = Loop(config, objective, processes, members, cast("Any", None), trained)
        _name_kinds(live, trained)
        _first_update(live, trained)
        with live.of("batch"):
            places = _portions(config, share)
            batches = [_batch(loop, len(one), frames) for one in places]
        _let_run(live, loop, places)
        live.again()
        loop.one_step(0, iter(batches))
    kinds = {**live.at_peak, "batch": 2 * live.at_peak.get("batch", 0)}  # the next one waits
    if sharded:
        kinds["gathered"] = _gathered(trained)
    elif world > 1:
        kinds["gradients"] = kinds.get("gradients", 0) + sum(_bytes(p) for p in trained.parameters.values())
    of_all = [p for one in (trained.denoiser, *trained.encoders.values()) for p in one.parameters()]
    numbers = sum(p.numel() for p in of_all), sum(p.numel() for p in trained.parameters.values())
    laid_out = (_bytes(p) for p in of_all if _bytes(p) <= HEAP_MOST)  # anew by kernels of the CPU, in memory of theirs
    return Rehearsed(kinds, *numbers, max(live.freed, *laid_out))


def _gathered(trained: Trained) -> int:
    """Bytes of what a process holds whole where weights are shared: what lies in no block, of two blocks the weights,
    as the next one is fetched meanwhile, and of one the gradients, which are copied before they are added up.
    """
    *blocks, rest = groups_of(trained.network).values()
    weights = max((sum(map(_bytes, block)) for block in blocks), default=0)
    gradients = max((sum(_bytes(one) for one in block if one.requires_grad) for block in [*blocks, rest]), default=0)
    return sum(map(_bytes, rest)) + 2 * weights + 2 * gradients


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _inner(trained: Trained) -> Any:
    """The updater that moves the weights, which may stand behind a running mean."""
    return getattr(trained.updater, "updater", trained.updater)


def _name_kinds(live: Live, trained: Trained) -> None:
    networks = (trained.denoiser, *trained.encoders.values())
    frozen = [p for one in networks for p in one.parameters() if not p.requires_grad]
    live.call("weights", [p for p in frozen if live.kind(p) != "mapped"])
    live.call("weights", [b for one in networks for b in one.buffers()])
    live.call("trained", trained.parameters.values())
    live.call("trained", [one.moved for one in _inner(trained).kept.values() if one.moved.numel() > 1])
    if trained.ema:
        live.call("mean", trained.updater.final().values())
    if trained.reference is not None:
        live.call("reference", [*trained.reference.parameters(), *trained.reference.buffers()])


def _first_update(live: Live, trained: Trained) -> None:
    """What the optimizer keeps is made in its first update."""
    with live.of("optimizer"), META, torch.compiler.set_stance("force_eager"):
        for part in _inner(trained).parts:
            for one in part.kept.values():
                one.parameter.grad = torch.empty_like(one.parameter)
            part.move(0, 0.0)


def _let_run(live: Live, loop: Loop, places: list[list[int]]) -> None:
    """Let the loop go through ``places``, and tell apart what its step makes."""
    trained, updater = loop.trained, loop.trained.updater

    def predictor(network: nn.Module) -> Predict:
        def predict(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            if trained.encoders:
                return network(x_t.to(trained.dtype), t, cond)  # type: ignore[no-any-return]
            return trained.model.predict(network, x_t.to(trained.dtype), t, cond)

        return predict

    def end(good: Tensor) -> Tensor | None:
        with live.of("update"):
            return ended(good)

    def has_come(parameter: Tensor) -> None:
        if parameter.grad is not None:
            live.call("gradients", [parameter.grad])

    ended = updater.end
    for owner, name, stand_in in (
        (trained, "predictor", predictor), (updater, "end", end), (loop, "micro_batches", lambda step: places)
    ):  # fmt: skip
        setattr(owner, name, stand_in)
    for parameter in trained.parameters.values():
        parameter.register_post_accumulate_grad_hook(has_come)  # type: ignore[no-untyped-call]
    if loop.objective.needs_reference and loop.config.train.reference == "together":
        loop.reference = trained.reference_predictor()


def _portions(config: Config, share: int) -> list[list[int]]:
    """A step's first portions. With buckets a step may come in one frame, but for a pair."""
    most = min(config.train.pairs_per_device or share, share)
    found = [list(range(start, min(start + most, share))) for start in range(0, share, most)]
    if config.data.buckets and len(found) == 1 and share > 1:
        found.append([share - 1])
    return found[:PORTIONS]


def _batch(loop: Loop, pairs: int, frames: Sequence[Frame]) -> Batch:
    """What the cache would give of so many pairs in the largest of ``frames``."""
    model, config = loop.trained.model, loop.config
    frame = max(frames, key=lambda one: one.height * one.width)
    shape = model.layout.latent(*frame)
    known = DTYPES[config.data.cache_precision]
    found: Cond = {}
    tokens: Cond = {}
    if config.adapter.encodes:
        assert isinstance(model, TokenModel)
        tokens = {
            name: torch.zeros(pairs, model.files.chunks, *value.shape[1:], dtype=value.dtype, device=META)
            for name, value in model.tokens([""])[0].items()
        }
        tokens["zero"] = torch.zeros(pairs, dtype=torch.bool, device=META)
    else:
        for name, sides in model.prompt_shapes.items():
            long = (sides[0] * model.files.chunks, *sides[1:]) if len(sides) > 1 else sides
            found[name] = torch.zeros(pairs, *long, dtype=known, device=META)
    images = pairs * len(loop.members.pairs.sides)
    sizes = torch.zeros(images, 4, dtype=torch.int32, device=META)
    ones = torch.ones(pairs, dtype=torch.float64, device=META)
    time = loop.process.draw_time(1, torch.Generator(), shape)
    before = torch.ones(pairs, dtype=loop.dtype, device=META) if _known_before(loop) else None
    return Batch(
        torch.zeros(images, *shape, dtype=loop.dtype, device=META),
        model.condition(found, Frames.alike(sizes, frame)), ones, ones,
        torch.zeros(pairs, *shape, dtype=loop.dtype, device=META),
        torch.zeros(pairs, dtype=time.dtype, device=META), ("",) * pairs, tokens, loop.members.certain,
        before, before,
    )  # fmt: skip


def _known_before(loop: Loop) -> bool:
    return loop.objective.needs_reference and loop.config.train.reference == "before"
