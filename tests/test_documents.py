"""Documents: what slots may hold, what fails, and that a sentence in `holds` cannot contradict the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from altgrad.reports.document import DOCUMENTS
from altgrad.site import Bullets, CodeBlock, Details, Heading, Md, Note, Paragraph, Table
from altgrad.site.document import Document, DocumentError, NotRecorded, render_document

HOSTILE = "<script>*x* [a](javascript:1) {{ 1 + 1 }} {% if %} \x020\x03\n\n# Title\n\n- item"
PART = Table(("a",), (("1",),))


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
    ],
)
def test_a_hostile_value_stays_text_in_every_kind_of_slot(slot: str) -> None:
    """It makes no block, and no sign in it acts: all that may are character references."""
    found = str(rendered(slot, value=HOSTILE).blocks)
    plain = rendered(slot, value="word").blocks
    assert [type(block) for block in rendered(slot, value=HOSTILE).blocks] == [type(block) for block in plain]
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
