"""A page as the content of a site's page: Python-Markdown reads its text, tables and charts enter as HTML.

Python-Markdown would need twenty times longer for a drawing, and four for a table: so a mark stands in the text where
one belongs, and it is put in afterwards (`Placed`, `filled`).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape as escape_html
from html import unescape
from typing import Any

from altgrad.site.chart import inline_svg
from altgrad.site.content import (
    Cell,
    Chart,
    ChartBlock,
    Column,
    Link,
    Page,
    PageRef,
    Source,
    Table,
    Text,
    markdown,
    resolve,
    slug,
)
from altgrad.site.render import Dialect, beside, cell_text, render
from altgrad.text import Md, escape

_LONG_NAME = re.compile(r'<(?:"[^"]*"|[^">])*>|[^\W\d][\w./]{13,}')
"""A tag, or a name such as ``blocks.0.mlp.up.weight`` or ``E7M0/E7M0/E5M2``."""
_NO_MARKDOWN = re.compile(r"(?:[^*_`\[\]\\<>&]|(?<=\w)_(?=\w)|&(?:#\d+|\w+);|</?[a-z][^<>]*>)*")
"""Text and tags that are HTML as they stand."""
_FIRST_CELL = re.compile(r"<tr>\s*<td[^>]*>(.*?)</td>", re.DOTALL)
_MARK = re.compile("<p>\ue000([0-9]+)\ue001</p>")
"""Characters that no text of a record has: `altgrad.text.visible` spells them out."""
NARROW = 300.0
"""Points: a chart below this width fits a telephone as it is, and is not made as wide as a page."""
LONG = 24
"""Characters: a table whose first column has a longer text breaks it into lines, so that its figures stay in view."""
BODY = ".body/"
"""Where a script's files have the bodies of its pages, and the parts of those that mkdocs reads, beside the others."""
_EXTENSIONS = {
    "admonition": {},
    "attr_list": {},
    "tables": {},
    "toc": {"permalink": True, "permalink_title": "Link to this section", "toc_depth": 3},
    "pymdownx.details": {},
    "pymdownx.highlight": {"anchor_linenums": False},
    "pymdownx.superfences": {},
}

SourceAddress = Callable[[Source], tuple[str, str] | None]
"""Where the script that made a chart can be read, relative to the page, and a title that says which; None: nowhere."""


@dataclass(frozen=True)
class Body:
    """The content of a page."""

    html: str  # of everything below the site's frame
    toc: Sequence[Mapping[str, Any]]  # the headings as Python-Markdown tells them: each with its children
    links: Sequence[Sequence[str]]  # paths and anchors of the pages that it leads to, to check that they exist


class Placed:
    """The tables and charts of a page, each as HTML for the place of a mark in its Markdown.

    Args:
        page: the page.
        drawings: its charts as SVG by file name, as `altgrad.site.render.files` gives them.
        source: where scripts can be read.
    """

    def __init__(self, page: Page, drawings: Mapping[str, bytes], source: SourceAddress = lambda made_by: None) -> None:
        self.page, self.drawings, self.source = page, drawings, source
        self.parts: list[str] = []
        self.links: dict[tuple[str, str], None] = {}

    def __call__(self, block: Table | ChartBlock) -> str:
        """Keep the block as HTML; gives the mark."""
        self.parts.append(self._table(block) if isinstance(block, Table) else self._chart(block.chart))
        return mark(len(self.parts) - 1)

    def file(self) -> dict[str, bytes]:
        """What a script hands over with a page that mkdocs reads, for the site to put the parts in."""
        return {f"{BODY}{self.page.path}.md": json.dumps(self.parts).encode()} if self.parts else {}

    def address(self, reference: PageRef) -> str:
        """Where another page or a file is, seen from this one."""
        reference = self.page.place_of(reference)
        if reference.is_file:
            return self._near(reference.path)
        self.links[reference.path, slug(reference.anchor) if reference.anchor else ""] = None
        target = self._near(folder_of(reference.path) or ".") + "/"
        return f"{target}#{reference.anchor}" if reference.anchor else target

    def _near(self, path: str) -> str:
        """A place in the site, seen from this page."""
        return posixpath.relpath(path, folder_of(self.page.path) or ".")

    def _inline(self, text: Text) -> str:
        return inline_html(resolve(markdown(text), self.address))

    def _files(self, label: str, names: Sequence[str], source: Source) -> str:
        """The line of links to files beside the page, and to the script that made them."""
        place = posixpath.dirname(self.page.path)
        near = (self._near(posixpath.join(place, beside(self.page, name))) for name in names)
        links = [f'<a href="{path}">{path.rsplit(".", 1)[1].upper()}</a>' for path in near]
        if found := self.source(source):
            links.append(f'<a href="{found[0]}" title="{found[1]}">{escape_html(source.name)}</a>')
        return f'<p class="files">{label}: {" · ".join(links)}</p>'

    def _chart(self, chart: Chart) -> str:
        drawing = self.drawings[beside(self.page, f"{chart.id}.svg")].decode()
        names = [f"{chart.id}.{kind}" for kind in ("csv", "json", "svg")]
        return figure_html(inline_svg(drawing), self._files("Chart", names, chart.source))

    def _table(self, table: Table) -> str:
        columns = [column if isinstance(column, Column) else Column(column) for column in table.columns]
        styles = [' style="text-align: right;"' if column.align == "right" else "" for column in columns]

        def row(tag: str, cells: Iterable[Cell]) -> str:
            shown = (f"<{tag}{style}>{self._cell(cell)}</{tag}>\n" for cell, style in zip(cells, styles, strict=True))
            return f"<tr>\n{''.join(shown)}</tr>\n"

        head = row("th", (column.title for column in columns))
        rows = "".join(row("td", cells) for cells in table.rows)
        sortable = "".join("01"[column.sortable] for column in columns)
        identity = f' id="table-{slug(table.id)}"' if table.id else ""
        body = f"\n<thead>\n{head}</thead>\n<tbody>\n{rows}</tbody>\n"
        found = table_html(body, self._inline(table.caption), f' data-sort="{sortable}"{identity}')
        if table.data is not None:
            names = [f"{slug(table.id)}.{kind}" for kind in ("csv", "json")]
            found += "\n" + self._files("Table", names, table.source)
        return found

    def _cell(self, value: Cell) -> str:
        """What a cell shows; a link of plain text and plain text need no Markdown."""
        if isinstance(value, Link) and isinstance(value.target, PageRef):
            text = value.text if isinstance(value.text, Md) else escape(value.text)
            html = f'<a href="{self.address(value.target)}">{inline_html(text)}</a>'
        else:
            html = self._inline(cell_text(value))
        return _LONG_NAME.sub(_breakable, html)


