"""Pages as values: what a page holds, how it becomes markdown, and the two back ends that write it.

Page -> write_folder   plain markdown with SVG and CSV files beside it (reports/)
     -> write_mkdocs   the same through mkdocs-gen-files (the site)
"""

from altgrad.site.build import write_mkdocs
from altgrad.site.chart import BACKGROUND, HEAT, PALETTE, chart_figure, fixed_svg, inline_svg, tell
from altgrad.site.content import (
    Block,
    Bullets,
    Cell,
    Chart,
    ChartBlock,
    CodeBlock,
    Column,
    Details,
    Download,
    Heading,
    Link,
    Note,
    Page,
    PageMaker,
    PageRef,
    Paragraph,
    Provenance,
    Table,
    Text,
    code,
    join,
    link,
    md,
    slug,
)
from altgrad.site.folder import write_folder
from altgrad.site.sketch import FOREGROUND, GRID, MUTED, Axis, Sketch, plot_axes
from altgrad.text import Md, escape

__all__ = [
    "BACKGROUND", "FOREGROUND", "GRID", "HEAT", "MUTED", "PALETTE", "Axis", "Block", "Bullets", "Cell", "Chart",
    "ChartBlock", "CodeBlock", "Column", "Details", "Download", "Heading", "Link", "Md", "Note", "Page", "PageMaker",
    "PageRef", "Paragraph", "Provenance", "Sketch", "Table", "Text", "chart_figure", "code", "escape", "fixed_svg",
    "inline_svg", "join", "link", "md", "plot_axes", "slug", "tell", "write_folder", "write_mkdocs",
]  # fmt: skip
