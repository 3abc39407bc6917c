"""Every headline number of the reports, computed a second time from the packed records with pyarrow, numpy and scipy.

Nothing here uses the code that made the reports, but for asking it what it shows. What is pending is skipped. The
reports are written once, as `make reports` does: the committed ones are those.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import generate_reports
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from altgrad.analysis import ExperimentDataLoader, verdicts
from altgrad.analysis.hypotheses import Verdict

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "experiments" / "recorded"
Losses = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> final validation loss; NaN for a run that did not finish."""


@pytest.fixture(scope="module")
def raw() -> Losses:
    """The last validation loss of every finished run, read from the Parquet files as they are; no tuning runs."""
    found: dict[str, dict[int, float]] = {}
    parts = sorted(path.parent for path in RECORDED.rglob("runs.parquet"))
    for study in (path for path in parts if not path.relative_to(RECORDED).parts[0].endswith("tuning")):
        names = {"run_id", "step", "val_loss", "final_val_loss"} & set(pq.read_schema(study / "history.parquet").names)
        history = pq.read_table(study / "history.parquet", columns=sorted(names)).to_pandas()
        loss = history.get("final_val_loss", history["val_loss"]).fillna(history["val_loss"])
        last = history.assign(loss=loss).dropna(subset="loss").sort_values("step", kind="stable")
        final = last.groupby("run_id")["loss"].last().to_dict()
        for row in pq.read_table(study / "runs.parquet").to_pylist():
            run = json.loads(row["run"])
            loss = final[row["run_id"]] if run["status"] == "finished" else math.nan
            found.setdefault(run["arm"], {})[run["config"]["seed"]] = loss
    if not found:
        pytest.skip("no study is recorded")
    return found


