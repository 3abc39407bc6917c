"""A model and data of one's own in the training loop, as ``altgrad compare --model MODULE:FUNCTION`` trains them."""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from altgrad.config import UsageError, one_line
from altgrad.training.distributed import Processes

NOT_USED = ("data", "tokenizer", "vocabulary", "model", "batch_size", "eval_batches", "final_eval_characters")
"""Keys of a config that are of the built-in model and its text."""


class Task(NamedTuple):
    """What FUNCTION(seed) returns; a plain tuple of the four does as well.

    Processes of ``parallel: ddp`` share the rows of each batch, the first dimension of its tensors.

    Attributes:
        model: with the initialization of the seed. torch's own generator is seeded before the function is called.
        loss: (model, batch) -> the mean loss of the batch, a scalar; in whatever unit it has.
        train: the batches, in an iterable that can be gone through again, or a function of a batch's number from 0.
            They may depend on the seed, and on nothing that formats change.
        validation: the batches that a loss is compared on, the same for every seed, all of equal weight.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    train: Iterable[Any] | Callable[[int], Any]
    validation: Iterable[Any]


def load_task(name: str) -> Callable[[int], Task]:
    """The function that MODULE:FUNCTION names, from the working folder or what is installed.

    Raises:
        UsageError: there is none; one line.
    """
    module, colon, function = name.partition(":")
    if not (colon and module and function.isidentifier()):
        raise UsageError(f"--model {name}: write MODULE:FUNCTION, for example my_model:build")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UsageError(f"--model {name}: there is no module {module}; run in the folder that has it") from None
        raise UsageError(f"--model {name}: {one_line(error)}") from None
    except Exception as error:
        raise UsageError(f"--model {name}: {_told(error)}") from None
    if not callable(found):
        raise UsageError(f"--model {name}: {module} has no function {function}")
    return found  # type: ignore[no-any-return]


def code_of(name: str) -> str:
    """12 hex of a sha256 over the file of the module that MODULE:FUNCTION names: what it trains may change with it."""
    module: ModuleType = importlib.import_module(name.partition(":")[0])
    data = Path(module.__file__).read_bytes() if module.__file__ else b""
    return hashlib.sha256(data).hexdigest()[:12]


def build_task(task: Callable[[int], Task], seed: int) -> Task:
    """What the function gives for a seed, its validation batches as a list.

    Raises:
        UsageError: the function fails, or gives something else; one line.
    """
    where = f"--model {getattr(task, '__name__', 'function')}({seed})"
    torch.manual_seed(seed)
    try:
        given = task(seed)
    except Exception as error:
        raise UsageError(f"{where}: {_told(error)}") from None
    if not isinstance(given, tuple | list) or len(given) != 4:
        raise UsageError(f"{where} must return (model, loss, train, validation)")
    found = Task(*given)
    if not isinstance(found.model, nn.Module) or not callable(found.loss):
        raise UsageError(f"{where}: the first must be a torch.nn.Module and the second a function of model and batch")
    if not any(parameter.requires_grad for parameter in found.model.parameters()):
        raise UsageError(f"{where}: the model has no parameter to train")
    if not callable(found.train) and not isinstance(found.train, Iterable):
        raise UsageError(f"{where}: the training batches must be an iterable, or a function of a batch's number")
    if not isinstance(found.validation, Iterable) or not (validation := list(found.validation)):
        raise UsageError(f"{where}: there are no validation batches")
    return found._replace(validation=validation)


def fingerprint(task: Task, name: str) -> dict[str, Any]:
    """What identifies the data: the name, and a sha256 of the validation batches' content.

    Raises:
        UsageError: a batch holds something else than tensors, numbers, texts, and lists, tuples and mappings of these.
    """
    total = hashlib.sha256()
    for leaf in _leaves(list(task.validation)):
        if isinstance(leaf, Tensor):
            total.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            total.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(leaf).encode() + b"\0")
    return {"name": name, "sha256": total.hexdigest()}


def try_task(loss: Callable[..., Tensor], batch: tuple[Any, ...], name: str) -> None:
    """Compute a loss once, before there is a record.

    Raises:
        UsageError: that fails, or gives something else than a scalar that depends on parameters; one line.
    """
    try:
        value = loss(*batch)
    except Exception as error:
        raise UsageError(f"--model {name}: its loss: {_told(error)}") from None
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise UsageError(f"--model {name}: its loss must be a scalar tensor that depends on the model's parameters")


class TaskBatches:
    """The batches of a task where `altgrad.training.loop.Batches` are those of a text."""

    text = False
    held_out: Any = None
    final: Any = None

    def __init__(self, task: Task, device: torch.device, processes: Processes | None = None) -> None:
        self._task, self._device, self._number = task, device, 0
        self._processes = processes or Processes()
        for batch in task.validation:  # before there is a record
            self._rows(batch)
        self._iterator: Iterator[Any] = iter(()) if callable(task.train) else iter(task.train)

    state: dict[str, Any] = {}  # noqa: RUF012 - there are no checkpoints of it

    def next(self) -> tuple[Any]:
        """The next training batch, on the device."""
        if callable(self._task.train):
            batch = self._task.train(self._number)
        else:
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = iter(self._task.train)
                batch = next(self._iterator, None)
                if batch is None:
                    raise UsageError(
                        f"--model: its training batches end after {self._number}; give an iterable that can be gone "
                        "through again, or a function of a batch's number"
                    ) from None
        self._number += 1
        return self._own_rows(batch)

    def validation(self, _: Any) -> Iterator[tuple[Any]]:
        """The validation batches; the model is in its evaluation mode while they are gone through."""
        modes = [(module, module.training) for module in self._task.model.modules()]
        self._task.model.eval()
        try:
            for batch in self._task.validation:
                yield self._own_rows(batch)
        finally:
            for module, mode in modes:
                module.training = mode

    def _own_rows(self, batch: Any) -> tuple[Any]:
        """A batch on the device; of several processes this one's rows, of each tensor with as many as the first."""
        rows = self._rows(batch)
        return (_moved(batch, self._device, rows, self._processes.rows(rows)),)

    def _rows(self, batch: Any) -> int:
        """How many rows a batch has, which the processes can share; UsageError where they cannot."""
        count = self._processes.count
        found = [leaf.shape[0] for leaf in _leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim] or [0]
        if count > 1 and (len({*found}) > 1 or not found[0] or found[0] % count):
            rows = " and ".join(map(str, dict.fromkeys(found)))
            raise UsageError(f"--model: a batch of {rows} rows cannot be shared by {count} processes; change one")
        return found[0]

    def evaluated(self, _: Any) -> tuple[int, int]:
        """A loss is as the task gives it."""
        return 1, 1


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield str(key)
            yield from _leaves(value)
    elif isinstance(batch, list | tuple):
        yield len(batch)
        for value in batch:
            yield from _leaves(value)
    elif batch is None or isinstance(batch, Tensor | bool | int | float | str):
        yield batch
    else:
        kind = type(batch).__name__
        raise UsageError(
            f"--model: a batch holds a {kind}; make batches of tensors, numbers, texts, lists and mappings"
        )


def _moved(batch: Any, device: torch.device, rows: int, own: slice) -> Any:
    """A batch on the device, with only its `own` rows of each tensor that has so many."""
    if isinstance(batch, Tensor):
        return (batch[own] if batch.ndim and batch.shape[0] == rows else batch).to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device, rows, own) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [_moved(value, device, rows, own) for value in batch]
    return batch


def _told(error: Exception) -> str:
    """An error of somebody's own code, and where it is, on one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)[:200]} ({Path(frame.filename).name}, line {frame.lineno})"
