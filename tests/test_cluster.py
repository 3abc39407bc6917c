"""A campaign on a Ray cluster: two nodes, one of which dies; and what goes wrong, told by a stand-in for Ray."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from altgrad.config import ExperimentConfig, UsageError, parse_config
from altgrad.runs import load_runs, read_run, run_id, writer
from altgrad.runs.query import verify
from altgrad.runs.writer import sole
from altgrad.training import cluster, loop, pool

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'altgrad[ray]'"
)
SMALL: dict[str, Any] = {
    "data": "file", "max_steps": 3, "batch_size": 32, "eval_batches": 4, "layers_every": 0,
    "model": {"layers": 1, "dim": 8, "heads": 1, "context": 8}, "optimizer": {"learning_rate": 3e-3},
}  # fmt: skip
LONG, POISON = 100, 101


def config(seed: int, **more: Any) -> ExperimentConfig:
    return parse_config(SMALL | {"seed": seed} | more, source="test")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    return path


@pytest.fixture
def identity(text: Path) -> Callable[[ExperimentConfig], str]:
    def found(config: ExperimentConfig) -> str:
        return run_id(config, pool._corpus(text, config.tokenizer, config.vocabulary).fingerprint)

    return found


def train(config: ExperimentConfig, *, place: Path, **how: Any) -> Any:
    """Trains on a node; the second run that begins on the one named in `victim` ends it, as a lost machine would.

    The other node waits for that with its first run. Steps of the long run take a tenth of a second in the first go.
    """
    import ray

    node, victim = ray.get_runtime_context().get_node_id(), (place / "victim").read_text()
    with open(place / "begun", "a") as file:
        file.write(f"{config.seed} {node}\n")

    def runs_there() -> int:
        return (place / "begun").read_text().count(victim)

    if node == victim and runs_there() == 2:
        os.kill(os.getppid(), signal.SIGKILL)  # the raylet; the process goes with it
        os._exit(1)
    if config.seed == POISON:
        os._exit(1)
    while node != victim and runs_there() < 2:
        time.sleep(0.02)
    if config.seed == LONG and not (place / "second").exists():
        rate_factor = loop.rate_factor

        def slow(*arguments: Any) -> float:
            (place / "stepping").touch()
            time.sleep(0.1)
            return rate_factor(*arguments)

        loop.rate_factor = slow
    return pool.train_named(config, **how)


@needs_ray
def test_a_node_lost_in_the_middle_costs_its_run_and_a_stopped_campaign_goes_on(
    tmp_path: Path,
    text: Path,
    identity: Callable[[ExperimentConfig], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    out, how = tmp_path / "runs", {"identity": identity}
    with pytest.raises(UsageError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: no cluster can be used there .*give host:port"):
        next(cluster.results([config(0)], train, 1, out=out, **how))
    from ray.cluster_utils import Cluster

    beat = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    nodes = Cluster(True, head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": beat})
    try:
        lost = nodes.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        (tmp_path / "victim").write_text(lost.node_id)
        (tmp_path / "begun").touch()
        on_node = partial(train, place=tmp_path, text=text)
        short, long = [config(seed) for seed in range(6)], config(LONG, max_steps=60, checkpoint={"every": 10})
        with closing(cluster.results([*short, long], on_node, 50, out=out, **how)) as first:
            assert [next(first)[1] for _ in short] == ["finished"] * 6
            wait_for(tmp_path / "stepping")
        # leaving the block does what Ctrl-C and the end of the time do
        begun = seeds_begun(tmp_path)
        assert begun.pop(LONG) == 1
        assert sorted(begun.values()) == [1, 1, 1, 1, 1, 2], "the run of the lost node, and no other, begins again"
        stopped = json.loads((out / identity(long) / "run.json").read_text())
        assert stopped["status"] == "interrupted"

        (tmp_path / "second").touch()
        plan, backend = [*short, long], partial(cluster.results, out=out, **how)
        assert pool.run_planned("tiny", lambda _: plan, on_node, identity, (out,), 50, backend=backend) == 0
    finally:
        nodes.shutdown()
    said = capfd.readouterr()
    assert "tiny: 7 runs, 6 recorded, 1 to do" in said.out
    assert "Traceback" not in said.err
    assert seeds_begun(tmp_path)[LONG] == 2
    found = load_runs((out,))
    assert found.problems == ()
    assert {record.id: record.status for record in found.records} == {identity(each): "finished" for each in plan}
    gone_on = next(record for record in found.records if record.config.seed == LONG)
    (resumed,) = (event["step"] for event in gone_on.run["events"] if event["kind"] == "resumed")
    assert 0 < resumed < 60
    assert gone_on.history["step"].tolist()[-1] == 60
    assert verify([out]) == (7, [], [])
    here = pool.train_named(short[0], text=text, out=tmp_path / "here", progress=False).path
    columns = ["step", "loss", "val_loss", "grad_norm"]
    assert read_run(here).history[columns].equals(read_run(out / here.name).history[columns])


@needs_ray
@pytest.mark.skipif(not os.environ.get("ALTGRAD_CLUSTER"), reason="it takes a minute: make cluster")
def test_a_run_that_ends_its_process_each_time_is_given_up_with_a_line_and_the_others_are_recorded(
    tmp_path: Path,
    text: Path,
    identity: Callable[[ExperimentConfig], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On a cluster of this machine alone, which `RAY_ADDRESS` does not name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "victim").write_text(" ")
    plan = [config(POISON), config(0), config(1)]
    backend = partial(cluster.results, out=tmp_path / "runs", identity=identity)
    trained = partial(train, place=tmp_path, text=text)
    assert pool.run_planned("tiny", lambda _: plan, trained, identity, (tmp_path / "runs",), 50, backend=backend) == 1
    assert seeds_begun(tmp_path) == {POISON: 1 + cluster.RETRIES, 0: 1, 1: 1}
    said = " ".join(capfd.readouterr().err.split())
    assert f"seed {POISON}: lost, nothing is recorded (WorkerCrashedError: The worker died unexpectedly" in said
    assert {record.config.seed for record in load_runs((tmp_path / "runs",)).records} == {0, 1}


def seeds_begun(place: Path) -> Counter[int]:
    """How often each run began."""
    return Counter(int(line.split()[0]) for line in (place / "begun").read_text().splitlines())


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.02)


class StandIn:
    """Ray in this process: a task runs when its result is asked for, which `fault` may take the place of."""

    class RayError(Exception):
        pass

    class ObjectStoreFullError(RayError):
        pass

    class OutOfDiskError(RayError):
        pass

    class RaySystemError(RayError):
        pass

    class RayTaskError(RayError):
        def __init__(self, cause: Exception) -> None:
            super().__init__(f"{cause}, with\nmany lines")
            self.cause = cause

    def __init__(self, fault: Callable[[int], Any] = lambda _: None) -> None:
        self.exceptions, self.fault, self.asked, self.cancelled = self, fault, list[Any](), list[int]()

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def remote(self, **_: Any) -> Any:
        def asked(function: Any, *arguments: Any) -> int:
            self.asked.append(partial(function, *arguments))
            return len(self.asked) - 1

        return lambda function: SimpleNamespace(remote=partial(asked, function))

    def wait(self, tasks: list[int], num_returns: int = 1, timeout: float | None = None) -> tuple[list[int], list[int]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: int) -> Any:
        if (fault := self.fault(task)) is not None:
            raise fault
        return self.asked[task]()

    def cancel(self, task: int) -> None:
        self.cancelled.append(task)

    def shutdown(self) -> None:
        pass


def stood_in(
    monkeypatch: pytest.MonkeyPatch, text: Path, out: Path, ray: StandIn, seeds: int, **how: Any
) -> Iterator[tuple[str, str]]:
    monkeypatch.setattr(cluster, "_connected", lambda: ray)
    trained = partial(pool.train_named, text=text)
    return cluster.results([config(seed) for seed in range(seeds)], trained, 2, out=out, **how)


def test_a_full_object_store_loses_one_go_of_a_run_and_no_other_run(
    tmp_path: Path, text: Path, identity: Callable[[ExperimentConfig], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = StandIn.RayTaskError(StandIn.OutOfDiskError("Local disk is full"))
    full = StandIn(lambda task: fault if task == 1 else None)
    ended = list(stood_in(monkeypatch, text, tmp_path, full, 3, identity=identity))
    assert [status for _, status in ended] == ["finished", "lost", "finished"]
    said = "lost, nothing is recorded (RayTaskError: Local disk is full, with); the same command begins it again"
    assert ended[1][0].endswith(said)
    assert {record.config.seed for record in load_runs((tmp_path,)).records} == {0, 2}


def test_a_full_disk_of_the_driver_ends_the_campaign_with_a_line_and_what_is_recorded_stays(
    tmp_path: Path, text: Path, identity: Callable[[ExperimentConfig], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = stood_in(monkeypatch, text, tmp_path, ray := StandIn(), 4, identity=identity)
    next(coming)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_bytes", full)
        with pytest.raises(UsageError, match=r"--out .*: cannot be written \(No space left on device\)"):
            list(coming)
    assert len(ray.cancelled) == 1, "what was under way is stopped"
    assert [record.status for record in load_runs((tmp_path,)).records] == ["finished"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert len(list(stood_in(monkeypatch, text, tmp_path, StandIn(), 4, identity=identity))) == 4
    assert len(load_runs((tmp_path,)).records) == 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("code", r"could not train e?.* seed 0: it has other code of AltGrad \(.*\) than the driver; install the same"),
        ("data", "there the data or the code are others; use the same"),
        (
            "package",
            "a node of the cluster could not train .* seed 0: RaySystemError: System error: No module named 'torch'$",
        ),
        ("device", "--device cuda: this torch sees no GPU"),
    ],
)
def test_what_no_node_can_train_ends_the_campaign_with_one_line(
    fault: str,
    said: str,
    tmp_path: Path,
    text: Path,
    identity: Callable[[ExperimentConfig], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if fault == "code":
        answers = iter(["driver", "node"])
        monkeypatch.setattr(cluster, "code_fingerprint", lambda _: next(answers, "node"))
    missing = (
        StandIn.RayTaskError(StandIn.RaySystemError("System error: No module named 'torch'\ntrace"))
        if fault == "package"
        else None
    )
    named = (lambda _: "another-id") if fault == "data" else identity
    monkeypatch.setattr(cluster, "_connected", lambda: StandIn(lambda _: missing))
    how = {"device": "cuda"} if fault == "device" else {}
    trained = partial(pool.train_named, text=text, **how)
    with pytest.raises(UsageError, match=said) as error:
        list(cluster.results([config(0)], trained, 1, out=tmp_path, identity=named, gpus=1))
    assert "\n" not in str(error.value)
    assert "notice: no node of the cluster has 1 CPU and 1 GPU now: runs wait for one" in capsys.readouterr().err
    assert not load_runs((tmp_path,)).records


def test_two_campaigns_of_clusters_do_not_write_to_one_store(tmp_path: Path) -> None:
    with sole(tmp_path, "busy"), pytest.raises(UsageError, match="another campaign of a cluster writes there"):
        next(cluster.results([], train, 1, out=tmp_path, identity=str))


def test_a_record_that_is_here_is_never_replaced(
    tmp_path: Path, text: Path, identity: Callable[[ExperimentConfig], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(stood_in(monkeypatch, text, tmp_path, StandIn(), 1, identity=identity))
    before = (tmp_path / identity(config(0)) / "run.json").read_bytes()
    ((line, status),) = stood_in(monkeypatch, text, tmp_path, StandIn(), 1, identity=identity)
    assert (status, "already finished" in line) == ("left out", True)
    assert (tmp_path / identity(config(0)) / "run.json").read_bytes() == before
    with pytest.raises(UsageError, match="came for one"):
        writer.receive(tmp_path, "one", {"one/../../x": b""})


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_and_is_set_aside(
    tmp_path: Path, text: Path, identity: Callable[[ExperimentConfig], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_connected", StandIn)
    careful = config(0, checkpoint={"every": 100})
    trained = partial(pool.train_named, text=text)
    for _ in range(2):
        ended = list(cluster.results([careful], trained, 1, out=tmp_path, identity=identity))
        assert [status for _, status in ended] == ["finished"]
        run = tmp_path / identity(careful) / "run.json"
        run.write_text(json.dumps(json.loads(run.read_text()) | {"status": "running", "ended": None}))
        shutil.rmtree(run.parent / "checkpoints")
    assert {path.name for path in tmp_path.iterdir()} == {run.parent.name, f"{run.parent.name}.1.old"}


def test_checkpoints_that_are_too_large_stay_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run/run.json", "run/lock", "run/checkpoints/step-1/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(10))
    assert set(cluster._files(tmp_path, tmp_path / "run")) == {"run/run.json", "run/checkpoints/step-1/a"}
    monkeypatch.setattr(cluster, "LARGEST", 15)
    assert set(cluster._files(tmp_path, tmp_path)) == {"run/run.json"}


def test_without_ray_a_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"BACKEND=ray: Ray is not installed; run: pip install 'altgrad\[ray\]'"):
        cluster._connected()
