"""Documents: what slots may hold, what fails, that `holds` cannot contradict the records; where sentences may stand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from jinja2 import UndefinedError

import altgrad
from altgrad.formats import list_formats
from altgrad.reports.document import DOCUMENTS
from altgrad.site import Bullets, Chart, ChartBlock, CodeBlock, Details, Heading, Md, Note, Paragraph, Table
from altgrad.site.document import Document, DocumentError, NotRecorded, macros, render_document

HOSTILE = "<script>*x* [a](javascript:1) {{ 1 + 1 }} {% if %} \x020\x03\n\n# Title\n\n- item"
PART = Table(("a",), (("1",),))
DRAWN = ChartBlock(Chart("c", "Its title", "A: 1; B: 2.", pd.DataFrame(), sketch=lambda drawing: None))


def rendered(text: str, **values: Any) -> Document:
    return render_document(f"# T\n\n{text}", "docs/d.md", values, {})


def test_a_document_becomes_blocks_with_parts_in_their_slots() -> None:
    text = """---
description: What it is about.
---
# The *title*

A paragraph
over {{ n }} lines.
## A heading {#anchor}
- one
  item
{% for name in names %}

- {{ name }}
{% endfor %}

{{ show("table") }}
{% call details("Folded " ~ n) %}
Inside.

{{ show("table") }}
{% endcall %}
{% call note("warning", "Box") %}
Inside.
{% endcall %}
{% call note("warning", "Nothing inside") %}
{% if not n %}
None.
{% endif %}
{% endcall %}
{% if n %}yes{% endif %} and{% if not n %} no{% endif %}.

```bash
# no heading

make
```

