"""Which arms fail and why, which remedy helps, and what the literature has beside it: from made-up records."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from records import DATA, config, full_look, write_run

from altgrad.analysis import ExperimentDataLoader, FailureAnalyzer, FormatComparator
from altgrad.analysis.failures import (
    CAUSES,
    FAILURE_GAP,
    REMEDIES,
    SYMPTOMS_OF_ARMS,
    arm_symptoms,
    remedies_missing,
)
from altgrad.analysis.hypotheses import Verdict
from altgrad.analysis.hypotheses import verdicts as verdicts_of
from altgrad.analysis.literature import CLAIMS, findings
from altgrad.config import ExperimentConfig, QuantizeConfig, command, load_config
from altgrad.reports.document import macros_of
from altgrad.reports.failure_modes import failure_modes_page
from altgrad.reports.literature import literature_page
from altgrad.reports.verdicts import evidence
from altgrad.runs import RunRecord, RunSet, load_runs
from altgrad.runs.diagnosis import SYMPTOMS
from altgrad.runs.schema import FAILURE_KINDS, arm_id, run_id
from altgrad.site import CodeBlock, Details, Page, Table
from altgrad.site.render import Dialect, render
from altgrad.studies import ARMS, RULE_FORMATS, STUDIES

ROOT = Path(__file__).parents[1]
SITE = Dialect(lambda reference: f"{reference.path}#{reference.anchor}", whole=True)
STOCHASTIC = "stochastic"
Loss = Callable[[ExperimentConfig], float]
Keep = Callable[[ExperimentConfig], bool]
WHOLE = ("formats", "remedies", "literature", "scaling", "blocks")


@pytest.fixture(scope="module")
def configs() -> list[ExperimentConfig]:
    """The campaign's configs that these findings rest on."""
    whole = [(study, arm) for study in WHOLE for arm in STUDIES[study].seeds]
    rules = ("adamw nearest", "adamw stochastic", "adamw feedback", "update stochastic")
    grid = [("storage", f"{fmt} {rule}") for fmt in RULE_FORMATS for rule in rules]
    return [ARMS[arm].config(seed, study) for study, arm in (*whole, *grid) for seed in STUDIES[study].seeds[arm]]


