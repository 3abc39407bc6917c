"""The mirror in W&B, with the real client and a server on the loopback; tracking never stops a run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from records import DATA
from records import config as make_config
from wandb_server import KEY, StoredRun, WandbServer, wandb_environment

from altgrad.config import ExperimentConfig, parse_config
from altgrad.runs import RunWriter, load_runs, tracking
from altgrad.runs.tracking import Tracker
from altgrad.runs.wandb_access import without_key

pytest.importorskip("wandb", reason="the package wandb is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running
        assert running.tunnels == []  # nothing asked for another host


@pytest.fixture
def _surroundings(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in wandb_environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def writer(root: Path, config: ExperimentConfig) -> RunWriter:
    return RunWriter.create(root, config, data_fingerprint=DATA, environment={"python": "3.11", "device": "cpu"})


def mirrored(config: ExperimentConfig, run: RunWriter, steps: range, lines: list[str]) -> Tracker:
    """Starts the mirror and logs `steps` to it and to the record."""
    tracker = Tracker.start(config, run.run, run.path, lines.append)
    for step in steps:
        run.log(step, loss=1.0 / step, grad_norm=math.nan if step == 3 else 1.0)
        tracker.log({"step": step, "loss": 1.0 / step, "grad_norm": math.nan if step == 3 else 1.0})
    return tracker


def steps_of(run: StoredRun) -> list[int]:
    return [row["_step"] for row in run.rows()]


@pytest.fixture(scope="module")
def finished(server: WandbServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredRun, Path, list[str]]:
    """One run of 20 steps, logged and ended well, with two alerts in a row."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wandb_environment(server, home).items():
            patch.setenv(name, value)
        for name in ("WANDB_MODE", "http_proxy", "https_proxy"):
            patch.delenv(name, raising=False)
        lines: list[str] = []
        config = make_config("e4m3", tracking="online", tags=["a", "b" * 80], notes="why")
        with writer(home, config) as run:
            tracker = mirrored(config, run, range(1, 21), lines)
            assert tracker.url is not None
            run.set_wandb_url(tracker.url)
            tracker.alert("stall", "mlp", "no update reaches the grid")
            tracker.alert("stall", "head", "again, a moment later")
            tracker.alert("overflow", "head", "of another kind")
            run.finish({"final_val_loss": 2.0})
            tracker.finish("finished", {"final_val_loss": 2.0, "worst": math.inf})
        return server.runs()[run.run_id], run.path, lines


def test_an_online_run_is_mirrored_step_by_step(finished: tuple[StoredRun, Path, list[str]]) -> None:
    stored, path, lines = finished
    assert lines == []
    assert steps_of(stored) == list(range(1, 21))
    assert stored.rows()[2]["grad_norm"] == "NaN"
    assert stored.rows()[4]["loss"] == 0.2
    assert stored.state == "finished"
    record = json.loads((path / "run.json").read_text())
    assert stored.group == record["arm"]
    assert (stored.tags, stored.notes) == (["a", "b" * 64], "why")
    assert stored.summary["status"] == "finished"
    assert stored.summary["worst"] == "inf"


def test_what_w_and_b_holds_is_enough_to_make_the_record_again(finished: tuple[StoredRun, Path, list[str]]) -> None:
    stored, path, _ = finished
    record = json.loads((path / "run.json").read_text())
    kept = stored.config["altgrad"]["value"]
    for key in ("id", "data", "environment", "code", "created"):
        assert kept[key] == record[key], key
    own = {key: part["value"] for key, part in stored.config.items() if key not in ("_wandb", "altgrad")}
    assert parse_config(own, source="W&B").identity() == make_config("e4m3").identity()


def test_the_address_in_the_record_is_the_one_that_w_and_b_gave(
    server: WandbServer, finished: tuple[StoredRun, Path, list[str]]
) -> None:
    record = json.loads((finished[1] / "run.json").read_text())
    assert record["wandb_url"] == f"{server.url}/team/altgrad/runs/{record['id']}"


def test_alerts_of_a_kind_are_sent_one_a_minute_at_most(
    server: WandbServer, finished: tuple[StoredRun, Path, list[str]]
) -> None:
    assert [alert["text"] for alert in server.alerts] == ["no update reaches the grid", "of another kind"]


