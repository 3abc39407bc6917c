"""Arms with names: what tells one from another, and the page of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from records import DATA, config, write_run

from altgrad.analysis.effects import OWN
from altgrad.analysis.labels import arm_labels
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import paired_difference
from altgrad.config import ExperimentConfig
from altgrad.reports import tuning
from altgrad.reports.arms import arm_page_makers, arm_pages
from altgrad.reports.curves import by_step, curves, gap_by_step, losses_of
from altgrad.runs import RunWriter
from altgrad.site import PALETTE, ChartBlock, Page, Table
from altgrad.site.chart import fixed_svg

RECORDED = Path(__file__).resolve().parents[1] / "experiments" / "recorded"


def named(root: Path, *configs: ExperimentConfig, **options: Any) -> list[str]:
    """What the arms of these configs are called together, in their order."""
    arms = [write_run(root, each, **options).name for each in configs]
    loader = ExperimentDataLoader([root])
    of_run = dict(zip(loader.runs["run_id"], loader.runs["arm"], strict=True))
    labels = arm_labels(loader, dict.fromkeys(of_run.values()))
    return [labels[of_run[run]] for run in arms]


def test_every_recorded_arm_has_a_name_of_its_own_that_begins_with_its_format_and_rule() -> None:
    loader = ExperimentDataLoader([RECORDED])
    rows = loader.runs.drop_duplicates("arm").set_index("arm")
    for shown in (rows.index, rows.index[rows["role"] == "report"], rows.index[rows["format"] == "E4M3"]):
        labels = arm_labels(loader, shown)
        assert len(set(labels.values())) == len(shown) > 50
        assert [*labels] == list(shown)
        for arm, label in labels.items():
            assert label.startswith(f"{rows.at[arm, 'format']}, {rows.at[arm, 'rule']}")
            assert arm.rpartition("-")[2] not in label, "no id: every recorded arm differs in its config"


def test_an_arm_alone_is_its_format_and_rule_and_what_is_not_the_default_of_them(tmp_path: Path) -> None:
    weights = {"quantize": {"weight": "e4m3", "layers": ["head"]}}
    assert named(tmp_path / "a", config("e4m3")) == ["E4M3, AdamW"]
    assert named(tmp_path / "b", config("e4m3", **weights)) == ["E4M3, AdamW, weights only, only in head"]
    assert named(tmp_path / "c", config("e4m3", scaling={"kind": "none"})) == ["E4M3, AdamW, no scale"]


def test_arms_that_begin_alike_go_on_with_what_they_differ_in(tmp_path: Path) -> None:
    found = named(
        tmp_path,
        config("e4m3"),
        config("e4m3", max_steps=40),
        config("e4m3", lr=1e-2, max_steps=40),
        config("e4m3", model={"dim": 128}),
        config("e4m3", precondition="update"),
    )
    assert found == [
        "E4M3, AdamW; learning rate 0.003, 20 steps, 2 layers of 64",
        "E4M3, AdamW; learning rate 0.003, 40 steps",
        "E4M3, AdamW; learning rate 0.01",
        "E4M3, AdamW; learning rate 0.003, 20 steps, 2 layers of 128",
        "E4M3, ManifoldAdamW",
    ]


def test_what_has_no_words_is_said_as_key_and_value(tmp_path: Path) -> None:
    found = named(tmp_path, config("e4m3", clip_norm=0.5), config("e4m3", clip_norm=2.0, batch_size=8))
    assert found == ["E4M3, AdamW; batch_size=16", "E4M3, AdamW; batch_size=8"]
    assert named(tmp_path / "b", config("e4m3", clip_norm=0.5), config("e4m3", clip_norm=2.0)) == [
        "E4M3, AdamW; clip_norm=0.5",
        "E4M3, AdamW; clip_norm=2.0",
    ]


def test_what_a_table_says_elsewhere_is_left_out(tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3):
        write_run(tmp_path, config("e4m3", lr=lr, max_steps=40 if lr == 2e-3 else 20))
    loader = ExperimentDataLoader([tmp_path])
    labels = arm_labels(loader, loader.runs["arm"], but=("optimizer.learning_rate",))
    assert sorted(labels.values()) == ["E4M3, AdamW; 20 steps", "E4M3, AdamW; 40 steps"]


def test_arms_whose_configs_are_the_same_have_their_data_or_else_their_ids(tmp_path: Path) -> None:
    for data in (DATA, {"name": "a text of mine", "sha256": "cd" * 32}):
        write_run(tmp_path / "a", config("e4m3"), data=data)
    loader = ExperimentDataLoader([tmp_path / "a"])
    assert sorted(arm_labels(loader, loader.runs["arm"]).values()) == [
        "E4M3, AdamW; data a text of mine (cdcdcdcd)",
        "E4M3, AdamW; data licenses (abababab)",
    ]
    for end in ("00", "11"):
        write_run(tmp_path / "b", config("e4m3"), data={"name": "licenses", "sha256": "ab" * 31 + end})
    loader = ExperimentDataLoader([tmp_path / "b"])
    labels = arm_labels(loader, loader.runs["arm"])
    assert len(labels) == 2
    assert all(label == f"E4M3, AdamW; {arm.rpartition('-')[2]}" for arm, label in labels.items())


def test_runs_of_another_loop_are_told_apart_by_its_own_keys(tmp_path: Path) -> None:
    long = "x" * 5000
    first, second = named(tmp_path, *(config(name="mine", foreign={"note": f"{end}\u202e{long}"}) for end in "ab"))
    assert first.startswith("mine, FP32; note=")
    assert first.count("note=") == 1
    assert first != second
    assert len(first) < 200
    assert "\u202e" not in first


@pytest.fixture
def four(tmp_path: Path) -> ExperimentDataLoader:
    """FP32 and two formats with three seeds each, and one that fails."""
    for seed in range(3):
        write_run(tmp_path, config("fp32", seed=seed), 2.0 + 0.01 * seed)
        write_run(tmp_path, config("e4m3", seed=seed), 2.1 + 0.013 * seed * seed)
        write_run(tmp_path, config("e5m2", seed=seed), 2.2)
    write_run(tmp_path, config("e7m0", seed=0), status="failed")
    return ExperimentDataLoader([tmp_path])


def text(page: Page) -> str:
    return " ".join(str(block.text) for block in page.blocks if hasattr(block, "text"))


def test_a_page_leads_up_on_and_to_its_comparison(four: ExperimentDataLoader) -> None:
    pages = [
        page for page in arm_pages(four) if page.title in ("E4M3, AdamW", "E5M2, AdamW", "E7M0, AdamW", "FP32, AdamW")
    ]
    order = sorted(pages, key=lambda page: (page.title.startswith("FP32"), page.title))
    arms = [page.path.removeprefix("runs/") for page in order]
    middle, fp32 = text(order[1]), arms[3]
    assert middle.startswith('[Runs](altgrad:runs/index) / <a href="../?format=E5M2">E5M2</a> / `e5m2-')
    assert f"Previous: [E4M3, AdamW](altgrad:runs/{arms[0]}). Next: [E7M0, AdamW](altgrad:runs/{arms[2]})." in middle
    address = f"../../compare/?arms={arms[1]},{fp32}&amp;baseline={fp32}"
    assert f'<a href="{address}">Compare with the baseline</a>' in middle
    assert ["Previous" in text(page) for page in order] == [False, True, True, True]
    assert ["Next" in text(page) for page in order] == [True, True, True, False]
    assert ["Compare with" in text(page) for page in order] == [True, True, True, False]


def test_why_a_run_failed_is_in_the_first_lines_and_beside_its_status(four: ExperimentDataLoader) -> None:
    page = next(page for page in arm_pages(four) if page.title == "E7M0, AdamW")
    assert "Runs: 1 failed (nan_loss)." in text(page)
    (table,) = [block for block in page.blocks if isinstance(block, Table) and "Status" in str(block.columns)]
    assert "failed: nan_loss" in str(table.rows)


def test_a_page_is_made_anew_when_what_a_neighbour_is_called_changes(tmp_path: Path) -> None:
    def keys() -> dict[str, str]:
        makers = [maker for maker in arm_page_makers(ExperimentDataLoader([tmp_path])) if maker.key]
        return {maker().title: maker.key for maker in makers}

    write_run(tmp_path, config("e4m3"))
    write_run(tmp_path, config("e5m2"))
    before = keys()
    assert set(before) == {"E4M3, AdamW", "E5M2, AdamW"}
    write_run(tmp_path, config("e5m2", max_steps=40))
    after = keys()
    assert set(after) == {"E4M3, AdamW", "E5M2, AdamW; 20 steps", "E5M2, AdamW; 40 steps"}
    assert before["E4M3, AdamW"] != after["E4M3, AdamW"]


def write_losses(root: Path, fmt: str, seed: int, losses: dict[int, float], study: str = "a") -> None:
    """A run with these validation losses by step."""
    writer = RunWriter.create(
        root, config(fmt, seed=seed, study=study), data_fingerprint=DATA, environment={"python": "3"}
    )
    for step, loss in losses.items():
        writer.log(step, loss=loss, val_loss=loss)
    writer.finish({})


def test_differences_are_of_one_seed_at_one_step_with_their_interval(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    losses = {(fmt, seed): draw.normal(2, 0.1, 3) for fmt in ("fp32", "e4m3") for seed in range(5)}
    for (fmt, seed), values in losses.items():
        if (fmt, seed) != ("fp32", 4):
            write_losses(tmp_path, fmt, seed, dict(zip((0, 10, 20), values, strict=True)))
    write_losses(tmp_path, "e4m3", 9, {0: 9.0, 10: 9.0}, "a-tuning")
    write_losses(tmp_path, "fp32", 9, {0: 1.0, 10: 1.0}, "a-tuning")
    loader = ExperimentDataLoader([tmp_path])
    first, second = (
        losses_of(loader, next(arm for arm in loader.runs["arm"] if arm.startswith(fmt))) for fmt in ("e4m3", "fp32")
    )
    found = gap_by_step(first, second)
    assert found["step"].tolist() == [0, 10, 20]
    for place, row in enumerate(found.itertuples()):
        pairs = [[losses[fmt, seed][place] for seed in range(4)] for fmt in ("e4m3", "fp32")]
        estimate = paired_difference(*map(pd.Series, pairs))
        assert (row.mean, row.low, row.high, row.n) == pytest.approx((estimate.mean, estimate.low, estimate.high, 4))


def test_arms_of_a_sweep_are_not_among_those_without_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "MOST_PAGES", 2)
    for study, count in (("mine", 2), ("a-tuning", 3)):
        for number in range(count):
            write_run(tmp_path, config("e4m3", lr=0.001 * (number + 1) + 0.1 * count, study=study))
    index = arm_pages(ExperimentDataLoader([tmp_path]))[0]
    assert "in the searchable table alone" not in str(index), "each has a page, or a table of a study's"


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": 10**400},
        {"multiply_adds": 8},
        {"multiply_adds": 8, "rounded": 1e300},
        {"left_out": [{"name": "x", "why": "y", "count": 1, "parameters": 10**400, "multiply_adds": None}]},
    ],
)
def test_a_coverage_that_nothing_can_have_is_not_shown_as_one(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = write_run(tmp_path, config("e4m3")) / "run.json"
    run = json.loads(path.read_text())
    run["events"].append({"kind": "coverage", "step": 1, "parameters": 8, "quantized": 0.5} | wrong)
    path.write_text(json.dumps(run))
    assert all("What is quantized" not in str(page) for page in arm_pages(ExperimentDataLoader([tmp_path])))


@pytest.mark.parametrize(("last", "whole"), [(20, True), (15, False)])
def test_a_mean_is_drawn_only_where_the_same_seeds_stand_at_every_point(tmp_path: Path, last: int, whole: bool) -> None:
    for seed in range(3):
        write_losses(tmp_path, "e4m3", seed, {0: 3.0, 10: 2.5, 20 if seed else last: 2.0 + seed})
    loader = ExperimentDataLoader([tmp_path])
    losses, none = losses_of(loader, loader.runs["arm"].iloc[0]), losses_of(loader, None)
    drawn = curves(losses, none, False, OWN, PALETTE[0])
    (block,) = drawn.chart
    assert isinstance(block, ChartBlock)
    svg = fixed_svg(block.chart).decode()
    means = by_step(losses)["mean"]
    assert drawn.mean == whole == bool(means.notna().all())
    lines = re.findall(rf'<path [^>]*stroke="{PALETTE[0]}" stroke-width="([\d.]+)"', svg)
    assert lines == (["1.6"] if whole else ["0.8"] * 3)
    assert ("fill-opacity" in svg) == whole
    said = (
        "At step 20 the 3 runs of this arm have 3.000 (2.000 to 4.000), at step 0 they had 3.000."
        if whole
        else "A line for each of the 3 runs"
    )
    assert said in block.chart.description


def test_the_losses_of_the_table_of_arms_have_no_sign(tmp_path: Path) -> None:
    for seed in range(3):
        write_losses(tmp_path, "e4m3", seed, {10: 2.5, 20: 2.0 + seed / 10})
    index = arm_pages(ExperimentDataLoader([tmp_path]))[0]
    (table,) = (block for block in index.blocks if isinstance(block, Table))
    (cell,) = (str(cell) for cell in table.rows[0] if str(cell).startswith("["))
    assert re.fullmatch(r"\[\d\.\d+, \d\.\d+\]", cell)


def test_a_baseline_shares_evaluation_and_seeds_and_the_page_says_how_much_its_loss_reads(tmp_path: Path) -> None:
    more = {"final_eval_characters": 50_000}
    write_run(tmp_path, config(seed=0), 2.0)
    for seed in range(3):
        write_run(tmp_path, config(seed=seed, lr=1e-2, eval_every=5), 2.0)
        write_run(tmp_path, config(seed=seed, lr=1e-2, **more), 2.0, final=2.1 + seed / 100)
        write_run(tmp_path, config("e4m3", seed=seed, **more), 2.0, final=2.15 + seed / 100)
    pages = [text(page) for page in arm_pages(ExperimentDataLoader([tmp_path])) if page.path.startswith("runs/e4m3")]
    assert len(pages) == 1
    assert "paired by seed: **+0.0500**" in re.sub(r" nats per character", "", pages[0])
    assert "n = 3" in pages[0]
    assert "final loss over 50,000 characters" in pages[0].partition("paired by seed")[0]
    assert "reads at least 50,000 characters" in pages[0]
    assert "are of 10,240 characters each" in pages[0]


def test_losses_of_different_amounts_of_text_are_not_subtracted(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, config(seed=seed), 2.0)
        write_run(tmp_path, config("e4m3", seed=seed, final_eval_characters=50_000), 2.0, final=2.15)
    (page,) = (page for page in arm_pages(ExperimentDataLoader([tmp_path])) if page.path.startswith("runs/e4m3"))
    assert "paired by seed" not in text(page)
    assert "Compare with the baseline" in text(page)
