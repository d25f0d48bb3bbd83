"""The processes of one training: how they find each other, and what they agree on.

``torchrun``, ``accelerate launch`` and Slurm only start processes. What is trained, and in which precision, stands in
the run's settings; what a launcher asks for beyond that is named in a sentence and changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from mapo.devices import best_device
from mapo.errors import MapoError, SaidElsewhere, foreseen, reason
from mapo.shards import number_of, slurm_tasks
from mapo.train.processes.peers import Peers

LOG = logging.getLogger(__name__)

T = TypeVar("T")
JOIN = timedelta(minutes=10)  # to wait for the other processes at the start
PATIENCE = timedelta(seconds=2)  # of one look for them, between which signals are heard
WAIT = timedelta(hours=3)  # for one of them that encodes or saves, and lives (``Peers``)
LAST_PORT = 65_535
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TORCHRUN = "Start the processes with `torchrun --nproc-per-node N -m mapo train …`"
ASKS = {  # what saved settings of `accelerate launch` may ask for, and the values that ask for nothing
    "ACCELERATE_MIXED_PRECISION": ("mixed precision", ("no",)),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("accumulated steps", ("1",)),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", ("false", "0")),
    "ACCELERATE_USE_FSDP": ("FSDP", ("false", "0")),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", ("false", "0")),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism of its own", ("false", "0")),
    "ACCELERATE_DYNAMO_BACKEND": ("torch.compile", ("no",)),
    "ACCELERATE_USE_CPU": ("the CPU", ("false", "0")),
}


@dataclass(frozen=True)
class Place:
    """Which process this is: ``rank`` of ``world``, and ``local`` on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0


def place_of_environment() -> Place:
    """What the launcher says. It is refused when it does not say enough to find the other processes."""
    if (port := number_of("MASTER_PORT", 1)) and port > LAST_PORT:
        raise MapoError(
            f"The variable MASTER_PORT is {port}, and ports end at {LAST_PORT}. Unset it, or choose another."
        )
    if os.environ.get("RANK") or (number_of("WORLD_SIZE", 1) or 1) > 1:
        return _of_torchrun()
    if slurm_tasks() > 1:
        return _of_slurm()
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if (number_of(name, 1) or 1) > 1:
            raise MapoError(f"mpirun started {os.environ[name]} processes, which cannot find each other. {TORCHRUN}.")
    return Place()


def _of_torchrun() -> Place:
    rank, world = number_of("RANK"), number_of("WORLD_SIZE")
    if rank is None or world is None:
        lacking = "RANK" if rank is None else "WORLD_SIZE"
        other = "WORLD_SIZE" if rank is None else "RANK"
        raise MapoError(f"The variable {other} is set and {lacking} is not. Unset it to train alone. {TORCHRUN}.")
    if rank >= world:
        raise MapoError(f"RANK is {rank} and WORLD_SIZE is {world}: there is no such process. Unset both. {TORCHRUN}.")
    if world == 1:
        return Place(local=number_of("LOCAL_RANK", 0) or 0)
    if lacking_names := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise MapoError(
            f"RANK {rank} of {world} cannot find the other processes: {' and '.join(lacking_names)} "
            f"{'are' if len(lacking_names) > 1 else 'is'} not set. "
            f"Unset RANK and WORLD_SIZE to train alone. {TORCHRUN}."
        )
    return Place(rank, world, number_of("LOCAL_RANK", 0) or 0)


