"""The comparison of formats on the campaign's own configs with chosen losses: verdicts, sweet spots, the whole page."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from records import DATA, config, full_look, write_matrix, write_run
from scipy import stats

from altgrad import studies
from altgrad.analysis import ExperimentDataLoader, FormatComparator, results_table, verdicts, words
from altgrad.analysis.comparison import (
    PLACES,
    TABLE_COLUMNS,
    at_own_rates,
    figures_of_tensors,
    last_looks,
    scale_policies,
)
from altgrad.analysis.contrasts import TEST_COLUMNS, describe, family, row_of
from altgrad.analysis.hypotheses import HYPOTHESES, Verdict
from altgrad.analysis.loader import RUN_COLUMNS, _of_arm, _row, format_label, scope_key
from altgrad.analysis.statistics import mean_interval
from altgrad.config import LAYER_TYPES, ExperimentConfig
from altgrad.formats import get_format
from altgrad.reports import ReportGenerator, format_comparison
from altgrad.reports import columns as col
from altgrad.reports import generator as generator_module
from altgrad.reports.document import statements
from altgrad.reports.format_comparison import format_comparison_page, headline, weights_chart, weights_held
from altgrad.reports.generator import results_text
from altgrad.reports.preregistered import preregistered_page
from altgrad.reports.verdicts import evidence
from altgrad.runs import RunRecord, load_runs
from altgrad.runs.schema import arm_id, run_id
from altgrad.runs.store import RunSet
from altgrad.site import ChartBlock, Md, Page, Paragraph, write_folder
from altgrad.site.document import DocumentError, render_document

ROOT = Path(__file__).resolve().parents[1]
PREREGISTRATION = re.sub(r"\s+", " ", (ROOT / "docs" / "method" / "preregistration.md").read_text())
GAPS = {"E0M7": 0.16, "E1M6": 0.16, "E2M5": 0.03, "E3M4": 0.002, "E4M3": 0.004, "E5M2": 0.02, "E6M1": 0.08, "E7M0": 0.6}
SINGLE = {("E0M7", PLACES["gradients"]): 0.1, ("E7M0", PLACES["activations"]): 0.3, ("E7M0", PLACES["gradients"]): 0.1}
STUDIES = {"formats": 577, "layers": 448, "scaling": 120, "length": 25}
IDS = ("H1", "H2", "H3", "H4", "H5", "H19", "H20")
BLOCKS = PLACES["all"] + "; amax 32"


def chosen_loss(cfg: ExperimentConfig) -> float:
    """A gap that belongs to format and place, an effect of the seed, and a little noise."""
    name, scope = format_label(cfg), scope_key(cfg)
    gap = GAPS.get(name, 0.0) if scope.startswith(PLACES["all"]) else SINGLE.get((name, scope), 0.001)
    if "layers" in scope:
        gap *= 0.25
    if scope == BLOCKS:
        gap *= 0.2
    if cfg.optimizer.learning_rate != 0.016:
        gap *= 0.5
    key = crc32(f"{name} {scope} {cfg.max_steps} {cfg.optimizer.learning_rate}".encode())
    noise = float(np.random.default_rng([key, cfg.seed]).normal(0, 0.003)) if name != "FP32" else 0.0
    return 2.15 + gap + noise + 0.02 * (cfg.seed % 5) - (0.3 if cfg.max_steps > 300 else 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ExperimentDataLoader:
    """Studies formats, layers, scaling and length as the campaign makes them, with chosen losses.

    One record an arm stands for all its seeds, each with a row of its own in the table of runs: reading a thousand
    records would take most of the time of these tests.
    """
    root = tmp_path_factory.mktemp("formats")
    write_run(root, config("e4m3"), 2.0, looks=full_look(20))
    (template,) = load_runs((root,)).records
    tables = {"history": template.history, "layers": template.layers}
    arms: dict[str, tuple[RunRecord, dict[str, Any]]] = {}
    records, rows = {}, []
    given = [(study, *each) for study in STUDIES for each in studies.STUDIES[study].seeds.items()]
    for cfg in [studies.ARMS[name].config(seed, study) for study, name, seeds in given for seed in seeds]:
        arm = arm_id(cfg, DATA)
        if arm not in arms:
            record = RunRecord(template.run | {"id": run_id(cfg, DATA), "arm": arm}, cfg, arm, tables.__getitem__)
            arms[arm] = record, _row(record, _of_arm(record))
        record, row = arms[arm]
        records[f"{arm}-s{cfg.seed}"] = record
        rows.append(row | {"run_id": f"{arm}-s{cfg.seed}", "seed": cfg.seed, "final_val_loss": chosen_loss(cfg)})
    loader = ExperimentDataLoader([root])
    loader.__dict__["records"] = records
    loader.__dict__["run_set"] = RunSet(tuple(record for record, _ in arms.values()))
    runs = pd.DataFrame(rows, columns=list(RUN_COLUMNS)).sort_values(["arm", "seed"], ignore_index=True)
    assert runs["study"].value_counts().to_dict() == STUDIES
    loader.__dict__["runs"] = runs
    return loader


@pytest.fixture(scope="module")
def generator(whole: ExperimentDataLoader) -> ReportGenerator:
    return ReportGenerator(whole)


def changed(
    loader: ExperimentDataLoader, change: Callable[[pd.DataFrame], pd.DataFrame | None]
) -> ExperimentDataLoader:
    """The same records with another table of runs: a changed copy, or what is made of it."""
    other, runs = copy.copy(loader), loader.runs.copy()
    other.__dict__["run_set"] = replace(loader.run_set)  # other records: nothing found in the old ones is theirs
    made = change(runs)
    other.__dict__["runs"] = runs if made is None else made.reset_index(drop=True)
    return other


def where(runs: pd.DataFrame, study: str, fmt: str, quantized: str = PLACES["all"]) -> pd.Series:
    shared = runs["learning_rate"] == 0.016
    return (runs["study"] == study) & (runs["format"] == fmt) & (runs["quantized"] == quantized) & shared


def shift(study: str, fmt: str, by: float, quantized: str = PLACES["all"]) -> Callable[[pd.DataFrame], None]:
    def change(runs: pd.DataFrame) -> None:
        assert where(runs, study, fmt, quantized).any()
        runs.loc[where(runs, study, fmt, quantized), "final_val_loss"] += by

    return change


def scatter(study: str, fmt: str, spread: float, quantized: str = PLACES["all"]) -> Callable[[pd.DataFrame], None]:
    """The arm's losses swing by `spread` from seed to seed, with the same mean."""

    def change(runs: pd.DataFrame) -> None:
        own = where(runs, study, fmt, quantized)
        runs.loc[own, "final_val_loss"] += spread * np.where(runs.loc[own, "seed"] % 2, 1.0, -1.0)

    return change


