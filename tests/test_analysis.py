"""Findings from known losses, against short independent calculations."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records import DATA, config, write_matrix, write_run
from scipy import stats

from altgrad.analysis import ExperimentDataLoader, FailureAnalyzer, FormatComparator, StepRuleComparator, contrasts
from altgrad.analysis.comparison import own_rates
from altgrad.analysis.costs import extent
from altgrad.analysis.loader import rule_label, scope_key, scope_label
from altgrad.analysis.statistics import paired_difference
from altgrad.config import parse_config
from altgrad.studies import Arm

ARMS_READ: dict[str, dict[str, Any]] = {"plain": {}, "more": {"final_eval_characters": 100_000}}

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    write_matrix(root)
    return root


def test_importing_the_analysis_brings_in_neither_torch_wandb_mkdocs_nor_scipy_stats() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'wandb', 'mkdocs'), None)); import altgrad.analysis, "
        "altgrad.site;"
        "print([name for name in ('scipy.stats', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_only_seeds_that_both_arms_finished_form_pairs() -> None:
    ours = pd.Series({0: 1.0, 1: 2.0, 2: math.nan, 3: 4.0})
    theirs = pd.Series({1: 1.5, 2: 1.0, 3: math.inf, 4: 9.0})
    estimate = paired_difference(ours, theirs)
    assert (estimate.n, estimate.mean) == (1, 0.5)
    with pytest.raises(ValueError, match="each seed once"):
        paired_difference(pd.Series([1.0, 2.0], index=[0, 0]), theirs)


def test_the_gap_is_the_mean_over_seeds_of_the_difference_to_fp32(matrix: Path) -> None:
    loader = ExperimentDataLoader([matrix])
    (comparison,) = FormatComparator(loader).comparisons
    runs = loader.runs
    for row in comparison.table.itertuples():
        ours = runs[(runs["arm"] == row.arm)].set_index("seed")["final_val_loss"]
        fp32 = runs[runs["format"] == "FP32"].set_index("seed")["final_val_loss"]
        reference = stats.ttest_rel(ours.sort_index(), fp32.sort_index())
        assert row.gap == pytest.approx((ours - fp32).mean())
        assert (row.low, row.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
        assert row.n_pairs == 5
    assert comparison.table["format"].tolist() == ["E3M4", "E4M3", "E5M2", "E7M0"]


def test_the_sweet_spot_names_the_formats_that_lie_within_the_margin_of_the_best(matrix: Path) -> None:
    comparator = FormatComparator(ExperimentDataLoader([matrix]))
    spot = comparator.sweet_spot(comparator.comparisons[0])
    assert (spot.best, spot.equivalent, spot.within_margin, spot.undecided) == ("E3M4", ("E4M3",), (), ())


def test_a_clear_winner_is_named_alone_and_bf16_is_only_a_reference(tmp_path: Path) -> None:
    for seed in range(4):
        jitter = 0.0005 * (-1) ** seed
        write_run(tmp_path, config("fp32", seed=seed), 2.0)
        write_run(tmp_path, config("bf16", seed=seed), 1.9 + jitter)
        write_run(tmp_path, config("e4m3", seed=seed), 2.01 + jitter)
        write_run(tmp_path, config("e5m2", seed=seed), 2.05 - jitter)
    comparator = FormatComparator(ExperimentDataLoader([tmp_path]))
    spot = comparator.sweet_spot(comparator.comparisons[0])
    assert (spot.best, spot.equivalent, spot.undecided) == ("E4M3", (), ())


def test_what_differs_is_never_pooled(tmp_path: Path) -> None:
    write_run(tmp_path, config("fp32"))
    write_run(tmp_path, config("e4m3"))
    for number, other in enumerate(
        (
            config("e4m3", lr=1e-3),
            config("e4m3", max_steps=40),
            config("e4m3", precondition="update"),
            config("e4m3", scaling={"power_of_two": False}),
            config("e4m3", quantize={"weight": "e4m3"}),
            config("e4m3", model={"layers": 3}),
        )
    ):
        write_run(tmp_path / str(number), other, 9.0)
    write_run(tmp_path / "data", config("e4m3", seed=1), 9.0, data={"name": "licenses", "sha256": "cd" * 32})
    loader = ExperimentDataLoader([tmp_path, *(tmp_path / name for name in "012345"), tmp_path / "data"])
    assert loader.runs["arm"].nunique() == len(loader.runs) == 9
    comparisons = FormatComparator(loader).comparisons
    assert sorted(comparison.scope for comparison in comparisons) == [
        "weights",
        "weights + activations + gradients",
        "weights + activations + gradients; exact amax scale",
    ]
    assert all(len(comparison.table) == 1 for comparison in comparisons)


def test_runs_whose_last_evaluation_read_other_amounts_are_never_paired(tmp_path: Path) -> None:
    more = {"final_eval_characters": 100_000}
    for seed in range(3):
        write_run(tmp_path / "a", config("fp32", seed=seed), 2.0, final=1.9)  # no such key: the last of the others
        write_run(tmp_path / "a", config("e4m3", seed=seed), 2.5, final=2.2)
        write_run(tmp_path / "a", config("e5m2", seed=seed, **more), 2.6, final=2.3)
    alone = ExperimentDataLoader([tmp_path / "a"])
    assert FormatComparator(alone).comparisons[0].table["format"].tolist() == ["E4M3"]
    for seed in range(3):
        write_run(tmp_path / "b", config("fp32", seed=seed, **more), 2.0, final=1.75)
        write_run(tmp_path / "b", config("e4m3", seed=seed, **more), 2.6, status="failed")
    loader = ExperimentDataLoader([tmp_path / "a", tmp_path / "b"])
    gaps = [
        comparison.table.set_index("format")["gap"].to_dict() for comparison in FormatComparator(loader).comparisons
    ]
    assert sorted(gaps, key=len) == [
        {"E4M3": pytest.approx(0.5)},
        {"E5M2": pytest.approx(2.3 - 1.75), "E4M3": pytest.approx(math.nan, nan_ok=True)},
    ]


def test_arms_whose_last_evaluation_read_other_amounts_are_not_contrasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, more = (Arm(name, "FP32", settings=given) for name, given in ARMS_READ.items())
    monkeypatch.setattr(contrasts, "ARMS", {arm.name: arm for arm in (plain, more)})
    monkeypatch.setattr(contrasts, "seeds_of", lambda arm: (0,))
    monkeypatch.setattr(contrasts, "studies_of", lambda arm: ("local",))
    for arm in (plain, more):
        write_run(tmp_path, arm.config(), final=1.5)
    loader = ExperimentDataLoader([tmp_path])
    assert contrasts.missing(loader, [plain.name]) == contrasts.missing(loader, [more.name]) == ""
    said = "The recorded runs differ in evaluated characters."
    assert contrasts.missing(loader, [plain.name, more.name]) == said


def test_the_extent_is_what_was_read(tmp_path: Path) -> None:
    plain, more = config("fp32"), config("e4m3", tokenizer="bytes", final_eval_characters=5_000)
    tokens = {"train_characters": 900, "train_tokens": 1000}
    write_run(tmp_path, plain)
    write_run(tmp_path, more, final=1.5, summary={"evaluated_characters": 5_012}, data=DATA | tokens)
    loader = ExperimentDataLoader([tmp_path])
    arms = {loader.config(arm).tokenizer: extent(loader, arm) for arm in loader.runs["arm"]}
    assert (arms["characters"].evaluated, arms["characters"].characters) == (20 * 16 * 32, 20 * 16 * 32)
    assert (arms["bytes"].evaluated, arms["bytes"].characters) == (5_012, 20 * 16 * 32 * 9 // 10)


def test_failed_crashed_and_running_runs_are_counted_and_never_averaged(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, config("fp32", seed=seed), 2.0 + 0.01 * seed)
    write_run(tmp_path, config("e4m3", seed=0), 2.01)
    for seed, status in enumerate(("failed", "crashed", "running"), start=1):
        write_run(tmp_path, config("e4m3", seed=seed), 0.1, status=status)
    loader = ExperimentDataLoader([tmp_path])
    (comparison,) = FormatComparator(loader).comparisons
    row = comparison.table.iloc[0]
    assert (row["n_runs"], row["n_finished"], row["n_pairs"]) == (4, 1, 1)
    assert row["gap"] == pytest.approx(0.01)
    assert FormatComparator(loader).sweet_spot(comparison).best is None
    failures = FailureAnalyzer(loader).failures.set_index("status")
    assert sorted(failures.index) == ["crashed", "failed", "running"]
    assert failures.at["failed", "kinds"] == "nan_loss"
    assert failures.at["failed", "tensor"] == "blocks.0.mlp.up.weight"
    assert failures.at["failed", "phase"] == "forward"
    assert failures.at["crashed", "kinds"] == "unknown"


def test_tuning_runs_take_no_part_in_a_comparison(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, config("fp32", seed=seed), 2.0 + 0.01 * seed)
        write_run(tmp_path, config("e4m3", seed=seed), 2.1 + 0.02 * seed)
    write_run(tmp_path, config("e4m3", seed=100, study="pilot-tuning"), 1.0)
    write_run(tmp_path, config("fp32", seed=100, study="pilot-tuning"), 9.0)
    (comparison,) = FormatComparator(ExperimentDataLoader([tmp_path])).comparisons
    assert comparison.table["n_runs"].tolist() == [2]
    assert comparison.table["gap"].iloc[0] == pytest.approx(0.105)


def test_step_rules_are_paired_with_adamw_on_the_same_problem(matrix: Path) -> None:
    table = StepRuleComparator(ExperimentDataLoader([matrix])).table.set_index("rule")
    runs = ExperimentDataLoader([matrix]).runs.set_index("seed")
    adamw = runs[(runs["format"] == "E4M3") & (runs["rule"] == "AdamW")]["final_val_loss"]
    for rule in ("ManifoldAdamW", "ManifoldAdamW on gradients"):
        ours = runs[runs["rule"] == rule]["final_val_loss"]
        assert table.at[rule, "difference"] == pytest.approx((ours - adamw).mean())
        assert table.at[rule, "p_value"] == pytest.approx(stats.ttest_rel(ours.sort_index(), adamw.sort_index()).pvalue)
        assert table.at[rule, "n_pairs"] == 5
    assert table.at["ManifoldAdamW", "stall_ratio"] == pytest.approx(0.4)
    assert table.at["ManifoldAdamW", "adamw_stall_ratio"] == pytest.approx(0.7)


def test_the_rival_is_the_adamw_arm_with_most_pairs_then_the_lowest_loss(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, config("e4m3", seed=seed, precondition="update"), 2.0 + 0.01 * seed)
        write_run(tmp_path, config("e4m3", seed=seed, lr=1e-3), 2.2)
        write_run(tmp_path, config("e4m3", seed=seed, lr=2e-3), 2.1)
    write_run(tmp_path, config("e4m3", seed=0, lr=4e-3), 1.0)
    table = StepRuleComparator(ExperimentDataLoader([tmp_path])).table
    assert table["adamw_learning_rate"].tolist() == [2e-3]


def test_arms_that_differ_in_more_than_the_step_rule_are_not_paired(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, config("e4m3", seed=seed), 2.0 + 0.01 * seed)
        decayed = config("e4m3", seed=seed).optimizer.model_dump() | {
            "weight_decay": 0.5,
            "step_rule": "manifold",
            "precondition": "update",
        }
        write_run(tmp_path, config("e4m3", seed=seed, optimizer=decayed), 1.0)
    table = StepRuleComparator(ExperimentDataLoader([tmp_path])).table
    assert table["n_pairs"].tolist() == [0]
    assert table["counts"].tolist() == [False]


def test_an_arm_that_lost_seeds_is_not_judged_by_its_survivors(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, config("e4m3", seed=seed), 2.0 + 0.01 * seed)
        status = "failed" if seed > 2 else "finished"
        write_run(tmp_path, config("e4m3", seed=seed, precondition="update"), 1.5 + 0.011 * seed, status=status)
    table = StepRuleComparator(ExperimentDataLoader([tmp_path])).table
    assert table["n_pairs"].tolist() == [3]
    assert table["counts"].tolist() == [False]
    assert table["p_holm"].isna().all()


def test_step_rules_of_another_length_are_another_experiment(tmp_path: Path) -> None:
    for seed in range(3):
        for steps, gap in ((20, 0.05), (40, 0.1)):
            if steps == 40 and seed == 2:
                continue
            write_run(tmp_path, config("e4m3", seed=seed, max_steps=steps), 2.0 + 0.01 * seed)
            write_run(
                tmp_path, config("e4m3", seed=seed, max_steps=steps, precondition="update"), 2.0 + gap + 0.012 * seed
            )
    first, second = StepRuleComparator(ExperimentDataLoader([tmp_path])).experiments
    assert (first["max_steps"].tolist(), second["max_steps"].tolist()) == ([20], [40])


def test_a_combination_of_formats_is_shown_and_takes_no_part_in_the_ranking(matrix: Path, tmp_path: Path) -> None:
    before = FormatComparator(ExperimentDataLoader([matrix]))
    mixed = {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"}
    for seed in range(5):
        write_run(tmp_path, config(seed=seed, quantize=mixed), 1.0)
    after = FormatComparator(ExperimentDataLoader([matrix, tmp_path]))
    assert after.sweet_spot(after.comparisons[0]) == before.sweet_spot(before.comparisons[0])
    table = after.comparisons[0].table.set_index("format")
    assert table["verdict"]["E4M3/E4M3/E5M2"] == "not ranked: a combination of formats"
    assert table["gap"]["E4M3/E4M3/E5M2"] < 0
    kept = table.drop("E4M3/E4M3/E5M2")
    pd.testing.assert_frame_equal(kept, before.comparisons[0].table.set_index("format"), check_exact=True)


def test_one_format_alone_is_no_sweet_spot(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, config("fp32", seed=seed), 2.0)
        write_run(tmp_path, config("e5m2", seed=seed), 2.1 + 0.01 * seed)
        write_run(tmp_path, config("e7m0", seed=seed), status="failed")
    comparator = FormatComparator(ExperimentDataLoader([tmp_path]))
    spot = comparator.sweet_spot(comparator.comparisons[0])
    assert spot.best is None
    assert spot.unranked == ("E7M0",)
    assert "only E5M2" in spot.reason


def test_what_an_own_rate_changes_is_computed_from_the_tuning_seeds(tmp_path: Path) -> None:
    for seed in range(2):
        for fmt in ("fp32", "e7m0"):
            write_run(tmp_path, config(fmt, seed=seed, lr=0.01), 2.0)
    for seed in (100, 101):
        for fmt, lr, loss in (("fp32", 0.01, 2.0), ("fp32", 0.02, 2.2), ("e7m0", 0.01, 2.7), ("e7m0", 0.005, 2.4)):
            write_run(tmp_path, config(fmt, seed=seed, lr=lr, study="some-tuning"), loss)
            write_run(tmp_path, config(fmt, seed=seed, lr=lr, study="some-tuning", max_steps=40), 0.0)
    loader = ExperimentDataLoader([tmp_path])
    (row,) = own_rates(loader, FormatComparator(loader).comparisons[0]).to_dict("records")
    assert (row["format"], row["shared_rate"], row["own_rate"], row["n"]) == ("E7M0", 0.01, 0.005, 2)
    assert (row["gap_shared"], row["gap_own"]) == (pytest.approx(0.7), pytest.approx(0.4))


@pytest.mark.parametrize(
    ("underflow", "sqnr", "causes", "phases"),
    [
        (0.8, 30.0, "underflow", "forward, backward"),
        (0.0, 12.0, "precision", "forward, backward"),
        (0.2, 30.0, "unknown", ""),
    ],
)
def test_a_losing_arm_gets_what_its_looks_show(
    tmp_path: Path, underflow: float, sqnr: float, causes: str, phases: str
) -> None:
    for seed in range(3):
        write_run(tmp_path, config("fp32", seed=seed), 2.0 + 0.01 * seed)
        write_run(tmp_path, config("e6m1", seed=seed), 2.2 + 0.012 * seed, underflow=underflow, sqnr=sqnr)
    loader = ExperimentDataLoader([tmp_path])
    (row,) = FailureAnalyzer(loader).classified.to_dict("records")
    assert (row["format"], row["causes"], row["phases"]) == ("E6M1", causes, phases)


def test_an_arm_without_a_gap_has_no_failure_mode(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, config("fp32", seed=seed), 2.0)
        write_run(tmp_path, config("e4m3", seed=seed), 2.0 + 0.01 * (seed - 1))
    loader = ExperimentDataLoader([tmp_path])
    assert FailureAnalyzer(loader).classified.empty
    assert FailureAnalyzer(loader).gaps["failed"].tolist() == [False]


def test_scopes_and_rules_that_differ_have_keys_and_labels_that_differ() -> None:
    every = dict.fromkeys(("weight", "activation", "grad_output"), "e4m3")
    grid, update = {"storage": "grid"}, {"step_rule": "manifold", "precondition": "update"}
    code = {"step_rule": "code", "storage": "grid", "rounding": "stochastic"}
    scopes: list[dict[str, Any]] = [
        {},
        *({"scaling": {"kind": kind}} for kind in ("delayed", "none", "mx", "mx_rceil")),
        {"scaling": {"kind": "static", "value": 0.5}},
        {"scaling": {"kind": "static", "value": 2.0}},
        {"scaling": {"power_of_two": False}},
        {"scaling": {"granularity": "row"}},
        {"scaling": {"granularity": "row", "power_of_two": False}},
        {"scaling": {"granularity": "block"}},
        {"scaling": {"granularity": "block", "block": 16}},
        {"scaling": {"weight": {"kind": "mx"}}},
        {"quantize": every | {"rounding": {"activation": "stochastic"}}},
        {"quantize": every | {"rounding": {"grad_output": "stochastic"}}},
        {"quantize": every | {"patterns": ["blocks.0.*"]}},
        {"quantize": every | {"layers": ["mlp"]}},
        {"quantize": every | {"compute": "native"}},
    ]
    rules: list[dict[str, Any]] = [
        {},
        {"rounding": "stochastic"},
        {"relative": True},
        *(grid | {"rounding": rounding} for rounding in ("nearest_even", "stochastic", "error_feedback")),
        code,
        code | {"rungs": 2},
        update,
        *(update | more for more in ({"stiffness": "shuffled"}, {"stiffness": "constant"}, {"floor": 0.1}, grid)),
        update | {"max_stiffness": 1.0},
        {"step_rule": "manifold", "precondition": "gradient"},
    ]
    for label, configs in (
        *((name, [{"quantize": every} | scope for scope in scopes]) for name in (scope_key, scope_label)),
        (rule_label, [{"quantize": every, "optimizer": rule} for rule in rules]),
    ):
        labels = [label(parse_config(each, source="test")) for each in configs]
        assert len(set(labels)) == len(configs), labels
    assert scope_label(parse_config({"quantize": every}, source="test")) == "weights + activations + gradients"
    assert rule_label(parse_config({}, source="test")) == "AdamW"