@pytest.fixture(scope="module")
def few(configs: list[ExperimentConfig]) -> list[ExperimentConfig]:
    """Those that the verdicts and the remedies of the preregistration need."""

    def needed(cfg: ExperimentConfig) -> bool:
        formats = {cfg.quantize.weight, cfg.quantize.activation, cfg.quantize.grad_output}
        whole = len(formats) == 1 and formats <= {"fp32", "bf16", "e0m7", "e7m0"}
        return cfg.study in ("literature", "remedies", "blocks") or (cfg.study == "formats" and whole)

    return [cfg for cfg in configs if needed(cfg)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """One run by the real writer; the others are copies with another config and loss."""
    folder = tmp_path_factory.mktemp("template")
    write_run(folder, config("e4m3"), 2.0)
    (record,) = load_runs((folder,)).records
    return record


def expected(cfg: ExperimentConfig) -> float:
    """What an arm loses against FP32, by its config alone."""
    q = cfg.quantize
    weight, activation, gradient = q.weight, q.activation, q.grad_output
    same = {weight, activation, gradient}
    if cfg.optimizer.storage == "grid":
        return 0.1 if cfg.optimizer.rounding == "nearest_even" else 0.02 + 0.04 * (cfg.optimizer.step_rule != "adamw")
    if same == {"fp32"}:
        return 0.0
    if cfg.scaling.kind in ("nvfp4", "mx", "mx_rceil"):
        kinds = {"e4m3": {"mx": 0.004, "mx_rceil": 0.0}, "e2m1": {"mx": 0.2, "mx_rceil": 0.15, "nvfp4": 0.1}}
        if q.rounding.grad_output == STOCHASTIC:
            return {"mx": 0.4, "mx_rceil": 0.06, "nvfp4": 0.02}[cfg.scaling.kind]
        return kinds[weight][cfg.scaling.kind]
    if "fp32" in same:  # one operand alone
        (name,) = same - {"fp32"}
        return {"e0m7": 0.15 if gradient == name else 0.0, "e7m0": 0.3 if gradient == name else 0.04}.get(name, 0.002)
    if (weight, gradient) in (("e4m3", "e5m2"), ("e5m2", "e4m3")):
        return 0.004 if weight == "e4m3" else 0.02
    if weight in ("e0m7", "e7m0"):
        at = {"e0m7": (0.16, 0.05, 0.04, 0.01, 0.02, 0.17), "e7m0": (0.65, 0.6, 0.3, 0.25, 0.5, 0.52)}[weight]
        if cfg.optimizer.learning_rate != 0.016:
            return at[5]
        if cfg.scaling.granularity != "tensor":
            return at[4]
        if gradient == "e5m2":
            return at[3]
        if q.rounding.activation == STOCHASTIC:
            return at[2]
        return at[1] if q.rounding.grad_output == STOCHASTIC else at[0]
    return {"bf16": 0.0005, "e6m1": 0.08, "e2m5": 0.03, "e5m2": 0.02, "e4m3": 0.006, "e3m4": 0.002}.get(weight, 0.16)


@cache
def looks_of(quantize: QuantizeConfig) -> pd.DataFrame:
    """E0M7's gradients underflow in the head from step 50, E7M0 and E6M1 have 14 dB in all that they round."""
    rows = []
    for step in (1, 50, 100):
        for layer, kind in (("blocks.0.mlp.up", "mlp"), ("head", "head")):
            for operand in quantize.operands:
                fmt = getattr(quantize, operand)
                flushed = 0.9 if (fmt, operand, layer) == ("e0m7", "grad_output", "head") and step > 1 else 0.01
                quality = {"e7m0": 14.0, "e6m1": 19.5}.get(fmt, 15.0 if flushed > 0.5 else 32.0)
                figures = {"underflow": flushed, "overflow": 0.0, "sqnr_db": quality}
                rows += [(step, layer, kind, operand, name, value) for name, value in figures.items()]
            rows += [
                (step, layer, kind, "update", name, value) for name, value in (("flips", 10.0), ("updates", 100.0))
            ]
    looks = pd.DataFrame(rows, columns=["step", "layer", "layer_type", "operand", "statistic", "value"])
    return looks.astype(dict.fromkeys(looks.columns[1:5], "category"))


def loader_of(
    template: RunRecord, configs: Iterable[ExperimentConfig], loss: Loss = expected, *, broken: Keep = lambda cfg: False
) -> ExperimentDataLoader:
    """Made-up records: the loss of the arm, an effect of the seed, and noise; `broken` runs failed at step 10."""

    def record(cfg: ExperimentConfig) -> RunRecord:
        arm = arm_id(cfg, DATA)
        noise = np.random.default_rng([int(arm[-8:], 16), cfg.seed]).normal(0, 0.003)
        final = 2.0 + 0.02 * (cfg.seed % 5) + loss(cfg) + float(noise)
        status = "failed" if broken(cfg) else "finished"
        failure = {"kinds": ["nan_loss"], "step": 10, "tensor": "head.weight", "phase": "forward", "message": "NaN"}
        run = template.run | {
            "id": run_id(cfg, DATA),
            "arm": arm,
            "config": cfg.model_dump(mode="json"),
            "status": status,
            "failure": failure if status == "failed" else None,
        }
        history = template.history.assign(val_loss=template.history["val_loss"] + final - 2.0)
        tables = {"history": history, "layers": looks_of(cfg.quantize)}
        return RunRecord(run, cfg, arm, tables.__getitem__)

    loader = ExperimentDataLoader([])
    loader.__dict__["run_set"] = RunSet(tuple(record(cfg) for cfg in configs))
    return loader


@pytest.fixture(scope="module")
def whole(template: RunRecord, configs: list[ExperimentConfig]) -> ExperimentDataLoader:
    return loader_of(template, configs)


@pytest.fixture(scope="module")
def analyzer(whole: ExperimentDataLoader) -> FailureAnalyzer:
    return FailureAnalyzer(whole)


def verdicts(loader: ExperimentDataLoader) -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in verdicts_of(loader, "H15", "H16", "H17", "H18")}


