"""The comparison of step rules on the campaign's own configs with chosen losses: verdicts, tables, the whole page."""

from __future__ import annotations

import copy
import gzip
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import config, write_matrix, write_run
from scipy import stats

from altgrad.analysis import ExperimentDataLoader, StepRuleComparator
from altgrad.analysis.contrasts import TEST_COLUMNS
from altgrad.analysis.hypotheses import HYPOTHESES, Verdict
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.loader import rule_label
from altgrad.analysis.step_rules import NAME_COLUMNS, STEP_ARMS, arm_of, names_of
from altgrad.config import ExperimentConfig, extra_bytes_per_weight
from altgrad.reports.manifold_comparison import manifold_comparison_page
from altgrad.reports.measured import RECORDED, read_record
from altgrad.reports.step_slopes import NAME, NAMES, SlopesRecord
from altgrad.reports.verdicts import evidence
from altgrad.runs import RunRecord, RunSet, load_runs
from altgrad.runs.schema import arm_id, run_id
from altgrad.site import write_folder
from altgrad.site.render import Dialect, render
from altgrad.studies import ARMS, GRID, RULE_FORMATS, SEEDS, STUDIES, Arm, identity_of, seeds_of, studies_of

ROOT = Path(__file__).resolve().parents[1]
DATA = {"name": "licenses", "sha256": "ab" * 32}
BASE = {"FP32": 2.15, "E4M3": 2.16, "E5M2": 2.17, "E0M7": 2.25}
RULE = {
    "adamw": 0.0,
    "relative": 0.02,
    "gradient": 0.001,
    "update": 0.03,
    "shuffled": 0.09,
    "constant": 0.031,
    "code": 0.07,
}
PLACE = {"nearest": 0.08, "stochastic": 0.02, "feedback": 0.021}
STALL = {"nearest": 70.0, "stochastic": 90.0, "feedback": 80.0}
MADE = [*STEP_ARMS, ARMS["E0M7"]]
"""Every arm of the comparison, and AdamW on E0M7 at FP32's rate, with which nothing is compared."""


def chosen_loss(arm: Arm, seed: int) -> float:
    """What the made-up run of an arm ends at: an effect of each name, of the seed, and a little noise."""
    noise = np.random.default_rng([MADE.index(arm), seed]).normal(0, 0.002)
    effect = RULE[arm.rule] + PLACE.get(arm.place, 0.0) + 0.05 * (arm.name == "E0M7")
    if arm.name.endswith(" misscaled"):
        effect = 0.2 - {"update": 0.1, "relative": 0.12}.get(arm.rule, 0.0)
    return BASE[arm.format] + effect + 0.01 * (seed % 7) + float(noise)


Made = tuple[ExperimentConfig, float, float]
"""A config, the validation loss that its run ends at, and how many of 100 proposed steps change a code."""


def records(scratch: Path, made: list[Made]) -> list[RunRecord]:
    """Made-up runs: copies of one that the real writer wrote, which is a hundred times faster than to write each."""
    write_run(scratch, config("e4m3"), 2.0, data=DATA)
    (template,) = load_runs((scratch,)).records
    history, layers = template.history, template.coded  # text as categories, as in a packed study: made once

    def record(cfg: ExperimentConfig, loss: float, flips: float) -> RunRecord:
        run = template.run | {
            "id": run_id(cfg, DATA),
            "arm": arm_id(cfg, DATA),
            "config": cfg.model_dump(mode="json"),
            "summary": {"final_val_loss": loss},
        }
        value = layers["value"].mask(layers["statistic"] == "flips", flips)
        tables = {
            "history": history.assign(val_loss=history["val_loss"] + loss - 2.0),
            "layers": layers.assign(value=value) if cfg.quantize.operands else layers.iloc[:0],
        }
        return RunRecord(run, cfg, run["arm"], tables.__getitem__)

    return [record(*each) for each in made]


