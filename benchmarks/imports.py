"""What importing the reading half costs: `altgrad.analysis` against numpy and pandas alone, each in fresh processes.

Writes one JSON record to --out, and prints it: medians of seconds over --repeats interleaved processes, and the ratio
to the floor (numpy, pandas and pyarrow, which every reader needs).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "python": "pass",
    "floor: numpy, pandas, pyarrow.parquet": "import numpy, pandas, pyarrow.parquet",
    "altgrad.analysis": "import altgrad.analysis",
}


def main() -> None:
    """Measure, print, and save where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for code in CASES.values():  # one round to warm the file cache
        _time(code)
    for _ in range(options.repeats):
        for name, code in CASES.items():
            seconds[name].append(_time(code))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    names = list(CASES)
    record = {
        "benchmark": "imports",
        "repeats": options.repeats,
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratio_to_floor": round(medians[names[2]] / medians[names[1]], 3),
    }
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def _time(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
