"""Hand-written pages with code: every Markdown file in docs/ that has executed blocks, run, with their results."""

from pathlib import Path

from altgrad.site.build import build_executed

build_executed(Path(__file__).resolve().parent.parent / "docs")
