"""Pages as values: hostile text stays text in both dialects, charts are deterministic, both back ends agree."""

from __future__ import annotations

import csv as csv_reader
import html
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import markdown as python_markdown
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from altgrad.site import (
    BACKGROUND,
    FOREGROUND,
    GRID,
    HEAT,
    MUTED,
    PALETTE,
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
    escape,
    fixed_svg,
    inline_svg,
    join,
    link,
    md,
    tell,
    write_folder,
)
from altgrad.site.build import finish_html
from altgrad.site.html import body_html
from altgrad.site.render import Dialect, files, render
from altgrad.text import csv

SITE = Dialect(lambda reference: f"{reference.path}.md#{reference.anchor}", whole=True)
PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "a | b || c",
    "**bold** __bold__ *it* _it_ ~~gone~~",
    "`code` ``code``",
    "{: onclick=alert(1) } {#id .class}",
    "{{ config }} {% raw %}",
    "# heading",
    "- item",
    "1. item",
    "2) item",
    "> quote",
    "    indented",
    "!!! note",
    "??? note",
    ": definition",
    "=== tab",
    "---",
    "***",
    "&lt;b&gt; &#60;b&#62; &amp;",
    "[ref]: https://evil.example",
    "[^1] [x][y]",
    "<https://evil.example>",
    "https://evil.example www.evil.example a@evil.example",
    "\\*escaped\\* \\",
    "\"quoted\" 'single'",
    "--8<-- 'pyproject.toml'",
    "$x$ \\(x\\)",
    "](altgrad:index)",
    "a\nb\r\n\r\n# c\u2028d",
]


def to_html(text: str) -> str:
    """The site's markdown dialect as HTML."""
    extensions = ["admonition", "attr_list", "def_list", "tables", "toc", "pymdownx.details", "pymdownx.superfences"]
    return python_markdown.markdown(text, extensions=extensions)


