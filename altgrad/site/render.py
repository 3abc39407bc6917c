"""A page value as markdown, and the files that lie beside it.

Both back ends share every line here. They differ in what `address` makes of a page reference and in `site`: the site's
dialect (Python-Markdown with attribute lists and folding boxes) against GitHub's, for a plain folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape as escape_html

from altgrad.site.chart import fixed_svg
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
    Link,
    Note,
    Page,
    PageRef,
    Paragraph,
    Table,
    Text,
    markdown,
    resolve,
    slug,
)
from altgrad.text import Md, cell, csv, escape, fenced, visible

_ALERT = {"info": "NOTE", "warning": "WARNING", "success": "TIP", "question": "IMPORTANT"}


@dataclass(frozen=True)
class Dialect:
    """How one back end wants its markdown: the site's dialect or GitHub's, and where page references lead."""

    site: bool
    address: Callable[[PageRef], str]

    def inline(self, text: Text) -> str:
        """Inline markdown on one line, references resolved."""
        return re.sub(r"\s*\n\s*", " ", resolve(markdown(text), self.address))


def beside(page: Page, name: str) -> str:
    """The name of a file that lies beside a page: "format_comparison.loss-gap.svg"."""
    return f"{page.path.rsplit('/', 1)[-1]}.{name}"


def render(page: Page, dialect: Dialect) -> str:
    """The page as one markdown document that ends with a newline; its provenance is always the last section."""
    parts = [f"# {escape(page.title)}"]
    parts += [_block(block, page, dialect) for block in page.blocks]
    if listed := [download.name for download in page.downloads if download.listed]:
        parts.append(_files(page, "Files", *listed))
    if page.provenance is not None:
        lines = [f"- **{escape(label)}:** {dialect.inline(value)}" for label, value in page.provenance.lines]
        parts += [_heading(Heading("Provenance"), dialect), "\n".join(lines)]
    return (front_matter(page) if dialect.site else "") + "\n\n".join(part for part in parts if part) + "\n"


def fragment(blocks: Iterable[Block], dialect: Dialect, page: Page | None = None) -> str:
    """Blocks as markdown for the middle of a hand-written page, `page`; without one they may have no files beside."""
    if page is None:
        page = Page("fragment", "", tuple(blocks))
        if files(page, dialect):
            raise ValueError("a fragment has no page that its charts and tables' data could lie beside")
    return "\n\n".join(_block(block, page, dialect) for block in page.blocks)


def files(page: Page, dialect: Dialect) -> dict[str, bytes]:
    """Every file beside the page, by name: charts as SVG and CSV, tables as CSV (on the site as JSON too)."""
    found: dict[str, bytes] = {}

    def add(name: str, content: bytes) -> None:
        if beside(page, name) in found:
            raise ValueError(f"page {page.path}: two files named {name}; every chart and table needs its own id")
        found[beside(page, name)] = content

    for block in _flat(page.blocks):
        if isinstance(block, ChartBlock):
            add(f"{block.chart.id}.svg", fixed_svg(block.chart))
            data, name = block.chart.data, block.chart.id
        elif isinstance(block, Table) and block.data is not None:
            data, name = block.data, slug(block.id)
        else:
            continue
        add(f"{name}.csv", csv(data))
        if dialect.site:
            add(f"{name}.json", (data.to_json(orient="records", indent=1, date_format="iso") + "\n").encode())
    for download in page.downloads:
        add(download.name, download.content)
    return found


def _flat(blocks: tuple[Block, ...]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Note | Details):
            yield from _flat(block.blocks)


def front_matter(page: Page) -> str:
    """What mkdocs reads at the head of a page: title, description, whether the search finds it."""
    # The theme prints both into HTML without escaping them, so they are HTML already when it reads them.
    lines = [f"title: {_yaml(page.title)}"]
    if page.description:
        lines.append(f"description: {_yaml(page.description)}")
    if not page.search:
        lines.append("search:\n  exclude: true")
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def _yaml(text: str) -> str:
    return json.dumps(escape_html(visible(text)), ensure_ascii=False)


def _block(block: Block, page: Page, dialect: Dialect) -> str:
    match block:
        case Heading():
            return _heading(block, dialect)
        case Paragraph():
            return dialect.inline(block.text)
        case Bullets():
            return "\n".join(f"- {dialect.inline(item)}" for item in block.items)
        case Table():
            return _table(block, page, dialect)
        case ChartBlock():
            return _chart(block.chart, page, dialect)
        case CodeBlock():
            return fenced(block.text, re.sub("[^a-z0-9]", "", block.language))
        case Note() | Details():
            return _box(block, page, dialect)


def _heading(heading: Heading, dialect: Dialect) -> str:
    text = dialect.inline(heading.text)
    line = f"{'#' * heading.level} {text}"
    if not heading.anchor:
        return line
    identity = slug(heading.anchor)
    return f"{line} {{#{identity}}}" if dialect.site else f'<a id="{identity}"></a>\n\n{line}'


def _box(box: Note | Details, page: Page, dialect: Dialect) -> str:
    title = dialect.inline(box.title)
    body = "\n\n".join(_block(block, page, dialect) for block in box.blocks)
    if dialect.site:
        head = f'!!! {box.kind} "{title}"' if isinstance(box, Note) else f'??? abstract "{title}"'
        return head + "\n\n" + "\n".join(f"    {line}" if line else "" for line in body.split("\n"))
    if isinstance(box, Details):
        return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"
    lines = [f"[!{_ALERT[box.kind]}]", f"**{title}**", *(["", *body.split("\n")] if body else [])]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _chart(chart: Chart, page: Page, dialect: Dialect) -> str:
    kinds = ("csv", "json", "svg") if dialect.site else ("csv", "svg")
    image = f"![{escape(chart.title)}]({beside(page, f'{chart.id}.svg')})"
    title = "" if dialect.site else f"**{escape(chart.title)}**\n\n"
    return f"{title}{image}\n\n" + _files(page, "Chart", *(f"{chart.id}.{kind}" for kind in kinds))


def _files(page: Page, label: str, *names: str) -> str:
    """A line of links to files beside the page; files of one stem show their kind only."""
    single = len({name.rsplit(".", 1)[0] for name in names}) == 1 and len(names) > 1
    shown = [name.rsplit(".", 1)[-1].upper() if single else name for name in names]
    links = (f"[{escape(text)}]({beside(page, name)})" for text, name in zip(shown, names, strict=True))
    return f"{label}: " + " · ".join(links)


def _table(table: Table, page: Page, dialect: Dialect) -> str:
    columns = [column if isinstance(column, Column) else Column(column) for column in table.columns]
    lines = [
        [_cell(column.title, dialect) for column in columns],
        ["---:" if column.align == "right" else "---" for column in columns],
        *([_cell(cell, dialect) for cell in row] for row in table.rows),
    ]
    parts = ["\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
    if dialect.site:
        # `finish_html` turns this paragraph into the table's caption.
        sortable = "".join("01"[column.sortable] for column in columns)
        identity = f" #table-{slug(table.id)}" if table.id else ""
        caption = dialect.inline(table.caption) or "Table"
        parts.insert(0, f'{caption}\n{{: .table-caption{identity} data-sort="{sortable}" }}')
    elif table.caption:
        parts.insert(0, f"**{dialect.inline(table.caption)}**")
    if table.data is not None:
        kinds = ("csv", "json") if dialect.site else ("csv",)
        parts.append(_files(page, "Table", *(f"{slug(table.id)}.{kind}" for kind in kinds)))
    return "\n\n".join(parts)


def _cell(value: Cell, dialect: Dialect) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", dialect.inline(cell_text(value)))


def cell_text(value: Cell) -> Md:
    """What a cell shows, as inline markdown."""
    return markdown(value) if isinstance(value, Md | Link) else cell(value)
