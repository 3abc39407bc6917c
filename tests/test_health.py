"""The health of the layers on pages: heat maps show every value, old records get what they have, packs are whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from records import LAYERS, Row, config, full_look, write_matrix, write_run

from altgrad.analysis import ExperimentDataLoader
from altgrad.config import OPERAND_NAMES, parse_config
from altgrad.formats import get_format
from altgrad.reports import ReportGenerator, arm_pages, health
from altgrad.reports.compare import health_by_type
from altgrad.reports.failure_modes import failure_modes_page
from altgrad.reports.heat_map import Levels, heat_map
from altgrad.runs import Failure, load_runs, pack_study, record
from altgrad.runs.pack import is_histogram
from altgrad.site import HEAT, MUTED, Chart, ChartBlock, Heading, Page, Table, fixed_svg, write_folder
from altgrad.site.render import Dialect, files, render
from altgrad.site.sketch import INCH, Sketch

PANELS = {"weight": "weights", "grad_output": "gradients"}
SITE = Dialect(lambda reference: f"{reference.path}#{reference.anchor}", whole=True)


def cells(values: np.ndarray) -> pd.DataFrame:
    """[layers, 2, looks] as rows of the table that a heat map is drawn from; NaN rows are left out."""
    return pd.DataFrame(
        [
            {"layer": f"layer {row}", "operand": operand, "step": 10 * look + 1, "value": values[row, panel, look]}
            for row in range(values.shape[0])
            for panel, operand in enumerate(PANELS)
            for look in range(values.shape[2])
            if not math.isnan(values[row, panel, look])
        ]
    )


class Recorder(Sketch):
    """Keeps the boxes of each colour as they were given."""

    def __init__(self, chart: Chart) -> None:
        super().__init__(chart.width * INCH, chart.height * INCH)
        self.boxes: dict[str, np.ndarray] = {}
        assert chart.sketch is not None
        chart.sketch(self)

    def rectangles(self, boxes: Iterable[tuple[float, float, float, float]], colour: str) -> None:
        self.boxes[colour] = np.array(list(boxes)).reshape(-1, 4)


def drawn_area(chart: Chart) -> dict[str, float]:
    """The area inside of the map that each colour covers, in cells of one row and the width of one of two panels."""
    drawing = Recorder(chart)
    legend = drawing.height - 0.6 * INCH
    inside = {colour: boxes[boxes[:, 1] < legend] for colour, boxes in drawing.boxes.items()}
    every = np.concatenate(list(inside.values()))
    panel = (every[:, 2].max() - every[:, 0].min()) / 2.06
    return {
        colour: float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()) / panel / (0.88 * 0.17 * INCH)
        for colour, boxes in inside.items()
        if len(boxes)
    }


def level_by_hand(value: float, levels: Levels) -> int:
    rising = levels.edges[0] < levels.edges[-1]
    return sum(value >= edge if rising else value < edge for edge in levels.edges)


@pytest.mark.parametrize("levels", [health.LOST, health.SQNR, health.STALL, health.RANK])
def test_every_value_is_in_the_level_whose_legend_says_so(levels: Levels) -> None:
    assert len(levels.legend) == len(HEAT) == len(levels.edges) + 1
    values = np.array([0.0, -0.0, 1e-300, 1.0, 60.0, *levels.edges, *np.nextafter(levels.edges, -np.inf)])
    assert levels.of(values).tolist() == [level_by_hand(value, levels) for value in values]
    assert levels.of(np.array([math.nan])).tolist() == [-1]


@pytest.mark.parametrize("levels", [health.LOST, health.SQNR])
def test_the_drawing_covers_each_value_with_the_colour_of_its_level(levels: Levels) -> None:
    random = np.random.default_rng(0)
    values = np.where(random.random((7, 2, 9)) < 0.2, 0.0, random.lognormal(-4.0, 3.0, (7, 2, 9)))
    values = values * 1000 if levels is health.SQNR else values
    values[3, 1, 4] = math.nan
    areas = drawn_area(heat_map("h", "T", cells(values), levels, PANELS))
    counts = np.bincount([level_by_hand(value, levels) for value in values[~np.isnan(values)]], minlength=6)
    for colour, count in zip(HEAT, counts, strict=True):
        assert areas[colour] == pytest.approx(count / 9), colour
    assert areas[MUTED] == pytest.approx(1 / 9 * 0.06 / 0.88)


def test_an_operand_that_a_layer_does_not_have_is_not_drawn_as_missing() -> None:
    values = np.full((2, 2, 5), 0.5)
    values[0, 1] = math.nan
    chart = heat_map("h", "T", cells(values), health.LOST, PANELS)
    assert MUTED not in drawn_area(chart)
    assert "missing" not in chart.description


def test_a_heat_map_says_in_words_which_layers_are_worst_and_what_is_missing() -> None:
    values = np.zeros((3, 2, 4))
    values[2, 1, 3], values[0, 0, 1], values[1, 1, 2] = 0.75, 0.25, math.nan
    said = heat_map("h", "T", cells(values), health.LOST, PANELS, "Run x.").description
    assert said.startswith("Run x. 3 layers at 4 looks from step 1 to 31, for weights and gradients.")
    assert "Worst: layer 2 gradients 75% at step 31; layer 0 weights 25% at step 11; " in said
    assert "1 values are missing (not recorded)." in said


def test_of_many_looks_and_layers_the_worst_are_drawn() -> None:
    values = np.zeros((64, 2, 500))
    values[50, 1, 333] = 0.9
    chart = heat_map("h", "T", cells(values), health.LOST, PANELS)
    assert "The 40 worst of 64 layers are drawn." in chart.description
    assert "500 looks share 60 columns; each shows the worst." in chart.description
    areas = drawn_area(chart)
    assert areas[HEAT[5]] == pytest.approx(1 / 60)
    assert areas[HEAT[0]] == pytest.approx(80 - 1 / 60)
    assert len(chart.data) == 128, "the data have every layer"
    assert len(chart.data.columns) == 502


def test_a_heat_map_is_small_and_the_same_bytes_every_time() -> None:
    values = np.random.default_rng(1).lognormal(-4.0, 2.0, (10, 2, 31)).clip(0, 1)
    chart = heat_map("h", "T", cells(values), health.LOST, PANELS)
    assert fixed_svg(chart) == fixed_svg(chart)
    assert len(fixed_svg(chart)) < 60_000, "620 values of noise, the worst case: nothing merges"
    calm = heat_map("h", "T", cells(np.full((10, 2, 31), 0.02)), health.LOST, PANELS)
    assert len(fixed_svg(calm)) < 9_000


def single(rows: list[Row]) -> list[Row]:
    """Rows whose values are float32, which is what a pack keeps."""
    return [(*row[:5], float(np.float32(row[5]))) for row in rows]


def looks(count: int = 6, **more: Any) -> list[Row]:
    return [row for number in range(count) for row in full_look(max(1, 2 * number), number=number, **more)]


def page_of(loader: ExperimentDataLoader, index: int = 1) -> Page:
    return arm_pages(loader)[index]


def flat(blocks: Iterable[Any]) -> Iterator[Any]:
    """All blocks, with those that are folded away."""
    for block in blocks:
        yield block
        yield from flat(getattr(block, "blocks", ()))


def charts(page: Page) -> dict[str, Chart]:
    return {block.chart.id: block.chart for block in flat(page.blocks) if isinstance(block, ChartBlock)}


def tables(page: Page) -> dict[str, Table]:
    return {block.id: block for block in flat(page.blocks) if isinstance(block, Table)}


def data_of(page: Page) -> dict[str, Any]:
    """What the script of an arm's page draws of its layers; empty where there is nothing."""
    (content,) = [download.content for download in page.downloads if download.name == "curves.json"]
    found: dict[str, Any] = json.loads(content).get("layers", {})
    return found