def answers(loader: ExperimentDataLoader) -> dict[str, str]:
    return {name: verdict.answer for name, verdict in verdicts(loader).items()}


def remedied(cfg: ExperimentConfig, fmt: str) -> bool:
    return cfg.study == "remedies" and cfg.quantize.weight == fmt


def tables(page: Page) -> dict[str, Table]:
    found = {}

    def walk(blocks: Iterable[Any]) -> None:
        for block in blocks:
            if isinstance(block, Table) and block.id:
                found[block.id] = block
            walk(getattr(block, "blocks", ()))

    walk(page.blocks)
    return found


def sign_flip(differences: np.ndarray) -> float:
    """All sign patterns one after the other: the test's definition."""
    observed = abs(differences.sum()) - 1e-12
    signs = itertools.product((-1, 1), repeat=len(differences))
    return float(np.mean([abs(np.dot(each, differences)) >= observed for each in signs]))


def test_what_was_made_to_hold_is_what_the_verdicts_say(whole: ExperimentDataLoader) -> None:
    assert answers(whole) == {"H15": "yes", "H16": "yes", "H17": "yes", "H18": "yes"}


def test_each_difference_and_p_value_is_that_of_the_raw_records(whole: ExperimentDataLoader) -> None:
    def losses(arm: str) -> pd.Series:
        found = {r.config.seed: r.history["val_loss"].dropna().iloc[-1] for r in whole.records.values() if r.arm == arm}
        return pd.Series(found)

    for verdict in verdicts(whole).values():
        size = 1 if verdict.id in ("H15", "H16") else len(verdict.tests)
        raw = []
        for row in verdict.tests.to_dict("records"):
            difference = (losses(row["arm"]) - losses(row["against"])).dropna().to_numpy()
            assert (row["n_pairs"], len(difference)) == (16, 16)
            assert row["difference"] == pytest.approx(difference.mean())
            half = 2.131449545559323 * difference.std(ddof=1) / 4  # t(0.975, 15)
            assert (row["low"], row["high"]) == pytest.approx((difference.mean() - half, difference.mean() + half))
            raw.append(sign_flip(difference))
            assert row["p_value"] == pytest.approx(raw[-1])
        adjusted = np.minimum(1, np.maximum.accumulate(np.sort(raw) * np.arange(size, 0, -1))) if size > 1 else raw
        assert sorted(verdict.tests["p_holm"]) == pytest.approx(sorted(adjusted))


@pytest.mark.parametrize(
    ("identity", "change", "answer"),
    [
        ("H15", {"forward": 0.05}, "no"),
        ("H15", {"forward": 0.02}, "no"),  # equivalent to the reverse: no difference of interest
        ("H16", {"mxfp8": 0.05}, "no"),
        ("H16", {"mxfp8": 0.0105}, "inconclusive"),
        ("H16", {"mxfp4": 0.0005}, "no"),
        ("H17", {"e0m7 gradients": 0.2}, "no"),
        ("H17", {"e0m7 e5m2": 0.16}, "no"),
        ("H18", {"e7m0 e5m2": 0.02}, "no"),
        ("H18", {"e7m0 e5m2": 0.05}, "inconclusive"),
        ("H18", {"e7m0 both": 0.9}, "no"),
    ],
)
def test_a_hypothesis_that_does_not_hold_is_told_so(
    template: RunRecord, few: list[ExperimentConfig], identity: str, change: dict[str, float], answer: str
) -> None:
    def name(cfg: ExperimentConfig) -> str:
        q, rounding = cfg.quantize, cfg.quantize.rounding
        if cfg.study == "literature":
            kind = {"mx": {"e4m3": "mxfp8", "e2m1": "mxfp4"}, "amax": {"e4m3": "forward"}}.get(cfg.scaling.kind, {})
            return kind.get(q.weight, "")
        if cfg.study != "remedies" or cfg.scaling.granularity != "tensor":
            return ""
        what = "e5m2" if q.grad_output == "e5m2" else "both" if rounding.activation == STOCHASTIC else "gradients"
        return f"{q.weight} {what}"

    literature = identity in ("H15", "H16")
    needed = [cfg for cfg in few if (cfg.study == "literature" or cfg.quantize.weight == "bf16") == literature]
    loader = loader_of(template, needed, lambda cfg: change.get(name(cfg), expected(cfg)))
    assert answers(loader)[identity] == answer


