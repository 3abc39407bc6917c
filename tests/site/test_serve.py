"""What a reader who edits sees: a real `mkdocs serve`, asked until the edit is on the page."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

pytest.importorskip("mkdocs_gen_files")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from records import config, write_run  # noqa: E402

from altgrad.site.new_site import lay_out  # noqa: E402

PATIENCE = 120
"""Seconds until an edit has to be there; on a quiet machine it takes one to two (benchmarks/site.py measures it)."""


class Server:
    """A project that is served, with a library of its own that can be edited."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        lay_out(folder)
        shutil.copytree(ROOT / "altgrad", folder / "altgrad", ignore=shutil.ignore_patterns("__pycache__"))
        settings = folder / "mkdocs.yml"
        settings.write_text(settings.read_text().replace("watch:\n", "watch:\n  - altgrad\n"))
        write_run(folder / "experiments/runs", config("e4m3"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.address = f"http://{address}/"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ALTGRAD")}
        self.log = folder.parent / "serve.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mkdocs", "serve", "-a", address, "-f", str(settings), *options],
                cwd=folder.parent,
                env={
                    **environment,
                    "PYTHONPATH": str(folder),
                    "NO_MKDOCS_2_WARNING": "1",
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def text(self, place: str) -> str:
        """The page at a place; nothing while there is none."""
        try:
            with urllib.request.urlopen(self.address + place, timeout=PATIENCE) as answer:
                return unescape(answer.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return ""

    def shows(self, place: str, text: str) -> float:
        """Wait until the page shows the text; seconds that it took."""
        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE:
            assert self.process.poll() is None, self.log.read_text()
            if text in self.text(place):
                return time.monotonic() - begun
            time.sleep(0.05)
        raise AssertionError(f"{place or 'home'} does not show {text!r}:\n{self.log.read_text()[-3000:]}")

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a file of the project."""
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def end(self) -> None:
        """Serve no more."""
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, until the module's tests are done."""
    served = Server(tmp_path_factory.mktemp("serve") / "project")
    try:
        served.shows("", "1 runs in 1 arms")
        yield served
    finally:
        served.end()


def test_the_data_is_there_without_live_reload_too(tmp_path: Path) -> None:
    served = Server(tmp_path / "project", "--no-livereload")
    try:
        served.shows("runs/", "e4m3")
        assert "e4m3" in served.text("runs/index.table.json")
    finally:
        served.end()


def test_every_kind_of_edit_is_on_the_page_with_new_code_and_an_error_stands_on_its_page(server: Server) -> None:
    # A page.
    server.edit("docs/index.md", "# Our runs", "# Our edited runs")
    server.shows("", "Our edited runs")

    # A script of gen/ that raises: its page says so, the others live; corrected, the page is back.
    raising = 'raise RuntimeError("on purpose")\n    return site_page_makers("runs")'
    server.edit("gen/runs.py", 'return site_page_makers("runs")', raising)
    server.shows("runs/", "RuntimeError: on purpose")
    assert "Our edited runs" in server.text("")
    server.edit("gen/runs.py", raising, 'return list(reversed(site_page_makers("runs")))')
    server.shows("runs/", "e4m3")
    assert "on purpose" not in server.text("runs/")

    # A block of a page.
    server.edit("docs/index.md", "```python exec hide\n", "```python exec hide\n1 / 0\n")
    server.shows("", "block 1, line 4: ZeroDivisionError: division by zero")
    server.edit("docs/index.md", "1 / 0\n", "")
    server.shows("", "1 runs in 1 arms")

    # The library: new code at once; one that cannot be imported is told on the pages that it makes.
    server.edit("altgrad/site/html.py", '"Link to this section"', '"Link to right here"')
    server.shows("runs/", 'title="Link to right here"')
    server.edit("altgrad/site/html.py", "class Body:", "class Body(:")
    server.shows("runs/", "SyntaxError")
    server.edit("altgrad/site/html.py", "class Body(:", "class Body:")
    server.shows("runs/", 'title="Link to right here"')

    # A record: the table of all runs and the page that reads them.
    # So is the data beside it, which is in no file.
    assert "e5m2" not in server.text("runs/index.table.json")
    write_run(server.folder / "experiments/runs", config("e5m2"))
    server.shows("runs/", "e5m2")
    server.shows("runs/index.table.json", "e5m2")
    server.shows("", "2 runs in 2 arms")
