"""Each figure of the corrections on failures, step rules, verdicts and machines, a second time from the Parquet files.

The figures are computed with pyarrow, numpy and scipy alone, and looked for in the report as it is committed;
`test_headlines` makes that again and compares.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from altgrad.analysis import ExperimentDataLoader, corrections
from altgrad.analysis.contrasts import runs_of
from altgrad.analysis.machines import crossing
from altgrad.analysis.statistics import FAILURE_GAP
from altgrad.formats import get_format
from altgrad.reports import corrections_page
from altgrad.reports.document import DOCUMENTS, FILTERS, campaign, document_source
from altgrad.site.document import DocumentError, render_document
from altgrad.studies import ARMS

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "experiments" / "recorded"
SPLITS = ("e0m7", "e2m5", "e3m4", "e4m3", "e5m2", "e6m1", "e7m0")
SEEDS = range(10, 26)
Runs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    found = [
        json.loads(text)
        for path in sorted(RECORDED.rglob("runs.parquet"))
        for text in pq.read_table(path, columns=["run"])["run"].to_pylist()
    ]
    return found or pytest.skip("no study is recorded")


@pytest.fixture(scope="module")
def page() -> str:
    """The page as it is committed, on one line so that its sentences can be looked for."""
    return " ".join(html.unescape((ROOT / "reports" / "corrections.md").read_text("utf-8")).split())


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
    finer = digits + (min(abs(low), abs(high)) < 0.5 * 10**-digits)  # an end is never shown as zero
    text = f"{values.mean():+.{digits}f} nats [{low:+.{finer}f}, {high:+.{finer}f}] (n = {len(values)})"
    return text.replace("-", "−")


def flipped(values: np.ndarray) -> float:
    """The sign-flip test over all patterns."""
    return float(np.mean(np.abs(signs(len(values)) @ values) >= abs(values.sum()) * (1 - 1e-12)))


@cache
def signs(n: int) -> np.ndarray:
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


def holm(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values, kind="stable")
    found = np.empty(len(p_values))
    found[order] = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(order), 0, -1)))
    return list(found)


def fp32(runs: Runs) -> Runs:
    return of(runs, "formats", "fp32")


def test_the_worst_arms_with_scales_that_follow_the_tensors_are_those_of_blocks(runs: Runs, page: str) -> None:
    up = pairs(of(runs, "blocks", "e2m1", scaling__kind="mx_rceil", **NEAREST), fp32(runs))
    drawn = pairs(of(runs, "blocks", "e2m1", scaling__kind="mx", **DRAWN), fp32(runs))
    e7m0 = pairs(of(runs, "remedies", "e7m0", scaling__granularity="block"), fp32(runs))
    arms = {run["arm"] for run in of(runs, "blocks")}
    gaps = [pairs([run for run in runs if run["arm"] == arm], fp32(runs)).mean() for arm in arms]
    assert f"{sum(gap > 0.05 for gap in gaps)} arms of study `blocks` fail. MXFP4 with scales rounded up ends" in page
    assert f"rounded up ends {said(up)} above FP32, MXFP4 with gradients rounded stochastically {said(drawn)}." in page
    assert f"E7M0's worst is {said(e7m0)}." in page
    assert up.mean() > drawn.mean() > e7m0.mean()


def test_weight_decay_is_another_one_in_the_code_rule_alone(runs: Runs, page: str) -> None:
    decays: dict[bool, set[float]] = {True: set(), False: set()}
    for run in runs:
        optimizer = run["config"]["optimizer"]
        decays[optimizer["step_rule"] == "code"].add(optimizer["weight_decay"])
    assert decays == {True: {0.0, 0.0032}, False: {0.1}}, "0.0032 in study decay and its sweeps alone"
    assert "weight decay is 0 in every run of the code rule and 0.1 in every other one." in page
    grid = {"optimizer__storage": "grid", "optimizer__rounding": "stochastic"}
    found = [
        pairs(of(runs, "storage", fmt, optimizer__step_rule="code"), of(runs, "storage", fmt, **ADAMW, **grid)).mean()
        for fmt in ("e4m3", "e5m2", "e0m7")
    ]
    assert f"H10 found steps of codes worse by {min(found):.3f} to {max(found):.3f} nats" in page
    assert 'H10 is answered "yes, with a limit".' in page


def test_h5_fails_in_one_family_and_holds_in_the_other(runs: Runs, page: str) -> None:
    mlp = {fmt: of(runs, "layers", fmt, quantize__layers=["mlp"]) for fmt in SPLITS}
    best = min(SPLITS, key=lambda fmt: pairs(mlp[fmt], fp32(runs)).mean())
    others = [fmt for fmt in SPLITS if fmt != best]
    registered = dict(zip(others, holm([flipped(pairs(mlp[fmt], mlp[best])) for fmt in others]), strict=True))
    everything = list(itertools.combinations(SPLITS, 2))
    amended = dict(zip(everything, holm([flipped(pairs(mlp[a], mlp[b])) for a, b in everything]), strict=True))
    assert best == "e2m5"
    assert registered["e4m3"] < 0.05 < amended["e2m5", "e4m3"]
    assert f"E4M3 − E2M5 in the MLP has an adjusted p of {registered['e4m3']:.3f} in the family as first" in page
    assert f"by which H5 fails, and of {amended['e2m5', 'e4m3']:.3f} over all pairs, by which it holds." in page
    assert f"The difference is {said(pairs(mlp['e4m3'], mlp['e2m5']), 4)}, below the margin of 0.01." in page
    assert 'both are shown, and the answer is "inconclusive".' in page


def test_e5m2_gradients_remove_most_of_what_e7m0_loses(runs: Runs, page: str) -> None:
    before = of(runs, "formats", "e7m0", **SHARED)
    wide = of(runs, "remedies", quantize__weight="e7m0", quantize__grad_output="e5m2")
    removed, whole = pairs(before, wide).mean(), pairs(before, fp32(runs)).mean()
    assert f"E5M2 gradients remove {removed:.3f} of E7M0's {whole:.3f} nats, so most of its loss" in page
    assert removed > whole / 2
    assert 'the three are answered "yes, with a limit", each with its limit.' in page


def test_what_block_scales_change_and_what_long_runs_were_of(runs: Runs, page: str) -> None:
    block = {"scaling__granularity": "block", "scaling__kind": "amax"}
    changes = {
        fmt: said(pairs(of(runs, "scaling", fmt, **block), of(runs, "formats", fmt, **SHARED)))
        for fmt in ("e0m7", "e4m3", "e5m2")
    }
    assert f"H19: only E0M7 was tested, {changes['e0m7']} by block scales; E4M3 {changes['e4m3']}" in page
    assert f" and E5M2 {changes['e5m2']} stand beside it untested." in page
    long = of(runs, "length")
    formats = {run["config"]["quantize"]["weight"] for run in long} - {"fp32"}
    assert f"H20: {len(formats)} 8-bit formats ran after {long[0]['config']['max_steps']:,} steps" in page
    gap = said(pairs(of(runs, "length", "e0m7"), of(runs, "length", "fp32")))
    assert f"only that E0M7 is the worst by its mean and above FP32 ({gap})." in page


def test_the_days_of_recording_are_those_of_the_records(runs: Runs, page: str) -> None:
    found: dict[str, set[str]] = {}
    for run in runs:
        if run["config"]["seed"] in SEEDS:
            found.setdefault(run["config"]["study"], set()).add(run["created"][:10])
    days_of = "; ".join(f"{study} {' and '.join(sorted(found[study]))}" for study in sorted(found))
    assert f"Studies by day: {days_of}." in page
    assert found["storage"] == {"2026-11-24", "2026-11-25"}
    unnamed = [run["environment"] for run in runs if "processor" not in run["environment"]]
    assert len({json.dumps(each, sort_keys=True) for each in unnamed}) == 1, "only the day tells"
    own, base = of(runs, "remedies", "e7m0", **DRAWN, **{"quantize__rounding__activation": "nearest_even"}), fp32(runs)
    loader = ExperimentDataLoader([])
    loader.__dict__["records"] = {run["id"]: SimpleNamespace(run=run) for run in (*own, *base)}
    rows = [(run["id"], run["arm"], run["config"]["seed"], run["created"]) for run in (*own, *base)]
    loader.__dict__["runs"] = pd.DataFrame(rows, columns=["run_id", "arm", "seed", "created"])
    begun = {run["config"]["seed"]: run["created"][:10] for run in base}
    expected = Counter((run["created"][:10], begun[run["config"]["seed"]]) for run in own)
    assert expected == {("2026-11-25", "2026-11-24"): 16}
    across = crossing(loader, [("a", own[0]["arm"], base[0]["arm"]), ("b", base[0]["arm"], base[0]["arm"])])
    assert across["n_crossing"].tolist() == [16, 0]
    assert across["n_pairs"].tolist() == [16, 32]


def test_the_runs_that_failed_are_named_by_what_they_are(runs: Runs, page: str) -> None:
    failed = [run for run in runs if run["status"] == "failed" and not run["config"]["study"].endswith("tuning")]
    rescaled = [run for run in failed if run["config"]["model"].get("rescale")]
    assert {run["config"]["quantize"]["weight"] for run in rescaled} == {"fp32"}
    many = [run for run in failed if run["config"].get("vocabulary")]
    unscaled = [run for run in failed if run not in rescaled and run not in many]
    assert {run["config"]["scaling"]["kind"] for run in unscaled} == {"none"}
    lost = Counter(run["config"]["quantize"]["weight"] for run in many)
    assert lost == {"e0m7": 16, "e2m5": 8}
    counts = f"16 of E0M7 and 8 of E2M5 and {len(unscaled)} of E4M3 (no scale)"
    counts += f" and {len(rescaled)} of FP32 (mis-scaled tensors)"
    assert f"{len(failed)} runs failed outside of sweeps, {counts}." in page
    finished = f"{len(losses(fp32(runs)))} of its {len(fp32(runs))} runs finished"
    assert f"FP32 as formats are compared with it never failed: {finished}." in page


def test_a_relative_rate_ends_below_adamw_and_two_seeds_misled_e0m7(runs: Runs, page: str) -> None:
    relative = of(runs, "controls", "fp32", optimizer__relative=True, model__rescale=0)
    found = pairs(relative, fp32(runs))
    text = f"ends {-found.mean():.4f} nats below AdamW (difference {said(found, 4)}), p {flipped(found):.3f}."
    assert f"a rate relative to the tensor {text}" in page
    assert found.mean() < 0
    tuned, other = (of(runs, "formats", "e0m7", optimizer__learning_rate=rate) for rate in (0.008, 0.016))
    costs = pairs(tuned, other)
    text = f"it ends {costs.mean():.4f} nats above 0.016 (difference {said(costs, 4)}), p {flipped(costs):.3f}."
    assert f"two held-out seeds chose 0.008 for E0M7 under AdamW; on the seeds of the study {text}" in page
    ulps = of(runs, "storage", "e0m7", optimizer__precondition="update", optimizer__storage="master")
    assert f"against 0.016 their difference is {said(pairs(ulps, other), 4)}." in page


def test_without_records_every_finding_says_so_and_no_figure_is_given() -> None:
    text = str(corrections_page(ExperimentDataLoader([])).blocks)
    assert text.count("*Not recorded") >= 15
    assert " nats [" not in text


HELD = {
    "reports/head": {
        'verdict("H29").answer == "yes"': ("E7M0 head residual-on-target", +0.2),
        'contrast("E6M1 head residual-on-target", "E6M1 head wide").low < 0': ("E6M1 head residual-on-target", +0.05),
    },
    "reports/corrections": {
        'contrast("MXFP4 up", "FP32").difference > e7m0_worst.gap': ("MXFP4 up", -1.0),
        'verdict("H10").answer == "yes"': ("E4M3 code stochastic", -1.0),
        'h5().best != "E4M3"': ("E4M3 mlp", -0.0075),
        'verdict("H5").answer == "inconclusive"': ("E4M3 mlp", +0.5),
        'contrast("E7M0", "E7M0 E5M2 gradients").difference >': ("E7M0 E5M2 gradients", +0.4),
        'contrast("E0M7 long", "FP32 long").low > 0': ("E0M7 long", -0.5),
        'verdict("H18").limited': ("E7M0 E5M2 gradients", +0.4),
        "fp32().finished == fp32().runs": ("FP32", math.nan),
        'contrast("FP32 relative master", "FP32").high < 0': ("FP32 relative master", +0.05),
        'contrast("E0M7 own rate", "E0M7").low > 0': ("E0M7 own rate", -0.05),
        'contrast("E4M3", "E3M4").low > 0': ("E4M3 long", -0.005),
        'contrast("E0M7", "FP32").low > 0': ("E0M7 block", +0.02),
        'contrast("E0M7 block", "E0M7").high < 0': ("E0M7 block", +0.2),
        'contrast("E7M0 head", "FP32").difference >': ("E0M7 head", -0.1),
        'contrast("E6M1", "E5M2").low > 0': ("E5M2", -0.02),
        'contrast("E7M0", "FP32").low >': ("E7M0 gradients", +0.3),
        'contrast("E0M7 block", "E4M3 block").low < 0': ("E0M7 block", -0.02),
        'contrast("E4M3 adamw feedback", "E4M3").low > margin': ("E4M3 adamw feedback", -0.05),
        'contrast("E4M3 adamw nearest", "FP32").difference > limit': ("E4M3 adamw nearest", -0.1),
        'contrast("E2M5 head nearest", "FP32 fresh").low > limit': ("E2M5 head nearest", -0.08),
    },
    "reports/literature": {
        'contrast("E4M3 gradients", "FP32").high < margin': ("E4M3 gradients", +0.02),
        'contrast("E4M3", "E3M4").high < margin': ("E4M3", +0.02),
        'contrast("E0M7 block", "E4M3 block").high >= 0': ("E0M7 block", -0.02),
        'contrast("MXFP8 up", "BF16").high < margin': ("MXFP8 up", +0.02),
        'contrast("NVFP4 body", "MXFP4 up body").high < 0': ("NVFP4 body", +0.1),
        'contrast("NVFP4 stochastic gradients", "MXFP4 up stoch': ("NVFP4 stochastic gradients", +0.5),
        'contrast("MXFP4 up stochastic gradients", "MXFP4 up").high < 0': ("MXFP4 up stochastic gradients", +2.0),
    },
    "reports/failure_modes": {
        'contrast("E5M2 pilot", "FP32 pilot").difference < limit': ("E6M1 pilot", -0.05),
        'stalls("E4M3") >= stalls("E2M5")': ("E4M3", +0.05),
        'contrast("E5M2", "E4M3").low > 0': ("E5M2", -0.02),
    },
    "reports/format_comparison": {
        'contrast("E2M5", "E3M4").low > 0': ("E2M5", -0.03),
        'contrast("E3M4 gradients", "FP32").high < margin': ("E3M4 gradients", +0.05),
        'contrast("E2M5 head nearest", "FP32 fresh").low > margin': ("E2M5 head nearest", -0.09),
    },
}
"""How each sentence in `holds` begins its condition, and a change of one arm's losses that makes it false."""
SENTENCES = [(document, begin) for document, held in HELD.items() for begin in held]
BLOCK = re.compile(r"\{% call holds\('(.+?)'\) %\}.*?\{% endcall %\}", re.DOTALL)


