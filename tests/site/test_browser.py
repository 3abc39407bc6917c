"""The built site in a real browser: what a reader sees, on a screen, on a phone, by keyboard and by ear."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
REPORTS = (
    "reports/format_comparison/",
    "reports/failure_modes/",
    "reports/manifold_comparison/",
    "reports/literature/",
)
GUIDES = ("guides/", "guides/number-formats/", "guides/own-format/")
PAGES = ("", *REPORTS, "runs/", *GUIDES, "method/", "reproduce/", "changelog/")
SCREENSHOTS = Path(__file__).parent / "screenshots"


class Visit:
    """One page in one palette, and everything it asked for or complained about."""

    def __init__(self, browser: Any, address: str, palette: str = "light", width: int = 1280) -> None:
        self.context = browser.new_context(color_scheme=palette, viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        self.page.goto(address, wait_until="networkidle")


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    opened: list[Visit] = []

    def open_page(*arguments: Any, **options: Any) -> Visit:
        opened.append(Visit(browser, *arguments, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_asks_no_foreign_host_and_logs_no_error(visit: Any, real_address: str, path: str) -> None:
    one = visit(real_address + path)
    assert [url for url in one.requests if not url.startswith((real_address, "data:"))] == []
    assert one.complaints == []
    assert one.page.locator("h1").count() == 1


@pytest.mark.parametrize("path", PAGES)
def test_a_page_never_scrolls_sideways_on_a_phone(visit: Any, real_address: str, path: str) -> None:
    page = visit(real_address + path, width=360).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("palette", ["light", "dark"])
@pytest.mark.parametrize("path", ["", *REPORTS])
def test_home_and_reports_show_their_charts_and_have_no_accessibility_fault(
    visit: Any, real_address: str, path: str, palette: str
) -> None:
    page = visit(real_address + path, palette=palette).page
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{path.strip('/').replace('/', '-') or 'home'}-{palette}.png", full_page=True)
    charts = page.locator("figure.chart svg[role=img]:visible")
    assert charts.count() >= 1
    assert charts.first.bounding_box()["height"] > 100
    assert axe_faults(page) == []


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_the_page_of_an_arm_shows_its_heat_maps_and_has_no_accessibility_fault(
    visit: Any, real_address: str, real_site: Path, palette: str
) -> None:
    arm = min(path.parent.name for path in (real_site / "runs").glob("e0m7-*/index.html"))
    page = visit(f"{real_address}runs/{arm}/", palette=palette, width=360).page
    assert page.locator("figure#chart-underflow svg path[style*='--heat-6']").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert axe_faults(page) == []


def test_the_gallery_of_all_blocks_has_no_accessibility_fault(visit: Any, gallery_address: str) -> None:
    for palette in ("light", "dark"):
        assert axe_faults(visit(gallery_address, palette=palette).page) == []


@pytest.mark.parametrize("palette", ["light", "dark"])
@pytest.mark.parametrize("path", GUIDES)
def test_guides_with_their_code_and_output_have_no_accessibility_fault(
    visit: Any, real_address: str, path: str, palette: str
) -> None:
    assert axe_faults(visit(real_address + path, palette=palette).page) == []


def axe_faults(page: Any) -> list[str]:
    """What axe-core finds serious or critical, as "rule: element"."""
    spec = find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    page.evaluate((Path(spec.origin).parent / "axe.min.js").read_text())
    violations = page.evaluate("axe.run()")["violations"]
    serious = [violation for violation in violations if violation["impact"] in ("serious", "critical")]
    return [f"{violation['id']}: {node['html']}" for violation in serious for node in violation["nodes"]]


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