def by_id(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in found}


def cell(found: dict[str, Any], figure: str, panel: str, layer: str, step: int) -> Any:
    """A figure over time; "none" where its layer has nothing."""
    drawn = by_id(found["figures"])[figure]
    row = dict(drawn["panels"])[panel][[name for name, _ in found["layers"]].index(layer)]
    return "none" if row is None else row[drawn["steps"].index(step)]


def test_the_page_of_a_run_has_everything_that_a_look_records_for_its_script(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, config("e4m3", seed=seed), looks=looks(worse=0.1 * seed))
    page = page_of(ExperimentDataLoader([tmp_path]))
    found = data_of(page)
    assert list(charts(page)) == ["loss"], "the only drawing on the page"
    assert "6 looks from step 1 to 10; means over 2 runs." in render(page, SITE)
    assert list(by_id(found["figures"])) == ["underflow", "sqnr", "stall", "rank", "gradients"]
    assert list(by_id(found["codes"])) == ["codes-e4m3"]
    assert found["zero"] == ["Overflow"]
    assert cell(found, "underflow", "weights", "head", 10) == pytest.approx(0.11), "of 0.06 and 0.16"
    assert cell(found, "underflow", "activations", "embedding", 10) == "none"
    shown = by_id(found["tables"])
    assert list(shown) == ["health", "health-weights", "health-gradients", "health-step", "health-ulps"]
    assert [title for title, _ in shown["health"]["columns"]] == [
        "Layer", "Operand", "Amax", "Scale", "Underflow", "SQNR (dB)", "Dead", "Codes used", "Entropy (bits)",
    ]  # fmt: skip
    assert shown["health"]["rows"][0][:2] == ["embedding", "weights"], "operands in order, layers in the model's order"
    assert "(mean over 2 runs, step 10)" in shown["health"]["caption"]
    assert "NaN, infinite and Overflow: 0 everywhere" in shown["health"]["caption"]
    assert max(len(table["columns"]) for table in shown.values()) <= 10
    assert [sum(row[2:]) for row in shown["health-ulps"]["rows"]] == [1.0] * len(LAYERS)