def judge(loader: ExperimentDataLoader, identity: str) -> Verdict:
    (hypothesis,) = (each for each in HYPOTHESES if each.id == identity)
    return hypothesis.verdict(loader)


def fail(runs: pd.DataFrame, rows: pd.Series) -> None:
    first = runs.index[rows][0]
    runs.loc[first, ["status", "final_val_loss"]] = ["failed", math.nan]


def test_verdicts_follow_the_runs(whole: ExperimentDataLoader) -> None:
    found = {verdict.id: verdict for verdict in verdicts(whole, *IDS)}
    assert tuple(found) == IDS
    assert {name: verdict.answer for name, verdict in found.items()} == dict.fromkeys(IDS, "yes")
    for verdict in found.values():
        assert list(verdict.tests.columns) == list(TEST_COLUMNS)
        assert "nats" in evidence(verdict.judgement)
    sizes = {name: len(verdict.tests) for name, verdict in found.items()}
    assert sizes == {"H1": 7, "H2": 21, "H3": 1, "H4": 1, "H5": 4 * 21, "H19": 6, "H20": 4}
    pairs = found["H1"].tests.set_index("contrast")["n_pairs"]
    assert (pairs["E4M3 − FP32"], pairs["E0M7 − FP32"]) == (32, 16)
    assert set(found["H19"].tests["n_pairs"]) == {8}
    assert set(found["H20"].tests["n_pairs"]) == {5}


