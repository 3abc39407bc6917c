"""The table of runs and Compare in a real browser, on a site made of a few recorded runs, some of them hostile."""

from __future__ import annotations

import csv
import functools
import importlib.util
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_browser import SCREENSHOTS, axe_faults, visit  # noqa: F401

from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import paired_difference
from altgrad.reports.compare import arm_json, arm_table, averaged, table_json
from altgrad.reports.run_costs import KeystrokesRecord
from altgrad.reports.tuning import swept

sys.path.insert(0, str(ROOT / "tests"))
from records import config, full_look, write_run
from test_runs_script import made_up

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api").expect
HOSTILE = "<img src=x onerror=window.pwned=1>"
SETTLED = ".runs-table[data-ready], #compare-arms[data-ready]"


@pytest.fixture(scope="session")
def runs_loader(tmp_path_factory: pytest.TempPathFactory) -> ExperimentDataLoader:
    """FP32, E4M3 and E5M2 with four seeds each, a swept arm, a failed and a crashed run, and another loop's."""
    root = tmp_path_factory.mktemp("records")
    for seed in range(4):
        write_run(root, config("fp32", seed=seed), 2.0 + 0.01 * seed)
        write_run(root, config("e4m3", seed=seed), 2.1 + 0.013 * seed * (seed - 1), looks=full_look(20))
        write_run(root, config("e5m2", seed=seed), 2.2 - 0.02 * seed, looks=full_look(20, worse=0.2))
    write_run(root, config("e5m2", seed=9, lr=1e-2, study="formats-tuning"), 2.3)
    write_run(root, config("e7m0", seed=0), status="failed")
    write_run(root, config("e7m0", seed=1), status="crashed")
    looks = [(20, HOSTILE, HOSTILE, "weight", "overflow", 0.5), (20, "a", "mlp", "weight", "sqnr_db", math.inf)]
    write_run(root, config("e4m3", seed=3, foreign={"note": HOSTILE, "<b>key</b>": HOSTILE}), looks=looks)
    return ExperimentDataLoader([root])


@pytest.fixture(scope="session")
def made_up_files(runs_loader: ExperimentDataLoader) -> dict[str, bytes]:
    """What a site of those runs has for the scripts, by name; the files of swept arms begin with their study's page."""
    arms = arm_table(runs_loader)
    baseline = arms.loc[arms["format"] == "FP32", "arm"].iloc[0]
    files = {"index.table.json": table_json(runs_loader, arms)}
    moved = swept(runs_loader)
    for arm, runs in runs_loader.runs.groupby("arm"):
        study = moved.get(f"runs/{arm}")
        prefix = f"{study.path.removeprefix('runs/')}." if study else ""
        last = runs_loader.last_look(averaged(runs_loader, runs))
        own = None if arm == baseline else baseline
        files[f"{prefix}{arm}.curves.json"] = arm_json(runs_loader, arm, runs, own, last)
    return files


@pytest.fixture
def arms(runs_loader: ExperimentDataLoader) -> dict[str, str]:
    """The arms by format; "swept", "foreign"."""
    rows = runs_loader.runs.drop_duplicates("arm")
    own = rows[(rows["role"] == "report") & ~rows["foreign"]]
    return {
        **dict(zip(own["format"], own["arm"], strict=True)),
        "swept": rows.loc[rows["role"] == "tuning", "arm"].iloc[0],
        "foreign": rows.loc[rows["foreign"], "arm"].iloc[0],
    }


@pytest.fixture
def names(runs_loader: ExperimentDataLoader, arms: dict[str, str]) -> dict[str, str]:
    """What the arms are called, by format; "swept", "foreign"."""
    labels = site_labels(runs_loader)
    return {key: labels[arm] for key, arm in arms.items()}


@pytest.fixture
def open_page(visit: Any, real_address: str, made_up_files: dict[str, bytes]) -> Any:  # noqa: F811
    """Opens an address of the real site with the made-up runs for its own, and waits until its script is done."""

    def fulfill(route: Any, body: bytes | None) -> None:
        route.fulfill(status=200 if body else 404, body=body or b"", content_type="application/json")

    def opened(path: str, files: dict[str, bytes | None] = made_up_files, **options: Any) -> Any:
        one = visit("about:blank", **options)
        for name, body in files.items():
            one.page.route(f"**/{name}", functools.partial(fulfill, body=body))
        one.page.goto(real_address + path, wait_until="networkidle")
        one.page.wait_for_selector(SETTLED)
        return one

    return opened