def test_an_arm_with_a_run_that_did_not_finish_is_not_judged_by_its_survivors(
    template: RunRecord, few: list[ExperimentConfig]
) -> None:
    loader = loader_of(template, few, broken=lambda cfg: cfg.study in ("remedies", "literature") and cfg.seed == 12)
    found = verdicts(loader)
    assert {verdict.answer for verdict in found.values()} == {"inconclusive"}
    assert all("did not finish" in evidence(verdict.judgement) for verdict in found.values())
    assert {finding.answer for finding in findings(loader) if "literature" in finding.claim.studies} == {"inconclusive"}
    page = render(failure_modes_page(loader), SITE)
    assert "not judged" in page


@pytest.mark.parametrize(("left", "said"), [(0.25, True), (0.5, False)])
def test_a_statement_that_goes_further_than_what_was_tested_is_put_right(
    template: RunRecord, few: list[ExperimentConfig], left: float, said: bool
) -> None:
    def loss(cfg: ExperimentConfig) -> float:
        return left if (cfg.quantize.weight, cfg.quantize.grad_output) == ("e7m0", "e5m2") else expected(cfg)

    loader = loader_of(template, few, loss)
    h18 = verdicts(loader)["H18"]
    assert (h18.answer, h18.limited) == ("yes", said)
    assert h18.answered == ("yes, with a limit" if said else "yes")
    assert ("most of its loss does come from its gradients" in evidence(h18.judgement)) == said
    assert f"**{h18.answered}**" in {row[2] for row in tables(failure_modes_page(loader))["verdicts"].rows}


def test_when_every_run_failed_nothing_is_concluded(template: RunRecord, few: list[ExperimentConfig]) -> None:
    assert set(answers(loader_of(template, few, broken=lambda cfg: True)).values()) == {"inconclusive"}
    loader = loader_of(template, [cfg for cfg in few if cfg.seed < 13], broken=lambda cfg: True)  # three seeds an arm
    page = failure_modes_page(loader)
    assert "gap falls from" not in render(page, SITE)
    assert render(literature_page(loader), SITE)
    classified = FailureAnalyzer(loader).classified
    assert set(classified["causes"].str.split(", ").str[0]) == {"nan_loss"}
    assert (classified["step"] == 10).all()
    assert (classified["tensor"] == "head.weight").all()


@pytest.mark.parametrize("identity", ["H15", "H16", "H17", "H18"])
def test_a_missing_arm_is_named_and_no_conclusion_is_drawn(
    whole: ExperimentDataLoader, template: RunRecord, few: list[ExperimentConfig], identity: str
) -> None:
    gone = verdicts(whole)[identity].tests["arm"].iloc[0]
    loader = loader_of(template, [cfg for cfg in few if arm_id(cfg, DATA) != gone])
    verdict = verdicts(loader)[identity]
    assert verdict.answer == "pending"
    assert verdict.tests.empty
    assert "(0 of 16 seeds)" in evidence(verdict.judgement)


