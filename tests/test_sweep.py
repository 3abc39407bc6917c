"""`altgrad sweep`: what it writes, and what W&B's own agent makes of it with a server on the loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_server import WandbServer, wandb_environment

from altgrad.cli import main
from altgrad.runs import load_runs
from altgrad.runs.wandb_pull import pull

CONFIG = """
max_steps: 2
batch_size: 2
eval_batches: 1
layers_every: 0
final_eval_characters: 0
model: {layers: 1, dim: 8, heads: 1, context: 8}
"""
AGENT = """
import sys
from wandb.cli.cli import cli
from wandb.wandb_agent import Agent

Agent.POLL_INTERVAL = 0.1  # five seconds, three times a run
cli(["sweep", "sweep.yaml"], standalone_mode=False)
cli(["agent", "--count", "1", "team/altgrad/sweep0"], standalone_mode=False)
"""


def definition(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> dict[str, Any]:
    assert main(["sweep", str(config), *arguments]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("tiny.yaml")
    path.write_text(CONFIG)
    return path


def test_values_have_the_config_s_types_and_ranges_a_distribution(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    over = (
        "optimizer.learning_rate=1e-3..1e-1",
        "max_steps=2..8",
        "optimizer.weight_decay=0..0.5",
        "quantize.weight=e4m3,e5m2",
    )
    found = definition(capsys, config, "--method", "bayes", *(word for each in over for word in ("--over", each)))
    assert found["parameters"] == {
        "optimizer.learning_rate": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        "max_steps": {"distribution": "int_uniform", "min": 2, "max": 8},
        "optimizer.weight_decay": {"distribution": "uniform", "min": 0.0, "max": 0.5},
        "quantize.weight": {"values": ["e4m3", "e5m2"]},
    }
    assert (found["method"], found["project"]) == ("bayes", "altgrad")
    assert found["metric"] == {"name": "val_loss", "goal": "minimize"}


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("optimizer.lr=1", "unknown key 'optimizer.lr'"),
        ("quantize.weight=e4m3,e4m4", "unknown format 'e4m4'"),
        ("optimizer.learning_rate=1e-3..1e-1", "a range is of numbers and for --method random or bayes; list values"),
        ("max_steps=8..2 --method=bayes", "a range goes from the lower to the higher number"),
        ("schedule_steps=null,4", "agents cannot be given no value"),
        ("seed=1,2 --over=seed=3", "--over seed: given twice"),
        ("seed=1,2 --out=/runs", "give a path from this folder"),
    ],
)
def test_a_mistake_is_one_line_before_any_agent_starts(
    over: str, said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(config), "--over", *over.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert told.err.count("\n") == 1


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("wandb", "torch", "licensedcode")),
    reason="wandb, torch or licensedcode-data is not installed",
)
def test_an_agent_s_run_leaves_a_record_is_mirrored_under_the_sweep_s_id_and_comes_back_as_it_was(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = ("--over", "optimizer.learning_rate=0.001,0.002", "--over", "quantize.weight=e4m3,e5m2")
    found = definition(capsys, config, *over, "--set", "optimizer.weight_decay=0.5", "--out", "runs")
    Path("sweep.yaml").write_text(yaml.safe_dump(found))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    chosen = {"optimizer.learning_rate": 0.002, "quantize.weight": "e5m2"}
    with WandbServer() as server:
        given = wandb_environment(server, tmp_path)
        server.sweep_runs.append({"run_id": "abcd1234", "args": {key: {"value": chosen[key]} for key in chosen}})
        environment = os.environ | given | {"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", AGENT], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(server.sweeps["sweep0"]) == found
        (record,) = load_runs((Path("runs"),)).records
        assert (record.status, record.config.optimizer.weight_decay) == ("finished", 0.5)
        assert (record.config.optimizer.learning_rate, record.config.quantize.weight) == (0.002, "e5m2")
        assert list(server.runs()) == ["abcd1234"], done.stderr
        stored = server.runs()["abcd1234"]
        assert [row["_step"] for row in stored.rows()] == record.history["step"].tolist()
        assert json.loads(json.dumps(stored.summary))["val_loss"] == record.run["summary"]["val_loss"]
        assert record.run["wandb_url"] == f"{server.url}/team/altgrad/runs/abcd1234"
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert pull(tmp_path / "pulled", "altgrad", "team", silence=10).reason is None
        assert server.tunnels == []
    (back,) = load_runs((tmp_path / "pulled",)).records
    assert (back.id, back.config.identity()) == (record.id, record.config.identity())
