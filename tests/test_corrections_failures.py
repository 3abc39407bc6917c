"""Each figure of the corrections on failures, step rules, verdicts and machines, a second time from the Parquet files.

The figures are computed with pyarrow, numpy and scipy alone; what the page says is asked for once, to be held to them.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.corrections import UNRECORDED, failure_values
from altgrad.analysis.failures import CAMPAIGN
from altgrad.analysis.machines import crossing, days

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "experiments" / "recorded"
SPLITS = ("e0m7", "e2m5", "e3m4", "e4m3", "e5m2", "e6m1", "e7m0")
SEEDS = range(10, 26)
Runs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    found = [
        json.loads(text)
        for path in sorted(RECORDED.glob("*/runs.parquet"))
        for text in pq.read_table(path, columns=["run"])["run"].to_pylist()
    ]
    return found or pytest.skip("no study is recorded")


@pytest.fixture(scope="module")
def values() -> dict[str, str | float]:
    return failure_values(ExperimentDataLoader([RECORDED]))


def of(runs: Runs, study: str, fmt: str | None = None, **wanted: Any) -> Runs:
    """The campaign's runs of a study whose config has these values; a format is that of all three operands."""
    if fmt:
        wanted |= {f"quantize__{operand}": fmt for operand in ("weight", "activation", "grad_output")}

    def value(run: dict[str, Any], path: str) -> Any:
        found = run["config"]
        for key in path.split("__"):
            found = found.get(key)
        return found

    return [
        run
        for run in runs
        if run["config"]["study"] == study
        and run["config"]["seed"] in range(10, 42)
        and all(value(run, key) == each for key, each in wanted.items())
    ]


NEAREST = {"quantize__rounding__grad_output": "nearest_even", "quantize__rounding__activation": "nearest_even"}
DRAWN = {"quantize__rounding__grad_output": "stochastic"}
ADAMW = {"optimizer__step_rule": "adamw", "optimizer__relative": False}
SHARED = {"optimizer__learning_rate": 0.016}


def losses(runs: Runs) -> dict[int, float]:
    assert runs, "no such run is recorded"
    assert len({run["arm"] for run in runs}) == 1
    return {run["config"]["seed"]: run["summary"]["val_loss"] for run in runs if run["status"] == "finished"}


def pairs(one: Runs, other: Runs) -> np.ndarray:
    mine, theirs = losses(one), losses(other)
    return np.array([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())])


def said(values: np.ndarray, digits: int = 3) -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():+.{digits}f} nats [{low:+.{digits}f}, {high:+.{digits}f}] (n = {len(values)})"


def flipped(values: np.ndarray) -> float:
    """The sign-flip test over all patterns."""
    return float(np.mean(np.abs(signs(len(values)) @ values) >= abs(values.sum()) * (1 - 1e-12)))


@cache
def signs(n: int) -> np.ndarray:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def holm(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values, kind="stable")
    found = np.empty(len(p_values))
    found[order] = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(order), 0, -1)))
    return list(found)


def fp32(runs: Runs) -> Runs:
    return of(runs, "formats", "fp32")