def loader_of(runs: list[RunRecord], *sources: Path) -> ExperimentDataLoader:
    """A loader of records in memory, and of those of some folders."""
    loader = ExperimentDataLoader(sources)
    loader.__dict__["run_set"] = RunSet((*runs, *load_runs(sources).records))
    return loader


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    """Studies tuning, storage and controls and the baselines of formats, each sweep with its best in the middle."""
    made: list[Made] = [
        (ARMS[name].config(seed, "tuning", ARMS[name].rate * 2.0**power), 2.2 + 0.05 * abs(power), 50.0)  # type: ignore[operator]
        for name, seeds in STUDIES["tuning"].seeds.items()
        for seed in seeds
        for power in range(-2, 3)
    ]
    for number, arm in enumerate(MADE):
        for seed in seeds_of(arm.name):
            flips = 100.0 - STALL.get(arm.place, 50.0) - number % 5
            made.append((arm.config(seed, studies_of(arm.name)[0]), chosen_loss(arm, seed), flips))
    return records(tmp_path_factory.mktemp("scratch"), made)


@pytest.fixture(scope="session")
def whole(studies: list[RunRecord]) -> ExperimentDataLoader:
    loader = loader_of(studies, ROOT / "experiments" / "recorded" / "pilot-tuning")
    assert len(loader.runs) > 1000
    return loader


@pytest.fixture(scope="session")
def verdicts(whole: ExperimentDataLoader) -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in verdicts_of(whole, *(f"H{number}" for number in range(6, 15)))}


def changed(loader: ExperimentDataLoader, change: Callable[[pd.DataFrame], pd.DataFrame]) -> ExperimentDataLoader:
    """The same records with another table of runs."""
    other = copy.copy(loader)
    other.__dict__["run_set"] = replace(loader.run_set)  # other records: nothing found in the old ones is theirs
    other.__dict__["runs"] = change(loader.runs.copy()).reset_index(drop=True)
    return other


def rows_of(runs: pd.DataFrame, arm: str) -> pd.Series:
    """Which runs are of an arm, by the id that its config has: not by the code under test."""
    return (runs["arm"] == arm_id(ARMS[arm].config(), DATA)) & runs["seed"].isin(seeds_of(arm))


def shifted(loader: ExperimentDataLoader, arm: str, by: float, spread: float = 0.0) -> ExperimentDataLoader:
    """The arm ends `by` nats higher, with a `spread` from seed to seed."""

    def change(runs: pd.DataFrame) -> pd.DataFrame:
        own = rows_of(runs, arm)
        assert own.sum() == len(seeds_of(arm))
        runs.loc[own, "final_val_loss"] += by + spread * np.where(runs.loc[own, "seed"] % 2, 1.0, -1.0)
        return runs

    return changed(loader, change)


def verdict_of(loader: ExperimentDataLoader, key: str) -> Verdict:
    return next(hypothesis for hypothesis in HYPOTHESES if hypothesis.id == key).verdict(loader)


def page_text(loader: ExperimentDataLoader, folder: Path, **more: Path) -> str:
    page = manifold_comparison_page(loader, **more)
    write_folder([page], folder, site_root="../site/")
    return render(
        page, Dialect(lambda reference: f"../site/{reference.path}/index.html#{reference.anchor}", whole=True)
    )


def test_the_names_of_a_row_lead_to_its_arm_and_to_no_other() -> None:
    for arm in STEP_ARMS:
        assert arm_of(dict(zip(NAME_COLUMNS, names_of(arm), strict=True))) is arm


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"step_rule": "manifold", "precondition": "update", "floor": 0.1}},
        {"optimizer": {"step_rule": "manifold", "precondition": "gradient", "stiffness": "constant"}},
        {"optimizer": {"step_rule": "code", "storage": "grid", "rounding": "stochastic", "rungs": 2}},
        {"quantize": {"weight": "e4m3"}},
        {"scaling": {"power_of_two": False}},
        {"model": {"rescale": 3}},
    ],
)
def test_a_setting_that_no_arm_has_is_no_arm(settings: dict[str, object]) -> None:
    known = {identity_of(arm.config(), rate=False) for arm in STEP_ARMS}
    usual = {key: value for key, value in ARMS["E4M3"].config().model_dump().items() if key not in ("seed", "study")}
    assert identity_of(ExperimentConfig.model_validate(usual), rate=False) in known
    assert identity_of(ExperimentConfig.model_validate(usual | settings), rate=False) not in known


