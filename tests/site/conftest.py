"""Builds the sites under test once a session: the real one, and a gallery of made-up pages; serves both; a browser."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def mkdocs_build(project: Path, out: Path, **environment: str) -> None:
    """`mkdocs build --strict` from a foreign working directory, as a user would call it; fails with its output."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(project / "mkdocs.yml"), "-d", str(out)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1", **environment}
    done = subprocess.run(command, cwd=out.parent, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_project(folder: Path) -> Path:
    """The site's sources in `folder`, with the gallery in place of the pages made from records."""
    for name in ("docs", "gen"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("altgrad", "experiments/recorded", "benchmarks/recorded"):  # what mkdocs watches has to exist
        (folder / name).mkdir(parents=True)
    shutil.copy(HERE / "gallery.py", folder / "gen/home.py")
    for name in ("reports", "runs"):
        (folder / f"gen/{name}.py").write_text("")
    (folder / "docs/own").mkdir()
    shutil.copy(HERE / "own.md", folder / "docs/own/page.md")
    (folder / "docs/own/measured.csv").write_text("x,y\n1,2\n2,4\n")
    (folder / "docs/own/formats.md").write_text(PARAMETERS)
    return folder


PARAMETERS = """---
title: Two formats
parameters:
  e4m3: {format: e4m3, remark: "a *remark* <b>"}
  e5m2: {format: e5m2, remark: another}
---

# Format {{ format }}

It says {{ remark }}.

```python exec
from altgrad.formats import get_format

get_format(format).max
```
"""


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built gallery."""
    folder = copy_project(tmp_path_factory.mktemp("gallery"))
    mkdocs_build(folder, folder / "site", SOURCE_DATE_EPOCH="1700000000")
    return folder / "site"


@pytest.fixture(scope="session")
def real_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as a reader gets it, built from the recorded runs."""
    out = tmp_path_factory.mktemp("real") / "site"
    mkdocs_build(ROOT, out, ALTGRAD_RUNS=str(ROOT / "experiments" / "recorded"))
    return out


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _serve(root: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def gallery_address(gallery: Path) -> Iterator[str]:
    """Where the gallery is served."""
    yield from _serve(gallery)


@pytest.fixture(scope="session")
def real_address(real_site: Path) -> Iterator[str]:
    """Where the real site is served."""
    yield from _serve(real_site)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """The machine's own Chromium; the test is skipped without one unless ALTGRAD_REQUIRE_BROWSER is set."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        message = f"no browser: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("ALTGRAD_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=executable, args=["--disable-gpu"])
        yield instance
        instance.close()
