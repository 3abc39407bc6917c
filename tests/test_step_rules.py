"""The comparison of step rules on the campaign's own configs with chosen losses: verdicts, tables, the whole page."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from altgrad.analysis.preregistered import SEEDS, TEST_COLUMNS, Verdict
from records import config, write_matrix, write_run
from scipy import stats

from altgrad.analysis import ExperimentDataLoader, StepRuleComparator
from altgrad.analysis.loader import rule_label
from altgrad.analysis.step_rules import (
    ARMS,
    BASELINES,
    CONTROL_ARMS,
    FORMATS,
    HYPOTHESES,
    STORAGE_ARMS,
    Arm,
    arm_of,
    step_rule_verdicts,
)
from altgrad.config import ExperimentConfig, extra_bytes_per_weight
from altgrad.pages import write_folder
from altgrad.reports.manifold_comparison import manifold_comparison_page
from altgrad.reports.measured import RECORDED, read_record
from altgrad.reports.step_slopes import NAME, NAMES, SlopesRecord
from altgrad.runs import RunRecord, RunSet, load_runs
from altgrad.runs.schema import arm_id, run_id

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
PLACE = {"nearest_even": 0.08, "stochastic": 0.02, "error_feedback": 0.021}
STALL = {"nearest_even": 70.0, "stochastic": 90.0, "error_feedback": 80.0}


def load_campaign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("campaign", ROOT / "experiments" / "campaign.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["campaign"] = module
    spec.loader.exec_module(module)
    module.data_fingerprint = lambda: DATA  # type: ignore[attr-defined]
    return module


def chosen_loss(arm: Arm, seed: int) -> float:
    """What the made-up run of an arm ends at: an effect of each name, of the seed, and a little noise."""
    noise = np.random.default_rng([ARMS.index(arm), seed]).normal(0, 0.002)
    effect = RULE[arm.rule] + (PLACE[arm.rounding] if arm.storage == "grid" else 0.0)
    if arm.misscaled:
        effect = 0.2 - {"update": 0.1, "relative": 0.12}.get(arm.rule, 0.0)
    return BASE[arm.format] + effect + 0.01 * (seed % 7) + float(noise)


def chosen_flips(arm: Arm) -> float:
    stall = STALL[arm.rounding] if arm.storage == "grid" else 50.0
    return 100.0 - stall - ARMS.index(arm) % 5


Made = tuple[ExperimentConfig, float, float]
"""A config, the validation loss that its run ends at, and how many of 100 proposed steps change a code."""


def records(scratch: Path, made: list[Made]) -> list[RunRecord]:
    """Made-up runs: copies of one that the real writer wrote, which is a hundred times faster than to write each."""
    write_run(scratch, config("e4m3"), 2.0, data=DATA)
    (template,) = load_runs((scratch,)).records
    history, layers = template.history, template.layers

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
    """Studies tuning, storage and controls and the baselines of formats, as the campaign makes them."""
    campaign = load_campaign()
    losses: dict[str, float] = {}
    made: list[Made] = []
    for given in [*campaign.rule_arms(), *campaign.control_arms()]:
        for position, rate in enumerate(campaign.base_rates(given)):
            for seed in campaign.TUNING_SEEDS:
                cfg = campaign.run("tuning", given, rate, seed)
                loss = 2.2 + 0.05 * abs(position - 2) + 0.001 * (seed - 100)
                losses[run_id(cfg, DATA)] = loss
                made.append((cfg, loss, 50.0))
    for cfg in [*campaign.storage(losses), *campaign.controls(losses), *campaign.formats(losses)]:
        arm = arm_of(cfg)
        if arm is None or arm not in ARMS or cfg.seed not in SEEDS:
            assert cfg.study == "formats", cfg.resolved_name
            continue
        other_rate = cfg.study == "formats" and arm.format == "E0M7" and cfg.optimizer.learning_rate == 1.6e-2
        made.append((cfg, chosen_loss(arm, cfg.seed) + 0.05 * other_rate, chosen_flips(arm)))
    return records(tmp_path_factory.mktemp("scratch"), made)


@pytest.fixture(scope="session")
def whole(studies: list[RunRecord]) -> ExperimentDataLoader:
    loader = loader_of(studies, ROOT / "experiments" / "recorded" / "pilot-tuning")
    assert len(loader.runs) > 1000
    return loader


@pytest.fixture(scope="session")
def verdicts(whole: ExperimentDataLoader) -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in step_rule_verdicts(whole)}


def changed(loader: ExperimentDataLoader, change: Callable[[pd.DataFrame], pd.DataFrame]) -> ExperimentDataLoader:
    """The same records with another table of runs."""
    other = copy.copy(loader)
    other.__dict__["run_set"] = copy.copy(loader.run_set)  # other records: nothing found in the old ones is theirs
    other.__dict__["runs"] = change(loader.runs.copy()).reset_index(drop=True)
    return other


def rows_of(loader: ExperimentDataLoader, runs: pd.DataFrame, arm: Arm) -> pd.Series:
    """Which runs are of an arm, by its label and study: not by the code under test."""
    study = "formats" if arm in BASELINES else "storage" if arm in STORAGE_ARMS else "controls"
    known = {key: arm_of(loader.config(key)) for key in runs.loc[runs["study"] == study, "arm"].unique()}
    rate = {"E0M7": 8e-3}.get(arm.format, 1.6e-2) if arm in BASELINES else None
    found = (runs["study"] == study) & runs["arm"].map(lambda key: known.get(key) == arm)
    return found & (np.isclose(runs["learning_rate"], rate) if rate else True)


def shifted(loader: ExperimentDataLoader, *arms: Arm, by: float, spread: float = 0.0) -> ExperimentDataLoader:
    """The arms end `by` nats higher, with a `spread` from seed to seed."""

    def change(runs: pd.DataFrame) -> pd.DataFrame:
        for arm in arms:
            own = rows_of(loader, runs, arm)
            assert own.sum() == len(SEEDS)
            signs = np.where(runs.loc[own, "seed"] % 2, 1.0, -1.0)
            runs.loc[own, "final_val_loss"] += by + spread * signs
        return runs

    return changed(loader, change)


def answers(loader: ExperimentDataLoader) -> dict[str, str]:
    return {verdict.id: verdict.answer for verdict in step_rule_verdicts(loader)}


def judged(loader: ExperimentDataLoader, *keys: str) -> dict[str, Verdict]:
    found = StepRuleComparator(loader)
    return {key: HYPOTHESES[key](found) for key in keys}


def page_text(loader: ExperimentDataLoader, folder: Path) -> str:
    write_folder([manifold_comparison_page(loader)], folder, site_root="../site/")
    (text,) = (path.read_text() for path in folder.rglob("*.md"))
    return text


def test_the_arms_are_those_of_the_campaign() -> None:
    campaign = load_campaign()
    for given, expected in ((campaign.rule_arms(), STORAGE_ARMS), (campaign.control_arms(), CONTROL_ARMS)):
        found = [arm_of(campaign.run("storage", arm, 0.5, 10)) for arm in given]
        assert sorted(map(str, found)) == sorted(map(str, expected))
        assert len(set(expected)) == len(expected)
    assert tuple(campaign.SEEDS) == tuple(SEEDS)
    assert tuple(fmt.upper() for fmt in campaign.RULE_FORMATS) == FORMATS
    assert campaign.OWN_RATES["e0m7"] == 8e-3
    assert campaign.FP32_RATE == 1.6e-2


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
    assert arm_of(config("e4m3", **settings)) is None
    assert arm_of(config("e4m3")) == Arm("E4M3", "adamw")


def test_what_was_made_to_hold_is_what_the_verdicts_say(verdicts: dict[str, Verdict]) -> None:
    assert {key: verdict.answer for key, verdict in verdicts.items()} == dict.fromkeys(
        [f"H{number}" for number in range(6, 15)], "yes"
    )
    for verdict in verdicts.values():
        assert tuple(verdict.tests.columns) == TEST_COLUMNS
        assert (
            len(verdict.tests)
            == {"H6": 3, "H7": 3, "H8": 12, "H9": 1, "H10": 3, "H11": 2, "H12": 2, "H13": 3, "H14": 3}[verdict.id]
        )
        assert (verdict.tests["n_pairs"] == 16).all()
        assert (verdict.tests["test"] == "sign-flip permutation test").all()
        assert "n = 16 pairs" in verdict.evidence


def test_each_difference_is_that_of_the_raw_records(whole: ExperimentDataLoader, verdicts: dict[str, Verdict]) -> None:
    def losses(arm: str) -> pd.Series:
        found = {
            record.config.seed: float(record.history["val_loss"].dropna().iloc[-1])
            for record in whole.records.values()
            if record.arm == arm and record.config.seed < 26
        }
        return pd.Series(found).sort_index()

    for key in ("H6", "H7", "H8", "H9", "H10", "H12", "H13", "H14"):
        for row in verdicts[key].tests.to_dict("records"):
            reference = stats.ttest_rel(losses(row["arm"]), losses(row["against"]))
            assert row["difference"] == pytest.approx((losses(row["arm"]) - losses(row["against"])).mean())
            assert (row["low"], row["high"]) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_the_comparison_is_with_adamw_at_the_rate_tuned_for_the_format(whole: ExperimentDataLoader) -> None:
    table = StepRuleComparator(whole).pairings
    row = table[(table["format"] == "E0M7") & (table["storage"] == "master")].iloc[0]
    assert whole.config(row["against"]).optimizer.learning_rate == 8e-3
    assert row["difference"] == pytest.approx(0.03, abs=0.003)


def test_holm_is_over_the_family_and_nothing_else(verdicts: dict[str, Verdict]) -> None:
    for key, size in (("H6", 3), ("H8", 12), ("H10", 3)):
        tests = verdicts[key].tests
        assert len(tests) == size
        assert tests["p_holm"].max() == pytest.approx(_holm(tests["p_value"]))


def _holm(p_values: pd.Series) -> float:
    ordered = sorted(p_values)
    return max(min(1.0, (len(ordered) - rank) * p) for rank, p in enumerate(ordered))


UPDATE, GRID = Arm("E4M3", "update"), Arm("E4M3", "adamw", "grid", "stochastic")
CHANGES: list[tuple[str, str, tuple[Arm, ...], float, float]] = [
    ("H6", "no", (Arm("E5M2", "adamw", "grid", "nearest_even"),), -0.12, 0.0),
    ("H6", "no", (Arm("E5M2", "adamw", "grid", "nearest_even"),), -0.06, 0.0),  # equivalent
    ("H6", "inconclusive", (Arm("E5M2", "adamw", "grid", "nearest_even"),), -0.05, 0.2),
    ("H7", "no", (Arm("E0M7", "adamw", "grid", "error_feedback"),), 0.05, 0.0),
    ("H7", "inconclusive", (Arm("E0M7", "adamw", "grid", "error_feedback"),), 0.0, 0.1),
    ("H8", "no", (Arm("E0M7", "update", "grid", "stochastic"),), -0.08, 0.0),
    ("H8", "yes", (Arm("E0M7", "update", "grid", "stochastic"),), -0.08, 0.3),
    ("H9", "no", (Arm("E4M3", "gradient"),), 0.05, 0.0),
    ("H9", "inconclusive", (Arm("E4M3", "gradient"),), 0.008, 0.02),
    ("H10", "no", (Arm("E4M3", "code", "grid", "stochastic"),), -0.2, 0.0),
    ("H11", "no", (Arm("FP32", "update"),), -0.05, 0.0),
    ("H11", "inconclusive", (Arm("FP32", "gradient"),), 0.0, 0.06),
    ("H12", "no", (Arm("E4M3", "shuffled"),), -0.06, 0.0),
    ("H12", "no", (Arm("E4M3", "constant"),), 0.05, 0.0),
    ("H12", "inconclusive", (Arm("E4M3", "shuffled"),), -0.03, 0.2),
    ("H13", "no", (Arm("E4M3", "relative", misscaled=True),), 0.3, 0.0),
    ("H13", "inconclusive", (Arm("E4M3", "update", misscaled=True),), 0.08, 0.2),
]


@pytest.mark.parametrize(("key", "answer", "arms", "by", "spread"), CHANGES)
def test_other_losses_give_the_other_answers(
    whole: ExperimentDataLoader, key: str, answer: str, arms: tuple[Arm, ...], by: float, spread: float
) -> None:
    found = StepRuleComparator(shifted(whole, *arms, by=by, spread=spread))
    assert HYPOTHESES[key](found).answer == answer


def test_the_stall_ratio_ranks_where_it_is_made_to(whole: ExperimentDataLoader) -> None:
    found = StepRuleComparator(whole).stalls.set_index("format")
    arms = StepRuleComparator(whole).arms
    for fmt in FORMATS:
        own = arms[(arms["format"] == fmt) & arms["study"].isin(["formats", "storage"])]
        assert found.at[fmt, "n_arms"] == len(own)
        assert found.at[fmt, "spearman"] == pytest.approx(stats.spearmanr(own["stall_ratio"], own["val_loss"])[0])

    def ranked(runs: pd.DataFrame) -> pd.DataFrame:
        return runs.assign(stall_ratio=runs.groupby(["study", "arm"])["final_val_loss"].transform("mean") / 10)

    ordered = StepRuleComparator(changed(whole, ranked)).stalls
    assert (ordered["spearman"] == 1).all()
    assert ordered["more"].isna().all()
    assert HYPOTHESES["H14"](StepRuleComparator(changed(whole, ranked))).answer == "no"


def test_the_counterexample_stalls_more_and_loses_less(whole: ExperimentDataLoader) -> None:
    for row in StepRuleComparator(whole).stalls.to_dict("records"):
        more, less = (
            whole.runs[(whole.runs["arm"] == row[name]) & (whole.runs["seed"] < 26)] for name in ("arm", "against")
        )
        assert more["stall_ratio"].mean() > less["stall_ratio"].mean()
        assert more["final_val_loss"].mean() < less["final_val_loss"].mean()
        assert row["p_holm"] < 0.05


def test_sweeps_have_their_best_rate_and_say_whether_it_was_used(whole: ExperimentDataLoader) -> None:
    sweeps = StepRuleComparator(whole).sweeps
    keys = ["format", "rule", "storage", "rounding", "misscaled"]
    for _, group in sweeps.groupby(keys):
        assert len(group) == 5
        assert group["best"].sum() == 1
        assert group.loc[group["best"], "val_loss"].iloc[0] == group["val_loss"].min()
        assert group["used"].tolist() == group["best"].tolist()
        assert not group["edge"].any()
    assert len(sweeps.groupby(keys)) == len(ARMS)


def test_a_best_rate_at_the_edge_and_a_rate_not_tuned_are_told(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    def change(runs: pd.DataFrame) -> pd.DataFrame:
        own = runs["study"].eq("tuning") & runs["arm"].map(lambda arm: arm_of(whole.config(arm)) == UPDATE)
        lowest = runs["learning_rate"] == runs.loc[own, "learning_rate"].min()
        runs.loc[own & lowest, "final_val_loss"] = 1.0
        return runs

    sweeps = StepRuleComparator(changed(whole, change)).sweeps
    row = sweeps[sweeps["edge"]].iloc[0]
    assert (row["rule"], row["used"]) == ("update", False)
    text = page_text(changed(whole, change), tmp_path)
    assert "The best rate of E4M3 S on the update (master weights, nearest) lies at the edge of its sweep." in text
    assert "E4M3 S on the update (master weights, nearest) ran at another rate than the best of its sweep." in text


def test_extra_bytes_are_those_of_the_storage(whole: ExperimentDataLoader) -> None:
    for row in StepRuleComparator(whole).arms.to_dict("records"):
        assert row["extra_bytes"] == extra_bytes_per_weight(row["storage"], row["rounding"])


def test_the_whole_page_answers_with_number_interval_and_seeds(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    page = manifold_comparison_page(whole)
    assert page == manifold_comparison_page(whole)
    text = page_text(whole, tmp_path)
    assert text.count("Pending") == text.count("make campaign STUDY=storage-large DEVICE=cuda") == 1
    assert "characters)" not in text  # nothing was shortened
    bold = re.search(r"\*\*No\. Steps in ulps.*?\*\*", text)
    assert bold is not None
    assert "Steps in ulps (ManifoldAdamW) never beat AdamW: worse in 12 of 12 comparisons." in bold.group()
    assert "*Scope: 2 layers of 64, " in text
    assert "Weight decay is not the same in every arm: 0 in steps of codes, 0.1 in every other rule." in text
    assert "95% interval" in bold.group()
    assert "n &#61; 16 seeds" in bold.group() or "n = 16 seeds" in bold.group()
    for heading in (
        "The arms",
        "Equal tuning",
        "Controls",
        "Negative results",
        "Related work",
        "What cannot be concluded",
    ):
        assert f"## {heading}" in text
    for number in ("2006.14560", "2106.13914", "2010.06192", "2601.22101"):
        assert f"https://arxiv.org/abs/{number}" in text
    assert not re.search(r"\b(nan|None|inf)\b", text)
    csv = {path.name.split(".")[-2] for path in tmp_path.rglob("*.csv")}
    assert csv >= {"pairings", "roundings", "tuning", "arms", "stall", "sweeps", "slopes", "hypotheses", "mis-scaled"}
    compressed = sum(
        len(gzip.compress(path.read_bytes())) for path in tmp_path.rglob("*") if path.suffix in (".md", ".svg")
    )
    assert compressed < 500_000


def test_all_figures_of_the_page_lead_to_arms(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    text = page_text(whole, tmp_path)
    linked = set(re.findall(r"runs/([A-Za-z0-9_.-]+?)(?:\.md|/)", text))
    comparator = StepRuleComparator(whole)
    for frame in (comparator.arms, comparator.sweeps):
        assert set(frame["arm"]) <= linked


def test_one_arm_missing_is_a_sentence_and_no_conclusion(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    arm = Arm("E5M2", "update", "grid", "stochastic")
    loader = changed(whole, lambda runs: runs[~rows_of(whole, runs, arm)])
    found = judged(loader, "H8", "H6")
    assert found["H8"].answer == "pending"
    assert found["H8"].evidence == "E5M2 S on the update (grid, stochastic) is not recorded."
    assert found["H8"].tests.empty
    assert found["H6"].answer == "yes"
    assert StepRuleComparator(loader).pairings.query("rule == 'update'")["p_holm"].isna().all()
    text = page_text(loader, tmp_path)
    assert "ManifoldAdamW against AdamW: pending" in text
    assert "Pending Experiments" in text
    assert "make campaign STUDY=storage" in text


def test_too_few_seeds_are_a_sentence_and_no_conclusion(whole: ExperimentDataLoader) -> None:
    arm = Arm("E4M3", "code", "grid", "stochastic")
    loader = changed(whole, lambda runs: runs[~(rows_of(whole, runs, arm) & (runs["seed"] > 12))])
    found = judged(loader, "H10")
    assert found["H10"].answer == "pending"
    assert found["H10"].evidence == "E4M3 Steps of codes (grid, stochastic) has 3 of 16 seeds."
    row = StepRuleComparator(loader).pairings.query("rule == 'code' and format == 'E4M3'").iloc[0]
    assert math.isnan(row["difference"])


def test_unpaired_seeds_are_no_pairs(whole: ExperimentDataLoader) -> None:
    def change(runs: pd.DataFrame) -> pd.DataFrame:
        runs.loc[rows_of(whole, runs, Arm("E4M3", "gradient")), "seed"] += 16
        return runs

    found = judged(changed(whole, change), "H9")
    assert (found["H9"].answer, found["H9"].evidence) == (
        "pending",
        "E4M3 S on the gradient (master weights, nearest) is not recorded.",
    )


def test_an_arm_that_diverged_is_not_judged_by_its_survivors(whole: ExperimentDataLoader, tmp_path: Path) -> None:
    def change(runs: pd.DataFrame) -> pd.DataFrame:
        bad = rows_of(whole, runs, Arm("E0M7", "update", "grid", "nearest_even")) & (runs["seed"] < 13)
        bad |= rows_of(whole, runs, Arm("E0M7", "adamw", "grid", "nearest_even")) & (runs["seed"] == 10)
        runs.loc[bad, "status"] = "failed"
        runs.loc[bad, "final_val_loss"] = math.nan
        return runs

    loader = changed(whole, change)
    found = judged(loader, "H6", "H8")
    assert found["H6"].answer == "inconclusive"
    assert found["H8"].answer == "inconclusive"
    assert "1 not judged because runs did not finish" in found["H8"].evidence
    row = found["H8"].tests.query("contrast == 'E0M7 S on the update (grid, nearest)'").iloc[0]
    assert (row["n_pairs"], row["n_ended_badly"]) == (0, 4)
    text = page_text(loader, tmp_path)
    assert "3 of 16 runs did not finish; the arm is not ranked" in text
    assert "Inconclusive: 1 of 12 comparisons of steps in ulps (ManifoldAdamW) with AdamW have runs" in text
    assert not re.search(r"\bnan\b", text)


def test_lengths_are_not_mixed(studies: list[RunRecord], tmp_path: Path) -> None:
    campaign = load_campaign()
    given = campaign.arm(campaign.every("e4m3"), "gradient", max_steps=60)
    write_run(tmp_path / "runs", campaign.run("storage", given, 0.016, 10), 1.0, data=DATA)
    loader = loader_of(studies, tmp_path / "runs")
    found = judged(loader, "H9")
    assert found["H9"].answer == "pending"
    assert found["H9"].evidence == (
        "E4M3 S on the gradient (master weights, nearest) is recorded with several settings (60, 300 steps)."
    )
    only = changed(
        loader,
        lambda runs: runs[~(rows_of(loader, runs, Arm("E4M3", "gradient")) & (runs["max_steps"] == 300))],
    )
    runs = only.runs
    extra = runs[runs["max_steps"] == 60]
    filled = pd.concat([runs, *(extra.assign(seed=seed) for seed in SEEDS if seed != 10)])
    other = changed(only, lambda _: filled)
    found = judged(other, "H9")
    assert found["H9"].evidence == (
        "E4M3 S on the gradient (master weights, nearest) and E4M3 AdamW (master weights, nearest) are no pair: they "
        "differ in max_steps."
    )


def test_without_the_campaign_the_other_pairings_are_shown_and_the_rest_is_pending(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=5)
    loader = ExperimentDataLoader([tmp_path / "runs"])
    assert set(answers(loader).values()) == {"pending"}
    text = page_text(loader, tmp_path / "out")
    assert "ManifoldAdamW against AdamW: mixed" in text or "ManifoldAdamW against AdamW: no gain seen" in text
    assert "These are pilot findings" in text
    for study in ("tuning", "storage", "controls"):
        assert f"make campaign STUDY={study}\n" in text


def test_the_labels_of_the_campaigns_runs_name_their_rule(whole: ExperimentDataLoader) -> None:
    for arm in whole.runs.loc[whole.runs["study"] == "storage", "arm"].unique():
        cfg: ExperimentConfig = whole.config(arm)
        key = arm_of(cfg)
        assert key is not None
        assert ("on the grid" in rule_label(cfg)) == (key.storage == "grid")


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
    def text() -> str:
        write_folder([manifold_comparison_page(whole, benchmarks=tmp_path)], tmp_path / "out", site_root="../site/")
        return next((tmp_path / "out").rglob("*.md")).read_text()

    assert "No slopes are recorded." in text()
    (tmp_path / NAME).write_text("{}")
    assert f"benchmarks/recorded/{NAME}" in text()