def test_what_was_made_to_hold_is_what_the_verdicts_say(verdicts: dict[str, Verdict]) -> None:
    assert {verdict.answer for verdict in verdicts.values()} == {"yes"}
    sizes = {"H6": 3, "H7": 3, "H8": 12, "H9": 1, "H10": 3, "H11": 2, "H12": 2, "H13": 3, "H14": 3}
    assert {key: len(verdict.tests) for key, verdict in verdicts.items()} == sizes
    for verdict in verdicts.values():
        assert tuple(verdict.tests.columns) == TEST_COLUMNS
        assert set(verdict.tests["n_pairs"]) <= {16, 32}
        assert (verdict.tests["test"] == "sign-flip permutation test").all()
        assert "n = 16" in evidence(verdict.judgement)
    assert [key for key, verdict in verdicts.items() if verdict.limited] == ["H10"]


def test_each_difference_is_that_of_the_raw_records(whole: ExperimentDataLoader, verdicts: dict[str, Verdict]) -> None:
    def losses(arm: str) -> pd.Series:
        found = {
            record.config.seed: float(record.history["val_loss"].dropna().iloc[-1])
            for record in whole.records.values()
            if record.arm == arm and record.config.seed in SEEDS
        }
        return pd.Series(found).sort_index()

    for key in ("H6", "H7", "H8", "H9", "H10", "H12", "H13", "H14"):
        for row in verdicts[key].tests.to_dict("records"):
            reference = stats.ttest_rel(losses(row["arm"]), losses(row["against"]))
            assert row["difference"] == pytest.approx((losses(row["arm"]) - losses(row["against"])).mean())
            assert (row["low"], row["high"]) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_the_comparison_is_with_adamw_at_the_rate_tuned_for_the_format(whole: ExperimentDataLoader) -> None:
    row = StepRuleComparator(whole).pairings.query("format == 'E0M7' and storage == 'master'").iloc[0]
    assert whole.config(row["against"]).optimizer.learning_rate == 8e-3
    assert row["difference"] == pytest.approx(0.03, abs=0.003)


def test_holm_is_over_the_family_and_nothing_else(verdicts: dict[str, Verdict]) -> None:
    for key in ("H6", "H8", "H10"):
        ordered = sorted(verdicts[key].tests["p_value"])
        largest = max(min(1.0, (len(ordered) - rank) * p) for rank, p in enumerate(ordered))
        assert verdicts[key].tests["p_holm"].max() == pytest.approx(largest)


CHANGES = [
    ("H6", "no", "E5M2 adamw nearest", -0.12, 0.0),
    ("H6", "no", "E5M2 adamw nearest", -0.06, 0.0),  # equivalent
    ("H6", "inconclusive", "E5M2 adamw nearest", -0.05, 0.2),
    ("H7", "no", "E0M7 adamw feedback", 0.05, 0.0),
    ("H7", "inconclusive", "E0M7 adamw feedback", 0.0, 0.1),
    ("H8", "no", "E0M7 update stochastic", -0.08, 0.0),
    ("H8", "yes", "E0M7 update stochastic", -0.08, 0.3),
    ("H9", "no", "E4M3 gradient master", 0.05, 0.0),
    ("H9", "inconclusive", "E4M3 gradient master", 0.008, 0.02),
    ("H10", "no", "E4M3 code stochastic", -0.2, 0.0),
    ("H11", "no", "FP32 update master", -0.05, 0.0),
    ("H11", "inconclusive", "FP32 gradient master", 0.0, 0.06),
    ("H12", "no", "E4M3 shuffled master", -0.06, 0.0),
    ("H12", "no", "E4M3 constant master", 0.05, 0.0),
    ("H12", "inconclusive", "E4M3 shuffled master", -0.03, 0.2),
    ("H13", "no", "E4M3 relative master misscaled", 0.3, 0.0),
    ("H13", "inconclusive", "E4M3 update master misscaled", 0.08, 0.2),
]