def test_every_hypothesis_is_judged_once_in_the_words_that_were_written_down(whole: ExperimentDataLoader) -> None:
    found = verdicts(whole)
    assert [verdict.id for verdict in found] == [f"H{number}" for number in range(1, 38)]
    for verdict in found:
        assert f"| {verdict.id} | {verdict.study} | {statements()[verdict.id]} |" in PREREGISTRATION


def test_a_family_is_adjusted_as_scipy_and_holm_have_it(whole: ExperimentDataLoader) -> None:
    runs, tests = whole.runs, judge(whole, "H1").tests
    fp32 = runs[(runs["study"] == "formats") & (runs["quantized"] == "")].set_index("seed")["final_val_loss"]
    for row in tests[tests["n_pairs"] == 16].to_dict("records"):
        ours = runs[runs["arm"] == row["arm"]].set_index("seed")["final_val_loss"]
        difference = (ours - fp32).dropna()
        low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((difference.mean(), low, high))
    order = np.sort(tests["p_value"])
    expected = np.minimum(1, np.maximum.accumulate(order * np.arange(len(order), 0, -1)))
    assert np.sort(tests["p_holm"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("identity", "change", "answer"),
    [
        ("H1", shift("formats", "E6M1", -0.2), "no"),
        ("H1", shift("formats", "E6M1", -0.08), "no"),
        ("H1", scatter("formats", "E6M1", 0.4), "inconclusive"),
        ("H2", shift("formats", "E5M2", -0.1), "no"),
        ("H2", shift("formats", "E4M3", 0.04), "no"),
        ("H2", scatter("formats", "E4M3", 0.1), "inconclusive"),
        ("H3", shift("formats", "E0M7", -0.2, PLACES["gradients"]), "no"),
        ("H3", shift("formats", "E0M7", -0.099, PLACES["gradients"]), "no"),
        ("H3", scatter("formats", "E0M7", 0.4, PLACES["gradients"]), "inconclusive"),
        ("H4", shift("formats", "E7M0", -0.5, PLACES["activations"]), "no"),
        ("H4", scatter("formats", "E7M0", 0.9, PLACES["activations"]), "inconclusive"),
        ("H5", shift("layers", "E4M3", 0.05, PLACES["head"]), "no"),
        ("H19", shift("scaling", "E0M7", 0.4, BLOCKS), "no"),
        ("H19", scatter("scaling", "E0M7", 0.9, BLOCKS), "inconclusive"),
        ("H20", shift("length", "E5M2", 0.5), "no"),
        ("H20", shift("length", "E0M7", -0.16), "no"),
        ("H20", scatter("length", "E0M7", 0.4), "inconclusive"),
    ],
)
def test_other_runs_give_other_answers(
    whole: ExperimentDataLoader, identity: str, change: Callable[[pd.DataFrame], None], answer: str
) -> None:
    assert judge(changed(whole, change), identity).answer == answer


def test_a_difference_that_is_shown_but_below_the_margin_does_not_confirm_h3(whole: ExperimentDataLoader) -> None:
    verdict = judge(changed(whole, shift("formats", "E0M7", -0.0935, PLACES["gradients"])), "H3")
    assert verdict.tests["p_holm"].iloc[0] < 0.05
    assert 0 < verdict.tests["difference"].iloc[0] < 0.01
    assert verdict.answer in ("no", "inconclusive")


def test_a_run_that_did_not_finish_leaves_its_arm_without_a_verdict(whole: ExperimentDataLoader) -> None:
    verdict = judge(changed(whole, lambda runs: fail(runs, where(runs, "formats", "E7M0"))), "H1")
    row = verdict.tests.set_index("contrast").loc["E7M0 − FP32"]
    assert verdict.answer == "inconclusive"
    assert (row["n_ended_badly"], row["n_pairs"]) == (1, 15)
    assert math.isnan(row["p_holm"])
    assert math.isnan(row["p_equivalent"])
    assert "1 run did not finish" in evidence(verdict.judgement)


def test_a_test_without_a_p_value_still_counts_in_its_family() -> None:
    row = row_of("a", mean_interval([0.1, 0.11, 0.12])) | {"arm": "a", "against": "b"}
    alone, beside = family([row]), family([row, row | {"p_value": math.nan}])
    assert beside["p_holm"].iloc[0] == pytest.approx(2 * alone["p_holm"].iloc[0])
    assert math.isnan(beside["p_holm"].iloc[1])
    assert "n = 3" in describe(alone.to_dict("records")[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda runs: runs[~((runs["format"] == "E4M3") & (runs["seed"] == 20))], r"E4M3 \(31 of 32 seeds\)"),
        (lambda runs: runs[(runs["format"] != "E6M1") | (runs["study"] != "formats")], r"E6M1 \(0 of 16 seeds\)"),
        (lambda runs: runs.assign(data=runs["data"].mask(runs["format"] == "E5M2", "other")), "differ in data"),
        (lambda runs: runs.assign(data=runs["data"].mask(runs["seed"] == 12, "other")), "More than one data set"),
    ],
)
def test_what_keeps_a_hypothesis_from_being_judged_is_said(
    whole: ExperimentDataLoader, change: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    verdict = judge(changed(whole, change), "H1")
    assert verdict.answer == "pending"
    assert verdict.tests.empty
    assert re.search(said, evidence(verdict.judgement))


def test_sweet_spots_tell_ties_from_what_is_not_decided(whole: ExperimentDataLoader) -> None:
    spots = FormatComparator(whole).sweet_spots.set_index("place")
    assert list(spots.index) == ["all", *LAYER_TYPES, "weights", "activations", "gradients"]
    assert spots.at["all", "best"] == "E3M4"
    assert spots.at["all", "equivalent"] == "E4M3"
    assert spots.at["all", "worse"].split() == ["E5M2", "E2M5", "E6M1", "E0M7", "E7M0"]
    assert spots.at["all", "not_ranked"] == "E1M6"
    assert spots.at["gradients", "worse"].split()[-2:] in (["E0M7", "E7M0"], ["E7M0", "E0M7"])
    noisy = FormatComparator(changed(whole, scatter("formats", "E4M3", 0.1)))
    spot = noisy.sweet_spot(noisy.comparisons[0])
    assert (spot.best, spot.equivalent, spot.undecided) == ("E3M4", (), ("E4M3",))
    apart = FormatComparator(changed(whole, shift("formats", "E4M3", 0.003)))
    spot = apart.sweet_spot(apart.comparisons[0])
    assert (spot.equivalent, spot.within_margin) == (("E4M3",), ("E4M3",))


def test_the_answer_by_layer_type_names_what_is_worse_where(whole: ExperimentDataLoader) -> None:
    spots = FormatComparator(whole).sweet_spots.set_index("place")
    texts = [block.text for block in format_comparison_page(whole).blocks if isinstance(block, Paragraph)]
    (text,) = (text for text in texts if text.startswith("**With only one layer type quantized"))
    lead, rest = text.split("**")[1:]
    for kind in LAYER_TYPES:
        good = {spots.at[kind, "best"], *spots.at[kind, "equivalent"].split()}
        for name in re.findall(r"E\dM\d", lead):
            assert name in good
        for name in spots.at[kind, "worse"].split():
            (said,) = [part for part in rest.split(";") if name in part]
            assert kind in re.split("undecided|, and in", said)[0].lower()

    def elsewhere(runs: pd.DataFrame) -> None:
        runs.loc[runs["quantized"] == PLACES["head"], "quantized"] = "elsewhere"

    lost = changed(whole, elsewhere)
    assert headline(lost)["by_layer_type"] is None
    assert "With only one layer type quantized" not in str(format_comparison_page(lost).blocks)


def test_an_arm_with_a_failed_run_has_no_rank_and_no_tie(whole: ExperimentDataLoader) -> None:
    comparator = FormatComparator(changed(whole, lambda runs: fail(runs, where(runs, "formats", "E3M4"))))
    spot = comparator.sweet_spot(comparator.comparisons[0])
    assert spot.best == "E4M3"
    assert set(spot.unranked) == {"E3M4", "E1M6"}
    row = comparator.comparisons[0].table.set_index("format").loc["E3M4"]
    assert (row["n_runs"], row["n_finished"], row["n_pairs"]) == (32, 31, 31)
    assert math.isnan(row["p_equivalent"])


def test_scales_lengths_and_own_rates_are_paired_by_seed(whole: ExperimentDataLoader) -> None:
    comparator, runs = FormatComparator(whole), whole.runs
    first = comparator.comparisons[0]
    policies = scale_policies(whole, first)
    assert len(policies) == 15
    assert set(policies["n_pairs"]) == {8}
    row = policies[(policies["format"] == "E0M7") & policies["policy"].str.contains("per block")].iloc[0]
    ours, theirs = (runs[runs["arm"] == row[name]].set_index("seed")["final_val_loss"] for name in ("arm", "against"))
    assert row["difference"] == pytest.approx((ours - theirs).mean())
    assert row["p_value"] == pytest.approx(stats.ttest_rel(ours, theirs.loc[ours.index]).pvalue)
    long = comparator.longer(first)
    assert long is not None
    assert set(long.table["format"]) == {"E3M4", "E4M3", "E5M2", "E0M7"}
    assert comparator.longer(long) is None
    own = at_own_rates(whole, first).set_index("format")
    assert own["learning_rate"].to_dict() == {"E0M7": 0.008, "E7M0": 0.004}
    assert own.at["E7M0", "gap"] < own.at["E7M0", "gap_shared"]


def test_the_page_carries_every_section_and_its_numbers(
    whole: ExperimentDataLoader, generator: ReportGenerator, tmp_path: Path
) -> None:
    written = write_folder([generator.pages()[0], preregistered_page(whole)], tmp_path, site_root="../")
    text = (tmp_path / "format_comparison.md").read_text()
    assert "**Sweet-spot format: E3M4, with E4M3 within 0.01 nats of it.**" in text
    assert re.search(r"no difference is shown \(p = [0-9.]+\), and it is shown to be below the 0\.01 nats fixed", text)
    assert "more characters would make up" in text
    assert "n = 32 seeds" in text
    assert text.count("make campaign STUDY=formats-large DEVICE=cuda") == 1
    assert text.count("Pending Experiments") == 1 + text.count("make campaign STUDY=granularity")
    assert "pilot" not in text.lower()
    for heading in (
        "By layer type and operand",
        "Other scales",
        "Does the order hold",
    ):
        assert f"## {heading}" in text
    rankings = str(format_comparison_page(whole).blocks)
    for place in ("attention", "mlp", "embedding", "head"):
        assert f"{place} layers alone" in rankings.lower()
    assert "pairs (paired t test, power 80%" in rankings
    for arm in re.findall(r"\]\(\.\./runs/([^/)]+)/index", text):
        assert arm in set(whole.runs["arm"])
    names = {path.name for path in written}
    for table in (
        "results",
        "noise",
        "sweet-spots",
        "scales",
        "scale-gaps",
        "length",
        "own-rates",
        "additivity",
        "all-results",
    ):
        assert f"format_comparison.{table}.csv" in names
    verdict_page = (tmp_path / "preregistered.md").read_text()
    assert "**Of 37 hypotheses: 5 yes, 2 yes with a limit, 0 no, 0 inconclusive, 30 pending.**" in verdict_page
    came = set(pd.read_csv(tmp_path / "preregistered.as-predicted.csv")["id"])
    assert len(came) == 5
    for number in range(1, 38):
        assert f'id="h{number}"' in verdict_page
        row = f"| [H{number}](preregistered.md#h{number})"
        assert f"H{number}" in came or verdict_page.index(row) < verdict_page.index("## The tests")


def test_the_results_are_a_table_a_text_and_files(
    whole: ExperimentDataLoader, generator: ReportGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What corrections hold is of the recorded campaign, which these made-up records contradict.
    corrections = "reports/corrections"
    monkeypatch.setitem(generator_module.REPORTS, corrections, lambda _: Page(corrections, "C", ()))  # type: ignore[arg-type]
    table = results_table(whole)
    assert table["n_runs"].sum() == 120 + (577 - 32 - 32) + 448 + 20
    text = results_text(table)
    assert "weights + activations + gradients; learning rate 0.016, 300 steps" in text
    assert results_text(table.iloc[:0]) == "No runs can be compared yet.\n"
    generator.write(tmp_path)
    written = pd.read_csv(tmp_path / "results.csv")
    assert written["gap"].to_numpy() == pytest.approx(table["gap"].to_numpy(), abs=1e-9)
    assert len(pd.read_json(tmp_path / "results.json")) == len(table)
    assert (tmp_path / "results.txt").read_text() == text


def test_figures_come_as_matplotlib_figures_and_unknown_names_are_told(
    whole: ExperimentDataLoader, generator: ReportGenerator
) -> None:
    figure = generator.figure("format_comparison.loss-gap")
    (axes,) = figure.axes
    drawn = [label.get_text().split("\n")[0] for label in axes.get_xticklabels()]
    table = FormatComparator(whole).comparisons[0].table
    assert set(drawn) == set(table["format"]) - {"E1M6"}, "one run has no interval, and E1M6 is E0M7 scaled"
    with pytest.raises(KeyError, match=r"format_comparison\.loss-gap"):
        generator.figure("nothing")


def test_the_grid_and_the_weights_are_counted_by_octave(tmp_path: Path) -> None:
    codes = {0x00: 10.0, 0x7E: 30.0, 0xFE: 20.0, 0x38: 40.0}  # 0, +-448 and 1 in E4M3
    for seed in range(3):
        write_run(tmp_path, config("fp32", seed=seed), 2.0)
        write_run(tmp_path, config("e4m3", seed=seed), 2.1, looks=full_look(20, codes=codes))
    loader = ExperimentDataLoader([tmp_path])
    (comparison,) = FormatComparator(loader).comparisons
    looks = last_looks(loader, comparison)
    chart = weights_chart(weights_held(looks))
    data = chart.data.set_index("octave")
    assert data.at[0, "share_of_weights"] == pytest.approx(0.5)
    assert data.at[math.ceil(math.log2(1 / 448)), "share_of_weights"] == pytest.approx(0.4)
    assert data["share_zero"].iloc[0] == pytest.approx(0.1)
    assert data["grid_values"].sum() == np.count_nonzero(get_format("e4m3").finite_values > 0)
    assert data.at[-1, "grid_values"] == 8
    figures = figures_of_tensors(comparison, looks).set_index(["layer_type", "operand"])
    assert figures.at[("head", "weight"), "sqnr_db"] == pytest.approx(35.0)
    assert figures.at[("attention", "activation"), "underflow"] == pytest.approx(0.02)


def page_text(tmp_path: Path, *sources: Path) -> str:
    write_folder([format_comparison_page(ExperimentDataLoader(sources))], tmp_path / "page", site_root="../")
    return (tmp_path / "page" / "format_comparison.md").read_text()


def made(fmt: str, seeds: Sequence[int] = (0, 1, 2), **more: Any) -> list[ExperimentConfig]:
    return [config(fmt, seed=seed, **more) for seed in seeds]


def draws_no_conclusion(text: str) -> bool:
    return bool(re.search(r"\*\*Sweet-spot format: (no answer|pending)", text)) and "| smallest gap |" not in text


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (
            made("fp32", (0, 1)) + made("e4m3", (0, 1)) + made("e5m2", (0, 1)),
            "no format has the 3 pairs needed, 2 at most",
        ),
        (made("fp32") + made("e4m3", (7, 8, 9)) + made("e5m2", (7, 8, 9)), "nothing is paired"),
        (made("fp32") + made("e4m3"), "only E4M3 can be ranked"),
        (made("e4m3") + made("e5m2"), "no FP32 run"),
        (made("fp32"), "no format to compare"),
        (made("fp32", max_steps=40) + made("e4m3"), "number of steps of the two"),
    ],
)
def test_runs_that_allow_no_conclusion_say_what_is_missing(
    tmp_path: Path, runs: list[ExperimentConfig], said: str
) -> None:
    for cfg in runs:
        write_run(tmp_path / "runs", cfg, 2.0 + 0.01 * cfg.seed)
    text = page_text(tmp_path, tmp_path / "runs")
    assert said in text
    assert draws_no_conclusion(text)


