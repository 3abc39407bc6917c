"""A page value as the HTML of the site, without Markdown in between: a tenth of the time, and the same result.

What Python-Markdown would make of `altgrad.site.render` is the specification (a test holds the two together). A body
is kept by the cache; `altgrad.site.build` puts it in the place of the page's content.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape as escape_html
from html import unescape

from altgrad.site.chart import inline_svg
from altgrad.site.content import (
    Block,
    Bullets,
    Cell,
    Chart,
    ChartBlock,
    CodeBlock,
    Column,
    Details,
    Heading,
    Note,
    Page,
    PageRef,
    Paragraph,
    Source,
    Table,
    Text,
    markdown,
    md,
    resolve,
    slug,
)
from altgrad.site.render import beside, cell_text
from altgrad.text import Md, code_lines, escape

_LONG_NAME = re.compile(r'<(?:"[^"]*"|[^">])*>|[^\W\d][\w./]{13,}')
"""A tag, or a name such as ``blocks.0.mlp.up.weight`` or ``E7M0/E7M0/E5M2``."""
_INLINE = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<address>[^()\s]*)\)"
    r"|\*\*(?P<strong>.+?)\*\*(?!\*)|\*(?P<em>[^*]+)\*|(?<![0-9A-Za-z_])_(?P<under>[^_]+)_(?![0-9A-Za-z_])"
    r"|\\(?P<escaped>[\\`*_{}\[\]()>#+.!|-])"
    r"|(?P<tag></?[a-zA-Z][^<>]*>)|(?P<entity>&(?:\#[0-9]+|\#x[0-9a-fA-F]+|[a-zA-Z][0-9a-zA-Z]*);)|(?P<special>[<>&])"
)
_TOC_DEPTH = 3

SourceAddress = Callable[[Source], tuple[str, str] | None]
"""Where the script that made a chart can be read, relative to the page, and a title that says which; None: nowhere."""


@dataclass(frozen=True)
class Body:
    """The content of a page."""

    html: str  # of everything below the site's frame
    toc: tuple[tuple[int, str, str], ...]  # level, id, name (HTML) of each heading of the contents, in order
    links: tuple[tuple[str, str], ...]  # paths and anchors of the pages that it leads to, to check that they exist


@dataclass
class _Writer:
    """One page being written."""

    page: Page
    drawings: Mapping[str, bytes]
    source: SourceAddress
    toc: list[tuple[int, str, str]] = field(default_factory=list)
    links: dict[tuple[str, str], None] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    def inline(self, text: Text) -> str:
        """Inline markdown as HTML."""
        return inline_html(resolve(markdown(text), self.address))

    def address(self, reference: PageRef) -> str:
        """Where another page or a file is, seen from this one."""
        reference = self.page.place_of(reference)
        if reference.is_file:
            return posixpath.relpath(reference.path, _folder(self.page.path) or ".")
        self.links[reference.path, slug(reference.anchor) if reference.anchor else ""] = None
        target = posixpath.relpath(_folder(reference.path) or ".", _folder(self.page.path) or ".") + "/"
        return f"{target}#{reference.anchor}" if reference.anchor else target

    def file(self, name: str) -> str:
        """Where a file beside this page is, seen from the page."""
        place = posixpath.join(posixpath.dirname(self.page.path), beside(self.page, name))
        return posixpath.relpath(place, _folder(self.page.path) or ".")

    def files(self, label: str, names: Sequence[str], source: Source | None = None) -> str:
        """The line of links to files beside the page, and to the script that made them."""
        single = len({name.rsplit(".", 1)[0] for name in names}) == 1 and len(names) > 1
        shown = [name.rsplit(".", 1)[-1].upper() if single else inline_html(escape(name)) for name in names]
        links = [f'<a href="{self.file(name)}">{text}</a>' for name, text in zip(names, shown, strict=True)]
        found = self.source(source) if source else None
        if found and source:
            links.append(f'<a href="{found[0]}" title="{found[1]}">{escape_html(source.name)}</a>')
        return f'<p class="files">{label}: {" · ".join(links)}</p>'

    def heading(self, level: int, text: str, anchor: str | None = None) -> str:
        """A heading with its link; its id is unique on the page."""
        plain = unescape(re.sub(r"<[^>]*>", "", text))
        identity = wanted = slug(anchor) if anchor else heading_id(plain)
        number = 1
        while identity in self.ids or not identity:
            identity, number = f"{wanted}_{number}", number + 1
        self.ids.add(identity)
        if level <= _TOC_DEPTH:
            self.toc.append((level, identity, escape_html(plain, quote=False)))
        permalink = f'<a class="headerlink" href="#{identity}" title="Link to this section">&para;</a>'
        return f'<h{level} id="{identity}">{text}{permalink}</h{level}>'

    def block(self, block: Block) -> str:
        """One block and what it holds."""
        match block:
            case Heading():
                return self.heading(block.level, self.inline(block.text), block.anchor)
            case Paragraph():
                return f"<p>{self.inline(block.text)}</p>"
            case Bullets():
                return "<ul>\n" + "".join(f"<li>{self.inline(item)}</li>\n" for item in block.items) + "</ul>"
            case Table():
                return self.table(block)
            case ChartBlock():
                return self.chart(block.chart)
            case CodeBlock():
                return code_html("\n".join(code_lines(block.text)), re.sub("[^a-z0-9]", "", block.language))
            case Note():
                title = f'<p class="admonition-title">{self.inline(block.title)}</p>'
                return f'<div class="admonition {block.kind}">\n{title}\n{self.blocks(block.blocks)}\n</div>'
            case Details():
                title = f"<summary>{self.inline(block.title)}</summary>"
                return f'<details class="abstract">\n{title}\n{self.blocks(block.blocks)}\n</details>'

    def blocks(self, blocks: Sequence[Block]) -> str:
        """Blocks one after the other."""
        return "\n".join(self.block(block) for block in blocks)

    def chart(self, chart: Chart) -> str:
        """The drawing in place, and its files."""
        drawing = self.drawings[beside(self.page, f"{chart.id}.svg")].decode()
        names = [f"{chart.id}.{kind}" for kind in ("csv", "json", "svg")]
        return figure_html(inline_svg(drawing), self.files("Chart", names, chart.source))

    def table(self, table: Table) -> str:
        """The table in its box, and its files."""
        columns = [column if isinstance(column, Column) else Column(column) for column in table.columns]
        styles = [' style="text-align: right;"' if column.align == "right" else "" for column in columns]

        def row(tag: str, cells: Iterable[Cell]) -> str:
            shown = (f"<{tag}{style}>{self.cell(cell)}</{tag}>\n" for cell, style in zip(cells, styles, strict=True))
            return f"<tr>\n{''.join(shown)}</tr>\n"

        head = row("th", (column.title for column in columns))
        rows = "".join(row("td", cells) for cells in table.rows)
        sortable = "".join("01"[column.sortable] for column in columns)
        identity = f' id="table-{slug(table.id)}"' if table.id else ""
        body = f"\n<thead>\n{head}</thead>\n<tbody>\n{rows}</tbody>\n"
        found = table_html(body, self.inline(table.caption), f' data-sort="{sortable}"{identity}')
        if table.data is not None:
            names = [f"{slug(table.id)}.{kind}" for kind in ("csv", "json")]
            found += "\n" + self.files("Table", names, table.source)
        return found

    def cell(self, cell: Cell) -> str:
        """What a cell shows; most are plain words or numbers."""
        text = cell_text(cell)
        html = text if re.fullmatch(r"[\w .,:%+−–()/=-]*", text) and "_" not in text else self.inline(text)
        return _LONG_NAME.sub(_breakable, html)


def body_html(page: Page, drawings: Mapping[str, bytes], source: SourceAddress) -> Body:
    """The content of a page for a site with a folder a page (`use_directory_urls`).

    Args:
        page: the page.
        drawings: its charts as SVG by file name, as `altgrad.site.render.files` gives them.
        source: where scripts can be read.
    """
    writer = _Writer(page, drawings, source)
    parts = [writer.heading(1, inline_html(escape(page.title))), writer.blocks(page.blocks)]
    if listed := [download.name for download in page.downloads if download.listed]:
        parts.append(writer.files("Files", listed))
    if page.provenance is not None:
        lines = tuple(md("**{label}:** {value}", label=label, value=value) for label, value in page.provenance.lines)
        parts += [writer.heading(2, "Provenance"), writer.block(Bullets(lines))]
    html = "\n".join(part for part in parts if part)
    return Body(html, tuple(writer.toc), tuple(writer.links))


@lru_cache(maxsize=4096)
def inline_html(text: Md) -> str:
    """Inline markdown of ours as HTML: code, links, strong, emphasis, tags and character references."""
    text = Md(re.sub(r"\s*\n\s*", " ", text))

    def replaced(match: re.Match[str]) -> str:
        kind, value = match.lastgroup, match.group()
        match kind:
            case "code":
                return f"<code>{escape_html(match['code'].strip(), quote=False)}</code>"
            case "address":
                return f'<a href="{match["address"]}">{inline_html(Md(match["text"]))}</a>'
            case "strong":
                return f"<strong>{inline_html(Md(match['strong']))}</strong>"
            case "em" | "under":
                return f"<em>{inline_html(Md(match[kind]))}</em>"
            case "escaped":
                return escape_html(match["escaped"], quote=False)
            case "special":
                return escape_html(value, quote=False)
            case _:
                return value

    return _INLINE.sub(replaced, text)


def _breakable(match: re.Match[str]) -> str:
    """A long name that a narrow column may break, but only between its parts."""
    return match.group() if match.group().startswith("<") else re.sub(r"([._/])(?=[^\W\d])", r"\1<wbr>", match.group())


def heading_id(text: str) -> str:
    """The id that Python-Markdown gives a heading with this text; may be empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@lru_cache(maxsize=512)