@pytest.mark.parametrize(("key", "answer", "arm", "by", "spread"), CHANGES)
def test_other_losses_give_the_other_answers(
    whole: ExperimentDataLoader, key: str, answer: str, arm: str, by: float, spread: float
) -> None:
    assert verdict_of(shifted(whole, arm, by, spread), key).answer == answer


def test_the_stall_ratio_ranks_where_it_is_made_to(whole: ExperimentDataLoader) -> None:
    found = StepRuleComparator(whole).stalls.set_index("format")
    arms = StepRuleComparator(whole).arms
    for fmt in RULE_FORMATS:
        own = arms[(arms["format"] == fmt) & arms["study"].isin(["formats", "storage"])]
        assert found.at[fmt, "n_arms"] == len(own)
        assert found.at[fmt, "spearman"] == pytest.approx(stats.spearmanr(own["stall_ratio"], own["val_loss"])[0])

    def ranked(runs: pd.DataFrame) -> pd.DataFrame:
        kept = runs[runs["seed"].isin(SEEDS)].groupby(["study", "arm"])["final_val_loss"].transform("mean") / 10
        return runs.assign(stall_ratio=kept)

    loader = changed(whole, ranked)
    ordered = StepRuleComparator(loader).stalls
    assert (ordered["spearman"] == 1).all()
    assert ordered["more"].isna().all()
    assert verdict_of(loader, "H14").answer == "no"


def test_the_counterexample_stalls_more_and_loses_less(whole: ExperimentDataLoader) -> None:
    runs = whole.runs[whole.runs["seed"].isin(SEEDS)]
    means = runs.groupby("arm")[["stall_ratio", "final_val_loss"]].mean()
    for row in StepRuleComparator(whole).stalls.to_dict("records"):
        more, less = means.loc[row["arm"]], means.loc[row["against"]]
        assert more["stall_ratio"] > less["stall_ratio"]
        assert more["final_val_loss"] < less["final_val_loss"]
        assert row["p_holm"] < 0.05


def test_sweeps_have_their_best_rate_and_say_whether_it_was_used(whole: ExperimentDataLoader) -> None:
    groups = [group for _, group in StepRuleComparator(whole).sweeps.groupby(list(NAME_COLUMNS))]
    assert len(groups) == len(STEP_ARMS)
    for group in groups:
        assert len(group) == 5
        assert group["best"].sum() == 1
        assert group.loc[group["best"], "val_loss"].iloc[0] == group["val_loss"].min()
        assert group["used"].tolist() == group["best"].tolist()
        assert not group["edge"].any()


