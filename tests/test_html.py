"""The site's own HTML of a page is what Python-Markdown makes of the same page."""

from __future__ import annotations

import difflib
import importlib.util
import posixpath
import re
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.site import (
    Bullets,
    Chart,
    ChartBlock,
    CodeBlock,
    Column,
    Details,
    Download,
    Heading,
    Md,
    Note,
    Page,
    PageRef,
    Paragraph,
    Provenance,
    Table,
    code,
    link,
    md,
)
from altgrad.site.build import finish_html, source_name
from altgrad.site.content import Block, Source
from altgrad.site.html import body_html
from altgrad.site.render import Dialect, files, render

pytest.importorskip("pymdownx")
ROOT = Path(__file__).resolve().parents[1]


def sibling(name: str) -> ModuleType:
    """Another test file as a module, for its helpers."""
    spec = importlib.util.spec_from_file_location(f"_{name}", ROOT / "tests" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages_tests, guides_tests = sibling("test_pages"), sibling("test_guides")
CHART: Chart = pages_tests.chart()


def folder(path: str) -> str:
    return (posixpath.dirname(path) if posixpath.basename(path) == "index" else path) or "."


def through_markdown(page: Page) -> str:
    """The page through Python-Markdown with the site's extensions, links as the site resolves them."""

    def address(reference: PageRef) -> str:
        target = posixpath.relpath(folder(reference.path), folder(page.path)) + "/"
        return f"{target}#{reference.anchor}" if reference.anchor else target

    dialect = Dialect(site=True, address=address)
    beside = files(page, dialect)
    text = render(page, dialect).split("---\n\n", 1)[1]
    return finish_html(guides_tests.rendered(text), lambda name: beside[name].decode() if name in beside else None)


def difference(page: Page) -> list[str]:
    """Lines in which the two differ."""
    beside = files(page, Dialect(site=True, address=lambda reference: ""))
    own = body_html(page, beside, lambda source: None).html.replace("<wbr>", "")  # in cells, where long names break
    first, second = (
        [line.strip() for line in html.split("\n") if line.strip()] for html in (through_markdown(page), own)
    )
    return [line[:300] for line in difflib.unified_diff(first, second, lineterm="", n=0)]


def test_a_page_with_every_block_is_the_same() -> None:
    data = pd.DataFrame({"a": [1.5, -2.0]})
    blocks: tuple[Block, ...] = (
        Paragraph(Md("*A question?* **An answer, {braces}** with `code < 1`, [a link](x/y.html) and <br> & *more*.")),
        Heading("The same"),
        Heading("The same"),
        Heading(Md("With `code` & more"), 3, "own-anchor"),
        ChartBlock(CHART),
        Bullets(("a", md("{x} and {y}", x=link("runs", PageRef("runs/arm", "seed-1")), y=code("a|b")))),
        Table((Column("A", "right"), Column("B", sortable=False)), ((1.5, "x|y"), (None, code("a|b"))), "C", data, "t"),
        Table(("A",), ((-3,),)),
        CodeBlock("make demo # <b>\n\n  x = 'y'", "bash"),
        CodeBlock("a: [1, 2]", "yaml"),
        CodeBlock("plain ``` text"),
        Note("warning", "Careful", (Paragraph("x"), Bullets(("y",)), CodeBlock("z"))),
        Details("More", (Table(("A",), (("b",),), "Inner"), Paragraph("after"))),
    )
    page = Page(
        "a/index", "A & B", blocks, downloads=(Download("raw.json", b"{}"),), provenance=Provenance((("R", "3"),))
    )
    assert difference(page) == []


@pytest.mark.parametrize("payload", pages_tests.PAYLOADS)
def test_hostile_text_is_the_same_in_every_place(payload: str) -> None:
    blocks: tuple[Block, ...] = (
        Paragraph(payload),
        Bullets((payload, code(payload))),
        Table((payload,), ((payload,), (code(payload),)), payload),
        Note("info", payload, (Paragraph(payload), CodeBlock(payload, payload))),
        Details(payload, (Paragraph(payload),)),
        Paragraph(md("**{x}** {y}", x=payload, y=link(payload, "https://a.example/b(c)"))),
    )
    assert difference(Page("p/index", payload, blocks, provenance=Provenance(((payload, payload),)))) == []


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="`|*_[]()<>{}:#!\\&\"'~ ab1.-\n\u202e", max_size=40))
def test_any_text_is_the_same(text: str) -> None:
    blocks = (
        Paragraph(md("x {t}", t=text)),
        Table(("A",), ((text,), (code(text),)), "C"),
        Bullets((md("y {t}", t=text),)),
    )
    assert difference(Page("p/index", "T", blocks)) == []


def test_links_and_contents_are_told_for_the_check_of_the_whole_site() -> None:
    page = Page(
        "reports/one",
        "One",
        (Heading("Deep", 4), Heading("Data"), Paragraph(md("{x}", x=link("arm", PageRef("runs/arm", "Seed 1"))))),
    )
    body = body_html(page, {}, lambda source: None)
    assert body.links == (("runs/arm", "seed-1"),)
    assert [(level, identity) for level, identity, _ in body.toc] == [(1, "one"), (2, "data")]
    assert 'href="../../runs/arm/#seed-1"' in body.html


def test_a_chart_and_a_table_know_the_function_that_made_them(tmp_path: Path) -> None:
    def make() -> tuple[Chart, Table]:
        return Chart("c", "T", "D", pd.DataFrame({"a": [1]}), CHART.draw), Table(("A",), ((1,),))

    for made in make():
        assert made.source == Source(__file__, "test_a_chart_and_a_table_know_the_function_that_made_them")
    from altgrad.reports import heat_map

    source = Source(str(heat_map.__file__), "heat_map")
    assert source_name(source, tmp_path) == "altgrad/reports/heat_map.py"
    assert source_name(Source(__file__, "x"), tmp_path) is None, (
        "files outside of project and library are not published"
    )
    assert re.fullmatch(r"heat_map\(\)", source.name)
    assert sys.modules[__name__]
