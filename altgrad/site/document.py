"""A document: Markdown that a person writes, with Jinja slots where what is computed is placed.

    # Failure modes
    {{ show("operands") }}                                      a figure, a table or a section, by name or as a value
    {% call show("operands", title="...") %}...{% endcall %}    with what is said of it: a table's caption; a figure's
                                                                title, and words before the figures that it gives
    E0M7 ends {{ gap | signed }} above FP32.                    a value; text that is not `Md` is escaped
    {% call holds('best() == "E3M4"') %}E3M4 costs least.{% endcall %}
    {% call details("The tests") %}...{% endcall %}             folded away, never empty; note("info", "Title") is a box
    [text](altgrad:reports/format_comparison#results)           a page, wherever the document is written
    [text](altgrad:explorer?on=e4m3)                            with what the page reads from its address
    {% import "sections/answer.md" as say with context %}       macros that several documents share

An unknown slot is an error, since a sentence with a hole in it would still look like a result. So is a part that no
slot shows, and so is a sentence in `holds` that the records contradict.
"""

from __future__ import annotations

import contextlib
import html
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import CodeType
from typing import Any, Literal

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateError, nodes
from jinja2.runtime import Undefined
from markupsafe import Markup

from altgrad.config import UsageError
from altgrad.site.content import (
    Block,
    Bullets,
    ChartBlock,
    CodeBlock,
    Details,
    Heading,
    Link,
    Note,
    Paragraph,
    Table,
    Text,
    markdown,
)
from altgrad.text import Md, escape

Part = Sequence[Block] | Callable[[], Sequence[Block]]
"""Blocks that a slot places; a function is called by the slot that shows it."""

_HEAD = re.compile(r"---\n(?:description: (?P<description>.*)\n)?---\n")
_FENCE = re.compile(r"^(```\w*\n.*?\n```)$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,4}) (.+?)(?: \{#([\w-]+)\})?$", re.MULTILINE)
_PLACE = re.compile("\x02([0-9]+)\x03")
_INLINE_TAG = re.compile(r"^(?!\s*\{%[^%]*%\}\s*$)(.*)(?<![-+])%\}[ \t]*$", re.MULTILINE)
"""The last tag of a line with text: the line ends there, while a line of one tag leaves nothing behind."""
_HTML_FILTERS = ("e", "escape", "forceescape", "safe", "tojson", "urlize", "xmlattr")
_OPERATORS = re.compile(r"\s+(?:and|or|not|in|==|!=|<=|>=|<|>)\s+")


class DocumentError(UsageError):
    """A document that cannot be rendered: one line that names the file, the line and what is wrong."""


class NotRecorded(LookupError):
    """A value whose runs are not there: what stands in `holds` is then pending, and not contradicted."""


@dataclass(frozen=True)
class Document:
    """A rendered document: its first heading, the description in its head, and what stands below."""

    title: str
    description: str
    blocks: tuple[Block, ...]


def render_document(
    text: str,
    name: str,
    values: Mapping[str, Any],
    parts: Mapping[str, Part] | None = None,
    shared: Mapping[str, Part] | None = None,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    folder: Path = Path(),
) -> Document:
    """The document with its values and parts in their slots.

    Args:
        text: Markdown with slots.
        name: of the file, for messages.
        values: by the name of their slot; text that is not `Md` is escaped, blocks are placed.
        parts: what `show` places, by name; each has to be shown by some slot, in whichever branch.
        shared: further parts, which need not be shown.
        filters: what a slot may apply to a value, by name.
        folder: of the documents that it may import.

    Raises:
        DocumentError: a slot is unknown or cannot be computed, a part is not shown, the template is malformed, or the
            records contradict a sentence in `holds`.
    """
    parts = parts or {}
    placed: list[Sequence[Block]] = []
    sources = {name}

    def imported(file: str) -> tuple[str, str, None] | None:
        sources.add(file)
        return _source(folder, file)

    def place(blocks: Sequence[Block]) -> Md:
        placed.append(blocks)
        return Md(f"\n\n\x02{len(placed) - 1}\x03\n\n") if blocks else Md("")

    def written(value: Any) -> Any:
        if isinstance(value, Undefined | Markup):  # what a macro or a {% set %} block has written
            return value
        blocks = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(each, Block) for each in blocks):
            return Markup(place(blocks))
        return _inline(value)

    environment = _environment(written, filters or {})
    environment.loader = FunctionLoader(imported)

    def show(part: str | Block | Sequence[Block], title: str = "", caller: Callable[[], str] = str) -> Md:
        known = {**(shared or {}), **parts}
        if isinstance(part, str) and part not in known:
            raise DocumentError(f"there is no part {part!r}; there are: {', '.join(sorted(known)) or 'none'}")
        found = known[part] if isinstance(part, str) else [part] if isinstance(part, Block) else part
        said = Md(" ".join(caller().split()))
        return place([_described(block, title, said) for block in (found() if callable(found) else found)])

    def details(title: Text, caller: Callable[[], str]) -> Md:
        inside = tuple(_blocks(caller(), placed))
        return place([Details(Md(" ".join(written(title).split())), inside)] if inside else [])

    def note(kind: Literal["info", "warning", "success", "question"], title: Text, caller: Callable[[], str]) -> Md:
        inside = tuple(_blocks(caller(), placed))
        return place([Note(kind, Md(written(title)), inside)] if inside else [])

    def holds(condition: str, caller: Callable[[], str]) -> str:
        def value(expression: str) -> Any:
            return environment.compile_expression(expression, undefined_to_none=False)(**values)

        try:
            if value(condition):
                return caller()
        except NotRecorded as error:
            return Md(f"*{escape(str(error))}*")
        found = [part.strip() for part in _OPERATORS.split(condition) if not re.match(r"""\s*["'\d.]""", part)]
        sentence, read = "a sentence", []
        with contextlib.suppress(TemplateError):
            sentence = " ".join(caller().split())
        for part in dict.fromkeys(found):
            with contextlib.suppress(TemplateError):  # what is not there was not reached by the condition
                read.append(f"{part} is {value(part)!r}")
        raise DocumentError(f'the records contradict "{sentence}": {condition} does not hold, {", ".join(read)}')

    functions = {"show": show, "details": details, "note": note, "holds": holds, "recorded": partial(holds, "true")}
    try:
        code, shown = _compiled(text, name, tuple((filters or {}).items()))
        if unshown := sorted(parts.keys() - shown):
            raise DocumentError(f'no slot shows {", ".join(unshown)}; write {{{{ show("{unshown[0]}") }}}}')
        template = environment.template_class.from_code(environment, code, environment.make_globals(functions))
        rendered = template.render(values)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in sources]
        file, line = (frames[-1].filename, frames[-1].lineno) if frames else (name, 1)
        if malformed := getattr(error, "lineno", None):
            file, line = getattr(error, "filename", None) or name, malformed
        remedy = "" if isinstance(error, DocumentError) else "; correct the slot, or give it a value"
        raise DocumentError(f"{file}:{line}: {error}{remedy}") from None
    head = _HEAD.match(rendered)
    first, *below = _blocks(rendered[head.end() :] if head else rendered, placed)
    if not (isinstance(first, Heading) and first.level == 1):
        raise DocumentError(f"{name}:1: the document has no title; begin it with a line # Title")
    description = (head and head["description"]) or ""
    return Document(html.unescape(str(first.text)), html.unescape(description), tuple(below))  # both are plain text