@pytest.fixture(scope="module")
def recorded() -> ExperimentDataLoader:
    return ExperimentDataLoader([RECORDED])


@pytest.fixture(scope="module")
def figures(recorded: ExperimentDataLoader) -> dict[str, Any]:
    """What sentences show and no condition reads."""
    return corrections.format_values(recorded) | {"format": get_format}


def held(loader: ExperimentDataLoader, figures: dict[str, Any], document: str, block: str) -> str:
    """A block of a document, from these records."""
    values = {
        **{name: 1 for name in re.findall(r"\w+", block)},
        **figures,
        **campaign(loader),
        "h5": lambda: corrections._h5(loader),
        "fp32": lambda: corrections._fp32(loader),
        "e7m0_worst": {"gap": 0.681, "difference": 0.681, "low": 0.6, "high": 0.7, "n_pairs": 16},
        "code_decay": [0.0],
        "other_decay": [0.1],
        "limit": FAILURE_GAP,
        "rate": lambda arm: ARMS[arm].rate,
        "noise": {"best": {"flushed": 0.6, "head_sqnr": 39.0}},
    }
    for name in (
        "join",
        "map",
        "number",
        "p",
        "nats",
        "share",
        "thousands",
        "general",
        "holds",
        "min",
        "max",
        "or",
        "and",
        "than",
    ):
        values.pop(name, None)
    macros = '{% from "sections/difference.md" import than with context %}'
    text = f"# T\n{macros}\n{block}"
    return str(render_document(text, f"docs/{document}.md", values, filters=FILTERS, folder=DOCUMENTS).blocks)


