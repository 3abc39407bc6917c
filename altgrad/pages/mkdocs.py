"""The site's back end: pages through mkdocs-gen-files, and the finishing of the HTML that mkdocs makes of them.

Nothing of mkdocs is imported before a build runs: `altgrad.pages` is used where no site engine is installed.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
import re
import traceback
from collections.abc import Callable, Iterable

from altgrad.pages.chart import inline_svg
from altgrad.pages.content import CodeBlock, Note, Page, PageRef, Paragraph
from altgrad.pages.render import Dialect, files, render

_CHART = re.compile(r'<p><img alt="[^"]*" src="([^"]+\.svg)" ?/></p>\n<p>(Chart: <a .*?)</p>')
_TABLE = re.compile(
    r'(?:<p class="table-caption"(?P<attributes>[^>]*)>(?P<caption>.*?)</p>\s*)?<table>(?P<body>.*?)</table>', re.DOTALL
)


def write_mkdocs(pages: Iterable[Page]) -> None:
    """Hand the pages and the files beside them to the mkdocs build in progress."""
    import mkdocs_gen_files

    for page in pages:
        place = posixpath.dirname(page.path)

        def address(reference: PageRef, place: str = place) -> str:
            relative = posixpath.relpath(f"{reference.path}.md", place or ".")
            return f"{relative}#{reference.anchor}" if reference.anchor else relative

        dialect = Dialect(site=True, address=address)
        content = {posixpath.basename(page.path) + ".md": render(page, dialect).encode(), **files(page, dialect)}
        for name, data in content.items():
            with mkdocs_gen_files.open(posixpath.join(place, name), "wb") as file:
                file.write(data)


def build(make_pages: Callable[[], Iterable[Page]], *expected: str) -> None:
    """Make pages and write them: what a script in gen/ calls.

    Under `mkdocs build` an error fails the build. Under `mkdocs serve` that would leave every page hanging, so each
    of the `expected` paths becomes a page with the error in a box instead.
    """
    import mkdocs_gen_files

    try:
        write_mkdocs(make_pages())
    except Exception:
        if not mkdocs_gen_files.config["extra"].get("serving"):
            raise
        box = Note("warning", "This page could not be built", (CodeBlock(traceback.format_exc()),))
        retry = Paragraph("Correct the error and save: the page is built again.")
        write_mkdocs(Page(path, "Build error", (box, retry), search=False) for path in expected)


def finish_html(html: str, find: Callable[[str], str | None]) -> str:
    """The HTML of one page with its charts inline and its tables in boxes of their own.

    A chart arrives as an image and leaves as an inline drawing that follows the palette, out of the search index. A
    table gets its caption, a region that scrolls by itself (and by keyboard), and marks for the sorting script.

    Args:
        html: What Python-Markdown made of the page.
        find: Gives the text of a drawing by its address relative to the page; None when there is none.
    """

    def chart(match: re.Match[str]) -> str:
        address, links = match.groups()
        svg = find(address)
        if svg is None:
            return match.group()
        drawing = inline_svg(svg)
        name = re.search(r'aria-labelledby="(\S+)-title ', drawing)
        title = re.search(r"<title[^>]*>(.*?)</title>", drawing, re.DOTALL)
        anchor = f' id="{name.group(1)}"' if name else ""
        caption = title.group(1) if title else ""
        return (
            f'<figure class="chart"{anchor} data-search-exclude>\n<figcaption>{caption}</figcaption>\n'
            f'<div class="chart-box" role="group" tabindex="0" aria-label="Chart: {caption}">{drawing}</div>\n'
            f'<p class="files">{links}</p>\n</figure>'
        )

    def table(match: re.Match[str]) -> str:
        caption, attributes = match["caption"] or "Table", match["attributes"] or ""
        label = re.sub(r"<[^>]*>", "", caption).replace('"', "&quot;")
        # Outside the box, a long caption does not scroll away with the columns.
        above = "" if caption == "Table" else f'<p class="table-caption">{caption}</p>\n'
        return (
            f'{above}<div class="table-box" role="region" tabindex="0" aria-label="{label}"{attributes}>'
            f'<table class="data" aria-label="{label}">{match["body"]}</table></div>'
        )

    html = _TABLE.sub(table, _CHART.sub(chart, html))
    return re.sub(r"<p>((?:Table|Files): <a )", r'<p class="files">\1', html)


def seal_html(html: str) -> str:
    """A finished page with a content-security policy: no request leaves the site, and no script runs but its own.

    The page's inline scripts are allowed by their hashes. Not for `mkdocs serve`, which adds a script afterwards.
    """
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = dict.fromkeys(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    policy = (
        f"default-src 'self'; script-src 'self' {allowed}; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'self'"
    )
    return html.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">', 1)
