"""The calculator of the scaling report in a real browser, against Python's answers to the same questions."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, _serve, mkdocs_build
from ladders import made_up, write_ladder
from test_browser import axe_faults, keep, visit  # noqa: F401

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.scaling import Answer, Findings, asked, findings

pytestmark = pytest.mark.browser
PAGE = "reports/scaling/"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ladder(tmp_path_factory.mktemp("ladder"), made_up(np.random.default_rng(1), 3))


@pytest.fixture(scope="module")
def found(records: Path) -> Findings:
    return findings(ExperimentDataLoader([records]))


@pytest.fixture(scope="module")
def address(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site of a made-up ladder, of which the one page is built."""
    out = tmp_path_factory.mktemp("site") / "site"
    mkdocs_build(ROOT, out, ALTGRAD_RUNS=str(records), ALTGRAD_PAGE=PAGE.rstrip("/"))
    yield from _serve(out)


def ready(visit: Any, address: str, query: str = "", **options: Any) -> Any:  # noqa: F811
    one = visit(f"{address}{PAGE}{query}", **options)
    one.page.locator("#calculator[data-ready]").wait_for()
    return one


def test_two_hundred_questions_have_pythons_answers(visit: Any, address: str, found: Findings) -> None:  # noqa: F811
    page = ready(visit, address).page
    draw = random.Random(20)
    assert found.law is not None
    questions = [
        [draw.choice(found.law.forms), 10 ** draw.uniform(2.2, 8.2), 10 ** draw.uniform(3.2, 8.8)] for _ in range(200)
    ]
    answers = page.evaluate(
        """async (questions) => {
          const { ask } = await import("/javascripts/scaling/law.js");
          const data = await (await fetch("/reports/scaling.law.json")).json();
          const names = ["gap", "low", "high", "share", "beyond"];
          const figures = (answer) => names.map((name) => (Number.isNaN(answer[name]) ? "none" : answer[name]));
          return questions.map((question) => ask(data, ...question)).map((answer) => [answer.kind, ...figures(answer)]);
        }""",
        questions,
    )
    kinds = set()
    for question, (kind, *figures) in zip(questions, answers, strict=True):
        expected: Answer = asked(found, *question)
        kinds.add(kind)
        assert kind == expected.kind, question
        wanted = [expected.gap, expected.low, expected.high, expected.share, expected.beyond]
        for value, figure in zip(wanted, figures, strict=True):
            assert (figure == "none") if math.isnan(value) else figure == pytest.approx(value, rel=2e-4, abs=1e-7)
    assert kinds == {"inside", "guess", "refused"}


def test_a_typed_question_is_answered_and_held_by_the_address(visit: Any, address: str, found: Findings) -> None:  # noqa: F811
    page = ready(visit, address).page
    size, tokens = page.get_by_label("Parameters", exact=True), page.get_by_label("Tokens", exact=True)
    said = page.locator("#calculator .summary")
    size.fill("2.5M")
    tokens.fill("1,600,000")
    page.get_by_label("Format", exact=True).select_option("MXFP4")
    answer = asked(found, "MXFP4", 2.5e6, 1.6e6)
    text = said.inner_text().replace("−", "-")
    assert f"{answer.gap:+.3f} nats per character" in text
    assert f"95% interval {answer.low:.3f} to {answer.high:.3f}" in text
    assert re.search(r"worth [\d.]+% of the compute", text)
    assert "n=2.5M" in page.url
    assert "f=MXFP4" in page.url
    again = ready(visit, address, page.url.removeprefix(address + PAGE)).page
    assert again.locator("#calculator .summary").inner_text() == said.inner_text()
    page.go_back()
    assert page.get_by_label("Format", exact=True).input_value() == "NVFP4"
    assert size.input_value() == "2.5M"


def test_far_questions_are_grey_and_farther_ones_refused_and_what_is_no_number_is_said(
    visit: Any,  # noqa: F811
    address: str,
) -> None:
    one = ready(visit, address, "?n=20M&d=%3Cimg%20src=x%20onerror=window.pwned=1%3E&w=nothing")
    page = one.page
    assert one.complaints == []
    assert page.evaluate("window.pwned") is None
    box, said = page.locator("#calculator"), page.locator("#calculator .summary")
    assert "was left out" in box.inner_text()
    assert "No law is fitted where nothing stays wide" in said.inner_text()
    assert "NVFP4 everywhere at 98,304 parameters" in said.inner_text()
    page.get_by_label("What stays wide", exact=True).select_option("ends")
    assert box.get_attribute("data-kind") == "guess"
    assert said.inner_text().endswith("outside of what is recorded: a guess.")
    size = page.get_by_label("Parameters", exact=True)
    size.fill("7B")
    assert box.get_attribute("data-kind") == "refused"
    assert "no answer" in said.inner_text()
    for text in ("", "-3", "0", "ten", "1e999", "<b>"):
        size.fill(text)
        assert size.get_attribute("aria-invalid") == "true"
        assert "is no size" in box.inner_text()
    size.fill("1e6")
    assert size.get_attribute("aria-invalid") == "false"


def test_the_keyboard_reaches_everything_and_no_fault_is_found_in_either_palette(visit: Any, address: str) -> None:  # noqa: F811
    page = ready(visit, address).page
    page.get_by_label("Parameters", exact=True).focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("300k")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Tokens"
    page.keyboard.press("Tab")
    before = page.get_by_label("Format", exact=True).input_value()
    page.keyboard.press("ArrowUp")
    assert page.get_by_label("Format", exact=True).input_value() != before
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "What stays wide"
    assert "n=300k" in page.url
    for palette, width in (("light", 1280), ("dark", 360)):
        one = ready(visit, address, palette=palette, width=width)
        keep(one.page, "scaling", f"{palette}-{width}")
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        assert one.complaints == []
        assert axe_faults(one.page) == []


def test_the_page_is_six_screens_and_without_javascript_a_table_answers(visit: Any, browser: Any, address: str) -> None:  # noqa: F811
    page = ready(visit, address).page
    assert page.evaluate("document.documentElement.scrollHeight") <= 6 * 900
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollHeight") <= 12 * 844
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(address + PAGE)
    assert plain.locator("#calculator").count() == 0
    assert plain.locator("#table-calculator tbody tr").count() == 7 * 6
    assert plain.locator("#table-calculator").get_by_text("no answer").count() == 0
    context.close()
