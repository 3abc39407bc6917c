"""What a reader waits for, in the browser: a keystroke's answer, a hover's, a table on a first visit, a first paint.

    make bench-keystrokes                          build the site, measure and record; on a quiet machine
    .venv/bin/python benchmarks/keystrokes.py      the same for the site that is built

A keystroke's time is from its event to the first frame painted after what it asks for is on the page: what a reader
waits for; of a hover over a chart the same. The floor is the same for a field of an empty page. A first visit has an
empty cache; first paints are also those of a reader with 1.6 Mbit/s and a quarter of the processor, files compressed as
GitHub Pages sends them. The record goes to benchmarks/recorded/keystrokes.json, which the site turns into a page.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import os
import shutil
import statistics
import sys
import threading
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import altgrad  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, write_record  # noqa: E402
from altgrad.reports.run_costs import Figure, KeystrokesRecord  # noqa: E402

ROWS = 10_000
SEEDS = 8
"""Runs of an arm in what `made_up` gives."""
GOAL_MS = 50.0
GOAL_KB = 300.0
WORDS = ("e4m3 adamw", "manifold failed", "lr7 study-3", "zzz nothing")
VALUES = ("0.1", "-3.14159265", "1e-40", "0x1p-9", "448.0001")
FIELDS = {
    "an empty page": ("", "input", WORDS),
    "the Explorer": ("explorer/", "#x-value", VALUES),
    f"{ROWS // SEEDS:,} arms": ("runs/", ".runs-table input[type=search] >> nth=0", WORDS),
    f"{ROWS:,} runs and their chart": (
        "runs/?rows=runs&chart=scatter",
        ".runs-table input[type=search] >> nth=0",
        WORDS,
    ),
    f"{ROWS:,} runs": ("runs/?rows=runs", ".runs-table input[type=search] >> nth=0", WORDS),
}
"""What is typed into: its page, its field, the texts."""
PAINTED = {"Home": "", "the format comparison": "reports/format_comparison/", "the table of runs": "runs/"}
"""The pages whose first paint is measured."""
MBITS, SLOWER = 1.6, 4
GOAL_PAINT_S = GOAL_TABLE_S = 1.0
WATCH = """(input) => {
  window.times = [];
  input.addEventListener('input', (event) => {
    if (!input.value) return; // cleared before the next text
    requestAnimationFrame(() => setTimeout(() => times.push(performance.now() - event.timeStamp)));
  }, { capture: true });
}"""


WATCH_HOVER = """(canvas) => {
  window.times = [];
  canvas.addEventListener('mousemove', (event) => {
    requestAnimationFrame(() => setTimeout(() => times.push(performance.now() - event.timeStamp)));
  }, { capture: true });
}"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


class _Quiet(SimpleHTTPRequestHandler):
    """The site's files, text compressed."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return
        data, text = path.read_bytes(), path.suffix in (".html", ".css", ".js", ".json", ".svg", ".csv", ".xml")
        data = _compressed(data) if text else data
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Length", str(len(data)))
        if text:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(data)


@functools.lru_cache(maxsize=256)
def _compressed(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def browser_path() -> str:
    """The machine's own Chromium.

    Raises:
        SystemExit: there is none.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise SystemExit("error: no Chromium is installed; on Debian and Ubuntu: apt-get install chromium")
    return found


def keystrokes(page: Any, address: str, field: str, texts: tuple[str, ...], repeats: int) -> list[float]:
    """Milliseconds of each keystroke of `texts`, the shortest first."""
    if address:
        page.goto(address, wait_until="networkidle")
    else:
        page.set_content("<input>")
    page.wait_for_selector(field)
    page.wait_for_timeout(500)  # what comes after the first view is behind
    one = page.locator(field)
    one.evaluate(WATCH)
    for text in texts * repeats:
        one.fill("")
        one.press_sequentially(text, delay=80)
        page.wait_for_timeout(300)
    return sorted(page.evaluate("times"))


def hovers(page: Any, address: str, repeats: int) -> list[float]:
    """Milliseconds of each move of the pointer over the chart of all runs, the shortest first."""
    page.goto(address, wait_until="networkidle")
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.evaluate(WATCH_HOVER)
    box = canvas.bounding_box()
    for number in range(40 * repeats):
        across = 0.1 + 0.8 * (number % 40) / 39
        page.mouse.move(box["x"] + across * box["width"], box["y"] + (0.2 + 0.6 * across) * box["height"])
        page.wait_for_timeout(30)
    return sorted(page.evaluate("times"))