def cells(page: Any, column: str) -> list[str]:
    """The texts of one column of the table of runs."""
    place = [text.strip() for text in page.locator(".runs-table thead th").all_inner_texts()].index(column)
    return page.locator(".runs-table tbody tr").evaluate_all(
        f"rows => rows.map((row) => row.cells[{place}].textContent)"
    )


def settled_address(page: Any) -> str:
    """The address, after the moment that the table waits before it writes what was typed into it."""
    page.wait_for_timeout(250)
    return str(page.url)


def wait_for_count(page: Any, text: str) -> None:
    expect(page.locator(".runs-table .count")).to_have_text(text)


def test_without_javascript_the_pages_say_what_they_are_and_lead_to_the_tables(browser: Any, real_address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(real_address + "runs/")
    assert page.locator("#table-arms tbody tr").count() > 5
    assert page.locator("#table-arms tbody a").first.is_visible()
    page.goto(real_address + "compare/")
    assert "needs JavaScript" in page.locator("article").inner_text()
    page.get_by_role("link", name="the table of runs").click()
    assert page.url.endswith("/runs/")
    context.close()


def test_text_and_every_filter_choose_rows_and_tuning_runs_are_hidden_at_first(
    open_page: Any, names: dict[str, str]
) -> None:
    page = open_page("runs/").page
    assert not page.locator("#table-arms").is_visible()
    wait_for_count(page, "5 of 6 arms")
    page.get_by_label("Find", exact=True).fill("adamw E5M2")
    assert cells(page, "Arm") == [names["E5M2"]]
    page.get_by_label("tuning runs").check()
    wait_for_count(page, "2 of 6 arms")
    page.get_by_label("Learning rate", exact=True).select_option("0.01")
    assert cells(page, "Arm") == [names["swept"]]
    page.get_by_label("Learning rate", exact=True).select_option("")
    page.get_by_label("Seeds", exact=True).select_option("4 or more")
    assert cells(page, "Arm") == [names["E5M2"]]
    page.get_by_label("Seeds", exact=True).select_option("")
    page.get_by_label("tuning runs").uncheck()
    page.get_by_label("Study", exact=True).select_option("formats-tuning")
    assert cells(page, "Arm") == [names["swept"]]
    page.get_by_label("Find", exact=True).fill("")
    page.get_by_label("Study", exact=True).select_option("")
    page.get_by_label("Format", exact=True).select_option("E4M3")
    wait_for_count(page, "2 of 6 arms")
    page.get_by_label("Format", exact=True).select_option("")
    page.get_by_label("Status", exact=True).select_option("failed")
    assert cells(page, "Arm") == [names["E7M0"]]
    page.get_by_label("Status", exact=True).select_option("")
    page.get_by_label("Find", exact=True).fill("nothing like it")
    assert page.locator(".runs-table tbody").inner_text().strip() == "Nothing matches these filters."


def test_conditions_choose_rows_and_one_that_cannot_be_read_is_named(open_page: Any, names: dict[str, str]) -> None:
    one = open_page("runs/?text=loss<2.15 seeds>=4 format=E4M3,E5M2")
    page = one.page
    assert cells(page, "Arm") == [names["E4M3"]]
    assert page.locator("[data-md-toggle=search]:checked").count() == 0, "the theme's own search stays closed"
    page.get_by_label("Find", exact=True).fill("loss<2.15 colour=1")
    expect(page.locator(".runs-table .note")).to_contain_text("There is no column colour")
    assert one.complaints == []


def test_two_columns_are_drawn_with_their_front_and_all_of_them_side_by_side(
    open_page: Any, names: dict[str, str]
) -> None:
    one = open_page("runs/?chart=scatter&x=n&y=val_loss&better=x")
    page = one.page
    front = page.locator(".chart-of-rows .small a")
    assert front.all_inner_texts() == [names["FP32"], names["foreign"]]
    assert "4 of 5 rows have both; 2 of them are on the front" in page.locator(".runs-table canvas").get_attribute(
        "aria-label"
    )
    page.get_by_label("Find", exact=True).fill("seeds>=4 format=E4M3,E5M2")
    expect(front).to_have_text([names["E4M3"]])
    page.get_by_label("Best corner", exact=True).select_option("upper right")
    expect(front).to_have_text([names["E5M2"]])
    drawn = page.locator(".runs-table canvas").evaluate("canvas => canvas.toDataURL()")
    page.get_by_label("Chart", exact=True).select_option("all shown columns")
    assert page.locator(".runs-table canvas").evaluate("canvas => canvas.toDataURL()") != drawn
    assert settled_address(page).endswith("&chart=parallel&x=n&y=val_loss&better=xy")
    canvas, readout = page.locator(".runs-table canvas"), page.locator(".runs-table .readout")
    size = canvas.bounding_box()
    read = set()
    for height in range(10, 380, 5):
        canvas.hover(position={"x": size["width"] / 2, "y": height})
        read.add(readout.inner_text())
    assert any(f"{names['E4M3']} · " in text and "Validation loss 2.1260" in text for text in read)
    assert one.complaints == []


def test_seeds_are_grouped_with_mean_and_interval_and_told_apart_on_request(
    open_page: Any, runs_loader: ExperimentDataLoader
) -> None:
    page = open_page("runs/?text=e4m3 seeds=4&columns=label,val_loss,low,high,n").page
    assert cells(page, "Validation loss") == ["2.1260"]
    assert cells(page, "95% from") == ["2.0675"]
    assert cells(page, "Seeds") == ["4"]
    page.get_by_label("Rows", exact=True).select_option("runs")
    wait_for_count(page, f"4 of {len(runs_loader.runs)} runs")
    assert cells(page, "Validation loss") == ["2.1000", "2.1000", "2.1260", "2.1780"]


def test_the_table_sorts_by_keyboard_and_says_so(open_page: Any) -> None:
    page = open_page("runs/?rows=runs&format=E5M2&tuning=shown").page
    button = page.locator(".runs-table th button", has_text="Validation loss")
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Validation loss")
    assert cells(page, "Validation loss") == sorted(cells(page, "Validation loss"))
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=descending]").count() == 1
    assert cells(page, "Validation loss")[0] == "2.3000"
    assert settled_address(page).endswith("?rows=runs&format=E5M2&tuning=shown&sort=-final_val_loss")


