"""The pages of number formats against ml_dtypes and counting by hand; light drawings; sweeps on one page a study."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from records import config, full_look, write_matrix, write_run

from altgrad.analysis import ExperimentDataLoader
from altgrad.formats import SPLITS_8BIT, FloatFormat
from altgrad.reports import arm_pages, format_pages
from altgrad.reports.formats import PAGES, exact_text
from altgrad.site import (
    Axis,
    Chart,
    ChartBlock,
    Details,
    Page,
    PageRef,
    Paragraph,
    Sketch,
    Table,
    fixed_svg,
    link,
    write_folder,
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    loader = ExperimentDataLoader([tmp_path_factory.mktemp("none")])
    return {page.path.removeprefix("formats/"): page for page in format_pages(loader)}


def tables(page: Page) -> dict[str, Table]:
    return {block.id or str(block.caption): block for block in page.blocks if isinstance(block, Table)}


def test_there_is_a_page_for_every_split_fnuz_mx_and_16_bit_format(pages: dict[str, Page]) -> None:
    wanted = {fmt.name for fmt in SPLITS_8BIT}
    wanted |= {"e4m3fnuz", "e5m2fnuz", "e3m2", "e2m3", "e2m1", "e8m0", "fp16", "bf16", "index"}
    assert wanted <= set(pages)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2"), ("e4m3fnuz", "float8_e4m3fnuz"),
        ("e5m2fnuz", "float8_e5m2fnuz"), ("e4m3b11fnuz", "float8_e4m3b11fnuz"), ("e8m0", "float8_e8m0fnu"),
        ("e2m1", "float4_e2m1fn"), ("e2m3", "float6_e2m3fn"), ("e3m2", "float6_e3m2fn"),
    ],
)  # fmt: skip
def test_the_code_table_has_the_values_of_ml_dtypes(pages: dict[str, Page], name: str, kind: str) -> None:
    data = tables(pages[name])["codes"].data
    assert data is not None
    codes = np.arange(len(data), dtype=np.uint8)
    expected = codes.view(getattr(ml_dtypes, kind)).astype(np.float64)
    shown = [float(text.replace("∞", "inf").replace("−", "-")) for text in data["value"]]
    np.testing.assert_array_equal(shown, expected)
    assert data["code"].map(lambda text: int(text, 16)).tolist() == data["bits"].map(lambda text: int(text, 2)).tolist()


def test_a_table_of_eight_bits_is_16_by_16_and_16_bits_have_none(pages: dict[str, Page]) -> None:
    codes = tables(pages["e5m2"])["codes"]
    assert (len(codes.rows), len(codes.columns)) == (16, 17)
    assert "codes" not in tables(pages["bf16"])


@pytest.mark.parametrize("fmt", PAGES, ids=lambda fmt: fmt.name)
def test_distinct_values_and_special_codes_are_those_that_decoding_counts(pages: dict[str, Page], fmt: object) -> None:
    rows = {row[0]: row[1] for row in tables(pages[fmt.name])[f"Constants of {fmt.label}"].rows}  # type: ignore[attr-defined]
    values = fmt.values  # type: ignore[attr-defined]
    assert rows["Distinct finite values"] == len(set(values[np.isfinite(values)] + 0.0))
    assert (rows["Infinities"], rows["NaN"]) == (np.isinf(values).sum(), np.isnan(values).sum())


def test_e1m6_is_said_to_be_e0m7_with_another_scale(pages: dict[str, Page], tmp_path: Path) -> None:
    write_folder(pages.values(), tmp_path, site_root="../")
    assert "E1M6 = 4 x [E0M7](e0m7.md)" in (tmp_path / "e1m6.md").read_text()
    assert "E4M3 = 2 x P3109" in (tmp_path / "e4m3.md").read_text()
    assert "Pending: no recorded run uses E6M1." in (tmp_path / "e6m1.md").read_text()


def test_every_drawing_is_small_well_formed_xml(pages: dict[str, Page]) -> None:
    for page in pages.values():
        for block in page.blocks:
            if isinstance(block, ChartBlock):
                svg = fixed_svg(block.chart)
                ElementTree.fromstring(svg)
                assert len(svg) < 60_000, (page.path, block.chart.id)
                assert b"nan" not in svg


def test_the_codes_in_use_are_those_of_the_recorded_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, config("e4m3", seed=seed), looks=full_look(20, number=5, codes={0x38: 6.0, 0x00: 2.0}))
    page = next(page for page in format_pages(ExperimentDataLoader([tmp_path])) if page.path == "formats/e4m3")
    (chart,) = [b.chart for b in page.blocks if isinstance(b, ChartBlock) and b.chart.id == "codes-e4m3"]
    used = chart.data.loc[chart.data["mlp"] > 0, ["value", "mlp"]].to_numpy().tolist()
    assert used == [[0.0, 0.25], [1.0, 0.75]]


def test_codes_are_those_of_the_arm_that_changes_nothing_but_its_format_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("altgrad.analysis.loader.rule_label", lambda config: f"rule {config.optimizer.step_rule}")
    others = {"scaling": {"granularity": "row"}}, {"precondition": "update"}, {}
    for more in others:
        for seed in range(2 if more else 1):  # the others have more runs
            write_run(tmp_path, config("e4m3", seed=seed, **more), looks=full_look(20, number=5))  # type: ignore[arg-type]
    loader = ExperimentDataLoader([tmp_path])
    assert loader.runs["arm"].value_counts().tolist() == [2, 2, 1]
    page = next(page for page in format_pages(loader) if page.path == "formats/e4m3")
    (said,) = [b.text for b in page.blocks if isinstance(b, Paragraph) and "from arm" in str(b.text)]
    assert loader.runs["arm"].value_counts().index[-1] in said


def value_of(text: str) -> Fraction:
    """What a cell of a table of codes says."""
    factor, _, power = text.replace("−", "-").replace("2^", "1·2^", text.startswith(("2^", "−2^"))).partition("·2^")
    return Fraction(factor) * Fraction(2) ** int(power or 0)


@pytest.mark.parametrize("fmt", [fmt for fmt in PAGES if fmt.bits <= 8], ids=lambda fmt: fmt.name)
def test_every_finite_value_in_a_table_of_codes_is_exact(fmt: FloatFormat, pages: dict[str, Page]) -> None:
    table = tables(pages[fmt.name])["codes"]
    shown = [str(cell) for row in table.rows for cell in row[1:]]
    assert len(shown) == 1 << fmt.bits
    for value, text in zip(fmt.values.tolist(), shown, strict=True):
        if math.isfinite(value):
            assert value_of(text) == Fraction(value)
            assert text.startswith("−") == (math.copysign(1.0, value) < 0)
            assert len(text) <= 13


def test_an_exact_value_is_decimal_where_that_is_short() -> None:
    values = (1.125, -0.015625, 2.0**-9, 3 * 2.0**-9, -5 * 2.0**40, 57344.0, 0.0, -0.0, math.inf)
    assert [exact_text(value) for value in values] == [
        *("1.125", "−0.015625", "2^−9", "3·2^−9", "−5·2^40", "57344", "0", "−0", "∞"),
    ]


def test_a_format_has_its_own_gap_its_place_and_why_it_fails(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs")
    loader = ExperimentDataLoader([tmp_path / "runs"])
    write_folder(format_pages(loader), tmp_path, site_root="../")
    text = {name: (tmp_path / f"{name}.md").read_text() for name in ("e4m3", "e7m0", "e2m5")}
    gaps = [paired_gap(loader, name) for name in ("E3M4", "E4M3", "E5M2", "E7M0")]
    place = sorted(gaps).index(gaps[1]) + 1
    assert f"E4M3 ends {gaps[1]:.3f} nats per character above FP32 (95% CI " in text["e4m3"]
    assert f"n = 5 seeds).** That is place {place} of the 4 formats of 8 bits" in text["e4m3"]
    assert "It does not fail there" in text["e4m3"]
    assert f"E7M0 ends {gaps[3]:.3f} nats" in text["e7m0"]
    assert "That is place 4 of the 4 formats" in text["e7m0"]
    assert "Cause, by what its layers show: it lacks precision" in text["e7m0"]
    assert "weights: at worst 15.0 dB of SQNR" in text["e7m0"]
    assert "Pending: no recorded comparison has E2M5." in text["e2m5"]
    assert all(f"explorer/index.html?on={name})" in page for name, page in text.items())


def paired_gap(loader: ExperimentDataLoader, name: str) -> float:
    """By hand: the mean difference of the final losses on the same seeds, of AdamW."""
    runs = loader.runs[loader.runs["rule"] == "AdamW"].set_index(["format", "seed"])["final_val_loss"]
    return float((runs.loc[name] - runs.loc["FP32"]).mean())


def test_without_a_reason_in_the_layers_a_failure_has_none(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs", config("fp32", seed=seed), 2.0 + 0.01 * seed)
        write_run(tmp_path / "runs", config("e6m1", seed=seed), 2.2 + 0.012 * seed, sqnr=30.0)
    write_folder(format_pages(ExperimentDataLoader([tmp_path / "runs"])), tmp_path, site_root="../")
    assert "Cause, by what its layers show: not known; no layer" in (tmp_path / "e6m1.md").read_text()


def test_text_in_a_drawing_stays_text() -> None:
    def draw(sketch: Sketch) -> None:
        sketch.text(0, 9, "<script>x</script> & \u202e")

    svg = fixed_svg(Chart("a", "T", "D", pd.DataFrame({"x": [1]}), sketch=draw)).decode()
    assert "&lt;script&gt;x&lt;/script&gt; &amp; ⟨U+202E⟩" in svg


def test_a_line_breaks_where_a_value_is_missing_and_axes_have_round_marks() -> None:
    sketch = Sketch(10, 10)
    sketch.line([(0, 0), (1, 1), (2, math.nan), (3, 3), (4, 4)], "#000000")
    assert re.search(r'd="M0 0L1 1M3 3L4 4"', sketch.svg())
    assert Axis(0.0, 300.0, 0, 1).marks() == [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]
    assert Axis(0.003, 2.0, 0, 1, log=True).marks() == [0.01, 0.1, 1.0]
    assert math.isnan(Axis(1.0, 10.0, 0, 1, log=True)(0.0))
    assert Axis(1.0, 100.0, 0, 10, log=True)(10.0) == pytest.approx(5)


def sweep(root: Path) -> ExperimentDataLoader:
    for rate, loss in ((0.001, 2.4), (0.002, 2.1), (0.004, 2.3)):
        for seed in (100, 101):
            write_run(root, config("e4m3", seed=seed, lr=rate, study="x-tuning"), loss + seed / 1e4)
    write_run(root, config("e4m3", seed=1, lr=0.002, study="x"), 2.1)
    return ExperimentDataLoader([root])


def test_a_tuning_study_has_one_page_and_every_run_of_it_an_anchor_there(tmp_path: Path) -> None:
    loader = sweep(tmp_path / "runs")
    found = arm_pages(loader)
    assert sorted(page.path.split("-")[0] for page in found if page.path != "compare/index") == [
        "runs/e4m3",
        "runs/index",
        "runs/study",
    ]
    linking = Page(
        "reports/a",
        "A",
        tuple(Paragraph(link("x", PageRef(f"runs/{run.arm}", run.run_id))) for run in loader.runs.itertuples()),
        moved=found[0].moved,
    )
    write_folder([*found, linking], tmp_path / "out", site_root="../")
    for name, anchor in re.findall(r"\]\(([\w-]+\.md)#([\w-]+)\)", (tmp_path / "out" / "a.md").read_text()):
        assert f'id="{anchor}"' in (tmp_path / "out" / name).read_text()
    study = next(page for page in found if page.path == "runs/study-x-tuning")
    best = tables(study)["best"]
    shown = [str(cell.text if hasattr(cell, "text") else cell) for cell in best.rows[0]]
    assert shown == ["E4M3, AdamW", "0.002", "2.1101", "no"]


def test_the_gap_of_an_arm_is_paired_and_leaves_tuning_seeds_out(tmp_path: Path) -> None:
    for seed, gap in ((1, 0.25), (2, 0.5), (100, 9.0)):
        study = "a-tuning" if seed == 100 else "a"
        write_run(tmp_path, config("fp32", seed=seed, study=study), 2.0 + seed / 100)
        write_run(tmp_path, config("e4m3", seed=seed, study=study), 2.0 + seed / 100 + gap)
    page = next(page for page in arm_pages(ExperimentDataLoader([tmp_path])) if "/e4m3" in page.path)
    (told,) = (str(block.text) for block in page.blocks if "paired by seed: " in str(getattr(block, "text", "")))
    assert "**+0.3750 nats per character**" in told
    assert "n = 2" in told


def test_the_curves_of_an_arm_are_in_one_file_with_null_for_what_is_no_number(tmp_path: Path) -> None:
    write_run(tmp_path, config("e4m3", seed=1))
    write_run(tmp_path, config("e4m3", seed=2), status="failed")
    page = next(page for page in arm_pages(ExperimentDataLoader([tmp_path])) if "/e4m3" in page.path)
    (curves,) = [json.loads(each.content) for each in page.downloads if each.name == "curves.json"]
    assert [run["status"] for run in curves["runs"]] == ["finished", "failed"]
    assert curves["runs"][1]["loss"][-1] is None
    assert len(curves["runs"][0]["step"]) == len(curves["runs"][0]["val_loss"]) == 21


def test_a_format_names_the_settings_that_fail_with_weights_on_the_grid_apart(tmp_path: Path) -> None:
    grid = {"storage": "grid", "rounding": "nearest_even", "step_rule": "adamw"}
    for seed in range(3):
        for own, loss in ((config("fp32", seed=seed), 2.0), (config("e4m3", seed=seed), 2.01)):
            write_run(tmp_path / "runs", own, loss + seed / 100)
        write_run(tmp_path / "runs", config("e4m3", seed=seed, optimizer=grid), 2.2 + seed / 100)
    write_folder(format_pages(ExperimentDataLoader([tmp_path / "runs"])), tmp_path, site_root="../")
    text = (tmp_path / "e4m3.md").read_text()
    assert "It does not fail there" in text
    assert "With weights kept on the grid, or another step rule, it fails in 1 recorded setting:" in text
    assert "With AdamW and float32 master weights it fails" not in text


def test_the_arms_of_a_format_have_names_of_their_own_and_their_studies(tmp_path: Path) -> None:
    for rate in (0.001, 0.002):
        write_run(tmp_path, config("e4m3", lr=rate))
    (page,) = (page for page in format_pages(ExperimentDataLoader([tmp_path])) if page.path == "formats/e4m3")
    blocks = [inner for block in page.blocks for inner in (block.blocks if isinstance(block, Details) else (block,))]
    (table,) = (block for block in blocks if isinstance(block, Table) and str(block.caption).startswith("Arms"))
    names = [str(row[0].text) for row in table.rows]
    assert sorted(names) == ["E4M3, AdamW; learning rate 0.001", "E4M3, AdamW; learning rate 0.002"]
    assert [getattr(each, "title", each) for each in table.columns][-1] == "Studies"
