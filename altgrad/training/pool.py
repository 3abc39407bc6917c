"""Many runs over the cores of one machine, a process and a thread each: what is recorded is not run again."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from altgrad.config import CheckpointConfig, ExperimentConfig, TrackingConfig, UsageError
from altgrad.nn import report_of
from altgrad.runs import RunExists, read_run
from altgrad.runs.query import ended_losses
from altgrad.training.data import load_text
from altgrad.training.loop import Result, build_optimizer, prepared, train
from altgrad.training.task import load_task, try_task

Train = Callable[..., Result]
"""`altgrad.training.train` with all but config, progress and resume; another process must be able to import it."""


def run_planned(
    name: str,
    plan: Callable[[Mapping[str, float]], Sequence[ExperimentConfig]],
    train: Train,
    identity: Callable[[ExperimentConfig], str],
    sources: Sequence[Path],
    workers: int,
    *,
    shard: tuple[int, int] = (1, 1),
    until: float = math.inf,
    prepare: Callable[[], None] | None = None,
    backend: Callable[..., Iterator[tuple[str, str]]] | None = None,
) -> int:
    """Run what is missing of a plan, and of what the plan becomes by that; returns how many runs crashed or were lost.

    Args:
        name: for the lines that are printed.
        plan: the final losses of the ended runs by id (`ended_losses`) -> the configs wanted.
        train: trains one of them.
        identity: a config's run id.
        sources: folders in which ended runs lie.
        workers: processes.
        shard: of every n-th run, with which to begin.
        until: `time.monotonic` at which what runs is stopped; it goes on from its checkpoint the next time.
        prepare: called in each process before its first run.
        backend: where runs are trained: `results` (default), or one with its arguments, as `altgrad.training.cluster`.

    Raises:
        UsageError: a run cannot be trained for a reason that is the user's to mend.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    crashed, tried = 0, set[str]()
    while True:
        losses = ended_losses(sources)
        configs = plan(losses)
        todo = [config for config in configs[shard[0] - 1 :: shard[1]] if identity(config) not in tried | losses.keys()]
        if todo or not tried:
            share = f", of which shard {shard[0]} of {shard[1]} has {len(todo)}" if shard[1] > 1 else ""
            missing = sum(identity(config) not in losses for config in configs)
            print(f"{name}: {len(configs)} runs, {len(configs) - missing} recorded, {missing} to do{share}", flush=True)
        if not todo:  # done, or what is left is another process's, or was lost
            return crashed
        tried |= {identity(config) for config in todo}
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        progress = Progress(
            *columns,
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            speed_estimate_period=600,  # runs differ in length, and several end at once
        )
        with progress as bar:
            task = bar.add_task("", total=len(todo))
            for line, status in (backend or results)(todo, train, workers, until, prepare):
                bar.update(task, advance=1, description=line)
                crashed += status in ("crashed", "lost")
                if status != "finished":
                    bar.console.print(line)
        if time.monotonic() >= until:
            print(f"{name}: the time is over; the same command goes on")
            return crashed


def results(
    todo: Sequence[ExperimentConfig],
    train: Train,
    workers: int,
    until: float = math.inf,
    prepare: Callable[[], None] | None = None,
) -> Iterator[tuple[str, str]]:
    """(line, status) of each run as it ends, until the time is over; a fresh process takes over after 20 runs."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=start_worker, initargs=(prepare,), maxtasksperchild=20) as pool:
        ended = pool.imap_unordered(partial(run_one, train), todo)
        with contextlib.suppress(StopIteration, multiprocessing.TimeoutError):
            while True:
                yield ended.next(None if until == math.inf else max(until - time.monotonic(), 0))


def train_named(config: ExperimentConfig, *, text: Path | None = None, task: str | None = None, **how: Any) -> Result:
    """`altgrad.training.train` by what another process can be told: the path of a text, MODULE:FUNCTION of a task."""
    corpus = None if text is None else _corpus(text, config.tokenizer, config.vocabulary)
    return train(config, corpus=corpus, task=None if task is None else load_task(task), **how)


_corpus = cache(load_text)


def checked(
    arms: Mapping[str, ExperimentConfig],
    seed: int,
    device: str = "cpu",
    text: Path | None = None,
    task: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """What identifies the data of runs to come, each of whose models has been built; and what is quantized of a task.

    Args:
        arms: a config each, by name.
        seed: another of their seeds, for which a task has to have the same validation batches.
        device, text, task: as for `train_named`.

    Raises:
        UsageError: one of them cannot be trained.
    """
    function, told, data = None if task is None else load_task(task), [], dict[str, Any]()
    for name, config in arms.items():
        corpus = None if text is None else _corpus(text, config.tokenizer, config.vocabulary)
        model, loss, batches, data = prepared(config, device, corpus, function)
        build_optimizer(config, model)
        if function is None:
            continue
        try_task(loss, batches.next(), str(task))
        if config.quantize.operands:
            found = report_of(model)
            share = (
                f"{found.parameter_share:.1%} of parameters and {found.multiply_add_share or 0:.1%} of multiply-adds"
            )
            left = [row.name for row in found.skipped if len(row.shape) > 1]
            told.append(f"{name}: {share} quantized" + (f"; as they are: {', '.join(left[:8])}" if left else ""))
    if function is not None:
        first = next(iter(arms.values()))
        if prepared(first.model_copy(update={"seed": seed}), device, None, function)[-1] != data:
            raise UsageError(f"--model {task}: the validation batches differ between seeds; make them the same for all")
    return data, told


def seconds_of(config: ExperimentConfig, train: Train) -> float:
    """About how long a run takes on one core, by four steps of it with a look and an evaluation.

    Raises:
        UsageError: it cannot be trained for a reason that is the user's to mend.
    """
    off = {"tracking": TrackingConfig(mode="disabled"), "checkpoint": CheckpointConfig(), "final_eval_characters": 0}
    short = {"max_steps": 4, "eval_every": 4, "log_every": 1, "schedule_steps": None, **off}
    with TemporaryDirectory() as folder:
        path = train(config.model_copy(update=short), out=Path(folder), progress=False).path
        first, _, third, last = read_run(path).history["seconds"]
    step = (third - first) / 2
    looks = 1 + config.max_steps // config.layers_every if config.layers_every else 0
    evaluations = math.ceil(config.max_steps / config.eval_every)
    seconds = step * config.max_steps + max(first - step, 0) * looks + max(last - third - step, 0) * evaluations
    return float(seconds)


def start_worker(prepare: Callable[[], None] | None = None) -> None:
    """Ctrl-C is the parent's business, which ends its workers by SIGTERM: their runs are `interrupted`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_ready(prepare)


def make_ready(prepare: Callable[[], None] | None) -> None:
    """What every process that trains runs begins with: one thread, and `prepare`."""
    import torch

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()


def run_one(train: Train, config: ExperimentConfig) -> tuple[str, str]:
    """Train one config; what became of it in a line, and its status.

    Raises:
        UsageError: the user's to mend, and the same for the runs to come.
    """
    label = f"{config.resolved_name} seed {config.seed}"
    try:
        result = train(config, progress=False, resume=config.checkpoint.every > 0)
    except RunExists as error:
        return f"{label}: left out, {error}", "left out"
    except UsageError:
        raise
    except Exception as error:  # the record says crashed; the other runs go on
        return f"{label}: crashed, {type(error).__name__}: {error}", "crashed"
    return f"{label}: {result.status}, validation loss {result.summary['val_loss']:.3f}", result.status