def test_the_studies_of_the_campaign_are_those_that_it_runs() -> None:
    spec = importlib.util.spec_from_file_location("campaign_of_corrections", ROOT / "experiments" / "campaign.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert set(CAMPAIGN) == set(module.CAMPAIGN) - {"tuning"}


def test_the_worst_arms_with_scales_that_follow_the_tensors_are_those_of_blocks(runs: Runs, values: Any) -> None:
    up = pairs(of(runs, "blocks", "e2m1", scaling__kind="mx_rceil", **NEAREST), fp32(runs))
    drawn = pairs(of(runs, "blocks", "e2m1", scaling__kind="mx", **DRAWN), fp32(runs))
    e7m0 = pairs(of(runs, "remedies", "e7m0", scaling__granularity="block"), fp32(runs))
    assert (values["mxfp4_up"], values["mxfp4_drawn"], values["e7m0_worst"]) == (said(up), said(drawn), said(e7m0))
    arms = {run["arm"] for run in of(runs, "blocks")}
    gaps = [pairs([run for run in runs if run["arm"] == arm], fp32(runs)).mean() for arm in arms]
    assert values["blocks_failing"] == sum(gap > 0.05 for gap in gaps) == 4
    assert up.mean() > drawn.mean() > e7m0.mean()


def test_weight_decay_is_another_one_in_the_code_rule_alone(runs: Runs, values: Any) -> None:
    decays: dict[bool, set[float]] = {True: set(), False: set()}
    for run in runs:
        optimizer = run["config"]["optimizer"]
        decays[optimizer["step_rule"] == "code"].add(optimizer["weight_decay"])
    assert decays == {True: {0.0}, False: {0.1}}
    assert (values["code_decay"], values["other_decay"]) == ("0", "0.1")
    grid = {"optimizer__storage": "grid", "optimizer__rounding": "stochastic"}
    found = [
        pairs(of(runs, "storage", fmt, optimizer__step_rule="code"), of(runs, "storage", fmt, **ADAMW, **grid)).mean()
        for fmt in ("e4m3", "e5m2", "e0m7")
    ]
    assert values["h10_differences"] == f"{min(found):.3f} to {max(found):.3f} nats"
    assert values["h10_answer"] == "yes, with a limit"


def test_h5_fails_in_one_family_and_holds_in_the_other(runs: Runs, values: Any) -> None:
    mlp = {fmt: of(runs, "layers", fmt, quantize__layers=["mlp"]) for fmt in SPLITS}
    best = min(SPLITS, key=lambda fmt: pairs(mlp[fmt], fp32(runs)).mean())
    assert values["h5_best"] == best.upper() == "E2M5"
    others = [fmt for fmt in SPLITS if fmt != best]
    registered = dict(zip(others, holm([flipped(pairs(mlp[fmt], mlp[best])) for fmt in others]), strict=True))
    everything = list(itertools.combinations(SPLITS, 2))
    amended = dict(zip(everything, holm([flipped(pairs(mlp[a], mlp[b])) for a, b in everything]), strict=True))
    assert values["h5_p_registered"] == f"{registered['e4m3']:.3f}"
    assert values["h5_p_amended"] == f"{amended['e2m5', 'e4m3']:.3f}"
    assert registered["e4m3"] < 0.05 < amended["e2m5", "e4m3"]
    assert values["h5_difference"] == said(pairs(mlp["e4m3"], mlp["e2m5"]), 4)
    assert values["h5_answer"] == "inconclusive"


def test_e5m2_gradients_remove_most_of_what_e7m0_loses(runs: Runs, values: Any) -> None:
    before = of(runs, "formats", "e7m0", **SHARED)
    wide = [
        run
        for run in of(runs, "remedies", quantize__weight="e7m0")
        if run["config"]["quantize"]["grad_output"] == "e5m2"
    ]
    removed, whole = pairs(before, wide).mean(), pairs(before, fp32(runs)).mean()
    assert (values["h18_removed"], values["h18_whole"]) == (f"{removed:.3f}", f"{whole:.3f}")
    assert removed > whole / 2
    assert values["h18_answer"] == "yes, with a limit"


def test_what_block_scales_change_and_what_long_runs_were_of(runs: Runs, values: Any) -> None:
    block = {"scaling__granularity": "block", "scaling__kind": "amax"}
    changes = {
        fmt: pairs(of(runs, "scaling", fmt, **block), of(runs, "formats", fmt, **SHARED))
        for fmt in ("e0m7", "e4m3", "e5m2")
    }
    assert values["h19_e0m7"] == said(changes["e0m7"])
    assert values["h19_others"] == f"E4M3 {said(changes['e4m3'])} and E5M2 {said(changes['e5m2'])}"
    formats = {run["config"]["quantize"]["weight"] for run in of(runs, "length")} - {"fp32"}
    assert values["h20_formats"] == len(formats) == 4
    assert values["h20_steps"] == f"{of(runs, 'length')[0]['config']['max_steps']:,}"
    assert values["h20_gap"] == said(pairs(of(runs, "length", "e0m7"), of(runs, "length", "fp32")))


def test_the_days_of_recording_are_those_of_the_records(runs: Runs, values: Any) -> None:
    found: dict[str, set[str]] = {}
    for run in runs:
        if run["config"]["seed"] in SEEDS:
            found.setdefault(run["config"]["study"], set()).add(run["created"][:10])
    assert values["study_days"] == "; ".join(f"{study} {' and '.join(sorted(found[study]))}" for study in sorted(found))
    assert found["storage"] == {"2026-11-24", "2026-11-25"}
    assert len({json.dumps(run["environment"], sort_keys=True) for run in runs}) == 1, "only the day tells"
    own, base = of(runs, "remedies", "e7m0", **DRAWN, **{"quantize__rounding__activation": "nearest_even"}), fp32(runs)
    loader = ExperimentDataLoader([RECORDED / "remedies", RECORDED / "formats"])
    begun = {run["config"]["seed"]: run["created"][:10] for run in base}
    expected = Counter((run["created"][:10], begun[run["config"]["seed"]]) for run in own)
    assert days(loader, own[0]["arm"], base[0]["arm"]) == expected == {("2026-11-25", "2026-11-24"): 16}
    table = crossing(loader, [("a", own[0]["arm"], base[0]["arm"]), ("b", base[0]["arm"], base[0]["arm"])])
    assert table["n_crossing"].tolist() == [16, 0]
    assert table["n_pairs"].tolist() == [16, 32]


def test_the_runs_that_failed_are_named_by_what_they_are(runs: Runs, values: Any) -> None:
    failed = [run for run in runs if run["status"] == "failed"]
    rescaled = [run for run in failed if run["config"]["model"].get("rescale")]
    assert {run["config"]["quantize"]["weight"] for run in rescaled} == {"fp32"}
    assert {run["config"]["scaling"]["kind"] for run in failed if run not in rescaled} == {"none"}
    assert values["failed_runs"] == (
        f"{len(failed)} runs failed, {len(failed) - len(rescaled)} of E4M3 (no scale) and "
        f"{len(rescaled)} of FP32 (mis-scaled tensors)"
    )
    assert values["fp32_finished"] == f"{len(losses(fp32(runs)))} of its {len(fp32(runs))} runs finished"


def test_a_relative_rate_ends_below_adamw_and_two_seeds_misled_e0m7(runs: Runs, values: Any) -> None:
    relative = of(runs, "controls", "fp32", optimizer__relative=True, model__rescale=0)
    found = pairs(relative, fp32(runs))
    assert values["relative_fp32"] == said(found, 4)
    assert values["relative_p"] == f"{flipped(found):.3f}"
    assert found.mean() < 0
    tuned, other = (of(runs, "formats", "e0m7", optimizer__learning_rate=rate) for rate in (0.008, 0.016))
    costs = pairs(tuned, other)
    assert values["e0m7_rate_costs"] == said(costs, 4)
    assert values["e0m7_rate_p"] == f"{flipped(costs):.3f}"
    assert (values["e0m7_rate"], values["e0m7_other_rate"]) == ("0.008", "0.016")
    ulps = of(runs, "storage", "e0m7", optimizer__precondition="update", optimizer__storage="master")
    assert values["e0m7_ulps"] == said(pairs(ulps, other), 4)


def test_every_value_has_a_place_on_the_page_and_every_place_a_value(values: Any) -> None:
    named = set()
    for path in (ROOT / "docs" / "reports").glob("corrections*.md"):
        named |= set(re.findall(r"\{\{ *(\w+) *\}\}", path.read_text("utf-8")))
    assert set(values) <= named
    assert UNRECORDED not in values.values()


def test_without_records_every_value_says_so() -> None:
    assert set(failure_values(ExperimentDataLoader([])).values()) == {UNRECORDED}
