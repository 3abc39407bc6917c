"""The benchmark of records: a trial of the machinery, goals that can be missed, a page that says what was recorded."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from altgrad.config import UsageError
from altgrad.reports.measured import RECORDED, read_record
from altgrad.reports.run_costs import (
    Figure,
    Growth,
    KeystrokesRecord,
    LargeRecord,
    RunsRecord,
    SiteRecord,
    runs_costs_page,
    site_costs_page,
)
from altgrad.runs import load_runs
from altgrad.runs.query import verify
from altgrad.site import write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("runs")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(*figures: Figure, **changes: Any) -> RunsRecord:
    given: dict[str, Any] = {
        "date": "2026-11-24T12:00:00Z", "altgrad": "0.1.0", "code": "abc", "cores": 2, "load": 0.5,
        "versions": {"pyarrow": "24"}, "sizes": {"runs": 1000}, "figures": figures,
    }  # fmt: skip
    return RunsRecord.model_validate(given | changes)


def shown(folder: Path) -> str:
    write_folder([runs_costs_page(folder)], folder, site_root="../")
    return (folder / "runs.md").read_text()


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure(name="a", value=19, unit="µs", goal=20), True),
        (Figure(name="a", value=21, unit="µs", goal=20), False),
        (Figure(name="a", value=3, unit="s", floor=2, goal_ratio=1.5), True),
        (Figure(name="a", value=3.1, unit="s", floor=2, goal_ratio=1.5), False),
        (Figure(name="a", value=3.1, unit="s", goal=9, floor=2, goal_ratio=1.5), False),
        (Figure(name="a", value=3.1, unit="s"), None),
    ],
)
def test_a_goal_is_met_or_missed(figure: Figure, met: bool | None) -> None:
    assert figure.met is met


def test_a_trial_measures_everything(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SHIPPED", benchmark.SHIPPED / "pilot-formats")  # all take half a minute
    found = benchmark.bench(quick=True, repeats=1, show=lambda text: None)
    names = [figure.name for figure in found.figures]
    assert names == [
        "Append a row of 60 metrics",
        "Read three columns of 4 runs",
        "Read all columns of 4 runs",
        "Read three columns of 2 runs, checked",
        "Read all columns of 2 runs, checked",
        "Load 2 runs, checked",
        "Load 20 packed runs",
        "Import 2 TensorBoard runs of 50 rows of 10 metrics",
        "Import 1 W&B offline runs of 50 rows of 10 metrics",
        "Import one history of 5,000 rows",
        "Build the new site of 6 runs, cold",
    ]
    assert all(figure.floor for figure in found.figures[:-1] if figure.unit == "s")
    assert RunsRecord.model_validate_json(found.model_dump_json()) == found


def test_figures_measured_elsewhere_take_the_place_of_those_of_their_name(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = Figure(name="one", value=1, unit="s"), Figure(name="two", value=2, unit="s")
    changed = Figure(name="two", value=3, unit="s")
    assert benchmark.with_figures(record(one, two), [changed]).figures == (one, changed)
    assert benchmark.with_figures(record(one, two), record(changed)).figures == (one, changed)
    with pytest.raises(UsageError, match="no record yet"):
        benchmark.with_figures(None, [one])
    (tmp_path / "more.json").write_text(json.dumps([{"name": "hangs", "value": 6.0, "unit": "s", "goal": 6}]))
    (tmp_path / "runs.json").write_text(record(one).model_dump_json())
    given = ["runs.py", "--add", str(tmp_path / "more.json"), "--record", str(tmp_path / "runs.json")]
    monkeypatch.setattr(sys, "argv", given)
    assert benchmark.main() == 0
    assert "hangs" in shown(tmp_path)
    (tmp_path / "more.json").write_text('[{"name": 1}]')
    capsys.readouterr()
    assert benchmark.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_says_what_was_recorded_and_what_was_missed(tmp_path: Path) -> None:
    assert "Pending" in shown(tmp_path)
    figure = Figure(name="Append <b>x</b>", value=30, unit="µs", goal=20, floor=5, floor_name="a write", reason="why")
    (tmp_path / "runs.json").write_text(record(figure).model_dump_json())
    text = shown(tmp_path)
    assert "missed" in text
    assert "6.00 x a write" in text
    assert "<b>" not in text
    (tmp_path / "runs.json").write_text("{}")
    assert "left out" in shown(tmp_path)
    assert "make bench-runs" in shown(tmp_path)


def test_a_missed_goal_of_the_committed_record_has_its_reason() -> None:
    found = read_record(RECORDED / "runs.json", RunsRecord)
    assert found is not None
    assert {"Append a row of 60 metrics", "Load 2,000 packed runs"} <= {figure.name for figure in found.figures}
    assert all(figure.reason for figure in found.figures if figure.met is False)


def test_the_page_of_the_site_shows_its_two_records_or_how_to_make_them(tmp_path: Path) -> None:
    def text() -> str:
        write_folder([site_costs_page(tmp_path)], tmp_path, site_root="../")
        return (tmp_path / "site.md").read_text()

    assert text().count("Pending") == 2
    assert all(command in text() for command in ("make bench-site", "make bench-keystrokes"))
    figure = Figure(name="Cold", value=61, unit="s", goal=30, floor=20, floor_name="empty pages")
    given = record(figure).model_dump(exclude={"benchmark"})
    (tmp_path / "site.json").write_text(SiteRecord.model_validate(given).model_dump_json())
    assert text().count("Pending") == 1
    assert "3.05 x empty pages" in text()
    (tmp_path / "keystrokes.json").write_text(KeystrokesRecord.model_validate(given).model_dump_json())
    assert "Pending" not in text()
    (tmp_path / "keystrokes.json").write_text((tmp_path / "site.json").read_text())
    assert "left out" in text()


def test_generated_runs_are_sound_and_an_exponent_is_that_of_the_largest_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = script("large")
    made = large.generate(tmp_path / "made", 12, ROOT / "experiments" / "recorded" / "pilot-formats")
    assert verify([made]) == (12, [], [])
    assert len({one.arm for one in load_runs([made]).records}) == 2

    asked: list[str] = []

    def cost(step: str, records: Path) -> Any:
        asked.append(step)
        count = int(records.name)
        return large.Cost(5 + count ** (2 if step == large.PAGES else 1), 0.5)

    monkeypatch.setattr(large, "cost", cost)
    monkeypatch.setattr(large, "generate", lambda folder, runs: folder.mkdir())
    monkeypatch.setattr(large.multiprocessing, "get_context", lambda _: SimpleNamespace(Process=Here))
    path = tmp_path / "large.json"
    assert large.main(["--runs", "10,20,40", "--record", str(path)]) == 0
    found = read_record(path, LargeRecord)
    assert found is not None
    assert {each.name: round(each.exponent, 6) for each in found.steps} == {
        step: 2.0 if step == large.PAGES else 1.0 for step in large.STEPS
    }
    assert [each.met for each in found.steps] == [None, *[True] * (len(large.STEPS) - 2), False]
    assert capsys.readouterr().out.count("missed") == 1
    asked.clear()
    assert large.main(["--runs", "10,20,40,80", "--record", str(path)]) == 0
    assert len(asked) == len(large.STEPS), "what was measured of the same code is not measured again"
    assert large.main(["--runs", "10,20,40", "--record", str(path), "--again"]) == 0
    assert len(asked) == 5 * len(large.STEPS)
    text = shown(tmp_path)
    assert "10, 20, 40" in text
    assert "make bench-large" in text
    assert Growth(name="a", runs=(1, 10, 100), seconds=(1, 2, 20), memory=(1, 1, 1)).exponent == pytest.approx(1)


class Here:
    """A process that is this one."""

    exitcode = 0

    def __init__(self, target: Any, args: Any) -> None:
        self.start = lambda: target(*args)

    def join(self) -> None:
        pass
