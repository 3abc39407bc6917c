"""The built site in a real browser: what a reader sees, on a screen, on a phone, by keyboard and by ear."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import PAYLOADS

from altgrad.reports.format_styles import format_style

pytestmark = pytest.mark.browser
REPORTS = (
    "reports/format_comparison/",
    "reports/failure_modes/",
    "reports/manifold_comparison/",
    "reports/literature/",
)
GUIDES = ("guides/", "guides/number-formats/", "guides/own-format/")
KINDS = (
    "",
    *REPORTS,
    "formats/",
    "formats/e4m3/",
    "formats/e8m0/",
    "formats/bf16/",
    "explorer/",
    "tensors/",
    "runs/",
    "compare/",
    "ARM",
    "STUDY",
    "benchmarks/",
    *GUIDES,
    "method/",
    "reproduce/",
    "api/",
    "api/formats/",
    "changelog/",
)
"""A page of every kind; ARM is the page of an arm, STUDY that of a tuning study."""
FOREIGN_SCRIPT = "script:not([type=module][src^='../javascripts/']:empty)"
"""Any script in the text of a page but one of the site's own files."""
OPTIONS = "selects => selects.map((select) => [...select.options].map(({ text }) => text))"
STILL = 0.1
"""Most that a page's layout may shift while it loads: what the field calls good (web.dev/cls)."""
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


@pytest.fixture(scope="session")
def place(real_site: Path) -> Any:
    """Where a page of `KINDS` lies."""

    def find(kind: str) -> str:
        names = sorted(path.parent.name for path in (real_site / "runs").glob("*/index.html"))
        studies = [name for name in names if name.startswith("study-")]
        arms = [name for name in names if name.startswith("e0m7-")]
        return {"ARM": f"runs/{arms[0]}/", "STUDY": f"runs/{studies[0]}/"}.get(kind, kind)

    return find


WATCH_SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.shifted += entry.value; })
  .observe({ type: "layout-shift", buffered: true });
