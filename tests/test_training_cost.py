"""The benchmark of training: ratios by hand, a trial of the machinery, a page that says what was recorded."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from altgrad.reports.diffusion_cost import DiffusionRecord, within
from altgrad.reports.measured import RECORDED, read_record
from altgrad.reports.run_costs import ProcessesRecord
from altgrad.reports.training_cost import TrainingRecord, training_page
from altgrad.runs.schema import RecordError
from altgrad.site import write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def training() -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("rich")
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.insert(0, str(ROOT / "benchmarks"))
    return __import__("training")


def record(**changes: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-23T12:00:00Z",
        "altgrad": "0.1.0",
        "code": "abc",
        "device": "the processor",
        "cores": 2,
        "load": 0.1,
        "versions": {"torch": "2.13.0"},
        "sizes": {"layers": 4},
        "turns": 5,
        "arms": [
            {"name": "wag", "baseline": "fp32", "ratio": 1.37, "low": 1.3, "high": 1.4, "milliseconds": 200,
             "goal": 1.4},
            {"name": "wag-compiled", "baseline": "fp32-compiled", "ratio": 1.23, "low": 1.1, "high": 1.3,
             "milliseconds": 180, "goal": 1.1, "reason": "because <b>it</b> is so"},
        ],
        "memory": [{"name": "wag", "mebibytes": 208, "ratio": 1.12, "goal": 1.5}],
        "shares": [{"operator": "aten::mm", "percent": 40.0}],
        **changes,
    }  # fmt: skip


def shown(folder: Path) -> str:
    page = training_page(folder)
    write_folder([page], folder, site_root="../")
    return (folder / "training.md").read_text()


def test_an_arm_is_held_against_its_baseline_turn_by_turn(training: ModuleType) -> None:
    times = {"fp32": [1.0, 2.0, 1.0, 1.0], "w": [1.5, 3.0, 1.5, 1.5], "wag": [2.0, 2.0, 2.0, 4.0]}
    arms = {arm.name: arm for arm in training.compared(times, lambda name: "fp32")}
    assert set(arms) == {"w", "wag"}
    assert (arms["w"].ratio, arms["w"].low, arms["w"].high) == (1.5, 1.5, 1.5)
    assert arms["w"].milliseconds == 1500
    assert arms["wag"].ratio == 2
    assert arms["w"].goal == 1.1
    assert arms["w"].reason


@pytest.mark.filterwarnings("ignore")
def test_a_trial_measures_every_eager_arm(training: ModuleType) -> None:
    found = training.bench("cpu", quick=True, turns=4, show=lambda text: None)
    names = {arm.name for arm in found.arms}
    telemetry = {"telemetry-off", "watch", "look", "look-codes", "telemetry", "coverage"}
    llama = {"llama-wag"} if find_spec("transformers") else set()
    assert names == {"w", "wag", "wag-stochastic-gradients", "wag-mx", "manifold-step"} | telemetry | llama
    assert {arm.baseline for arm in found.arms if arm.name in telemetry} == {"wag"}
    assert all(arm.low <= arm.high for arm in found.arms)
    assert [row.name for row in found.memory] == ["fp32", "w", "wag"]
    assert 0 < sum(share.percent for share in found.shares) <= 100.001
    assert TrainingRecord.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("arm", ["native", "bf16", "wag"])
def test_the_arms_of_the_gpu_take_their_steps_on_a_processor_too(training: ModuleType, arm: str) -> None:
    step = training.make_step(arm, training.SIZES["quick"], "cpu")
    step()
    step()


def test_one_look_in_ten_steps_is_averaged_over_looks_with_and_without_codes(training: ModuleType) -> None:
    times = {"wag": [1.0, 2.0], "watch": [0.01, 0.02], "look": [2.0, 4.0], "look-codes": [3.0, 6.0]}
    assert training.ten_steps(times, "wag") == pytest.approx([0.01 + (9 + 0.8 * 2 + 0.2 * 3) / 10, 0.02 + 2.24])


def test_the_page_says_what_the_record_says(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(record()))
    text = shown(tmp_path)
    assert "1.37 times that of the fp32 loop, 1.23 times where both are compiled" in text
    assert "missed" in text
    assert "Telemetry" not in text
    assert "<b>" not in text
    assert "aten::mm" in text
    assert "training.py --device cuda" in text  # the GPU's part is pending


def test_the_page_says_what_telemetry_adds(tmp_path: Path) -> None:
    arms = [
        {"name": name, "baseline": "wag", "ratio": ratio, "low": 1, "high": 2, "milliseconds": 1}
        for name, ratio in (("telemetry", 1.043), ("telemetry-compiled", 1.081))
    ]
    (tmp_path / "training.json").write_text(json.dumps(record(arms=record()["arms"] + arms)))
    assert "a look at every tenth step adds 4.3% to the quantized step, 8.1% to the compiled one" in shown(tmp_path)


def test_without_records_the_page_is_pending(tmp_path: Path) -> None:
    text = shown(tmp_path)
    assert text.count("Pending") == 4
    assert "make bench-training" in text
    assert "benchmarks/diffusion.py" in text


@pytest.mark.parametrize("change", [{"arms": "none"}, {"surprise": 1}, {"cores": 0}])
def test_a_damaged_record_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "training.json").write_text(json.dumps(record(**change)))
    with pytest.raises(RecordError, match=r"benchmarks/recorded/training.json.*make bench-training"):
        read_record(tmp_path / "training.json", TrainingRecord)
    assert "left out" in shown(tmp_path)


def test_the_committed_record_has_every_goal() -> None:
    found = read_record(RECORDED / "training.json", TrainingRecord)
    assert found is not None
    goals = {arm.name for arm in found.arms if arm.goal is not None}
    assert goals >= {"w", "wag", "wag-compiled", "manifold-step", "telemetry", "telemetry-compiled"}
    assert all(arm.reason for arm in found.arms if arm.goal is not None and arm.ratio > arm.goal)


@pytest.mark.parametrize("added", [0.149, 0.151])
def test_the_page_says_what_diffusion_adds_and_whether_it_may(tmp_path: Path, added: float) -> None:
    cost = {"format": "e4m3", "classes": 2048, "step_ms": 20.0}
    costs = [cost | {"rounding": "nearest_even", "added": 0.0}, cost | {"rounding": "diffused", "added": added}]
    given = {"date": "2026-11-30T12:00:00+00:00", "altgrad": "0.1", "versions": {}, "costs": costs}
    (tmp_path / "diffusion.json").write_text(json.dumps(given))
    text = shown(tmp_path)
    assert f"+{100 * added:.1f}%" in text
    assert ("missed" in text) is (added > 0.15)
    assert ("Diffusion is not within that" in text) is (added > 0.15)


def test_a_trial_of_diffusion_measures_every_rounding(training: ModuleType) -> None:
    diffusion = __import__("diffusion")
    found = diffusion.measure("e2m1", 96, 1)
    assert [cost.rounding for cost in found] == [*diffusion.ROUNDINGS]
    assert {cost.met for cost in found if cost.rounding != "diffused"} == {None}
    assert min(cost.step_ms for cost in found) > 0


def test_the_committed_record_has_diffusion_within_its_limit_at_the_site_s_vocabulary() -> None:
    found = read_record(RECORDED / "diffusion.json", DiffusionRecord)
    assert found is not None
    assert within(found)[96]


def test_two_processes_are_held_against_one_of_the_same_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    processes = __import__("processes")

    def seconds(quantize: str, count: int, threads: int, *_: Any) -> float:
        return (0.09 if "e4m3" in quantize else 0.1) if count == threads == 1 else 0.06 if count == 2 else 0.07

    monkeypatch.setattr(processes, "seconds_of_a_step", seconds)
    path = tmp_path / "processes.json"
    assert processes.main(["--quick", "--record", str(path)]) == 0
    found = read_record(path, ProcessesRecord)
    assert found is not None
    assert [figure.met for figure in found.figures] == [True, None, True, None]
    assert [round(figure.times_floor or 0, 2) for figure in found.figures] == [0.6, 0.7, 0.67, 0.78]
    assert "Two processes, E4M3" in shown(tmp_path)
    with pytest.raises(SystemExit):
        processes.main(["--quick"])
    assert "name another file" in capsys.readouterr().err