def _described(block: Block, title: str, said: Md) -> Block:
    """A figure or a table with its title and what a document says of it; both are plain text in a figure."""
    if isinstance(block, Table):
        return replace(block, caption=said or block.caption)
    if isinstance(block, ChartBlock):
        chart, about = block.chart, f"{html.unescape(said)} {block.chart.description}".strip()
        title = html.unescape(title) if isinstance(title, Markup) else title  # of a {% set %} block
        return ChartBlock(replace(chart, title=title or chart.title, description=about))
    return block


def _inline(value: Any) -> Markup:
    return Markup(markdown(value if isinstance(value, str | Link) else str(value)))


def _environment(
    finalize: Callable[[Any], Any], filters: Mapping[str, Callable[..., Any]], plain: bool = False
) -> Environment:
    environment = Environment(
        undefined=StrictUndefined,
        finalize=finalize,
        autoescape=not plain,  # by which a macro's text is known
        trim_blocks=True,
        lstrip_blocks=True,
        comment_start_string="{##",  # "{#name}" is the anchor of a heading
        comment_end_string="##}",
    )
    for name in _HTML_FILTERS:  # they would let a value past `finalize`
        del environment.filters[name]
    environment.filters |= filters
    return environment


@cache
def _compiled(text: str, name: str, filters: tuple[tuple[str, Any], ...]) -> tuple[CodeType, frozenset[str]]:
    """A document's code and the parts that its slots show, found once for all pages that it is the document of."""
    environment = _environment(_inline, dict(filters))
    text = _INLINE_TAG.sub(r"\1+%}", text)
    calls = environment.parse(text, name).find_all(nodes.Call)
    return environment.compile(text, name, name), frozenset(map(_first, calls))


def _first(call: nodes.Call) -> str:
    """The part that a call of `show` names; "" for any other call."""
    argument = call.args[0] if isinstance(call.node, nodes.Name) and call.node.name == "show" and call.args else None
    return str(argument.value) if isinstance(argument, nodes.Const) else ""


def macros(file: str, folder: Path, filters: Mapping[str, Callable[..., Any]]) -> Any:
    """What the document `file` of `folder` sets, and its macros as functions that give plain text.

    For what is no document and escapes its text itself: a cell of a table, the description of a chart.
    """
    environment = _environment(lambda value: value, filters, plain=True)
    environment.loader = FunctionLoader(partial(_source, folder))
    return environment.get_template(file).module


def _source(folder: Path, file: str) -> tuple[str, str, None] | None:
    known = (folder / file).is_file()
    return (_INLINE_TAG.sub(r"\1+%}", (folder / file).read_text("utf-8")), file, None) if known else None


def _blocks(text: str, placed: Sequence[Sequence[Block]]) -> Iterator[Block]:
    """The blocks of rendered Markdown: headings, paragraphs, lists, code, and what was placed among them."""
    items: list[Text] = []
    for chunk in _chunks(text):
        if chunk.startswith("- "):  # a loop leaves empty lines between the items of a list
            items += (Md(" ".join(item.split())) for item in re.split(r"\n- ", chunk[2:]))
            continue
        if items:
            yield Bullets(tuple(items))
            items = []
        if heading := _HEADING.fullmatch(chunk):
            yield Heading(Md(heading[2]), len(heading[1]), heading[3])
        elif chunk.startswith("```"):
            language, _, code = chunk[3:-3].partition("\n")
            yield CodeBlock(code.strip("\n"), language)
        elif there := _PLACE.fullmatch(chunk):
            yield from placed[int(there[1])]
        else:
            yield Paragraph(Md(" ".join(chunk.split())))
    if items:
        yield Bullets(tuple(items))


def _chunks(text: str) -> Iterator[str]:
    """What stands between empty lines; a heading, and code with its empty lines, by themselves."""
    for index, part in enumerate(_FENCE.split(text)):
        apart = [part] if index % 2 else re.split(r"\n\s*\n", _HEADING.sub("\n\n\\g<0>\n\n", part))
        yield from filter(None, (chunk.strip() for chunk in apart))
