"""A page value as markdown, and the files that lie beside it.

Both back ends share every line here. On GitHub tables are markdown and charts are files; on the site a mark stands in
their place (`altgrad.site.html`), and boxes and anchors are those of Python-Markdown's extensions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from altgrad.text import Md, cell, csv, escape, fenced, hyphens, visible

ROWS, FOLDED = 40, 8
"""On GitHub, where a page scrolls past everything: most rows of a table that has a file, most lines of a folded box."""
_ALERT = {"info": "NOTE", "warning": "WARNING", "success": "TIP", "question": "IMPORTANT"}


@dataclass(frozen=True)
class Dialect:
    """How one back end wants its markdown: where page references lead, and on the site what stands for a table."""

    address: Callable[[PageRef], str]
    place: Callable[[Table | ChartBlock], str] | None = None  # keeps a table or a chart, gives its mark; None: GitHub's
    rows: int = ROWS  # a longer table that has its data beside it is a link to them, on GitHub
    whole: bool = False  # no table and no folded box is cut, on GitHub

    @property
    def site(self) -> bool:
        """Whether Python-Markdown reads it, with its extensions."""
        return self.place is not None

    def inline(self, text: Text) -> str:
        """Inline markdown on one line, references resolved."""
        return re.sub(r"\s*\n\s*", " ", resolve(markdown(text), self.address))


def beside(page: Page, name: str) -> str:
    """The name of a file that lies beside a page: "format_comparison.loss-gap.svg"."""
    return f"{page.path.rsplit('/', 1)[-1]}.{name}"


def render(page: Page, dialect: Dialect) -> str:
    """The page as one markdown document that ends with a newline; its provenance is always the last section."""
    parts = [f"# {escape(page.title)}"]
    if page.description and not dialect.site:
        parts.append(f"<!-- {escape(page.description)} -->")
    parts += [_block(block, page, dialect) for block in page.blocks]
    if listed := [download.name for download in page.downloads if download.listed]:
        parts.append(_files(page, "Files", *listed) + ("\n{: .files }" if dialect.site else ""))
    if page.provenance is not None:
        lines = [f"- **{escape(label)}:** {dialect.inline(value)}" for label, value in page.provenance.lines]
        parts += [_heading(Heading("Provenance"), dialect), "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def fragment(page: Page, dialect: Dialect) -> str:
    """The blocks of a page as markdown for the middle of a hand-written one."""
    return "\n\n".join(_block(block, page, dialect) for block in page.blocks)


def files(page: Page, site: bool = True) -> dict[str, bytes]:
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
        if site:
            add(f"{name}.json", (hyphens(data).to_json(orient="records", indent=1, date_format="iso") + "\n").encode())
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
        case Table() | ChartBlock() if dialect.place is not None:
            return dialect.place(block)
        case Table():
            return _table(block, page, dialect)
        case ChartBlock():
            return _chart(block.chart, page)
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
    if not (dialect.site or isinstance(box, Note)):
        return _folded(title, box.blocks, page, dialect if dialect.whole else replace(dialect, rows=0))
    body = "\n\n".join(_block(block, page, dialect) for block in box.blocks)
    if dialect.site or not isinstance(box, Note):
        head = f'!!! {box.kind} "{title}"' if isinstance(box, Note) else f'??? abstract "{title}"'
        return head + "\n\n" + "\n".join(f"    {line}" if line else "" for line in body.split("\n"))
    lines = [f"[!{_ALERT[box.kind]}]", f"**{title}**", *(["", *body.split("\n")] if body else [])]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _folded(title: str, blocks: tuple[Block, ...], page: Page, dialect: Dialect) -> str:
    """A folded box on GitHub: its tables are links to their files, and it ends where it becomes long."""
    match blocks:
        case (Table(data=data) as table,) if data is not None and not dialect.whole:
            about = f" {dialect.inline(table.caption)}" if table.caption else ""
            return f"**{title}.**{about} {_block(replace(table, caption=''), page, dialect)}"
    shown, left = [], FOLDED
    for number, block in enumerate(blocks):
        shown.append(_block(block, page, dialect))
        left -= shown[-1].count("\n") + 2
        if left < 0 and len(shown) < len(blocks) and not dialect.whole:
            anchors = (slug(each.anchor) for each in blocks[number:] if isinstance(each, Heading) and each.anchor)
            places = "".join(f'<a id="{anchor}"></a>' for anchor in anchors)  # links lead here
            shown[-1] = f"{places}The rest is on this page of the site."
            break
    return "\n\n".join([f"<details>\n<summary>{title}</summary>", *shown, "</details>"])


def _chart(chart: Chart, page: Page) -> str:
    image = f"![{escape(chart.title)}]({beside(page, f'{chart.id}.svg')})"
    where = _files(page, "Chart", f"{chart.id}.csv", f"{chart.id}.svg")
    return f"**{escape(chart.title)}** {where}\n\n{image}"


def _files(page: Page, label: str, *names: str) -> str:
    """A line of links to files beside the page; files of one stem show their kind only."""
    single = len({name.rsplit(".", 1)[0] for name in names}) == 1 and len(names) > 1
    shown = [name.rsplit(".", 1)[-1].upper() if single else name for name in names]
    links = (f"[{escape(text)}]({beside(page, name)})" for text, name in zip(shown, names, strict=True))
    return f"{label}: " + " · ".join(links)


def _table(table: Table, page: Page, dialect: Dialect) -> str:
    head = [f"**{dialect.inline(table.caption)}**"] if table.caption else []
    if table.data is not None:
        head.append(_files(page, "Table", f"{slug(table.id)}.csv"))
        if len(table.rows) > dialect.rows and not dialect.whole:
            return f"{' '.join(head)} ({len(table.rows):,} row{'s'[: len(table.rows) != 1]})"
    columns = [column if isinstance(column, Column) else Column(column) for column in table.columns]
    lines = [
        [_cell(column.title, dialect) for column in columns],
        ["---:" if column.align == "right" else "---" for column in columns],
        *([_cell(cell, dialect) for cell in row] for row in table.rows),
    ]
    return "\n\n".join([*filter(None, [" ".join(head)]), "\n".join(f"| {' | '.join(cells)} |" for cells in lines)])


def _cell(value: Cell, dialect: Dialect) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", dialect.inline(cell_text(value)))


def cell_text(value: Cell) -> Md:
    """What a cell shows, as inline markdown."""
    return markdown(value) if isinstance(value, Md | Link) else cell(value)