def test_too_few_seeds_are_counted_and_no_conclusion_is_drawn(template: RunRecord, few: list[ExperimentConfig]) -> None:
    loader = loader_of(template, [cfg for cfg in few if cfg.seed < 20])
    assert set(answers(loader).values()) == {"pending"}
    assert all("(10 of 16 seeds)" in evidence(verdict.judgement) for verdict in verdicts(loader).values())
    rows = FailureAnalyzer(loader).remedies
    assert rows.loc[rows["missing"] != "", "p_value"].isna().all()
    absent = rows["remedy"].str.contains("scale") & (rows["format"] == "E0M7")  # those of study scaling are not
    assert (rows.loc[~absent, "n_pairs"] == 10).all(), "what is there is shown, with its number of pairs"
    text = render(failure_modes_page(loader), SITE)
    assert "Pending Experiments" in text
    assert "make campaign STUDY=remedies" in text
    assert "in part" in text


def test_unpaired_runs_and_those_of_another_length_are_told(template: RunRecord, few: list[ExperimentConfig]) -> None:
    unpaired = [cfg for cfg in few if (cfg.seed < 18) == (cfg.study == "formats")]
    assert set(answers(loader_of(template, unpaired)).values()) <= {"pending"}
    assert (FailureAnalyzer(loader_of(template, unpaired)).remedies["n_pairs"].iloc[:3] == 0).all()
    longer = [cfg.model_copy(update={"max_steps": 600}) if remedied(cfg, "e0m7") else cfg for cfg in few]
    verdict = verdicts(loader_of(template, longer))["H17"]
    assert verdict.answer == "pending"
    assert "(0 of 16 seeds)" in evidence(verdict.judgement), "a run of another length is no run of the arm"
    remedies = FailureAnalyzer(loader_of(template, longer)).remedies
    assert remedies.loc[remedies["missing"].str.contains("(0 of 16", regex=False), "difference"].isna().all()


def test_pages_without_records_are_pending_and_hold_no_figures(tmp_path: Path) -> None:
    loader = ExperimentDataLoader([tmp_path])
    assert set(answers(loader).values()) == {"pending"}
    assert {finding.answer for finding in findings(loader)} == {"pending"}
    text = render(literature_page(loader), SITE)
    assert "## Pending Experiments" in text
    assert "pending.**" in text
    assert f"The runs of {len(CLAIMS)} claims are not recorded in full" in text
    analyzer = FailureAnalyzer(loader)
    assert [len(frame) for frame in (analyzer.gaps, analyzer.symptoms, analyzer.classified)] == [0, 0, 0]
    assert analyzer.remedies["difference"].isna().all()
    assert "make campaign STUDY=remedies" in render(failure_modes_page(loader), SITE)


def test_an_arm_fails_by_its_gap_alone(analyzer: FailureAnalyzer) -> None:
    gaps = analyzer.gaps
    assert (gaps.loc[gaps["failed"], "gap"] > FAILURE_GAP).all()
    assert (gaps.loc[~gaps["failed"] & (gaps["n_pairs"] > 1), "gap"] <= FAILURE_GAP).all()
    assert not gaps.loc[gaps["format"] == "E1M6", "failed"].any(), "one pair is not judged"
    assert gaps["baseline"].nunique() == 1


def test_each_failure_has_its_class_and_where_it_began(analyzer: FailureAnalyzer) -> None:
    classified = analyzer.classified
    found = classified[classified["study"] == "formats"].set_index(["format", "scope", "learning_rate"])
    every = "weights + activations + gradients"
    e7m0 = found.loc[("E7M0", every, 0.016)]
    assert (e7m0["causes"], e7m0["phases"], e7m0["step"]) == ("precision", "forward, backward", 1)
    e0m7 = found.loc[("E0M7", every, 0.016)]
    assert (e0m7["causes"], e0m7["phases"]) == ("underflow", "backward")
    assert (e0m7["step"], e0m7["tensor"]) == (50, "head.grad_output")
    assert found.loc[("E7M0", "gradients", 0.016), "phases"] == "backward"
    assert set(", ".join(analyzer.classified["causes"]).split(", ")) <= set(CAUSES)
    grid = analyzer.classified[analyzer.classified["study"] == "storage"]
    assert set(grid.loc[grid["format"] == "E4M3", "causes"]) == {"step"}
    assert set(grid.loc[grid["format"] == "E4M3", "phases"]) == {"optimizer"}