"""


class Visit:
    """One page in one palette, and everything it asked for or complained about."""

    def __init__(
        self, browser: Any, address: str, palette: str = "light", width: int = 1280, scripts: bool = True
    ) -> None:
        self.context = browser.new_context(
            color_scheme=palette,
            viewport={"width": width, "height": 900},
            reduced_motion="reduce",
            java_script_enabled=scripts,
        )
        self.context.add_init_script(WATCH_SHIFTS)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.failed: list[str] = []
        self.page.on("requestfailed", lambda request: self.failed.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        if not self._settled(address):  # once in some hundred visits Chromium never says that the network is idle
            self.page.goto("about:blank")
            for seen in (self.requests, self.complaints, self.failed):
                seen.clear()
            assert self._settled(address), f"{address} does not settle"

    def _settled(self, address: str) -> bool:
        from playwright.sync_api import TimeoutError as NotIdle

        self.page.goto(address)
        try:
            self.page.wait_for_load_state("networkidle")  # alone it may come while a long page is still being read
        except NotIdle:
            return False
        return True


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    opened: list[Visit] = []

    def open_page(*arguments: Any, **options: Any) -> Visit:
        opened.append(Visit(browser, *arguments, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_each_kind_is_accessible_quiet_and_still_in_both_palettes_and_fits_a_phone(
    visit: Any, place: Any, real_address: str, kind: str
) -> None:
    """No axe-core violation, no complaint, no foreign or failed request, nothing that jumps while it loads.

    One load for all of it, since the large reports take seconds: the palettes differ in their colours only.
    """
    one = visit(real_address + place(kind))
    page = one.page
    assert page.evaluate("window.shifted") < STILL
    for labels in page.locator(".md-content select").evaluate_all(OPTIONS):
        assert len(set(labels)) == len(labels), "two options of one name"
    keep(page, kind, "light")
    assert page.locator("h1").count() == 1
    assert axe_faults(page) == []
    page.get_by_title("Switch to the dark palette").click()
    page.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    keep(page, kind, "dark")
    assert axe_faults(page, ["color-contrast", "link-in-text-block"]) == []
    page.set_viewport_size({"width": 360, "height": 800})
    keep(page, kind, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert [url for url in one.requests if not url.startswith((real_address, "data:"))] == []
    assert one.failed == []
    assert one.complaints == []


FIGURES = """() => [...document.querySelectorAll(".chart-box, .table-box")].filter((box) => box.clientWidth)
  .map((box) => ({
    name: `${box.className} ${box.closest("[id]")?.id}`, over: box.scrollWidth - box.clientWidth,
    x: getComputedStyle(box).overflowX, shadow: getComputedStyle(box).boxShadow,
  }))"""
SIZES = """() => [...document.querySelectorAll("figure.chart text, .explorer svg text")]
  .filter((each) => each.getClientRects().length).map((each) => {
    const { a, b } = each.getScreenCTM();
    return [each.textContent, Math.hypot(a, b) * parseFloat(getComputedStyle(each).fontSize)];
  })"""
WITH_CHARTS = ("reports/format_comparison/", "reports/failure_modes/", "formats/", "formats/e4m3/", "ARM", "STUDY")


@pytest.mark.parametrize("palette", ["light", "dark"])
@pytest.mark.parametrize("kind", WITH_CHARTS)
def test_a_figure_that_is_wider_than_a_phone_scrolls_and_shows_that_it_goes_on(
    visit: Any, place: Any, real_address: str, kind: str, palette: str
) -> None:
    page = visit(real_address + place(kind), palette=palette, width=390).page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.wait_for_timeout(200)
    figures = page.evaluate(FIGURES)
    wide = [each for each in figures if each["over"] > 4]
    assert wide
    assert [each for each in wide if each["x"] != "auto" or each["shadow"] == "none"] == []
    assert [each for each in figures if each["over"] <= 0 and each["shadow"] != "none"] == []
    page.evaluate("document.querySelectorAll('.chart-box').forEach((box) => { box.scrollLeft = 1e4; })")
    page.wait_for_timeout(200)
    ends = [each for each in page.evaluate(FIGURES) if each["name"].startswith("chart-box")]
    assert [each for each in ends if each["shadow"] != "none"] == []


COLUMNS = """() => [...document.querySelectorAll(".table-box")].map((box) => {
    const cells = [...(box.querySelector("tbody tr")?.cells ?? [])].slice(0, 2);
    const place = (cells.at(-1) ?? box).getBoundingClientRect();
    return [box.id, box.scrollWidth - box.clientWidth, place.right - box.getBoundingClientRect().right];
  })"""


@pytest.mark.parametrize("kind", [*REPORTS, "reports/head/", "reports/preregistered/"])
def test_a_long_first_column_leaves_the_figures_of_a_table_in_view(visit: Any, real_address: str, kind: str) -> None:
    """All columns on a screen, the first beside the names on a phone; also of tables that are closed at first."""
    page = visit(real_address + kind).page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    tables = page.evaluate(COLUMNS)
    assert tables
    assert [each for each in tables if each[1] > 1] == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert [each for each in page.evaluate(COLUMNS) if each[2] > 1] == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", [*WITH_CHARTS, "explorer/"])
def test_no_text_in_a_chart_is_smaller_than_12_px(
    visit: Any, place: Any, real_address: str, kind: str, width: int
) -> None:
    page = visit(real_address + place(kind), width=width).page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    sizes = page.evaluate(SIZES)
    assert sizes
    assert [each for each in sizes if each[1] < 11.99] == []


def test_who_points_at_a_mark_reads_its_figures(visit: Any, real_address: str) -> None:
    page = visit(real_address + "reports/format_comparison/").page
    box = page.locator("#chart-loss-gap")
    box.scroll_into_view_if_needed()
    rows = page.request.get(box.get_by_role("link", name="JSON").evaluate("link => link.href")).json()
    marks = box.locator("svg g:has(> title)").all()
    told = {mark.evaluate("each => each.firstElementChild.textContent") for mark in marks}
    assert len(told) == len(rows)
    for mark in marks:
        middle = """each => { const box = each.getBoundingClientRect();
          const found = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
          return found?.closest("g:has(> title)")?.firstElementChild.textContent; }"""
        assert mark.evaluate(middle) in told


def test_an_arm_is_drawn_in_the_colour_of_its_format_on_every_page(visit: Any, place: Any, real_address: str) -> None:
    style = format_style("E0M7").variable
    one = visit(real_address + place("ARM")).page
    one.locator("#chart-loss .chart-box[data-ready]").wait_for()
    assert f"var({style}, " in one.locator("#chart-loss svg").inner_html()
    table = one.request.get(real_address + "runs/index.table.json").json()
    for label, (variable, dashes) in table["styles"].items():
        assert [variable, dashes] == format_style(label).value
    report = visit(real_address + "reports/format_comparison/").page
    marks = report.locator("#chart-loss-gap svg g:has(> title)").all()
    for mark in marks:
        label = mark.evaluate("each => each.firstElementChild.textContent").split(" ")[0]
        assert f"var({format_style(label).variable}, " in mark.inner_html()
    suggested = table["suggested"][0]
    query = f"compare/?arms={','.join(suggested['arms'])}&baseline={suggested['baseline']}"
    compare = visit(real_address + query).page
    compare.locator("#compare-arms[data-ready] .swatch").first.wait_for()
    for row in compare.locator("#compare-arms tbody tr:has(.swatch)").all():
        label = row.locator(".mark, th").first.inner_text().split("·")[1].split()[0].rstrip(",")
        assert row.locator(".swatch").first.get_attribute("style").endswith(f"var({format_style(label).variable});")


def test_a_reader_whose_system_is_dark_gets_the_dark_palette_at_once(visit: Any, real_address: str) -> None:
    one = visit(real_address, palette="dark")
    assert one.page.evaluate("document.body.dataset.mdColorScheme") == "slate"
    assert one.page.evaluate("window.shifted") < STILL
    assert axe_faults(one.page) == []
    assert one.complaints == []


def keep(page: Any, kind: str, look: str) -> None:
    """A screenshot of the whole page, for people to look at."""
    if "ALTGRAD_SCREENSHOTS" not in os.environ:  # pages of 20,000 pixels take seconds
        return
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = kind.strip("/").replace("/", "-").lower() or "home"
    page.screenshot(path=SCREENSHOTS / f"{name}-{look}.png", full_page=True)


@pytest.mark.parametrize("kind", ["", *REPORTS])
def test_home_and_reports_show_a_chart(visit: Any, real_address: str, kind: str) -> None:
    """All have runs; the literature's may be missing, and then the page says that its answer is pending."""
    page = visit(real_address + kind).page
    charts = page.locator("figure.chart svg[role=img]:visible")
    answers = set(page.locator("#table-claims tbody td:first-child").all_inner_texts())
    if kind == "reports/literature/" and answers and answers <= {"pending", "related work"}:
        assert page.get_by_text("Agreement with the literature: pending.").is_visible()
        assert charts.count() == 0
        return
    assert charts.count() >= 1
    assert charts.first.bounding_box()["height"] > 100


