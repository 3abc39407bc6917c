"""What W&B costs, with its real client and the tests' server on the loopback: failures, a second pull, a training run.

    .venv/bin/python benchmarks/wandb_failures.py figures.json
    .venv/bin/python benchmarks/runs.py --add figures.json

Each failure is timed as scripts/generate_reports.py meets it: how long its loader waits for W&B before it reads the
records that are here. Nothing reaches a network.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from wandb_server import WandbServer, wandb_environment  # noqa: E402

SILENCE, GOAL = 6.0, 6.5
ASKING = f"""
import time
from altgrad.analysis import ExperimentDataLoader
begun = time.monotonic()
pulled = ExperimentDataLoader(["records"], project="altgrad", silence={SILENCE}).pulled
print(time.monotonic() - begun, pulled.reason or pulled.in_words)
"""
TRAINING = """
import sys, time
from pathlib import Path
from altgrad.cli import main
from altgrad.runs import load_runs, tracking
from altgrad.runs.tracking import Tracker

def timed(call, seconds):
    def measured(*arguments):
        begun = time.thread_time()
        call(*arguments)
        seconds.append((begun, time.thread_time()))
    return measured
seconds, sending = [], []
Tracker.log, tracking._log = timed(Tracker.log, seconds), timed(tracking._log, sending)
main(["train", sys.argv[1], "--out", "trained", "--set", "max_steps=200", "--set", "tracking=online"])
(record,) = load_runs([Path("trained")]).records
assert record.run["wandb_url"]
rows, inside, sent = len(seconds[10:]), *(sum(end - begun for begun, end in each[10:]) for each in (seconds, sending))
whole = seconds[-1][1] - seconds[10][0]
print((whole - inside) / rows, (inside + sent) / rows, len(sending))
"""
AFTER_PROGRESS = "no answer from the first history on, the list having come"
CONFIG = ROOT / "experiments" / "configs" / "e4m3.yaml"


def main(path: str) -> int:
    """Measure all of it, print it as it comes, and write the figures for benchmarks/runs.py into the file `path`."""
    figures: list[dict[str, Any]] = []
    with WandbServer() as server, tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        environment = {**os.environ, **wandb_environment(server, home)}
        for name, seconds, said in failures(server, home, environment):
            goal = None if name == AFTER_PROGRESS else GOAL
            figures.append(_figure(f"Waiting for W&B: {name}", seconds, "s", goal, said))
        requests, seconds = second_pull(server, home, environment)
        figures.append(_figure("Second pull of 1,000 unchanged runs", requests, "requests", 3, f"in {seconds:.1f} s"))
        percent, said = training(home, environment)
        (run,) = (run for name, run in server.runs().items() if name != "one")
        assert [row["_step"] for row in run.rows()] == list(range(1, 201)), "a row is missing in W&B"
        figures.append(_figure("Training slowed by W&B online", percent, "%", 5, said))
        assert server.tunnels == [], "a request left the machine"
    Path(path).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def failures(server: WandbServer, home: Path, environment: dict[str, str]) -> Iterator[tuple[str, float, str]]:
    """Name, seconds, and what came, of each case."""
    server.add("altgrad", "one", history=[{"loss": 1.0}])

    def case(name: str, **changed: str) -> tuple[str, float, str]:
        _, printed = _run([sys.executable, "-c", ASKING], home, {**environment, **changed})
        seconds, _, said = printed.partition(" ")
        return name, float(seconds), said.strip().replace(f" with {server.url}", "")

    yield case("no key", WANDB_API_KEY="")
    yield case("a host name that does not resolve", WANDB_BASE_URL="http://nowhere.invalid", NO_PROXY="*", no_proxy="*")
    with socket.socket() as closed, _full() as full:
        closed.bind(("127.0.0.1", 0))
        yield case("connection refused", WANDB_BASE_URL="http://{}:{}".format(*closed.getsockname()))
        yield case("no connection taken", WANDB_BASE_URL=full)
    for kind, name in (
        ("401", "401"),
        ("404", "404"),
        ("429", "429, for ever"),
        ("500", "500, for ever"),
        ("portal", "captive portal (HTML with 200)"),
        ("malformed", "malformed JSON"),
        ("hang", "no answer"),
    ):
        with server.misbehaving(kind):
            yield case(name)
    with server.misbehaving("hang", only="HistoryPage"):
        yield case(AFTER_PROGRESS)
    never = "import os, time\nos._exit = lambda code: time.sleep(300)\n"
    (home / "hanging").mkdir()
    (home / "hanging" / "sitecustomize.py").write_text(never)
    yield case("a client that does not end", PYTHONPATH=os.pathsep.join((str(home / "hanging"), str(ROOT))))


def second_pull(server: WandbServer, home: Path, environment: dict[str, str]) -> tuple[int, float]:
    """Requests and seconds of a pull that finds a thousand runs as they were."""
    for number in range(1000):
        server.add("thousand", f"r{number}", config={"seed": number}, history=[{"loss": 1.0}])
    command = [sys.executable, "-m", "altgrad.cli", "runs", "pull", "thousand", "--entity", "team", "--out", "thousand"]
    _run(command, home, environment)
    with server.counting() as requests:
        seconds, said = _run(command, home, environment)
    assert "1000 unchanged" in said, said
    return requests.total(), seconds


def training(home: Path, environment: dict[str, str]) -> tuple[float, str]:
    """The processor time of calls to W&B, in either thread, in percent of the training thread's; a row a step."""
    _, printed = _run([sys.executable, "-c", TRAINING, str(CONFIG)], home, environment)
    step, row, rows = map(float, printed.split()[-3:])
    said = (
        f"{1e3 * row:.2f} ms a row, {1e3 * step:.1f} ms a step of the small model; {rows:.0f} rows, all of them there"
    )
    return 100 * row / step, said


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, str]:
    begun = time.monotonic()
    environment = {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begun, done.stdout


@contextlib.contextmanager
def _full() -> Iterator[str]:
    """The address of a socket that takes no connection, as behind a firewall that drops packets."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield "http://{}:{}".format(*full.getsockname())


def _figure(name: str, value: float, unit: str, goal: float | None, reason: str) -> dict[str, Any]:
    print(f"{name}: {value:.2f} {unit} ({reason})", flush=True)
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "reason": reason}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