def first_paint(browser: Any, address: str, throttled: bool) -> float:
    """Seconds from the request until anything of the page is painted, with an empty cache."""
    context = browser.new_context()
    page = context.new_page()
    if throttled:
        session = context.new_cdp_session(page)
        speed = MBITS * 1e6 / 8
        limits = {"offline": False, "latency": 0, "downloadThroughput": speed, "uploadThroughput": speed}
        session.send("Network.emulateNetworkConditions", limits)
        session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.goto(address, wait_until="load", timeout=60_000)
    page.wait_for_function(PAINT)
    found = float(page.evaluate(PAINT))
    context.close()
    return found / 1e3


def table_ready(browser: Any, address: str) -> float:
    """Seconds from the request until the table of the site's own runs has rows, with an empty cache."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(".runs-table tbody tr")
    found = float(page.evaluate("performance.now()"))
    context.close()
    return found / 1e3


def bench(browser: Any, site: Path, data: bytes, repeats: int) -> KeystrokesRecord:
    """Measure every field; `data` is what the table of runs shows in place of the site's own runs."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    figures: list[Figure] = []
    floor: dict[str, float] = {}
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, (path, field, texts) in FIELDS.items():
            page = browser.new_page()
            page.route("**/index.table.json", lambda route: route.fulfill(body=data, content_type="application/json"))
            address = f"http://127.0.0.1:{server.server_port}/{path}" if path else ""
            times = keystrokes(page, address, field, texts, repeats)
            page.close()
            found = {
                "median": statistics.median(times),
                "95th percentile": times[int(0.95 * (len(times) - 1))],
                "slowest": times[-1],
            }
            floor = floor or found
            figures += [
                Figure(
                    name=f"{name[0].upper()}{name[1:]}, {which} of {len(times)} keystrokes",
                    value=round(value, 1),
                    unit="ms",
                    goal=GOAL_MS if path else None,
                    floor=round(floor[which], 1) if path else None,
                    floor_name="an empty page" if path else "",
                )
                for which, value in found.items()
            ]
        root = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page()
        page.route("**/index.table.json", lambda route: route.fulfill(body=data, content_type="application/json"))
        times = hovers(page, f"{root}runs/?rows=runs&chart=scatter", repeats)
        page.close()
        figures += [
            Figure(
                name=f"Hover over the chart of {ROWS:,} runs, {which} of {len(times)} moves",
                value=round(value, 1),
                unit="ms",
                goal=GOAL_MS,
            )
            for which, value in (("median", statistics.median(times)), ("slowest", times[-1]))
        ]
        ready = statistics.median(table_ready(browser, f"{root}runs/") for _ in range(repeats))
        figures.append(
            Figure(name="Table of the site's runs, first visit", value=round(ready, 2), unit="s", goal=GOAL_TABLE_S)
        )
        for throttled, where in ((False, ""), (True, f" at {MBITS} Mbit/s and 1/{SLOWER} of the processor")):
            for name, path in PAINTED.items():
                paint = statistics.median(first_paint(browser, root + path, throttled) for _ in range(repeats))
                figures.append(
                    Figure(
                        name=f"First paint of {name}{where}",
                        value=round(paint, 2),
                        unit="s",
                        goal=GOAL_PAINT_S if throttled else None,
                    )
                )
        server.shutdown()
    size = len(gzip.compress(data, 6, mtime=0)) / 1e3
    figures.append(
        Figure(name=f"First view of {ROWS:,} runs, compressed", value=round(size, 1), unit="kB", goal=GOAL_KB)
    )
    return KeystrokesRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("page"),
        cores=os.cpu_count() or 1,
        load=load,
        versions={"Chromium": browser.version, "playwright": version("playwright")},
        sizes={"runs": ROWS, "arms": ROWS // SEEDS},
        figures=tuple(figures),
    )


def main() -> int:
    """Measure, print and record; 0, 2 without a built site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="the built site (site/)")
    parser.add_argument("--repeats", type=int, default=5, help="how often each text is typed (5)")
    parser.add_argument("--record", type=Path, default=RECORDED / "keystrokes.json", help="where the figures go")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("give at least 1 of --repeats")
    if not all((options.site / name / "index.html").is_file() for name in ("runs", "explorer")):
        print(f"error: {options.site} holds no built site; make site builds it", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright
    from test_runs_script import made_up

    from altgrad.reports.compare import arm_table, table_json

    loader = made_up(ROWS)
    data = table_json(loader, arm_table(loader))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path())
        found = bench(browser, options.site, data, options.repeats)
        browser.close()
    write_record(found, options.record)
    for each in found.figures:
        result = {True: "   met", False: "   missed", None: ""}[each.met]
        print(f"{each.name:55} {each.value:8.3g} {each.unit}{result}")
    print(f"record: {options.record}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