def mark(number: int) -> str:
    """What stands in Markdown, as a paragraph, where a page's part of this number belongs."""
    return f"\ue000{number}\ue001"


def filled(html: str, parts: Sequence[str]) -> str:
    """What Python-Markdown made of a page with its tables and charts in the place of their marks.

    Charts of two pages may have one name: on one page each has ids of its own.
    """
    names: set[str] = set()

    def part(match: re.Match[str]) -> str:
        number = int(match[1])
        return _with_own_name(parts[number], names) if number < len(parts) else ""

    return _MARK.sub(part, html)


def _with_own_name(part: str, taken: set[str]) -> str:
    name = re.search(r'aria-labelledby="(\S+)-title ', part)
    if name is None:
        return part
    own, number = name[1], 2
    while own in taken:
        own, number = f"{name[1]}-{number}", number + 1
    taken.add(own)
    return part if own == name[1] else re.sub(rf'(?<=["#( ]){re.escape(name[1])}(?=[-"])', own, part)


def body_html(page: Page, drawings: Mapping[str, bytes], source: SourceAddress = lambda made_by: None) -> Body:
    """The content of a page for a site with a folder a page (`use_directory_urls`); arguments as of `Placed`."""
    placed, reader = Placed(page, drawings, source), _reader()
    html = reader.reset().convert(render(page, Dialect(placed.address, placed)))
    return Body(filled(html, placed.parts), reader.toc_tokens, tuple(placed.links))


@cache
def _reader() -> Any:
    from markdown import Markdown

    return Markdown(extensions=[*_EXTENSIONS], extension_configs=_EXTENSIONS)


@cache
def _inline_reader() -> Any:
    from markdown import Markdown

    return Markdown()


@lru_cache(maxsize=4096)
def inline_html(text: Md) -> str:
    """Inline markdown of ours as HTML: code, links, strong, emphasis, tags and character references."""
    line = re.sub(r"\s*\n\s*", " ", text)
    if _NO_MARKDOWN.fullmatch(line):
        return line
    html: str = _inline_reader().reset().convert(line)
    return html.removeprefix("<p>").removesuffix("</p>")


def _breakable(match: re.Match[str]) -> str:
    """A long name that a narrow column may break, but only between its parts."""
    return match.group() if match.group().startswith("<") else re.sub(r"([._/])(?=[^\W\d])", r"\1<wbr>", match.group())


def figure_html(drawing: str, files: str) -> str:
    """A chart: its title, the drawing in a box that scrolls by itself, and the line with its files."""
    name = re.search(r'aria-labelledby="(\S+)-title ', drawing)
    title = re.search(r"<title[^>]*>(.*?)</title>", drawing, re.DOTALL)
    anchor = f' id="{name.group(1)}"' if name else ""
    caption = title.group(1) if title else ""
    width = re.search(r'viewBox="0 0 ([\d.]+)', drawing)
    kind = "chart narrow" if width and float(width[1]) < NARROW else "chart"
    return (
        f'<figure class="{kind}"{anchor} data-search-exclude>\n<figcaption>{caption}</figcaption>\n'
        f'<div class="chart-box" role="group" tabindex="0" aria-label="Chart: {caption}">{drawing}</div>\n'
        f"{files}\n</figure>"
    )


def table_html(body: str, caption: str, attributes: str = "") -> str:
    """A table in a box that scrolls by itself (and by keyboard), with marks for the sorting script.

    The box is a group, no region: a page may have thirty tables, which would all be landmarks. Outside the box, a long
    caption does not scroll away with the columns.
    """
    label = re.sub(r"<[^>]*>", "", caption or "Table").replace('"', "&quot;")
    above = f'<p class="table-caption">{caption}</p>\n' if caption else ""
    return (
        f'{above}<div class="table-box" role="group" tabindex="0" aria-label="{label}"{attributes}>'
        f'<table class="data{" long" if _is_long(body) else ""}" aria-label="{label}">{body}</table></div>'
    )


def _is_long(body: str) -> bool:
    """Whether the first column of a table has a text that would push the others out of view on one line."""
    return any(len(unescape(re.sub(r"<[^>]*>", "", cell))) > LONG for cell in _FIRST_CELL.findall(body))


def folder_of(path: str) -> str:
    """The folder that a page becomes: "" for "index", "runs" for "runs/index", "a/b" for "a/b"."""
    return posixpath.dirname(path) if posixpath.basename(path) == "index" else path
