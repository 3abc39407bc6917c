"""How the cost of records and pages grows with the number of runs: processor time and memory of ten times as many.

    make bench-large                                                        measure and record
    .venv/bin/python benchmarks/large.py --runs 20,200 --record trial.json   a trial of the machinery

The runs are recorded ones again, under other learning rates and seeds, ten an arm and each in a folder of its own. Each
step is a process of its own: its processor time, that of its children included, less what it takes with no runs. The
exponent is the slope of log time against log runs from a number of runs to the next one; the largest counts. The
floor is reading the bytes of all files. The record goes to benchmarks/recorded/large.json, which the site shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pyarrow as pa  # noqa: E402

import altgrad  # noqa: E402
from altgrad.config import UsageError  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, write_record  # noqa: E402

from altgrad.runs import load_runs, run_id  # noqa: E402
from altgrad.runs.tables import write_table  # noqa: E402

SEEDS = 10
KINDS = 40
"""Recorded runs that the generated ones are made from."""
LINKS = 30_000
"""Most names of one file; file systems allow 65,000."""
_LOADED = "import sys; from pathlib import Path; from altgrad.runs import load_runs; r = load_runs([Path(sys.argv[1])])"
_FINDINGS = (
    "import sys; from pathlib import Path; from altgrad.analysis.loader import ExperimentDataLoader; "
    "from altgrad.analysis.effects import effects, outcomes; loader = ExperimentDataLoader([Path(sys.argv[1])]); "
    "loader.memo(outcomes), effects(loader)"
)
_BYTES = "import sys; from pathlib import Path; [p.read_bytes() for p in Path(sys.argv[1]).rglob('*') if p.is_file()]"
STEPS: dict[str, Sequence[str]] = {
    "reading the bytes": ("-c", _BYTES),
    "load": ("-c", _LOADED),
    "altgrad runs list": ("-m", "altgrad.cli", "runs", "list", "--runs"),
    "altgrad runs verify": ("-m", "altgrad.cli", "runs", "verify", "--runs"),
    "altgrad runs export": ("-m", "altgrad.cli", "runs", "export", "--runs"),
    "altgrad runs export --history": ("-m", "altgrad.cli", "runs", "export", "--history", "--runs"),
    "findings": ("-c", _FINDINGS),
    "pages": ("-m", "mkdocs", "build", "-q", "-f"),
}


class Cost(NamedTuple):
    """Seconds of the processors, and the most memory that one process took, in GB."""

    seconds: float
    memory: float


def generate(folder: Path, runs: int) -> Path:
    """Records of `runs` runs, each in a folder; the tables of those that were made from one are one file."""
    folder.mkdir(parents=True)
    if not runs:
        return folder
    shown = load_runs([ROOT / "experiments" / "recorded"]).records
    shown = [record for record in shown if record.status == "finished"][:: max(1, len(shown) // KINDS)][:KINDS]
    made: dict[int, tuple[Path, dict[str, object]]] = {}
    for number in range(runs):
        arm, seed = divmod(number, SEEDS)
        source = shown[arm % len(shown)]
        optimizer = source.config.optimizer.model_copy(update={"learning_rate": 1e-3 + 1e-6 * arm})
        config = source.config.model_copy(update={"optimizer": optimizer, "seed": seed, "study": "many"})
        identity = run_id(config, source.run["data"])
        path = folder / identity
        path.mkdir()
        kind = arm % len(shown) + len(shown) * (number // LINKS)
        if kind not in made:
            tables = {"history": source.history, "layers": source.layers}
            proofs = {
                name: write_table(pa.Table.from_pandas(frame, preserve_index=False), path / f"{name}.parquet").model_dump()
                for name, frame in tables.items()
            }
            made[kind] = path, proofs
        else:
            for name in ("history", "layers"):
                os.link(made[kind][0] / f"{name}.parquet", path / f"{name}.parquet")
        run = source.run | {"config": config.model_dump(mode="json"), "id": identity, "tables": made[kind][1]}
        (path / "run.json").write_text(json.dumps(run, indent=1))
    return folder