OF_ROUNDING = ("scale", "overflow", "underflow", "sqnr_db")


@pytest.mark.parametrize(
    ("study", "arm"), [("pilot-formats", "e7m0-wag"), ("controls", "e4m3-wag-manifold-update-c"), ("controls", "fp32")]
)
def test_every_number_about_the_layers_is_in_the_file_of_its_arm(study: str, arm: str) -> None:
    """Means over the runs, found again by pandas from the records; and each run that failed, by itself.

    Of operands that are not rounded, there is nothing of rounding.
    """
    rounded, called = arm != "fp32", "" if arm != "fp32" else ", not quantized"
    whole = ExperimentDataLoader([Path(__file__).parents[1] / "experiments/recorded" / study])
    loader = whole.of_arms([next(name for name in whole.runs["arm"].unique() if name.startswith(arm))])
    found, finished = data_of(page_of(loader)), loader.runs["status"] == "finished"
    ids, failed = (loader.runs.loc[which, "run_id"].tolist() for which in (finished, ~finished))
    assert [each["run"] for each in found["alone"]] == failed
    for one, drawn in [(ids, found), *zip(([run_id] for run_id in failed), found["alone"], strict=True)]:
        layers = pd.concat([loader.records[run_id].layers for run_id in one])
        assert_over_time(layers[rounded | ~layers["statistic"].isin(OF_ROUNDING)], drawn)
    last = loader.last_look(ids)
    last = last[rounded | ~last["statistic"].isin(OF_ROUNDING)]
    shown = {
        (name, row[0], *([row[1]] if name == "health" else [])): dict(zip(titles(table), row, strict=True))
        for name, table in by_id(found["tables"]).items()
        for row in table["rows"]
    }
    asked = 0
    for end, operands, statistics in health.SUBJECTS:
        mine = last[last["operand"].isin(operands) & last["statistic"].isin(statistics)]
        for row in mine.itertuples():
            place = (f"health{end}", row.layer, *([] if end else [OPERAND_NAMES[row.operand] + called]))
            title = health.STATISTICS[row.statistic][0]
            assert shown.get(place, {}).get(title, 0.0) == pytest.approx(row.value, rel=1e-6, abs=0), place
            asked += 1
    assert asked > 80
    assert {title for table in found["tables"] for title, _ in table["columns"]}.isdisjoint(
        () if rounded else ("Scale", "Overflow", "Underflow", "SQNR (dB)", "Stall ratio")
    )
    codes = last[is_histogram(last)]
    assert len(found["codes"]) == codes["operand"].nunique()
    for chart in found["codes"]:
        values, shares = chart["values"], dict(chart["shares"])
        fmt = get_format(chart["id"].rpartition("-")[2])
        counts = codes.assign(number=[fmt.decode(int(name.removeprefix("code_"), 16)) for name in codes["statistic"]])
        counts = counts.dropna(subset="number").groupby(["layer_type", "number"])["value"].sum()
        for (kind, number), count in counts.items():
            share = count / counts[kind].sum()
            assert shares[kind][values.index(pytest.approx(number, rel=1e-6))] == pytest.approx(share, rel=1e-6)