@pytest.mark.parametrize(
    "kind", [*REPORTS, "reports/head/", "reports/scaling/", "reports/preregistered/", "reports/corrections/"]
)
def test_a_report_is_six_screens_at_most_and_twelve_on_a_phone(visit: Any, real_address: str, kind: str) -> None:
    page = visit(real_address + kind).page
    assert page.evaluate("document.documentElement.scrollHeight") <= 6 * 900
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollHeight") <= 12 * 844


def test_the_forest_of_the_literature_is_whole_on_a_phone(visit: Any, real_address: str) -> None:
    page = visit(real_address + "reports/literature/", width=390).page
    box = page.locator("#chart-differences .chart-box")
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    assert box.locator("svg text").first.evaluate("text => text.getBoundingClientRect().height") >= 12


def test_the_layers_of_an_arm_are_drawn_and_read_by_pointer_and_keyboard(
    visit: Any, place: Any, real_address: str
) -> None:
    page = visit(real_address + place("ARM")).page
    figure = page.locator("figure#chart-underflow")
    assert figure.locator("svg path[fill*='--heat-6']").count() >= 1
    told = figure.get_by_role("status")
    assert told.inner_text() == "Point at a value, or move with the arrow keys."
    figure.locator(".chart-box").focus()
    page.keyboard.press("ArrowRight")
    first = told.inner_text()
    assert first.startswith("blocks.0.attention.qkv, activations, step 1: "), "its weights are not quantized"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert re.match(r"blocks.0.attention.\w+, activations, step 50: ", told.inner_text())
    box = figure.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] - 26)
    assert told.inner_text().startswith("head, activations, step 300: ")
    page.locator("figure#chart-gradients canvas").wait_for()
    with page.expect_download() as saved:
        figure.get_by_role("button", name="Download underflow as CSV").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[0].startswith("layer,layer_type,of,step 1,")
    assert lines[1].startswith("blocks.0.attention.qkv,attention,activations,")


