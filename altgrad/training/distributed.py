"""One run on several processes, as torchrun starts them: who they are, what they share, and what they agree on.

Every process has as many rows of each batch, and the model whole (DDP) or its shards (FSDP2). Gradients are summed,
losses averaged, per-tensor amax is that of the processes which `scaling.reduce` names, and draws are those which the
rows have in the whole batch: the run is that of one process but for the order of additions. Process 0 has the record.

First the processes check that all were started with the same config, code, data and options. Short messages between
them are JSON in torchrun's store; tensors go by gloo, or by nccl on a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config import ExperimentConfig, UsageError, flat, one_line
from altgrad.ranks import over_group

WAIT_SECONDS = 300.0
"""How long the processes wait for one another before the first step."""

_RUNS = itertools.count()
"""The runs of this process, which in all processes are the same: each has names of its own in their store."""


class ProcessLost(UsageError):
    """Another process of the run has ended or cannot be reached."""


class Processes:
    """The processes of a run, as seen from one of them; by default there is no other.

    Attributes:
        rank, count: the number of this process, from 0, and how many there are.
        kind: "ddp", "fsdp2" or None, as the config has it.
        group: torch.distributed's process group of all; None where there is one process.
        scales: that over which amax is taken; None for a process's own.
    """

    def __init__(self, kind: str | None = None, rank: int = 0, count: int = 1, store: Any = None) -> None:
        self.kind, self.rank, self.count = kind, rank, count
        self.group: Any = None
        self.scales: Any = None
        self._store, self._asked = store, 0
        self._wrapped: Any = None

    def rows(self, batch: int) -> slice:
        """Which rows of a batch are this process's."""
        size = batch // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def place(self, model: nn.Module, loss: Callable[..., Tensor], device: str) -> None:
        """Put a model where the processes have it, before an optimizer is made for it; `loss` trains it."""
        if self.group is None:
            return
        if self.kind == "ddp":
            with _quiet():  # of a new name for broadcast_buffers
                self._wrapped = nn.parallel.DistributedDataParallel(_Loss(model, loss), broadcast_buffers=False)
            self._wrapped.register_comm_hook(self.group, _summed)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # The logits are a view, which nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
        mesh = init_device_mesh(device, (self.count,))
        for part in (*getattr(model, "blocks", ()), model):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            part.set_gradient_divide_factor(1.0)  # gradients are summed: see `_summed`
            part.set_force_sum_reduction_for_comms(True)
        self._wrapped = model

    def compute(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What trains by `loss`: the one that `place` was given, or a graph of it."""
        if self.group is None or self.kind != "ddp":
            return loss
        self._wrapped.module.loss = loss
        return self._wrapped  # type: ignore[no-any-return]

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Around the passes of one batch of a step: the gradients of all processes are summed after the `last`."""
        if self.group is not None and self.kind == "fsdp2":
            self._wrapped.set_requires_gradient_sync(last)
        elif self.group is not None and not last:
            return self._wrapped.no_sync()  # type: ignore[no-any-return]
        return contextlib.nullcontext()

    def mean(self, losses: Sequence[Tensor]) -> list[float]:
        """Losses of a batch each, of this process's rows, as those of the whole batches."""
        if self.group is None:
            return [loss.item() for loss in losses]
        whole: list[float] = (over_group(torch.stack(list(losses)).double(), self.group, "sum") / self.count).tolist()
        return whole

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        device = torch.device("cuda") if self.group is not None and torch.distributed.get_backend() == "nccl" else None
        return bool(over_group(torch.tensor(float(flag), device=device), self.group)) if self.group else flag

    def tell(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; JSON. All of them call it, and wait for each other."""
        if self._store is None:
            return [value]
        if self.group is not None:
            torch.distributed.barrier(self.group)  # where a process has gone this fails at once
        self._asked += 1
        self._store.set(f"{self._asked}/{self.rank}", json.dumps(value))
        return [json.loads(self._heard(rank)) for rank in range(self.count)]

    def _heard(self, rank: int) -> str:
        key, until = f"{self._asked}/{rank}", time.monotonic() + WAIT_SECONDS
        while not self._store.check([key]):
            if time.monotonic() > until:
                missing = f"process {rank} of {self.count} did not come within {WAIT_SECONDS:.0f} s"
                raise ProcessLost(f"{missing}; see what it says, and start all of them again")
            time.sleep(0.02)
        return str(self._store.get(key).decode())

    def first(self, call: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """What `call` returns on process 0: a pair of something that stays there (None elsewhere), and JSON for all.

        Where it raises, the others leave: process 0 says why.
        """
        kept, told, error = None, None, None
        if self.rank == 0:
            try:
                kept, told = call()
            except BaseException as raised:
                error = raised
        ends, told = self.tell((error is not None, told))[0]
        if error is not None:
            raise error
        if ends:
            raise SystemExit(2)
        return kept, told

    def agree(self, started: Mapping[str, Any]) -> None:
        """Leave, with a line of process 0, where the processes have different things by these names; JSON."""
        _compare(self.tell(started), self.rank)

    def found(self, value: Any) -> Any:
        """The value of the first process that has one: what only some of them have seen."""
        return next(filter(None, self.tell(value)), None)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors of all processes into a folder, each its shards: safetensors of torch.distributed.checkpoint.

        All processes call it; the folder is there.

        Raises:
            OSError: a process could not write its files, in all of them.
        """
        from torch.distributed import checkpoint

        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            with _quiet():
                alone = self.group is None
                checkpoint.save(dict(tensors), storage_writer=writer, process_group=self.group, no_dist=alone)
        except checkpoint.CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            disk = next((cause for cause in causes if isinstance(cause, OSError)), None)
            raise disk or RuntimeError(f"shards cannot be written ({one_line(causes[0])[:160]})") from None

    def read(self, folder: Path, owners: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in a folder that any number of processes has written, on the CPU unless they have owners.

        Args:
            folder: as `write` left it.
            owners: by the beginnings of names, tensors like which those are to lie that have their shape.

        Raises:
            ValueError: the files do not hold such tensors.
        """
        from safetensors import SafetensorError
        from torch.distributed import checkpoint

        reader = checkpoint.HuggingFaceStorageReader(str(folder))
        found: dict[str, Tensor] = {}
        try:
            for name, about in reader.read_metadata().state_dict_metadata.items():
                dtype = about.properties.dtype
                owner = next((each for start, each in owners.items() if name.startswith(start)), None)
                alike = owner is not None and owner.shape == about.size
                found[name] = torch.zeros_like(owner, dtype=dtype) if alike else torch.zeros(about.size, dtype=dtype)
            with _quiet():
                checkpoint.load(found, storage_reader=reader, process_group=self.group, no_dist=self.group is None)
        except (SafetensorError, checkpoint.CheckpointException) as error:
            raise ValueError(f"shards cannot be read ({one_line(error)[:160]})") from None
        return found


class Nobody:
    """In the place of what only process 0 has: the record's writer, the mirror of the run. It does nothing."""

    url = None

    def __init__(self, path: Path) -> None:
        self.path, self.run_id = path, path.name
        self.run: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **more: None

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class _Loss(nn.Module):
    """The loss as a forward pass, which is what DDP wraps."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Any) -> Tensor:
        return self.loss(*batch)


def _summed(group, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations, and knows its own only
    """DDP's reduction of gradients as a sum: each process's loss is divided by their number, as one batch's would be.

    So grad_output has the size that it has on one process, and rounds alike.
    """
    future = torch.distributed.all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


@contextlib.contextmanager
def joined(config: ExperimentConfig, device: str, started: Mapping[str, Any]) -> Iterator[Processes]:
    """The processes of this run, while the block runs.

    Args:
        config: whose `parallel` says how they share the work. Without torchrun (RANK) there is one.
        device: "cpu" or "cuda"; each process of a machine has a GPU of its own.
        started: what all processes must have been started with, by the name that a message gives it; JSON.

    Raises:
        UsageError: processes that the config does not share the work among, a batch that they cannot share, processes
            that were started with different things or did not come, or (`ProcessLost`) one that ended later on.
    """
    launched = {name: os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE")}
    if not all(launched.values()):
        yield Processes(config.parallel)
        return
    try:
        rank, count = (int(value) for value in launched.values())
    except ValueError:
        raise UsageError(f"RANK and WORLD_SIZE must be whole numbers, not {launched}; start with torchrun") from None
    if config.parallel is None:
        if count > 1:
            raise UsageError(f"parallel is null and {count} processes were started; set it to ddp or fsdp2")
        yield Processes()
        return
    if config.batch_size % count:
        raise UsageError(f"batch_size: {config.batch_size} rows cannot be shared by {count} processes; change one")
    if device == "cuda":
        own = int(os.environ.get("LOCAL_RANK") or rank)
        if own >= torch.cuda.device_count():
            raise UsageError(f"--device cuda: process {own} of this machine sees {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(own)
    with _ending_early(count):
        processes = Processes(config.parallel, rank, count, _store(rank, count))
        processes.agree({"config": config.model_dump(mode="json"), **started})
    backend = "nccl" if device == "cuda" else "gloo"
    with told_of_loss():
        prefixed = torch.distributed.PrefixStore("group", processes._store)
        torch.distributed.init_process_group(backend, store=prefixed, rank=rank, world_size=count)
        processes.group = torch.distributed.group.WORLD
        if config.scaling.reduce == "all":
            processes.scales = processes.group
        elif config.scaling.reduce == "node":
            here = int(os.environ.get("LOCAL_WORLD_SIZE") or count)
            processes.scales, _ = torch.distributed.new_subgroups(here)
    try:
        yield processes
    except BaseException:
        if backend == "nccl":  # whose end waits for all processes
            raise
        torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def _store(rank: int, count: int) -> Any:
    try:
        store, _, _ = next(torch.distributed.rendezvous("env://", rank, count))
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"torchrun's store cannot be reached ({one_line(error)[:160]}); start with torchrun") from None
    return torch.distributed.PrefixStore(f"altgrad/{next(_RUNS)}", store)


def _compare(started: Sequence[Mapping[str, Any]], rank: int) -> None:
    """That all processes were started with the same; process 0 says what is not so."""
    first = started[0]
    for other, theirs in enumerate(started):
        different = [key for key in first if theirs.get(key) != first[key]]
        if not different:
            continue
        if rank:
            raise SystemExit(2)
        ours, config = (flat(each.get("config", {})) for each in (first, theirs))
        keys = ", ".join(key for key in {**ours, **config} if ours.get(key) != config.get(key))
        said = [f"config ({keys})" if key == "config" else key for key in different]
        raise UsageError(
            f"process {other} was started with another {' and another '.join(said)} than process 0: nothing was "
            "recorded; start all with one command and one copy of the code"
        )


@contextlib.contextmanager
def _ending_early(count: int) -> Iterator[None]:
    """While processes wait for one another, SIGTERM (by torchrun, where one has ended) is one line that says so."""

    def end(number: int, frame: FrameType | None) -> None:
        ended = f"ended before the first step, with another of the {count} processes or by a signal"
        raise ProcessLost(f"{ended}: nothing was recorded; see what the other one says")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def told_of_loss() -> Iterator[None]:
    """What torch says where another process has gone, while the block runs, is a `ProcessLost`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in text and "NCCL" not in text:
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, while the record is closed
        lost = "another process of this run has ended or cannot be reached; the record so far is kept"
        raise ProcessLost(f"{lost}. Start the processes again, with --resume where the run has checkpoints") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that nobody can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