def test_a_failure_that_no_figure_explains_is_unknown_and_listed(
    template: RunRecord, configs: list[ExperimentConfig]
) -> None:
    needed = [cfg for cfg in configs if cfg.study == "formats"]
    loader = loader_of(template, needed, lambda cfg: expected(cfg) + 0.1 * (cfg.quantize.weight == "e3m4"))
    classified = FailureAnalyzer(loader).classified
    unknown = classified[classified["causes"] == "unknown"]
    assert set(unknown["format"]) == {"E3M4"}
    text = render(failure_modes_page(loader), SITE)
    assert "Arms whose cause is unknown:" in text
    assert unknown["arm"].iloc[0] in text.partition("Arms whose cause is unknown:")[2].partition("##")[0]


def test_a_low_sqnr_is_precision_only_where_range_is_not_lost() -> None:
    cfg = config("e0m7")
    look = pd.DataFrame(
        [row for step in (1, 20) for row in full_look(step)],
        columns=["step", "layer", "layer_type", "operand", "statistic", "value"],
    )
    assert not {"precision", "underflow"} & {row["cause"] for row in arm_symptoms(look[look["layer"] == "head"], cfg)}
    low = look.assign(value=look["value"].mask(look["statistic"] == "sqnr_db", 12.0))
    assert {row["cause"] for row in arm_symptoms(low, cfg)} == {"precision"}
    flushed = low.assign(value=low["value"].mask(low["statistic"] == "underflow", 0.8))
    assert {row["cause"] for row in arm_symptoms(flushed, cfg)} == {"underflow"}
    assert arm_symptoms(flushed, config("fp32")) == [], "what is not rounded loses nothing by rounding"


def test_a_stall_is_a_cause_on_the_grid_only() -> None:
    looks = pd.DataFrame(
        [(10, "head", "head", "update", "stall_ratio", 0.999)],
        columns=["step", "layer", "layer_type", "operand", "statistic", "value"],
    )
    assert arm_symptoms(looks, config("e4m3")) == []
    on_grid = config("e4m3").model_copy(
        update={"optimizer": config("e4m3").optimizer.model_copy(update={"storage": "grid"})}
    )
    (row,) = arm_symptoms(looks, on_grid)
    assert (row["cause"], row["phase"], row["tensor"], row["step"]) == ("stall", "optimizer", "head.weight", 10)


def test_an_arm_is_asked_for_what_warns_in_a_run_and_for_precision() -> None:
    """NaN and infinity have no limit to choose: they are a kind of failure themselves. Logits are no operand."""
    warned = dict.fromkeys(symptom.kind for symptom in SYMPTOMS if symptom.kind not in ("nonfinite", "runaway_logits"))
    assert [symptom.kind for symptom in SYMPTOMS_OF_ARMS] == [*warned, "precision"]
    assert CAUSES[: len(FAILURE_KINDS)] == FAILURE_KINDS


def test_the_pilot_lies_on_both_sides_of_the_limit_of_precision() -> None:
    loader = ExperimentDataLoader([ROOT / "experiments" / "recorded" / "pilot-formats"])
    analyzer = FailureAnalyzer(loader)
    comparison = FormatComparator(loader).comparisons[0]
    failed = set(analyzer.classified["format"])
    for row in comparison.table.itertuples():
        causes = {
            found["cause"]
            for found in arm_symptoms(loader.layer_history(analyzer.run_ids(row.arm)), loader.config(row.arm))
        }
        assert ("precision" in causes) == (row.format in ("E6M1", "E7M0")), row.format
    assert failed == {"E0M7", "E1M6", "E6M1", "E7M0"}
    assert "unknown" not in set(analyzer.classified["causes"])


