"""What the hooks and scripts of a site from before call, as they call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from altgrad.site import build as site_build
from altgrad.site.build import add_files as add_files
from altgrad.site.build import build_files as build_files
from altgrad.site.build import content as content
from altgrad.site.build import embed as embed
from altgrad.site.build import end as end
from altgrad.site.build import resolved as resolved
from altgrad.site.build import tick as tick
from altgrad.site.build import write_mkdocs as write_mkdocs
from altgrad.site.content import Page, PageMaker
from altgrad.site.policy import seal_html as seal_html


def build(
    make_pages: Callable[[], Iterable[Page | PageMaker]],
    *expected: str,
    key: Callable[[], str] | None = None,
    beside: bool = False,
) -> None:
    """`altgrad.site.build.build`."""
    site_build.build(make_pages, *expected, key=key, parallel=beside)


def begin(
    config: Any, *, serving: bool, dated: bool, problem: str = "", dirty: bool = False, contents: Any = None
) -> None:
    """`altgrad.site.build.begin`."""
    site_build.begin(config, serving=serving, dated=dated, problem=problem)
    config["extra"]["altgrad"].contents = {}


def place_files(config: Any, files: Any) -> None:
    """Nothing is written beside the build any more."""


def wait(config: Any) -> None:
    """Nothing is written beside the build any more."""


def failed(config: Any) -> None:
    """`altgrad.site.build.failed`."""
    site_build.failed()
