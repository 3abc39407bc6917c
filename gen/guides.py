"""The guides: docs/guides/*.md with their code run, and what it prints under it."""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

from mkdocs.exceptions import PluginError

from altgrad.pages.mkdocs import build_files

GUIDES = Path(__file__).resolve().parent.parent / "docs" / "guides"


def files(guide: Path) -> dict[str, bytes]:
    """The executed page. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.pages.guide import GuideError, executed, outputs_path, read_outputs

    name, path = f"docs/guides/{guide.name}", outputs_path(guide)
    try:
        outputs = read_outputs(path.read_text("utf-8"), name=name) if path.is_file() else {}
        return {f"guides/{guide.name}": executed(guide.read_text("utf-8"), outputs, name=name).encode()}
    except GuideError as error:
        raise PluginError(str(error)) from error


def key(guide: Path) -> str:
    """What the page depends on; while it stays the same it is taken from the cache."""
    from altgrad.pages.guide import outputs_path
    from altgrad.runs import sources_fingerprint
    from altgrad.runs.schema import code_fingerprint, digest

    content = [path.read_text("utf-8") for path in (guide, outputs_path(guide)) if path.is_file()]
    return digest(code_fingerprint(), sources_fingerprint(), version("numpy"), sys.version, *content)


for guide in sorted(GUIDES.glob("*.md")):
    build_files(partial(files, guide), f"guides/{guide.stem}", key=partial(key, guide))