def code_html(text: str, language: str) -> str:
    """Highlighted code as the site's Markdown gives it; text where the language is unknown."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        return code_html(text, "text")
    return str(highlight(text, lexer, HtmlFormatter(cssclass="highlight", wrapcode=True))).rstrip("\n")


def figure_html(drawing: str, files: str) -> str:
    """A chart: its title, the drawing in a box that scrolls by itself, and the line with its files."""
    name = re.search(r'aria-labelledby="(\S+)-title ', drawing)
    title = re.search(r"<title[^>]*>(.*?)</title>", drawing, re.DOTALL)
    anchor = f' id="{name.group(1)}"' if name else ""
    caption = title.group(1) if title else ""
    return (
        f'<figure class="chart"{anchor} data-search-exclude>\n<figcaption>{caption}</figcaption>\n'
        f'<div class="chart-box" role="group" tabindex="0" aria-label="Chart: {caption}">{drawing}</div>\n'
        f"{files}\n</figure>"
    )


def table_html(body: str, caption: str, attributes: str) -> str:
    """A table in a box that scrolls by itself (and by keyboard), with marks for the sorting script.

    The box is a group, no region: a page may have thirty tables, which would all be landmarks. Outside the box, a long
    caption does not scroll away with the columns.
    """
    label = re.sub(r"<[^>]*>", "", caption or "Table").replace('"', "&quot;")
    above = f'<p class="table-caption">{caption}</p>\n' if caption else ""
    return (
        f'{above}<div class="table-box" role="group" tabindex="0" aria-label="{label}"{attributes}>'
        f'<table class="data" aria-label="{label}">{body}</table></div>'
    )


def _folder(path: str) -> str:
    """The folder that a page becomes: "" for "index", "runs" for "runs/index", "a/b" for "a/b"."""
    return posixpath.dirname(path) if posixpath.basename(path) == "index" else path
