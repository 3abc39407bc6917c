"""The site's back end: pages through mkdocs-gen-files, and the finishing of the HTML that mkdocs makes of them.

Nothing of mkdocs is imported before a build runs: `altgrad.pages` is used where no site engine is installed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import posixpath
import re
import traceback
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from altgrad.pages.chart import inline_svg
from altgrad.pages.content import CodeBlock, Note, Page, PageRef, Paragraph
from altgrad.pages.render import Dialect, files, render

_CHART = re.compile(r'<p><img alt="[^"]*" src="([^"]+\.svg)" ?/></p>\n<p>(Chart: <a .*?)</p>')
_TABLE = re.compile(
    r'(?:<p class="table-caption"(?P<attributes>[^>]*)>(?P<caption>.*?)</p>\s*)?<table>(?P<body>.*?)</table>', re.DOTALL
)


def write_mkdocs(pages: Iterable[Page]) -> None:
    """Hand the pages and the files beside them to the mkdocs build in progress."""
    _hand_over(_site_files(pages))


def build(make_pages: Callable[[], Iterable[Page]], *expected: str, key: Callable[[], str] | None = None) -> None:
    """Make pages and write them: what a script in gen/ calls.

    Under `mkdocs build` an error fails the build. Under `mkdocs serve` that would leave every page hanging, so each
    of the `expected` paths becomes a page with the error in a box instead.

    Args:
        make_pages: the pages.
        expected: paths of pages that there must be; the first names the family.
        key: a digest of everything that the pages depend on. Where it is given, their files are kept in ``.cache/site``
            beside mkdocs.yml (one file a family) and taken from there while the digest stays the same.
    """
    build_files(lambda: _site_files(make_pages()), *expected, key=key)


def build_files(
    make_files: Callable[[], dict[str, bytes]], *expected: str, key: Callable[[], str] | None = None
) -> None:
    """`build` for files of any kind by their place in the site's sources, such as pages that are Markdown already."""
    import mkdocs_gen_files

    try:
        if key is None:
            _hand_over(make_files())
        else:
            folder = Path(mkdocs_gen_files.config["config_file_path"]).parent / ".cache" / "site"
            family = expected[0].replace("/", ".")
            _hand_over(_cached(folder, family, key(), make_files))
    except Exception:
        if not mkdocs_gen_files.config["extra"].get("serving"):
            raise
        box = Note("warning", "This page could not be built", (CodeBlock(traceback.format_exc()),))
        retry = Paragraph("Correct the error and save: the page is built again.")
        write_mkdocs(Page(path, "Build error", (box, retry), search=False) for path in expected)


def _site_files(pages: Iterable[Page]) -> dict[str, bytes]:
    """Every file of the pages by its place in the site's sources."""
    found: dict[str, bytes] = {}
    for page in pages:
        place = posixpath.dirname(page.path)

        def address(reference: PageRef, page: Page = page, place: str = place) -> str:
            reference = page.place_of(reference)
            relative = posixpath.relpath(f"{reference.path}.md", place or ".")
            return f"{relative}#{reference.anchor}" if reference.anchor else relative

        dialect = Dialect(site=True, address=address)
        content = {posixpath.basename(page.path) + ".md": render(page, dialect).encode(), **files(page, dialect)}
        found |= {posixpath.join(place, name): data for name, data in content.items()}
    return found


def _hand_over(content: dict[str, bytes]) -> None:
    import mkdocs_gen_files

    for name, data in content.items():
        with mkdocs_gen_files.open(name, "wb") as file:
            file.write(data)


def _cached(folder: Path, family: str, key: str, make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """What `make` gives, kept in ``<family>-<key>.zip``; the family's older files go, a damaged one is made again."""
    path = folder / f"{family}-{key[:16]}.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (FileNotFoundError, zipfile.BadZipFile):
        content = make()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    os.replace(temporary, path)
    for old in folder.glob(f"{family}-{'?' * 16}.zip"):  # not those of a family whose name begins with this one's
        if old != path:
            old.unlink(missing_ok=True)
    return content


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
