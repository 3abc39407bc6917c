"""Every figure of "Corrections and limits", computed a second time from the Parquet files.

The figures' oracle is pyarrow, numpy and scipy. They are held against the committed reports, which are quickly read;
`test_headlines` makes those again and compares.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from records import config, write_run
from scipy import stats

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.costs import TokenRate, additivity, cost_per_bit, token_rate
from altgrad.analysis.statistics import Estimate
from altgrad.reports import ReportGenerator, corrections_page, home_page

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "experiments" / "recorded"
STUDIES = ("formats", "layers", "length", "scaling")
SPLITS = ("e0m7", "e2m5", "e3m4", "e4m3", "e5m2", "e6m1", "e7m0")
LAYERS = ("attention", "mlp", "embedding", "head")
ALL = ("weight", "activation", "grad_output")

Runs = Mapping[tuple[Any, ...], Mapping[int, float]]
"""(study, format, operands, layers, scale) -> seed -> final validation loss."""


@pytest.fixture(scope="module")
def raw() -> tuple[Runs, list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    every = []
    for study in STUDIES:
        parts = [path.parent for path in (RECORDED / study).rglob("runs.parquet")]
        tables = [pq.read_table(part / "history.parquet", columns=["run_id", "step", "val_loss"]) for part in parts]
        history = pd.concat([table.to_pandas() for table in tables])
        last = history.dropna().sort_values("step").groupby("run_id")["val_loss"].last()
        for row in (row for part in parts for row in pq.read_table(part / "runs.parquet").to_pylist()):
            run = json.loads(row["run"])
            given, scale = run["config"]["quantize"], run["config"]["scaling"]
            if run["status"] != "finished" or run["config"]["optimizer"]["learning_rate"] != 0.016:
                continue
            operands = tuple(name for name in ALL if given[name] != "fp32")
            layers = tuple(given["layers"]) if operands else LAYERS
            kind = f"{scale['kind']} {scale['granularity']} {scale['power_of_two']}"
            key = (study, given[operands[0]] if operands else "fp32", operands, layers, kind)
            found.setdefault(key, {})[run["config"]["seed"]] = last[row["run_id"]]
            every.append(run)
    return found, every


@pytest.fixture(scope="module")
def runs(raw: tuple[Runs, list[dict[str, Any]]]) -> Runs:
    return raw[0]


@pytest.fixture(scope="module")
def page() -> str:
    """The page, on one line so that its sentences can be looked for."""
    return " ".join((ROOT / "reports" / "corrections.md").read_text().replace("&#60;", "<").split())


def loss(
    runs: Runs, study: str, fmt: str = "fp32", operands: tuple[str, ...] = ALL, layers: tuple[str, ...] = LAYERS,
    scale: str = "amax tensor True",
) -> pd.Series:  # fmt: skip
    return pd.Series(runs[study, fmt, operands if fmt != "fp32" else (), layers, scale]).sort_index()


def gap(runs: Runs, fmt: str, **where: Any) -> pd.Series:
    return (loss(runs, where.pop("study", "formats"), fmt, **where) - loss(runs, "formats")).dropna()


def said(values: pd.Series | NDArray[np.float64], digits: int = 3) -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    ends = [f"{end:.{digits}f}" for end in (low, high)]
    return f"{values.mean():.{digits}f} nats (95% CI {ends[0]} to {ends[1]}, n = {len(values)})".replace("-", "−")


def tost(values: pd.Series) -> float:
    above = stats.ttest_1samp(values, -0.01, alternative="greater").pvalue
    return max(above, stats.ttest_1samp(values, 0.01, alternative="less").pvalue)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    adjusted, worst = {}, 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p))
        adjusted[key] = worst
    return adjusted


def flipped(values: pd.Series) -> float:
    signs = np.random.default_rng(5).choice([-1.0, 1.0], size=(30_000, len(values)))
    return float(np.mean(np.abs(signs @ values.to_numpy()) >= abs(values.sum())))


def test_the_tie_ends_with_length(runs: Runs, page: str) -> None:
    short = (loss(runs, "formats", "e4m3") - loss(runs, "formats", "e3m4")).dropna()
    long = (loss(runs, "length", "e4m3") - loss(runs, "length", "e3m4")).dropna()
    assert f"E4M3 is worse than E3M4 by {said(short)}, a difference that is statistically clear" in page
    assert tost(short) < 0.001
    assert "below 0.01 (TOST, p < 0.001)" in page
    formats = ("e3m4", "e4m3", "e5m2", "e0m7")
    pairs = itertools.combinations(formats, 2)
    p_long = {pair: stats.ttest_rel(*(loss(runs, "length", fmt) for fmt in pair)).pvalue for pair in pairs}
    adjusted = holm(p_long)["e3m4", "e4m3"]
    assert f"After 1,500 steps it is {said(long, 4)}, adjusted p = {adjusted:.3f}" in page
    assert f"(TOST, p = {tost(long):.2f})" in page
    p_short = {
        pair: flipped((loss(runs, "formats", pair[0]) - loss(runs, "formats", pair[1])).dropna())
        for pair in itertools.combinations(SPLITS, 2)
    }
    shown = re.search(r"statistically clear \(adjusted p = ([\d.]+)\)", page)
    assert shown
    assert float(shown[1]) == pytest.approx(holm(p_short)["e3m4", "e4m3"], abs=0.004)


def test_the_scope_is_that_of_the_config(raw: tuple[Runs, list[dict[str, Any]]], page: str) -> None:
    (run,) = [run for run in raw[1] if run["arm"].startswith("fp32-adamw") and run["config"]["seed"] == 10][:1]
    cfg, data = run["config"], run["data"]
    dim, context, layers = (cfg["model"][name] for name in ("dim", "context", "layers"))
    norm, characters = 2 * dim, 96
    parameters = (2 * characters + context) * dim + layers * (12 * dim * dim + 2 * norm) + norm
    trained = cfg["max_steps"] * cfg["batch_size"] * context
    assert f"a model of {parameters:,} parameters, trained for 300 steps on {trained:,} characters" in page
    assert f"{trained / parameters:.1f} per parameter" in page
    read, there = cfg["eval_batches"] * cfg["batch_size"] * context, data["validation_characters"]
    assert f"reads {read:,} of {there:,} validation characters ({100 * read / there:.3g}%)" in page
    for name in ("README.md", *(f"reports/{name}.md" for name in REPORTS)):
        text = (ROOT / name).read_text()
        size = f"{trained:,} characters ({trained / parameters:.1f} per parameter) of licence texts"
        assert f"a GPT of {parameters:,} parameters, trained for 300 steps on {size}" in text, name
        assert "one power-of-two scale per tensor, set at each step from its largest value" in text, name


def test_one_scale_for_every_32_values_removes_the_gap_of_e0m7(runs: Runs, page: str) -> None:
    block = gap(runs, "e0m7", study="scaling", scale="amax block True")
    tensor = gap(runs, "e0m7").reindex(block.index)
    assert f"with one scale for every 32 values E0M7's gap to FP32 is {said(block)}" in page.replace("&#39;", "'")
    assert f"with one per tensor, on the same seeds, it is {said(tensor)}" in page
    recorded = {key[1] for key in runs if key[0] == "scaling" and "block" in key[4]}
    assert recorded == {"e0m7", "e4m3", "e5m2"}
    assert "E2M5 and E3M4 with one scale per block (recorded: E0M7, E4M3, E5M2;" in page


def test_e1m6_is_one_run_of_the_quantizer_that_e0m7_is(runs: Runs, page: str) -> None:
    one, other = gap(runs, "e1m6"), gap(runs, "e0m7")
    assert len(one) == 1
    assert one.iloc[0] == other[one.index[0]]
    assert f"showed E1M6 at +{one.iloc[0]:.3f}, n = 1, beside E0M7 at +{other.mean():.3f}" in page
    assert "are equal to the last digit" in page
    drawn = pd.read_csv(ROOT / "reports" / "format_comparison.loss-gap.csv")["format"]
    assert set(drawn) == {"BF16", *(name.upper() for name in SPLITS)}
    assert "E1M6" in (ROOT / "reports" / "format_comparison.results.csv").read_text()


def test_a_gap_in_tokens_rests_on_what_fp32_gains_from_length(runs: Runs, page: str) -> None:
    gained = ((loss(runs, "formats") - loss(runs, "length")) / math.log(1500 / 300)).dropna()
    assert list(gained.index) == [10, 11, 12, 13, 14]
    assert f"the number of tokens is worth {said(gained)} to FP32." in page
    worth = {name: math.exp(gap(runs, name.lower()).mean() / gained.mean()) - 1 for name in ("E4M3", "E5M2", "E0M7")}
    assert f"0.01 nats are worth {100 * (math.exp(0.01 / gained.mean()) - 1):.3g}% more tokens" in page
    for name, more in worth.items():
        assert f"{name}&#39;s gap {100 * more:.3g}%" in page or f"{name}'s gap {100 * more:.3g}%" in page
    table = (ROOT / "reports" / "format_comparison.md").read_text().split("## What would change")[0]
    for name, more in {**worth, "E3M4": math.exp(gap(runs, "e3m4").mean() / gained.mean()) - 1}.items():
        shown = f"{100 * more:.0f}%" if more >= 0.1 else f"{100 * more:.1f}%"
        assert re.search(rf"^\| {name} (?:\| [^|]+){{2}}\| {re.escape(shown)} \|", table, re.MULTILINE), name
    assert re.search(r"^\| E7M0 (?:\| [^|]+){2}\| over 400% \|", table, re.MULTILINE)


def test_tokens_multiply_where_gaps_add() -> None:
    rate = TokenRate(Estimate(0.5, 0.4, 0.6, 0.1, 5, 0.0), (100, 400))
    assert rate.more_tokens(0.0) == 0
    assert rate.more_tokens(0.5 * math.log(4)) == pytest.approx(rate.limit) == pytest.approx(3.0)
    assert 1 + rate.more_tokens(0.3) == pytest.approx((1 + rate.more_tokens(0.1)) * (1 + rate.more_tokens(0.2)))
    assert rate.more_tokens(-0.1) < 0


def test_runs_of_one_length_give_no_tokens(tmp_path: Path) -> None:
    for seed in range(3):
        for fmt, end in (("fp32", 2.0), ("e4m3", 2.01), ("e5m2", 2.02)):
            write_run(tmp_path, config(fmt, seed=seed), end + 0.001 * seed)
    found = ExperimentDataLoader([tmp_path])
    assert token_rate(found) is None
    assert "more tokens" not in str(home_page(found).blocks)
    assert cost_per_bit(found) is None
    assert additivity(found).empty


def test_each_mantissa_bit_divides_the_cost(runs: Runs, page: str) -> None:
    gaps = np.array([gap(runs, fmt).reindex(range(10, 26)) for fmt in ("e6m1", "e5m2", "e4m3", "e3m4")])
    factor = math.exp(-np.polyfit([1, 2, 3, 4], np.log(gaps.mean(axis=1)), 1)[0])
    found = re.search(rf"divides the cost by {factor:.2f}\*\* \(95% interval ([\d.]+) to ([\d.]+), 16 seeds\)", page)
    assert found
    random, factors = np.random.default_rng(99), []
    for _ in range(4000):
        means = gaps[:, random.integers(0, 16, 16)].mean(axis=1)
        if (means > 0).all():
            factors.append(np.exp(-np.polyfit([1, 2, 3, 4], np.log(means), 1)[0]))
    low, high = np.percentile(factors, [2.5, 97.5])
    assert float(found[1]) == pytest.approx(low, abs=0.1)
    assert float(found[2]) == pytest.approx(high, abs=0.5)
    without = math.exp(-np.polyfit([1, 2, 3], np.log(gaps[:3].mean(axis=1)), 1)[0])
    assert f"without the last, {without:.2f}" in page
    report = (ROOT / "reports" / "format_comparison.md").read_text()
    left_out = re.search(r"In ([\d.]+)% of them E3M4", report)
    assert left_out
    assert float(left_out[1]) == pytest.approx(100 * (1 - len(factors) / 4000), abs=1.5)


def test_costs_add_up_but_for_the_operands_of_e7m0(runs: Runs, page: str) -> None:
    table = pd.read_csv(ROOT / "reports" / "format_comparison.additivity.csv").set_index(["by", "format"])
    assert len(table) == 2 * len(SPLITS)
    largest = {"layer type": 0.0, "operand": 0.0}
    for fmt in SPLITS:
        parts = {
            "layer type": [gap(runs, fmt, study="layers", layers=(kind,)) for kind in LAYERS],
            "operand": [gap(runs, fmt, operands=(operand,)) for operand in ALL],
        }
        for by, singles in parts.items():
            whole = gap(runs, fmt).reindex(singles[0].index)
            values, row = whole - sum(singles), table.loc[by, fmt.upper()]
            low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            assert row["n_pairs"] == len(values) == 16
            assert (row["difference"], row["low"], row["high"]) == pytest.approx((values.mean(), low, high))
            assert (row["sum"], row["together"]) == pytest.approx((sum(singles).mean(), whole.mean()))
            names = LAYERS if by == "layer type" else ("weights", "activations", "gradients")
            assert list(row[list(names)]) == pytest.approx([single.mean() for single in singles])
            if fmt != "e7m0":
                largest[by] = max(largest[by], abs(values.mean()))
            elif by == "operand":
                assert f"sum to {sum(singles).mean():.2f}, together they cost {whole.mean():.2f}" in page
    assert f"at most {largest['layer type']:.3f} nats" in page
    assert f"operands (at most {largest['operand']:.3f})" in page
    shown = table[table["p_holm"] < 0.05]
    assert list(shown.index) == [("operand", "E7M0")]


def test_what_would_change_the_answer_is_that_of_the_raw_records(runs: Runs) -> None:
    text = (ROOT / "README.md").read_text().split("<!-- answer -->")[1].replace("&#39;", "'")
    shares = {fmt: gap(runs, fmt, study="layers", layers=("head",)).mean() for fmt in ("e0m7", "e2m5", "e7m0")}
    wholes = {fmt: gap(runs, fmt).reindex(range(10, 26)).mean() for fmt in shares}
    first, second, third = (f"{shares[fmt] / wholes[fmt]:.0%}" for fmt in shares)
    assert f"E0M7, E2M5 and E7M0 lose mostly in the head, which alone costs {first}, {second} and {third} of" in text
    long = said(loss(runs, "length", "e4m3") - loss(runs, "length", "e3m4"))
    difference = long.replace(" nats (", " nats above E3M4 (").replace("5)", "5 seeds)")
    assert (
        f"after 1,500 steps E3M4 is still first of the 4 formats run, and E4M3 ends {difference}, which 5 seeds" in text
    )
    short = loss(runs, "formats", "e4m3") - loss(runs, "formats", "e3m4")
    grown = (loss(runs, "length", "e4m3") - loss(runs, "length", "e3m4") - short).dropna()
    low, high = stats.t.interval(0.95, len(grown) - 1, grown.mean(), stats.sem(grown))
    assert (len(grown), low < 0 < high, grown.mean() > 0) == (5, True, True)
    assert "do not show to be below 0.01, nor to have grown." in text


REPORTS = ("format_comparison", "failure_modes", "manifold_comparison")


def test_words_that_others_look_for_stay(tmp_path: Path) -> None:
    texts = {name: (ROOT / "reports" / f"{name}.md").read_text() for name in REPORTS}
    assert "Sweet-spot format" in texts["format_comparison"]
    assert "Failure Mode" in texts["failure_modes"]
    assert "ManifoldAdamW" in texts["manifold_comparison"]
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"<!-- answer -->\n\*\*Sweet-spot format: .*\n<!-- /answer -->", readme, re.DOTALL)
    ReportGenerator(ExperimentDataLoader([tmp_path / "nothing"])).write(tmp_path)
    for name in REPORTS:
        pending = (tmp_path / f"{name}.md").read_text()
        assert "Pending Experiments" in pending
        assert "](https://wandb.ai)" in pending
        assert "](https://wandb.ai)" in texts[name]


def test_corrections_are_reached_from_everywhere_and_lead_somewhere(tmp_path: Path) -> None:
    for name in REPORTS:
        assert "[Corrections and limits](corrections.md)" in (ROOT / "reports" / f"{name}.md").read_text(), name
    assert "(reports/corrections.md)" in (ROOT / "README.md").read_text()
    assert "(altgrad:reports/corrections)" in str(home_page(ExperimentDataLoader([tmp_path])).blocks)
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "reports" / "corrections.md").read_text()):
        assert (ROOT / "reports" / target).exists() or target.startswith("../site/"), target
    assert "reports/corrections.md" in (ROOT / "mkdocs.yml").read_text()


def test_headlines_claim_no_tie_and_use_plain_words() -> None:
    text = (ROOT / "reports" / "format_comparison.md").read_text()
    headline = text.split("## By layer type")[0]
    for passage in (headline, (ROOT / "README.md").read_text()):
        for words in ("tied", "tie with", "told from", "told apart", "in each of the four"):
            assert words not in passage, words


@pytest.mark.parametrize("study", ["nothing", "pilot-formats"])
def test_other_records_build_the_page_and_say_what_is_not_recorded(study: str) -> None:
    text = str(corrections_page(ExperimentDataLoader([RECORDED / study])).blocks)
    assert text.count("*Not recorded here: the runs of study") >= 7
    assert "nats (95% CI" not in text
    assert "{{ " not in text
