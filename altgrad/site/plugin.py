"""The mkdocs plugin `altgrad`: what mkdocs calls while it builds.

It stands after gen-files in the list of plugins. While serving, a build imports anew what has changed of the library
and what uses it; the records, and what else was found in them, are still there. This file is never read again, so the
work lies in `altgrad.site.build`.
"""

from __future__ import annotations

import mimetypes
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import BasePlugin, event_priority

DATED = "SOURCE_DATE_EPOCH" in os.environ


class AltgradPlugin(BasePlugin):  # type: ignore[misc]  # mkdocs has no types
    """Adds what the scripts in gen/ made with `altgrad.site.build`; see there what each event does."""

    library = ""  # the folder of a library that goes before any installed one
    serving = False
    memory: dict[str, dict[str, bytes]] | None = None  # what the cache holds from build to build, while serving
    held: Mapping[str, bytes] = MappingProxyType({})  # while serving, the last build's files of data
    holding = False  # whether they are served from there, from the second build on: without live reload there is one
    imported = 0.0  # when the library was, as far as it is

    def on_startup(self, *, command: str, dirty: bool) -> None:
        """Note whether pages are built for a reader who is editing them."""
        self.serving = command == "serve"
        self.memory = {} if self.serving else None

    def on_config(self, config: Any) -> Any:
        """Find the library and the project's records.

        Raises:
            PluginError: the site's folder cannot be written.
        """
        site = Path(config["site_dir"])
        if not os.access(next(filter(os.path.exists, (site, *site.parents)), site), os.W_OK):
            raise PluginError(f"{site.name}: cannot be written; build into another folder, with -d FOLDER")
        if self.library and self.library not in sys.path:
            sys.path.insert(0, self.library)
        experiments = Path(config["config_file_path"]).parent / "experiments"
        os.environ.setdefault("ALTGRAD_RUNS", os.pathsep.join(str(experiments / name) for name in ("recorded", "runs")))
        return config

    def on_pre_build(self, *, config: Any) -> None:
        """Forget what has changed of the library; while it cannot be imported, the last one says why."""
        now, problem = time.time(), ""
        forgotten = _forget(self.imported)
        try:
            from altgrad.site.build import begin

            self.imported = now
        except Exception:
            if not (self.serving and self.imported):
                raise
            problem = traceback.format_exc()
            _restore(forgotten)
            from altgrad.site.build import begin
        more: dict[str, Any] = {"memory": self.memory, "held": self.holding}
        begin(config, serving=self.serving, dated=DATED, problem=problem, **more)

    @event_priority(-50)  # type: ignore[untyped-decorator]  # after gen-files has run the scripts
    def on_files(self, files: Any, *, config: Any) -> Any:
        """Add the pages' styles and scripts."""
        from altgrad.site.build import add_files

        return add_files(files, config)

    def on_pre_page(self, page: Any, *, config: Any, files: Any) -> Any:
        """Start the page's clock."""
        from altgrad.site.build import tick

        tick(config, page, stop=False)
        return page

    def on_page_markdown(self, markdown: str, *, page: Any, config: Any, files: Any) -> str:
        """Put charts of other pages where a hand-written page names them."""
        from altgrad.site.build import embed

        return embed(markdown, page, config, files)

    def on_page_content(self, html: str, *, page: Any, config: Any, files: Any) -> str:
        """Put in the body that a script made, or finish the one that Markdown made."""
        from altgrad.site.build import content, tick

        html = content(html, page, config, files)
        tick(config, page, stop=True)
        return html

    @event_priority(-100)  # type: ignore[untyped-decorator]  # after the references between pages are resolved
    def on_env(self, env: Any, *, config: Any, files: Any) -> Any:
        """Keep pages that take long, as they are now."""
        from altgrad.site.build import resolved

        resolved(config, files)
        return env

    def on_page_context(self, context: Any, *, page: Any, config: Any, nav: Any) -> Any:
        """Start the page's clock again."""
        from altgrad.site.build import tick

        tick(config, page, stop=False)
        return context

    def on_post_page(self, output: str, *, page: Any, config: Any) -> str:
        """Name the theme's search dialog for screen readers; seal the page against foreign content."""
        from altgrad.site.build import finish_page

        return finish_page(output, page, config)

    def on_post_template(self, output: str, *, template_name: str, config: Any) -> str:
        """Seal the page of an address that is none."""
        from altgrad.site.policy import seal_html

        return seal_html(output, template_name) if template_name.endswith(".html") and not self.serving else output

    def on_post_build(self, *, config: Any) -> None:
        """Write the build report."""
        from altgrad.site.build import end

        end(config)
        self.held = config["extra"]["altgrad"].data

    def on_serve(self, server: Any, *, config: Any, builder: Any) -> Any:
        """Serve the files of data from memory."""
        inner = server.get_app()

        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            name = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "ignore").removeprefix(server.mount_path)
            data = self.held.get(name)
            if data is None:
                return inner(environ, start)  # type: ignore[no-any-return]
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            start("200 OK", [("Content-Type", kind), ("Content-Length", str(len(data)))])
            return [data]

        server.set_app(answer)
        self.holding = True
        return server

    def on_build_error(self, *, error: Exception) -> None:
        """Count no warnings any more."""
        from altgrad.site.build import failed

        failed()


def _forget(moment: float) -> dict[str, Any]:
    """Forget the modules of the library whose files were written or moved after a moment, and those that use them."""
    known = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "altgrad"}
    found = {name for name, module in known.items() if module.__file__ and _is_newer(Path(module.__file__), moment)}
    if moment and found:  # in the first build all are, and none may be of another library
        from altgrad.imports import look, users_of

        look()
        found = users_of(found, known)
    for name in found:
        package, _, own = name.rpartition(".")
        if package in known and getattr(known[package], own, None) is known[name]:
            delattr(known[package], own)  # there `from package import module` would find it
    return {name: sys.modules.pop(name) for name in found}


def _restore(forgotten: dict[str, Any]) -> None:
    """Have forgotten modules again, where Python looks for them and in their packages."""
    sys.modules.update(forgotten)
    for name, module in forgotten.items():
        package, _, own = name.rpartition(".")
        if package in sys.modules:
            setattr(sys.modules[package], own, module)


def _is_newer(path: Path, moment: float) -> bool:
    return not path.is_file() or path.stat().st_ctime >= moment
