"""What a page is made of: frozen values that know no findings and no site engine.

What may act as markup is decided here, once. A plain ``str`` anywhere in a page is untrusted (run names, notes and
config values come from files and from W&B) and is escaped when it is rendered (`altgrad.text`). Markdown that may act
as markup is an `Md`, built by `md` from a template of ours and escaped values. There is no other way to get markup onto
a page.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from altgrad.text import TEXT_LIMIT, Md, escape, shorten, visible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from altgrad.site.sketch import Sketch

_REFERENCE = re.compile(r"\[([^\[\]]*)\]\(altgrad:([^)#\s]*)#?([^)\s]*)\)")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


def slug(text: str) -> str:
    """An anchor for `text`: lower-case ASCII letters, digits, ``-`` and ``_``; never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-") or "section"


@dataclass(frozen=True)
class PageRef:
    """A page of this site by its path without suffix ("runs/e5m2-wag-adamw"), and an anchor on it.

    A path that ends in .csv, .json or .svg is a file beside a page: "runs/e5m2-wag-adamw.curves.json".
    """

    path: str
    anchor: str = ""

    def __post_init__(self) -> None:
        check_path(self.path)

    @property
    def is_file(self) -> bool:
        """Whether it is a file beside a page."""
        return self.path.endswith((".csv", ".json", ".svg"))


def check_path(path: str) -> str:
    """`path` when it is a plain relative path of letters, digits, ``_``, ``-`` and ``.``; ValueError otherwise."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"page path {path!r}: letters, digits, '_', '-', '.' and single '/' only")
    return path


@dataclass(frozen=True)
class Link:
    """Text that leads to a page of this site or to an http(s) address; any other address leaves plain text."""

    text: str
    target: PageRef | str

    def markdown(self) -> Md:
        """The link, to be resolved when it is rendered: a page reference is kept as ``altgrad:path#anchor``."""
        text = self.text if isinstance(self.text, Md) else escape(self.text)
        if isinstance(self.target, PageRef):
            anchor = f"#{slug(self.target.anchor)}" if self.target.anchor else ""
            return Md(f"[{text}](altgrad:{self.target.path}{anchor})")
        address = web_address(self.target)
        return Md(f"[{text}]({address})") if address else Md(text)


Text = str | Md | Link


def web_address(text: str) -> str | None:
    """`text` as an http(s) address that is safe between parentheses and quotes, or None when it is not one."""
    try:
        parts = urlsplit(text)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return None
    plain = parts.username is None and re.fullmatch(r"[A-Za-z0-9.-]+", parts.hostname or "")
    if not plain or parts.scheme not in ("http", "https") or visible(text) != text or " " in text:
        return None
    tail = quote(parts.path, safe="/%:@!,;=+-._~")
    for sign, part in (("?", parts.query), ("#", parts.fragment)):
        tail += f"{sign}{quote(part, safe='/%:@!,;=+-._~?&')}" if part else ""
    return f"{parts.scheme}://{parts.hostname}{port}{tail}"


def link(text: str, target: PageRef | str) -> Link:
    """A `Link`; `target` is a `PageRef` or an http(s) address."""
    return Link(text, target)


def code(text: str, limit: int = TEXT_LIMIT) -> Md:
    """`text` as inline code. Characters that are special in some dialect's code span travel as references."""
    line = shorten(visible(text), limit)
    if re.fullmatch(r"[A-Za-z0-9_ .,:;=+/%()#!?@-]*", line) and line.strip():
        return Md(f"`{line}`")
    return Md(f"<code>{re.sub('[^A-Za-z0-9 ]', lambda match: f'&#{ord(match.group())};', line)}</code>")


def markdown(value: Text) -> Md:
    """Any inline value as trusted markdown: `Md` as it is, a `Link` as a link, a plain string escaped."""
    if isinstance(value, Md):
        return value
    return value.markdown() if isinstance(value, Link) else escape(value)


def md(template: str, **values: Text | int | float) -> Md:
    """`template` (ours, trusted) with `values` filled in by `str.format`; text that is not `Md` is escaped."""
    safe = {name: value if isinstance(value, int | float) else markdown(value) for name, value in values.items()}
    return Md(template.format(**safe))


def join(separator: str, values: Iterable[Text]) -> Md:
    """The values as one piece of markdown with `separator` (ours, trusted) between them."""
    return Md(separator.join(markdown(value) for value in values))


def resolve(text: Md, address: Callable[[PageRef], str]) -> Md:
    """`text` with every page reference replaced by the address it has for one writer; without one the text is left."""

    def resolved(match: re.Match[str]) -> str:
        path, mark, query = match[2].partition("?")
        place, hash_sign, anchor = (address(PageRef(path, match[3])) or "").partition("#")
        return f"[{match[1]}]({place}{mark}{query}{hash_sign}{anchor})" if place or anchor else match[1]

    return Md(_REFERENCE.sub(resolved, text))


@dataclass(frozen=True)
class Source:
    """Who made a chart or a table: a function of a file."""

    path: str  # of the file, absolute
    function: str  # its name, with that of its class; empty at the top of a script

    @property
    def name(self) -> str:
        """For readers: "gap_chart()", also where it is a module's own, or the name of the file."""
        plain = ".".join(part.lstrip("_") for part in self.function.split("."))
        return f"{plain}()" if plain else self.path.rsplit("/", 1)[-1]


