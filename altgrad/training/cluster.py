"""Many runs on a Ray cluster, a task each: what `altgrad.training.pool` does on the cores of one machine.

Nodes need no disk in common. A task brings the files of its run's record back, and the driver puts them into its store.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import altgrad
from altgrad.config import ExperimentConfig, UsageError, one_line
from altgrad.imports import code_fingerprint
from altgrad.runs.processor import cores
from altgrad.runs.writer import RunExists, receive, sole
from altgrad.training.pool import Train, make_ready, run_one

RETRIES = 3
"""How often a run is begun again in one go whose node or process was lost."""
LARGEST = 2**30
"""Bytes of a record up to which its checkpoints come along."""
CONNECT_SECONDS = 5.0
STOP_SECONDS = 60.0
"""For which what is asked to stop may go on: to the end of its step, and to write a checkpoint."""


def results(
    todo: Sequence[ExperimentConfig],
    train: Train,
    workers: int,
    until: float = math.inf,
    prepare: Callable[[], None] | None = None,
    *,
    out: Path,
    identity: Callable[[ExperimentConfig], str],
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[tuple[str, str]]:
    """(line, status) of each run as it ends, its record being in the store; status "lost" where nothing came back.

    The cluster is that of RAY_ADDRESS, or one of this machine alone. A run whose node is lost begins again on another,
    `RETRIES` times. At the end, and where an exception ends it, what still runs is stopped and its record stored; with
    checkpoints it goes on from there the next time, on any node.

    Args:
        todo, train, until, prepare: as for `altgrad.training.pool.results`; nodes can import them.
        workers: runs that are with the cluster at a time, running or waiting for a place.
        out: the store, a folder of this machine that no other cluster's campaign may write to meanwhile.
        identity: a config's run id.
        cpus, gpus: what each run asks of its node; it has one thread whatever it asks.

    Raises:
        UsageError: no Ray or no cluster, another campaign at work, a store that cannot be written, or what a node could
            not train for a reason that is the same for all runs.
    """
    with sole(out, f"--out {out}: another campaign of a cluster writes there; wait for it, or give another folder"):
        ray = _connected()
        try:
            yield from _results(ray, todo, train, workers, until, prepare, out, identity, {"CPU": cpus, "GPU": gpus})
        finally:
            ray.shutdown()


def _results(
    ray: Any,
    todo: Sequence[ExperimentConfig],
    train: Train,
    workers: int,
    until: float,
    prepare: Callable[[], None] | None,
    out: Path,
    identity: Callable[[ExperimentConfig], str],
    needs: Mapping[str, float],
) -> Iterator[tuple[str, str]]:
    if not any(_fits(node, needs) for node in ray.nodes()):
        wanted = " and ".join(f"{count:g} {name}" for name, count in needs.items() if count)
        print(f"notice: no node of the cluster has {wanted} now: runs wait for one", file=sys.stderr)
    how = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_retries": RETRIES, "max_calls": 20}
    task, waiting, running = ray.remote(**how)(_run), list(reversed(todo)), dict[Any, ExperimentConfig]()
    full = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)

    def stored(ended: Any) -> tuple[str, str]:
        config = running.pop(ended)
        label = f"{config.resolved_name} seed {config.seed}"
        try:
            line, status, files = ray.get(ended)
            if files:
                receive(out, identity(config), files)
            if status != "refused":
                return line, status
        except RunExists as error:
            return f"{label}: left out, {error}", "left out"
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)  # what the node itself raised, as where it lacks a package
            if cause is None or isinstance(cause, full):
                why = f"{type(error).__name__}: {_first_line(error)}"
                return f"{label}: lost, nothing is recorded ({why}); the same command begins it again", "lost"
            line = f"{type(cause).__name__}: {_first_line(cause)}"
        raise UsageError(f"a node of the cluster could not train {label}: {line}")

    try:
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < workers:
                config = waiting.pop()
                begun = _files(out, out / identity(config)) if config.checkpoint.every else {}
                running[task.remote(train, config, prepare, begun, code_fingerprint("run"))] = config
            left = None if until == math.inf else max(until - time.monotonic(), 0)
            for ended in ray.wait(list(running), timeout=left)[0]:
                yield stored(ended)
    finally:
        for ended in running:
            ray.cancel(ended)
        for ended in ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)[0] if running else ():
            try:
                stored(ended)
            except UsageError as error:
                print(f"warning: {error}", file=sys.stderr)


def _run(
    train: Train, config: ExperimentConfig, prepare: Callable[[], None] | None, begun: Mapping[str, bytes], code: str
) -> tuple[str, str, dict[str, bytes]]:
    """On a node: go on with what was begun of a run, or begin it; its line, its status and the files of its record."""
    if code_fingerprint("run") != code:
        return f"it has other code of AltGrad ({altgrad.__version__}) than the driver; install the same", "refused", {}
    make_ready(prepare)
    with TemporaryDirectory() as folder:
        out = Path(folder)
        for name, data in begun.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
        try:
            line, status = run_one(partial(train, out=out), config)
        except UsageError as error:
            return str(error), "refused", {}
        except KeyboardInterrupt:  # the driver's `ray.cancel`
            line, status = "", "interrupted"
        return line, status, _files(out, out)


def _files(root: Path, folder: Path) -> dict[str, bytes]:
    """Path below `root` -> bytes of the files of a record in `folder`; beyond `LARGEST` without the checkpoints."""
    records = (path for path in sorted(folder.rglob("*")) if not path.relative_to(root).parts[0].endswith(".old"))
    paths = [path for path in records if path.is_file() and path.name != "lock"]
    if sum(path.stat().st_size for path in paths) > LARGEST:
        paths = [path for path in paths if "checkpoints" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def _first_line(error: Exception) -> str:
    """What Ray says before it goes on with tracebacks and advice."""
    return one_line(next(iter(str(error).strip().splitlines()), "")).partition(". ")[0][:200]


def _fits(node: Mapping[str, Any], needs: Mapping[str, float]) -> bool:
    return bool(node["Alive"]) and all(node["Resources"].get(name, 0) >= count for name, count in needs.items())


def _connected() -> Any:
    """The module ray, connected to the cluster of RAY_ADDRESS, or to a new one of this machine where that is not set.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # without an end where Ray is not told
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will do, and warns that it does not yet
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("BACKEND=ray: Ray is not installed; run: pip install 'altgrad[ray]'") from None
    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"num_cpus": cores(), "include_dashboard": False} if address == "local" else {}
    try:
        if ":" in address and "//" not in address:  # Ray itself takes a minute to find nobody there
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **own)
    except (OSError, ValueError, RuntimeError) as error:
        remedy = "give host:port of its head, or leave it unset for a cluster of this machine"
        raise UsageError(f"RAY_ADDRESS={address}: no cluster can be used there ({one_line(error)}); {remedy}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does; Ray would abort the process
    return ray
