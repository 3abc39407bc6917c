"""What the Explorer loads: every format as data."""

from __future__ import annotations

from altgrad.site.build import build_files


def files() -> dict[str, bytes]:
    """The table of formats. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.reports.explorer import formats_json

    return {"explorer/formats.json": formats_json()}


build_files(files, "explorer/formats")
