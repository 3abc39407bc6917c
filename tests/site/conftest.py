"""Builds the sites under test once a session: the real one, and a gallery of made-up pages; serves both; a browser."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from altgrad.site.executed import is_executed

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# The shell first: it draws no window of its own, and takes half the processor time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def mkdocs_build(project: Path, out: Path, **environment: str) -> None:
    """`mkdocs build --strict` from a foreign working directory, as a user would call it; fails with its output."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(project / "mkdocs.yml"), "-d", str(out)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    recorded = ROOT / "experiments" / "recorded"  # guides show findings of some; all of them would take minutes
    records = os.pathsep.join(str(recorded / study) for study in ("pilot-formats", "pilot-manifold"))
    own = {"PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1", "ALTGRAD_RUNS": records}
    settings = {**os.environ, **own, **environment}
    done = subprocess.run(command, cwd=out.parent, env=settings, capture_output=True, text=True, timeout=900)
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
    for name in ("reports", "runs", "formats", "api"):
        (folder / f"gen/{name}.py").write_text("")
    for page in (folder / "docs").rglob("*.md"):  # documents, whose values come from records
        text = page.read_text()
        if ("{{ show(" in text or "{% " in text) and not is_executed(text):
            page.unlink()
    (folder / "docs/own").mkdir(exist_ok=True)
    shutil.copy(HERE / "own.md", folder / "docs/own/page.md")
    (folder / "docs/own/measured.csv").write_text("x,y\n1,2\n2,4\n")
    (folder / "docs/own/formats.md").write_text(PARAMETERS)
    config = (folder / "mkdocs.yml").read_text()
    config = re.sub(r"\n  - API:\n(?:      .*\n)*|\n      - All formats: .*", "\n", config)
    config = re.sub(r"\n  - mkdocstrings:.*\n(?:      .*\n)*", "\n", config)  # it would read the library's sources
    config = config.replace("not_in_nav: |\n", "not_in_nav: |\n  /own/*\n  /own/formats/*\n")
    (folder / "mkdocs.yml").write_text(config)
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
    """The site as a reader gets it, built from the recorded runs without torch; or ALTGRAD_SITE, built already."""
    if built := os.environ.get("ALTGRAD_SITE"):
        return Path(built)
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers that each build it take twice as long, and nobody would see why
        (tmp_path_factory.getbasetemp().parent / "real-site-is-built").touch(exist_ok=False)
    out = tmp_path_factory.mktemp("real") / "site"
    without_torch = out.parent / "blocked"
    without_torch.mkdir()
    (without_torch / "torch.py").write_text('raise ImportError("a site is built without torch")\n')
    mkdocs_build(
        ROOT, out, ALTGRAD_RUNS=str(ROOT / "experiments" / "recorded"), PYTHONPATH=f"{without_torch}{os.pathsep}{ROOT}"
    )
    return out


PAYLOADS = (
    "<script>window.pwned = 1</script><img src=x onerror=window.pwned=1><svg onload=window.pwned=1>",
    "</script></title></textarea>--><script>window.pwned=1</script>",
    "[a](javascript:window.pwned=1) ![b](https://evil.example/x.png) `c` **d** | e {: onclick=window.pwned=1 }",
    "{{ pwned() }} {% raw %} {{ config }} ${window.pwned=1}",
    "../../../etc/passwd\\..\\x \u202eevil\u202c \u2066\u200b",
    "y" * 10_000,
)
"""Text that would call a function, leave its place, or fill the page."""


@pytest.fixture(scope="session")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site built from records whose every text is hostile, and one that is full of secrets."""
    from planted import planted
    from records import config, write_matrix, write_run

    from altgrad.runs import Failure, record

    root = tmp_path_factory.mktemp("hostile")
    runs = root / "records"
    write_matrix(runs, seeds=2)
    for seed, payload in enumerate(PAYLOADS):
        looks = [(20, payload, payload, "weight", "underflow", 0.5), (20, payload, "mlp", "weight", "amax", 1.0)]
        events = [{"kind": payload, "step": 3, payload: payload}]
        failure = Failure(("nan_loss",), 5, payload, "forward", payload, cause=payload, advice=(payload,))
        write_run(runs, config("e4m3", seed=20 + seed, notes=payload[:9000]), looks=looks, events=events, url=payload)
        write_run(runs, config("e5m2", seed=20 + seed), status="failed", looks=looks, failure=failure)
        own = {payload[:200]: payload, "note": [payload], "seed": seed}
        with record(runs, name=f"own-{seed}", notes=payload, tags=[payload], config=own) as run:
            run.log(0, loss=2.0, val_loss=2.0)
            run.log(1, loss=1.5, val_loss=1.5)
            run.finish()
    with record(runs, name="planted", **planted()[0]) as run:
        run.log(0, loss=2.0, val_loss=2.0)
        run.finish({"api_key": "hush-summary"})
    mkdocs_build(ROOT, root / "site", ALTGRAD_RUNS=str(runs))
    return root / "site"


@pytest.fixture(scope="session")
def hostile_address(hostile_site: Path) -> Iterator[str]:
    """Where the site of hostile records is served."""
    yield from _serve(hostile_site)


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