@pytest.mark.parametrize(("document", "begin"), SENTENCES)
def test_a_sentence_is_held_by_the_losses_of_the_arms_it_names(
    recorded: ExperimentDataLoader, figures: dict[str, Any], document: str, begin: str
) -> None:
    (block,) = (found[0] for found in BLOCK.finditer(document_source(document)) if found[1].startswith(begin))
    assert "Paragraph" in held(recorded, figures, document, block)
    arm, change = HELD[document][begin]
    changed, runs = ExperimentDataLoader([]), recorded.runs.copy()
    of_arm = runs["run_id"].isin(runs_of(recorded, arm)["run_id"])
    runs.loc[of_arm, "final_val_loss"] += change
    runs.loc[of_arm & runs["final_val_loss"].isna(), "status"] = "failed"
    changed.__dict__ |= {"run_set": replace(recorded.run_set), "records": recorded.records, "runs": runs}
    with pytest.raises(DocumentError, match=rf"^docs/{document}\.md:3: the records contradict .* is "):
        held(changed, figures, document, block)


def test_every_sentence_in_holds_has_such_a_change() -> None:
    for file in DOCUMENTS.rglob("*.md"):
        text = re.sub(r"^```.*?^```$", "", file.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)  # a guide's example
        name = file.relative_to(DOCUMENTS).with_suffix("").as_posix()
        conditions, changes = [found[1] for found in BLOCK.finditer(text)], HELD.get(name, {})
        assert len(conditions) == len(changes) == text.count("{% call holds("), name
        assert all(sum(condition.startswith(begin) for begin in changes) == 1 for condition in conditions), name