def test_no_key_is_in_the_record_s_folder(finished: tuple[StoredRun, Path, list[str]]) -> None:
    files = [path for path in finished[1].rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert without_key(f"bad key {KEY}, local-{KEY}") == "bad key (key), (key)"


@pytest.mark.usefixtures("_surroundings")
def test_a_resumed_run_has_every_step_once(server: WandbServer, tmp_path: Path) -> None:
    """The record was cut at step 6; W&B had 10 steps in one case and, after a kill, 4 in the other."""
    for seed, known in ((1, 10), (2, 4)):
        lines: list[str] = []
        config = make_config(seed=seed, tracking="online")
        with writer(tmp_path, config) as run:
            mirrored(config, run, range(1, 11), lines).finish("interrupted")
        stored = server.runs()[run.run_id]
        stored.history, stored.summary = stored.history[:known], {"_step": known}
        with RunWriter.resume(
            tmp_path, config, data_fingerprint=DATA, environment={}, find=lambda folder: (6, 0.0)
        ) as resumed:
            mirrored(config, resumed, range(7, 15), lines).finish("finished")
        assert steps_of(stored) == list(range(1, 15)), known
        assert stored.state == "finished"
        assert lines == []


@pytest.mark.usefixtures("_surroundings")
def test_a_resumed_offline_run_has_every_step_once_when_it_is_synced(server: WandbServer, tmp_path: Path) -> None:
    lines: list[str] = []
    config = make_config(seed=3, tracking={"mode": "offline", "project": "later", "group": "mine"})
    with writer(tmp_path, config) as run:
        tracker = mirrored(config, run, range(1, 11), lines)
        assert tracker.url is None
        tracker.finish("interrupted")
    with RunWriter.resume(
        tmp_path, config, data_fingerprint=DATA, environment={}, find=lambda folder: (6, 0.0)
    ) as resumed:
        mirrored(config, resumed, range(7, 15), lines).finish("finished")
    assert server.runs("later") == {}
    folders = sorted(str(path) for path in run.path.glob("wandb/offline-run-*"))
    assert len(folders) == 2
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *folders], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stored = server.runs("later")[run.run_id]
    assert steps_of(stored) == list(range(1, 15))
    assert stored.group == "mine"
    assert lines == []


@pytest.mark.usefixtures("_surroundings")
def test_the_environment_decides_where_the_config_says_nothing(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "from-environment")
    monkeypatch.setenv("WANDB_ENTITY", "others")
    lines: list[str] = []
    for config in (make_config(seed=4), make_config(seed=5, tracking={"project": "explicit", "entity": "us"})):
        with writer(tmp_path, config) as run:
            mirrored(config, run, range(1, 3), lines).finish("finished")
    assert list(server.runs("from-environment", "others")) == [make_id(tmp_path, 4)]
    assert list(server.runs("explicit", "us")) == [make_id(tmp_path, 5)]
    monkeypatch.setenv("WANDB_MODE", "sideways")
    Tracker.start(make_config(), {"id": "x"}, tmp_path, lines.append)
    assert len(lines) == 1
    assert "WANDB_MODE='sideways' is none of online, offline" in lines[0]


def make_id(root: Path, seed: int) -> str:
    return next(path.name for path in root.iterdir() if f"-s{seed}-" in path.name)


