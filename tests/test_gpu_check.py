"""The check of a GPU, tried on a processor in tiny sizes: what it finds, what it records, and where there is no GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from altgrad.reports.measured import read_record
from altgrad.reports.run_costs import GpuRecord, gpu_page
from altgrad.runs import load_runs
from altgrad.site import write_folder

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, its kernel uncompiled and torchao not installed."""
    pytest.importorskip("rich")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("gpu_check")

    def kernel(fmt: Any, rounding: str = "nearest_even") -> Callable[..., Any]:
        return lambda x, **rest: script.rounding.quantize(x, fmt, rounding=rounding, **rest)

    monkeypatch.setattr(script.rounding, "compile_quantize", kernel)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    return script


def shown(folder: Path) -> str:
    write_folder([gpu_page(folder)], folder, site_root="../")
    return (folder / "gpu.md").read_text()


def test_a_gpu_without_fp8_has_the_other_figures_and_says_why(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "native_lack", lambda device: "needs capability 8.9")
    (figure,) = check.check_training("cpu", True, tmp_path)
    assert "simulated E4M3" in figure.name
    assert figure.reason == "needs capability 8.9"


def test_a_trial_runs_all_parts_and_is_no_gpus(
    check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(tmp_path).count("make gpu-check PART=") == 3
    path, out = tmp_path / "gpu.json", tmp_path / "runs"
    given = ["--device", "cpu", "--quick", "--record", str(path), "--out", str(out)]
    assert check.main(given) == 0
    assert "3 checks run" in capsys.readouterr().out
    record = read_record(path, GpuRecord)
    assert record is not None
    assert [each.part for each in record.checks] == ["rounding", "training", "pair"]
    assert {each.device for each in record.checks} == {"the processor"}
    figures = {figure.name: figure for each in record.checks for figure in each.figures}
    assert figures["Results that differ in a bit, of 6,144"].met
    assert figures["Native products, off by at most"].met
    assert "torchao is not installed" in figures["Native FP8, layers of 64 on 64 rows"].reason
    runs = {one.config.optimizer.learning_rate: one.run["summary"]["val_loss"] for one in load_runs([out]).records}
    assert list(runs) == [check.RATE]
    assert len(load_runs([out]).records) == 2
    assert all("untuned" in one.config.notes and one.config.study == "gpu-check" for one in load_runs([out]).records)
    text = shown(tmp_path)
    assert "PART=" not in text
    assert "On the processor" in text
    assert check.main(given) == 0  # nothing is run twice
    assert "0 checks run" in capsys.readouterr().out


def test_wrong_products_are_found(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import altgrad.nn.layers as layers

    product = layers._native_product
    monkeypatch.setattr(layers, "_native_product", lambda *given: 1.01 * product(*given))
    assert check.products("cpu", check.SIZES[True]).met is False


def test_without_a_gpu_nothing_is_run(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "gpu.json"
    assert check.main(["--record", str(path)]) == 0
    assert capsys.readouterr().out.startswith("0 checks run")
    assert not path.exists()
    for wrong in (["--device", "cpu"], ["--quick"], ["nothing"]):  # none of these may be taken for a GPU's record
        with pytest.raises(SystemExit):
            check.main(wrong)
    assert "gpu_check" in sys.modules