def text_of(markup: str) -> str:
    """What a reader sees of some HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def draw(axes: Axes) -> None:
    axes.plot([0, 1, 2], [1.0, 0.5, 0.75], color=PALETTE[1])
    axes.text(2, 0.75, "E4M3 <b>", color=FOREGROUND, bbox={"facecolor": BACKGROUND, "edgecolor": "none"})
    axes.set_xlabel("step")


def chart(identity: str = "gap", title: str = "Gap") -> Chart:
    return Chart(identity, title, "A line.", pd.DataFrame({"step": [0, 1, 2], "gap": [1.0, 0.5, 0.1 + 0.2]}), draw)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_untrusted_text_is_shown_as_written_and_makes_no_markup(payload: str) -> None:
    shown = to_html(f"{escape(payload)}\n")
    assert re.fullmatch(r"<p>[^<]*</p>", shown), shown
    assert text_of(shown) == " ".join(payload.split("\n")[0].split()) if "\n" not in payload else True


@given(st.text(max_size=80))
def test_any_text_is_one_paragraph_without_elements(text: str) -> None:
    shown = to_html(f"x {escape(text)}\n")
    assert re.fullmatch(r"<p>[^<]*</p>", shown, re.DOTALL), shown


@given(st.text(alphabet="`|*_[]()<>{}:#!\\&\"' ab\n", max_size=40))
def test_any_cell_stays_in_its_row_and_column(text: str) -> None:
    table = Table(("A", "B", "C"), ((text, code(text), "end"),))
    shown = to_html(render(Page("p", "T", (table,)), SITE))
    assert shown.count("<tr>") == 2
    assert shown.count("<td>") == 3
    assert "<td>end</td>" in shown
    assert not re.search(r"<(?!/?(?:h1|p|table|thead|tbody|tr|th|td|code)\b)", shown)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_code_shows_its_text(payload: str) -> None:
    shown = to_html(f"x {code(payload)}\n")
    (inside,) = re.findall(r"<code>(.*?)</code>", shown, re.DOTALL)
    assert "<" not in inside
    assert html.unescape(inside).split() == payload.split()


@pytest.mark.parametrize(
    "char", ["\u202e", "\u2066", "\u200b", "\ufeff", "\x00", "\x1b", "\ud800", "\U000e0041", "\u00ad"]
)
def test_invisible_and_directional_characters_are_spelled_out(char: str) -> None:
    assert escape(f"a{char}b") == f"a⟨U+{ord(char):04X}⟩b"
    assert char not in code(f"a{char}b")


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert len(escape("x" * 10_000)) < 1_100
    assert escape("x" * 10_000).endswith("… (10,000 characters)")
    row = render(Page("p", "T", (Table(("A",), (("y" * 10_000,),)),)), SITE).splitlines()[-1]
    assert len(row) < 250


def test_a_template_escapes_its_values_and_keeps_its_own_markup() -> None:
    assert md("**{gap:.3f}** of {name}", gap=0.12345, name="a*b") == "**0.123** of a&#42;b"
    assert md("{inner}!", inner=md("*{x}*", x="_")) == "*&#95;*!"
    assert join(", ", ["a|b", Md("*c*")]) == "a&#124;b, *c*"


def test_trusted_markdown_added_to_text_is_untrusted_again() -> None:
    assert not isinstance(Md("*a*") + "<b>", Md)


@pytest.mark.parametrize(
    "target",
    [
        "javascript:alert(1)",
        "JAVASCRIPT:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "//evil.example",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@evil.example",
        "https://evil.example:port/",
        "https://a b.example",
        "https://ex\u202eample.org",
        "java\nscript:alert(1)",
        "http://[::1",
        "relative/path",
    ],
)
def test_an_address_that_is_not_plain_http_leaves_only_text(target: str) -> None:
    assert link("text", target).markdown() == "text"


def test_a_web_address_cannot_leave_its_parentheses() -> None:
    shown = to_html(link("W&B", 'https://wandb.ai/a(b)/"c"><x>?q=1&r=[2]#d').markdown())
    (address,) = re.findall(r'<a href="([^"]*)">W&#38;B</a>', shown)
    assert html.unescape(address) == "https://wandb.ai/a%28b%29/%22c%22%3E%3Cx%3E?q=1&r=%5B2%5D#d"


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", "a b", "a/", "", "a\n", ".hidden", "a#b"])
def test_a_page_path_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="page path"):
        PageRef(path)
    with pytest.raises(ValueError, match="page path"):
        Page(path, "T", ())
    with pytest.raises(ValueError, match="page path"):
        Download(path, b"")


def test_a_code_block_ends_where_it_should() -> None:
    shown = to_html(render(Page("p", "T", (CodeBlock("```\n<b>\n````x", "bash"), Paragraph("after"))), SITE))
    assert text_of(shown).split() == ["T", "```", "<b>", "````x", "after"]
    assert shown.rstrip().endswith("<p>after</p>")


def test_a_row_with_a_missing_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        Table(("A", "B"), (("1",),))


def test_cells_show_numbers_with_a_true_minus_and_gaps_as_a_dash() -> None:
    page = Page("p", "T", (Table((Column("A", "right"), "B", "C", "D"), ((-0.123456, None, float("nan"), -7),)),))
    assert render(page, SITE).splitlines()[-1] == "| −0.1235 | – | – | −7 |"


def test_a_chart_is_the_same_bytes_every_time_and_names_only_its_own_ids() -> None:
    first, second, other = fixed_svg(chart()), fixed_svg(chart()), fixed_svg(chart("other"))
    assert first == second
    ids = {element.get("id") for element in ElementTree.fromstring(first).iter()} - {None}
    assert ids
    assert all(str(identity).startswith("chart-gap-") for identity in ids)
    assert not ids & {element.get("id") for element in ElementTree.fromstring(other).iter()} - {None}
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', first.decode()):
        assert reference in ids


def test_a_chart_carries_no_global_style_no_named_font_and_no_date() -> None:
    svg = fixed_svg(chart()).decode()
    for part in ("<style", "DejaVu", "<metadata", "matplotlib.org", "<!DOCTYPE", "<script"):
        assert part not in svg


def test_a_chart_says_what_it_shows_and_keeps_its_labels_as_text() -> None:
    root = ElementTree.fromstring(fixed_svg(chart(title="Gap <of> & 'all'")))
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    assert root.findtext(f"{space}title") == "Gap <of> & 'all'"
    assert root.findtext(f"{space}desc") == "A line."
    assert "E4M3 <b>" in [element.text for element in root.iter(f"{space}text")]


def test_who_points_at_a_mark_reads_its_figures_as_text() -> None:
    def draw(axes: Axes) -> None:
        (point,) = axes.plot([0], [1], "o")
        tell('E4M3: −0.1 <b>&"', point, axes.vlines([0], [0], [2]))

    for svg in (
        fixed_svg(drawn := Chart("points", "T", "D", pd.DataFrame({"a": [1]}), draw)).decode(),
        inline_svg(fixed_svg(drawn).decode()),
    ):
        titles = [each.text for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("title")][1:]
        assert titles == ["E4M3: −0.1 <b>&”"] * 2
        assert "told" not in svg


def test_inline_every_sentinel_colour_is_a_variable_and_the_background_is_gone() -> None:
    def draw_all(axes: Axes) -> None:
        for number, colour in enumerate((*PALETTE, *HEAT, FOREGROUND, MUTED, GRID, BACKGROUND)):
            axes.plot([0, 1], [number, number], color=colour)

    inline = inline_svg(fixed_svg(Chart("all", "T", "D", pd.DataFrame({"a": [1]}), draw_all)).decode())
    for number in range(1, 9):
        assert f"var(--chart-{number}, " in inline
        assert number > 6 or f"var(--heat-{number}, " in inline
    assert not re.search(r"(?<!, )#[0-9a-f]{6}", inline)
    assert "<rect" not in inline.split("<g", 1)[0]
    assert len({*PALETTE, *HEAT, FOREGROUND, MUTED, GRID, BACKGROUND}) == 18


def full_page() -> Page:
    data = pd.DataFrame({"name": ["=1+1", "b"], "gap": [0.1 + 0.2, -1.0]})
    return Page(
        "reports/one",
        "One",
        (
            Paragraph(
                md(
                    "See {other} and {web}.",
                    other=link("runs", PageRef("runs/arm", "Seed 1")),
                    web=link("w", "https://w.example"),
                )
            ),
            ChartBlock(chart()),
            Details(
                "More",
                (ChartBlock(chart("two")), Table(("A", "B"), ((link("two", PageRef("reports/two")), 1),), "Inner")),
            ),
            Note("warning", "Careful", (Bullets(("a", "b")),)),
            Heading("Data", anchor="data"),
            Table(("A", "B"), (("x|y", 1),), "Outer", data=data, id="outer"),
        ),
        downloads=(Download("raw.json", b"{}"),),
        provenance=Provenance((("Runs", "3"),)),
    )


def test_a_folder_holds_markdown_charts_and_data_and_every_relative_link_leads_to_a_file(tmp_path: Path) -> None:
    pages = [full_page(), Page("reports/two", "Two", (Paragraph("text"),))]
    written = write_folder(pages, tmp_path, site_root="../site/")
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())
    assert {"one.md", "one.gap.svg", "one.gap.csv", "one.outer.csv", "one.raw.json", "two.md"} <= {
        p.name for p in written
    }
    text = (tmp_path / "one.md").read_text()
    assert "](../site/runs/arm/index.html#seed-1)" in text
    assert "](two.md)" in text
    for target in re.findall(r"\]\(([^):#]+)\)", text):
        assert target.startswith("../site/") or (tmp_path / target).is_file(), target
    assert text.rstrip().endswith("## Provenance\n\n- **Runs:** 3")


def test_writing_again_touches_nothing_and_removes_what_a_page_no_longer_has(tmp_path: Path) -> None:
    paths = write_folder([full_page()], tmp_path, site_root="../site/")
    (tmp_path / "one.old-chart.svg").write_text("stale")
    (tmp_path / "unrelated.svg").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert write_folder([full_page()], tmp_path, site_root="../site/") == paths
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    assert not (tmp_path / "one.old-chart.svg").exists()
    assert (tmp_path / "unrelated.svg").exists()


def test_both_back_ends_write_the_same_charts_and_data(tmp_path: Path) -> None:
    write_folder([full_page()], tmp_path, site_root="../site/")
    site = files(full_page())
    for path in tmp_path.iterdir():
        if path.suffix != ".md":
            assert site[path.name] == path.read_bytes()


def test_a_chart_with_given_margins_has_its_axes_there() -> None:
    drawing = fixed_svg(replace(chart(), width=4.0, height=2.0, margins=(0.5, 0.25, 0.5, 0.25))).decode()
    assert 'viewBox="0 0 288 144"' in drawing
    assert re.search(r'<path d="M 36 108 \nL 36 18 ', drawing), "the left spine: half an inch in, a quarter down"


def test_data_files_defuse_formulas_in_their_headings_too() -> None:
    assert csv(pd.DataFrame({"=1+1": [1]})) == b"'=1+1\n1\n"


def test_data_files_keep_ten_digits_and_defuse_spreadsheet_formulas() -> None:
    rows = list(csv_reader.reader(io.StringIO(files(full_page())["one.outer.csv"].decode())))
    assert rows == [["name", "gap"], ["'=1+1", "0.3"], ["b", "-1"]]


def test_data_files_have_the_hyphen_that_programs_read_and_no_formula_comes_of_it() -> None:
    texts = ["−0.5", "−1+1", "-2e-3", "A − B: −0.161 [−0.171, 2^−9]", "+.5", "-x"]
    plain = ["-0.5", "'-1+1", "-2e-3", "A − B: -0.161 [-0.171, 2^-9]", "+.5", "'-x"]
    rows = list(csv_reader.reader(io.StringIO(csv(pd.DataFrame({"text": texts, "n": 1})).decode())))
    assert [row[0] for row in rows[1:]] == plain
    page = Page("p", "T", (Table(("text",), ((texts[0],),), data=pd.DataFrame({"text": texts[:1]}), id="t"),))
    assert json.loads(files(page)["p.t.json"]) == [{"text": "-0.5"}]


@pytest.mark.parametrize("ends", ["\r", "\n", "\r\n", "\t", "\v", "\f", "\x1d", "\x85", "\u2028", "; ", ";"])
@pytest.mark.parametrize(
    "formula", ["=1+1", "@SUM(1)", "+1+1", "-1+1", "-2.5e3+cmd|' '!A0", "＝1+1", '=HYPERLINK("x")', " =1+1"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_reader_finds_a_row_or_a_formula_within_a_text(ends: str, formula: str, separator: str) -> None:
    data = csv(pd.DataFrame({"a": [f"x{ends}{formula}", f"{ends}{formula}", "−0.5", "z"], f"b{ends}{formula}": 1}))
    text = data.decode()
    assert len(text.splitlines()) == 5
    rows = list(csv_reader.reader(io.StringIO(text, newline=None), delimiter=separator))
    assert len(rows) == 5
    cells = [cell.strip() for row in [*rows, *(line.split(separator) for line in text.splitlines())] for cell in row]
    assert "x" in text
    assert [
        cell for cell in cells if re.match(r"""["']?(?:[=@＝＠]|[+-](?:\D|\S+\+))""", cell) and cell[0] != "'"
    ] == []


def test_two_charts_of_one_name_on_a_page_are_refused() -> None:
    with pytest.raises(ValueError, match="its own id"):
        files(Page("p", "T", (ChartBlock(chart()), ChartBlock(chart()))))


def test_a_page_has_charts_inline_and_tables_in_labelled_boxes_at_every_depth() -> None:
    page = full_page()
    found = body_html(page, files(page)).html
    assert found.count('<figure class="chart"') == 2
    assert found.count('role="img"') == 2
    assert "<img" not in found
    assert re.findall(r'<div class="table-box" role="group" tabindex="0" aria-label="([^"]*)"', found) == [
        "Inner",
        "Outer",
    ]
    assert found.count("<table") == found.count("</table>") == found.count('<p class="table-caption">') == 2


def test_a_table_written_by_hand_stands_in_a_box_and_a_picture_stays_one() -> None:
    picture = '<p><img alt="x" src="other.svg" /></p>\n<p>Chart: <a href="y">y</a></p>'
    assert finish_html(picture) == picture
    boxed = finish_html(to_html("| A |\n| - |\n| b |"))
    assert re.match(r'<div class="table-box" role="group" tabindex="0" aria-label="Table"><table class="data"', boxed)
