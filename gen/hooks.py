"""What mkdocs calls while it builds. It never reloads this file while serving, so the work lies in `altgrad.site`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from mkdocs.plugins import CombinedEvent, event_priority

ROOT = Path(__file__).resolve().parent.parent
DATED = "SOURCE_DATE_EPOCH" in os.environ
serving = unclean = False
contents: dict[Any, Any] = {}  # of the build before, while serving
building: Any = None  # mkdocs' config of the build under way


def on_startup(*, command: str, dirty: bool) -> None:
    """Note whether pages are built for a reader who is editing them."""
    global serving, unclean
    serving, unclean = command == "serve", dirty


def on_config(config: Any) -> Any:
    """Let the scripts in gen/ import the library of this project, where it has one, and find its records."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    records = (ROOT / "experiments" / "recorded", ROOT / "experiments" / "runs")
    os.environ.setdefault("ALTGRAD_RUNS", os.pathsep.join(map(str, records)))
    return config


def on_pre_build(config: Any) -> None:
    """Forget the library's modules, so that an edit of it shows; while it cannot be imported, the last one says why."""
    global building
    building = config
    kept, problem = _forget(), ""
    try:
        from altgrad.site.build import begin
    except Exception:
        if not (serving and kept):
            raise
        problem = traceback.format_exc()
        _forget()
        sys.modules.update(kept)
        from altgrad.site.build import begin
    begin(config, serving=serving, dated=DATED, problem=problem, dirty=unclean, contents=contents)


def _forget() -> dict[str, Any]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "altgrad"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that the scripts made."""
    from altgrad.site.build import add_files

    return add_files(files, config)


def on_pre_page(page: Any, config: Any, files: Any) -> Any:
    """Start the page's clock."""
    from altgrad.site.build import tick

    tick(config, page, stop=False)
    return page


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put charts of other pages where a hand-written page names them."""
    from altgrad.site.build import embed

    return embed(markdown, page, config, files)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put in the body that a script made, or finish the one that Markdown made."""
    from altgrad.site.build import content, tick

    html = content(html, page, config, files)
    tick(config, page, stop=True)
    return html


def on_nav(nav: Any, config: Any, files: Any) -> Any:
    """Now it is settled which files the site has."""
    from altgrad.site.build import place_files

    place_files(config, files)
    return nav


def on_env(env: Any, config: Any, files: Any) -> Any:
    """Keep pages that take long, as they are now."""
    from altgrad.site.build import resolved

    resolved(config, files)
    return env


on_env = event_priority(-100)(on_env)  # after the references between pages are resolved


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """Start the page's clock again."""
    from altgrad.site.build import tick

    tick(config, page, stop=False)
    return context


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the theme's search dialog for screen readers; seal the page against foreign content."""
    from altgrad.site.build import seal_html, tick

    output = output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
    tick(config, page, stop=True)
    return output if serving else seal_html(output, page.file.src_uri)


def _all_written(config: Any) -> None:
    """All files are written before another plugin looks at them."""
    from altgrad.site.build import wait

    wait(config)


def _report(config: Any) -> None:
    """Write the build report."""
    global contents
    from altgrad.site.build import end

    end(config)
    contents = config["extra"]["altgrad"].contents


on_post_build = CombinedEvent(event_priority(100)(_all_written), _report)


def on_build_error(error: Exception) -> None:
    """Nothing of a build that failed lies about."""
    if building is not None:
        from altgrad.site.build import failed

        failed(building)