def test_formats_and_fp32_on_different_data_are_not_compared(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "a", config("fp32", seed=seed), 2.0)
        for fmt in ("e4m3", "e5m2"):
            write_run(tmp_path / "b", config(fmt, seed=seed), 2.1, data=DATA | {"sha256": "cd" * 32})
    text = page_text(tmp_path, tmp_path / "a", tmp_path / "b")
    assert "the data of the two differ" in text
    assert draws_no_conclusion(text)


def test_formats_of_which_every_run_failed_have_no_rank(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs", config("fp32", seed=seed), 2.0)
        for fmt in ("e4m3", "e5m2"):
            write_run(tmp_path / "runs", config(fmt, seed=seed), 2.1, status="failed")
    text = page_text(tmp_path, tmp_path / "runs")
    assert "no run of an 8-bit format finished" in text
    assert "0 of 3" in text
    assert draws_no_conclusion(text)


def test_sections_without_runs_are_pending_with_their_commands(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=5)
    text = page_text(tmp_path, tmp_path / "runs")
    assert "**Sweet-spot format: E3M4" in text or "**Sweet-spot format: inconclusive" in text
    for study in ("layers", "scaling", "length"):
        assert f"make campaign STUDY={study}" in text
    assert "**Pending.** Not recorded in full: FP32 (0 of 32 seeds)" in text
    assert "pilot findings" in text
    assert list(FormatComparator(ExperimentDataLoader([tmp_path / "runs"])).comparisons[0].table) == list(TABLE_COLUMNS)


def test_the_gaps_by_layer_type_are_drawn_as_the_comparisons_have_them(whole: ExperimentDataLoader) -> None:
    blocks, comparator = format_comparison_page(whole).blocks, FormatComparator(whole)
    (chart,) = (each.chart for each in blocks if isinstance(each, ChartBlock) and each.chart.id == "layer-gaps")
    assert len(chart.data) == 4 * 7
    for row in chart.data.itertuples():
        compared = comparator.at(str(row.scope).lower())
        assert compared is not None
        assert row.gap == compared.table.set_index("format").at[row.format, "gap"]
        assert words.number(float(row.gap), sign=True) in chart.description


def test_how_many_runs_finished_is_in_the_ranking_where_some_did_not_whatever_that_column_is_called(
    whole: ExperimentDataLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = whole.memo(FormatComparator).headline
    assert first is not None
    gap = (*format_comparison.GAP[:-1], col.share("Runs that ended"))
    monkeypatch.setattr(format_comparison, "GAP", gap)
    assert "Runs that ended" not in [column.title for column in format_comparison.ranked(first).columns]
    some = replace(first, table=first.table.assign(n_finished=0))
    assert "Runs that ended" in [column.title for column in format_comparison.ranked(some).columns]


def test_an_error_in_shared_sentences_names_their_document(tmp_path: Path) -> None:
    text = '{% import "shared.md" as say with context %}\n# T\n\n{{ say.hello("<b>") }}\n'
    (tmp_path / "shared.md").write_text(
        "\n{% macro hello(name) %}\n**Hello** {{ name }}\n{{ unknown }}\n{% endmacro %}\n"
    )
    found = render_document(text, "docs/d.md", {"unknown": "*"}, folder=tmp_path)
    assert found.blocks == (Paragraph(Md("**Hello** &#60;b&#62; &#42;")),)
    with pytest.raises(DocumentError, match=r"^shared\.md:4: 'unknown' is undefined"):
        render_document(text, "docs/d.md", {}, folder=tmp_path)
    (tmp_path / "shared.md").write_text("\n{% if %}\n")
    with pytest.raises(DocumentError, match=r"^shared\.md:2: "):
        render_document(text, "docs/d.md", {}, folder=tmp_path)
    with pytest.raises(DocumentError, match=r"^docs/d\.md:1: .*missing\.md"):
        render_document(text.replace("shared", "missing"), "docs/d.md", {}, folder=tmp_path)