def _of_slurm() -> Place:
    world = slurm_tasks()
    rank, local = number_of("SLURM_PROCID", 0) or 0, number_of("SLURM_LOCALID", 0) or 0
    if rank >= world:
        raise MapoError(f"SLURM_PROCID is {rank} of {world} tasks: there is no such process. Start with srun.")
    if not os.environ.get("MASTER_ADDR"):
        if (number_of("SLURM_STEP_NUM_NODES", number_of("SLURM_JOB_NUM_NODES", 1)) or 1) > 1:
            raise MapoError(
                "Slurm started processes on several machines, and MASTER_ADDR does not say which is the first. Put "
                'this line before srun: export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            )
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    job, step = number_of("SLURM_JOB_ID", 0) or 0, number_of("SLURM_STEP_ID", 0) or 0
    os.environ.setdefault("MASTER_PORT", str(20_000 + (job + 97 * step) % 20_000))
    return Place(rank, world, local)


def what_is_not_done() -> str:
    """A sentence about what ``accelerate launch`` asks for and the run's settings decide; empty where there is none."""
    asked = []
    for name, (what, nothing) in ASKS.items():
        value = os.environ.get(name, "").strip().lower()
        if value and value not in nothing:
            asked.append(what if value in ("true", "1") else f"{what} ({value})")
    if not asked:
        return ""
    return (
        f"Note: the settings of accelerate ask for {', '.join(asked)}. They are not used: the run's own settings "
        "decide (train.precision, train.pairs_per_step, train.pairs_per_device; a GPU is used where there is one)."
    )


class Processes:
    """This process among those of the training. Alone, everything here costs nothing."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self.rank, self.world, self.device = place.rank, place.world, device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Tell people once, not by every process."""
        if self.main:
            LOG.info(text)

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag, true for all where it is true for one."""
        if self.world == 1:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(counts)
        return [count > 0 for count in counts.tolist()]

    def gather(self, value: T) -> list[T]:
        """The value of each process, known to all."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the first process. An error there ends all processes, and is said once."""
        if self.world == 1:
            return work()
        result: list[Any] = [None, None]
        error: Exception | None = None
        if self.main:
            try:
                result[0] = work()
            except Exception as raised:  # so that the others do not wait for ever
                error, result[1] = raised, str(raised)
        dist.broadcast_object_list(result, device=self.device if self.device.type == "cuda" else None)
        if error is not None:
            raise error
        if result[1] is not None:
            raise SaidElsewhere(result[1])
        return result[0]  # type: ignore[no-any-return]

    def each(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in this process, once all have come to its end; an error in one ends all."""
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        if self.world > 1 and any(self.agree(error is not None)) and error is None:
            raise SaidElsewhere("Another process has stopped.")
        if error is not None:
            raise error
        return result


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that were started together, joined over NCCL on GPUs and over gloo on CPUs."""
    place = place_of_environment()
    device = _device(place)
    if place.world == 1:
        yield Processes(place, device)
        return
    if os.environ["MASTER_ADDR"] in LOOPBACK or number_of("LOCAL_WORLD_SIZE", 0) == place.world:
        # gloo would ask for the address of the machine's name, which may have none
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store = _meet(place)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=WAIT)
    except (RuntimeError, ValueError, OSError) as error:
        raise MapoError(
            f"Process {place.rank} of {place.world} did not find the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({reason(error)}). {TORCHRUN}, or unset RANK and WORLD_SIZE to train alone."
        ) from None
    try:
        with Peers(store, place.rank, place.world) as peers:
            try:
                yield Processes(place, device)
            except BaseException as error:
                if isinstance(error, RuntimeError) and _is_of_the_connection(error):
                    raise MapoError(peers.why()) from None
                if not isinstance(error, SaidElsewhere):
                    peers.tell(_reason(error))
                raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _reason(error: BaseException) -> str:
    """What a process says of its end to the others, in a line."""
    if isinstance(error, KeyboardInterrupt):
        return "it was told to"
    said = foreseen(error) if isinstance(error, Exception) else None
    return said or f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def _is_of_the_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _meet(place: Place) -> Any:
    """Wait until all processes have come: a store that they share. A signal ends the waiting at once."""
    address, port = os.environ["MASTER_ADDR"], number_of("MASTER_PORT", 29_500) or 29_500
    kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    socket.getaddrinfo(address, port)  # a name that leads nowhere is said at once
    until, said = time.monotonic() + JOIN.total_seconds(), False
    store: Any = None
    missing = [f"here-{rank}" for rank in range(place.world)]
    while missing:
        try:
            if store is None:
                host = place.rank == 0 and not kept_by_torchrun
                store = TCPStore(address, port, None, host, PATIENCE, wait_for_workers=False)
                store = PrefixStore(f"mapo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
                store.set(f"here-{place.rank}", "")
            store.wait(missing[:1], PATIENCE)
            missing.pop(0)
        except (RuntimeError, ValueError) as error:  # nobody there yet
            if time.monotonic() > until or "in use" in str(error).lower():
                raise
            if not said:
                LOG.info(f"Process {place.rank} of {place.world} waits for the others at {address}:{port}.")
                said = True
            time.sleep(0.1)
    store.set_timeout(WAIT)
    return store


def _device(place: Place) -> torch.device:
    kind = best_device(or_a_macs=place.world == 1)
    if kind == "cuda":
        if place.world > 1 and place.local >= torch.cuda.device_count():
            raise MapoError(
                f"Process {place.local + 1} on this machine finds only {torch.cuda.device_count()} GPUs. Start one "
                "process per GPU, with --nproc-per-node or with --ntasks-per-node of Slurm."
            )
        torch.cuda.set_device(place.local if place.world > 1 else torch.cuda.current_device())
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(kind)