def test_an_operand_is_a_cause_where_arms_differ_in_it_alone(
    whole: ExperimentDataLoader, analyzer: FailureAnalyzer
) -> None:
    comparison = FormatComparator(whole).comparisons[0]
    table = analyzer.operands(comparison)
    alone = table[(table["format"] == "E0M7") & (table["gap"] > FAILURE_GAP) & (table["scope"] != comparison.scope)]
    assert alone["scope"].tolist() == ["gradients"]
    page = failure_modes_page(whole)
    (row,) = (row for row in tables(page)["operands-table"].rows if row[0] == "E0M7")
    assert row[-1] == "gradients (backward)"
    text = render(page, SITE)
    assert "The costliest alone is gradients (backward)." in text


def test_a_remedy_is_held_against_the_same_format_and_against_fp32(analyzer: FailureAnalyzer) -> None:
    rows = analyzer.remedies.set_index(["format", "remedy"])
    assert len(rows) == len(REMEDIES)
    assert (rows["missing"] == "").all()
    for (name, remedy), left, before, pairs in (
        (("E0M7", "gradients in E5M2"), 0.01, 0.16, 16),
        (("E0M7", "one scale for every 32 values"), 0.02, 0.16, 8),
        (("E7M0", "activations and gradients rounded stochastically"), 0.3, 0.65, 16),
        (("E7M0", "a learning rate of its own"), 0.52, 0.65, 16),
    ):
        row = rows.loc[(name, remedy)]
        assert row["n_pairs"] == row["gap_pairs"] == pairs
        assert row["gap"] == pytest.approx(left, abs=0.006)
        assert row["gap_before"] == pytest.approx(before, abs=0.006)
        assert row["difference"] == pytest.approx(left - before, abs=0.006)
        assert row["low"] < row["difference"] < row["high"]
    assert not rows.loc[("E0M7", "a learning rate of its own"), "planned"]


def test_the_headline_says_which_splits_fail_and_by_what(whole: ExperimentDataLoader) -> None:
    lead = render(failure_modes_page(whole), SITE).partition("## Summary\n\n")[2].partition("\n")[0]
    figures = r"\(\+0\.\d{3} nats, 95% CI 0\.\d{3} to 0\.\d{3}, n = 16\)"
    assert re.search(
        r"3 of 7 formats of 8 bits fail with one power-of-two scale per tensor: "
        rf"E7M0 {figures} and E6M1 {figures} lack precision; "
        rf"E0M7 {figures} loses by its gradients\.",
        lead,
    )
    assert "2 layers of 64" in lead
    assert "told from" not in lead


def test_arms_of_an_exploratory_study_count_and_are_marked(whole: ExperimentDataLoader) -> None:
    late = FailureAnalyzer(whole).gaps.query("study == 'blocks'")
    assert late["campaign"].all()
    text = render(failure_modes_page(whole), SITE)
    assert "of study blocks, which was added after another had been looked at: they are exploratory." in text
    assert "arms of earlier studies" not in text
    assert "lowers E2M1's gap from 0." in text.replace("&#39;", "'")


def test_the_page_names_the_best_remedy_with_its_interval(whole: ExperimentDataLoader) -> None:
    page = failure_modes_page(whole)
    text = render(page, SITE)
    falls = r"gap falls from 0\.1\d\d to 0\.01\d nats \(95% interval 0\.\d{3} to 0\.\d{3}, n = 16\)"
    assert re.search(f"With gradients in E5M2, E0M7's {falls}", text.replace("&#39;", "'"))
    assert "No remedy was tried on E6M1" in text
    assert remedies_missing(whole) == ""
    assert "Pending Experiments" not in text
    assert tables(page)["verdicts"].rows[0][2] == "**yes**"