def test_a_layer_that_is_not_quantized_is_called_so_and_has_no_figure_of_rounding(tmp_path: Path) -> None:
    """A recipe keeps head and embedding wide; where the config states no format, the record of the coverage says it."""
    shown = {"amax": 2.0, "scale": 1.0, "underflow": 0.0, "overflow": 0.0}
    rows = [(0, name, name, "weight", key, value) for name in ("mlp", "head") for key, value in shown.items()]
    rows += [(0, name, name, "update", "norm_l2", 1.0) for name in ("mlp", "head")]
    stated = {
        "quantize": {"weight": "e4m3", "activation": "e4m3", "grad_output": "e4m3", "layers": ["attention", "mlp"]}
    }
    covered = {"parameters": 8, "quantized": 0.5, "left_out": [], "wide": ["head"]}
    for name, given, event in (("stated", stated, {}), ("recorded", {"lr": 1}, covered)):
        with record(tmp_path / name, name=name, config=given, seed=0) as run:
            run.log(0, loss=1.0)
            run.log_layers(rows)
            if event:
                run.event("coverage", 0, **event)
            run.finish()
        loader = ExperimentDataLoader([tmp_path / name])
        found = data_of(page_of(loader))
        tables = by_id(found["tables"])
        (first, second), scale = tables["health"]["rows"], titles(tables["health"]).index("Scale")
        assert (first[:2], first[scale]) == (["mlp", "weights"], 1.0), name
        assert (second[:2], second[scale]) == (["head", "weights, not quantized"], None), name
        assert [row[1] for row in tables["health-step"]["rows"]] == ["mlp", "head, not quantized"]
        last = health.last_rounded(loader, loader.runs["arm"].iloc[0], loader.runs["run_id"])
        assert {kind for _, _, kind, _ in health_by_type(last)} == {"mlp"}


def titles(table: dict[str, Any]) -> list[str]:
    return [title.partition(" (step")[0] for title, _ in table["columns"]]


def assert_over_time(layers: pd.DataFrame, found: dict[str, Any]) -> None:
    """That every mean over the runs of every figure of every layer at every step is there, and nothing else is."""
    keys, nothing = ["statistic", "operand", "layer", "step"], pd.Series(dtype=float)
    means = layers.groupby(keys)["value"].mean()
    totals = layers[layers["statistic"].isin(["flips", "updates"])].groupby(keys)["value"].sum()
    expected: dict[tuple[str, str, str, int], float] = {}
    for statistic, figure in health.FIGURES.items():
        for operand, panel in figure.panels.items():
            if statistic == "stall_ratio":
                values = 1 - totals.get("flips", nothing) / totals.get("updates", nothing)
            else:
                values = means.get(statistic, nothing)
            values = values.get(operand, nothing)
            for (layer, step), value in values.items():
                first = values[layer].iloc[0] if figure.relative else 1.0
                expected[figure.identity, panel, layer, step] = value / first
    for (layer, step), value in means.get("norm_l2", nothing).get("gradient", nothing).items():
        expected["gradients", "gradients", layer, step] = value
    zero = {figure.identity for figure in health.FIGURES.values() if figure.title in found["zero"]}
    for place, value in expected.items():
        if place[0] in zero:
            assert value == 0, place
        elif math.isfinite(value):
            assert cell(found, *place) == pytest.approx(value, rel=1e-6, abs=0), place
        else:
            assert cell(found, *place) in (None, "none"), place
    drawn = [row for figure in found["figures"] for _, rows in figure["panels"] for row in rows if row]
    known = sum(value is not None for row in drawn for value in row)
    assert known == sum(math.isfinite(value) for place, value in expected.items() if place[0] not in zero)


def test_stall_over_time_is_that_of_flips_and_updates(tmp_path: Path) -> None:
    write_run(tmp_path, config("e4m3"), looks=looks())
    found = data_of(page_of(ExperimentDataLoader([tmp_path])))
    assert cell(found, "stall", "optimizer's step", "head", 10) == pytest.approx(0.73)