def test_the_tables_of_the_last_look_sort(visit: Any, place: Any, real_address: str) -> None:
    page = visit(real_address + place("ARM")).page
    table = page.locator("#table-health-weights table")
    table.get_by_role("button", name="Spectral norm").click()
    found = [float(text) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert len(found) > 4
    assert found == sorted(found)


def test_the_curves_of_an_arm_zoom_by_mouse_keyboard_and_button(visit: Any, place: Any, real_address: str) -> None:
    page = visit(real_address + place("ARM")).page
    box = page.locator("#chart-loss .chart-box[data-ready]")
    assert box.locator("canvas").count() == 1
    assert not box.locator("svg").is_visible()

    def told(x: float) -> str:
        over = box.locator(".u-over").bounding_box()
        page.mouse.move(over["x"] + x * over["width"], over["y"] + 30)
        return str(page.locator(".curve-readout").inner_text())

    whole = told(0.99)
    assert whole.startswith("step 300 · this arm 2.")
    assert "baseline 2." in whole
    box.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    assert told(0.98) != whole
    box.get_by_role("button", name="Reset zoom").click()
    assert told(0.99) == whole
    over = box.locator(".u-over").bounding_box()
    page.mouse.move(over["x"] + 20, over["y"] + 50)
    page.mouse.down()
    page.mouse.move(over["x"] + over["width"] / 2, over["y"] + 50, steps=4)
    page.mouse.up()
    assert told(0.99) != whole
    box.get_by_label("Horizontal axis").select_option("tokens")
    page.wait_for_function("document.querySelector('.curves canvas')")
    assert told(0.99).startswith("tokens ")
    box.get_by_label("Metric").select_option("loss")
    page.wait_for_function("document.querySelector('.curves canvas')")
    assert "this arm" in told(0.5)


def test_the_heading_follows_what_is_drawn_and_the_difference_lies_below_with_the_figures_of_the_table(
    visit: Any, place: Any, real_address: str
) -> None:
    page = visit(real_address + place("ARM")).page
    heading, difference = page.locator("#chart-loss figcaption"), page.locator("#difference .curves")
    assert heading.inner_text() == "Validation loss by step"
    titles = page.locator("table[aria-label^='Validation loss'] th").all_inner_texts()
    column = next(place for place, title in enumerate(titles) if title.startswith("Difference, paired"))
    cells = page.locator(f"table[aria-label^='Validation loss'] tbody td:nth-child({column + 1})").all_inner_texts()
    told = re.findall(r"this arm from (\S+) to ([^\s;]+)", difference.get_attribute("aria-label"))[0]
    assert [float(cell.replace("−", "-")) for cell in (cells[0], cells[-1])] == pytest.approx(
        [float(value.replace("−", "-")) for value in told], abs=6e-5
    )
    page.get_by_label("Metric").select_option("loss")
    page.get_by_label("Horizontal axis").select_option("tokens")
    page.wait_for_function("document.querySelector('#difference .caption').textContent.endsWith('by tokens')")
    assert heading.inner_text() == "Training loss by tokens"
    assert (
        page.locator("#difference .caption").inner_text() == "Difference in validation loss to the baseline by tokens"
    )


def test_an_arm_leads_to_its_comparison_with_the_baseline(visit: Any, place: Any, real_address: str) -> None:
    page = visit(real_address + place("ARM")).page
    title = page.locator("h1").evaluate("heading => heading.firstChild.textContent")
    page.get_by_role("link", name="Compare with the baseline").click()
    page.wait_for_selector("#compare-arms[data-ready]")
    heads = page.locator("#compare-arms section:has(input[type=radio]) tbody tr")
    assert [title in row for row in heads.all_inner_texts()] == [True, False]
    assert heads.nth(1).locator("input[type=radio]").is_checked()
    assert "FP32" in heads.nth(1).inner_text()
    page.go_back()
    page.get_by_role("link", name="E0M7", exact=True).click()
    page.wait_for_selector(".runs-table[data-ready]")
    assert page.get_by_label("Format", exact=True).input_value() == "E0M7"


def test_without_scripts_the_curves_and_their_figures_are_there(visit: Any, place: Any, real_address: str) -> None:
    page = visit(real_address + place("ARM"), scripts=False).page
    assert page.locator("#chart-loss svg").is_visible()
    assert page.locator("table[aria-label^='Validation loss'] tbody tr").count() >= 3
    assert page.get_by_text("With JavaScript the chart zooms").is_visible()
    data = page.get_by_text("A script draws the charts and tables").get_by_role("link")
    assert page.request.get(data.evaluate("link => link.href")).json()["layers"]["figures"]


def test_bands_are_mean_and_range_over_the_runs_that_have_a_step(visit: Any, real_address: str) -> None:
    page = visit(real_address).page
    runs = [
        {"step": [0, 10, 20], "seconds": [0, 1, 2], "val_loss": [3, 2, None]},
        {"step": [0, 10], "seconds": [0, 3], "val_loss": [5, 4]},
    ]
    call = f"async (runs) => (await import('{real_address}javascripts/curves.js'))"
    band = page.evaluate(call + ".seedBand(runs, 'val_loss', 'seconds')", runs)
    deviation = band.pop("sd")
    assert deviation == pytest.approx([math.sqrt(2)] * 2)
    middle = {"x": [0, 2], "mean": [4, 3], "low": [3, 2], "high": [5, 4], "n": [2, 2], "step": [0, 10]}
    assert band == middle | {"whole": True}
    lines = [{"x": [0, 2], "columns": [[1, 2]]}, {"x": [1, 2], "columns": [[3, 4]]}]
    aligned = page.evaluate(call + ".align(runs)", lines)
    assert aligned == [[0, 1, 2], [1, None, 2], [None, 3, 4]]
    assert page.evaluate(call + ".zoomed(runs, 0.5, 0.25)", [0, 8]) == [4, 8]


def test_on_paper_there_are_drawings_and_no_controls(visit: Any, place: Any, real_address: str) -> None:
    page = visit(real_address + place("ARM")).page
    page.locator("#chart-loss .chart-box[data-ready]").wait_for()
    page.emulate_media(media="print")
    assert page.locator("#chart-loss svg").is_visible()
    for hidden in (".curve-controls", ".curves", ".md-header", ".md-tabs", ".md-footer"):
        assert not page.locator(hidden).first.is_visible(), hidden


def test_search_finds_a_format_and_its_page_opens_by_keyboard(visit: Any, real_address: str) -> None:
    page = visit(real_address).page
    page.keyboard.press("/")
    page.keyboard.type("E4M3FNUZ")
    page.locator(".md-search-result__link[href*='formats/e4m3fnuz']").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/formats/**")


def test_search_finds_reports_and_guides_before_the_api(visit: Any, real_address: str) -> None:
    def is_api(words: str) -> list[bool]:
        page = visit(f"{real_address}?q={words}").page
        page.locator(".md-search-result__item").first.wait_for()
        links = page.locator(".md-search-result__item > a")
        return [
            bool(found) for found in links.evaluate_all("links => links.map((link) => /api\\//.test(link.pathname))")
        ]

    found = {words: is_api(words) for words in ("underflow", "quantize", "telemetry")}
    assert {words: sorted(api) for words, api in found.items()} == found
    assert any(map(any, found.values()))
    assert is_api("QuantizedLinear")[0], "a name of the API is found there"


def test_the_first_key_leads_past_the_navigation(visit: Any, real_address: str) -> None:
    page = visit(real_address).page
    page.keyboard.press("Tab")
    skip = page.locator(".md-skip:focus")
    assert skip.count() == 1
    page.keyboard.press("Enter")
    page.wait_for_url("**/*#*", timeout=10_000)


def test_a_run_is_reached_by_its_anchor_and_its_raw_data_is_json(visit: Any, place: Any, real_address: str) -> None:
    one = visit(real_address + place("ARM"))
    row = one.page.locator("tr:has(td > a[id])").first
    identity = row.locator("a[id]").get_attribute("id")
    link = one.page.locator("article").get_by_role("link", name=".runs.json")
    raw = one.page.request.get(link.evaluate("link => link.href")).json()[identity]
    assert raw["run"]["id"] == identity
    assert len(raw["history"]["step"]) == len(raw["history"]["loss"]) > 3


def test_the_gallery_of_all_blocks_has_no_accessibility_fault(visit: Any, gallery_address: str) -> None:
    for palette in ("light", "dark"):
        assert axe_faults(visit(gallery_address, palette=palette).page) == []


def axe_faults(page: Any, rules: list[str] | None = None) -> list[str]:
    """What axe-core finds, of any weight, as "rule: element"; by all rules, or by some.

    What is folded is opened first, so that it counts. The insides of a drawing are one image to a reader, and the rows
    of a table from the 17th on are like those before; axe-core takes a minute for them.
    """
    spec = find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    page.evaluate((Path(spec.origin).parent / "axe.min.js").read_text())
    page.evaluate("document.querySelectorAll('.md-content details').forEach((each) => { each.open = true; })")
    where = {"exclude": [["figure svg g"], ["table.data tbody tr:nth-child(n+17)"]]}
    how = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    violations = page.evaluate("([where, how]) => axe.run(where, how)", [where, how])["violations"]
    return [f"{violation['id']}: {node['html']}" for violation in violations for node in violation["nodes"]]


def test_the_palette_switch_recolours_page_and_chart(visit: Any, gallery_address: str) -> None:
    page = visit(gallery_address).page
    read = (
        "[getComputedStyle(document.body).backgroundColor,"
        " ...[...document.querySelectorAll('figure.chart svg text')].map((text) => getComputedStyle(text).fill)]"
    )
    light = page.evaluate(read)
    page.get_by_title("Switch to the dark palette").click()
    page.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    dark = page.evaluate(read)
    assert len(light) > 3
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_a_table_sorts_by_keyboard_and_says_so(visit: Any, gallery_address: str) -> None:
    page = visit(gallery_address).page
    table = page.locator(".table-box table").first
    heading = table.locator("th").nth(1)
    heading.locator("button").focus()
    read = "rows => rows.map((row) => row.cells[1].textContent)"
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert table.locator("tbody tr").evaluate_all(read) == ["−0.25", "0.5", "–"]
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert table.locator("tbody tr").evaluate_all(read) == ["0.5", "−0.25", "–"]
    assert table.locator("th").nth(2).locator("button").count() == 0


def test_hostile_text_runs_nothing_and_reads_as_it_was_written(visit: Any, gallery_address: str) -> None:
    for path in ("", "runs/arm/", *REPORTS):
        one = visit(gallery_address + path)
        assert one.page.evaluate("window.pwned") is None
        assert one.page.locator(".md-content script, .md-content img, .md-content a[href^='javascript']").count() == 0
        assert [url for url in one.requests if not url.startswith((gallery_address, "data:"))] == []
        assert one.complaints == []
    assert (
        "<script>window.pwned = 1</script> <img src=x" in one.page.locator(".admonition.warning p").nth(1).inner_text()
    )


@pytest.mark.parametrize(
    "kind", ["", *REPORTS, "reports/preregistered/", "runs/", "compare/", "COMPARED", "tensors/", "ARM"]
)
def test_a_site_of_hostile_records_runs_nothing_and_shows_them_as_text(
    visit: Any, hostile_site: Path, hostile_address: str, kind: str
) -> None:
    """Names, notes, config keys and values, layers, events and addresses: none becomes markup, and none is lost."""
    pages = sorted(path.parent.relative_to(hostile_site).as_posix() for path in hostile_site.glob("runs/*/index.html"))
    arms = [page.removeprefix("runs/") for page in pages if not page.startswith("runs/study-")]
    paths = {
        "ARM": [f"{page}/" for page in pages],
        "COMPARED": [f"compare/?arms={','.join(arms[start : start + 6])}" for start in range(0, len(arms), 6)],
    }
    for path in paths.get(kind, [kind]):
        one = visit(hostile_address + path)
        one.page.evaluate("document.querySelectorAll('.md-content details').forEach((each) => { each.open = true; })")
        one.page.wait_for_load_state("networkidle")
        assert one.page.evaluate("window.pwned") is None, path
        assert one.complaints == [], path
        assert [url for url in one.requests if not url.startswith((hostile_address, "data:"))] == []
        foreign = "a[href]:not([href^='http:'], [href^='https:'], [href^='#'], [href^='.'])"
        bad = one.page.locator(f".md-content article {foreign}").evaluate_all("links => links.map((link) => link.href)")
        assert [address for address in bad if not address.startswith(hostile_address)] == []
        assert one.page.locator(f".md-content :is({FOREIGN_SCRIPT}, img, iframe, object, form:not(.add))").count() == 0
        assert "\u202e" not in one.page.content()


def test_hostile_text_is_read_on_the_page_of_its_arm_and_whole_in_its_json(
    visit: Any, hostile_site: Path, hostile_address: str
) -> None:
    texts, raw = "", ""
    for path in sorted(hostile_site.glob("runs/*/index.html")):
        texts += visit(f"{hostile_address}runs/{path.parent.name}/").page.locator(".md-content").inner_text()
    for path in sorted(hostile_site.glob("runs/*.json")):
        text = path.read_text()
        assert text.isascii(), "nothing invisible or turned around is in the files"
        raw += json.dumps(json.loads(text), ensure_ascii=False)
    for payload in PAYLOADS:
        assert json.dumps(payload, ensure_ascii=False)[1:-1] in raw
    assert "<script>window.pwned = 1</script>" in texts
    assert "{{ pwned() }}" in texts
    assert "U+202E" in texts
    assert "10,000 characters" in texts
