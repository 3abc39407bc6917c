"""A checker of built HTML: every link, anchor and asset leads somewhere; no id stands twice on a page."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ADDRESSES = {"href", "src", "data-src", "poster", "action"}


class _Page(HTMLParser):
    """The ids of one page and the addresses it names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.addresses: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids[value] += 1
            elif name in ADDRESSES and value is not None:
                self.addresses.append((tag, value))
            elif name == "aria-labelledby" and value:
                self.addresses += [(tag, f"#{target}") for target in value.split()]

    handle_startendtag = handle_starttag


def faults(root: Path) -> list[str]:
    """One line for each fault of the site built in `root`: "page: what is wrong"; empty when all holds."""
    # 404.html is served for any missing address, so its own links are absolute and hold at a host's root only.
    pages = {path: _Page(path.read_text()) for path in sorted(root.rglob("*.html")) if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        name = path.relative_to(root).as_posix()
        found += [f"{name}: id {identity!r} stands {count} times" for identity, count in page.ids.items() if count > 1]
        for tag, address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if not (tag == "a" and parts.scheme in ("http", "https")) and parts.scheme != "data":
                    found.append(f"{name}: <{tag}> leads to {address!r}")
                continue
            target = root / posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            target = path if not parts.path else target / "index.html" if target.is_dir() else target
            if not target.resolve().is_relative_to(root.resolve()) or not target.is_file():
                found.append(f"{name}: nothing at {address!r}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name}: no anchor {address!r}")
    for style in root.rglob("*.css"):
        for address in re.findall(r"url\(\s*[\"']?([^)\"']+)", style.read_text()):
            if not address.startswith(("data:", "#")) and not (style.parent / address.split("?")[0]).is_file():
                found.append(f"{style.relative_to(root)}: nothing at {address!r}")
    return found