def test_rank_is_relative_to_the_first_look(tmp_path: Path) -> None:
    write_run(tmp_path, config("e4m3"), looks=looks())
    found = data_of(page_of(ExperimentDataLoader([tmp_path])))
    assert cell(found, "rank", "weights", "head", 1) == 1.0
    assert cell(found, "rank", "weights", "head", 10) == pytest.approx((40 - 0.5 * 5 * 3) / 40)


def test_a_histogram_is_that_of_the_last_look_that_counted_codes(tmp_path: Path) -> None:
    early = full_look(1, number=0, codes={0x01: 64.0})
    late = full_look(10, number=5, codes={0x00: 4.0, 0x80: 4.0, 0x38: 8.0, 0x7F: 5.0})
    write_run(tmp_path, config("e4m3"), looks=[*early, *full_look(5, number=2), *late, *full_look(20, number=6)])
    (found,) = data_of(page_of(ExperimentDataLoader([tmp_path])))["codes"]
    assert len(found["values"]) == 253, "values of E4M3, both zeros as one, NaN left out"
    shares = dict(zip(found["values"], dict(found["shares"])["attention"], strict=True))
    assert {value: share for value, share in shares.items() if share} == {0.0: 0.5, 1.0: 0.5}, "no 01 at step 10"
    assert "at step 10 of one run" in found["note"]


def test_after_a_shift_codes_are_those_of_the_new_format(tmp_path: Path) -> None:
    shift = {"kind": "shift", "step": 5, "from": "e4m3", "to": "e5m2"}
    write_run(tmp_path, config("e4m3"), looks=looks(), events=[shift])
    assert "codes-e5m2" in by_id(data_of(page_of(ExperimentDataLoader([tmp_path])))["codes"])


