"""The guide on training loops: its programs run as they stand there, and leave records with layers."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from altgrad.runs import load_runs
from altgrad.runs.diagnosis import coverage_of

GUIDE = Path(__file__).parents[1] / "docs/guides/training-loops.md"
BLOCKS = {
    re.search(r'name="([^"]+)"', block)[1]: block  # type: ignore[index]
    for block in re.findall(r"^```python noexec\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
}
STATISTICS = {("activation", "sqnr_db"), ("grad_output", "underflow"), ("weight", "amax"), ("gradient", "norm_l2")}


def needs(*packages: str) -> Any:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    reason = f"{', '.join(missing)} not installed; `make loops` installs it and runs this test"
    return pytest.mark.skipif(bool(missing), reason=reason)


def run_of(folder: Path, name: str, *launcher: str) -> Any:
    """The record that a program of the guide leaves."""
    (folder / "train.py").write_text(BLOCKS[name])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(GUIDE.parents[2]), *filter(None, sys.path)])}
    command = [sys.executable, *launcher, "train.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = load_runs([folder / "runs"]).records
    assert (record.status, record.config.resolved_name.startswith(name)) == ("finished", True)
    return record


def check(record: Any, looks: list[int], layers: int) -> None:
    rows = record.layers
    assert sorted(rows.step.unique()) == looks
    assert rows.layer.nunique() == layers
    found = set(zip(rows.operand, rows.statistic, strict=True))
    assert found >= STATISTICS, STATISTICS - found
    assert rows.value.notna().all()
    coverage = coverage_of(record)
    assert coverage is not None, "the page says what is quantized"
    assert 0 < coverage.quantized < 1
    assert coverage.multiply_adds


@needs("torch", "transformers", "accelerate")
def test_hugging_faces_trainer_leaves_a_record_with_layers(tmp_path: Path) -> None:
    record = run_of(tmp_path, "gpt2-nvfp4")
    check(record, [0, 5, 10], 2 * 4 + 3)  # embeddings and head are observed too
    history = record.history.set_index("step")
    assert list(history.loss.dropna().index) == [3, 7, 11]
    assert list(history.val_loss.dropna().index) == [5, 11]


@needs("torch", "lightning")
def test_lightning_leaves_a_record_with_layers(tmp_path: Path) -> None:
    record = run_of(tmp_path, "curve-fp8")
    check(record, [0, 5, 10], 2)
    history = record.history.set_index("step")
    assert list(history.loss.dropna().index) == list(range(12))
    assert list(history.val_loss.dropna().index) == [1, 3, 5, 7, 9, 11]


@needs("torch")
def test_two_processes_under_fsdp_leave_one_record_with_the_layers_of_the_whole(tmp_path: Path) -> None:
    record = run_of(tmp_path, "fsdp-mxfp8", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    check(record, [0, 5], 2 * 4 + 2)
    assert len(record.history) == 6
    weights = record.layers.query("step == 0 and operand == 'weight' and statistic == 'amax'")
    from altgrad.models import GPT

    whole = GPT(128, layers=2, dim=32, heads=2, context=16, seed=0)
    for name, amax in zip(weights.layer, weights.value, strict=True):
        assert amax == whole.get_submodule(name).weight.abs().max().item(), name
