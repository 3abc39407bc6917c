"""The content of a page: Python-Markdown's, with tables and charts in it that are HTML already."""

from __future__ import annotations

import html
import importlib.util
import re
import sys
from html.parser import HTMLParser
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
from altgrad.site.build import source_name
from altgrad.site.chart import fixed_svg
from altgrad.site.content import Block, Source
from altgrad.site.html import _inline_reader, body_html, inline_html
from altgrad.site.render import files
from altgrad.text import escape, visible

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


pages_tests = sibling("test_pages")
CHART: Chart = pages_tests.chart()


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_page_with_every_block_has_it() -> None:
    data = pd.DataFrame({"a": [1.5, -2.0]})
    blocks: tuple[Block, ...] = (
        Paragraph(Md("*A question?* **An answer, {braces}** with `code < 1`, [a link](x/y.html) and <br> & *more*.")),
        Heading("The same"),
        Heading("The same"),
        Heading(Md("With `code` & more"), 3, "own-anchor"),
        ChartBlock(CHART),
        Bullets(("a", md("{x} and {y}", x=link("runs", PageRef("runs/arm", "seed-1")), y=code("a|b")))),
        Table((Column("A", "right"), Column("B", sortable=False)), ((1.5, "x|y"), (None, code("a|b"))), "C", data, "t"),
        CodeBlock("a: [1, 2]", "yaml"),
        Note("warning", "Careful", (Paragraph("x"), Bullets(("y",)), CodeBlock("z"))),
        Details("More", (Table(("A",), (("b",),), "Inner"), Paragraph("after"))),
    )
    page = Page(
        "a/index", "A & B", blocks, downloads=(Download("raw.json", b"{}"),), provenance=Provenance((("R", "3"),))
    )
    body = body_html(page, files(page))
    found = body.html.replace("&#38;", "&amp;").replace(">\n", ">")
    for part in (
        '<h1 id="a-b">A &amp; B',
        "<em>A question?</em> <strong>An answer, {braces}</strong> with <code>code &lt; 1</code>",
        '<h2 id="the-same_1">',
        '<h3 id="own-anchor">With <code>code</code> &amp; more',
        '<figure class="chart" id="chart-gap"',
        '<a href="../runs/arm/#seed-1">runs</a> and <code>a&#124;b</code>',
        '<div class="table-box" role="group" tabindex="0" aria-label="C" data-sort="10" id="table-t">',
        '<td style="text-align: right;">1.5</td><td>x&#124;y</td>',
        '<p class="files">Table: <a href="index.t.csv">CSV</a> · <a href="index.t.json">JSON</a></p>',
        '<span class="nt">a</span>',
        '<div class="admonition warning"><p class="admonition-title">Careful</p>',
        '<details class="abstract"><summary>More</summary><p class="table-caption">Inner</p>',
        '<p class="files">Files: <a href="index.raw.json">raw.json</a></p>',
        "<li><strong>R:</strong> 3</li>",
    ):
        assert part in found, part
    assert "\ue000" not in body.html


@pytest.mark.parametrize("payload", pages_tests.PAYLOADS)
def test_hostile_text_is_read_as_it_was_written_in_every_place(payload: str) -> None:
    def page(text: str) -> Page:
        blocks: tuple[Block, ...] = (
            Paragraph(text),
            Bullets((text, code(text))),
            Table((text,), ((text,), (code(text),)), text),
            Note("info", text, (Paragraph(text), CodeBlock(text, text))),
            Details(text, (Paragraph(text),)),
            Paragraph(md("**{x}** {y}", x=text, y=link(text, "https://a.example/b(c)"))),
        )
        return Page("p/index", text, blocks, provenance=Provenance(((text, text),)))

    body, plain = (body_html(page(text), {}).html for text in (payload, "plain"))
    assert [tag for tag, _ in Elements(body).found if tag not in ("span", "wbr")] == [
        tag for tag, _ in Elements(plain).found if tag not in ("span", "wbr")
    ]
    allowed = {"id", "class", "href", "title", "role", "tabindex", "aria-label", "data-sort"}
    assert {name for _, attributes in Elements(body).found for name in attributes} <= allowed
    shown = " ".join(html.unescape(re.sub(r"<[^>]*>", "", body)).split())
    assert shown.count(" ".join(visible(payload).split())) >= 8


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="`|*_[]()<>{}:#!\\&\"'~ ab1.-\n\u202e", max_size=40))
def test_text_that_needs_no_reader_is_what_the_reader_gives(text: str) -> None:
    for inline in (md("x {t}", t=text), code(text), escape(text)):
        read = _inline_reader().reset().convert(inline)
        assert inline_html(inline) == read.removeprefix("<p>").removesuffix("</p>")


def test_links_and_contents_are_told_for_the_check_of_the_whole_site() -> None:
    page = Page(
        "reports/one",
        "One",
        (Heading("Deep", 4), Heading("Data"), Paragraph(md("{x}", x=link("arm", PageRef("runs/arm", "Seed 1"))))),
    )
    body = body_html(page, {})
    assert body.links == (("runs/arm", "seed-1"),)
    (top,) = body.toc
    assert (top["level"], top["id"], [below["id"] for below in top["children"]]) == (1, "one", ["data"])
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


def test_the_heads_of_a_map_break_into_lines_and_are_not_cut_where_there_is_room() -> None:
    from altgrad.reports.heat_map import figures_map

    names = ["per 32 values", "gradients along the sum", "none"]
    cells = pd.DataFrame([[0.1, 0.2, float("nan")]], ["E4M3"], names)
    drawn = fixed_svg(figures_map("m", "", cells, cells, (1, 2, 3, 4), "abcde", str)).decode()
    texts = re.findall("<text[^>]*>([^<]*)<", drawn)
    assert not [text for text in texts if "…" in text]
    assert {*" ".join(names).split()} <= {*" ".join(texts).split()}
    assert "gradients along the sum" not in texts