def test_a_best_rate_at_the_edge_and_a_rate_not_tuned_are_told(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    def change(runs: pd.DataFrame) -> pd.DataFrame:
        lowest = ARMS["E4M3 update master"].config(rate=0.32)
        runs.loc[runs["study"].eq("tuning") & runs["arm"].eq(arm_id(lowest, DATA)), "final_val_loss"] = 1.0
        return runs

    loader = changed(whole, change)
    row = StepRuleComparator(loader).sweeps.query("edge").iloc[0]
    assert (row["rule"], row["used"]) == ("update", False)
    text = page_text(loader, tmp_path)
    assert "The best rate of E4M3 ManifoldAdamW (master weights, nearest) lies at the edge of its sweep." in text
    assert "E4M3 ManifoldAdamW (master weights, nearest) ran at another rate than the best of its sweep." in text


def test_extra_bytes_are_those_of_the_storage(whole: ExperimentDataLoader) -> None:
    for row in StepRuleComparator(whole).arms.to_dict("records"):
        assert row["extra_bytes"] == extra_bytes_per_weight(row["storage"], row["rounding"])


def test_the_whole_page_answers_with_number_interval_and_seeds(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    page = manifold_comparison_page(whole)
    assert page == manifold_comparison_page(whole)
    text = page_text(whole, tmp_path)
    assert text.count("make campaign STUDY=storage-large DEVICE=cuda") == 1
    assert text.count("Pending") == 1 + text.count("make campaign STUDY=rivals\n")
    assert "characters)" not in text  # nothing was shortened
    bold = re.search(r"\*\*No\. ManifoldAdamW.*?\*\*", text)
    assert bold is not None
    assert "ManifoldAdamW is never shown to beat AdamW: worse in 12 of 12 comparisons." in bold.group()
    assert "Scope: a GPT of " in text
    assert "Weight decay is not the same in every arm:** 0 in steps of codes, 0.1 in every other rule." in text
    assert re.search(r"nats higher \(95% CI [\d.]+ to [\d.]+, n = 16 seeds\)", bold.group())
    assert "How to cite:" in text
    assert "@software{altgrad," in text
    for heading in ("Controls", "Negative results", "What cannot be concluded"):
        assert f"## {heading}" in text
    for fold in ("The arms, equally tuned", "Data, and every step rule against AdamW", "Related work"):
        assert f"<summary>{fold}" in text
    for number in ("2006.14560", "2106.13914", "2010.06192", "2601.22101"):
        assert f"https://arxiv.org/abs/{number}" in text
    assert not re.search(r"\b(nan|None|inf)\b", text)
    csv = {path.name.split(".")[-2] for path in tmp_path.rglob("*.csv")}
    assert csv >= {"pairings", "roundings", "tuning", "arms", "stall", "sweeps", "slopes", "hypotheses", "mis-scaled"}
    compressed = sum(
        len(gzip.compress(path.read_bytes())) for path in tmp_path.rglob("*") if path.suffix in (".md", ".svg")
    )
    assert compressed < 500_000


def test_all_figures_of_the_page_lead_to_arms(whole: ExperimentDataLoader) -> None:
    linked = set(re.findall(r"runs/([A-Za-z0-9_-]+)", str(manifold_comparison_page(whole).blocks)))
    comparator = StepRuleComparator(whole)
    for frame in (comparator.arms, comparator.sweeps):
        assert set(frame["arm"]) <= linked, sorted(set(frame["arm"]) - linked)


def test_one_arm_missing_is_a_sentence_and_no_conclusion(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    loader = changed(whole, lambda runs: runs[~rows_of(runs, "E5M2 update stochastic")])
    found = verdict_of(loader, "H8")
    lacking = "Not recorded in full: E5M2 ManifoldAdamW (grid, stochastic) (0 of 16 seeds)."
    assert (found.answer, evidence(found.judgement), len(found.tests)) == ("pending", lacking, 0)
    assert verdict_of(loader, "H6").answer == "yes"
    assert StepRuleComparator(loader).pairings.query("rule == 'update'")["p_holm"].isna().all()
    text = page_text(loader, tmp_path)
    assert "ManifoldAdamW against AdamW: pending" in text
    assert "Pending Experiments" in text
    assert "make campaign STUDY=storage" in text


def test_too_few_seeds_are_a_sentence_and_no_conclusion(whole: ExperimentDataLoader) -> None:
    loader = changed(whole, lambda runs: runs[~(rows_of(runs, "E4M3 code stochastic") & (runs["seed"] > 12))])
    found = verdict_of(loader, "H10")
    lacking = "Not recorded in full: E4M3 Steps of codes (grid, stochastic) (3 of 16 seeds)."
    assert (found.answer, evidence(found.judgement)) == ("pending", lacking)
    row = StepRuleComparator(loader).pairings.query("rule == 'code' and format == 'E4M3'").iloc[0]
    assert math.isnan(row["difference"])


def test_other_seeds_are_no_pairs(whole: ExperimentDataLoader) -> None:
    def change(runs: pd.DataFrame) -> pd.DataFrame:
        runs.loc[rows_of(runs, "E4M3 gradient master"), "seed"] += 32
        return runs

    assert evidence(verdict_of(changed(whole, change), "H9").judgement) == (
        "Not recorded in full: E4M3 ManifoldAdamW on gradients (0 of 16 seeds)."
    )


def test_other_data_are_no_pair(whole: ExperimentDataLoader) -> None:
    def change(seeds: list[int]) -> Callable[[pd.DataFrame], pd.DataFrame]:
        def other(runs: pd.DataFrame) -> pd.DataFrame:
            runs.loc[rows_of(runs, "E4M3 gradient master") & runs["seed"].isin(seeds), "data"] = "other"
            return runs

        return other

    def said(seeds: list[int]) -> str:
        return evidence(verdict_of(changed(whole, change(seeds)), "H9").judgement)

    assert said([*SEEDS]) == "The recorded runs differ in data."
    assert said([10]) == "More than one data set: E4M3 ManifoldAdamW on gradients."


def test_an_arm_that_diverged_is_not_judged_by_its_survivors(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    def change(runs: pd.DataFrame) -> pd.DataFrame:
        bad = rows_of(runs, "E0M7 update nearest") & (runs["seed"] < 13)
        bad |= rows_of(runs, "E0M7 adamw nearest") & (runs["seed"] == 10)
        return runs.assign(
            status=runs["status"].mask(bad, "failed"), final_val_loss=runs["final_val_loss"].mask(bad, math.nan)
        )

    loader = changed(whole, change)
    found = verdict_of(loader, "H8")
    assert verdict_of(loader, "H6").answer == found.answer == "inconclusive"
    assert "1 not judged because runs did not finish" in evidence(found.judgement)
    (row,) = found.tests[found.tests["n_ended_badly"] > 0].to_dict("records")
    assert (row["arm"], row["n_ended_badly"]) == (arm_id(ARMS["E0M7 update nearest"].config(), DATA), 4)
    assert math.isnan(row["p_holm"])
    text = page_text(loader, tmp_path)
    assert "3 of 16 runs did not finish; the arm is not ranked" in text
    assert "Inconclusive: 1 of 12 comparisons of ManifoldAdamW with AdamW have runs" in text
    assert not re.search(r"\bnan\b", text)


def test_lengths_are_not_mixed(studies: list[RunRecord], tmp_path: Path) -> None:
    shorter = ARMS["E4M3 gradient master"].config(10, "storage").model_copy(update={"max_steps": 60})
    write_run(tmp_path / "runs", shorter, 1.0, data=DATA)
    mixed, alone = (verdict_of(loader_of(studies, *sources), "H9") for sources in ([tmp_path / "runs"], []))
    assert mixed.judgement == alone.judgement


def test_without_the_campaign_the_other_pairings_are_shown_and_the_rest_is_pending(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=5)
    loader = ExperimentDataLoader([tmp_path / "runs"])
    assert {verdict.answer for verdict in verdicts_of(loader)} == {"pending"}
    text = page_text(loader, tmp_path / "out")
    assert "ManifoldAdamW against AdamW: mixed" in text or "ManifoldAdamW against AdamW: no gain seen" in text
    assert "These are pilot findings" in text
    for study in ("tuning", "storage", "controls"):
        assert f"make campaign STUDY={study}\n" in text


def test_the_labels_of_the_campaigns_runs_name_their_rule() -> None:
    for arm in STEP_ARMS:
        assert ("on the grid" in rule_label(arm.config())) == (arm.place in GRID)


def test_the_recorded_slopes_are_those_of_the_derivation() -> None:
    record = read_record(RECORDED / NAME, SlopesRecord)
    assert record is not None
    found = {(row.rule, row.format): row for row in record.slopes}
    assert {rule for rule, _ in found} <= set(NAMES)
    assert all(len(row.first) == len(row.later) == len(record.seeds) for row in record.slopes)
    for fmt in ("e4m3", "e5m2"):
        assert all(0.97 < value < 1.03 for value in (*found["update", fmt].first, *found["update", fmt].later))
        for rule in ("adamw", "relative", "constant", "gradient-without-eps"):
            assert all(abs(value) < 0.01 for value in found[rule, fmt].first)


def test_a_missing_record_of_slopes_is_pending_and_a_damaged_one_is_named(
    whole: ExperimentDataLoader, tmp_path: Path
) -> None:
    assert "No slopes are recorded." in page_text(whole, tmp_path / "out", benchmarks=tmp_path)
    (tmp_path / NAME).write_text("{}")
    assert f"benchmarks/recorded/{NAME}" in page_text(whole, tmp_path / "out", benchmarks=tmp_path)