{## not shown ##}
The end.
"""
    found = render_document(text, "d.md", {"n": 2, "names": ["b", "c"]}, {"table": [PART]})
    assert (found.title, found.description) == ("The *title*", "What it is about.")
    assert found.blocks == (
        Paragraph("A paragraph over 2 lines."),
        Heading("A heading", 2, "anchor"),
        Bullets(("one item", "b", "c")),
        PART,
        Details("Folded 2", (Paragraph("Inside."), PART)),
        Note("warning", "Box", (Paragraph("Inside."),)),
        Paragraph("yes and."),
        CodeBlock("# no heading\n\nmake", "bash"),
        Paragraph("The end."),
    )


def test_a_document_says_what_a_figure_and_a_table_are() -> None:
    text = "{% call show(part, title='All of ' ~ name) %}\nEach\n{{ name }}.\n{% endcall %}"
    (table,) = rendered(text, part=PART, name="<b>").blocks
    assert table == Table(("a",), (("1",),), Md("Each &#60;b&#62;."))
    (figure,) = rendered(text, part=[DRAWN], name="<b>").blocks
    assert isinstance(figure, ChartBlock)
    assert (figure.chart.title, figure.chart.description) == ("All of <b>", "Each <b>. A: 1; B: 2."), "plain text"
    set_before = "{% set t %}All of {{ name }}.{% endset %}{{ show(part, title=t) }}"
    assert rendered(set_before, part=DRAWN, name="<b>'s").blocks[0].chart.title == "All of <b>'s."  # type: ignore[attr-defined]
    assert rendered("{{ show(part) }}{% call show(empty) %}Nothing.{% endcall %}", part=DRAWN, empty=[]).blocks == (
        DRAWN,
    )


def test_values_are_text_markdown_and_blocks_are_what_they_are() -> None:
    found = rendered(
        "{{ a }} {{ b }} {{ n }}\n\n{{ blocks }}\n\n{{ empty }}", a="<b>*", b=Md("**b**"), n=3, blocks=[PART], empty=()
    )
    assert found.blocks == (Paragraph("&#60;b&#62;&#42; **b** 3"), PART)


@pytest.mark.parametrize(
    "slot",
    [
        "{{ value }}",
        "- {{ value }}",
        "## {{ value }}",
        "**{{ value }}** and `{{ value }}`",
        "{% for each in [value] %}{{ each }}{% endfor %}",
        "{% call details(value) %}{{ value }}{% endcall %}",
        '{% call note("info", value) %}{{ value }}{% endcall %}',
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(value) }}",
        "{% set x = value %}{{ x | upper }}",
        "{% set x %}{{ value }}{% endset %}{{ x }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ value }}{% endcall %}",
        '{% call holds("true") %}{{ value }}{% endcall %}',
        "{% call show(table) %}{{ value }}{% endcall %}",
    ],
)
def test_a_hostile_value_stays_text_in_every_kind_of_slot(slot: str) -> None:
    """It makes no block, and no sign in it acts: all that may are character references."""
    found = str(rendered(slot, value=HOSTILE, table=PART).blocks)
    plain = rendered(slot, value="word", table=PART).blocks
    assert [type(block) for block in rendered(slot, value=HOSTILE, table=PART).blocks] == [
        type(block) for block in plain
    ]
    for sign in ("<script", "*x*", "](", "{{", "{%", "\x02", "\\x02"):
        assert sign not in found.lower()


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a\n\n{{ known }}\n{{ unknown }}\n", 6, "'unknown' is undefined"),
        ("a\n{{ known.nothing }}\n", 4, "nothing"),
        ("a\n{% if known %}\n", 4, "end of template|endif"),
        ("a\n\n{{ known | nofilter }}\n", 5, "nofilter"),
        ("a\n\n{{ 1 / none }}\n", 5, "unsupported operand"),
        ("{{ show('there') }}", 3, "there is no part 'there'"),
        ("{{ raising() }}", 3, "no value"),
        ("{{ known | safe }}", 3, "No filter named 'safe'"),
    ],
)
def test_a_slot_without_a_value_is_an_error_that_names_file_and_line(text: str, line: int, why: str) -> None:
    def raising() -> None:
        raise ValueError("no value")

    with pytest.raises(DocumentError, match=rf"^docs/d\.md:{line}: .*({why})") as caught:
        rendered(text, known={"x": 1}, raising=raising)
    assert "\n" not in str(caught.value)


def test_a_macro_for_a_cell_gives_plain_text_and_no_hole(tmp_path: Path) -> None:
    (tmp_path / "m.md").write_text("{% set n = {'a': 1} %}{% macro say(x) %}{{ x.y }}, {{ n.a }}{% endmacro %}")
    found = macros("m.md", tmp_path, {})
    assert (found.say({"y": HOSTILE}), found.n) == (f"{HOSTILE}, 1", {"a": 1})
    with pytest.raises(UndefinedError, match="has no attribute 'y'"):
        found.say({})


def test_a_part_that_no_slot_shows_is_an_error_also_where_a_branch_is_not_taken() -> None:
    shown = '{% if x %}{{ show("part") }}{% endif %}'
    assert render_document(f"# T\n{shown}", "d.md", {"x": False}, {"part": [PART]}).blocks == ()
    with pytest.raises(DocumentError, match=r'no slot shows other; write \{\{ show\("other"\) \}\}'):
        render_document(f"# T\n{shown}", "d.md", {"x": False}, {"part": [PART], "other": [PART]})
    assert render_document("# T\n", "d.md", {}, {}, shared={"part": [PART]}).blocks == ()


def test_a_document_without_a_title_is_an_error() -> None:
    with pytest.raises(DocumentError, match=r"^d\.md:1: the document has no title"):
        render_document("Text.\n", "d.md", {})


def test_a_sentence_in_holds_stands_while_it_is_true_and_fails_the_build_when_it_is_not() -> None:
    text = "{% call holds('best() == \"E3M4\" and gaps.E3M4 < limit') %}E3M4 costs {{ gaps.E3M4 }}.{% endcall %}"
    values = {"best": lambda: "E3M4", "limit": 0.01, "gaps": {"E3M4": 0.002}}
    assert rendered(text, **values).blocks == (Paragraph("E3M4 costs 0.002."),)
    with pytest.raises(DocumentError) as caught:
        rendered(text, **values | {"gaps": {"E3M4": 0.02}})
    assert str(caught.value).startswith('docs/d.md:3: the records contradict "E3M4 costs 0.02."')
    assert "gaps.E3M4 is 0.02, limit is 0.01" in str(caught.value)

    def pending() -> str:
        raise NotRecorded("the runs of study formats")

    assert "*the runs of study formats*" in str(rendered(text, **values | {"best": pending}).blocks)


def test_documents_lie_in_docs_and_the_package_has_them() -> None:
    assert (DOCUMENTS / "index.md").samefile(Path(__file__).parents[1] / "docs" / "index.md")


# Where sentences may stand

PACKAGE = Path(altgrad.__file__).parent
MOST_WORDS = 8


def constant(node: ast.AST) -> str | None:
    """The constant parts of a string: of one, of an f-string, of a sum; None of anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"\{[^{}]*\}", " ", text)  # the slots of a template
        case ast.JoinedStr(values=parts):
            return " ".join(filter(None, map(constant, parts)))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return " ".join(filter(None, map(constant, (left, right)))) or None
    return None


