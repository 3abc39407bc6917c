"""How long the table of runs takes to answer a keystroke at 10,000 rows, in the browser, on the built site.

    make site && .venv/bin/python benchmarks/runs_table.py

A keystroke's time is from its event to the first frame painted after the rows that it asks for are in the page: what a
reader waits for. The goal is 50 ms; the median, the 95th percentile and the slowest of all keystrokes are recorded in
``benchmarks/recorded/runs_table.json``, with the size of the file that the first view loads.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import shutil
import statistics
import sys
import threading
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RECORD = ROOT / "benchmarks" / "recorded" / "runs_table.json"
ROWS = 10_000
TYPED = ("e4m3 adamw", "manifold failed", "lr7 study-3", "zzz nothing")
GOAL_MS = 50.0
MEASURE = """() => {
  window.times = [];
  for (const input of document.querySelectorAll('.runs-table input[type=search]')) {
    input.addEventListener('input', () => {
      const begun = performance.now();
      requestAnimationFrame(() => setTimeout(() => times.push(performance.now() - begun)));
    }, { capture: true });
  }
}"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def measure(site: Path, data: bytes) -> dict[str, Any]:
    """Milliseconds of each keystroke, with arms and with runs as rows."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        raise SystemExit("error: no Chromium is installed")
    found: dict[str, Any] = {}
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=executable)
        found["browser"] = f"Chromium {browser.version}"
        for rows in ("arms", "runs"):
            page = browser.new_page()
            page.route("**/index.table.json", lambda route: route.fulfill(body=data, content_type="application/json"))
            page.goto(f"http://127.0.0.1:{server.server_port}/runs/?rows={rows}")
            page.wait_for_selector(".runs-table[data-ready]")
            page.evaluate(MEASURE)
            field = page.get_by_label("Text")
            for text in TYPED:
                field.fill("")
                field.press_sequentially(text, delay=80)
                page.wait_for_timeout(300)
            times = sorted(page.evaluate("times"))
            found[rows] = {
                "keystrokes": len(times),
                "median_ms": round(statistics.median(times), 1),
                "p95_ms": round(times[int(0.95 * (len(times) - 1))], 1),
                "slowest_ms": round(times[-1], 1),
            }
        browser.close()
        server.shutdown()
    return found


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="Keystrokes in the table of runs at 10,000 rows.")
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="the built site")
    arguments = parser.parse_args()
    if not (arguments.site / "runs" / "index.html").is_file():
        raise SystemExit(f"error: {arguments.site} holds no built site; make site builds it")
    from test_runs_script import made_up

    from altgrad.analysis.reports.compare import arm_table, table_json

    loader = made_up(ROWS)
    data = table_json(loader, arm_table(loader))
    result = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": ROWS,
        "goal_ms": GOAL_MS,
        "first_view_bytes_gzipped": len(gzip.compress(data, 6, mtime=0)),
        "load_average": round(os.getloadavg()[0], 1),
        **measure(arguments.site, data),
    }
    RECORD.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