def test_each_operand_whose_codes_were_counted_has_a_histogram_over_its_own_format(tmp_path: Path) -> None:
    rows = full_look(1, number=0)
    rows += [(1, layer, kind, "grad_output", "code_00", 3.0) for layer, kind in LAYERS[1:]]
    rows += [(1, layer, kind, "grad_output", "code_7b", 1.0) for layer, kind in LAYERS[1:]]
    given = parse_config({"quantize": {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"}}, source="test")
    write_run(tmp_path, given, looks=rows)
    loader = ExperimentDataLoader([tmp_path])
    found = by_id(data_of(page_of(loader))["codes"])
    assert list(found) == ["codes-e4m3", "codes-grad-output-e5m2"]
    of = found["codes-grad-output-e5m2"]
    assert of["title"] == "Which values of E5M2 the gradients use, by layer type"
    shares = dict(zip(of["values"], dict(of["shares"])["head"], strict=True))
    assert (shares[0.0], shares[57344.0]) == (0.75, 0.25)
    drawn = health.code_histograms(loader, loader.runs["run_id"].tolist())[1].chart
    assert drawn.id == "codes-grad-output-e5m2"
    assert drawn.data.set_index("value")["head"].loc[[0.0, 57344.0]].tolist() == [0.75, 0.25]


def test_a_run_without_looks_has_no_section_and_an_old_record_gets_what_it_has(tmp_path: Path) -> None:
    write_run(tmp_path / "none", config("fp32"), looks=[])
    page = page_of(ExperimentDataLoader([tmp_path / "none"]))
    assert "Health of the layers" not in [block.text for block in page.blocks if isinstance(block, Heading)]
    assert data_of(page) == {}
    write_run(tmp_path / "old", config("e4m3"), underflow=0.02)
    found = data_of(page_of(ExperimentDataLoader([tmp_path / "old"])))
    assert list(by_id(found["figures"])) == ["underflow", "sqnr", "stall"]
    assert list(by_id(found["tables"])) == ["health"]
    write_run(tmp_path / "few", config("e4m3"), looks=[(7, "a", "mlp", "weight", "amax", 1.0)])
    page = page_of(ExperimentDataLoader([tmp_path / "few"]))
    assert data_of(page)["figures"] == [], "nothing of it is followed over time"
    assert data_of(page)["tables"][0]["rows"] == [["a", "weights", 1.0]]
    assert "One look, at step 7;" in render(page, SITE)


def test_a_run_that_ended_badly_is_shown_by_itself_with_its_cause_and_advice(tmp_path: Path) -> None:
    write_run(tmp_path, config("e4m3"), looks=looks())
    failure = Failure(
        ("divergence",),
        7,
        "head.weight",
        "optimizer",
        "loss above it all",
        cause="jump: <b>grew</b>",
        advice=("lower it",),
    )
    path = write_run(tmp_path, config("e4m3", seed=1), math.nan, status="failed", looks=looks(3), failure=failure)
    page = page_of(ExperimentDataLoader([tmp_path]))
    found = data_of(page)
    assert found["steps"][-1] == 10, "of the finished run alone"
    (own,) = found["alone"]
    assert (own["run"], own["status"], own["steps"][-1]) == (path.name, "failed", 4)
    assert "underflow" in by_id(own["figures"])
    text = render(page, SITE)
    assert "figures of one run" in text
    assert "Failure: divergence at step 7, head.weight, optimizer" in text
    assert "jump: &#60;b&#62;grew" in text
    assert "- lower it" in text


def test_warnings_have_a_table_and_many_events_are_counted(tmp_path: Path) -> None:
    warning = {"kind": "warning", "what": "stall", "tensor": "head.weight", "phase": "optimizer", "message": "| <i>"}
    events = [{**warning, "step": step, "value": 0.995} for step in range(30)]
    events += [{"kind": "scale", "step": step, "layer": "head", "old": 1.0, "new": 2.0} for step in range(200)]
    events += [{"kind": "resumed", "step": 3, "environment": {"torch": "2.13.0"}}]
    write_run(tmp_path, config("e4m3"), events=events)
    text = render(page_of(ExperimentDataLoader([tmp_path])), SITE)
    assert "Warnings of this run, the first 20 of 30" in text
    assert "| 19 | stall | head.weight | optimizer | 0.995 | &#124; &#60;i&#62; |" in text
    assert "scale: layer head, new 2.0, old 1.0" in text
    assert "scale: the last of 200" in text
    assert text.count("scale: ") == 6
    assert "resumed: environment.torch 2.13.0" in text


def test_names_from_a_record_stay_text_in_tables_charts_and_data(tmp_path: Path) -> None:
    payload = "=1+1 <script>alert(1)</script> | $x$ \u202e"
    rows = [(step, payload, payload, *rest) for step, _, _, *rest in looks() if _ == "head"]
    write_run(tmp_path, config("e4m3"), looks=rows)
    pages = arm_pages(ExperimentDataLoader([tmp_path]))
    for name, content in {"page.md": render(pages[1], SITE).encode(), **files(pages[1])}.items():
        text = content.decode()
        assert name.endswith((".csv", ".json")) or "<script" not in text
        assert not name.endswith(".csv") or not re.search(r'(^|,)"?=', text, re.MULTILINE)


def without_fingerprint(page: Page) -> tuple[str, dict[str, bytes]]:
    raw = {page.path.split("/")[-1] + "." + each.name for each in page.downloads}  # a packed record has fewer steps
    found = {name: content for name, content in files(page).items() if name not in raw}
    return render(page, SITE).split("## Provenance")[0], found


def test_a_packed_study_gives_the_same_pages_and_is_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for seed in range(3):
        noise = [
            (
                step,
                layer,
                kind,
                operand,
                name,
                # A pack keeps float32.
                float(np.float32(value * random.uniform(0.9, 1.1) if name.startswith(("sq", "und")) else value)),
            )
            for number in range(31)
            for step, layer, kind, operand, name, value in full_look(max(1, 10 * number), number=number)
        ]
        write_run(tmp_path / "runs", config("e4m3", seed=seed), 2.0 + 0.1 * seed, looks=noise)
        write_run(tmp_path / "runs", config("fp32", seed=seed), 2.0, looks=[])
    write_run(tmp_path / "runs", config("e4m3", seed=9), math.nan, status="failed", looks=single(looks(3)))
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "packed" / "study", layers_every=100)
    whole, packed = (ExperimentDataLoader([tmp_path / name]) for name in ("runs", "packed"))
    for before, after in zip(arm_pages(whole), arm_pages(packed), strict=True):
        assert without_fingerprint(before) == without_fingerprint(after)
    assert without_fingerprint(failure_modes_page(whole)) == without_fingerprint(failure_modes_page(packed))
    (size,) = [path.stat().st_size for path in (tmp_path / "packed").rglob("layers.parquet")]
    rows = sum(len(record.layers) for record in load_runs([tmp_path / "packed"]).records)
    assert rows < 0.4 * sum(len(record.layers) for record in load_runs([tmp_path / "runs"]).records)
    assert size < 4 * 10_000


def test_failure_modes_show_where_the_formats_lose_and_what_the_extremes_look_like(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, config("fp32", seed=seed), 2.0 + 0.01 * seed, looks=[])
        for fmt, gap, worse in (("e7m0", 0.3, 0.0), ("e0m7", 0.1, 0.8), ("e4m3", 0.01, 0.0)):
            loss = 2.0 + 0.01 * seed + gap + 0.001 * seed
            write_run(tmp_path, config(fmt, seed=seed), loss, looks=looks(worse=worse))
    loader = ExperimentDataLoader([tmp_path])
    page = failure_modes_page(loader)
    assert {"layers-underflow", "signature-sqnr", "signature-underflow"} <= set(charts(page))
    worst = charts(page)["layers-sqnr"]
    median = loader.runs[(loader.runs["format"] == "E7M0") & (loader.runs["seed"] == 1)]["run_id"].item()
    assert f"Run {median}." in worst.description, "E7M0 loses most by rounding, seed 1 is its median"
    assert "Run e0m7-wag-adamw-s1-" in charts(page)["layers-underflow"].description
    means = charts(page)["signature-underflow"].data
    head = means[(means["format"] == "E0M7") & (means["operand"] == "grad_output")]["value"]
    assert head.tolist() == pytest.approx([(0.02 + 0.04 + 0.06 + 0.8) / 3] * 6)


def test_failure_modes_count_warnings_and_show_how_runs_ended(tmp_path: Path) -> None:
    write_matrix(tmp_path, seeds=2)
    warning = {"kind": "warning", "what": "jump", "tensor": "head.weight", "phase": "optimizer", "message": "too far"}
    failure = Failure(
        ("nan_loss",),
        4,
        "head.weight",
        "optimizer",
        "no more",
        "jump: 9 times",
        losses=((3, 2.5), (4, None)),
        advice=("try",),
    )
    events = [{**warning, "step": step, "value": 9.0} for step in (4, 5)]
    write_run(tmp_path, config("e5m2", seed=7), math.nan, status="failed", events=events, failure=failure)
    page = failure_modes_page(ExperimentDataLoader([tmp_path]))
    text = render(page, SITE)
    assert "2 warnings of 1 runs, by kind and format" in text
    assert tables(page)["warnings"].rows == (("jump", "E5M2", 2, 1, 4, "head.weight"),)
    assert "0 of the 1 runs with warnings finished." in text
    assert "nan&#95;loss: jump: 9 times. Try." in text or "nan_loss: jump: 9 times. Try." in text
    assert "ends at step 3 with 2.5, then not finite" in charts(page)["endings"].description


def test_without_records_the_failure_page_claims_nothing(tmp_path: Path) -> None:
    text = render(failure_modes_page(ExperimentDataLoader([tmp_path])), SITE)
    assert "No recorded run holds a warning." in text
    assert "By layer and step" not in text
    assert "Signatures" not in text
    ReportGenerator(ExperimentDataLoader([tmp_path])).write(tmp_path / "out")
    write_folder(arm_pages(ExperimentDataLoader([tmp_path])), tmp_path / "arms", site_root="../")


def lightness(colour: str) -> float:
    """CIE L* of #rrggbb, from 0 to 100."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    light = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * light ** (1 / 3) - 16 if light > 0.008856 else 903.3 * light


@pytest.mark.parametrize(("palette", "sign"), [("default", -1), ("slate", 1)])
def test_the_heat_scale_is_read_by_lightness_alone_in_both_palettes(palette: str, sign: int) -> None:
    sheet = (Path(__file__).parents[1] / "docs/stylesheets/altgrad.css").read_text()
    block = re.search(rf'\[data-md-color-scheme="{palette}"\] \{{(.*?)\}}', sheet, re.DOTALL)
    assert block
    heat = [re.search(rf"--heat-{level}: (#[0-9a-f]{{6}});", block[1]) for level in range(1, 7)]
    colours = [found[1] for found in heat if found]
    background = re.search(r"--md-default-bg-color: (#[0-9a-f]{6});", block[1])
    assert background
    steps = np.diff([lightness(colour) for colour in (background[1], *colours)])
    assert (sign * steps > 6).all(), steps
    assert palette == "slate" or colours == list(HEAT)
