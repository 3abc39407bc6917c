"""What mkdocs calls while it builds. It never reloads this file while serving, so the work lies in `altgrad.pages`."""

from __future__ import annotations

import os
import posixpath
import sys
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parent.parent)
DATED = "SOURCE_DATE_EPOCH" in os.environ
serving = False


def on_startup(*, command: str, dirty: bool) -> None:
    """Note whether pages are built for a reader who is editing them."""
    global serving
    serving = command == "serve"


def on_config(config: Any) -> Any:
    """Tell the scripts in gen/ about it, and let them import this checkout's library from any folder."""
    config["extra"]["serving"] = serving
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    return config


def on_pre_build(config: Any) -> None:
    """Forget the library's modules, so that an edit shows; date a build by its newest record, not by the clock."""
    for name in [name for name in sys.modules if name.split(".")[0] == "altgrad"]:
        del sys.modules[name]
    from altgrad.runs import newest_time

    newest = None if DATED else newest_time()
    if newest is not None:
        os.environ["SOURCE_DATE_EPOCH"] = str(int(newest.timestamp()))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put charts inline and tables in boxes."""
    from altgrad.pages.mkdocs import finish_html

    def find(address: str) -> str | None:
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(page.url, address)))
        return None if file is None else file.content_string

    return finish_html(html, find)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the theme's search dialog for screen readers; seal the page against foreign content."""
    from altgrad.pages.mkdocs import seal_html

    output = output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
    return output if serving else seal_html(output)