def _maker() -> Source:
    """The function that is making a value: the first frame above the dataclass's own and those that make for others."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename in (__file__, "<string>") or frame.f_globals.get("MAKES_FOR_OTHERS")
    ):
        frame = frame.f_back
    function = frame.f_code.co_qualname.split(".<locals>")[0]
    return Source(frame.f_code.co_filename.replace("\\", "/"), "" if function == "<module>" else function)


@dataclass(frozen=True)
class Heading:
    """A section heading, level 2 to 4. A heading that is linked to names its `anchor`; others get one from the text."""

    text: Text
    level: int = 2
    anchor: str | None = None


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    text: Text


@dataclass(frozen=True)
class Bullets:
    """A list with one line an item."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class Column:
    """A table column; a right-aligned one holds numbers and sorts by them. `cell` is what it shows of a row."""

    title: Text
    align: Literal["left", "right"] = "left"
    sortable: bool = True
    cell: Callable[[Mapping[Any, Any]], Cell] | None = field(default=None, compare=False, repr=False)


Cell = str | Md | Link | int | float | None


@dataclass(frozen=True)
class Table:
    """A table; `data` (which needs an `id`) is offered as CSV beside it. A None cell is shown as a dash.

    `source` is the function that made it, found by itself; the site links to it beside the data.
    """

    columns: tuple[Column | str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: Text = ""
    data: pd.DataFrame | None = field(default=None, compare=False)
    id: str = ""
    source: Source = field(default_factory=_maker, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.id or self.caption!r}: every row needs {len(self.columns)} cells")
        if self.data is not None and not self.id:
            raise ValueError(f"table {self.caption!r}: data to download needs an id")


@dataclass(frozen=True)
class Chart:
    """A drawing and what it shows.

    Attributes:
        id: Names its files and anchors; unique on a page.
        title: The chart's claim, shown above it and read out first.
        description: What a reader who cannot see the chart should know.
        data: What is plotted, written as CSV beside the chart.
        draw: Draws onto matplotlib axes with the colours of `altgrad.site.chart`.
        sketch: In place of `draw`: draws with `altgrad.site.sketch`, a tenth of the time, for pages that are many.
        width, height: Size in inches.
        margins: Left, right, bottom and top of the axes in inches; measured from the labels where not given, which
            costs as much time as the drawing.
        source: Which function made it, found by itself; the site links to it.
    """

    id: str
    title: str
    description: str
    data: pd.DataFrame = field(compare=False)
    draw: Callable[[Axes], None] | None = field(default=None, compare=False)
    width: float = 7.2
    height: float = 3.6
    margins: tuple[float, float, float, float] | None = None
    sketch: Callable[[Sketch], None] | None = field(default=None, compare=False)
    source: Source = field(default_factory=_maker, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_path(self.id)
        if (self.draw is None) == (self.sketch is None):
            raise ValueError(f"chart {self.id}: either `draw` or `sketch` draws it")


@dataclass(frozen=True)
class ChartBlock:
    """A chart in the flow of a page."""

    chart: Chart


@dataclass(frozen=True)
class Note:
    """A box with a title that stands out from the text."""

    kind: Literal["info", "warning", "success", "question"]
    title: Text
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a title."""

    title: Text
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class CodeBlock:
    """Text shown exactly as it is."""

    text: str
    language: str = ""


Block = Heading | Paragraph | Bullets | Table | ChartBlock | Note | Details | CodeBlock


@dataclass(frozen=True)
class Download:
    """A file that lies beside its page; the page lists it at its end unless its own blocks link to it."""

    name: str
    content: bytes
    listed: bool = True

    def __post_init__(self) -> None:
        check_path(self.name)


@dataclass(frozen=True)
class Provenance:
    """Where a page's numbers come from: lines of label and value at its foot."""

    lines: tuple[tuple[str, Text], ...]


@dataclass(frozen=True)
class Page:
    """One page: a pure value, written by `write_folder` or `write_mkdocs`.

    Attributes:
        path: Its place in the site without suffix: "index", "reports/format_comparison", "runs/e5m2-wag-adamw".
        title: Plain text.
        blocks: What it shows, in order.
        description: One plain sentence for search engines and link previews.
        search: Whether the site's search finds it.
        downloads: Further files beside the page.
        provenance: The page's foot.
        moved: Where references lead whose page is no page of its own, by path: an arm that only a sweep has, for one.
            A reference keeps its anchor where it has one.
    """

    path: str
    title: str
    blocks: tuple[Block, ...]
    description: str = ""
    search: bool = True
    downloads: tuple[Download, ...] = ()
    provenance: Provenance | None = None
    moved: Mapping[str, PageRef] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_path(self.path)

    def place_of(self, reference: PageRef) -> PageRef:
        """Where a reference on this page leads in the end."""
        target = self.moved.get(reference.path)
        return reference if target is None else PageRef(target.path, reference.anchor or slug(target.anchor))


@dataclass(frozen=True)
class PageMaker:
    """A page that is made when its turn comes, in whichever process.

    Attributes:
        make: gives the page.
        key: a digest of all that the page depends on but the script that hands it over; "" where that is not known.
    """

    make: Callable[[], Page]
    key: str = ""

    def __call__(self) -> Page:
        """The page."""
        return self.make()
