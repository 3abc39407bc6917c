"""What W&B costs, with its real client and the tests' server on the loopback: failures, a second pull, a training run.

    .venv/bin/python benchmarks/wandb_failures.py figures.json
    .venv/bin/python benchmarks/runs.py --add figures.json

Each failure is timed through scripts/generate_reports.py, which has to make its reports whatever happens; the time that
it takes with --offline is taken off. Nothing reaches a network.
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

from altgrad.runs import load_runs  # noqa: E402

LIMIT = 6.0
REPEATS = 5
AFTER_PROGRESS = "no answer from the first history on, the list having come"
CONFIG = ROOT / "experiments" / "configs" / "e4m3.yaml"


def main(path: str) -> int:
    """Measure all of it, print it, and write the figures for benchmarks/runs.py into the file `path`."""
    figures: list[dict[str, Any]] = []
    with WandbServer() as server, tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        environment = {**os.environ, **wandb_environment(server, home)}
        for name, seconds, said in failures(server, home, environment):
            goal = None if name == AFTER_PROGRESS else LIMIT + 1
            figures.append(_figure(f"Reports with W&B failing: {name}", seconds, "s", goal, said))
        requests, seconds = second_pull(server, home, environment)
        figures.append(_figure("Second pull of 1,000 unchanged runs", requests, "requests", 3, f"in {seconds:.1f} s"))
        percent, said = training(home, environment)
        figures.append(_figure("Training slowed by W&B online", percent, "%", 5, said))
        assert server.tunnels == [], "a request left the machine"
    for figure in figures:
        print(f"{figure['name']:55} {figure['value']:6.2f} {figure['unit']:9} {figure['reason']}")
    Path(path).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def failures(server: WandbServer, home: Path, environment: dict[str, str]) -> Iterator[tuple[str, float, str]]:
    """Name, seconds beyond those of --offline, and what the command said, of each case."""
    server.add("altgrad", "one", history=[{"loss": 1.0}])
    plain = min(_reports(home, environment, "--offline")[0] for _ in range(3))

    def case(name: str, **changed: str) -> tuple[str, float, str]:
        seconds, said = _reports(home, {**environment, **changed})
        return name, max(seconds - plain, 0.0), said

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
    """By how many percent the median step of a run takes longer online: the least of several runs, taken in turns."""
    seconds: dict[str, list[float]] = {"disabled": [], "online": []}
    for repeat in range(REPEATS):
        for mode, found in seconds.items():
            out = home / f"{mode}-{repeat}"
            command = [sys.executable, "-m", "altgrad.cli", "train", str(CONFIG), "--out", str(out)]
            _run([*command, "--set", "max_steps=150", "--set", f"tracking={mode}"], home, environment)
            (record,) = load_runs([out]).records
            assert (record.run["wandb_url"] is None) == (mode == "disabled"), "the mirror did not start"
            found.append(float(record.history["seconds"].diff().median()))
    best = {mode: min(found) for mode, found in seconds.items()}
    said = f"a step with its row takes {1e3 * best['disabled']:.1f} ms, and {1e3 * best['online']:.1f} ms with W&B"
    return max(100 * (best["online"] / best["disabled"] - 1), 0.0), said


def _reports(home: Path, environment: dict[str, str], *more: str) -> tuple[float, str]:
    runs = home / "records"
    runs.mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "scripts" / "generate_reports.py"), "--output-dir", "out", *more]
    seconds, said = _run(command, home, environment | {"ALTGRAD_RUNS": str(runs)})
    lines = [line.strip() for line in said.splitlines() if "reason:" in line or line.startswith("W&B: ")]
    return seconds, "; ".join(lines)


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
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "reason": reason}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