def test_columns_are_chosen_and_what_is_shown_is_downloaded(
    open_page: Any, arms: dict[str, str], tmp_path: Path
) -> None:
    page = open_page("runs/?format=E5M2&sort=val_loss&tuning=shown").page
    page.locator(".columns summary").click()
    page.get_by_label("Column Steps").uncheck()
    page.get_by_label("Column Studies").check()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    waiting.value.save_as(tmp_path / "arms.csv")
    rows = list(csv.DictReader((tmp_path / "arms.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == [arms["E5M2"], arms["swept"]]
    assert float(rows[0]["val_loss"]) == pytest.approx(2.17)
    assert rows[1]["studies"] == "formats-tuning"
    assert "max_steps" not in rows[0]


def test_the_address_of_the_table_brings_everything_back(open_page: Any, names: dict[str, str]) -> None:
    page = open_page("runs/").page
    page.get_by_label("Find", exact=True).fill("adamw")
    page.get_by_label("Format", exact=True).select_option("E5M2")
    page.locator(".runs-table th button", has_text="Steps").click()
    page.get_by_label(f"Compare {names['E5M2']}", exact=True).check()
    before = page.locator(".runs-table table").inner_text()
    again = open_page("runs/" + settled_address(page).partition("/runs/")[2]).page
    assert again.get_by_label("Find", exact=True).input_value() == "adamw"
    assert again.locator(".runs-table table").inner_text() == before
    assert again.get_by_label(f"Compare {names['E5M2']}", exact=True).is_checked()


@pytest.mark.parametrize(
    "address",
    [
        "runs/?rows=walls&format=E9M9&status=%zz&sort=-toString&page=1e400&columns=constructor&chosen=__proto__",
        "compare/?arms=<script>,__proto__&baseline=nobody&axis=toString&smooth=1e400&band=%&metric=x",
    ],
)
def test_what_is_broken_in_an_address_is_named_and_left_out(open_page: Any, address: str) -> None:
    one = open_page(address)
    assert "e" in one.page.locator(".note").inner_text()
    assert settled_address(one.page).partition("?")[2] == ""
    assert one.complaints == []


def test_ten_thousand_rows_are_paged(open_page: Any) -> None:
    loader = made_up(10_000)
    page = open_page("runs/?rows=runs", {"index.table.json": table_json(loader, arm_table(loader))}).page
    wait_for_count(page, "10,000 of 10,000 runs")
    assert page.locator(".runs-table tbody tr").count() == 50
    first = cells(page, "Run")
    page.get_by_role("button", name="Next").click()
    assert cells(page, "Run") != first
    assert "page 2 of 200" in page.locator(".pager").inner_text()
    page.get_by_label("Find", exact=True).fill("e4m3 failed")
    expect(page.locator(".pager span")).to_have_text(re.compile("page 1 "))
    assert set(cells(page, "Status")) == {"failed"}


def test_arms_chosen_in_the_table_are_compared(open_page: Any, names: dict[str, str]) -> None:
    page = open_page("runs/").page
    for fmt in ("E4M3", "E5M2"):
        page.get_by_label(f"Compare {names[fmt]}", exact=True).check()
    page.get_by_role("link", name="Compare 2 arms").click()
    page.wait_for_selector(SETTLED)
    heads = page.locator("#compare-arms section:has(input[type=radio]) tbody th").all_inner_texts()
    assert [names[fmt] in head for fmt, head in zip(("E4M3", "E5M2", "FP32"), heads, strict=True)] == [True] * 3


def test_a_choice_of_arms_is_taken_back_at_once(open_page: Any, names: dict[str, str]) -> None:
    page = open_page("runs/").page
    none = page.get_by_role("button", name="Choose none")
    assert not none.is_visible()
    for fmt in ("E4M3", "E5M2"):
        page.get_by_label(f"Compare {names[fmt]}", exact=True).check()
    assert "chosen=" in settled_address(page)
    none.click()
    assert page.locator(".runs-table input[aria-label^='Compare ']:checked").count() == 0
    assert not page.get_by_role("link", name="Compare 2 arms").is_visible()
    assert not none.is_visible()
    assert "chosen=" not in settled_address(page)


def table_rows(page: Any, label: str) -> list[list[str]]:
    """The texts of one of the tables of Compare, row by row."""
    rows = page.get_by_role("table", name=label).locator("tbody tr")
    return rows.evaluate_all("rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")


def test_paired_differences_are_those_of_the_statistics(
    open_page: Any, arms: dict[str, str], runs_loader: ExperimentDataLoader
) -> None:
    page = open_page(f"compare/?arms={arms['E4M3']},{arms['E5M2']}").page
    rows = runs_loader.runs
    losses = {
        fmt: rows[rows["arm"] == arms[fmt]].set_index("seed")["final_val_loss"] for fmt in ("E4M3", "E5M2", "FP32")
    }
    for row, fmt in zip(table_rows(page, "Chosen arms"), ("E4M3", "E5M2"), strict=False):
        estimate = paired_difference(losses[fmt], losses["FP32"])
        assert row[3:6] == [
            f"{estimate.mean:+.4f}",
            f"[{estimate.low:+.4f}, {estimate.high:+.4f}]".replace("-", "−"),
            "4",
        ]
    page.get_by_label(f"Baseline: {arms['E5M2']}").check()
    expect(page.locator("#compare-arms tbody tr").nth(1)).to_contain_text("baseline")
    estimate = paired_difference(losses["E4M3"], losses["E5M2"])
    assert table_rows(page, "Chosen arms")[0][3] == f"{estimate.mean:+.4f}".replace("-", "−")
    assert f"baseline={arms['E5M2']}" in page.url
    page.get_by_role("button", name="No baseline").click()
    expect(page.locator("#compare-arms input[type=radio]:checked")).to_have_count(0)
    assert "baseline=none" in page.url
    assert "Difference" not in page.locator("#compare-arms thead").first.inner_text()


def test_arms_are_added_by_name_and_removed(open_page: Any, arms: dict[str, str]) -> None:
    page = open_page("compare/").page
    assert page.locator("#compare-arms li a").count() == 1
    page.get_by_label("Add an arm").fill("nobody")
    page.keyboard.press("Enter")
    assert page.locator(".note").inner_text() == "There is no arm nobody."
    page.get_by_label("Add an arm").fill(arms["E5M2"][:-4])
    page.keyboard.press("Enter")
    page.locator(".note").get_by_role("button", name=arms["E5M2"]).click()
    page.get_by_role("button", name=f"Remove {arms['E5M2']}").click()
    page.get_by_label("Add an arm").fill(arms["swept"])
    page.keyboard.press("Enter")
    page.wait_for_selector("#compare-arms .uplot")
    assert table_rows(page, "Chosen arms")[0][5] == "0", "runs of tuning studies form no pairs"
    page.get_by_role("button", name=f"Remove {arms['swept']}").click()
    expect(page.locator(".count")).to_have_text("No arms are chosen.")


def test_a_suggested_comparison_opens(open_page: Any) -> None:
    page = open_page("compare/").page
    page.locator("#compare-arms li a").click()
    page.wait_for_selector("#compare-arms .uplot")
    assert len(table_rows(page, "Chosen arms")) == 3


def test_curves_change_with_axis_band_smoothing_and_runs_and_the_address_with_them(
    open_page: Any, arms: dict[str, str]
) -> None:
    one = open_page(f"compare/?arms={arms['E4M3']}&metric=loss")
    page = one.page
    page.wait_for_selector("#compare-arms canvas")
    drawn = {page.locator("#compare-arms canvas").evaluate("canvas => canvas.toDataURL()")}

    def changed() -> None:
        page.wait_for_timeout(150)
        picture = page.locator("#compare-arms canvas").evaluate("canvas => canvas.toDataURL()")
        assert picture not in drawn
        drawn.add(picture)

    page.get_by_label("Horizontal axis", exact=True).select_option("tokens")
    changed()
    assert "by tokens" in page.locator("#compare-arms .curves").get_attribute("aria-label")
    page.get_by_label("Band", exact=True).select_option("range")
    changed()
    page.get_by_label("Smoothing", exact=True).fill("0.5")
    changed()
    page.get_by_label("each run").check()
    changed()
    page.get_by_role("button", name="Zoom in").click()
    changed()
    page.get_by_role("button", name="Reset zoom").click()
    page.get_by_label("Horizontal axis", exact=True).select_option("seconds")
    changed()
    assert "by seconds" in page.locator("#compare-arms .curves").get_attribute("aria-label")
    assert "axis=seconds" in page.url
    page.get_by_label("Horizontal axis", exact=True).select_option("tokens")
    assert page.url.endswith(f"?arms={arms['E4M3']}&metric=loss&axis=tokens&smooth=0.5&band=range&each=1")
    box = page.locator("#compare-arms .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    assert re.search(r"tokens [\d,]+ · .* runs\)", page.locator("#compare-arms .readout").inner_text())
    assert one.complaints == []


def test_a_zoom_of_the_curves_is_taken_back(open_page: Any, arms: dict[str, str]) -> None:
    page = open_page(f"compare/?arms={arms['E4M3']}&metric=loss").page
    canvas = page.locator("#compare-arms canvas")

    def drawn() -> str:
        page.wait_for_timeout(150)
        return str(canvas.evaluate("canvas => canvas.toDataURL()"))

    whole = drawn()
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()
    assert drawn() != whole
    page.get_by_role("button", name="Reset zoom").click()
    assert drawn() == whole


def test_only_config_keys_that_differ_stand_side_by_side(open_page: Any, arms: dict[str, str]) -> None:
    page = open_page(f"compare/?arms={arms['E4M3']},{arms['swept']}&baseline=none").page
    found = {row[0]: row[1:] for row in table_rows(page, "Config differences")}
    assert found == {
        "optimizer.learning_rate": ["0.003", "0.01"],
        "quantize.activation": ["e4m3", "e5m2"],
        "quantize.grad_output": ["e4m3", "e5m2"],
        "quantize.weight": ["e4m3", "e5m2"],
    }


def test_the_last_health_stands_side_by_side(open_page: Any, arms: dict[str, str]) -> None:
    page = open_page(f"compare/?arms={arms['E4M3']},{arms['E5M2']}").page
    found = {tuple(row[:3]): row[3:] for row in table_rows(page, "Health at the last look")}
    assert found["Underflow (%)", "weights", "head"] == ["6", "26", "–"]
    assert found["SQNR (dB)", "gradients", "mlp"] == ["30.0", "30.0", "–"]
    assert found["Stall ratio (%)", "", "attention"] == ["71", "71", "–"]
    assert "Overflow: 0 in every layer." in page.locator("#compare-arms").inner_text()


def test_hostile_names_and_runs_without_a_loss_are_text_and_dashes(open_page: Any, arms: dict[str, str]) -> None:
    one = open_page(f"compare/?arms={arms['foreign']},{arms['E7M0']}")
    page = one.page
    assert page.evaluate("window.pwned") is None
    assert HOSTILE in str(table_rows(page, "Config differences"))
    assert HOSTILE in str(table_rows(page, "Health at the last look"))
    assert table_rows(page, "Chosen arms")[1][2] == "–"
    assert page.locator("#compare-arms img, #compare-arms script").count() == 0
    assert one.complaints == []


def test_a_file_that_is_missing_is_named(open_page: Any, arms: dict[str, str], made_up_files: dict[str, bytes]) -> None:
    files: dict[str, bytes | None] = {**made_up_files, f"{arms['E5M2']}.curves.json": None}
    page = open_page(f"compare/?arms={arms['E4M3']},{arms['E5M2']}", files).page
    assert page.locator(".note").inner_text() == f"{arms['E5M2'].capitalize()} could not be read (404)."
    assert len(table_rows(page, "Chosen arms")) == 2


def test_the_recorded_runs_compare(visit: Any, real_address: str) -> None:  # noqa: F811
    page = visit(real_address + "compare/").page
    page.locator("#compare-arms li a").first.click()
    page.wait_for_selector("#compare-arms .uplot")
    rows = table_rows(page, "Chosen arms")
    assert len(rows) == 14, "all 13 formats open, and the baseline"
    assert all(int(row[5]) >= 1 for row in rows if row[3] != "baseline")
    for label in ("Chosen arms", "Config differences", "Health at the last look"):
        box = page.get_by_role("region", name=label)
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth"), f"{label} is cut at 1280"
    assert len(table_rows(page, "Config differences")) >= 1


@pytest.mark.parametrize(("palette", "width"), [("light", 1280), ("dark", 360)])
@pytest.mark.parametrize("name", ["runs", "compare", "compare-empty"])
def test_the_pages_have_no_accessibility_fault_and_fit_a_phone(
    open_page: Any, arms: dict[str, str], palette: str, width: int, name: str
) -> None:
    chosen = ",".join(arms[key] for key in ("E4M3", "E5M2", "FP32", "foreign"))
    path = {
        "runs": "runs/?rows=runs",
        "compare": f"compare/?arms={chosen}&metric=loss&smooth=0.6",
        "compare-empty": "compare/",
    }
    one = open_page(path[name], palette=palette, width=width)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    one.page.screenshot(path=SCREENSHOTS / f"{name}-{palette}-{width}.png", full_page=True)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:
        boxes = one.page.locator(".runs-table .table-box")
        assert boxes.evaluate_all("boxes => boxes.every((box) => box.scrollWidth <= box.clientWidth)")
    assert axe_faults(one.page) == []
    assert one.complaints == []
    assert [url for url in one.requests if not url.startswith((one.page.url.split("/")[0], "data:", "blob:"))] == []


def test_keystrokes_are_timed_in_every_field(
    browser: Any, real_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("keystrokes", ROOT / "benchmarks" / "keystrokes.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    fields = {name: (path, field, ("1",)) for name, (path, field, _) in benchmark.FIELDS.items()}
    monkeypatch.setattr(benchmark, "FIELDS", fields)
    loader = made_up(benchmark.ROWS)
    assert len(arm_table(loader)) == benchmark.ROWS // benchmark.SEEDS
    found = benchmark.bench(browser, real_site, table_json(loader, arm_table(loader)), 1)
    assert KeystrokesRecord.model_validate_json(found.model_dump_json()) == found
    names = [figure.name for figure in found.figures]
    measured = ("An empty", "The Expl", "1,250 a", "10,000 runs,", "10,000 runs and")
    assert [sum(name.startswith(one) for name in names) for one in measured] == [3] * 5
    assert all(figure.value > 0 for figure in found.figures)
    monkeypatch.setattr(sys, "argv", ["keystrokes.py", "--site", str(tmp_path)])
    assert benchmark.main() == 2
    assert "make site builds it" in capsys.readouterr().err
