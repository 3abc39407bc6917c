"""What a run on a Ray cluster costs beyond one of the local pool: the same short runs by both, one at a time, in turns.

    .venv/bin/python benchmarks/cluster.py figures.json
    .venv/bin/python benchmarks/runs.py --add figures.json

The cluster is one of this machine (RAY_ADDRESS is left out of account). Counted is the time from a run's end to the
next one's: starting the processes is not, and both begin a new one after 20 runs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from altgrad.config import parse_config  # noqa: E402
from altgrad.runs import run_id  # noqa: E402
from altgrad.runs.processor import cores  # noqa: E402
from altgrad.training import cluster, load_corpus, pool, train  # noqa: E402

RUNS, TURNS = 20, 3
SMALL = {
    "max_steps": 5, "batch_size": 32, "eval_batches": 8, "layers_every": 0, "final_eval_characters": 0,
    "model": {"layers": 1, "dim": 16, "heads": 1, "context": 16}, "optimizer": {"learning_rate": 1e-2},
}  # fmt: skip


def seconds(way: Callable[..., Iterator[tuple[str, str]]], out: Path) -> list[float]:
    """From each run's end to the next one's."""
    todo = [parse_config(SMALL | {"seed": seed}, source="benchmark") for seed in range(RUNS)]
    ended, statuses = [], []
    for _, status in way(todo, partial(train, out=out), 1):
        ended.append(time.perf_counter())
        statuses.append(status)
    if statuses != ["finished"] * RUNS:
        sys.exit(f"error: runs ended otherwise than well: {', '.join(sorted(set(statuses)))}")
    return [later - earlier for earlier, later in pairwise(ended)]


def main() -> int:
    """Returns the exit code."""
    os.environ.pop("RAY_ADDRESS", None)
    data = load_corpus().fingerprint
    how: dict[str, Any] = {"identity": lambda config: run_id(config, data), "cpus": cores()}
    found: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            for name, taken in found.items():
                out = Path(folder) / f"{name}-{turn}"
                new = seconds(partial(cluster.results, out=out, **how) if name == "ray" else pool.results, out)
                print(f"{name}: {1e3 * statistics.median(new):.0f} ms a run", flush=True)
                taken += new
    local, ray = (statistics.median(taken) for taken in found.values())
    figure = {
        "name": "A run on a Ray cluster, beyond one of the local pool",
        "value": max(1e3 * (ray - local), 0.0),
        "unit": "ms",
        "goal": 100,
        "reason": f"Medians, {1e3 * ray:.0f} ms against {1e3 * local:.0f} ms; the record is brought back and stored.",
    }
    Path(sys.argv[1]).write_text(json.dumps([figure], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