def test_the_literature_page_answers_each_claim_from_the_runs(whole: ExperimentDataLoader) -> None:
    found = {finding.claim.id: finding for finding in findings(whole)}
    assert [claim.id for claim in CLAIMS] == list(found)
    assert found.pop("madam").answer == "related work"
    differing = {identity for identity, finding in found.items() if finding.answer != "agreement"}
    made = {"best-split", "exponent-bits", "integers", "error-feedback"}
    assert differing == made, "E3M4 is made the best here, E0M7 worse, and the grid costs loss"
    page = literature_page(whole)
    text = render(page, SITE)
    assert "Of 12 results that others report and these runs can test, 8 agree with ours, " in text
    assert "4 do not" in text
    for claim in CLAIMS:
        assert f'<a id="{claim.id}"></a>' in text, "the document has a section of each claim"
        for _, number in macros_of("literature").TOLD[claim.id]["references"]:
            assert f"https://arxiv.org/abs/{number}" in text
    assert text.count("n = 16") >= 10
    assert "Pending Experiments" not in text


def test_a_result_that_ours_contradicts_is_told_in_the_first_sentence(
    template: RunRecord, few: list[ExperimentConfig]
) -> None:
    loader = loader_of(template, few, lambda cfg: 0.1 if cfg.scaling.kind == "mx" else expected(cfg))
    found = {finding.claim.id: finding.answer for finding in findings(loader)}
    assert found["mxfp8"] == "no agreement"
    text = render(literature_page(loader), SITE)
    assert re.search(r"Not confirmed: .*\[MXFP8 as specified is as good as BF16\]\(reports/literature#mxfp8\)", text)
    differs, _, agrees = text.partition("## Agrees")
    assert "### MXFP8 as specified is as good as BF16" in differs
    assert "### MXFP4 is worse than BF16" in agrees


def test_every_arm_of_the_campaign_has_a_command_that_gives_its_config(configs: list[ExperimentConfig]) -> None:
    defaults = ROOT / "experiments" / "configs" / "defaults.yaml"
    arms = {arm_id(cfg, DATA): cfg for cfg in configs}
    assert len(arms) > 50
    for cfg in arms.values():
        words = shlex.split(command(cfg).replace("\\\n", " "))
        sets = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
        assert load_config(defaults, sets, int(words[words.index("--seed") + 1])).identity() == cfg.identity()


def test_a_gap_is_shown_with_the_run_of_its_seed_that_it_is_measured_from(whole: ExperimentDataLoader) -> None:
    (listed,) = [
        block
        for block in failure_modes_page(whole).blocks
        if isinstance(block, Details) and str(block.title).startswith("Commands of")
    ]
    pairs = [block.text.split("\n.venv") for block in listed.blocks if isinstance(block, CodeBlock)]
    assert pairs
    for failing, base in pairs:
        assert "quantize" in failing
        assert "quantize" not in base
        assert failing.split("--seed")[1] == base.split("--seed")[1]


def test_the_command_on_the_page_runs(whole: ExperimentDataLoader, analyzer: FailureAnalyzer, tmp_path: Path) -> None:
    """As it stands, but for its interpreter and length, and for where the record goes."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("licensedcode") is None:
        pytest.skip("licensedcode-data is not installed")
    arm = analyzer.remedies.loc[1, "arm"]
    cfg = whole.records[analyzer.example(arm)].config
    assert cfg.quantize.rounding.activation == STOCHASTIC
    words = shlex.split(command(cfg).replace("\\\n", " "))
    assert words[0] == ".venv/bin/python"
    short = ["--set", "max_steps=2", "--set", "eval_batches=1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *words[1:], *short], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (record,) = load_runs((tmp_path,)).records
    assert record.status == "finished"
    assert record.config.quantize == cfg.quantize
    assert record.config.seed == cfg.seed
    assert math.isfinite(record.history["val_loss"].dropna().iloc[-1])
