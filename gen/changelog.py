"""The changelog: CHANGELOG.md as a page."""

from __future__ import annotations

from pathlib import Path

import mkdocs_gen_files

with mkdocs_gen_files.open("changelog.md", "w") as page:
    page.write("---\nsearch:\n  boost: 0.0001\n---\n\n")  # a reader looks for what is so before what has changed
    page.write((Path(__file__).parent.parent / "CHANGELOG.md").read_text())