@pytest.mark.parametrize("address", ["http://h:abc", "http://[h", "http://h:99999", f"http://{'h' * 70}.example", "h"])
def test_a_bad_address_is_one_line(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    lines: list[str] = []
    Tracker.start(make_config(tracking="online"), {"id": "run", "arm": "arm"}, tmp_path, lines.append).finish(
        "finished"
    )
    assert len(lines) == 1
    assert "W&B tracking is off" in lines[0]
    assert "\n" not in lines[0]


def test_a_client_that_does_not_come_back_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        offline, url = False, "https://w.example/r"
        goes_on = threading.Event()

        def log(self, row: dict[str, float], step: int) -> None:
            self.goes_on.wait(30)

    monkeypatch.setattr(tracking, "CALL_SECONDS", 0.2)
    lines: list[str] = []
    tracker = Tracker(Client(), {"id": "x"}, lines.append)
    began = time.monotonic()
    tracker.log({"step": 0, "loss": 1.0})
    while not lines and time.monotonic() - began < 10:
        tracker.log({"step": 1, "loss": 1.0})
        time.sleep(0.01)
    tracker.finish("finished")
    Client.goes_on.set()
    assert time.monotonic() - began < 5
    assert lines == [
        "W&B tracking stopped: its client did not take a row within 0.2 s. The run goes on with its local record."
    ]


def test_a_client_that_was_given_up_says_nothing_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its threads end with errors of their own; the errors of other threads are told as before."""
    from wandb.sdk.wandb_run import RunStatusChecker

    go_on = threading.Event()

    class Client:
        """Its first attribute is there as soon as the client was given up."""

        @property
        def _run_id(self) -> str:
            go_on.wait(20)
            raise BrokenPipeError

    def of_another() -> None:
        go_on.wait(20)
        raise ValueError("of another thread")

    def started(target: Callable[..., object], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args)
        thread.start()
        return thread

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest has one of its own
    checks = RunStatusChecker.check_network_status
    threads = [started(checks, Client()), started(of_another), started(lambda: checks(Client()))]  # type: ignore[arg-type]
    tracking._leave_client()
    tracking._leave_client()
    go_on.set()
    threads.append(started(checks, Client()))  # of a later run
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("Traceback") == 3, "all but the first are told"


TRAINING = """
import os, signal, subprocess, sys, time
from pathlib import Path
from records import DATA, config
from altgrad.runs import RunWriter, tracking
from altgrad.runs.tracking import Tracker

tracking.START_SECONDS, tracking.FINISH_SECONDS = map(float, sys.argv[2:4])

def own_process_of_wandb():
    from wandb.sdk import wandb_setup
    return wandb_setup.singleton()._connection._proc._process.pid

made = config(tracking="online")
with RunWriter.create(Path(sys.argv[1]), made, data_fingerprint=DATA, environment={}) as run:
    tracker = Tracker.start(made, run.run, run.path, lambda line: print(line, flush=True))
    if sys.argv[4] != "-":
        os.kill(own_process_of_wandb(), getattr(signal, sys.argv[4]))
    begun = time.monotonic()
    for step in range(2500):
        row = {f"metric_{index}": 1 / 3 for index in range(60)}
        tracker.log({"step": step, **row})
        run.log(step, **row)
    assert time.monotonic() - begun < 20, "the mirror held up the loop"
    run.log(2500, val_loss=1.0)
    run.finish({"val_loss": 1.0})
    tracker.finish("finished")
"""


@pytest.mark.usefixtures("_surroundings")
@pytest.mark.parametrize(
    ("fault", "kill", "said"),
    [
        ({"kind": "401"}, "-", "W&B could not start: "),
        ({"kind": "404"}, "-", "W&B could not start: "),
        ({"kind": "portal"}, "-", "W&B could not start: "),
        ({"kind": "malformed"}, "-", "W&B could not start: "),
        ({"kind": "429"}, "-", "W&B could not start: "),
        ({"kind": "500"}, "-", "W&B could not start: "),
        ({"kind": "hang"}, "-", "W&B could not start: "),
        ({"kind": "hang", "only": "file_stream"}, "-", "W&B did not take the end of the run: "),
        (None, "SIGSTOP", "W&B did not take the end of the run: no answer within 8 s"),
        (None, "SIGKILL", "W&B tracking stopped: "),
    ],
)
def test_whatever_w_and_b_does_the_run_ends_with_its_whole_record(
    server: WandbServer, tmp_path: Path, fault: dict[str, str] | None, kill: str, said: str
) -> None:
    """The whole process: at its end, too, W&B's client would wait."""
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tests.parent), str(tests)))}
    environment.pop("WANDB_SERVICE", None)  # of another test's client
    began = time.monotonic()
    with server.misbehaving(**fault) if fault else contextlib.nullcontext():
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, str(tmp_path / "runs"), "6", "8", kill], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, env=environment, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert done.stdout.startswith(said), done.stdout
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    (record,) = load_runs([tmp_path / "runs"]).records
    assert (record.status, len(record.history)) == ("finished", 2501)