@pytest.fixture(scope="module")
def loader() -> ExperimentDataLoader:
    return ExperimentDataLoader([RECORDED])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make reports` writes; README.md with its answer beside it."""
    folder = tmp_path_factory.mktemp("reports")
    shutil.copy(ROOT / "README.md", folder)
    into = ["--output-dir", str(folder / "out"), "--readme", str(folder / "README.md")]
    assert generate_reports.main([*into, "--runs", str(RECORDED)]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def judged(loader: ExperimentDataLoader) -> list[Verdict]:
    found = [verdict for verdict in verdicts(loader) if verdict.answer != "pending" and len(verdict.tests)]
    return found or pytest.skip("every hypothesis is pending")


def differences(raw: Losses, arm: str, against: str) -> np.ndarray:
    """Differences over the seeds that both arms finished."""
    pairs = [raw[arm][seed] - raw[against][seed] for seed in sorted(set(raw[arm]) & set(raw[against]))]
    return np.array([pair for pair in pairs if not math.isnan(pair)])


def flipped(values: np.ndarray) -> float:
    """p-value of the sign-flip test: all signs where that can be counted in good time, else a large sample."""
    n = len(values)
    if n <= 16:
        signs = np.array(list(itertools.product((-1, 1), repeat=n)), dtype=np.int8)
    else:
        signs = np.random.default_rng(123).choice(np.array([-1, 1], dtype=np.int8), size=(40_000, n))
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-12)))


def agrees(shown: float, computed: float) -> bool:
    return shown == pytest.approx(computed, rel=1e-6, abs=1e-9, nan_ok=True)


def mean(values: np.ndarray) -> float:
    """NaN where no seed was finished with both."""
    return float(values.mean()) if len(values) else math.nan


def test_the_recorded_studies_are_whole(loader: ExperimentDataLoader) -> None:
    assert loader.problems == ()
    for study in RECORDED.iterdir():
        parts = [pq.read_table(path, columns=["run_id"]) for path in study.rglob("runs.parquet")]
        recorded = {run for part in parts for run in part["run_id"].to_pylist()}
        assert recorded, study.name
        assert recorded <= set(loader.records), study.name


def without_provenance(text: str) -> str:
    return text.split("## Provenance")[0]


def test_the_committed_reports_and_the_answer_in_the_readme_are_fresh(written: Path) -> None:
    fresh = {path.name: path for path in written.iterdir() if path.suffix in (".md", ".csv")}
    committed = {path.name: path for path in (ROOT / "reports").iterdir() if path.suffix in (".md", ".csv")}
    assert set(fresh) == set(committed)
    for name in fresh:
        assert without_provenance(committed[name].read_text()) == without_provenance(fresh[name].read_text()), (
            f"reports/{name} is stale: make reports"
        )
    shown = (ROOT / "README.md").read_text()
    assert shown == (written.parent / "README.md").read_text(), "README.md's answer is stale: make reports"


def test_every_gap_in_the_results_is_the_mean_difference_to_fp32_with_its_t_interval(
    raw: Losses, written: Path
) -> None:
    table = pd.read_csv(written / "results.csv")
    assert len(table) > 0
    for row in table.itertuples():
        values = differences(raw, row.arm, row.baseline)
        finished = [loss for loss in raw[row.arm].values() if not math.isnan(loss)]
        assert (row.n_runs, row.n_finished, row.n_pairs) == (len(raw[row.arm]), len(finished), len(values))
        assert agrees(row.gap, mean(values)), row.arm
        if len(values) > 1:
            low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            assert agrees(row.low, low), row.arm
            assert agrees(row.high, high), row.arm


def test_the_answer_of_the_format_comparison_is_that_of_the_raw_records(raw: Losses, written: Path) -> None:
    text = (written / "format_comparison.md").read_text().replace("−", "-")
    found = re.search(
        r"\*\*Sweet-spot format: (?:inconclusive between )?(\w+).*?\*\* With .*? quantized, "
        r"\1's final loss is ([\d.]+) nats per character above FP32, which is unquantized and ends at [\d.]+ "
        r"\(95% CI ([-+]?[\d.]+) to ([-+]?[\d.]+), n = (\d+) seeds\)",
        text,
    )
    if found is None:
        assert re.search(r"\*\*Sweet-spot format: (pending|no answer)", text), "the answer has other words"
        pytest.skip("the answer is pending, or there is none")
    name, *figures = found.groups()
    table = pd.read_csv(written / "format_comparison.results.csv")
    pairs = pd.read_csv(written / "results.csv").groupby(["scope", "baseline"])["n_pairs"].sum()
    assert table["n_pairs"].sum() == pairs.max()
    _, baseline = pairs.idxmax()
    gaps = {
        row.format: differences(raw, row.arm, baseline)
        for row in table.itertuples()
        if row.n_runs == row.n_finished and row.n_pairs >= 3 and row.format != "BF16" and "/" not in row.format
    }
    assert name == min(gaps, key=lambda each: gaps[each].mean())
    low, high = stats.t.interval(0.95, len(gaps[name]) - 1, gaps[name].mean(), stats.sem(gaps[name]))
    computed = (gaps[name].mean(), low, high, len(gaps[name]))
    for shown, value in zip(figures, computed, strict=True):
        assert float(shown) == pytest.approx(value, abs=5.0001e-4)


def test_every_test_behind_a_verdict_is_that_of_the_raw_records(raw: Losses, judged: list[Verdict]) -> None:
    checked = 0
    for verdict in judged:
        for row in verdict.tests.to_dict("records"):
            if not (row["arm"] in raw and row["against"] in raw) or verdict.id in ("H11", "H36"):
                continue  # a difference of differences has four arms
            values = differences(raw, row["arm"], row["against"])
            where = f"{verdict.id}: {row['contrast']}"
            assert row["n_pairs"] == len(values), where
            assert agrees(row["difference"], values.mean()), where
            low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            assert agrees(row["low"], low), where
            assert agrees(row["high"], high), where
            if not math.isnan(row["p_value"]):
                sampled = len(values) > 16
                expected = flipped(values) if len(values) >= 12 else stats.ttest_1samp(values, 0).pvalue
                assert row["p_value"] == pytest.approx(expected, abs=0.01 if sampled else 1e-6), where
            if not math.isnan(row["p_equivalent"]):
                above = stats.ttest_1samp(values, -0.01, alternative="greater").pvalue
                below = stats.ttest_1samp(values, 0.01, alternative="less").pvalue
                assert row["p_equivalent"] == pytest.approx(max(above, below), abs=1e-6), where
            checked += 1
    assert checked > 0


def test_every_adjusted_p_value_is_holms(judged: list[Verdict]) -> None:
    for verdict in judged:
        if verdict.id in ("H5", "H9", "H13", "H14", "H16"):
            continue  # several families, or tests beside the family
        p_values = verdict.tests["p_value"].fillna(1.0).to_numpy()
        order = np.argsort(p_values, kind="stable")
        expected = np.empty(len(p_values))
        expected[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)))
        known = verdict.tests["p_holm"].notna().to_numpy()
        assert verdict.tests["p_holm"].to_numpy()[known] == pytest.approx(expected[known]), verdict.id


def test_the_failures_shown_are_those_of_the_raw_records(raw: Losses, loader: ExperimentDataLoader) -> None:
    from altgrad.analysis import FailureAnalyzer

    gaps = FailureAnalyzer(loader).gaps
    assert len(gaps) > 0
    assert gaps.loc[gaps["baseline"].isna(), "gap"].isna().all(), "at its rate no FP32 was run"
    for row in gaps.dropna(subset=["baseline"]).itertuples():
        values = differences(raw, row.arm, row.baseline)
        assert agrees(row.gap, mean(values)), row.arm
        unfinished = any(math.isnan(loss) for loss in raw[row.arm].values())
        assert bool(row.failed) == (unfinished or (len(values) > 1 and values.mean() > 0.05)), row.arm


def test_the_differences_of_the_manifold_comparison_are_those_of_the_raw_records(raw: Losses, written: Path) -> None:
    tables = sorted(written.glob("manifold_comparison.step-rules*.csv"))
    rows = [row for path in tables for row in pd.read_csv(path).to_dict("records")]
    rows = [row for row in rows if isinstance(row.get("adamw_arm"), str) and row["n_pairs"] > 0]
    if not rows:
        pytest.skip("no pair of step rules is shown")
    for row in rows:
        values = differences(raw, row["arm"], row["adamw_arm"])
        assert row["n_pairs"] == len(values), row["arm"]
        assert agrees(row["difference"], values.mean()), row["arm"]