def sentences(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each string of more than eight words, without docstrings and what is raised."""
    words = (constant(node) or "").split()
    if sum(bool(re.search("[A-Za-z]", word)) for word in words) > MOST_WORDS:
        yield getattr(node, "lineno", 0), " ".join(words)
    for child in ast.iter_child_nodes(node):
        docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if not docstring and not isinstance(child, ast.Raise):
            yield from sentences(child)


@pytest.mark.parametrize("room", ["analysis", "reports"])
def test_sentences_stand_in_documents_and_not_in_modules(room: str) -> None:
    files = {file.relative_to(PACKAGE).as_posix(): file.read_text("utf-8") for file in (PACKAGE / room).glob("*.py")}
    found = {name: list(sentences(ast.parse(text))) for name, text in files.items()}
    assert found
    assert not [f"{name}:{line}: {text}" for name in sorted(found) for line, text in found[name]]


def test_a_sentence_in_a_module_is_found_however_it_is_put_together() -> None:
    few, more = "one two three four", "five six seven eight nine"
    nine = f"{few} {more}"
    for text in (f"{nine!r}", f"f'{few} {{y}} {more}'", f"{few!r} + {more!r} + y", f'f"{{{nine!r} if y else z}}"'):
        assert {*sentences(ast.parse(f"x = {text}"))} == {(1, nine)}, text
    for text in (f"{nine!r}", f"raise ValueError({nine!r})", f"x = {few!r}", f"x = ({few!r}, {more!r})"):
        assert not list(sentences(ast.parse(text))), text


ALLOWED = {
    r"\bH[0-9]+\b": "the number of a hypothesis",
    r"\b(?:8|16|32)[- ]bits?\b|\bfloat32\b": "how wide numbers are",
    r"\b95% (?:CI|(?:paired )?t? ?intervals?)\b|\bpower 80%": "what an interval and a planned test are",
    r"(?:\b(?:above|against|else|from|of|than|to|with)|…) FP32\b(?!'s)": "what a gap is to",
    r"\bFP32(?: runs?|'s learning rate)\b": "what every format is run beside",
    r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}\b": "a date",
    r"\*\*Said until [0-9-]+:\*\*.*?(?= - \*\*So:)": "what a page said",
    r"- (?:They report|At which scale|We compare):.*?(?= - )": "what others report, and what is compared",
    r'"[^"]*"': "a word of a page",
}
"""Digits and names of formats that are no result, and why."""
_NAMES = "|".join(sorted((*(fmt.label for fmt in list_formats()), "MXFP[468]", "NVFP4"), key=len, reverse=True))


def prose(text: str) -> str:
    """A document without head, comments, `holds`, code, slots (an ellipsis), tags, headings and links."""
    for pattern, instead in (
        (r"\A---\n.*?\n---\n|\{##.*?##\}|\{% call holds\(.*?\{% endcall %\}", ""),
        (r"^```.*?^```|`[^`]*`", ""),
        (r"\{\{.*?\}\}", "…"),
        (r"\{%.*?%\}|^#+ [^\n]*|\[[^\]]*\]\([^)]*\)", ""),
    ):
        text = re.sub(pattern, instead, text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def unheld(text: str) -> list[str]:
    """The digits and names of formats in a document's prose, each with what is around it."""
    text = re.sub("|".join(ALLOWED), "", prose(text))
    return [
        text[max(0, found.start() - 40) : found.end() + 20] for found in re.finditer(rf"\b(?:{_NAMES})\b|[0-9]+", text)
    ]


def test_no_number_and_no_format_stands_in_prose_that_nothing_holds() -> None:
    files = [*DOCUMENTS.glob("reports/*.md"), *DOCUMENTS.glob("sections/*.md"), DOCUMENTS / "index.md"]
    found = {file.relative_to(DOCUMENTS).as_posix(): unheld(file.read_text("utf-8")) for file in files}
    assert not {name: each for name, each in found.items() if each}


def test_no_page_says_what_readers_did_not_understand() -> None:
    files = [*DOCUMENTS.glob("reports/*.md"), *DOCUMENTS.glob("sections/*.md"), DOCUMENTS / "index.md"]
    texts = {file.name: prose(file.read_text("utf-8")) for file in [*files, DOCUMENTS.parents[2] / "README.md"]}
    for words in ("told from", "told apart", "looks", "whole codes", "in each of the four", "ANAL-"):
        assert not [name for name, text in texts.items() if re.search(rf"\b{words}", text)], words


def test_a_number_or_a_format_in_prose_is_found() -> None:
    assert len(unheld("E4M3 costs least, by 0.02 nats; FP32 failed.")) == 4
    assert not unheld(
        "{% call holds('x') %}E4M3 costs 2.{% endcall %} {{ gap }} above FP32 (95% CI `3`), see [E4M3](altgrad:a4)."
    )
